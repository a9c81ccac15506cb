//! The two system calls that load and start kernels, and the request for memory to share with them. Numbers, commands and flags are those of
//! Multikernel's `include/uapi/linux/{kexec,reboot,dma-heap}.h`.
//!
//! On a kernel without that both refuse: `reboot(2)` because it knows no such command, `kexec_file_load(2)` because it knows no such flag.

#![allow(unsafe_code)] // two system calls and a request to a device that no wrapper knows; every block says why it is sound

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::ids::InstanceId;

const KEXEC_FILE_UNLOAD: libc::c_ulong = 0x1;
const KEXEC_FILE_NO_INITRAMFS: libc::c_ulong = 0x4;
const KEXEC_MULTIKERNEL: libc::c_ulong = 0x10;
const KEXEC_MULTIKERNEL_ID_SHIFT: u32 = 5;

const REBOOT_MAGIC1: libc::c_int = libc::LINUX_REBOOT_MAGIC1;
const REBOOT_MAGIC2: libc::c_int = libc::LINUX_REBOOT_MAGIC2;

/// What `reboot(2)` is to do with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Release its CPU into the image that is loaded. Returns before that has booted.
    Boot = 0x4d4b_4c49,
    /// Take all its CPUs from it, whatever it does. Nothing in it is asked or told.
    ForceHalt = 0x4d4b_4c46,
}

/// What the kernel reads: `struct multikernel_boot_args`.
#[repr(C)]
struct BootArgs {
    mk_id: libc::c_int,
}

/// Starts or ends an instance.
pub(super) fn reboot(command: Command, id: InstanceId) -> io::Result<()> {
    let args = BootArgs { mk_id: i32::from(id.0) };
    // SAFETY: reboot(2) with these two commands reads one `BootArgs` behind its last argument and nothing else; a kernel that does not know
    // them reads nothing. `args` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_reboot,
            REBOOT_MAGIC1,
            REBOOT_MAGIC2,
            command as libc::c_uint,
            std::ptr::from_ref(&args),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Loads a kernel into an instance that has none.
pub(super) fn load(
    id: InstanceId,
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    command_line: &str,
) -> io::Result<()> {
    let line = CString::new(command_line)?;
    let no_initrd = if initrd.is_none() { KEXEC_FILE_NO_INITRAMFS } else { 0 };
    kexec_file_load(
        kernel.as_raw_fd(),
        initrd.map_or(-1, |initrd| initrd.as_raw_fd()),
        Some(&line),
        flags(id) | no_initrd,
    )
}

/// Takes the image from an instance. The kernel does it to one that runs as well: whoever calls this has made sure that it does not.
pub(super) fn unload(id: InstanceId) -> io::Result<()> {
    kexec_file_load(-1, -1, None, flags(id) | KEXEC_FILE_UNLOAD)
}

fn flags(id: InstanceId) -> libc::c_ulong {
    KEXEC_MULTIKERNEL | (libc::c_ulong::from(id.0) << KEXEC_MULTIKERNEL_ID_SHIFT)
}

fn kexec_file_load(kernel: i32, initrd: i32, line: Option<&CString>, flags: libc::c_ulong) -> io::Result<()> {
    let (pointer, bytes) = match line {
        Some(line) => (line.as_ptr(), line.as_bytes_with_nul().len()),
        None => (std::ptr::null(), 0),
    };
    // SAFETY: kexec_file_load(2) reads `bytes` bytes behind `pointer`, which are those of a live `CString` with its terminating zero, or none.
    let result = unsafe { libc::syscall(libc::SYS_kexec_file_load, kernel, initrd, bytes, pointer, flags) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `DMA_HEAP_IOCTL_ALLOC`: `_IOWR('H', 0, struct dma_heap_allocation_data)`.
const DMA_HEAP_ALLOC: libc::c_ulong = 0xc018_4800;

/// `struct dma_heap_allocation_data`.
#[repr(C)]
struct Allocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

/// Takes a buffer from a DMA heap. Its memory is as whoever had it before left it, and is free again when nobody has it open or mapped.
pub(super) fn heap_allocate(heap: BorrowedFd<'_>, bytes: u64) -> io::Result<OwnedFd> {
    let fd_flags = (libc::O_RDWR | libc::O_CLOEXEC) as u32;
    let mut allocation = Allocation { len: bytes, fd: 0, fd_flags, heap_flags: 0 };
    // SAFETY: the request reads and writes one `Allocation` behind its argument and nothing else; a device that does not know it touches nothing
    // there. `allocation` outlives the call.
    let result = unsafe { libc::ioctl(heap.as_raw_fd(), DMA_HEAP_ALLOC as _, &raw mut allocation) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(allocation.fd).ok().filter(|fd| *fd > libc::STDERR_FILENO);
    let fd = fd.ok_or_else(|| io::Error::other(format!("it gave {} as a descriptor", allocation.fd)))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_that_is_no_heap_gives_nothing() {
        use std::os::fd::AsFd as _;
        assert_eq!(size_of::<Allocation>() as libc::c_ulong, DMA_HEAP_ALLOC >> 16 & 0x3fff);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(heap_allocate(null.as_fd(), 4096).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn the_number_of_an_instance_is_in_the_flags_where_the_kernel_looks_for_it() {
        let id = InstanceId::try_from(511).unwrap();
        assert_eq!(flags(id), 0x10 | 511 << 5);
        assert_eq!(flags(id) & 0xffe0, 511 << 5);
    }
}
