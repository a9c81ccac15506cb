//! What a move costs without anybody being asked, journalled or believed: the raw steps, on `db` alone.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Kind;
use super::qmp::Monitor;
use crate::demo::SpawnerKind;
use crate::demo::bed::{Bed, number};

/// How long a step may take.
const STEP_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Where a kernel shows that a driver has the disk.
const DRIVER: &str = "/sys/bus/pci/devices/0000:01:00.0/driver";

/// Takes something from db and gives it back; how long that took.
pub(super) fn out_and_in(bed: &Bed, kind: Kind) -> Result<Duration> {
    let dir = bed.instance_dir("db");
    match kind {
        Kind::Memory { mib } if bed.spawner == SpawnerKind::Uml => {
            let console = dir.join("uml/k/mconsole");
            let started = Instant::now();
            mconsole(&console, &format!("config mem=-{mib}M"))?;
            mconsole(&console, &format!("config mem=+{mib}M"))?;
            Ok(started.elapsed())
        }
        Kind::Memory { mib } => {
            let mut monitor = Monitor::connect(&dir)?;
            let before = monitor.memory()?["size"].as_u64().context("no size is told")?;
            let started = Instant::now();
            for size in [before.checked_sub(mib << 20).context("db has less than that")?, before] {
                monitor.set_memory(size)?;
            }
            Ok(started.elapsed())
        }
        // Within the kernel, where it is measured, too: starting the program that does it is no part of it.
        Kind::Cpu => {
            let said = bed.app("db", &["switch-cpu", "1"])?;
            Ok(Duration::from_secs_f64(number(&said, "ms")? / 1e3))
        }
        Kind::Device => {
            let mut monitor = Monitor::connect(&dir)?;
            let started = Instant::now();
            monitor.run("device_del", json!({ "id": "slot1" }))?;
            until("the disk to be gone", || Ok(monitor.devices()?.is_empty()))?;
            let disk = json!({ "driver": "nvme", "id": "slot1", "bus": "port1", "drive": "tombolo-1", "serial": "tombolo-1" });
            // It lets go of what is behind it a moment after it is gone.
            let behind = json!({ "node-name": "tombolo-1" });
            until("the disk to be free", || Ok(monitor.run("blockdev-del", behind.clone()).is_ok()))?;
            let file = json!({ "driver": "file", "filename": bed.disk(), "locking": "off" });
            monitor
                .run("blockdev-add", json!({ "driver": "raw", "node-name": "tombolo-1", "file": file }))?;
            monitor.run("device_add", disk)?;
            bed.app("db", &["await", DRIVER])?;
            Ok(started.elapsed())
        }
    }
}

impl Monitor {
    fn memory(&mut self) -> Result<Value> {
        let devices = self.run("query-memory-devices", json!({}))?;
        Ok(devices[0]["data"].clone())
    }

    fn set_memory(&mut self, size: u64) -> Result<()> {
        let order =
            json!({ "path": "/machine/peripheral/vmem0", "property": "requested-size", "value": size });
        self.run("qom-set", order)?;
        until("the memory to change", || Ok(self.memory()?["size"] == size))
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is_so()? {
        ensure!(started.elapsed() < STEP_MAX, "waited {STEP_MAX:?} for {what}");
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Tells a user-mode kernel something through its management console, as uml_mconsole(1) does.
fn mconsole(path: &Path, command: &str) -> Result<()> {
    // An unnamed address of the system's choosing: the kernel answers there.
    let socket = UnixDatagram::bind("")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(path).with_context(|| format!("could not reach {}", path.display()))?;
    let mut request = [0xcafe_babe_u32, 2, u32::try_from(command.len())?].map(u32::to_ne_bytes).concat();
    request.extend_from_slice(command.as_bytes());
    request.resize(12 + 512, 0);
    socket.send(&request)?;
    let mut answer = [0; 12 + 512];
    let len = socket.recv(&mut answer)?;
    ensure!(len >= 12 && answer.starts_with(&[0; 4]), "the kernel refused `{command}`");
    Ok(())
}
