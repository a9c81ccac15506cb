//! The ledger's word against that of the machines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::qmp::Monitor;
use crate::demo::bed::{Bed, number};
use crate::demo::life::NAMES;
use crate::demo::{SpawnerKind, must};

/// How everything adds up: granules of memory, CPUs and devices together.
pub(super) struct Books {
    pub(super) all: u64,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) quarantined: usize,
}

/// How much something is, of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amounts {
    granules: u64,
    cpus: u64,
    devices: u64,
}

impl Books {
    pub(super) fn read(bed: &Bed) -> Result<Self> {
        let books = bed.json(&["pool"])?["pool"].take();
        let granule_bytes = number(&books["meta"], "granule_bytes")? as u64;
        let units = books["units"].as_array().context("the ledger lists no units")?;
        let all = Amounts::of(units.iter()).sum();
        let totals = books["meta"]["totals"].as_array().context("the ledger tells no totals")?;
        let discovered: u64 = totals.iter().filter_map(|total| total[1].as_u64()).sum();
        let mut doubled = 0;
        for name in NAMES {
            let Some(present) = present(bed, name, granule_bytes)? else { continue };
            let rows = books["instances"].as_array().context("the ledger lists no instances")?;
            let row = rows.iter().find(|row| row["name"] == name);
            let id = &row.with_context(|| format!("the ledger does not know {name}"))?["id"];
            let granted =
                Amounts::of(units.iter().filter(|unit| unit["owner"]["instance"]["instance"] == *id));
            doubled += present.beyond(granted).sum();
        }
        let quarantined = units.iter().filter(|unit| !unit["owner"]["quarantined"].is_null()).count();
        Ok(Self { all, lost: discovered.saturating_sub(all), doubled, quarantined })
    }

    pub(super) fn must_be_right(&self) -> Result<()> {
        let Self { lost, doubled, quarantined, .. } = self;
        must((*lost, *doubled, *quarantined) == (0, 0, 0), || {
            format!("{lost} units are lost, {doubled} doubled, {quarantined} in quarantine")
        })
    }
}

impl Amounts {
    fn of<'a>(units: impl Iterator<Item = &'a Value>) -> Self {
        let mut amounts = Self::default();
        for unit in units.map(|entry| &entry["unit"]) {
            amounts.granules += unit["traits"]["memory"]["granules"].as_u64().unwrap_or(0);
            amounts.cpus += u64::from(!unit["id"]["cpu"].is_null());
            amounts.devices += u64::from(!unit["id"]["device"].is_null());
        }
        amounts
    }

    fn sum(self) -> u64 {
        self.granules + self.cpus + self.devices
    }

    /// What there is more than in the other, of each kind.
    fn beyond(self, other: Self) -> Self {
        Self {
            granules: self.granules.saturating_sub(other.granules),
            cpus: self.cpus.saturating_sub(other.cpus),
            devices: self.devices.saturating_sub(other.devices),
        }
    }
}

/// What a kernel has, as its machine or its keeper tells; `None` if it does not run.
fn present(bed: &Bed, name: &str, granule_bytes: u64) -> Result<Option<Amounts>> {
    let Ok(mut keeper) = UnixStream::connect(bed.instance_dir(name).join("keeper.sock")) else {
        return Ok(None);
    };
    keeper.set_read_timeout(Some(Duration::from_secs(5)))?;
    keeper.write_all(b"{\"op\":\"status\"}\n")?;
    let mut line = String::new();
    BufReader::new(keeper).read_line(&mut line)?;
    let status: Value = serde_json::from_str(&line).context("the keeper does not speak JSON")?;
    if bed.spawner != SpawnerKind::Qemu {
        let present = status["memory"]["present_bytes"].as_u64().unwrap_or(0);
        return Ok(Some(Amounts { granules: present / granule_bytes, ..Amounts::default() }));
    }
    let mut monitor = Monitor::connect(&bed.instance_dir(name))?;
    Ok(Some(Amounts {
        granules: monitor.memory_bytes()? / granule_bytes,
        cpus: monitor.cpus_running()?,
        devices: monitor.devices()?.len() as u64,
    }))
}

impl Monitor {
    fn memory_bytes(&mut self) -> Result<u64> {
        let sizes = self.run("query-memory-size-summary", json!({}))?;
        let base = sizes["base-memory"].as_u64().context("no base-memory is told")?;
        let devices = self.run("query-memory-devices", json!({}))?;
        let plugged = devices.as_array().into_iter().flatten().filter_map(|one| one["data"]["size"].as_u64());
        Ok(base + plugged.sum::<u64>())
    }

    /// Those that do not halt with interrupts off, which is what a kernel does with one that is offline.
    fn cpus_running(&mut self) -> Result<u64> {
        let registers = self.run("human-monitor-command", json!({ "command-line": "info registers -a" }))?;
        let lines = registers.as_str().unwrap_or_default().lines().filter(|line| line.contains(" HLT="));
        let takes_interrupts = |line: &str| {
            let flags = line.split("FL=").nth(1).and_then(|rest| rest.split(' ').next());
            flags.and_then(|flags| u64::from_str_radix(flags, 16).ok()).is_none_or(|flags| flags & 0x200 != 0)
        };
        Ok(lines.filter(|line| !line.contains(" HLT=1") || takes_interrupts(line)).count() as u64)
    }

    pub(super) fn devices(&mut self) -> Result<Vec<String>> {
        let plugged = self.run("qom-list", json!({ "path": "/machine/peripheral" }))?;
        let names = plugged.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str());
        Ok(names.filter(|name| name.starts_with("slot")).map(str::to_owned).collect())
    }
}
