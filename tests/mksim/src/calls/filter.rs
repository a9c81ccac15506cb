//! The filter: a few comparisons of numbers.

use std::io;
use std::os::fd::OwnedFd;

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF, sock_filter};

use super::sys;

/// `DMA_HEAP_IOCTL_ALLOC`: `_IOWR('H', 0, struct dma_heap_allocation_data)`, which has 24 bytes.
pub(super) const DMA_HEAP_IOCTL_ALLOC: u32 = 0xc018_4800;

/// linux/audit.h.
const ARCH_X86_64: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT`.
const X32: u32 = 0x4000_0000;
/// `reboot` and `kexec_load` of 32-bit programs.
const I386_REBOOT: u32 = 88;
const I386_KEXEC_LOAD: u32 = 283;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARG1_LOW: u32 = 24;

const REFUSE: u32 = SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// What writes to a socket.
pub(super) const WRITES: [libc::c_long; 4] =
    [libc::SYS_write, libc::SYS_writev, libc::SYS_sendto, libc::SYS_sendmsg];

/// Installs the filter on this thread and gives the listener. `sees_writes`: whether that hears of each write, too.
pub(crate) fn install(sees_writes: bool) -> io::Result<OwnedFd> {
    sys::install(&program(if sees_writes { &WRITES } else { &[] }))
}

fn program(writes: &[libc::c_long]) -> Vec<sock_filter> {
    let number = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    let mut program = vec![load(ARCH)];
    // Another architecture: two numbers to refuse, and the rest passes.
    program.extend([
        equal(ARCH_X86_64, 5, 0),
        load(NR),
        equal(I386_REBOOT, 2, 0),
        equal(I386_KEXEC_LOAD, 1, 0),
        give(SECCOMP_RET_ALLOW),
        give(REFUSE),
        load(NR),
    ]);
    for call in [libc::SYS_reboot, libc::SYS_kexec_file_load] {
        program.extend([equal(number(call), 0, 1), give(SECCOMP_RET_USER_NOTIF)]);
        program.extend([equal(number(call) | X32, 0, 1), give(REFUSE)]);
    }
    // kexec_load, also under its number for x32.
    for call in [number(libc::SYS_kexec_load), X32 | 528] {
        program.extend([equal(call, 0, 1), give(REFUSE)]);
    }
    for call in writes {
        program.extend([equal(number(*call), 0, 1), give(SECCOMP_RET_USER_NOTIF)]);
    }
    program.extend([
        equal(number(libc::SYS_ioctl), 0, 3),
        load(ARG1_LOW),
        equal(DMA_HEAP_IOCTL_ALLOC, 0, 1),
        give(SECCOMP_RET_USER_NOTIF),
        give(SECCOMP_RET_ALLOW),
    ]);
    program
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), jt: 0, jf: 0, k: offset }
}

fn equal(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), jt, jf, k }
}

fn give(action: u32) -> sock_filter {
    sock_filter { code: code(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: action }
}

fn code(code: u32) -> u16 {
    u16::try_from(code).unwrap_or(0)
}
