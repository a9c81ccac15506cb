//! Bridged sockets: what is behind [`crate::api::forward::Forward`].

mod service;
mod socket;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tombolo_transport::Endpoint;

pub use service::ForwardService;

use self::socket::{AnyListener, Socket};
use crate::api::forward::{ForwardError, ForwardInfo, ForwardRule, ForwardTarget};
use crate::state::Lifecycle;

/// Deadline of a connection to a target, unless the caller says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be open at a time, over all rules and callers: each costs two descriptors and two buffers, and
/// whoever can reach a listener can open as many as he likes.
const OPEN_MAX: usize = 256;
/// Pause after a failed accept (out of descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The forwards of this kernel. Clones share them.
#[derive(Clone, Debug)]
pub struct Forwards(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lifecycle: Lifecycle,
    endpoint: Option<Endpoint>,
    rules: Mutex<BTreeMap<u64, Rule>>,
    last_id: AtomicU64,
    /// One for each connection that may be open, those bridged to callers included.
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Rule {
    rule: ForwardRule,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counters {
    open: AtomicU32,
    total: AtomicU64,
    last_failure: Mutex<String>,
}

impl Forwards {
    /// None yet. `endpoint` is the way to the fabric, if there is one.
    pub fn new(lifecycle: Lifecycle, endpoint: Option<Endpoint>) -> Self {
        let rules = Mutex::default();
        let (last_id, room) = (AtomicU64::new(0), Arc::new(Semaphore::new(OPEN_MAX)));
        Self(Arc::new(Inner { lifecycle, endpoint, rules, last_id, room }))
    }

    /// Connections that are open.
    pub fn open(&self) -> u32 {
        (OPEN_MAX - self.0.room.available_permits()) as u32
    }

    /// Room for a connection of a caller, who does not wait for others to end theirs.
    fn room(&self, target: &ForwardTarget) -> Result<OwnedSemaphorePermit, ForwardError> {
        Arc::clone(&self.0.room).try_acquire_owned().map_err(|_| ForwardError::Unreachable {
            target: target.to_string(),
            reason: format!("{OPEN_MAX} forwarded connections are open already"),
        })
    }

    async fn connect(
        &self,
        target: &ForwardTarget,
        timeout: Duration,
    ) -> Result<Box<dyn Socket>, ForwardError> {
        self.0.lifecycle.accepts_work().map_err(|state| ForwardError::NotAccepting { state })?;
        match tokio::time::timeout(timeout, socket::connect(target, self.0.endpoint.as_ref())).await {
            Ok(connected) => connected,
            Err(_) => Err(ForwardError::Unreachable {
                target: target.to_string(),
                reason: format!("no answer within {} ms", timeout.as_millis()),
            }),
        }
    }

    async fn listen(&self, rule: ForwardRule) -> Result<ForwardInfo, ForwardError> {
        self.0.lifecycle.accepts_work().map_err(|state| ForwardError::NotAccepting { state })?;
        let (listener, listen) = AnyListener::bind(&rule.listen, self.0.endpoint.as_ref()).await?;
        let rule = ForwardRule { listen, target: rule.target };
        let counters = Arc::new(Counters::default());
        let serve = self.clone().serve(listener, rule.target.clone(), Arc::clone(&counters));
        let id = self.0.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Rule { rule, counters, task: tokio::spawn(serve) };
        let info = entry.info(id);
        self.rules().insert(id, entry);
        Ok(info)
    }

    fn unlisten(&self, id: u64) -> Result<(), ForwardError> {
        let rule = self.rules().remove(&id).ok_or(ForwardError::NoSuchForward { id })?;
        // Drops the listener; connections run in tasks of their own.
        rule.task.abort();
        Ok(())
    }

    fn list(&self) -> Vec<ForwardInfo> {
        self.rules().iter().map(|(id, rule)| rule.info(*id)).collect()
    }

    async fn serve(self, mut listener: AnyListener, target: ForwardTarget, counters: Arc<Counters>) {
        loop {
            match listener.accept().await {
                Ok(socket) => {
                    counters.total.fetch_add(1, Ordering::Relaxed);
                    // Further ones wait in the backlog meanwhile. The semaphore is never closed.
                    let Ok(room) = Arc::clone(&self.0.room).acquire_owned().await else { return };
                    let bridge = self.clone().bridge(socket, target.clone(), Arc::clone(&counters));
                    tokio::spawn(async move {
                        bridge.await;
                        drop(room);
                    });
                }
                Err(reason) => {
                    counters.note_failure(format!("accepting: {reason}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn bridge(self, mut from: Box<dyn Socket>, target: ForwardTarget, counters: Arc<Counters>) {
        let _open = Open::count(&counters.open);
        match self.connect(&target, CONNECT_TIMEOUT).await {
            Ok(mut to) => {
                if let Err(error) = tokio::io::copy_bidirectional(&mut from, &mut to).await {
                    tracing::debug!(%target, %error, "a forwarded connection was lost");
                }
            }
            Err(error) => {
                tracing::warn!("a connection could not be forwarded: {error}");
                counters.note_failure(error.to_string());
            }
        }
    }

    fn rules(&self) -> MutexGuard<'_, BTreeMap<u64, Rule>> {
        self.0.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rule {
    fn info(&self, id: u64) -> ForwardInfo {
        ForwardInfo {
            id,
            rule: self.rule.clone(),
            open: self.counters.open.load(Ordering::Relaxed),
            total: self.counters.total.load(Ordering::Relaxed),
            last_failure: self.counters.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl Counters {
    fn note_failure(&self, reason: String) {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// Counts a connection of a rule as open while it lives.
struct Open<'a>(&'a AtomicU32);

impl<'a> Open<'a> {
    fn count(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
