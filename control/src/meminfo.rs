//! The text of a /proc/meminfo, this kernel's or another's.

/// An amount that it tells, such as `MemFree`, in bytes (proc_meminfo(5): its lines are in KiB).
pub(crate) fn bytes_of(field: &str, text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_by_name_and_nothing_else_is() {
        let text = "MemTotal:  100 kB\nMemFree: 5 kB\nMemFreeX: 7 kB\nHugePages_Total: 3\nMuch: 18446744073709551615 kB\n";
        assert_eq!(bytes_of("MemFree", text), Some(5 << 10));
        assert_eq!(bytes_of("MemTotal", text), Some(100 << 10));
        for unknown in ["Mem", "SwapTotal", "HugePages_Total", "Much"] {
            assert_eq!(bytes_of(unknown, text), None, "{unknown}");
        }
    }
}
