//! Looking at the pages of a pool that others have written.

use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;

use super::Input;
use crate::incarnation::Incarnation;
use crate::pool::layout::{self, Layout};
use crate::pool::{BlackBoxRecord, Geometry, Member, Place, Pool, RowContent, Superblock};

const GEOMETRY: Geometry = Geometry { members_max: 2, extent_bytes: 128 << 10, black_box_records: 4 };
/// The member whose extent is written over.
const OTHER: Member = Member(1);

/// Member 0 reads rows, heartbeats and a black box of any content: it gets what is within bounds, or nothing.
pub(super) fn pool(data: &[u8]) {
    let mut input = Input::new(data);
    let layout = Layout::of(GEOMETRY).expect("a valid geometry");
    let file = written(&layout, &mut input);
    let place = Place { offset: 0, len: layout.pool_len };
    let pool = Pool::map(&file, place, Member::PRIMARY, "of a fuzzer").expect("a good superblock");
    for row in pool.rows() {
        assert!(row.name.len() <= layout::row::NAME_BYTES_MAX);
    }
    let _ = (pool.heartbeat(OTHER), pool.live_generation(OTHER), pool.fenced_generation(OTHER));
    let records = pool.black_box(OTHER);
    assert!(records.len() <= GEOMETRY.black_box_records as usize);
    assert!(records.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    // Each byte that is no UTF-8 becomes a character of three.
    assert!(records.iter().all(|record| record.text.len() <= 3 * BlackBoxRecord::TEXT_BYTES_MAX));
    // Whoever boots on such an extent writes its black box on.
    let own = Pool::map(&file, place, OTHER, "of a fuzzer").expect("a good superblock");
    let mut writer = own.black_box_writer().expect("its own pages");
    for _ in 0..2 {
        writer.record(crate::pool::BlackBoxLevel::Info, "after");
    }
    let last = own.black_box(OTHER).pop().expect("what was written last");
    assert_eq!(last.text, "after");
}

/// A pool whose rows, status page and black box have been stroked over.
fn written(layout: &Layout, input: &mut Input<'_>) -> OwnedFd {
    let file = rustix::fs::memfd_create("pool", MemfdFlags::CLOEXEC).expect("a memory file");
    rustix::fs::ftruncate(&file, layout.pool_len).expect("room");
    let write = |at: usize, bytes: &[u8]| {
        assert_eq!(rustix::io::pwrite(&file, bytes, at as u64), Ok(bytes.len()));
    };
    write(0, &Superblock { pool_id: [7; 16], layout: *layout }.encode());
    let row =
        RowContent { in_use: true, cid: 3, incarnation: Incarnation(input.array()), name: "web".into() };
    write(layout.row(OTHER), &row.encode());
    let extent = layout.extent(OTHER);
    let black_box = extent + layout.black_box_offset;
    while let Some(choice) = input.next() {
        let (base, words) = match choice % 4 {
            0 => (layout.row(OTHER), layout::row::STRIDE / 8),
            1 => (extent, layout::status::LEN / 8),
            // The first words of the records of the black box, mostly.
            2 => {
                let record = input.below(GEOMETRY.black_box_records as usize);
                (black_box + record * layout::black_box::STRIDE, 3)
            }
            _ => (black_box, GEOMETRY.black_box_records as usize * layout::black_box::STRIDE / 8),
        };
        let at = base + 8 * input.below(words);
        write(at, &input.lie().to_le_bytes());
    }
    file
}
