//! Copies that go on in several pages at once, line by line in turns.
//!
//! A line that another core has takes as long to come here as it takes; what counts is how many are on their way. A core asks by itself for the lines that follow
//! in a page, and no further than its end (Intel 64 optimization manual, hardware prefetch into the second-level cache). So who copies
//! four pages in turns has more lines on their way than who copies one page after the other.

use std::arch::asm;
use std::arch::x86_64::__cpuid;
use std::sync::LazyLock;

use super::{CACHE_LINE, PAGE};

/// From here on it pays to spread a copy, in bytes: a little less than four pages.
pub(super) const SPREAD_MIN: usize = 4 * PAGE - 512;

/// Whether spread copies are faster here: on processors of Intel. Others have not been measured.
static IS_FASTER: LazyLock<bool> = LazyLock::new(|| {
    let leaf = __cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
});

/// Whether a copy of `n` bytes is faster when it is spread.
#[inline]
pub(super) fn is_faster(n: usize) -> bool {
    n >= SPREAD_MIN && *IS_FASTER
}

/// Copies the first bytes and returns how many: all but less than [`SPREAD_MIN`].
///
/// # Safety
/// `from` has `n` readable and `to` has `n` writable bytes, not overlapping.
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, n: usize) -> usize {
    let mut at = 0;
    while n - at >= SPREAD_MIN {
        let step = PAGE.min((n - at) / 4 / CACHE_LINE * CACHE_LINE);
        // SAFETY: `4 * step` bytes are not more than what is left.
        unsafe { four(from.wrapping_add(at), to.wrapping_add(at), step) }
        at += 4 * step;
    }
    at
}

/// In which order the lines of the `n` bytes at `address` are asked for: an address in each, of four pages in turns.
#[inline]
pub(super) fn lines_in_turns(address: *const u8, n: usize) -> impl Iterator<Item = *const u8> {
    let skew = address.addr() % CACHE_LINE;
    let (start, len) = (address.wrapping_sub(skew), n + skew);
    (0..len)
        .step_by(4 * PAGE)
        .flat_map(move |four| {
            let lines = (0..PAGE.min(len - four)).step_by(CACHE_LINE);
            lines.flat_map(move |line| (four + line..len.min(four + 4 * PAGE)).step_by(PAGE))
        })
        .map(move |at| start.wrapping_add(at))
}

/// The instructions that copy a line, by four registers.
macro_rules! line {
    ($from:literal, $to:literal) => {
        concat!(
            "movdqu {a}, xmmword ptr [",
            $from,
            "]\n",
            "movdqu {b}, xmmword ptr [",
            $from,
            " + 16]\n",
            "movdqu {c}, xmmword ptr [",
            $from,
            " + 32]\n",
            "movdqu {d}, xmmword ptr [",
            $from,
            " + 48]\n",
            "movdqu xmmword ptr [",
            $to,
            "], {a}\n",
            "movdqu xmmword ptr [",
            $to,
            " + 16], {b}\n",
            "movdqu xmmword ptr [",
            $to,
            " + 32], {c}\n",
            "movdqu xmmword ptr [",
            $to,
            " + 48], {d}",
        )
    };
}

/// # Safety
/// As [`copy`], with `4 * step` bytes; `step` is a multiple of [`CACHE_LINE`] and not zero.
#[inline]
unsafe fn four(from: *const u8, to: *mut u8, step: usize) {
    let (from3, to3) = (from.wrapping_add(2 * step), to.wrapping_add(2 * step));
    // SAFETY: the lines at `i` and at `j = i + step`, after the first step and after the third, for each `i` below `step` that is a multiple of a line: in all
    // `4 * step` bytes, each once.
    unsafe {
        asm!(
            "2:",
            line!("{from} + {i}", "{to} + {i}"),
            line!("{from} + {j}", "{to} + {j}"),
            line!("{from3} + {i}", "{to3} + {i}"),
            line!("{from3} + {j}", "{to3} + {j}"),
            "add {j}, 64",
            "add {i}, 64",
            "cmp {i}, {step}",
            "jb 2b",
            from = in(reg) from, to = in(reg) to, from3 = in(reg) from3, to3 = in(reg) to3, step = in(reg) step,
            i = inout(reg) 0_usize => _, j = inout(reg) step => _,
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_asked_for_once_and_four_pages_take_turns() {
        for (skew, n) in
            [(0, 1), (0, 64), (1, 64), (8, 4096), (0, 4096), (48, 10_000), (0, 16_384), (16, 65_536)]
        {
            let address = std::ptr::without_provenance::<u8>(0x10_0000 + skew);
            let lines: Vec<usize> = lines_in_turns(address, n).map(|line| line.addr()).collect();
            let mut sorted = lines.clone();
            sorted.sort_unstable();
            let all = (0x10_0000..0x10_0000 + skew + n).step_by(CACHE_LINE);
            assert!(sorted.into_iter().eq(all), "{n} bytes at {skew}");
            if n >= 16_384 {
                let pages: Vec<usize> = lines[..5].iter().map(|line| (line - 0x10_0000) / PAGE).collect();
                assert_eq!(pages, [0, 1, 2, 3, 0]);
            }
        }
    }

    #[test]
    fn spread_copy_leaves_less_than_four_pages() {
        for n in [8192, 15_871, SPREAD_MIN, 16_368, 16_384, 32_000, 32_255, 40_000, 65_536] {
            let source: Vec<u8> = (0..n).map(|i| (i % 251) as u8).collect();
            let mut target = vec![0; n];
            // SAFETY: both have `n` bytes, and do not overlap.
            let done = unsafe { copy(source.as_ptr(), target.as_mut_ptr(), n) };
            assert!(done <= n && n - done < SPREAD_MIN, "{done} of {n}");
            assert!(target[..done] == source[..done] && target[done..].iter().all(|byte| *byte == 0), "{n}");
        }
    }
}
