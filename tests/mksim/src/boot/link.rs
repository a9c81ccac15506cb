//! The first serial line of a kernel, connected to whoever listens at `DIR/link.<id>`.
//!
//! While nobody does, it is dialled every 50 ms, and what the kernel sends waits in its socket. A connection that is lost is
//! dialled anew; bytes that were on their way then are lost with it. It can be broken, lose bytes without a word, and have no room, as vsock does.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const RETRY: Duration = Duration::from_millis(50);
/// Of so many pieces that a lossy line carries one is lost.
const LOSES_ONE_OF: u32 = 50;

/// A line, while its kernel runs. Clones are the same line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    peer: Mutex<Option<UnixStream>>,
    is_lossy: AtomicBool,
    is_full: AtomicBool,
    /// Writes that found no room.
    refused: AtomicU64,
}

impl Link {
    /// Serves `line`, the other end of the kernel's, until the kernel is gone.
    pub(super) fn spawn(dir: &Path, id: u32, line: UnixStream) -> io::Result<Self> {
        let (dir, link) = (dir.to_owned(), Self::default());
        let serving = link.clone();
        std::thread::Builder::new()
            .name(format!("link-{id}"))
            .spawn(move || serving.serve(&dir, id, &line))?;
        Ok(link)
    }

    /// Ends the connection, if there is one, with whatever is on its way. It is dialled anew.
    pub(super) fn cut(&self) {
        if let Some(peer) = &*self.0.peer.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = peer.shutdown(Shutdown::Both);
        }
    }

    /// From now on, whether bytes vanish now and then.
    pub(super) fn set_lossy(&self, is_lossy: bool) {
        self.0.is_lossy.store(is_lossy, Ordering::Relaxed);
    }

    /// From now on, whether nothing is carried.
    pub(super) fn set_full(&self, is_full: bool) {
        self.0.is_full.store(is_full, Ordering::Relaxed);
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.is_full.load(Ordering::Relaxed)
    }

    /// Whether both are the same line.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether `socket` is the other end of its connection, or one of before, and there is no room: the write is counted.
    pub(super) fn refuse(&self, socket: &UnixStream) -> bool {
        let peer = self.0.peer.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who were dialled have the name that they listened at.
        let dialled = peer.as_ref().and_then(|peer| peer.peer_addr().ok());
        let dialled = dialled.as_ref().and_then(SocketAddr::as_pathname);
        let is_its =
            dialled.is_some() && socket.local_addr().is_ok_and(|address| address.as_pathname() == dialled);
        let refuses = is_its && self.is_full();
        if refuses {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        refuses
    }

    /// How many writes have found no room.
    pub(crate) fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn serve(&self, dir: &Path, id: u32, line: &UnixStream) {
        let mut losses = Losses { link: self, carried: 0 };
        loop {
            match dial(dir, id) {
                Ok(peer) => {
                    *self.0.peer.lock().unwrap_or_else(PoisonError::into_inner) = peer.try_clone().ok();
                    if carry(line, &peer, &mut losses).is_ok() {
                        break;
                    }
                }
                Err(_) if is_over(line) => break,
                Err(_) => {}
            }
            std::thread::sleep(RETRY);
        }
        // The next kernel has a ring of its own.
        self.set_full(false);
    }
}

/// What a lossy line loses.
struct Losses<'a> {
    link: &'a Link,
    carried: u32,
}

impl Losses<'_> {
    /// Whether the next piece is lost.
    fn next(&mut self) -> bool {
        self.carried = self.carried.wrapping_add(1);
        self.link.0.is_lossy.load(Ordering::Relaxed) && self.carried.is_multiple_of(LOSES_ONE_OF)
    }
}

fn dial(dir: &Path, id: u32) -> io::Result<UnixStream> {
    // Socket addresses have little room: the folder is named by a descriptor.
    let dir = File::open(dir)?;
    UnixStream::connect(PathBuf::from(format!("/proc/self/fd/{}/link.{id}", dir.as_raw_fd())))
}

/// Carries bytes both ways. `Ok` when the kernel is gone, an error when the peer is.
fn carry(line: &UnixStream, peer: &UnixStream, losses: &mut Losses<'_>) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let mut ends = [PollFd::new(line, PollFlags::IN), PollFd::new(peer, PollFlags::IN)];
        poll(&mut ends, None)?;
        let [of_line, of_peer] = [ends[0].revents(), ends[1].revents()];
        if losses.link.is_full() {
            if is_over(line) {
                return Ok(());
            }
            std::thread::sleep(RETRY);
            continue;
        }
        if !of_line.is_empty() {
            match (&*line).read(&mut buffer) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) if losses.next() => {}
                Ok(count) => (&*peer).write_all(&buffer[..count])?,
            }
        }
        if !of_peer.is_empty() {
            match (&*peer).read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if losses.next() => {}
                count => {
                    if (&*line).write_all(&buffer[..count]).is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Whether the kernel's end is closed.
fn is_over(line: &UnixStream) -> bool {
    let mut ends = [PollFd::new(line, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ends, Some(&now)).is_ok_and(|ready| ready > 0 && ends[0].revents().contains(PollFlags::HUP))
}
