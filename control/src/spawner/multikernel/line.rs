//! The kernel's end of its doorbell: a socket that somebody in it, or for it, dials.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{VsockAddr, getpeername};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use tombolo_transport::vsock::{VsockConfig, VsockEndpoint, VsockTransport};
use tombolo_transport::{Addr, Cid, Port};

use super::record::Record;
use super::settings::Wake;

/// Callers that may wait to be taken; whoever dials last has the line.
const BACKLOG: u32 = 4;
/// Ports below this are of privileged programs alone, and a kernel vouches for that.
const PRIVILEGED: u32 = 1024;

/// The kernel's end of the doorbell.
#[derive(Debug, Default)]
pub(super) struct Line {
    listener: Option<Listener>,
    socket: Option<OwnedFd>,
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    /// Of this kernel's vsock, for callers from this kernel beside it.
    Vsock(OwnedFd, Cid),
}

/// This kernel's vsock to those beside it.
pub(crate) fn vsock() -> tombolo_transport::Result<VsockEndpoint> {
    // What the parent of all kernels is called there.
    let local_cid = Some(Cid(0));
    VsockEndpoint::new(VsockConfig {
        transport: VsockTransport::Multikernel,
        local_cid,
        ..VsockConfig::default()
    })
}

/// Whether a kernel beside this one could call this one over it.
///
/// # Errors
/// Why not, in words.
pub(crate) fn can_be_called() -> Result<(), String> {
    // Any port: the daemon has its own.
    let bound = vsock().and_then(|vsock| vsock.bind(Port::ANY, 1));
    bound.map(drop).map_err(|error| crate::daemon::chain(&error))
}

/// Where the kernel of that number dials: a port for each, as a process stands for each.
pub(super) fn vsock_port(first: u32, record: &Record) -> Port {
    Port(first.saturating_add(u32::from(record.id.0)))
}

impl Line {
    /// Waits for callers, as the settings say.
    pub(super) fn open(record: &Record) -> io::Result<Self> {
        let listener = match record.settings.wake() {
            None => return Ok(Self::default()),
            Some(Wake::Line { socket, .. }) => {
                let path = socket.replace("{id}", &record.id.to_string());
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let listener = UnixListener::bind(&path)?;
                listener.set_nonblocking(true)?;
                Listener::Unix(listener)
            }
            Some(Wake::Vsock { port }) => {
                let socket = vsock().and_then(|vsock| vsock.bind(vsock_port(*port, record), BACKLOG));
                Listener::Vsock(socket.map_err(io::Error::other)?, Cid(u32::from(record.id.0)))
            }
        };
        Ok(Self { listener: Some(listener), socket: None })
    }

    /// What to wait for.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = self.listener.as_ref().map(|listener| match listener {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Vsock(listener, _) => listener.as_fd(),
        });
        listener.into_iter().chain(self.socket.as_ref().map(OwnedFd::as_fd))
    }

    /// Whoever dials last has the line: an earlier one is gone, or will be.
    pub(super) fn accept(&mut self) {
        while let Some(socket) = self.listener.as_ref().and_then(Listener::accept) {
            self.socket = Some(socket);
        }
    }

    /// A bell that finds no room is one of many that wait there already.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if let Some(socket) = &self.socket {
            let _ = rustix::io::write(socket, bytes);
        }
    }

    /// Bytes that are there; `None` if none are, now or any more.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match rustix::io::read(self.socket.as_ref()?, buffer) {
            Ok(n) if n > 0 => Some(n),
            Err(Errno::AGAIN | Errno::INTR) => None,
            _ => {
                self.socket = None;
                None
            }
        }
    }
}

impl Listener {
    /// The next caller that may have the line.
    fn accept(&self) -> Option<OwnedFd> {
        match self {
            Self::Unix(listener) => {
                let (socket, _) = listener.accept().ok()?;
                socket.set_nonblocking(true).ok()?;
                Some(socket.into())
            }
            Self::Vsock(listener, cid) => loop {
                let socket = accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC).ok()?;
                let peer = getpeername::<VsockAddr>(socket.as_raw_fd()).ok();
                if peer.is_some_and(|peer| is_of_kernel(*cid, Addr::new(Cid(peer.cid()), Port(peer.port()))))
                {
                    return Some(socket);
                }
            },
        }
    }
}

/// Whether a caller is of that kernel, and no unprivileged program of it.
fn is_of_kernel(kernel: Cid, caller: Addr) -> bool {
    caller.cid == kernel && caller.port.0 < PRIVILEGED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_of_the_privileged_programs_of_its_kernel_alone() {
        let is_taken = |cid, port| is_of_kernel(Cid(4), Addr::new(Cid(cid), Port(port)));
        assert!(is_taken(4, 1022) && is_taken(4, 512));
        assert!(!is_taken(4, 1024) && !is_taken(5, 1022) && !is_taken(0, 1022));
    }
}
