//! [`Pool`]: a mapped pool.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::addr::Cid;
use crate::bells::BOARD_BYTES;
use crate::error::{Error, Result};
use crate::incarnation::Incarnation;
use crate::mem::{Mapping, Memory, MemoryMut, OwnSpan, PAGE, PeerSpan};
use crate::pool::layout::{Layout, row, superblock};
use crate::pool::superblock::{RowContent, Superblock};
use crate::pool::{
    BlackBoxRecord, BlackBoxWriter, Geometry, Heartbeat, HeartbeatReader, HeartbeatScan, HeartbeatWriter,
    Member, Place, PoolSource, black_box, heartbeat,
};

/// A mapped pool, seen by one member: read-only but for what the writers taken from it make writable. Clones share the
/// mapping.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) layout: Layout,
    whole: PeerSpan,
    id: [u8; 16],
    member: Member,
    name: Arc<str>,
}

/// What the primary says about a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Which.
    pub member: Member,
    /// Its CID.
    pub cid: Cid,
    /// Its name, at most 32 bytes.
    pub name: String,
    /// Which boot of it was admitted.
    pub incarnation: Incarnation,
    /// Any generation up to this one is dead.
    pub fenced_generation: u64,
}

impl Pool {
    /// Creates and formats a pool in a new sparse file of mode 0600, and attaches as the primary.
    ///
    /// A file that is there is replaced, not overwritten: whoever has it mapped keeps the old one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a geometry out of its limits, [`Error::Io`] if the file cannot be made.
    pub fn create(path: &Path, geometry: Geometry) -> Result<Self> {
        let layout = Layout::of(geometry)?;
        let pool_id = Incarnation::random()?.0;
        let attempt = || format!("creating the pool {}", path.display());
        let draft = path.with_extension(format!("draft-{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let _ = std::fs::remove_file(&draft);
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft)?;
            file.set_len(layout.pool_len)?;
            // The static part last: a pool is one only when the rest of it is there.
            for member in layout.members() {
                file.write_all_at(&RowContent::EMPTY.encode(), layout.row(member) as u64)?;
            }
            file.write_all_at(&Superblock { pool_id, layout }.encode(), 0)?;
            std::fs::rename(&draft, path)
        };
        write().map_err(|e| {
            let _ = std::fs::remove_file(&draft);
            Error::io(attempt(), e)
        })?;
        Self::attach(PoolSource::path(path), Member::PRIMARY)
    }

    /// Maps a pool as `member` after checking everything its superblock says.
    ///
    /// # Errors
    /// [`Error::BadPool`] says what is wrong with it; [`Error::Io`] if it cannot be opened or mapped.
    pub fn attach(source: PoolSource, member: Member) -> Result<Self> {
        let name = source.to_string();
        let (fd, place) = open(source)?;
        Self::map(fd.as_fd(), place, member, &name)
    }

    /// Formats memory that is there and that nobody maps yet, in place, and attaches as the primary. Each byte of the pool is written, so that
    /// whoever maps it later finds nothing of what was there before, and a file that is copied on the first write has been copied by then.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a geometry out of its limits, [`Error::BadPool`] for memory that is too short or cannot be mapped or written,
    /// [`Error::Io`] if it cannot be opened. It may hold no pool then.
    pub fn format(source: PoolSource, geometry: Geometry) -> Result<Self> {
        let layout = Layout::of(geometry)?;
        let name = source.to_string();
        let (fd, Place { offset, len }) = open(source)?;
        let bad = |reason: String| Error::BadPool { path: name.clone(), reason };
        let pool_len = layout.pool_len;
        if len != 0 && len < pool_len {
            return Err(bad(format!(
                "it has {len} bytes, and a pool of {} members of {} bytes each needs {pool_len}: ask for fewer or smaller ones",
                geometry.members_max, geometry.extent_bytes
            )));
        }
        let map_len = usize::try_from(pool_len)
            .map_err(|_| bad(format!("{pool_len} bytes do not fit this machine")))?;
        let pool_id = Incarnation::random()?.0;
        let mapping = Mapping::map(&fd, offset, map_len).map_err(|e| bad(explain(&e)))?;
        let all = mapping.make_writable(0..map_len).map_err(|e| bad(explain(&e)))?;
        all.zero(0, map_len);
        for member in layout.members() {
            all.write(layout.row(member), &RowContent::EMPTY.encode());
        }
        // It is a pool only when the rest of it is there.
        std::sync::atomic::fence(Release);
        all.write(0, &Superblock { pool_id, layout }.encode());
        drop(all);
        Self::map(&fd, Place { offset, len: pool_len }, Member::PRIMARY, &name)
    }

    /// As [`Pool::attach`], from an open descriptor that stays with the caller.
    pub(crate) fn map(fd: impl AsFd, place: Place, member: Member, name: &str) -> Result<Self> {
        let bad = |reason: String| Error::BadPool { path: name.to_owned(), reason };
        let Place { offset, len } = place;
        let len = if len == 0 { length(fd.as_fd(), name)?.saturating_sub(offset) } else { len };
        let map_len =
            usize::try_from(len).map_err(|_| bad(format!("{len} bytes do not fit this machine")))?;
        if map_len < superblock::LEN {
            return Err(bad(format!("it has {len} bytes: not even a superblock")));
        }
        let mapping = Mapping::map(fd, offset, map_len).map_err(|e| bad(explain(&e)))?;
        let whole = mapping.peer(0, map_len).map_err(|e| bad(e.to_string()))?;
        let mut head = [0; superblock::LEN];
        whole.read(0, &mut head);
        let Superblock { pool_id, layout } = Superblock::decode(&head, len).map_err(bad)?;
        if !layout.has(member) {
            return Err(bad(format!(
                "it has {} members, so none of index {member}",
                layout.geometry.members_max
            )));
        }
        Ok(Self { mapping, layout, whole, id: pool_id, member, name: name.into() })
    }

    /// Where a member that there is counts bells.
    pub(crate) fn board(&self, member: Member) -> PeerSpan {
        let board = self.whole.sub(self.layout.board(member), BOARD_BYTES);
        board.expect("a board of the layout lies inside the pool")
    }

    /// Where our kernel counts bells.
    pub(crate) fn own_board(&self) -> Result<OwnSpan> {
        self.writable(self.layout.board(self.member), BOARD_BYTES)
    }

    /// How it is cut up.
    pub fn geometry(&self) -> Geometry {
        self.layout.geometry
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.layout.pool_len
    }

    /// What tells it from every other pool.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// As which member it was attached.
    pub fn member(&self) -> Member {
        self.member
    }

    /// What the primary says about a member; `None` if there is none of that index, or its row makes no sense.
    pub fn row(&self, member: Member) -> Option<MemberRow> {
        if !self.layout.has(member) {
            return None;
        }
        let at = self.layout.row(member);
        // A writer in the midst of a row is done within microseconds, or dead.
        const ATTEMPTS: usize = 1000;
        for _ in 0..ATTEMPTS {
            let before = self.whole.load(at + row::SEQUENCE, Acquire);
            if before % 2 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let mut bytes = [0; row::STRIDE];
            self.whole.read(at, &mut bytes);
            std::sync::atomic::fence(Acquire);
            if self.whole.load(at + row::SEQUENCE, Relaxed) != before {
                continue;
            }
            let content = RowContent::decode(&bytes).filter(|content| content.in_use)?;
            return Some(MemberRow {
                member,
                cid: Cid(content.cid),
                name: content.name,
                incarnation: content.incarnation,
                fenced_generation: self.fenced_generation(member),
            });
        }
        None
    }

    /// All members there are.
    pub fn rows(&self) -> Vec<MemberRow> {
        self.layout.members().filter_map(|member| self.row(member)).collect()
    }

    /// Reads a member's black box, oldest record first. Works for the dead; empty if there is no such member.
    pub fn black_box(&self, member: Member) -> Vec<BlackBoxRecord> {
        if !self.layout.has(member) {
            return Vec::new();
        }
        black_box::read(&self.whole, self.layout.black_box(member), self.layout.geometry.black_box_records)
    }

    /// One look at a member's status; all zero if there is no such member.
    pub fn heartbeat(&self, member: Member) -> Heartbeat {
        if !self.layout.has(member) {
            return Heartbeat::default();
        }
        heartbeat::read(&self.whole, self.layout.extent(member))
    }

    /// To look at a member's status often.
    pub fn heartbeat_reader(&self, member: Member) -> HeartbeatReader {
        HeartbeatReader::new(self.clone(), member)
    }

    /// To look at the heartbeats of many members often; those that there are not are left out.
    pub fn heartbeat_scan(&self, members: impl IntoIterator<Item = Member>) -> HeartbeatScan {
        HeartbeatScan::new(self.clone(), members)
    }

    /// To write our own heartbeat. Take one only.
    ///
    /// # Errors
    /// [`Error::BadPool`] if the pool was opened without the right to write.
    pub fn heartbeat_writer(&self) -> Result<HeartbeatWriter> {
        let start = self.layout.extent(self.member);
        Ok(HeartbeatWriter::new(self.writable(start, crate::mem::PAGE)?))
    }

    /// To write our own black box, continuing what is there. Take one only.
    ///
    /// # Errors
    /// [`Error::BadPool`] if the pool was opened without the right to write.
    pub fn black_box_writer(&self) -> Result<BlackBoxWriter> {
        let start = self.layout.black_box(self.member);
        let len = self.layout.control_offset - self.layout.black_box_offset;
        let last = self.black_box(self.member).last().map_or(0, |record| record.sequence);
        Ok(BlackBoxWriter::new(self.writable(start, len)?, self.layout.geometry.black_box_records, last))
    }

    /// The generation a member publishes, if it can be believed and is not fenced; else 0.
    pub(crate) fn live_generation(&self, member: Member) -> u64 {
        use crate::pool::layout::{GENERATION_LEAD_MAX, status};
        let generation = self.whole.load(self.layout.extent(member) + status::GENERATION, Acquire);
        let fenced = self.fenced_generation(member);
        if generation > fenced && generation - fenced <= GENERATION_LEAD_MAX { generation } else { 0 }
    }

    pub(crate) fn fenced_generation(&self, member: Member) -> u64 {
        self.whole.load(self.layout.row(member) + row::FENCED_GENERATION, Acquire)
    }

    /// Changes whenever the row does.
    pub(crate) fn row_sequence(&self, member: Member) -> u64 {
        self.whole.load(self.layout.row(member) + row::SEQUENCE, Acquire)
    }

    /// The whole pool, to be read.
    pub(crate) fn whole(&self) -> &PeerSpan {
        &self.whole
    }

    /// The pages that these bytes lie on become writable.
    pub(crate) fn writable(&self, start: usize, len: usize) -> Result<OwnSpan> {
        let bad =
            |e: &dyn std::error::Error| Error::BadPool { path: self.name.to_string(), reason: explain(e) };
        let (before, end) = (start % PAGE, start.saturating_add(len));
        let pages = start - before..end.checked_next_multiple_of(PAGE).unwrap_or(end);
        let span = self.mapping.make_writable(pages).map_err(|e| bad(&e))?;
        span.sub(before, len).map_err(|e| bad(&e))
    }
}

/// Writes rows: the primary's broker only.
#[derive(Debug)]
pub(crate) struct RowWriter {
    span: OwnSpan,
    layout: Layout,
}

impl RowWriter {
    pub(crate) fn new(pool: &Pool) -> Result<Self> {
        let start = pool.layout.rows_offset;
        let span = pool.writable(start, pool.layout.extents_offset - start)?;
        let writer = Self { span, layout: pool.layout };
        writer.mend();
        Ok(writer)
    }

    /// Empties rows that a former primary left half written.
    fn mend(&self) {
        for member in self.layout.members() {
            let mut bytes = [0; row::STRIDE];
            self.span.read(self.at(member), &mut bytes);
            let sequence = self.span.load(self.at(member) + row::SEQUENCE, Relaxed);
            if sequence % 2 == 1 || RowContent::decode(&bytes).is_none() {
                self.write(member, &RowContent::EMPTY);
            }
        }
    }

    pub(crate) fn write(&self, member: Member, content: &RowContent) {
        let at = self.at(member);
        let bytes = content.encode();
        let sequence = self.span.load(at + row::SEQUENCE, Relaxed) | 1;
        self.span.store(at + row::SEQUENCE, sequence, Relaxed);
        std::sync::atomic::fence(Release);
        let (before, after) = (row::CID_AND_STATE..row::FENCED_GENERATION, row::NAME_LEN..row::STRIDE);
        self.span.write(at + before.start, &bytes[before]);
        self.span.write(at + after.start, &bytes[after]);
        self.span.store(at + row::SEQUENCE, sequence.wrapping_add(1), Release);
    }

    /// Raises the fence of `member` to `generation`; it never falls.
    pub(crate) fn fence(&self, member: Member, generation: u64) {
        let at = self.at(member) + row::FENCED_GENERATION;
        if generation > self.span.load(at, Relaxed) {
            self.span.store(at, generation, Release);
        }
    }

    fn at(&self, member: Member) -> usize {
        self.layout.row(member) - self.layout.rows_offset
    }
}

pub(crate) fn open(source: PoolSource) -> Result<(OwnedFd, Place)> {
    match source {
        PoolSource::Fd { fd, offset, len } => Ok((fd, Place { offset, len })),
        PoolSource::Path { path, offset, len } => {
            let file: File = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|e| Error::io(format!("opening the pool {}", path.display()), e))?;
            Ok((file.into(), Place { offset, len }))
        }
    }
}

fn length(fd: impl AsFd, name: &str) -> Result<u64> {
    let stat =
        rustix::fs::fstat(fd).map_err(|e| Error::io(format!("asking the length of {name}"), e.into()))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

fn explain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
