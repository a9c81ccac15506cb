//! The shared-memory backend: connections whose data flows from process to process through a pool.
//!
//! A process attaches to its kernel's [broker](crate::broker) over a Unix socket ([`client`]), which hands it the pool and grants it halves
//! of connections ([`conn`]). From then on it reads and writes rings ([`stream`], [`messages`]) and sleeps by itself ([`wait`]); one task
//! per attachment listens to its bell ([`reactor`]).
//!
//! # Who notices what, and when
//! | what died | noticed by | error |
//! |---|---|---|
//! | peer process | its broker sees its socket close, marks its half and rings: at once | `Reset`, peer closed (after what it had sent) |
//! | peer kernel, or its broker | the primary fences it, or a new generation appears; brokers ring their processes: at once, or at the re-check | `Reset`, kernel died |
//! | our broker | our socket to it closes: at once | `Reset`, broker died, on every connection of this attachment |
//! | our kernel, by mistake (it was frozen) | our own fence, at the next look | `Reset`, fenced |
//!
//! After the death of our broker the rings would still work, but nobody would ring for us, reclaim our memory, or reset us when the peer dies: better
//! a prompt error than a slow surprise. A task that polls notices each of these with its next poll, one that sleeps when it is rung or at the re-check.

mod budget;
mod client;
mod conn;
mod conns;
mod endpoint;
mod listener;
mod messages;
mod reactor;
mod stream;
mod wait;

pub(crate) use endpoint::{Attached, ShmEndpoint, Way};
pub(crate) use listener::ShmListener;
pub(crate) use messages::{ShmLoan, ShmReceived, ShmReceiver, ShmSender};
pub(crate) use stream::{ShmReader, ShmWriter};
