//! Unix sockets at paths: binding where a dead process may have left its socket, and dialling with errors that speak
//! of vsock addresses.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::addr::{Addr, Port};
use crate::error::{Error, Result};
use crate::unix_socket::{self, SocketFile};

/// A listening Unix socket whose file goes when it does.
#[derive(Debug)]
pub(crate) struct PathListener {
    listener: UnixListener,
    _file: SocketFile,
}

/// `PATH_<port>`.
pub(crate) fn port_path(path: &Path, port: Port) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

impl PathListener {
    /// Binds `path` for `addr`, replacing a socket that nobody serves any more.
    pub(crate) fn bind(path: &Path, addr: Addr, backlog: u32) -> Result<Self> {
        // Linux lets one caller more wait than listen(2) was told.
        match unix_socket::listen(path, backlog.max(1) - 1) {
            Ok((listener, file)) => Ok(Self { listener, _file: file }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && unix_socket::is_socket(path) => {
                Err(Error::AddrInUse(addr))
            }
            Err(source) => Err(Error::io(format!("listening on {addr} at {}", path.display()), source)),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
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
        let listener = PathListener::bind(&path, ADDR, 4).unwrap();
        assert!(matches!(PathListener::bind(&path, ADDR, 4), Err(Error::AddrInUse(_))));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn socket_of_a_successor_outlives_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s_5");
        let predecessor = PathListener::bind(&path, ADDR, 4).unwrap();
        std::fs::remove_file(&path).unwrap();
        let successor = PathListener::bind(&path, ADDR, 4).unwrap();
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
        assert!(PathListener::bind(&path, ADDR, 4).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
