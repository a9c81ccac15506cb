//! The first serial line of a kernel, connected to whoever listens at `DIR/link.<id>`.
//!
//! While nobody does, it is dialled every 50 ms, and what the kernel sends waits in its socket. A connection that is lost is
//! dialled anew; bytes that were on their way then are lost with it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const RETRY: Duration = Duration::from_millis(50);

/// Serves `line`, the other end of the kernel's, until the kernel is gone.
pub(super) fn spawn(dir: &Path, id: u32, line: UnixStream) -> io::Result<()> {
    let dir = dir.to_owned();
    std::thread::Builder::new().name(format!("link-{id}")).spawn(move || serve(&dir, id, &line))?;
    Ok(())
}

fn serve(dir: &Path, id: u32, line: &UnixStream) {
    loop {
        match dial(dir, id) {
            Ok(peer) => {
                if carry(line, &peer).is_ok() {
                    return;
                }
            }
            Err(_) if is_over(line) => return,
            Err(_) => {}
        }
        std::thread::sleep(RETRY);
    }
}

fn dial(dir: &Path, id: u32) -> io::Result<UnixStream> {
    // Socket addresses have little room: the folder is named by a descriptor.
    let dir = File::open(dir)?;
    UnixStream::connect(PathBuf::from(format!("/proc/self/fd/{}/link.{id}", dir.as_raw_fd())))
}

/// Carries bytes both ways. `Ok` when the kernel is gone, an error when the peer is.
fn carry(line: &UnixStream, peer: &UnixStream) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let mut ends = [PollFd::new(line, PollFlags::IN), PollFd::new(peer, PollFlags::IN)];
        poll(&mut ends, None)?;
        let [of_line, of_peer] = [ends[0].revents(), ends[1].revents()];
        if !of_line.is_empty() {
            match (&*line).read(&mut buffer) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(count) => (&*peer).write_all(&buffer[..count])?,
            }
        }
        if !of_peer.is_empty() {
            match (&*peer).read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
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
