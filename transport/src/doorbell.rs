//! Doorbells: what makes a sleeping process look at its rings. They carry no data; a lost one only costs time.
//!
//! | from | to | what |
//! |---|---|---|
//! | process | its broker | into the broker's bell pipe: which member to ring |
//! | process of a spawned kernel, privileged | primary | the same, onto the line itself where that is a terminal line |
//! | broker | a process of its kernel | the process's eventfd |
//! | spawned kernel | primary | on the line: which member to ring |
//! | primary | spawned kernel | on the line: which member rings |
//!
//! Members are named by bytes from 0x80 on, which no line discipline takes for control characters; any other byte is noise and
//! ignored. One below 64 is named by one byte, `0x80 | m`; another by two, `0xc0 | m / 32` and `0xe0 | m % 32`. Of the three kinds of bytes each
//! is known by itself, so a byte that was lost, or one that came in between, makes nobody misread the next.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::bells::MemberSet;
use crate::error::{Error, Result};
use crate::pool::{Geometry, Member};

/// Bytes taken off a line at once.
const READ_BYTES: usize = 256;

/// The first byte of the kinds: a member by itself, the upper bits of one, the lower bits.
const SHORT: u8 = 0x80;
const UPPER: u8 = 0xc0;
const LOWER: u8 = 0xe0;
/// Members below are named by one byte.
const SHORT_MEMBERS: u16 = (UPPER - SHORT) as u16;
/// Bits of a member in a lower byte, and in an upper one.
const PART_BITS: u32 = 5;
const PART_MASK: u8 = (1 << PART_BITS) - 1;
const _: () = assert!(Geometry::MEMBERS_MAX <= 1 << (2 * PART_BITS));

/// What names a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bell([u8; 2]);

impl Bell {
    /// For one that a pool can have.
    pub(crate) fn of(member: Member) -> Self {
        if member.0 < SHORT_MEMBERS {
            return Self([SHORT | member.0 as u8, 0]);
        }
        Self([UPPER | (member.0 >> PART_BITS) as u8, LOWER | member.0 as u8 & PART_MASK])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.0[0] < UPPER { &self.0[..1] } else { &self.0 }
    }

    /// Writes it as a whole; of one that went out in part nobody hears.
    pub(crate) fn ring(self, fd: impl AsFd) -> Result<(), Errno> {
        let written = rustix::io::write(fd, self.bytes())?;
        if written == self.bytes().len() { Ok(()) } else { Err(Errno::AGAIN) }
    }
}

/// Reads bells off a stream of bytes, which come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
    /// The upper bits of a member whose lower ones are to come.
    upper: Option<u8>,
}

impl Hearing {
    /// The members that these bytes name, each once.
    pub(crate) fn members_in(&mut self, bytes: &[u8]) -> Vec<Member> {
        let set: MemberSet = MemberSet::new();
        for byte in bytes.iter().copied() {
            let upper = self.upper.take();
            match byte {
                ..SHORT => self.upper = upper,
                SHORT..UPPER => set.insert(Member(u16::from(byte - SHORT))),
                UPPER..LOWER => self.upper = Some(byte - UPPER),
                LOWER.. => {
                    let Some(upper) = upper else { continue };
                    let member = u16::from(upper) << PART_BITS | u16::from(byte - LOWER);
                    if member >= SHORT_MEMBERS {
                        set.insert(Member(member));
                    }
                }
            }
        }
        set.take()
    }
}

/// A doorbell line between a spawned kernel and the primary, on any descriptor that epoll takes: a socket, a serial line.
#[derive(Debug)]
pub(crate) struct Line {
    fd: AsyncFd<OwnedFd>,
    /// Members whose bell found the line full and is to be rung later.
    unsent: MemberSet,
}

impl Line {
    /// Must be called within a Tokio runtime.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self> {
        set_nonblocking(&fd).map_err(|e| Error::io("making a doorbell line non-blocking", e))?;
        make_raw(&fd).map_err(|e| Error::io("switching a doorbell line to raw mode", e))?;
        let fd = watch(fd).map_err(|e| Error::io("watching a doorbell line", e))?;
        Ok(Self { fd, unsent: MemberSet::new() })
    }

    /// Rings, or remembers to.
    pub(crate) fn ring(&self, member: Member) {
        if Bell::of(member).ring(self.fd.get_ref()) == Err(Errno::AGAIN) {
            self.unsent.insert(member);
        }
    }

    /// Rings what found the line full before.
    pub(crate) fn retry(&self) {
        self.unsent.take().into_iter().for_each(|member| self.ring(member));
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

    /// Waits for bells. An error, or the end, is final. Whoever listens keeps one `hearing` for the line.
    pub(crate) async fn bells(&self, hearing: &mut Hearing) -> io::Result<Vec<Member>> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut bytes = [0; READ_BYTES];
            match rustix::io::read(self.fd.get_ref(), &mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => return Ok(hearing.members_in(&bytes[..n])),
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
pub(crate) struct Lines(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    lines: RwLock<HashMap<Member, Arc<Line>>>,
    /// Some bell found its line full, and none was tried again since.
    has_unsent: AtomicBool,
}

impl Lines {
    pub(crate) fn insert(&self, member: Member, line: Arc<Line>) {
        self.0.lines.write().unwrap_or_else(PoisonError::into_inner).insert(member, line);
    }

    pub(crate) fn remove(&self, member: Member) {
        self.0.lines.write().unwrap_or_else(PoisonError::into_inner).remove(&member);
    }

    pub(crate) fn get(&self, member: Member) -> Option<Arc<Line>> {
        self.table().get(&member).cloned()
    }

    /// Rings for `member` on the line to `to`, if there is one, or remembers to.
    pub(crate) fn ring(&self, to: Member, member: Member) {
        if let Some(line) = self.table().get(&to) {
            line.ring(member);
            if !line.unsent.is_empty() {
                self.0.has_unsent.store(true, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn has(&self, member: Member) -> bool {
        self.has_all([member])
    }

    pub(crate) fn has_all(&self, members: impl IntoIterator<Item = Member>) -> bool {
        let lines = self.table();
        members.into_iter().all(|member| lines.contains_key(&member))
    }

    /// Whether some bell found its line full and was not rung since.
    pub(crate) fn has_unsent(&self) -> bool {
        self.0.has_unsent.load(Ordering::Relaxed)
    }

    /// Rings what found its line full before.
    pub(crate) fn retry(&self) {
        if !self.0.has_unsent.swap(false, Ordering::Relaxed) {
            return;
        }
        for line in self.table().values() {
            line.retry();
            if !line.unsent.is_empty() {
                self.0.has_unsent.store(true, Ordering::Relaxed);
            }
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, HashMap<Member, Arc<Line>>> {
        self.0.lines.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reading end of a broker's bell pipe.
#[derive(Debug)]
pub(crate) struct BellPipe {
    read: AsyncFd<OwnedFd>,
    write: OwnedFd,
    hearing: Hearing,
}

impl BellPipe {
    pub(crate) fn new() -> Result<Self> {
        use rustix::pipe::PipeFlags;
        let attempt = "making the bell pipe";
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|e| Error::io(attempt, e.into()))?;
        let read = watch(read).map_err(|e| Error::io(attempt, e))?;
        Ok(Self { read, write, hearing: Hearing::default() })
    }

    /// What processes ring through.
    pub(crate) fn write_end(&self) -> &OwnedFd {
        &self.write
    }

    /// Waits for bells.
    ///
    /// # Cancel safety
    /// Dropping the future loses no bell.
    pub(crate) async fn bells(&mut self) -> Vec<Member> {
        loop {
            let Ok(mut guard) = self.read.readable().await else { return std::future::pending().await };
            let mut bytes = [0; 4096];
            match rustix::io::read(self.read.get_ref(), &mut bytes) {
                Ok(n) => return self.hearing.members_in(&bytes[..n]),
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

    fn members_in(bytes: &[u8]) -> Vec<Member> {
        Hearing::default().members_in(bytes)
    }

    #[test]
    fn noise_on_a_line_names_nobody() {
        assert_eq!(members_in(b"login: \r\n\x03"), []);
        assert_eq!(members_in(&[0xff, 0xc0, 0xe0 - 1]), [], "halves of names");
        assert_eq!(members_in(&[0xc0, 0xe5]), [], "a long name of one that has a short one");
        assert_eq!(members_in(&[0x82, 0x80, 0x82, 0xbf]), [Member(0), Member(2), Member(63)]);
    }

    #[test]
    fn every_member_there_can_be_is_named_in_whatever_pieces() {
        let mut hearing = Hearing::default();
        for member in (0..Geometry::MEMBERS_MAX as u16).map(Member) {
            let bell = Bell::of(member);
            assert_eq!(members_in(bell.bytes()), vec![member]);
            let bytes = bell.bytes().iter().flat_map(|byte| hearing.members_in(&[*byte]));
            assert_eq!(bytes.collect::<Vec<_>>(), vec![member]);
        }
    }

    #[test]
    fn what_is_lost_or_comes_in_between_makes_nobody_misread_the_next() {
        let [upper, lower] = *Bell::of(Member(700)).bytes() else { panic!("not two bytes") };
        let short = Bell::of(Member(5)).0[0];
        assert_eq!(
            members_in(&[upper, short, lower]),
            vec![Member(5)],
            "of the other, in two pieces, nothing"
        );
        assert_eq!(members_in(&[lower, short, upper]), vec![Member(5)]);
        assert_eq!(members_in(&[upper, upper, lower]), vec![Member(700)]);
        assert_eq!(members_in(&[upper, b'\n', lower]), vec![Member(700)], "noise is as if it were not there");
    }

    #[tokio::test]
    async fn a_full_line_is_rung_later() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let (near, far) = (Line::new(near.into()).unwrap(), Line::new(far.into()).unwrap());
        let (lines, mut hearing) = (Lines::default(), Hearing::default());
        lines.insert(Member(9), Arc::new(near));
        while !lines.has_unsent() {
            lines.ring(Member(9), Member(1));
        }
        lines.ring(Member(9), Member(500));
        lines.ring(Member(8), Member(3));
        while lines.has_unsent() {
            far.bells(&mut hearing).await.unwrap();
            lines.retry();
        }
        loop {
            if far.bells(&mut hearing).await.unwrap().contains(&Member(500)) {
                break;
            }
        }
    }

    #[tokio::test]
    async fn the_end_of_a_line_is_an_error() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let near = Line::new(near.into()).unwrap();
        drop(far);
        assert!(near.bells(&mut Hearing::default()).await.is_err());
    }
}
