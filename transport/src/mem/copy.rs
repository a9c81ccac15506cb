//! Copies between shared and private memory that the compiler cannot see into, and the fence.
//!
//! On x86-64 they are inline assembly: vector moves for small and middle sizes, `rep movsb` for large ones, and several pages in turns
//! ([`super::spread`]) where the lines are another core's. To the compiler an `asm!` block may touch any memory, so it neither assumes that the bytes hold
//! still nor moves the copy across the atomic that publishes or acquires them. Elsewhere (under Miri, and with `--cfg tombolo_word_atomic`) they are relaxed
//! atomics, byte by byte up to alignment and then word by word, which is two to three times slower for bulk and defined by the language.

pub(super) use imp::{demote, fence, from_shared, prefetch_read, prefetch_write, to_shared, to_shared_far};

#[cfg(all(target_arch = "x86_64", not(any(miri, tombolo_word_atomic))))]
mod imp {
    use std::arch::asm;

    use super::super::{CACHE_LINE, spread};

    /// From here `rep movsb` is used. Within one core a loop of vector moves is as fast; but the copies that matter go
    /// to lines that another core holds or come from there, and for those the string move is two to five times
    /// faster (measured on Zen 4, in both placements of the cores): it takes lines over without reading them first.
    const REP_MIN: usize = 512;

    /// # Safety
    /// `from` has `n` readable shared bytes, `to` has `n` writable private bytes.
    #[inline]
    pub(in super::super) unsafe fn from_shared(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: as our caller promises.
        unsafe { copy_far(from, to, n) }
    }

    /// # Safety
    /// `from` has `n` readable private bytes, `to` has `n` writable shared bytes.
    #[inline]
    pub(in super::super) unsafe fn to_shared(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: as our caller promises.
        unsafe { copy(from, to, n) }
    }

    /// As [`to_shared`], where another core most likely has the lines at `to`.
    ///
    /// # Safety
    /// As [`to_shared`].
    #[inline]
    pub(in super::super) unsafe fn to_shared_far(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: as our caller promises.
        unsafe { copy_far(from, to, n) }
    }

    /// Brings the line at `address` here for reading. A hint: it cannot fault.
    #[inline]
    pub(in super::super) fn prefetch_read(address: *const u8) {
        // SAFETY: a prefetch changes no architectural state and does not fault, whatever the address.
        unsafe { asm!("prefetcht0 [{}]", in(reg) address, options(nostack, preserves_flags)) }
    }

    /// Brings the lines of the `n` bytes at `address` here for writing. A hint: it cannot fault.
    #[inline]
    pub(in super::super) fn prefetch_write(address: *const u8, n: usize) {
        let prefetch = |line: *const u8| {
            // SAFETY: a prefetch changes no architectural state and does not fault, whatever the address.
            unsafe { asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags)) }
        };
        if n < spread::SPREAD_MIN {
            lines(address, n).for_each(prefetch);
        } else {
            spread::lines_in_turns(address, n).for_each(prefetch);
        }
    }

    /// Moves the lines of the `n` bytes at `address` from this core's caches to the one that all cores share. A hint: it cannot fault, and
    /// processors that do not know it take it for a no-op.
    #[inline]
    pub(in super::super) fn demote(address: *const u8, n: usize) {
        for line in lines(address, n) {
            // SAFETY: it changes no architectural state and does not fault, whatever the address.
            unsafe { asm!("cldemote [{}]", in(reg) line, options(nostack, preserves_flags)) }
        }
    }

    /// What `std::sync::atomic::fence(SeqCst)` is: nothing passes it in either direction. That one is compiled to `mfence`, which takes twice as long as a locked
    /// instruction on memory that is here already; both order all loads and stores (Intel's manual, volume 3, 8.2.3.9; Linux has it so in `smp_mb`).
    #[inline]
    pub(in super::super) fn fence() {
        // SAFETY: adds nothing to a word below the stack pointer, which is this thread's alone: it stays what it is, whatever it is used for.
        unsafe { asm!("lock add dword ptr [rsp - 4], 0") }
    }

    /// An address in each line of the `n` bytes at `address`.
    #[inline]
    fn lines(address: *const u8, n: usize) -> impl Iterator<Item = *const u8> {
        let skew = address.addr() % CACHE_LINE;
        (0..n + skew).step_by(CACHE_LINE).map(move |at| address.wrapping_sub(skew).wrapping_add(at))
    }

    /// # Safety
    /// `from` has `n` readable and `to` has `n` writable bytes, not overlapping.
    #[inline]
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one call in each arm, all for the same reason")]
    unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: each callee copies exactly `n` bytes, for the `n` it is called with.
        unsafe {
            match n {
                0 => {}
                1..=7 => bytes(from, to, n),
                8..=15 => copy_8_to_16(from, to, n),
                16..=31 => copy_16_to_32(from, to, n),
                32..=64 => copy_32_to_64(from, to, n),
                65..REP_MIN => blocks(from, to, n),
                _ => rep(from, to, n),
            }
        }
    }

    /// As [`copy`], where another core has the lines at one of both.
    ///
    /// # Safety
    /// As [`copy`].
    #[inline]
    unsafe fn copy_far(from: *const u8, to: *mut u8, n: usize) {
        if !spread::is_faster(n) {
            // SAFETY: as our caller promises.
            return unsafe { copy(from, to, n) };
        }
        let head = to.addr().next_multiple_of(CACHE_LINE) - to.addr();
        // SAFETY: `n` is more than a line.
        unsafe { copy_32_to_64(from, to, CACHE_LINE) };
        let (from, to, n) = (from.wrapping_add(head), to.wrapping_add(head), n - head);
        // SAFETY: the bytes from a whole line of the target on.
        let done = unsafe { spread::copy(from, to, n) };
        // SAFETY: the rest of them.
        unsafe { copy(from.wrapping_add(done), to.wrapping_add(done), n - done) }
    }

    /// # Safety
    /// As [`copy`], with `n` at least 1.
    #[inline]
    unsafe fn bytes(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: reads and writes `from[i]`, `to[i]` for i from n - 1 down to 0.
        unsafe {
            asm!(
                "2:",
                "mov {t:l}, byte ptr [{from} + {i} - 1]",
                "mov byte ptr [{to} + {i} - 1], {t:l}",
                "dec {i}",
                "jnz 2b",
                from = in(reg) from, to = in(reg) to, i = inout(reg) n => _, t = out(reg_abcd) _,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// As [`copy`], with 8 <= n <= 16.
    #[inline]
    unsafe fn copy_8_to_16(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: the first and the last 8 bytes, which overlap for n < 16.
        unsafe {
            asm!(
                "mov {a}, qword ptr [{from}]",
                "mov {b}, qword ptr [{from} + {n} - 8]",
                "mov qword ptr [{to}], {a}",
                "mov qword ptr [{to} + {n} - 8], {b}",
                from = in(reg) from, to = in(reg) to, n = in(reg) n, a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// # Safety
    /// As [`copy`], with 16 <= n <= 32.
    #[inline]
    unsafe fn copy_16_to_32(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: the first and the last 16 bytes, which overlap for n < 32.
        unsafe {
            asm!(
                "movdqu {a}, xmmword ptr [{from}]",
                "movdqu {b}, xmmword ptr [{from} + {n} - 16]",
                "movdqu xmmword ptr [{to}], {a}",
                "movdqu xmmword ptr [{to} + {n} - 16], {b}",
                from = in(reg) from, to = in(reg) to, n = in(reg) n, a = out(xmm_reg) _, b = out(xmm_reg) _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// # Safety
    /// As [`copy`], with 32 <= n <= 64.
    #[inline]
    unsafe fn copy_32_to_64(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: the first and the last 32 bytes, which overlap for n < 64.
        unsafe {
            asm!(
                "movdqu {a}, xmmword ptr [{from}]",
                "movdqu {b}, xmmword ptr [{from} + 16]",
                "movdqu {c}, xmmword ptr [{from} + {n} - 32]",
                "movdqu {d}, xmmword ptr [{from} + {n} - 16]",
                "movdqu xmmword ptr [{to}], {a}",
                "movdqu xmmword ptr [{to} + 16], {b}",
                "movdqu xmmword ptr [{to} + {n} - 32], {c}",
                "movdqu xmmword ptr [{to} + {n} - 16], {d}",
                from = in(reg) from, to = in(reg) to, n = in(reg) n,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// # Safety
    /// As [`copy`], with n > 64.
    #[inline]
    unsafe fn blocks(from: *const u8, to: *mut u8, n: usize) {
        let last = n - 64;
        // SAFETY: blocks of 64 bytes at 0, 64, ... while below `last`, and one more at `last`: all inside `n`.
        unsafe {
            asm!(
                "2:",
                "movdqu {a}, xmmword ptr [{from} + {i}]",
                "movdqu {b}, xmmword ptr [{from} + {i} + 16]",
                "movdqu {c}, xmmword ptr [{from} + {i} + 32]",
                "movdqu {d}, xmmword ptr [{from} + {i} + 48]",
                "movdqu xmmword ptr [{to} + {i}], {a}",
                "movdqu xmmword ptr [{to} + {i} + 16], {b}",
                "movdqu xmmword ptr [{to} + {i} + 32], {c}",
                "movdqu xmmword ptr [{to} + {i} + 48], {d}",
                "add {i}, 64",
                "cmp {i}, {last}",
                "jb 2b",
                "movdqu {a}, xmmword ptr [{from} + {last}]",
                "movdqu {b}, xmmword ptr [{from} + {last} + 16]",
                "movdqu {c}, xmmword ptr [{from} + {last} + 32]",
                "movdqu {d}, xmmword ptr [{from} + {last} + 48]",
                "movdqu xmmword ptr [{to} + {last}], {a}",
                "movdqu xmmword ptr [{to} + {last} + 16], {b}",
                "movdqu xmmword ptr [{to} + {last} + 32], {c}",
                "movdqu xmmword ptr [{to} + {last} + 48], {d}",
                from = in(reg) from, to = in(reg) to, last = in(reg) last, i = inout(reg) 0_usize => _,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// As [`copy`].
    #[inline]
    unsafe fn rep(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: copies `n` bytes upwards; the direction flag is clear by the calling convention.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") n => _, inout("rsi") from => _, inout("rdi") to => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(any(not(target_arch = "x86_64"), miri, tombolo_word_atomic))]
mod imp {
    use super::atomic;

    pub(in super::super) use atomic::{from_shared, to_shared, to_shared as to_shared_far};

    pub(in super::super) fn prefetch_read(_address: *const u8) {}

    pub(in super::super) fn prefetch_write(_address: *const u8, _n: usize) {}

    pub(in super::super) fn demote(_address: *const u8, _n: usize) {}

    pub(in super::super) fn fence() {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

/// The portable copies. Also built where they are not used, so that the tests compare both.
#[cfg(any(not(target_arch = "x86_64"), miri, tombolo_word_atomic, test))]
mod atomic {
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

    /// # Safety
    /// `from` has `n` readable shared bytes, `to` has `n` writable private bytes.
    pub(in super::super) unsafe fn from_shared(from: *const u8, to: *mut u8, n: usize) {
        let mut at = 0;
        while at < n {
            let source = from.wrapping_add(at).cast_mut();
            let target = to.wrapping_add(at);
            if n - at >= 8 && source.addr().is_multiple_of(8) {
                // SAFETY: 8 aligned bytes inside `n`; shared memory is accessed by atomics only (M4).
                let word = unsafe { AtomicU64::from_ptr(source.cast()) }.load(Relaxed);
                // SAFETY: 8 bytes inside `n`, private.
                unsafe { target.cast::<u64>().write_unaligned(word) };
                at += 8;
            } else {
                // SAFETY: one byte inside `n` (M4).
                let byte = unsafe { AtomicU8::from_ptr(source) }.load(Relaxed);
                // SAFETY: one byte inside `n`, private.
                unsafe { target.write(byte) };
                at += 1;
            }
        }
    }

    /// # Safety
    /// `from` has `n` readable private bytes, `to` has `n` writable shared bytes.
    pub(in super::super) unsafe fn to_shared(from: *const u8, to: *mut u8, n: usize) {
        let mut at = 0;
        while at < n {
            let source = from.wrapping_add(at);
            let target = to.wrapping_add(at);
            if n - at >= 8 && target.addr().is_multiple_of(8) {
                // SAFETY: 8 bytes inside `n`, private.
                let word = unsafe { source.cast::<u64>().read_unaligned() };
                // SAFETY: 8 aligned bytes inside `n`; shared memory is accessed by atomics only (M4).
                unsafe { AtomicU64::from_ptr(target.cast()) }.store(word, Relaxed);
                at += 8;
            } else {
                // SAFETY: one byte inside `n`, private.
                let byte = unsafe { source.read() };
                // SAFETY: one byte inside `n` (M4).
                unsafe { AtomicU8::from_ptr(target) }.store(byte, Relaxed);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    type Copy = unsafe fn(*const u8, *mut u8, usize);

    fn check(copy: Copy, n: usize, from_skew: usize, to_skew: usize) {
        let source: Vec<u8> = (0..n + from_skew).map(|i| (i * 7 + 3) as u8).collect();
        let mut target = vec![0xAA_u8; n + to_skew + 16];
        let to = target[to_skew..].as_mut_ptr();
        // SAFETY: both have at least `n` bytes from there, and do not overlap.
        unsafe { copy(source[from_skew..].as_ptr(), to, n) };
        assert_eq!(&target[to_skew..to_skew + n], &source[from_skew..], "{n} bytes");
        assert!(target[..to_skew].iter().all(|b| *b == 0xAA), "{n} bytes: wrote before");
        assert!(target[to_skew + n..].iter().all(|b| *b == 0xAA), "{n} bytes: wrote after");
    }

    #[test]
    fn every_length_and_skew_is_copied_exactly() {
        let copies: [Copy; 5] = [
            super::imp::from_shared,
            super::imp::to_shared,
            super::imp::to_shared_far,
            super::atomic::from_shared,
            super::atomic::to_shared,
        ];
        for copy in copies {
            for n in (0..300).chain([1000, 2047, 2048, 2049, 5000, 8191, 8192, 12_345, 16_384, 70_001]) {
                for (from_skew, to_skew) in [(0, 0), (1, 0), (0, 3), (5, 8)] {
                    check(copy, n, from_skew, to_skew);
                }
            }
        }
    }
}
