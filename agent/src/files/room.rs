//! Whether a file fits, before its first byte.
//!
//! A spawned kernel's root lies in its memory, mostly without a limit of its own: a file that is too large would not fail,
//! it would starve the kernel to death. So what lies in memory must leave some of it.

use std::io;
use std::path::Path;

use crate::health::system_load;

/// Of a kernel's memory, what a file must leave to everything else, in bytes: the agent and the kernel at work.
const MEMORY_LEFT_BYTES: u64 = 6 << 20;
/// statfs(2).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// statfs(2).
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// What is left for files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Bytes.
    pub(super) available: u64,
    /// Of what.
    pub(super) place: &'static str,
}

/// What is left for files in `dir`.
pub(super) fn room_in(dir: &Path) -> io::Result<Room> {
    let fs = rustix::fs::statfs(dir)?;
    let in_memory = matches!(fs.f_type as u64, TMPFS_MAGIC | RAMFS_MAGIC);
    // A ramfs has no limit, and says so with 0 blocks in all.
    let on_device = (fs.f_blocks > 0).then(|| fs.f_bavail.saturating_mul(fs.f_bsize as u64));
    let memory = in_memory.then(|| system_load().memory.available.saturating_sub(MEMORY_LEFT_BYTES));
    Ok(least(on_device, memory))
}

fn least(on_device: Option<u64>, in_memory: Option<u64>) -> Room {
    let device = Room { available: on_device.unwrap_or(u64::MAX), place: "on its file system" };
    match in_memory {
        Some(available) if available < device.available => {
            Room { available, place: "in this kernel's memory, where its file system lies" }
        }
        _ => device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_device_and_memory_counts() {
        assert_eq!(least(Some(5), Some(9)).available, 5);
        let room = least(Some(9), Some(5));
        assert_eq!((room.available, room.place.contains("memory")), (5, true));
        assert_eq!(least(None, Some(5)).available, 5);
        assert_eq!(least(None, None).available, u64::MAX);
    }

    #[test]
    fn shared_memory_of_this_host_is_known_to_be_memory() {
        let memory = system_load().memory.available;
        assert!(room_in(Path::new("/dev/shm")).unwrap().available <= memory);
        assert!(room_in(Path::new("/no/such/dir")).is_err());
    }
}
