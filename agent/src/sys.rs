//! The agent's only `unsafe`: descriptors that the compiler cannot vouch for, and a system call that nobody wraps.
#![allow(
    unsafe_code,
    reason = "an inherited descriptor is a number; watching one relies on what OwnedFd promises; sched_setscheduler is C"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Whether the inherited descriptor was taken already.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over the descriptor `fd` that this process inherited. Can be done once in the life of the process; call it
/// before anything else is opened.
///
/// # Errors
/// If there is no such descriptor, or this was called before.
pub fn inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::other("the inherited descriptor was taken already"));
    }
    if fd < 3 || !std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("descriptor {fd} was not inherited")));
    }
    // SAFETY:
    // - it is open: it was found in /proc just now.
    // - nobody else owns it: the parent opened it for us, and `TAKEN` makes this the only call; the program calls this
    //   before it opens anything that could have been given the same number.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Keeps the descriptors that this process inherited, beyond stdin, stdout and stderr, from the programs it starts: a lock
/// or a pipe that whoever started the agent left open would live as long as the longest job. Call it before anything else
/// is opened.
pub fn keep_inherited_fds() {
    // Without /proc this is the first process of a kernel, which inherits nothing.
    let fds = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for fd in fds.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()) {
        if fd > 2 {
            // SAFETY: it was open just now, and nothing else runs yet that could close it; the directory's own
            // descriptor, which is among them, is open until the loop ends.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
        }
    }
}

/// Lets the runtime watch a descriptor, which is made non-blocking.
///
/// # Errors
/// If it cannot be watched (a regular file, say).
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: `OwnedFd` gives the same number as long as it lives, and closes it only when dropped.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| error.into_parts().1)
}

/// Gives the calling thread precedence over everything that is not itself real-time (`SCHED_FIFO` with the highest priority,
/// sched(7)). It must hardly ever run.
///
/// # Errors
/// If that is not permitted.
pub fn take_precedence() -> io::Result<()> {
    let param = nix::libc::sched_param { sched_priority: 99 };
    // SAFETY: `param` outlives the call, which only reads it. 0 is the calling thread.
    let done = unsafe { nix::libc::sched_setscheduler(0, nix::libc::SCHED_FIFO, &raw const param) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_inherited_is_refused() {
        let error = inherited_fd(1_000_000).unwrap_err();
        assert!(error.to_string().contains("1000000"), "{error}");
        assert!(inherited_fd(1_000_000).unwrap_err().to_string().contains("already"));
    }
}
