//! The agent: what the control plane has inside every spawned kernel.
//!
//! One static binary, `tombolo-agent`. As the first process of a kernel it mounts, reaps, runs the entrypoint and
//! powers off in order; as an ordinary program it does the rest. This library holds what others need to talk to it:
//! [`api`], its services as typed calls, and [`config`], the document it boots from.

pub mod api;
pub mod config;
