//! What the task of a link shares with those who use it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use atomic_waker::AtomicWaker;
use tokio::sync::watch;
use tokio::time::Instant;

use super::core::{Link, Nanos, StreamId};
use crate::addr::Cid;
use crate::framed::IoStream;

/// One link, shared. Whoever holds the lock waits for nothing, and drops no [`User`], which takes it too.
pub(super) struct Shared {
    pub(super) local: Cid,
    pub(super) peer: Cid,
    state: Mutex<State>,
    /// The driver of the link.
    pub(super) task: AtomicWaker,
    /// What the driver wants of whoever makes sockets.
    pub(super) want: watch::Sender<Want>,
    start: Instant,
}

pub(super) struct State {
    pub(super) link: Link,
    pub(super) waiters: HashMap<StreamId, Waiters>,
    /// A socket to be used from now on.
    pub(super) next_socket: Option<Box<dyn IoStream>>,
    /// Nobody uses the link any more: what was written goes yet.
    pub(super) is_closing: bool,
    /// The link has been removed: nothing goes any more.
    pub(super) is_removed: bool,
    pub(super) user: Weak<User>,
}

/// Whoever sleeps until a stream can be read or written.
#[derive(Default)]
pub(super) struct Waiters {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// The present socket will do.
    Nothing,
    Socket,
    /// The link is over.
    End,
}

/// Held by endpoints and streams: when the last one goes, the link closes.
pub(super) struct User(pub(super) Arc<Shared>);

impl Shared {
    pub(super) fn new(local: Cid, peer: Cid, link: Link) -> (Arc<User>, Arc<Self>) {
        let state = State {
            link,
            waiters: HashMap::new(),
            next_socket: None,
            is_closing: false,
            is_removed: false,
            user: Weak::new(),
        };
        let shared = Arc::new(Self {
            local,
            peer,
            state: Mutex::new(state),
            task: AtomicWaker::new(),
            want: watch::Sender::new(Want::Socket),
            start: Instant::now(),
        });
        let user = Arc::new(User(Arc::clone(&shared)));
        shared.lock().user = Arc::downgrade(&user);
        (user, shared)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every operation of the core leaves it whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Nanos {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn instant(&self, nanos: Nanos) -> Instant {
        self.start + std::time::Duration::from_nanos(nanos)
    }

    /// Uses `socket` from now on. Closes it if the link is over, and one that waited to be used in any case.
    pub(super) fn replace_socket(&self, socket: Box<dyn IoStream>) {
        let mut state = self.lock();
        if *self.want.borrow() == Want::End {
            return;
        }
        let former = state.next_socket.replace(socket);
        self.set_want(Want::Nothing);
        drop(state);
        drop(former);
        self.task.wake();
    }

    /// Under the lock, so that nobody asks for a socket that is there already.
    pub(super) fn set_want(&self, wanted: Want) {
        self.want.send_if_modified(|want| {
            let changes = *want != wanted && *want != Want::End;
            if changes {
                *want = wanted;
            }
            changes
        });
    }
}

impl State {
    pub(super) fn waiters(&mut self, stream: StreamId) -> &mut Waiters {
        self.waiters.entry(stream).or_default()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.lock().is_closing = true;
        self.0.task.wake();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { local, peer, .. } = self;
        f.debug_struct("Link").field("local", local).field("peer", peer).finish_non_exhaustive()
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
