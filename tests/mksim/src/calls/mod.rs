//! The system calls of a command, caught from outside by seccomp user notification (seccomp_unotify(2)).
//!
//! The filter is installed on the thread that starts the command, so that it and all its children have it. What is not of
//! Multikernel passes without a notification, but for writes where some are to fail; what could restart or replace this host's kernel is EPERM.

mod filter;
mod heap;
mod serve;
mod sys;

pub(crate) use filter::install;
pub(crate) use heap::Buffer;
pub(crate) use serve::serve;
