//! How processes come to the broker of their kernel: its socket, who may attach, and the first words.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};

use crate::broker::protocol::{self, ClientMessage};
use crate::error::{Error, Result};
use crate::unix_socket::{self, BACKLOG_MAX, SocketFile};

/// Whose processes may attach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door {
    pub(crate) allowed_gid: Option<u32>,
}

impl Door {
    /// `Err`: whoever has the other end may not attach. `Ok(true)`: it may also listen on privileged ports.
    pub(crate) fn judge(self, stream: &UnixStream) -> Result<bool, String> {
        match stream.peer_cred() {
            Ok(credentials) => self.admits(credentials.uid(), credentials.gid()),
            Err(error) => Err(format!("the system does not say who you are: {error}")),
        }
    }

    fn admits(self, uid: u32, gid: u32) -> Result<bool, String> {
        let own = rustix::process::geteuid().as_raw();
        if uid == 0 || uid == own {
            return Ok(true);
        }
        if self.allowed_gid == Some(gid) {
            return Ok(false);
        }
        Err(format!(
            "user {uid} (group {gid}) may not attach here: only root, user {own} and the allowed group may"
        ))
    }
}

/// Waits for the hello of a process about which `verdict` is known. What follows it stays in `buffer`.
pub(crate) async fn hello(
    stream: &mut UnixStream,
    buffer: &mut Vec<u8>,
    verdict: Result<bool, String>,
) -> Result<bool, String> {
    let is_privileged = verdict?;
    let hello = loop {
        if let Some(message) = protocol::take::<ClientMessage>(buffer).map_err(|e| e.to_string())? {
            break message;
        }
        let read = stream.read_buf(buffer).await.map_err(|e| e.to_string())?;
        if read == 0 {
            return Err("hung up without a hello".to_owned());
        }
    };
    match hello {
        ClientMessage::Hello { version: protocol::VERSION } => Ok(is_privileged),
        ClientMessage::Hello { version } => Err(format!(
            "this broker speaks version {}, the process version {version}: use builds of one release",
            protocol::VERSION
        )),
        _ => Err("the first message was no hello".to_owned()),
    }
}

/// Listens on the broker's socket, in place of one that a dead broker left.
pub(crate) fn listen(path: &Path, allowed_gid: Option<u32>) -> Result<(UnixListener, SocketFile)> {
    let make = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let (listener, file) = unix_socket::listen(path, BACKLOG_MAX)?;
        let mode = if allowed_gid.is_some() { 0o660 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        if let Some(gid) = allowed_gid {
            std::os::unix::fs::chown(path, None, Some(gid))?;
        }
        Ok((listener, file))
    };
    make().map_err(|e| Error::io(format!("listening on the broker socket {}", path.display()), e))
}
