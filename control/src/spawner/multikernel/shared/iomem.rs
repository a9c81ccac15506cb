//! What /proc/iomem says of physical memory: the only place where the kernel tells where a buffer of its heap is.

use std::ops::Range;

/// What the kernel calls memory of the pool.
pub(in crate::spawner::multikernel) const POOL: &str = "Multikernel Memory Pool";
/// What it calls a buffer of the heap, whoever asked for it: the file system was its first user.
const BUFFER: &str = "daxfs";
const SYSTEM_RAM: &str = "System RAM";

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::spawner::multikernel) struct Entry {
    pub(in crate::spawner::multikernel) range: Range<u64>,
    pub(in crate::spawner::multikernel) name: String,
}

/// All lines that can be read. Without CAP_SYS_ADMIN every address is 0: then there are none.
pub(in crate::spawner::multikernel) fn parse(text: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let (range, name) = line.trim_start().split_once(" : ")?;
        let (start, last) = range.split_once('-')?;
        let hex = |digits: &str| u64::from_str_radix(digits.trim(), 16).ok();
        let (start, end) = (hex(start)?, hex(last)?.checked_add(1)?);
        (start < end && end > 1).then(|| Entry { range: start..end, name: name.trim_end().to_owned() })
    };
    text.lines().filter_map(entry).collect()
}

/// The buffers of the heap.
fn buffers(entries: &[Entry]) -> impl Iterator<Item = &Range<u64>> {
    let chunks = entries.iter().filter(|entry| entry.name == POOL);
    entries.iter().filter(|entry| entry.name == BUFFER).map(|entry| &entry.range).filter(move |range| {
        let mut chunks = chunks.clone();
        chunks.any(|chunk| covers(&chunk.range, range))
    })
}

/// Where a buffer of `bytes` is that was made between two looks; `None` if that cannot be told.
pub(super) fn new_buffer(before: &[Entry], after: &[Entry], bytes: u64) -> Option<u64> {
    let is_new = |range: &&Range<u64>| !buffers(before).any(|old| old == *range);
    let mut found = buffers(after).filter(is_new).filter(|range| range.end - range.start >= bytes);
    match (found.next(), found.next()) {
        (Some(range), None) => Some(range.start),
        _ => None,
    }
}

/// Why these bytes must not be written by us; `None`: nobody is known to have them.
pub(super) fn objection(entries: &[Entry], wanted: &Range<u64>) -> Option<String> {
    let shown =
        |entry: &Entry| format!("{:#x}-{:#x} is `{}`", entry.range.start, entry.range.end - 1, entry.name);
    let Some(smallest) = entries
        .iter()
        .filter(|entry| covers(&entry.range, wanted))
        .min_by_key(|entry| entry.range.end - entry.range.start)
    else {
        return Some("no one entry of /proc/iomem has all of it (only root sees the addresses)".into());
    };
    match smallest.name.as_str() {
        SYSTEM_RAM => Some(format!("{}: it is in use by this kernel", shown(smallest))),
        POOL => Some(format!("{}: the kernel may give it to an instance at any time", shown(smallest))),
        // A part of something else that begins or ends inside of it.
        _ => entries
            .iter()
            .filter(|entry| *entry != smallest && overlaps(&entry.range, wanted))
            .find(|entry| !covers(&entry.range, wanted))
            .map(|entry| format!("{}, and is part of it", shown(entry)))
            .or_else(|| {
                smallest
                    .name
                    .starts_with("mk-instance-")
                    .then(|| format!("{}: an instance has it", shown(smallest)))
            }),
    }
}

fn covers(range: &Range<u64>, part: &Range<u64>) -> bool {
    range.start <= part.start && part.end <= range.end
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
00001000-0009ffff : System RAM
100000000-4ffffffff : System RAM
  140000000-17fffffff : Multikernel Memory Pool
    140000000-145ffffff : mk-instance-3-web-region-0
    150000000-1500fffff : daxfs
600000000-60fffffff : Reserved
700000000-7000fffff : daxfs
";

    fn with(line: &str) -> Vec<Entry> {
        parse(&format!("{BEFORE}  160000000-17fffffff : Multikernel Memory Pool\n{line}"))
    }

    #[test]
    fn buffer_that_came_is_found_and_what_cannot_be_told_is_not_guessed() {
        let before = parse(BEFORE);
        let one = with("    160000000-1600fffff : daxfs\n");
        assert_eq!(new_buffer(&before, &one, 1 << 20), Some(0x1_6000_0000));
        assert_eq!(new_buffer(&before, &one, 2 << 20), None, "it is another's, who asked for less");
        let two = with("    160000000-1600fffff : daxfs\n    161000000-1610fffff : daxfs\n");
        assert_eq!(new_buffer(&before, &two, 1 << 20), None, "another program got one meanwhile");
        assert_eq!(new_buffer(&before, &before, 1 << 20), None, "the kernel did not list it");
        let hidden = parse("00000000-00000000 : Multikernel Memory Pool\n  00000000-00000000 : daxfs\n");
        assert_eq!((hidden.len(), new_buffer(&[], &hidden, 0)), (0, None));
        assert_eq!(parse("nonsense\n1-x : y\n5-1 : z\n"), []);
    }

    #[test]
    fn memory_that_somebody_has_is_not_written() {
        let entries = parse(BEFORE);
        let why = |range: Range<u64>| objection(&entries, &range);
        assert!(why(0x2_0000_0000..0x2_1000_0000).unwrap().contains("this kernel"));
        assert!(why(0x1_4600_0000..0x1_4700_0000).unwrap().contains("to an instance"));
        assert!(why(0x1_4100_0000..0x1_4200_0000).unwrap().contains("an instance has it"));
        assert!(why(0x1_4500_0000..0x1_4700_0000).is_some(), "part of an instance");
        assert!(why(0x9_0000_0000..0x9_0010_0000).unwrap().contains("no one entry"));
        assert_eq!(why(0x6_0000_0000..0x6_1000_0000), None);
        assert_eq!(why(0x1_5000_0000..0x1_5010_0000), None, "a buffer that somebody keeps for us");
        assert!(objection(&[], &(0..4096)).is_some());
    }
}
