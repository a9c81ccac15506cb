//! Memory of a machine: what it boots with for good, and a virtio-mem device for what can leave and come.
//!
//! The device has room for the most the kernel may be given; its `requested-size` says how much of that the kernel is to use, and its
//! driver plugs and unplugs blocks of 2 MiB until `size` is that. QEMU knows `size` exactly, so nothing has to be counted here.
//! A block that is in use is moved elsewhere if the kernel can; if not, `size` stays above what is requested
//! (Hildenbrand and Schulz, *virtio-mem: paravirtualized memory hot(un)plug*, VEE 2021).

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::qmp::{QmpError, Session, session};
use super::{MONITOR, MONITOR_MAX};
use crate::keeper::MemoryState;
use crate::spawner::units::MEMORY_IS_FIXED;
use crate::spawner::{KernelSpec, MemoryWanted};

/// What the kernel's driver plugs and unplugs, in bytes.
const BLOCK_BYTES: u64 = 2 << 20;
/// The kernel adds memory in such sections (x86-64): of a device with less than one it could use nothing.
const SECTION_BYTES: u64 = 128 << 20;
/// Room for the device's alignment in the machine's address space, in bytes.
const SLACK_BYTES: u64 = 1 << 30;
/// The device's name.
const DEVICE: &str = "vmem0";
/// What tells how large everything is.
const LOOK: [&str; 2] = ["query-memory-devices", "query-memory-size-summary"];
/// Between two looks at how far a change is.
const LOOK_AGAIN: Duration = Duration::from_millis(4);
/// How long a change may take to be taken back.
const TAKE_BACK_MAX: Duration = Duration::from_secs(2);

/// The modules that a kernel with such a device needs.
pub(super) const MODULES: [&str; 2] = ["virtio_pci", "virtio_mem"];
/// What it is told: that memory that came is to be able to leave again; that the 64 MiB which it sets aside for devices that cannot
/// address memory behind 4 GiB, where the device is, are to be 2; and that it need not fill with zeros what it allocates for itself, the blocks that
/// leave among them. What leaves is given back to this host, and comes out of it as zeros; a program's pages are zeroed all the same.
pub(super) const KERNEL_ARGUMENTS: [&str; 3] =
    ["memhp_default_state=online_movable", "swiotlb=1024", "init_on_alloc=0"];

/// How a machine's memory is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// What it boots with and always has, in bytes.
    pub(super) base_bytes: u64,
    /// What the device has room for, in bytes; 0: there is none.
    device_bytes: u64,
    /// What of that the kernel is to use at first, in bytes.
    requested_bytes: u64,
}

impl Layout {
    /// Of a kernel that needs at least `least_bytes` to boot.
    pub(super) fn new(spec: &KernelSpec, least_bytes: u64) -> Self {
        let all = spec.memory_bytes;
        let base = spec.memory_min_bytes.max(least_bytes).next_multiple_of(BLOCK_BYTES).min(all);
        let device = spec.memory_max_bytes.max(all).saturating_sub(base).next_multiple_of(SECTION_BYTES);
        let requested_bytes = (all - base) / BLOCK_BYTES * BLOCK_BYTES;
        // What is no whole block is there for good.
        Self { base_bytes: all - requested_bytes, device_bytes: device, requested_bytes }
    }

    /// Whether there is a device.
    pub(super) fn can_change(&self) -> bool {
        self.device_bytes > 0
    }

    /// The options that make it. `is_shared`: a program beside the machine's own maps its memory too.
    pub(super) fn options(&self, is_shared: bool) -> Vec<(&'static str, String)> {
        // Memory of the machine's own comes to it in large pages where this host has them (MADV_HUGEPAGE, by QEMU itself); that of a
        // memfd page by page.
        let backend = if is_shared { "memory-backend-memfd,share=on" } else { "memory-backend-ram" };
        let Self { base_bytes, device_bytes, requested_bytes } = self;
        let base = format!("{backend},id=mem0,size={base_bytes}");
        if !self.can_change() {
            return vec![("-m", format!("{base_bytes}B")), ("-object", base)];
        }
        let most = base_bytes + device_bytes + SLACK_BYTES;
        vec![
            ("-m", format!("size={base_bytes}B,slots=1,maxmem={most}B")),
            ("-object", base),
            ("-object", format!("{backend},id=vmem,size={device_bytes}")),
            ("-device", format!("virtio-mem-pci,id={DEVICE},memdev=vmem,requested-size={requested_bytes}")),
        ]
    }
}

/// How much memory the machine of `runtime_dir` has; `None` if that cannot be changed.
pub(in crate::spawner) async fn state(runtime_dir: &Path) -> Result<Option<MemoryState>, String> {
    let looked = session(runtime_dir, MONITOR, MONITOR_MAX, |mut session| async move {
        Ok(look(&mut session).await?.map(Seen::state))
    });
    looked.await.map_err(|error| error.to_string())
}

/// Makes it what is wanted within `deadline`, and says what it is then; or takes the change back and says why. The outer error: what came of it
/// is not known.
pub(in crate::spawner) async fn set(
    runtime_dir: &Path,
    wanted: MemoryWanted,
    deadline: Duration,
) -> Result<Result<MemoryState, String>, String> {
    let until = Instant::now() + deadline.saturating_sub(2 * TAKE_BACK_MAX).max(LOOK_AGAIN);
    let changed = session(runtime_dir, MONITOR, deadline, |mut session| async move {
        let Some(before) = look(&mut session).await? else {
            return Ok(Err(MEMORY_IS_FIXED.into()));
        };
        let Some(bytes) = wanted.bytes_from(&before.state()) else { return Ok(Ok(before.state())) };
        let size = match before.device_size_for(bytes) {
            Ok(size) => size,
            Err(reason) => return Ok(Err(reason)),
        };
        let reached = match resize(&mut session, size, until).await? {
            Ok(()) => return Ok(Ok(Seen { size, requested: size, ..before }.state())),
            Err(reached) => reached,
        };
        let back = resize(&mut session, before.size, Instant::now() + TAKE_BACK_MAX).await?;
        let mib = |size: u64| (before.base + size) >> 20;
        let mut reason =
            format!("of {} MiB it came to {} and not to {}", mib(before.size), mib(reached), mib(size));
        if let Err(left) = back {
            reason.push_str(&format!("; it has {} MiB now", mib(left)));
        }
        Ok(Err(reason))
    });
    changed.await.map_err(|error| error.to_string())
}

/// What QEMU says of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    base: u64,
    size: u64,
    requested: u64,
    max: u64,
}

impl Seen {
    fn state(self) -> MemoryState {
        MemoryState {
            present_bytes: self.base + self.size,
            max_bytes: self.base + self.max,
            pending: self.size != self.requested,
            certain: true,
        }
    }

    /// How much of the device makes so much memory in all.
    fn device_size_for(self, bytes: u64) -> Result<u64, String> {
        let Some(size) = bytes.checked_sub(self.base) else {
            let (base, wanted) = (self.base >> 20, bytes >> 20);
            return Err(format!("it booted with {base} MiB for good and cannot have {wanted}"));
        };
        if size > self.max || !size.is_multiple_of(BLOCK_BYTES) {
            let max = (self.base + self.max) >> 20;
            return Err(format!("it has room for {max} MiB, in steps of 2, and cannot have {bytes} bytes"));
        }
        Ok(size)
    }
}

async fn look(session: &mut Session<UnixStream>) -> Result<Option<Seen>, QmpError> {
    let [devices, sizes] = session.run_all(LOOK.map(|command| (command, json!({})))).await?;
    Ok(parse(&devices, &sizes))
}

fn parse(devices: &Value, sizes: &Value) -> Option<Seen> {
    let is_ours = |device: &&Value| device["type"] == "virtio-mem" && device["data"]["id"] == DEVICE;
    let data = &devices.as_array()?.iter().find(is_ours)?["data"];
    let number = |value: &Value| value.as_u64();
    Some(Seen {
        base: number(&sizes["base-memory"])?,
        size: number(&data["size"])?,
        requested: number(&data["requested-size"])?,
        max: number(&data["max-size"])?,
    })
}

/// Has the kernel make the device so large, and waits until it is; else what it is when the time is over.
async fn resize(
    session: &mut Session<UnixStream>,
    size: u64,
    until: Instant,
) -> Result<Result<(), u64>, QmpError> {
    let path = format!("/machine/peripheral/{DEVICE}");
    let order = json!({ "path": path, "property": "requested-size", "value": size });
    session.run("qom-set", order).await?;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let seen = look(session).await?.map(|seen| seen.size);
        match seen {
            Some(seen) if seen == size => return Ok(Ok(())),
            Some(seen) if Instant::now() >= until => return Ok(Err(seen)),
            Some(_) => {}
            None => return Ok(Err(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seen() -> Seen {
        Seen { base: 96 * MIB, size: 32 * MIB, requested: 32 * MIB, max: 128 * MIB }
    }

    #[test]
    fn what_qemu_says_of_its_memory_is_understood() {
        let data =
            json!({ "id": "vmem0", "size": 32 * MIB, "requested-size": 64 * MIB, "max-size": 128 * MIB });
        let devices = json!([{ "type": "dimm", "data": {} }, { "type": "virtio-mem", "data": data }]);
        let found = parse(&devices, &json!({ "base-memory": 96 * MIB, "plugged-memory": 7 })).unwrap();
        assert_eq!(found, Seen { requested: 64 * MIB, ..seen() });
        let state = found.state();
        assert_eq!((state.present_bytes, state.max_bytes, state.pending), (128 * MIB, 224 * MIB, true));
        for (devices, sizes) in
            [(json!([]), json!({})), (json!(3), json!(3)), (devices, json!({ "base-memory": -1 }))]
        {
            assert_eq!(parse(&devices, &sizes), None);
        }
    }

    #[test]
    fn what_the_device_cannot_be_is_refused() {
        assert_eq!(seen().device_size_for(96 * MIB), Ok(0));
        assert_eq!(seen().device_size_for(224 * MIB), Ok(128 * MIB));
        for bytes in [94 * MIB, 226 * MIB, 97 * MIB, 0, u64::MAX] {
            assert!(seen().device_size_for(bytes).is_err(), "{bytes}");
        }
    }
}
