//! Keeps User-mode Linux running on processors with more registers than it knows.
//!
//! Such a kernel saves and restores the registers of its processes by ptrace(2), as an XSAVE area of 2696 bytes (Linux 6.1:
//! `arch/x86/um/os-Linux/registers.c`). The host wants the whole area or nothing (`xstateregs_set` in
//! `arch/x86/kernel/fpu/regset.c`), and with AMX that has 11 008 bytes: the kernel panics at its first process. Newer ones ask the host
//! for the size, but no longer have the driver that maps the pool.
//!
//! So the kernel gets a library of one function preloaded: `ptrace`, which passes everything on, and makes an area that is
//! too short whole. Nothing is lost by that: the registers beyond are AMX tiles, which no process has before it asked *its*
//! kernel for them (arch_prctl(2), `ARCH_REQ_XCOMP_PERM`), and this kernel knows of no such request.
//!
//! The library is part of this program (`build.rs` compiles `preload.rs`) and reaches the kernel as an anonymous file, so
//! nothing is left behind and no mount option is in the way. A kernel that is linked statically ignores it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

/// The library; empty where this program runs on another architecture.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// The value of `LD_PRELOAD`, and the descriptor that must stay open through exec.
///
/// # Errors
/// What the system says; some forbid anonymous files that are executed (`vm.memfd_noexec`).
pub(super) fn preload() -> io::Result<(String, OwnedFd)> {
    const NAME: &str = "tombolo-xstate";
    let fd = match memfd_create(NAME, MemfdFlags::EXEC) {
        // Linux before 6.3 does not know the flag.
        Err(Errno::INVAL) => memfd_create(NAME, MemfdFlags::empty()),
        made => made,
    }?;
    let mut file = File::from(fd);
    file.write_all(LIBRARY)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok((path, file.into()))
}

#[cfg(test)]
#[path = "widen.rs"]
mod widen;

#[cfg(test)]
mod tests {
    use super::widen::widen;

    fn area(len: usize, components: u64) -> Vec<u8> {
        let mut area = vec![0x5a; len];
        area[512..520].copy_from_slice(&components.to_le_bytes());
        area
    }

    #[test]
    fn what_is_beyond_a_short_area_gets_its_initial_state() {
        let mut full = vec![0xff; 11_008];
        assert!(widen(&area(2696, 0x600e7), &mut full, 0xe7));
        assert_eq!(full[512..520], 0xe7_u64.to_le_bytes());
        assert_eq!(full[..512], [0x5a; 512]);
        assert_eq!(full[520..2696], [0x5a; 2176]);
        assert!(full[2696..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_area_without_header_or_longer_than_the_whole_is_refused() {
        let mut full = vec![0; 1000];
        assert!(!widen(&[0; 575], &mut full, 7));
        assert!(!widen(&[0; 1001], &mut full, 7));
        assert!(widen(&area(1000, 7), &mut full, 7));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_library_is_there() {
        assert_eq!(super::LIBRARY.get(..4), Some(&b"\x7fELF"[..]));
    }
}
