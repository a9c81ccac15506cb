//! One instance: what it was granted, what is loaded, and the kernel that runs.

use std::fmt;

use serde::Serialize;

use super::config::PciFunction;
use super::guest::Guest;
use super::pool::Range;

/// What `status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Never set by the newest kernel.
    Empty,
    /// Created, or its image was unloaded.
    Ready,
    /// An image is loaded and does not run: it was never booted, or halted, or panicked.
    Loaded,
    /// Its CPU was released into the image. Not: it booted.
    Active,
    /// Never set by the newest kernel.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Ready => "ready",
            Self::Loaded => "loaded",
            Self::Active => "active",
            Self::Failed => "failed",
        })
    }
}

/// What `kexec_file_load` put in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// In bytes.
    pub image_bytes: u64,
    /// In bytes, if there is one.
    pub initrd_bytes: Option<u64>,
    /// Without the NUL.
    pub cmdline: String,
}

/// Memory of an instance that lies together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// Where it is.
    pub range: Range,
    /// Its number in `/proc/iomem`: in the order they were added.
    pub number: u32,
}

/// One instance.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    /// 1 and up.
    pub id: u32,
    /// Not empty, no `/`.
    pub name: String,
    /// What `status` says.
    pub state: State,
    /// Physical ids. The first is the one it boots on.
    pub cpus: Vec<u64>,
    /// The first holds the image.
    pub regions: Vec<Region>,
    /// PCI functions.
    pub devices: Vec<PciFunction>,
    /// What it would boot.
    pub loaded: Option<Loaded>,
    /// The kernel that runs, whatever `state` says.
    pub guest: Option<Guest>,
    pub(super) regions_ever: u32,
}

impl Instance {
    pub(super) fn new(id: u32, name: String) -> Self {
        Self {
            id,
            name,
            state: State::Ready,
            cpus: Vec::new(),
            regions: Vec::new(),
            devices: Vec::new(),
            loaded: None,
            guest: None,
            regions_ever: 0,
        }
    }

    /// All its memory, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.range.size).sum()
    }

    pub(super) fn add_region(&mut self, range: Range) {
        self.regions.push(Region { range, number: self.regions_ever });
        self.regions_ever += 1;
    }
}
