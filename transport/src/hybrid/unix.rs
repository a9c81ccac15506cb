//! Unix sockets at paths: binding where a dead process may have left its socket, and dialling with errors that speak
//! of vsock addresses.

use std::io;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::addr::{Addr, Port};
use crate::error::{Error, Result};

/// A listening Unix socket whose file goes when it does.
#[derive(Debug)]
pub(crate) struct PathListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: whether what is at the path later still is this.
    file: Option<(u64, u64)>,
}

/// `PATH_<port>`.
pub(crate) fn port_path(path: &Path, port: Port) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

impl PathListener {
    /// Binds `path` for `addr`, replacing a socket that nobody serves any more.
    pub(crate) fn bind(path: PathBuf, addr: Addr, backlog: u32) -> Result<Self> {
        let attempt = || format!("listening on {addr} at {}", path.display());
        let bound = match bind_once(&path, backlog) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if is_served(&path) {
                    return Err(Error::AddrInUse(addr));
                }
                // A file that is no socket also makes the address "in use": never delete one of those.
                if is_socket(&path) {
                    std::fs::remove_file(&path).map_err(|source| Error::io(attempt(), source))?;
                }
                bind_once(&path, backlog)
            }
            other => other,
        };
        let listener = bound.map_err(|source| Error::io(attempt(), source))?;
        let file = identity(&path);
        Ok(Self { listener, path, file })
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for PathListener {
    fn drop(&mut self) {
        // Somebody may have removed it and listens there now. Nothing to tell anybody if it is already gone.
        if self.file.is_some() && identity(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind_once(path: &Path, backlog: u32) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Linux lets one caller more wait than listen(2) was told.
    socket.listen(backlog.max(1) - 1)
}

/// Whether a process listens at `path`, found out without connecting to it: a socket of another type is told apart
/// (EPROTOTYPE) only if there is one.
fn is_served(path: &Path) -> bool {
    let probe = || -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
    };
    matches!(probe(), Ok(()) | Err(rustix::io::Errno::PROTOTYPE))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// Connects to the Unix socket at `path`, which stands for `addr`.
pub(crate) async fn dial(path: &Path, addr: Addr) -> Result<UnixStream> {
    let refused = |reason: String| Error::Refused { addr, reason };
    UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => refused(format!("there is no socket {}", path.display())),
        io::ErrorKind::ConnectionRefused => refused(format!("nobody serves {}", path.display())),
        // A non-blocking connect to a Unix socket whose queue is full fails at once.
        io::ErrorKind::WouldBlock => {
            refused("its backlog is full; try again when it has accepted some".into())
        }
        _ => Error::io(format!("connecting to {addr} at {}", path.display()), source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Cid;

    const ADDR: Addr = Addr { cid: Cid(2), port: Port(5) };

    #[tokio::test]
    async fn socket_of_a_dead_process_is_replaced_and_one_of_a_living_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s_5");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file behind");
        let listener = PathListener::bind(path.clone(), ADDR, 4).unwrap();
        assert!(matches!(PathListener::bind(path.clone(), ADDR, 4), Err(Error::AddrInUse(_))));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn socket_of_a_successor_outlives_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s_5");
        let predecessor = PathListener::bind(path.clone(), ADDR, 4).unwrap();
        std::fs::remove_file(&path).unwrap();
        let successor = PathListener::bind(path.clone(), ADDR, 4).unwrap();
        drop(predecessor);
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn plain_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s_5");
        std::fs::write(&path, "precious").unwrap();
        assert!(PathListener::bind(path.clone(), ADDR, 4).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
