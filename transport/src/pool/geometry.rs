//! How a pool is cut up.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::pool::layout::Layout;

/// The index of a kernel in a pool: 0 is the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Member(pub u16);

impl Member {
    /// The primary kernel.
    pub const PRIMARY: Self = Self(0);

    /// As an index of an array.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How to cut up a new pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Kernels that may be members, the primary included: 2 to 1024. Default 16.
    pub members_max: u32,
    /// Bytes of each member's extent, a multiple of 4096. Default 32 MiB. The file is sparse: what is not used costs nothing.
    pub extent_bytes: u64,
    /// Records of 256 bytes in each black box. Default 1024.
    pub black_box_records: u32,
}

impl Geometry {
    /// The most members a pool can have: what two bytes on a doorbell line can name.
    pub const MEMBERS_MAX: u32 = 1024;
    /// The largest extent, in bytes (64 GiB): keeps every offset well inside 64 bits.
    pub const EXTENT_BYTES_MAX: u64 = 64 << 30;
    /// The largest black box, in records (16 MiB).
    pub const BLACK_BOX_RECORDS_MAX: u32 = 1 << 16;
}

impl Geometry {
    /// How long a pool of this geometry is, in bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if it is out of its limits.
    pub fn pool_bytes(self) -> Result<u64> {
        Ok(Layout::of(self)?.pool_len)
    }
}

impl Default for Geometry {
    fn default() -> Self {
        Self { members_max: 16, extent_bytes: 32 << 20, black_box_records: 1024 }
    }
}
