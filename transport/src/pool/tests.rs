//! What a pool must do with good files and with bad ones.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::layout::Layout;
use super::*;
use crate::{Cid, Error, Incarnation};

fn small() -> Geometry {
    Geometry { members_max: 4, extent_bytes: 1 << 20, black_box_records: 16 }
}

fn pool() -> (tempfile::TempDir, PathBuf, Pool) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let pool = Pool::create(&path, small()).unwrap();
    (dir, path, pool)
}

fn reason(result: Result<Pool, Error>) -> String {
    match result {
        Err(Error::BadPool { reason, .. }) => reason,
        other => panic!("expected BadPool, got {other:?}"),
    }
}

#[test]
fn heartbeats_and_black_box_are_seen_by_the_others() {
    let (_dir, path, primary) = pool();
    let member = Pool::attach(PoolSource::path(&path), Member(2)).unwrap();
    let mut heart = member.heartbeat_writer().unwrap();
    heart.set_incarnation(Incarnation([3; 16]));
    heart.set_phase(Phase::Running);
    heart.beat();
    heart.beat();
    let seen = primary.heartbeat_reader(Member(2)).read();
    assert_eq!((seen.count, seen.phase, seen.incarnation), (2, Phase::Running, Incarnation([3; 16])));
    assert!(seen.monotonic_ns > 0);

    let mut black_box = member.black_box_writer().unwrap();
    for index in 0..20 {
        black_box.record(BlackBoxLevel::Warn, &format!("record {index} {}", "ä".repeat(200)));
    }
    drop(black_box);
    // A second life goes on where the first stopped.
    member.black_box_writer().unwrap().record(BlackBoxLevel::Error, "last words");
    let records = primary.black_box(Member(2));
    assert_eq!(records.len(), 16);
    assert!(records.is_sorted_by_key(|record| record.sequence));
    let last = records.last().unwrap();
    assert_eq!((last.sequence, last.level, last.text.as_str()), (21, BlackBoxLevel::Error, "last words"));
    assert!(
        records[0].text.starts_with("record 5 ä") && records[0].text.len() <= BlackBoxRecord::TEXT_BYTES_MAX
    );
}

#[test]
fn a_scan_names_those_who_have_beaten_and_nobody_else() {
    let (_dir, path, primary) = pool();
    let heart =
        |member| Pool::attach(PoolSource::path(&path), Member(member)).unwrap().heartbeat_writer().unwrap();
    let (mut first, mut third) = (heart(1), heart(3));
    first.beat();
    let mut scan = primary.heartbeat_scan([1, 2, 3, 200].map(Member));
    let look = |scan: &mut HeartbeatScan| {
        let mut beaten = Vec::new();
        scan.beaten(|member, status| beaten.push((member.0, status.count)));
        beaten
    };
    assert_eq!(look(&mut scan), [], "what was before");
    third.beat();
    third.beat();
    assert_eq!(look(&mut scan), [(3, 2)]);
    first.beat();
    assert_eq!(look(&mut scan), [(1, 2)]);
    assert_eq!(look(&mut scan), []);
}

#[test]
fn nonsense_of_an_earlier_boot_does_not_silence_a_black_box() {
    let (_dir, path, primary) = pool();
    let member = Pool::attach(PoolSource::path(&path), Member(2)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // Slot 15 of 16 with the greatest number there can be, which is its own.
    let slot = primary.layout.black_box(Member(2)) + 14 * 256;
    file.write_all_at(&(u64::MAX - 1).to_le_bytes(), slot as u64).unwrap();
    assert_eq!(primary.black_box(Member(2)).len(), 1, "it is believed");
    let mut black_box = member.black_box_writer().unwrap();
    for _ in 0..3 {
        black_box.record(BlackBoxLevel::Error, "last words");
    }
    let records = primary.black_box(Member(2));
    assert_eq!(records.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn rows_written_by_the_primary_are_read_by_the_others() {
    let (_dir, path, primary) = pool();
    let writer = RowWriter::new(&primary).unwrap();
    let content = RowContent { in_use: true, cid: 3, incarnation: Incarnation([1; 16]), name: "web".into() };
    writer.write(Member(1), &content);
    writer.fence(Member(1), 7);
    writer.fence(Member(1), 5);
    let member = Pool::attach(PoolSource::path(&path), Member(1)).unwrap();
    let row = member.row(Member(1)).unwrap();
    assert_eq!((row.cid, row.name.as_str(), row.fenced_generation), (Cid(3), "web", 7));
    assert_eq!(member.rows().len(), 1);
    writer.write(Member(1), &RowContent::EMPTY);
    assert_eq!(member.row(Member(1)), None);
    assert_eq!(member.row(Member(200)), None);
}

#[test]
fn a_row_left_half_written_is_emptied_by_the_next_primary() {
    let (_dir, path, primary) = pool();
    let at = primary.layout.row(Member(1)) as u64;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&1u64.to_le_bytes(), at).unwrap();
    file.write_all_at(&[0xee; 64], at + 8).unwrap();
    assert_eq!(primary.row(Member(1)), None);
    RowWriter::new(&primary).unwrap();
    assert_eq!(primary.row(Member(1)), None);
    assert_eq!(
        crate::mem::Memory::load(primary.whole(), at as usize, std::sync::atomic::Ordering::Relaxed) % 2,
        0
    );
}

#[test]
fn bad_pools_are_refused_with_the_reason() {
    let (dir, path, _pool) = pool();
    let attach = || Pool::attach(PoolSource::path(&path), Member(1));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert!(reason(Pool::attach(PoolSource::path(&path), Member(4))).contains("4 members"));

    let len = file.metadata().unwrap().len();
    file.set_len(len - 4096).unwrap();
    assert!(reason(attach()).contains("truncated"));
    file.set_len(100).unwrap();
    assert!(reason(attach()).contains("not even a superblock"));
    file.set_len(0).unwrap();
    reason(attach());
    file.set_len(len).unwrap();
    assert!(reason(attach()).contains("formatted"));

    let longer = PoolSource::Path { path: path.clone(), offset: 0, len: len + 4096 };
    assert!(reason(Pool::attach(longer, Member(1))).contains("holds only"));
    let missing = PoolSource::path(dir.path().join("none"));
    assert!(matches!(Pool::attach(missing, Member(1)), Err(Error::Io { .. })));
    let fd = std::fs::File::open("/dev/null").unwrap().into();
    assert!(Pool::attach(PoolSource::Fd { fd, offset: 0, len: 1 << 20 }, Member(1)).is_err());
}

#[test]
fn pool_that_is_part_of_a_file_is_found_at_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let len = Layout::of(small()).unwrap().pool_len;
    let (offset, at) = (8192, |offset, len| PoolSource::Path { path: path.clone(), offset, len });
    // What was there before is nobody's business.
    file.write_all_at(&vec![0xa5; usize::try_from(offset + len).unwrap()], 0).unwrap();
    let primary = Pool::format(at(offset, len), small()).unwrap();
    assert_eq!((primary.len_bytes(), primary.rows()), (len, vec![]));
    primary.heartbeat_writer().unwrap().beat();
    let other = Pool::attach(at(offset, len), Member(1)).unwrap();
    assert_eq!((other.id(), other.heartbeat(Member::PRIMARY).count), (primary.id(), 1));
    let rest = Pool::attach(at(offset, 0), Member(1)).unwrap();
    assert_eq!(rest.len_bytes(), len, "a file tells what there is from there on");
    let mut before = vec![0; usize::try_from(offset).unwrap()];
    file.read_exact_at(&mut before, 0).unwrap();
    assert!(before.iter().all(|byte| *byte == 0xa5), "nothing else is written");
    assert!(reason(Pool::attach(at(0, len), Member(1))).contains("formatted"));
    assert!(reason(Pool::attach(at(offset + 1, len), Member(1))).contains("whole"));
    assert!(reason(Pool::attach(at(offset + 4096, len), Member(1))).contains("holds only"));
    assert!(reason(Pool::attach(at(u64::MAX - 4095, len), Member(1))).contains("whole"));
}

#[test]
fn memory_that_cannot_hold_the_pool_is_not_formatted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let file = std::fs::File::create(&path).unwrap();
    let len = Layout::of(small()).unwrap().pool_len;
    file.set_len(len).unwrap();
    let format = |path: &std::path::Path, offset, len| {
        reason(Pool::format(PoolSource::Path { path: path.to_owned(), offset, len }, small()))
    };
    assert!(format(&path, 0, len - 4096).contains("ask for fewer"));
    assert!(format(&path, 4096, len).contains("holds only"));
    assert!(format(std::path::Path::new("/dev/null"), 0, len).contains("mmap"));
    assert!(matches!(
        Pool::format(PoolSource::path(dir.path().join("none")), small()),
        Err(Error::Io { .. })
    ));
}

#[test]
fn another_version_and_every_corrupted_byte_are_refused() {
    let (_dir, path, _pool) = pool();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for index in 0..layout::superblock::LEN as u64 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, index).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], index).unwrap();
        let reason = reason(Pool::attach(PoolSource::path(&path), Member(1)));
        if (8..12).contains(&index) {
            assert!(reason.contains("version"), "{reason}");
        }
        file.write_all_at(&byte, index).unwrap();
    }
    Pool::attach(PoolSource::path(&path), Member(1)).unwrap();
}

#[test]
fn reading_an_extent_of_random_bytes_only_yields_nonsense() {
    let (_dir, path, primary) = pool();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut noise = vec![0u8; 1 << 20];
    getrandom::fill(&mut noise).unwrap();
    file.write_all_at(&noise, primary.layout.extent(Member(2)) as u64).unwrap();
    file.write_all_at(&noise[..4096], primary.layout.rows_offset as u64).unwrap();
    let _ = primary.heartbeat(Member(2));
    let _ = primary.black_box(Member(2));
    assert_eq!(primary.rows(), []);
    assert_eq!(primary.heartbeat(Member(77)), Heartbeat::default());
}

#[test]
fn a_new_pool_replaces_the_file_and_not_its_content() {
    let (_dir, path, first) = pool();
    let second = Pool::create(&path, small()).unwrap();
    assert_ne!(first.id(), second.id());
    second.heartbeat_writer().unwrap().beat();
    assert_eq!(first.heartbeat(Member::PRIMARY).count, 0);
    assert!(Pool::create(&path, Geometry { members_max: 1, ..small() }).is_err());
    assert!(matches!(Pool::create(&path.join("x"), small()), Err(Error::Io { .. })));
}
