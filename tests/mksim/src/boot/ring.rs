//! Rings that are full: what this side writes to such a kernel finds no room, and nothing is carried.
//!
//! The kernel's vsock fails such a write with ENOSPC, and poll(2) says all the same that there is room. A Unix socket has no such error: the
//! filter of system calls answers in its place, for commands whose writes it sees (`run --see-writes`).

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::link::Link;

/// All rings that are full.
#[derive(Debug)]
pub(crate) struct Rings {
    sees_writes: bool,
    full: Mutex<Vec<Link>>,
}

impl Rings {
    /// None is full. `sees_writes`: whether the filter shows what is written.
    pub(crate) fn new(sees_writes: bool) -> Self {
        Self { sees_writes, full: Mutex::default() }
    }

    /// Fills the ring of a line.
    ///
    /// # Errors
    /// Writes are not seen: nobody would be told that it is full.
    pub(crate) fn fill(&self, link: &Link) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.sees_writes,
            "no write is seen here, so that none can fail: start it with `run --see-writes`"
        );
        link.set_full(true);
        let mut full = self.lock();
        // Those of kernels that are gone, and this one.
        full.retain(|known| known.is_full() && !known.is(link));
        full.push(link.clone());
        Ok(())
    }

    /// There is room again.
    pub(crate) fn empty(&self, link: &Link) {
        link.set_full(false);
        self.lock().retain(Link::is_full);
    }

    /// Whether a write finds no room, which is counted. `descriptor` gives what is written to, and is asked only where a ring is full.
    pub(crate) fn refuse(&self, descriptor: impl FnOnce() -> Option<OwnedFd>) -> bool {
        let full = self.lock();
        if full.is_empty() {
            return false;
        }
        descriptor().is_some_and(|descriptor| {
            let socket = descriptor.into();
            full.iter().any(|link| link.refuse(&socket))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Link>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
