//! What was made to be shared: noted for the next daemon before any kernel is told of it.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::keeper::{remove_all, write_atomically};
use crate::spawner::multikernel::settings::SharedPool;

/// Its name in the state folder.
const NAME: &str = "shared-memory.json";

/// Memory that was made, or found, for host and kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    /// In which boot of the host: another has nothing of it.
    pub(super) boot_id: String,
    pub(super) bytes: u64,
    pub(super) what: What,
    /// How kernels reach it.
    pub(super) inside: SharedPool,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    /// A buffer of the heap `device`.
    Heap { device: PathBuf, phys: Option<u64>, holder: Holder },
    /// Physical memory that an operator named, on the device `device`.
    Mem { device: PathBuf, phys: u64 },
    /// A file on a DAXFS.
    Daxfs { file: PathBuf },
}

/// The process that keeps a buffer from being freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(super) pid: i32,
    /// When it started, in clock ticks since boot: numbers of processes are used again.
    pub(super) start_ticks: u64,
}

impl Made {
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        write_atomically(&Self::path(dir), &serde_json::to_vec_pretty(self)?)
    }

    /// Where it is noted.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join(NAME)
    }

    /// What is noted in the state folder, if anything is.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(Self::path(dir)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn remove(dir: &Path) -> io::Result<()> {
        remove_all(&[Self::path(dir)])
    }

    /// The process that holds it, where one does.
    pub(crate) fn held_by(&self) -> Option<u32> {
        match &self.what {
            What::Heap { holder, .. } => u32::try_from(holder.pid).ok(),
            What::Mem { .. } | What::Daxfs { .. } => None,
        }
    }

    /// The word for what it is, and its physical address where that is known.
    pub(crate) fn kind(&self) -> (&'static str, Option<u64>) {
        match &self.what {
            What::Heap { phys, .. } => ("heap", *phys),
            What::Mem { phys, .. } => ("mem", Some(*phys)),
            What::Daxfs { .. } => ("daxfs", None),
        }
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}
