//! `tombolo move`, `resize`, `drain`, `op`: moving memory, CPUs and devices between running kernels.

use std::process::ExitCode;

use tombolo_handover::request::Shortfall;
use tombolo_handover::{InstanceRow, Kind, OpId, Party, PciAddress, Phase, Request, Side, UnitId, What};

use super::args::{DrainArgs, HandoverArgs, MoveArgs, MovedArgs, OpCommand, ResizeArgs, SizeChange};
use super::client::Client;
use super::error::CliError;
use super::operation::{counted, ended, list, planned, show, told, watch};
use super::output::bytes;
use super::{Context, Outcome};
use crate::api::ExitKind;
use crate::api::handover::Books;
use crate::core::InstanceName;

pub(super) async fn move_units(cx: &Context, args: MoveArgs) -> Outcome {
    let (from, to) = (side(&args.from)?, side(&args.to)?);
    let client = cx.client().await?;
    let MovedArgs { memory, cpus, device } = args.what;
    let what = match (memory, cpus, device) {
        (Some(bytes), _, _) => What::MemoryBytes(bytes),
        (_, Some(count), _) => What::CpuCount(count),
        (_, _, Some(address)) => What::Device(address),
        (None, None, None) => {
            return Err(CliError::usage("say what is to move: --memory, --cpus or --device"));
        }
    };
    let request = Request { allow_no_reset: args.allow_no_reset, ..request(from, to, what, &args.how) };
    hand_over(cx, &client, request, &args.how).await
}

/// Moves a device between two holders by name.
pub(super) async fn move_device(
    cx: &Context,
    client: &Client,
    device: PciAddress,
    [from, to]: [&str; 2],
    how: &HandoverArgs,
) -> Outcome {
    let request = request(side(from)?, side(to)?, What::Device(device), how);
    hand_over(cx, client, request, how).await
}

pub(super) async fn resize(cx: &Context, args: ResizeArgs) -> Outcome {
    let client = cx.client().await?;
    let ResizeArgs { name, memory, cpus, mut how } = args;
    for (kind, change) in [(Kind::Memory, memory), (Kind::Cpu, cpus)] {
        let Some(change) = change else { continue };
        let holding = Holding::of(&client, name.as_str()).await?;
        let has = holding.has(kind);
        let wanted = match change {
            SizeChange::To(wanted) => Some(wanted),
            SizeChange::More(more) => has.checked_add(more),
            SizeChange::Less(less) => has.checked_sub(less),
        };
        let wanted = wanted.ok_or_else(|| {
            let has = holding.amount(kind, has);
            CliError::usage(format!("{name} has {has}; so much less, or more, makes no sense"))
        })?;
        holding.change_to(cx, &client, kind, wanted, &how).await?;
        // It is what was looked at before the first change.
        how.if_version = None;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn drain(cx: &Context, args: DrainArgs) -> Outcome {
    let client = cx.client().await?;
    let mut how = args.how;
    let name = args.name.as_str();
    for device in Holding::of(&client, name).await?.devices() {
        let itself = Side::Instance(name.to_owned());
        let request = request(itself, Side::Pool, What::Device(device), &how);
        hand_over(cx, &client, request, &how).await?;
        how.if_version = None;
    }
    for kind in [Kind::Memory, Kind::Cpu] {
        let holding = Holding::of(&client, name).await?;
        let least = holding.min(kind).min(holding.has(kind));
        holding.change_to(cx, &client, kind, least, &how).await?;
        how.if_version = None;
    }
    Ok(ExitCode::SUCCESS)
}

/// What an instance has now.
pub(super) struct Holding {
    name: String,
    row: InstanceRow,
    books: Books,
}

impl Holding {
    pub(super) async fn of(client: &Client, name: &str) -> Result<Self, CliError> {
        let books = client.ask(client.handover.pool()).await?;
        let Some(row) = books.instance(name).cloned() else {
            let message = format!("no instance named `{name}` has ever been started");
            return Err(CliError::new(ExitKind::NotFound, message));
        };
        Ok(Self { name: name.to_owned(), row, books })
    }

    /// How much of a kind it has: bytes of memory, or CPUs.
    fn has(&self, kind: Kind) -> u64 {
        self.held_by(Party::Instance(self.row.kernel()), kind)
    }

    /// The least of it that it is left with.
    fn min(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Memory => self.books.bytes(self.row.limits.memory.min),
            kind => self.row.limits.of(kind).min,
        }
    }

    fn devices(&self) -> Vec<PciAddress> {
        let its = self.books.units_of(Party::Instance(self.row.kernel()));
        its.filter_map(|entry| match entry.unit.id {
            UnitId::Device(address) => Some(address),
            _ => None,
        })
        .collect()
    }

    fn held_by(&self, party: Party, kind: Kind) -> u64 {
        match kind {
            Kind::Memory => self.books.memory_bytes(party),
            kind => self.books.count(party, kind),
        }
    }

    fn amount(&self, kind: Kind, amount: u64) -> String {
        match kind {
            Kind::Memory => bytes(amount),
            kind => counted(kind, amount),
        }
    }

    /// Gives it what it lacks, or takes what it has too much. Between the look and the request nothing may have moved.
    pub(super) async fn change_to(
        &self,
        cx: &Context,
        client: &Client,
        kind: Kind,
        wanted: u64,
        how: &HandoverArgs,
    ) -> Outcome {
        let itself = Side::Instance(self.name.clone());
        let has = self.has(kind);
        let (from, to, amount) = match wanted.checked_sub(has) {
            Some(0) => {
                match cx.output.json {
                    true => cx.output.document("operation", &serde_json::Value::Null)?,
                    false => {
                        cx.output.note(format!("{} has {} already", self.name, self.amount(kind, has)));
                    }
                }
                return Ok(ExitCode::SUCCESS);
            }
            // What is free, if it is enough; else the host gives, of memory.
            Some(more) if kind != Kind::Memory || self.held_by(Party::Pool, kind) >= more => {
                (Side::Pool, itself, more)
            }
            Some(more) => (Side::Host, itself, more),
            None => (itself, Side::Pool, has - wanted),
        };
        let what = match kind {
            Kind::Memory => What::MemoryBytes(amount),
            _ => What::CpuCount(u32::try_from(amount).unwrap_or(u32::MAX)),
        };
        let version = how.if_version.unwrap_or(self.books.meta.version);
        let request = Request { if_version: Some(version), ..request(from, to, what, how) };
        hand_over(cx, client, request, how).await
    }
}

pub(super) async fn op(cx: &Context, command: OpCommand) -> Outcome {
    let client = cx.client().await?;
    match command {
        OpCommand::Ls => list(cx, &client).await,
        OpCommand::Show { id } => {
            let operation = client.ask(client.handover.operation(OpId(id))).await?;
            show(cx, &client, &operation).await
        }
        OpCommand::Watch { id } => {
            let operation = watch(cx, &client, OpId(id), cx.output.json).await?;
            ended(cx, &client, &operation).await
        }
        OpCommand::Cancel { id } => {
            client.ask(client.handover.cancel(OpId(id))).await?;
            let operation = watch(cx, &client, OpId(id), false).await?;
            match operation.phase {
                Phase::Aborted => {
                    told(cx, &operation, &format!("operation {id} is called off; nothing was moved"))
                }
                _ => ended(cx, &client, &operation).await,
            }
        }
        OpCommand::Repair { unit, owner } => {
            let unit: UnitId = unit.parse().map_err(|error| CliError::usage(format!("{error}")))?;
            let owner = match owner {
                Some(owner) => {
                    let owner = side(&owner)?;
                    client.ask(client.handover.repair(unit, owner.clone())).await?;
                    owner
                }
                None => client.ask(client.handover.search(unit)).await?,
            };
            cx.output.note(format!("{unit} is with {owner}"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn request(from: Side, to: Side, what: What, how: &HandoverArgs) -> Request {
    let key = how.key.clone().unwrap_or_else(fresh_key);
    Request {
        if_version: how.if_version,
        shortfall: if how.partial { Shortfall::MoveTheRest } else { Shortfall::Abort },
        hooks: !how.no_hooks,
        ..Request::new(key, from, to, what)
    }
}

/// A key that nobody else has.
fn fresh_key() -> String {
    let mut bits = [0; 16];
    // Without a random source: the time, which nobody else has to the nanosecond.
    if getrandom::fill(&mut bits).is_err() {
        bits = u128::from(crate::time::unix_ns()).to_be_bytes();
    }
    format!("cli-{:032x}", u128::from_be_bytes(bits))
}

/// `host`, `pool`, or an instance.
fn side(name: &str) -> Result<Side, CliError> {
    let side = Side::named(name);
    if let Side::Instance(name) = &side {
        name.parse::<InstanceName>().map_err(|error| CliError::usage(error.to_string()))?;
    }
    Ok(side)
}

async fn hand_over(cx: &Context, client: &Client, request: Request, how: &HandoverArgs) -> Outcome {
    if how.dry_run {
        let plan = client.ask(client.handover.plan(request.clone())).await?;
        return planned(cx, client, &request, &plan).await;
    }
    let operation = client.ask(client.handover.submit(request)).await?;
    if how.no_wait {
        return told(cx, &operation, &format!("operation {} is accepted", operation.id.0));
    }
    let operation = watch(cx, client, operation.id, false).await?;
    ended(cx, client, &operation).await
}
