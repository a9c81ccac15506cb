//! The library that is preloaded into a User-mode Linux kernel: see `mod.rs` beside this file for what it is for.
//!
//! `build.rs` compiles it by itself. It has no standard library and allocates nothing: its one function is called on the small
//! stacks of the kernel.
#![no_std]
#![allow(unsafe_code)] // one libc function, replaced; every block says why it is sound

#[path = "widen.rs"]
mod widen;

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_long, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

const SYS_PTRACE: c_long = 101;
const PTRACE_PEEKTEXT: c_long = 1;
const PTRACE_PEEKUSER: c_long = 3;
const PTRACE_GETREGSET: c_long = 0x4204;
const PTRACE_SETREGSET: c_long = 0x4205;
const NT_X86_XSTATE: c_long = 0x202;
const EFAULT: c_long = 14;
/// The largest result that is an error number, negated: `MAX_ERRNO` of the kernel.
const ERRNO_MAX: c_long = 4095;

/// Room for the XSAVE area of any processor there is (11 008 bytes with AMX).
const AREA_BYTES: usize = 16 * 1024;

#[repr(C)]
struct IoVec {
    base: *mut c_void,
    len: usize,
}

#[repr(C, align(64))]
struct Area(UnsafeCell<[u8; AREA_BYTES]>);

// SAFETY: whoever uses the area holds `AREA_TAKEN`.
unsafe impl Sync for Area {}

static AREA: Area = Area(UnsafeCell::new([0; AREA_BYTES]));
static AREA_TAKEN: AtomicBool = AtomicBool::new(false);
/// How long a whole area is on this host; 0 until it was needed.
static WHOLE_BYTES: AtomicUsize = AtomicUsize::new(0);
/// What [`components_within`] has found for areas of [`KNOWN_FOR_BYTES`]: the kernel's are all of one length, and each look at the
/// processor's description leaves a virtual machine for a while.
static KNOWN_COMPONENTS: AtomicU64 = AtomicU64::new(0);
static KNOWN_FOR_BYTES: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// ptrace(2) as the C library has it, except that a register set too short for this host is made as long as it must be.
///
/// # Safety
/// As the C library's. Declared with all its arguments: on x86-64 those of a variadic function come in the same registers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(request: c_int, pid: c_long, addr: c_long, data: *mut c_void) -> c_long {
    let request = c_long::from(request);
    if (PTRACE_PEEKTEXT..=PTRACE_PEEKUSER).contains(&request) {
        // The system call stores the word; the library's function returns it.
        let mut word: c_long = 0;
        let result = sys_ptrace(request, pid, addr, (&raw mut word).cast());
        return finish(if result == 0 { Ok(word) } else { Err(result) });
    }
    let mut result = -EFAULT;
    if (request, addr) == (PTRACE_SETREGSET, NT_X86_XSTATE) {
        // SAFETY: for this request the caller passes an iovec that names memory of its own.
        let short = unsafe {
            let vector = &*data.cast::<IoVec>();
            core::slice::from_raw_parts(vector.base.cast::<u8>(), vector.len)
        };
        if WHOLE_BYTES.load(Ordering::Relaxed) == 0 {
            result = sys_ptrace(request, pid, addr, data);
        }
        if result == -EFAULT {
            result = set_whole(pid, short);
        }
    } else {
        result = sys_ptrace(request, pid, addr, data);
    }
    finish(if result >= 0 { Ok(result) } else { Err(result) })
}

/// Sets the extended registers of a process from an area that may be too short.
fn set_whole(pid: c_long, short: &[u8]) -> c_long {
    if AREA_TAKEN.swap(true, Ordering::Acquire) {
        return -EFAULT; // a kernel with one processor does this in one thread
    }
    let mut vector = IoVec { base: AREA.0.get().cast(), len: AREA_BYTES };
    let mut result = 0;
    if WHOLE_BYTES.load(Ordering::Relaxed) == 0 {
        result = sys_ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, (&raw mut vector).cast());
        if result >= 0 {
            WHOLE_BYTES.store(vector.len.min(AREA_BYTES), Ordering::Relaxed);
        }
    }
    if result >= 0 {
        vector.len = WHOLE_BYTES.load(Ordering::Relaxed);
        // SAFETY: we hold `AREA_TAKEN`; the length is at most `AREA_BYTES`.
        let full = unsafe { core::slice::from_raw_parts_mut(AREA.0.get().cast::<u8>(), vector.len) };
        result = match widen::widen(short, full, components_within(short.len())) {
            true => sys_ptrace(PTRACE_SETREGSET, pid, NT_X86_XSTATE, (&raw mut vector).cast()),
            false => -EFAULT,
        };
    }
    AREA_TAKEN.store(false, Ordering::Release);
    result
}

/// The state components that end within the first `len` bytes of an area, as bits: Intel SDM vol. 1, 13.5.
fn components_within(len: usize) -> u64 {
    if KNOWN_FOR_BYTES.load(Ordering::Acquire) == len {
        return KNOWN_COMPONENTS.load(Ordering::Relaxed);
    }
    // x87 and SSE are in the legacy part.
    let mut components = 0b11;
    for component in 2..63 {
        let leaf = __cpuid_count(0xd, component);
        let (size, offset) = (leaf.eax as usize, leaf.ebx as usize);
        if size != 0 && offset + size <= len {
            components |= 1 << component;
        }
    }
    // Only ever called by whoever holds `AREA_TAKEN`, so the two belong together.
    KNOWN_COMPONENTS.store(components, Ordering::Relaxed);
    KNOWN_FOR_BYTES.store(len, Ordering::Release);
    components
}

fn sys_ptrace(request: c_long, pid: c_long, addr: c_long, data: *mut c_void) -> c_long {
    let mut result = SYS_PTRACE;
    // SAFETY: the system call reads or writes what `data` names, as the caller of `ptrace` (or `set_whole`) means it to; it
    // clobbers rcx and r11 beside its result.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") request,
            in("rsi") pid,
            in("rdx") addr,
            in("r10") data,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

/// The C library's way to return an error: -1, and the number in `errno`; a peeked word may be -1 without one.
fn finish(result: Result<c_long, c_long>) -> c_long {
    let (value, errno) = match result {
        Ok(value) => (value, 0),
        Err(negated) if negated >= -ERRNO_MAX => (-1, -negated),
        Err(other) => (other, 0),
    };
    // SAFETY: it is always the address of this thread's errno.
    unsafe { *__errno_location() = errno as c_int };
    value
}

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
