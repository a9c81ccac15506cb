//! The paced link to the primary, for a kernel that shares no memory with it: what its socket is made of.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::OFlags;
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tombolo_transport::paced::{Dial, PacedEndpoint, VsockDial};
use tombolo_transport::vsock::{VsockConfig, VsockEndpoint, VsockTransport};
use tombolo_transport::{Addr, Cid};

use crate::config::{AgentConfig, PacedLine};
use crate::sys::watched;

/// The parent of a kernel on Multikernel Linux's vsock, whatever its address is called elsewhere.
pub(crate) const PARENT: Cid = Cid(0);

/// This kernel's end of its paced link to the primary. Must be called on a Tokio runtime.
///
/// # Errors
/// [`tombolo_transport::Error`] when the kernel has no such transport.
pub(crate) fn of_primary(config: &AgentConfig, line: &PacedLine) -> tombolo_transport::Result<PacedEndpoint> {
    match line {
        PacedLine::Vsock(port) => {
            let paced = PacedEndpoint::new(config.cid, PacedLine::pace())?;
            let transport = VsockTransport::Multikernel;
            let vsock = VsockEndpoint::new(VsockConfig {
                transport,
                local_cid: Some(config.cid),
                ..VsockConfig::default()
            })?;
            paced.dial(config.primary_cid, VsockDial::new(vsock, Addr::new(PARENT, *port)))?;
            Ok(paced)
        }
        PacedLine::Path(path) => {
            let paced = PacedEndpoint::new(config.cid, PacedLine::pace_of_terminal())?;
            paced.dial(config.primary_cid, TerminalDial::new(path.clone()))?;
            Ok(paced)
        }
    }
}

/// Opens a terminal line so that bytes pass unchanged, without blocking.
pub(crate) fn open_terminal(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
    let line = File::options().read(true).write(true).custom_flags(flags.bits() as i32).open(path)?;
    let mut settings = tcgetattr(&line)?;
    settings.make_raw();
    tcsetattr(&line, OptionalActions::Now, &settings)?;
    Ok(line.into())
}

/// Opens a terminal line whenever the link wants a socket.
#[derive(Debug)]
struct TerminalDial {
    path: PathBuf,
    /// Keeps the line open between two sessions: what arrives at a line that nobody has open may hold it up for good.
    first: Option<OwnedFd>,
}

impl TerminalDial {
    fn new(path: PathBuf) -> Self {
        Self { path, first: None }
    }
}

impl Dial for TerminalDial {
    type Socket = Terminal;

    async fn dial(&mut self) -> io::Result<Terminal> {
        if self.first.is_none() {
            self.first = Some(open_terminal(&self.path)?);
        }
        let line = open_terminal(&self.path)?;
        // Nobody sees the end of such a line: what is left of the session before is none of this one's.
        tcflush(&line, QueueSelector::IOFlush)?;
        Ok(Terminal(watched(line, Interest::READABLE | Interest::WRITABLE)?))
    }
}

/// A terminal line as a byte stream.
#[derive(Debug)]
struct Terminal(AsyncFd<OwnedFd>);

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut *space)?)) {
                Ok(Ok(read)) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A line of this kernel: the far end, and the path of the near one.
    fn line() -> (File, PathBuf) {
        let far =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&far).unwrap();
        rustix::pty::unlockpt(&far).unwrap();
        let path = rustix::pty::ptsname(&far, Vec::new()).unwrap();
        (File::from(far), PathBuf::from(path.to_str().unwrap()))
    }

    #[tokio::test]
    async fn bytes_pass_a_line_unchanged_and_what_came_before_it_was_dialled_does_not() {
        let (mut far, path) = line();
        let earlier = open_terminal(&path).unwrap();
        far.write_all(b"of the session before").unwrap();
        let mut near = TerminalDial::new(path).dial().await.unwrap();
        drop(earlier);
        let all: Vec<u8> = (0..=255).collect();
        near.write_all(&all).await.unwrap();
        let mut read = [0; 256];
        far.read_exact(&mut read).unwrap();
        assert_eq!(read[..], all);
        far.write_all(&all).unwrap();
        near.read_exact(&mut read).await.unwrap();
        assert_eq!(read[..], all);
    }
}
