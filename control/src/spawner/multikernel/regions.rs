//! Where the memory of instances is, and where more of it can go. No I/O.
//!
//! The trees tell how much an instance has, and only /proc/iomem where. A running kernel is told of the range that was asked for; the host's kernel
//! books that range, or, depending on its version, the first one that fits. So memory is asked for only where both are the same.

use serde::{Deserialize, Serialize};

use super::ids::{InstanceId, InstanceName};
use super::shared::iomem;
use super::tree::Chunk;

/// A kernel takes the end of the memory that it booted with for its own up to a multiple of this, and takes nothing that lies there.
const PADDING_BYTES: u64 = 64 << 20;
/// In which memory of a running kernel comes and goes where nobody tells, in bytes.
const STEP_BYTES: u64 = 128 << 20;
const PAGE_BYTES: u64 = 4096;

/// Physical memory that lies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Span {
    pub(super) base: u64,
    pub(super) bytes: u64,
}

impl Span {
    fn end(self) -> u64 {
        self.base.saturating_add(self.bytes)
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }

    fn covers(self, part: Self) -> bool {
        self.base <= part.base && part.end() <= self.end()
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB at {:#x}", self.bytes >> 20, self.base)
    }
}

/// In what memory of a running kernel comes and goes, in bytes: what the kernel says, or a block of memory of this host (`block`, the content of
/// `block_size_bytes`); but never less than a kernel pads what it booted with.
pub(super) fn step_bytes(granule_bytes: Option<u64>, block: Option<&str>) -> u64 {
    let block = || u64::from_str_radix(block?.trim().trim_start_matches("0x"), 16).ok();
    let unit = granule_bytes.or_else(block).filter(|bytes| bytes.is_power_of_two() && *bytes >= PAGE_BYTES);
    unit.unwrap_or(STEP_BYTES).max(PADDING_BYTES)
}

/// What of the pool's memory is whose, by /proc/iomem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Map {
    entries: Vec<(Span, String)>,
}

impl Map {
    /// Reads it. To whom the addresses are not shown, nothing is there.
    pub(super) fn parse(text: &str) -> Self {
        let entries = iomem::parse(text).into_iter();
        let span = |entry: &iomem::Entry| Span {
            base: entry.range.start,
            bytes: entry.range.end - entry.range.start,
        };
        Self { entries: entries.map(|entry| (span(&entry), entry.name)).collect() }
    }

    /// The memory of an instance, in the order in which it came.
    pub(super) fn of_instance(&self, id: InstanceId, name: &InstanceName) -> Vec<Span> {
        let prefix = format!("mk-instance-{id}-{name}-region-");
        let number = |name: &str| name.strip_prefix(&prefix)?.parse::<u32>().ok();
        let mut regions: Vec<(u32, Span)> =
            self.entries.iter().filter_map(|(span, name)| Some((number(name)?, *span))).collect();
        regions.sort_unstable();
        regions.into_iter().map(|(_, span)| span).collect()
    }

    /// What nobody has, ascending inside of each chunk, chunk by chunk. `None`: the map does not show them all.
    fn free(&self, chunks: &[Chunk]) -> Option<Vec<Span>> {
        let mut free = Vec::new();
        for chunk in chunks {
            let chunk = Span { base: chunk.base, bytes: chunk.bytes };
            let is_pool = |(span, name): &&(Span, String)| name == iomem::POOL && *span == chunk;
            self.entries.iter().find(is_pool)?;
            let mut used: Vec<Span> = self.entries.iter().map(|(span, _)| *span).collect();
            used.retain(|span| *span != chunk && chunk.covers(*span));
            used.sort_unstable();
            let mut base = chunk.base;
            for span in used {
                if span.base > base {
                    free.push(Span { base, bytes: span.base - base });
                }
                base = base.max(span.end());
            }
            if base < chunk.end() {
                free.push(Span { base, bytes: chunk.end() - base });
            }
        }
        Some(free)
    }

    /// How much of the pool nobody has. `None`: the map does not show all of it.
    pub(super) fn free_bytes(&self, chunks: &[Chunk]) -> Option<u64> {
        Some(self.free(chunks)?.iter().map(|free| free.bytes).sum())
    }

    /// Where a region of so many bytes comes, whether the kernel heeds what it is asked for or takes the first range that fits. `withheld`: what may be in
    /// use, although nobody has it.
    pub(super) fn place(&self, chunks: &[Chunk], bytes: u64, withheld: &[Span]) -> Result<Span, NoPlace> {
        let free = self.free(chunks).ok_or(NoPlace::NotShown)?;
        let first = |free: &[Span], align: u64| -> Option<Span> {
            free.iter().find_map(|free| {
                let base = free.base.checked_next_multiple_of(align)?;
                let span = Span { base, bytes };
                (base.checked_add(bytes).is_some() && free.covers(span)).then_some(span)
            })
        };
        let mut ascending = free.clone();
        ascending.sort_unstable();
        let span =
            first(&free, bytes).ok_or_else(|| NoPlace::Full { free: free.iter().map(|f| f.bytes).sum() })?;
        // Whatever a kernel goes by that does not heed the base: its alignment, and the order of its chunks.
        let others = [first(&ascending, bytes), first(&free, PAGE_BYTES), first(&ascending, PAGE_BYTES)];
        if let Some(other) = others.into_iter().flatten().find(|other| *other != span) {
            return Err(NoPlace::Uncertain { span, other });
        }
        match withheld.iter().find(|withheld| withheld.overlaps(span)) {
            Some(withheld) => Err(NoPlace::Withheld(*withheld)),
            None => Ok(span),
        }
    }
}

/// Why no memory is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    /// Only root sees the addresses.
    #[error("/proc/iomem does not show all memory of the pool (only root sees the addresses)")]
    NotShown,
    /// There may be enough, in pieces.
    #[error(
        "the pool has {} MiB left and no such piece at a multiple of its length; `tombolo multikernel pool` adds to it",
        free >> 20
    )]
    Full { free: u64 },
    /// A kernel that does not heed the base would have another range than the one it is told of.
    #[error(
        "it could come to {:#x}, and some kernels would book {:#x}, the first that is free, and tell it of the former all the same: it is not asked for until they are the same (memory of instances, and what is shared, in multiples of it)",
        span.base, other.base
    )]
    Uncertain { span: Span, other: Span },
    /// A kernel that was asked and has not answered may use it.
    #[error(
        "the {0} that come first may be in use in a kernel that was asked for them and did not answer: they are free when it has ended"
    )]
    Withheld(Span),
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const STEP: u64 = 128 * MIB;
    /// Two chunks, the second of which lies first: one instance with two regions, a buffer, and a namesake of a region.
    const IOMEM: &str = "\
100000000-4ffffffff : System RAM
  140000000-17fffffff : Multikernel Memory Pool
    140000000-147ffffff : mk-instance-3-web-region-0
    148000000-14fffffff : mk-instance-13-web-region-1
    150000000-157ffffff : mk-instance-3-web-region-10
    158000000-15fffffff : mk-instance-3-web-region-2
";

    fn chunk(base: u64, bytes: u64) -> Chunk {
        Chunk { base, bytes, numa_node: None }
    }

    fn pool() -> Vec<Chunk> {
        vec![chunk(0x1_4000_0000, 1 << 30)]
    }

    fn span(base: u64, bytes: u64) -> Span {
        Span { base, bytes }
    }

    #[test]
    fn regions_of_an_instance_are_in_the_order_in_which_they_came() {
        let map = Map::parse(IOMEM);
        let web = map.of_instance(3_u16.try_into().unwrap(), &"web".parse().unwrap());
        let bases: Vec<u64> = web.iter().map(|region| region.base).collect();
        assert_eq!(bases, [0x1_4000_0000, 0x1_5800_0000, 0x1_5000_0000]);
        assert_eq!(map.of_instance(4_u16.try_into().unwrap(), &"web".parse().unwrap()), []);
    }

    #[test]
    fn memory_is_asked_for_only_where_it_comes_whatever_the_kernel_goes_by() {
        let map = Map::parse(IOMEM);
        let first = span(0x1_6000_0000, STEP);
        assert_eq!(map.place(&pool(), STEP, &[]), Ok(first));
        assert_eq!(
            map.place(&pool(), STEP, &[span(0x1_6400_0000, 4096)]),
            Err(NoPlace::Withheld(span(0x1_6400_0000, 4096)))
        );
        assert_eq!(map.place(&pool(), 1 << 30, &[]), Err(NoPlace::Full { free: 512 * MIB }));
        // A buffer leaves the first that is free where no block begins.
        let odd = Map::parse(&format!("{IOMEM}    160000000-160ffffff : daxfs\n"));
        let other = span(0x1_6100_0000, STEP);
        let uncertain = NoPlace::Uncertain { span: span(0x1_6800_0000, STEP), other };
        assert_eq!(odd.place(&pool(), STEP, &[]), Err(uncertain));
        // The chunk that the tree has first is not the first there is.
        let two = Map::parse(&format!("{IOMEM}  110000000-117ffffff : Multikernel Memory Pool\n"));
        let chunks = [pool(), vec![chunk(0x1_1000_0000, STEP)]].concat();
        assert!(matches!(two.place(&chunks, STEP, &[]), Err(NoPlace::Uncertain { .. })));
    }

    #[test]
    fn map_that_does_not_show_the_pool_is_no_empty_one() {
        let hidden = Map::parse("00000000-00000000 : Multikernel Memory Pool\n");
        assert_eq!(hidden.place(&pool(), STEP, &[]), Err(NoPlace::NotShown));
        assert_eq!(
            Map::parse(IOMEM).place(&[chunk(0x9_0000_0000, 1 << 30)], STEP, &[]),
            Err(NoPlace::NotShown)
        );
    }

    #[test]
    fn step_is_what_the_kernel_says_and_no_less_than_what_kernels_pad() {
        assert_eq!(step_bytes(Some(STEP), None), STEP);
        assert_eq!(step_bytes(None, Some("80000000\n")), 2 << 30);
        assert_eq!(step_bytes(None, None), STEP);
        assert_eq!(step_bytes(Some(2 * MIB), None), PADDING_BYTES);
        assert_eq!(step_bytes(Some(3), Some("x")), STEP, "nonsense is nothing");
    }
}
