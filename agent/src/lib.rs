//! The agent: what the control plane has inside every spawned kernel.
//!
//! One static binary, `tombolo-agent`. As the first process of a kernel it mounts, reaps, runs the entrypoint and
//! powers off in order; as an ordinary program it does the rest. This library holds what others need to talk to it:
//! [`api`], its services as typed calls, and [`config`], the document it boots from.

pub mod api;
pub mod config;

pub mod agent;
pub mod blackbox;
pub mod children;
mod clock;
pub mod console;
mod cpu_list;
pub mod cpus;
mod daxfs;
mod doorbell;
pub mod entrypoint;
pub mod exec;
pub mod files;
pub mod forward;
pub mod handover;
pub mod health;
pub mod heartbeat;
pub mod inventory;
pub mod link;
pub mod logs;
pub mod measure;
pub mod mount_table;
mod net;
mod paced;
mod pci;
pub mod pid1;
pub mod run;
pub mod state;
mod sys;

pub use sys::{inherited_fd, keep_inherited_fds, take_precedence};
