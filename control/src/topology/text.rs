//! The texts of sysfs: numbers, sizes, masks, lists of CPUs. Whatever a file holds, reading it takes bounded time and memory.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// More than any of these files has, in bytes: a list of every second of 8192 CPUs has 20 KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// CPUs and nodes are below this number: the most that Linux can be built for (`NR_CPUS` on x86-64).
const NUMBERS_MAX: u32 = 8192;

/// A file's text, if it has some that is not too long.
pub(super) fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A decimal number; `-1`, with which the kernel says that it does not know, is none.
pub(super) fn number(text: &str) -> Option<u32> {
    let digits = text.trim();
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// A mask in hexadecimal digits.
pub(super) fn mask(text: &str) -> Option<u64> {
    let digits = text.trim();
    digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

/// A size such as `32768K`.
pub(super) fn bytes_with_suffix(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    u64::from(number(digits)?).checked_mul(1 << shift)
}

/// Numbers such as `0-3,8,10-11`, in order and each once; an empty text is a list of none.
pub(crate) fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let text = text.trim();
    let mut numbers = Vec::new();
    // The last of what was read: numbers only rise, so a text cannot name more than there are.
    let mut last = None;
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, end) = part.split_once('-').unwrap_or((part, part));
        let (first, end) = (number(first)?, number(end)?);
        if first > end || end >= NUMBERS_MAX || last.is_some_and(|last| first <= last) {
            return None;
        }
        numbers.extend(first..=end);
        last = Some(end);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_what_is_none_is_refused() {
        assert_eq!(cpu_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(cpu_list("7"), Some(vec![7]));
        assert_eq!(cpu_list("\n"), Some(vec![]));
        for bad in
            ["3-0", "0-4294967295", "0,0", "4,2", "0-", "-1", "a", "0;1", "0-3,2", "8192", ",", "+1", "1 2"]
        {
            assert_eq!(cpu_list(bad), None, "{bad}");
        }
        let endless = "0,".repeat(1 << 20);
        assert_eq!(cpu_list(&endless), None);
    }

    #[test]
    fn numbers_sizes_and_masks_are_read_and_what_is_none_is_refused() {
        assert_eq!((number(" 12\n"), number("-1"), number(""), number("+3")), (Some(12), None, None, None));
        assert_eq!(number("4294967296"), None);
        assert_eq!(bytes_with_suffix("491520K\n"), Some(491_520 << 10));
        assert_eq!((bytes_with_suffix("32M"), bytes_with_suffix("7")), (Some(32 << 20), Some(7)));
        assert_eq!(
            (bytes_with_suffix("K"), bytes_with_suffix(""), bytes_with_suffix("1G")),
            (None, None, None)
        );
        assert_eq!(
            (mask("7ff\n"), mask("0x7"), mask(""), mask("10000000000000000")),
            (Some(0x7ff), None, None, None)
        );
    }
}
