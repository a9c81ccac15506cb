//! [`Pool`]: a mapped pool.

use std::path::Path;

use crate::addr::Cid;
use crate::error::{Error, Result};
use crate::incarnation::Incarnation;
use crate::pool::{
    BlackBoxLevel, BlackBoxRecord, BlackBoxWriter, Geometry, Heartbeat, HeartbeatReader, HeartbeatWriter,
    Member, Phase, PoolSource,
};

/// A mapped pool, seen by one member. Clones share the mapping.
#[derive(Clone, Debug)]
pub struct Pool {
    geometry: Geometry,
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
    /// Creates and formats a pool in a new sparse file (replacing one that is there), and attaches as the primary.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a geometry out of its limits, [`Error::Io`] if the file cannot be made.
    pub fn create(path: &Path, geometry: Geometry) -> Result<Self> {
        Err(Error::io(
            format!("creating {} {geometry:?}", path.display()),
            std::io::ErrorKind::Unsupported.into(),
        ))
    }

    /// Maps a pool as `member` after checking everything its superblock says.
    ///
    /// # Errors
    /// [`Error::BadPool`] says what is wrong with it; [`Error::Io`] if it cannot be opened or mapped.
    pub fn attach(source: PoolSource, member: Member) -> Result<Self> {
        Err(Error::io(format!("attaching to {source} as {member}"), std::io::ErrorKind::Unsupported.into()))
    }

    /// How it is cut up.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What the primary says about a member; `None` if there is none of that index.
    pub fn row(&self, member: Member) -> Option<MemberRow> {
        let _ = member;
        None
    }

    /// All members.
    pub fn rows(&self) -> Vec<MemberRow> {
        (0..self.geometry.members_max as u8).filter_map(|index| self.row(Member(index))).collect()
    }

    /// Reads a member's black box, oldest record first. Works for the dead.
    pub fn black_box(&self, member: Member) -> Vec<BlackBoxRecord> {
        let _ = member;
        Vec::new()
    }

    /// One look at a member's status.
    pub fn heartbeat(&self, member: Member) -> Heartbeat {
        let _ = member;
        Heartbeat::default()
    }

    /// To look at a member's status often.
    pub fn heartbeat_reader(&self, member: Member) -> HeartbeatReader {
        HeartbeatReader::new(self.clone(), member)
    }

    /// To write our own heartbeat. Take one only.
    pub fn heartbeat_writer(&self) -> Result<HeartbeatWriter> {
        Ok(HeartbeatWriter::new(self.clone()))
    }

    /// To write our own black box. Take one only.
    pub fn black_box_writer(&self) -> Result<BlackBoxWriter> {
        Ok(BlackBoxWriter::new(self.clone()))
    }

    pub(crate) fn store_incarnation(&self, _incarnation: Incarnation) {}
    pub(crate) fn store_phase(&self, _phase: Phase) {}
    pub(crate) fn store_beat(&self, _count: u64) {}
    pub(crate) fn black_box_last_sequence(&self) -> u64 {
        0
    }
    pub(crate) fn store_black_box_record(&self, _sequence: u64, _level: BlackBoxLevel, _text: &str) {}
}
