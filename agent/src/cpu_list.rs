//! Lists of CPUs as the kernel writes them, such as `0-3,5` (cpuset(7), "List format").

use std::collections::BTreeSet;

/// More CPUs than any kernel can have.
const CPUS_MAX: u32 = 1 << 16;

/// The numbers that a list names, none if it is empty; `None` if it is no such list.
pub(crate) fn parse(text: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse("0-2,5\n"), Some(BTreeSet::from([0, 1, 2, 5])));
        assert_eq!(parse(""), Some(BTreeSet::new()));
        for wrong in ["x", "3-1", "0-4294967295", "-1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
