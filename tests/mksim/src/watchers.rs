//! Who has a file open that changes, and would be told if the kernel told anybody (`kernfs_notify` in fs/kernfs/file.c): poll(2) says POLLPRI and
//! POLLERR from when it changed until it is read again. A file that was not read yet counts as changed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::PollNotifier;

/// All who have one open.
#[derive(Default)]
pub(crate) struct Watchers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_handle: u64,
    open: HashMap<u64, Watcher>,
}

#[derive(Default)]
struct Watcher {
    seen: Option<Vec<u8>>,
    pollers: Vec<PollNotifier>,
}

impl Watchers {
    pub(crate) fn open(&self) -> u64 {
        let mut state = self.lock();
        state.last_handle += 1;
        let handle = state.last_handle;
        state.open.insert(handle, Watcher::default());
        handle
    }

    pub(crate) fn close(&self, handle: u64) {
        self.lock().open.remove(&handle);
    }

    /// It was read, and this is what it said.
    pub(crate) fn has_read(&self, handle: u64, content: &[u8]) {
        if let Some(watcher) = self.lock().open.get_mut(&handle) {
            watcher.seen = Some(content.to_vec());
        }
    }

    /// Whether it says something else than what was read last; if not, `notifier` is told to look again.
    pub(crate) fn has_changed(&self, handle: u64, content: &[u8], notifier: Option<PollNotifier>) -> bool {
        let mut state = self.lock();
        let Some(watcher) = state.open.get_mut(&handle) else { return false };
        let has_changed = watcher.seen.as_deref() != Some(content);
        if !has_changed && let Some(notifier) = notifier {
            watcher.pollers.retain(|known| known.handle().0 != notifier.handle().0);
            watcher.pollers.push(notifier);
        }
        has_changed
    }

    /// Something may have changed: all look again.
    pub(crate) fn wake(&self) {
        let pollers: Vec<_> =
            self.lock().open.values_mut().flat_map(|watcher| std::mem::take(&mut watcher.pollers)).collect();
        for poller in pollers {
            // Whoever polled may be gone.
            let _ = poller.notify();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
