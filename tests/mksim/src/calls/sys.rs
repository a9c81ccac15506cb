//! What seccomp needs of the kernel and no library has: the only unsafe code of the crate.
#![allow(unsafe_code, reason = "system calls that no library wraps")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use libc::{c_int, c_uint, seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, sock_filter, sock_fprog};

/// Installs a filter on this thread, and gives its listener. Waits of the filtered end by fatal signals only, once their
/// notification was received: otherwise a signal would make the call again.
pub(super) fn install(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `program` points to `len` instructions that live until the call returns, which copies them.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            c_uint::from(libc::SECCOMP_SET_MODE_FILTER as u16),
            c_uint::try_from(flags).unwrap_or(0),
            &raw const program,
        )
    };
    let listener = c_int::try_from(listener).map_err(io::Error::other)?;
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// The next call. An error of ENOENT means that whoever made it is gone.
pub(super) fn receive(listener: BorrowedFd<'_>) -> io::Result<seccomp_notif> {
    // SAFETY: integers only; the kernel insists on zeroes.
    let mut call: seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the request takes a pointer to such a structure, and writes no more than it.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    check(result).map(|_| call)
}

/// Whether a call still waits, and so whether what was read of its process was of that process.
pub(super) fn is_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the request takes a pointer to a u64, and reads it.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
    result == 0
}

/// Answers a call: with a value, with a negative errno, or by letting it through.
pub(super) fn answer(listener: BorrowedFd<'_>, mut answer: seccomp_notif_resp) -> io::Result<()> {
    // SAFETY: the request takes a pointer to such a structure, and reads it.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    check(result).map(|_| ())
}

/// Puts a descriptor into the process that waits, and gives its number there.
pub(super) fn add_fd(listener: BorrowedFd<'_>, add: seccomp_notif_addfd) -> io::Result<c_int> {
    // SAFETY: the request takes a pointer to such a structure, and reads it.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const add) };
    check(result)
}

/// Whether nobody else has a file open or mapped, of those who opened it by name: nobody else could have a lease on it.
pub(super) fn is_unused(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the command takes an int.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0 }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
