//! Memory: whether it can be spared, making it free, and proving that what came can be used.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use memmap2::{Advice, MmapOptions};
use rustix::fs::{MemfdFlags, memfd_create};
use tombolo_handover::operation::Veto;

use super::programs::numbered;
use crate::health::system_load;

/// What the kernel and its programs must keep free, in bytes: below it the kernel begins to reclaim in earnest.
const KEPT_BYTES: u64 = 16 << 20;
/// When it may be worth asking again, in ms: programs come and go.
const RETRY_AFTER_MS: u64 = 5_000;
/// Programs that are named as those who have the memory.
const NAMED_MAX: usize = 3;
/// How much is written by one call, in bytes.
const CHUNK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// How far apart marks are in memory that the kernel has written to, in bytes.
const MARK_EVERY_BYTES: usize = 64 << 10;

/// Whether so much can be spared: nothing, or who has it.
pub(super) fn can_spare(bytes: u64) -> Option<Veto> {
    let available = system_load().memory.available;
    (available < bytes.saturating_add(KEPT_BYTES)).then(|| too_little(bytes, available, "could be made free"))
}

/// Makes so much free: drops what the kernel only caches, if it must.
pub(super) fn make_free(bytes: u64) -> Result<(), Veto> {
    let wanted = bytes.saturating_add(KEPT_BYTES);
    if system_load().memory.free >= wanted {
        return Ok(());
    }
    // proc_sys_vm(5): 3 drops the page cache, dentries and inodes; only what is clean.
    rustix::fs::sync();
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
        tracing::warn!(%error, "the kernel's caches cannot be dropped");
    }
    let free = system_load().memory.free;
    if free >= wanted { Ok(()) } else { Err(too_little(bytes, free, "is free")) }
}

/// Proves that so much memory can be used: has every page of it written to, and reads back what was.
pub(super) fn prove(bytes: u64) -> Result<(), Veto> {
    let available = system_load().memory.available;
    if available < bytes.min(KEPT_BYTES) {
        return Err(Veto {
            reason: format!("of the {} MiB that came, {} are to be had", bytes >> 20, available >> 20),
            retry_after_ms: Some(RETRY_AFTER_MS),
        });
    }
    // No more than can be had without taking it from programs.
    let proven = bytes.min(available.saturating_sub(KEPT_BYTES));
    let bytes = usize::try_from(proven).unwrap_or(usize::MAX);
    let cannot = |error: io::Error| Veto {
        reason: format!("the memory that came cannot be used: {error}"),
        retry_after_ms: Some(RETRY_AFTER_MS),
    };
    let proof = match maps_and_reads_back(bytes) {
        Some(proof) => proof,
        None => writes_and_reads_back(bytes.div_ceil(CHUNK_BYTES)),
    };
    match proof.map_err(cannot)? {
        true => Ok(()),
        false => {
            Err(Veto { reason: "memory does not keep what is written to it".into(), retry_after_ms: None })
        }
    }
}

/// Has the kernel fill so much memory with zeros, all at once, then marks it and reads the marks; whether they hold. `None` where the kernel has no large
/// pages: then mapping memory costs more than writing to it.
fn maps_and_reads_back(bytes: usize) -> Option<io::Result<bool>> {
    if bytes == 0 {
        return Some(Ok(true));
    }
    let mut memory = match MmapOptions::new().len(bytes).map_anon() {
        Ok(memory) => memory,
        Err(error) => return Some(Err(error)),
    };
    memory.advise(Advice::HugePage).ok()?;
    // Since Linux 5.14; it writes to every byte of every page, so a few marks in each large page tell whether they are kept.
    let is_written = memory.advise(Advice::PopulateWrite).is_ok();
    let step_bytes = if is_written { MARK_EVERY_BYTES } else { PAGE_BYTES };
    let mark = |number: usize| (number as u64 + 1).to_ne_bytes();
    for (number, bytes) in memory.chunks_mut(step_bytes).enumerate() {
        bytes.iter_mut().zip(mark(number)).for_each(|(byte, mark)| *byte = mark);
    }
    // The compiler must not know what is in there.
    let memory = std::hint::black_box(&memory[..]);
    let holds =
        |(number, bytes): (usize, &[u8])| bytes.iter().zip(mark(number)).all(|(byte, mark)| *byte == mark);
    Some(Ok(memory.chunks(step_bytes).enumerate().all(holds)))
}

/// The same with the pages of a file in memory: under user-mode Linux mapping a page costs a hundred times what writing it does.
fn writes_and_reads_back(chunks: usize) -> io::Result<bool> {
    let mut file = File::from(memfd_create("tombolo-proof", MemfdFlags::CLOEXEC)?);
    // Not of the heap, which keeps what is given back to it: this may be a large part of a small kernel's memory.
    let chunk = || MmapOptions::new().len(CHUNK_BYTES).map_anon();
    let (mut written, mut read) = (chunk()?, chunk()?);
    for chunk in 0..chunks {
        mark_pages(&mut written, chunk);
        file.write_all(&written)?;
    }
    file.rewind()?;
    for chunk in 0..chunks {
        mark_pages(&mut written, chunk);
        file.read_exact(&mut read)?;
        if written[..] != read[..] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Numbers the pages of a chunk.
fn mark_pages(chunk: &mut [u8], number: usize) {
    for (page, bytes) in chunk.chunks_mut(PAGE_BYTES).enumerate() {
        let mark = ((number as u64) << 32 | page as u64).to_ne_bytes();
        bytes.iter_mut().zip(mark).for_each(|(byte, mark)| *byte = mark);
    }
}

fn too_little(bytes: u64, has: u64, what: &str) -> Veto {
    let missing = bytes.saturating_add(KEPT_BYTES).saturating_sub(has);
    let mut reason = format!(
        "{} MiB are wanted and {} MiB {what}, of which {} must stay: {} MiB too little",
        bytes >> 20,
        has >> 20,
        KEPT_BYTES >> 20,
        missing.div_ceil(1 << 20),
    );
    let holders = largest_programs(Path::new("/proc"));
    if !holders.is_empty() {
        reason.push_str("; the largest programs: ");
        reason.push_str(&holders.join(", "));
    }
    Veto { reason, retry_after_ms: Some(RETRY_AFTER_MS) }
}

/// The programs that hold most memory, with how much.
fn largest_programs(proc_dir: &Path) -> Vec<String> {
    let program = |pid: u32| {
        let status = fs::read_to_string(proc_dir.join(pid.to_string()).join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let kib: u64 = field("VmRSS:")?.strip_suffix("kB")?.trim().parse().ok()?;
        Some((kib, format!("{} (process {pid}, {} MiB)", field("Name:")?, kib >> 10)))
    };
    let mut programs: Vec<(u64, String)> = numbered(proc_dir).filter_map(program).collect();
    programs.sort_by_key(|(kib, _)| std::cmp::Reverse(*kib));
    programs.into_iter().take(NAMED_MAX).map(|(_, text)| text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_memory_is_named_the_largest_first() {
        let dir = tempfile::tempdir().unwrap();
        for (pid, name, rss) in [
            ("7", "small", "VmRSS:\t  2048 kB\n"),
            ("8", "large", "VmRSS:\t 51200 kB\n"),
            ("2", "kthread", ""),
        ] {
            fs::create_dir(dir.path().join(pid)).unwrap();
            fs::write(dir.path().join(pid).join("status"), format!("Name:\t{name}\n{rss}Threads:\t1\n"))
                .unwrap();
        }
        fs::create_dir(dir.path().join("self")).unwrap();
        assert_eq!(largest_programs(dir.path()), ["large (process 8, 50 MiB)", "small (process 7, 2 MiB)"]);
    }

    #[test]
    fn more_than_there_is_cannot_be_spared_and_the_answer_says_how_much_is_missing() {
        assert_eq!(can_spare(0), None);
        let veto = can_spare(u64::MAX / 2).unwrap();
        assert!(veto.reason.contains("too little") && veto.reason.contains("process"), "{}", veto.reason);
        assert!(veto.retry_after_ms.is_some());
        make_free(0).unwrap();
    }

    #[test]
    fn memory_that_is_there_is_proven() {
        prove(0).unwrap();
        prove((9 << 20) + 4096).unwrap();
        assert!(writes_and_reads_back(9).unwrap());
        assert!(maps_and_reads_back((9 << 20) + 4096).is_none_or(|proof| proof.unwrap()));
    }
}
