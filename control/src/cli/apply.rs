//! `tombolo diff` and `apply`: what a fleet file says, held against what runs.

use std::fmt;
use std::ops::RangeInclusive;
use std::process::ExitCode;

use serde::Serialize;
use tombolo_handover::{Kind, Owner, Party, PciAddress, Side};

use super::args::{ApplyArgs, DiffArgs};
use super::client::Client;
use super::error::CliError;
use super::handover::{Holding, move_device};
use super::output::bytes;
use super::{Context, Outcome, up};
use crate::api::ExitKind;
use crate::api::handover::Books;
use crate::core::InstanceSpec;
use crate::core::spec::FleetSpec;

/// What to do where there is no fleet file.
const REMEDY: &str = "name a fleet file with -f";

/// Something that a fleet file wants and that is not so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
enum Change {
    /// There is no such instance.
    Create { instance: String },
    /// It does not run.
    Start { instance: String },
    /// It has another amount of memory.
    Memory { instance: String, has_bytes: u64, wanted_bytes: u64 },
    /// It has another number of CPUs.
    Cpus { instance: String, has: u64, wanted: u64 },
    /// A device is elsewhere.
    Device { device: PciAddress, from: String, to: String },
}

/// What a running instance is to have of a kind: bytes of memory, or CPUs.
struct Move {
    instance: String,
    kind: Kind,
    wanted: u64,
    grows: bool,
}

/// What the file says of devices.
struct Devices<'a> {
    fleet: &'a FleetSpec,
    books: &'a Books,
}

pub(super) async fn diff(cx: &Context, args: DiffArgs) -> Outcome {
    let fleet = up::read_fleet(args.fleet.as_deref(), REMEDY)?;
    let client = cx.client().await?;
    let (changes, version) = changes(&client, &fleet).await?;
    show(cx, &changes, version)?;
    Ok(ExitCode::from(u8::from(!changes.is_empty())))
}

pub(super) async fn apply(cx: &Context, args: ApplyArgs) -> Outcome {
    let fleet = up::read_fleet(args.fleet.as_deref(), REMEDY)?;
    let client = cx.client().await?;
    let (planned, version) = changes(&client, &fleet).await?;
    if let Some(expected) = args.how.if_version.filter(|expected| *expected != version) {
        return Err(CliError::new(
            ExitKind::Conflict,
            format!(
                "the ledger is at version {version}, not {expected}: look again with `tombolo diff`; nothing was changed"
            ),
        ));
    }
    if args.how.dry_run {
        show(cx, &planned, version)?;
        return Ok(ExitCode::SUCCESS);
    }
    leaves_others_alone(&planned, &fleet)?;
    let outcome = up::bring_up(cx, &client, &fleet, false).await?;
    // What is missing runs now, with the memory that the file gives it. Who gives goes first, so that others can get.
    let missing = changes(&client, &fleet).await?.0;
    let mut moves: Vec<Move> = missing.iter().filter_map(Change::as_move).collect();
    moves.sort_by_key(|one| one.grows);
    let how = super::args::HandoverArgs { if_version: None, ..args.how };
    for Move { instance, kind, wanted, .. } in moves {
        Holding::of(&client, &instance).await?.change_to(cx, &client, kind, wanted, &how).await?;
    }
    for change in missing {
        if let Change::Device { device, from, to } = change {
            move_device(cx, &client, device, [&from, &to], &how).await?;
        }
    }
    Ok(outcome)
}

/// Instances that the file does not name give nothing.
fn leaves_others_alone(changes: &[Change], fleet: &FleetSpec) -> Result<(), CliError> {
    let is_other = |name: &str| {
        matches!(Side::named(name), Side::Instance(_))
            && !fleet.instance.keys().any(|known| known.as_str() == name)
    };
    for change in changes {
        if let Change::Device { device, from, to } = change
            && is_other(from)
        {
            let message = format!(
                "device {device} is to go to {to} and is with {from}, which the file does not name; nothing was changed. \
                 `tombolo move --device {device} --from {from} --to pool` frees it"
            );
            return Err(CliError::new(ExitKind::Conflict, message));
        }
    }
    Ok(())
}

/// What the file wants and is not so, with the version of the ledger that was looked at.
async fn changes(client: &Client, fleet: &FleetSpec) -> Result<(Vec<Change>, u64), CliError> {
    let there = client.ask(client.fleet.list()).await?;
    let books = client.ask(client.handover.pool()).await?;
    let is_balancing = client.ask(client.balance.status()).await?.settings.is_some();
    let mut changes = Vec::new();
    for (name, spec) in &fleet.instance {
        let instance = name.to_string();
        match there.iter().find(|view| view.name == instance) {
            None => changes.push(Change::Create { instance }),
            Some(view) if !view.state.may_have_kernel() => changes.push(Change::Start { instance }),
            Some(_) => {
                changes.extend(memory_change(&books, &instance, spec.memory_mib));
                let balanced =
                    (is_balancing && spec.balance).then(|| spec.cpus_min().into()..=spec.cpus_max().into());
                changes.extend(cpu_change(&books, &instance, spec.cpus.into(), balanced));
            }
        }
    }
    changes.extend(Devices { fleet, books: &books }.changes());
    Ok((changes, books.meta.version))
}

impl Devices<'_> {
    /// What has to move for each device that the file says something of.
    fn changes(&self) -> Vec<Change> {
        let elsewhere = |(device, owner): (PciAddress, &Owner)| {
            let from = match owner.party() {
                Some(party) => self.name_of(party),
                // On its way, or in quarantine: whoever asks for it is told.
                None => Side::Pool.to_string(),
            };
            let to = self
                .wanted_by(device)
                .or_else(|| self.is_surplus(device, &from).then(|| Side::Pool.to_string()))?;
            (from != to).then_some(Change::Device { device, from, to })
        };
        self.books.devices().filter_map(elsewhere).collect()
    }

    /// The running instance that is to have it.
    fn wanted_by(&self, device: PciAddress) -> Option<String> {
        let wants =
            |spec: &InstanceSpec| spec.devices.as_ref().is_some_and(|devices| devices.contains(&device));
        let (name, _) = self.fleet.instance.iter().find(|(_, spec)| wants(spec))?;
        self.books.instance(name.as_str()).filter(|row| row.running).map(|row| row.name.clone())
    }

    /// Whether it is with an instance of the file that names its devices, and not this one.
    fn is_surplus(&self, device: PciAddress, holder: &str) -> bool {
        let spec = self.fleet.instance.iter().find(|(name, _)| name.as_str() == holder).map(|(_, spec)| spec);
        spec.and_then(|spec| spec.devices.as_ref()).is_some_and(|devices| !devices.contains(&device))
    }

    /// As `move` takes it.
    fn name_of(&self, party: Party) -> String {
        match party {
            Party::Host => Side::Host.to_string(),
            Party::Pool => Side::Pool.to_string(),
            Party::Instance(kernel) => {
                let row = self.books.instances.iter().find(|row| row.id == kernel.instance);
                row.map_or_else(|| kernel.to_string(), |row| row.name.clone())
            }
        }
    }
}

/// Whether a running instance has another amount of memory than it is to have. Nothing, where none of its memory is in the ledger.
fn memory_change(books: &Books, name: &str, wanted_mib: u64) -> Option<Change> {
    let row = books.instance(name).filter(|row| row.limits.memory.max > 0)?;
    let has_bytes = books.memory_bytes(Party::Instance(row.kernel()));
    let wanted_bytes = (wanted_mib << 20).next_multiple_of(books.meta.granule_bytes.max(1));
    (has_bytes != wanted_bytes).then(|| Change::Memory { instance: name.to_owned(), has_bytes, wanted_bytes })
}

/// The same of CPUs. Those that move by themselves within `balanced` are left to that.
fn cpu_change(
    books: &Books,
    name: &str,
    wanted: u64,
    balanced: Option<RangeInclusive<u64>>,
) -> Option<Change> {
    let row = books.instance(name).filter(|row| row.limits.cpus.max > 0)?;
    let has = books.count(Party::Instance(row.kernel()), Kind::Cpu);
    let is_as_wanted = balanced.map_or(has == wanted, |range| range.contains(&has));
    (!is_as_wanted).then(|| Change::Cpus { instance: name.to_owned(), has, wanted })
}

fn show(cx: &Context, changes: &[Change], version: u64) -> Result<(), CliError> {
    if cx.output.json {
        return cx.output.document("changes", &changes);
    }
    for change in changes {
        cx.output.line(change.to_string())?;
    }
    if changes.is_empty() {
        cx.output.note("everything is as the file says");
    }
    cx.output.note(format!(
        "(version {version} of the ledger; instances that the file does not name are left alone)"
    ));
    Ok(())
}

impl Change {
    /// The change as an amount that is to move.
    fn as_move(&self) -> Option<Move> {
        let (instance, kind, has, wanted) = match self {
            Self::Memory { instance, has_bytes, wanted_bytes } => {
                (instance, Kind::Memory, *has_bytes, *wanted_bytes)
            }
            Self::Cpus { instance, has, wanted } => (instance, Kind::Cpu, *has, *wanted),
            Self::Create { .. } | Self::Start { .. } | Self::Device { .. } => return None,
        };
        Some(Move { instance: instance.clone(), kind, wanted, grows: wanted > has })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { instance } => write!(f, "{instance}: is not there; create and start it"),
            Self::Start { instance } => write!(f, "{instance}: does not run; start it"),
            Self::Memory { instance, has_bytes, wanted_bytes } => {
                write!(f, "{instance}: memory {} -> {}", bytes(*has_bytes), bytes(*wanted_bytes))
            }
            Self::Cpus { instance, has, wanted } => write!(f, "{instance}: CPUs {has} -> {wanted}"),
            Self::Device { device, from, to } => write!(f, "device {device}: {from} -> {to}"),
        }
    }
}
