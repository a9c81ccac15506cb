//! The two system calls as a tool makes them: the only unsafe code of the tests.
#![allow(unsafe_code, reason = "system calls that no library wraps")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const MULTIKERNEL: u64 = 0x10;
const UNLOAD: u64 = 0x1;
pub(crate) const BOOT: u32 = 0x4d4b_4c49;
pub(crate) const HALT: u32 = 0x4d4b_4c48;
pub(crate) const FORCE_HALT: u32 = 0x4d4b_4c46;

pub(crate) fn load(id: u32, kernel: &File, initrd: &File, cmdline: &str) -> io::Result<()> {
    let cmdline = CString::new(cmdline)?;
    let len = cmdline.as_bytes_with_nul().len();
    // SAFETY: the command line is `len` bytes long and lives until the call returns.
    check(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            len,
            cmdline.as_ptr(),
            MULTIKERNEL | u64::from(id) << 5,
        )
    })
}

pub(crate) fn unload(id: u32) -> io::Result<()> {
    let flags = UNLOAD | MULTIKERNEL | u64::from(id) << 5;
    // SAFETY: without a command line there is no pointer.
    check(unsafe { libc::syscall(libc::SYS_kexec_file_load, -1, -1, 0, 0, flags) })
}

pub(crate) fn reboot(command: u32, id: i32) -> io::Result<()> {
    // SAFETY: the argument points to an int, which is all that is read.
    check(unsafe { libc::syscall(libc::SYS_reboot, 0xfee1_dead_u32, 672_274_793, command, &raw const id) })
}

/// Memory of the pool, from the DMA heap.
pub(crate) fn allocate(heap: &File, len: u64) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Allocation {
        len: u64,
        fd: u32,
        fd_flags: u32,
        heap_flags: u64,
    }
    let fd_flags = (libc::O_RDWR | libc::O_CLOEXEC) as u32;
    let mut allocation = Allocation { len, fd: 0, fd_flags, heap_flags: 0 };
    // SAFETY: the request reads and writes such a structure.
    check(i64::from(unsafe { libc::ioctl(heap.as_raw_fd(), 0xc018_4800, &raw mut allocation) }))?;
    let fd = i32::try_from(allocation.fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor was just made for this process, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
