//! What `/proc/iomem` shows: what tools take for the truth about free memory of the pool.

use std::fmt::Write as _;

use super::host::Host;
use super::instance::Instance;
use super::pool::{Pool, Range};

/// Name of the pool's chunks.
const POOL: &str = "Multikernel Memory Pool";
/// Name of heap buffers: their only user is that file system.
const HEAP: &str = "daxfs";

pub(super) fn iomem<'a>(
    host: &Host,
    pool: Option<&Pool>,
    instances: impl Iterator<Item = &'a Instance> + Clone,
) -> String {
    let mut text = String::new();
    line(&mut text, 0, Range { base: 0x1000, size: 0x9f000 }, "System RAM");
    line(&mut text, 0, Range { base: 0x10_0000, size: 0xbff0_0000 }, "System RAM");
    for node in host.nodes() {
        line(&mut text, 0, *node, "System RAM");
        let mut chunks: Vec<Range> =
            pool.iter().flat_map(|pool| &pool.chunks).map(|chunk| chunk.range).collect();
        chunks.retain(|chunk| node.contains(chunk));
        chunks.sort_by_key(|chunk| chunk.base);
        for chunk in chunks {
            line(&mut text, 1, chunk, POOL);
            let mut children: Vec<(Range, String)> = Vec::new();
            for instance in instances.clone() {
                children.extend(instance.regions.iter().map(|region| {
                    let name =
                        format!("mk-instance-{}-{}-region-{}", instance.id, instance.name, region.number);
                    (region.range, name)
                }));
            }
            children.extend(pool.iter().flat_map(|pool| &pool.heap).map(|heap| (*heap, HEAP.to_owned())));
            children.retain(|(range, _)| chunk.contains(range));
            children.sort_by_key(|(range, _)| range.base);
            for (range, name) in children {
                line(&mut text, 2, range, &name);
            }
        }
    }
    text
}

fn line(text: &mut String, depth: usize, range: Range, name: &str) {
    let indent = depth * 2;
    // Writing to a String does not fail.
    let _ = writeln!(text, "{:indent$}{:08x}-{:08x} : {name}", "", range.base, range.end().saturating_sub(1));
}
