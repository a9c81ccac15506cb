//! What a link takes from its surroundings and other tasks see of it: locks, atomics, tasks and timers.
//!
//! They are those of std and Tokio. In the tests that run with `--cfg shuttle` they are of [`scheduled`]: a scheduler that the test chooses decides
//! at each of them who goes on.

#[cfg(not(all(test, shuttle)))]
mod system {
    pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

    pub(crate) use tokio::runtime::Handle;
    pub(crate) use tokio::task::AbortHandle;

    pub(crate) mod time {
        use std::time::{Duration, Instant};

        pub(crate) use tokio::time::{Sleep, sleep, timeout};

        /// The time since `epoch`.
        #[inline]
        pub(crate) fn since(epoch: Instant) -> Duration {
            epoch.elapsed()
        }
    }
}

#[cfg(all(test, shuttle))]
mod scheduled;

#[cfg(all(test, shuttle))]
pub(crate) use scheduled::{AbortHandle, Handle, Mutex, MutexGuard, atomic, time};
#[cfg(not(all(test, shuttle)))]
pub(crate) use system::{AbortHandle, Handle, Mutex, MutexGuard, atomic, time};
