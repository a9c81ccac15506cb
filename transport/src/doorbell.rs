//! Doorbells: what makes a sleeping process look at its rings. They carry no data; a lost one only costs time.
//!
//! | from | to | what |
//! |---|---|---|
//! | process | its broker | a byte into the broker's bell pipe: which member to ring |
//! | process of a spawned kernel, privileged | primary | the same byte, onto the line itself where that is a terminal line |
//! | broker | a process of its kernel | the process's eventfd |
//! | spawned kernel | primary | a byte on the line: which member to ring |
//! | primary | spawned kernel | a byte on the line: which member rings |
//!
//! A byte that names member `m` is `0x80 | m`, so that no line discipline takes it for a control character; any other
//! byte is noise and ignored.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::pool::{Geometry, Member};

/// Bytes taken off a line at once.
const READ_BYTES: usize = 256;

/// The byte for a member.
pub(crate) fn byte_of(member: Member) -> u8 {
    0x80 | member.0
}

/// The members that these bytes name, each once.
pub(crate) fn members_in(bytes: &[u8]) -> Vec<Member> {
    let mut set = 0u64;
    for byte in bytes.iter().filter(|byte| **byte & 0x80 != 0) {
        let member = byte & 0x7f;
        if u32::from(member) < Geometry::MEMBERS_MAX {
            set |= 1 << member;
        }
    }
    members_of(set)
}

fn members_of(set: u64) -> Vec<Member> {
    (0..64).filter(|bit| set >> bit & 1 == 1).map(Member).collect()
}

/// A doorbell line between a spawned kernel and the primary, on any descriptor that epoll takes: a socket, a serial line.
#[derive(Debug)]
pub(crate) struct Line {
    fd: AsyncFd<OwnedFd>,
    /// Bit m: the bell for member m found the line full and is to be rung later.
    unsent: AtomicU64,
}

impl Line {
    /// Must be called within a Tokio runtime.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self> {
        set_nonblocking(&fd).map_err(|e| Error::io("making a doorbell line non-blocking", e))?;
        make_raw(&fd).map_err(|e| Error::io("switching a doorbell line to raw mode", e))?;
        let fd = watch(fd).map_err(|e| Error::io("watching a doorbell line", e))?;
        Ok(Self { fd, unsent: AtomicU64::new(0) })
    }

    /// Rings, or remembers to.
    pub(crate) fn ring(&self, member: Member) {
        if rustix::io::write(self.fd.get_ref(), &[byte_of(member)]) == Err(Errno::AGAIN) {
            self.unsent.fetch_or(1 << member.0, Ordering::Relaxed);
        }
    }

    /// Rings what found the line full before.
    pub(crate) fn retry(&self) {
        if self.unsent.load(Ordering::Relaxed) != 0 {
            members_of(self.unsent.swap(0, Ordering::Relaxed))
                .into_iter()
                .for_each(|member| self.ring(member));
        }
    }

    /// A descriptor through which a process can ring and cannot take bells away; only a terminal line can be opened that way. It
    /// can still change the terminal's settings.
    pub(crate) fn write_end(&self) -> Option<OwnedFd> {
        let fd = self.fd.get_ref();
        if !rustix::termios::isatty(fd) {
            return None;
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).ok()
    }

    /// Waits for bells. An error, or the end, is final.
    pub(crate) async fn bells(&self) -> io::Result<Vec<Member>> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut bytes = [0; READ_BYTES];
            match rustix::io::read(self.fd.get_ref(), &mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => return Ok(members_in(&bytes[..n])),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The lines of a broker, by the member at their other end. Those who read a line pass bells on to others without asking the
/// broker. Clones share the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(Arc<RwLock<HashMap<Member, Arc<Line>>>>);

impl Lines {
    pub(crate) fn insert(&self, member: Member, line: Arc<Line>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(member, line);
    }

    pub(crate) fn remove(&self, member: Member) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&member);
    }

    pub(crate) fn get(&self, member: Member) -> Option<Arc<Line>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&member).cloned()
    }

    pub(crate) fn has(&self, member: Member) -> bool {
        self.has_all([member])
    }

    pub(crate) fn has_all(&self, members: impl IntoIterator<Item = Member>) -> bool {
        let lines = self.0.read().unwrap_or_else(PoisonError::into_inner);
        members.into_iter().all(|member| lines.contains_key(&member))
    }

    /// Whether some bell found its line full and was not rung since.
    pub(crate) fn has_unsent(&self) -> bool {
        let lines = self.0.read().unwrap_or_else(PoisonError::into_inner);
        lines.values().any(|line| line.unsent.load(Ordering::Relaxed) != 0)
    }

    /// Rings what found its line full before.
    pub(crate) fn retry(&self) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().for_each(|line| line.retry());
    }
}

/// The reading end of a broker's bell pipe.
#[derive(Debug)]
pub(crate) struct BellPipe {
    read: AsyncFd<OwnedFd>,
    write: OwnedFd,
}

impl BellPipe {
    pub(crate) fn new() -> Result<Self> {
        use rustix::pipe::PipeFlags;
        let attempt = "making the bell pipe";
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|e| Error::io(attempt, e.into()))?;
        let read = watch(read).map_err(|e| Error::io(attempt, e))?;
        Ok(Self { read, write })
    }

    /// What processes ring through.
    pub(crate) fn write_end(&self) -> &OwnedFd {
        &self.write
    }

    /// Waits for bells.
    ///
    /// # Cancel safety
    /// Dropping the future loses no bell.
    pub(crate) async fn bells(&self) -> Vec<Member> {
        loop {
            let Ok(mut guard) = self.read.readable().await else { return std::future::pending().await };
            let mut bytes = [0; 4096];
            match rustix::io::read(self.read.get_ref(), &mut bytes) {
                Ok(n) => return members_in(&bytes[..n]),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(_) => {}
            }
        }
    }
}

/// A process's own bell: an eventfd.
pub(crate) fn new_eventfd() -> Result<OwnedFd> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|e| Error::io("making an eventfd", e.into()))
}

/// Rings it. It cannot be full in any way that matters.
pub(crate) fn ring_eventfd(fd: impl AsFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// Has the runtime watch a descriptor.
#[expect(
    deprecated,
    reason = "`new` is unsound only for types that lie about their descriptor; `OwnedFd` does not"
)]
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// A terminal would echo, translate and interpret bytes. Other descriptors are left alone.
fn make_raw(fd: &OwnedFd) -> io::Result<()> {
    if !rustix::termios::isatty(fd) {
        return Ok(());
    }
    let mut termios = rustix::termios::tcgetattr(fd)?;
    termios.make_raw();
    Ok(rustix::termios::tcsetattr(fd, rustix::termios::OptionalActions::Now, &termios)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_on_a_line_names_nobody() {
        assert_eq!(members_in(b"login: \r\n\x03"), []);
        assert_eq!(members_in(&[0xff, 0xc0]), [], "members beyond the most there can be");
        assert_eq!(members_in(&[0x82, 0x80, 0x82, 0xbf]), [Member(0), Member(2), Member(63)]);
        assert_eq!(members_in(&[byte_of(Member(63))]), [Member(63)]);
    }

    #[tokio::test]
    async fn a_full_line_is_rung_later() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let (near, far) = (Line::new(near.into()).unwrap(), Line::new(far.into()).unwrap());
        while near.unsent.load(Ordering::Relaxed) == 0 {
            near.ring(Member(1));
        }
        near.ring(Member(2));
        assert_eq!(near.unsent.load(Ordering::Relaxed), 0b110);
        while near.unsent.load(Ordering::Relaxed) != 0 {
            far.bells().await.unwrap();
            near.retry();
        }
        loop {
            if far.bells().await.unwrap().contains(&Member(2)) {
                break;
            }
        }
    }

    #[tokio::test]
    async fn the_end_of_a_line_is_an_error() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let near = Line::new(near.into()).unwrap();
        drop(far);
        assert!(near.bells().await.is_err());
    }
}
