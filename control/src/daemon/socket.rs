//! The socket for `tombolo`: who connects is known by the credentials the kernel attaches to it.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tombolo_rpc::{Link, LinkConfig};
use tombolo_transport::{Addr, Cid, Messages, Port};

use super::groups::groups_of;
use super::registry::Registry;
use super::services::{Caller, Session, ShutdownRequest};
use super::shared::Shared;
use crate::api::Role;

/// Longest message on the socket, in bytes. Streams travel in much smaller pieces.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Connections that one user may have at once: a script gone wild must not keep the others out.
const CALLERS_OF_ONE_MAX: usize = 128;

/// How many connections each user has.
type Callers = Arc<Mutex<HashMap<u32, usize>>>;

/// One connection of a user, counted until it is dropped.
struct Counted {
    callers: Callers,
    uid: u32,
}

impl Counted {
    /// Counts one more; `None` if the user has as many as there may be.
    fn new(callers: &Callers, uid: u32) -> Option<Self> {
        let mut counts = callers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_default();
        if *count >= CALLERS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Self { callers: callers.clone(), uid })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// Binds the socket at `path`, in place of one that a dead daemon left. The folder's lock says that it is dead.
///
/// # Errors
/// If the folder or the socket cannot be made.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // Everyone may look; what else a caller may do follows from who it is.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves callers until the task is dropped.
pub(crate) async fn serve(
    listener: UnixListener,
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    shutdown: mpsc::Sender<ShutdownRequest>,
) {
    let callers = Callers::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, registry, shutdown) = (shared.clone(), registry.clone(), shutdown.clone());
                let callers = callers.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &callers, shared, registry, shutdown).await {
                        tracing::debug!(error, "a caller went away");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those in use will come back.
                tracing::warn!(%error, "could not accept a caller");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(
    stream: UnixStream,
    callers: &Callers,
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    shutdown: mpsc::Sender<ShutdownRequest>,
) -> Result<(), String> {
    let credentials =
        stream.peer_cred().map_err(|error| format!("its credentials are not known: {error}"))?;
    let (uid, gid) = (credentials.uid(), credentials.gid());
    let Some(_counted) = Counted::new(callers, uid) else {
        tracing::warn!(
            uid,
            max = CALLERS_OF_ONE_MAX,
            "a user has too many connections; one more was refused"
        );
        return Err(format!("uid {uid} has {CALLERS_OF_ONE_MAX} connections already"));
    };
    let role = Role::of(uid, &groups_of(uid, gid), shared.daemon_uid, shared.operators_gid);
    let caller = Caller { uid, pid: credentials.pid().unwrap_or(0), role };
    let local = Addr::new(Cid::HOST, Port::CONTROL);
    let messages = Messages::framed(stream, local, Addr::new(Cid::HOST, Port::ANY), MESSAGE_BYTES_MAX);
    let router = Session { shared, registry, caller, shutdown }.router();
    let link = Link::accept(messages, LinkConfig::new("tombolod"), router)
        .await
        .map_err(|error| error.to_string())?;
    let reason = link.closed().await;
    tracing::trace!(uid, %reason, "a caller is done");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_fills_only_its_own_share() {
        let callers = Callers::default();
        let mut all: Vec<_> =
            (0..CALLERS_OF_ONE_MAX).map(|_| Counted::new(&callers, 1000).unwrap()).collect();
        assert!(Counted::new(&callers, 1000).is_none());
        assert!(Counted::new(&callers, 0).is_some());
        all.pop();
        assert!(Counted::new(&callers, 1000).is_some());
        drop(all);
        assert!(callers.lock().unwrap().is_empty());
    }
}
