//! Listening Unix sockets, whose files outlive processes that die.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixSocket};

/// As many waiting callers as the system allows (`net.core.somaxconn`).
pub const BACKLOG_MAX: u32 = i32::MAX as u32;

/// The file of a listening socket. Dropped, it goes, unless somebody else has put another in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on `path`, where `backlog` callers may wait to be accepted ([`listen(2)`]: Linux lets one more wait). A socket
/// that a dead process left there is replaced; anything else is left alone.
///
/// [`listen(2)`]: https://man7.org/linux/man-pages/man2/listen.2.html
///
/// # Errors
/// What the system said; [`io::ErrorKind::AddrInUse`] if a living process listens there, or it is no socket.
pub fn listen(path: &Path, backlog: u32) -> io::Result<(UnixListener, SocketFile)> {
    if is_leftover(path) {
        std::fs::remove_file(path)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path) };
    Ok((socket.listen(backlog)?, file))
}

/// Whether it is a socket.
pub(crate) fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// Whether it is a socket that nobody listens on.
///
/// Found out without connecting to a listener or waiting for one: the caller's socket is of another type, which only a
/// living socket says (`EPROTOTYPE`). Where it cannot be told, it counts as living.
fn is_leftover(path: &Path) -> bool {
    let call = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
    };
    is_socket(path) && call() == Err(Errno::CONNREFUSED)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_dead_process_left_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (living, file) = listen(&path, BACKLOG_MAX).unwrap();
        assert_eq!(listen(&path, BACKLOG_MAX).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop((living, file));
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        assert_eq!(listen(&path, BACKLOG_MAX).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_file_that_somebody_else_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (_listener, file) = listen(&path, BACKLOG_MAX).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (_other, other_file) = listen(&path, BACKLOG_MAX).unwrap();
        drop(file);
        assert!(path.exists());
        drop(other_file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_listener_with_a_full_backlog_counts_as_living_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (_listener, _file) = listen(&path, 0).unwrap();
        let call = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).map(|()| socket)
        };
        let _waiting = call().unwrap();
        assert_eq!(call().unwrap_err(), Errno::AGAIN, "the backlog is full");
        assert_eq!(listen(&path, 0).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
