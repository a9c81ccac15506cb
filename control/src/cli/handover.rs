//! `tombolo pool`, `move`, `resize`, `op`: who has what, and moving it between running kernels.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use tombolo_handover::operation::{Cause, Fate, Progress};
use tombolo_handover::request::Shortfall;
use tombolo_handover::{OpId, Operation, Party, Phase, Plan, Request, Side, UnitId, What};

use super::args::{DrainArgs, HandoverArgs, MoveArgs, OpCommand, ResizeArgs, SizeChange};
use super::client::Client;
use super::error::CliError;
use super::output::{age, bytes, duration, table, text_of};
use super::{Context, Outcome};
use crate::api::ExitKind;
use crate::core::InstanceName;

pub(super) async fn pool(cx: &Context) -> Outcome {
    let client = cx.client().await?;
    let books = client.ask(client.handover.pool()).await?;
    if cx.output.json {
        cx.output.document("pool", &books)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["holder", "memory", "min", "max", "state"]);
    let limit = |granules: u64| match granules {
        u64::MAX => "-".to_owned(),
        granules => bytes(books.bytes(granules)),
    };
    let held = |party: Party| bytes(books.memory_bytes(party));
    let host = books.meta.host.memory;
    rows.add_row(["host".to_owned(), held(Party::Host), limit(host.min), limit(host.max), String::new()]);
    rows.add_row(["pool".to_owned(), held(Party::Pool), String::new(), String::new(), "free".to_owned()]);
    for row in &books.instances {
        let limits = row.limits.memory;
        let state = if row.running { "running" } else { "stopped" };
        let memory = held(Party::Instance(row.kernel()));
        rows.add_row([row.name.clone(), memory, limit(limits.min), limit(limits.max), state.to_owned()]);
    }
    cx.output.line(text_of(&rows))?;
    for entry in books.memory().filter(|entry| entry.owner.party().is_none()) {
        let size = bytes(books.bytes(entry.unit.size()));
        cx.output.line(format!("{}, {size}: {}", entry.unit.id, entry.owner))?;
    }
    let granule = bytes(books.meta.granule_bytes);
    cx.output
        .note(format!("(version {} of the ledger; memory moves in steps of {granule})", books.meta.version));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn move_units(cx: &Context, args: MoveArgs) -> Outcome {
    let (from, to) = (side(&args.from)?, side(&args.to)?);
    let client = cx.client().await?;
    hand_over(cx, &client, request(from, to, args.memory, &args.how), &args.how).await
}

pub(super) async fn resize(cx: &Context, args: ResizeArgs) -> Outcome {
    let client = cx.client().await?;
    let holding = Holding::of(&client, args.name.as_str()).await?;
    let wanted = match args.memory {
        SizeChange::To(bytes) => Some(bytes),
        SizeChange::More(more) => holding.has.checked_add(more),
        SizeChange::Less(less) => holding.has.checked_sub(less),
    };
    let wanted = wanted.ok_or_else(|| {
        let (name, has) = (&args.name, bytes(holding.has));
        CliError::usage(format!("{name} has {has}; so much less, or more, makes no sense"))
    })?;
    holding.change_to(cx, &client, wanted, &args.how).await
}

pub(super) async fn drain(cx: &Context, args: DrainArgs) -> Outcome {
    let client = cx.client().await?;
    let holding = Holding::of(&client, args.name.as_str()).await?;
    let least = holding.min.min(holding.has);
    holding.change_to(cx, &client, least, &args.how).await
}

/// What an instance has now.
pub(super) struct Holding {
    name: String,
    has: u64,
    min: u64,
    free: u64,
    version: u64,
}

impl Holding {
    pub(super) async fn of(client: &Client, name: &str) -> Result<Self, CliError> {
        let books = client.ask(client.handover.pool()).await?;
        let Some(row) = books.instance(name) else {
            let message = format!("no instance named `{name}` has ever been started");
            return Err(CliError::new(ExitKind::NotFound, message));
        };
        Ok(Self {
            name: name.to_owned(),
            has: books.memory_bytes(Party::Instance(row.kernel())),
            min: books.bytes(row.limits.memory.min),
            free: books.memory_bytes(Party::Pool),
            version: books.meta.version,
        })
    }

    /// Gives it what it lacks, or takes what it has too much. Between the look and the request nothing may have moved.
    pub(super) async fn change_to(
        &self,
        cx: &Context,
        client: &Client,
        wanted: u64,
        how: &HandoverArgs,
    ) -> Outcome {
        let itself = Side::Instance(self.name.clone());
        let (from, to, amount) = match wanted.checked_sub(self.has) {
            Some(0) => {
                match cx.output.json {
                    true => cx.output.document("operation", &serde_json::Value::Null)?,
                    false => cx.output.note(format!("{} has {} already", self.name, bytes(self.has))),
                }
                return Ok(ExitCode::SUCCESS);
            }
            // What is free, if it is enough; else the host gives.
            Some(more) if self.free >= more => (Side::Pool, itself, more),
            Some(more) => (Side::Host, itself, more),
            None => (itself, Side::Pool, self.has - wanted),
        };
        let version = how.if_version.unwrap_or(self.version);
        let request = Request { if_version: Some(version), ..request(from, to, amount, how) };
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
            client.ask(client.handover.repair(unit, side(&owner)?)).await?;
            cx.output.note(format!("{unit} is with {owner}"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn request(from: Side, to: Side, memory_bytes: u64, how: &HandoverArgs) -> Request {
    let key = how.key.clone().unwrap_or_else(fresh_key);
    Request {
        if_version: how.if_version,
        shortfall: if how.partial { Shortfall::MoveTheRest } else { Shortfall::Abort },
        hooks: !how.no_hooks,
        ..Request::new(key, from, to, What::MemoryBytes(memory_bytes))
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

async fn planned(cx: &Context, client: &Client, request: &Request, plan: &Plan) -> Outcome {
    if cx.output.json {
        cx.output.document("plan", plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    let granule_bytes = client.ask(client.handover.pool()).await?.meta.granule_bytes;
    let (from, to) = (&request.from, &request.to);
    for take in &plan.takes {
        let part = if take.cut { "part of " } else { "" };
        let size = bytes(take.size.saturating_mul(granule_bytes));
        cx.output.line(format!("{size}, {part}{}: {from} -> {to}", take.unit))?;
    }
    for note in &plan.notes {
        cx.output.note(format!("({note})"));
    }
    cx.output.note(format!("(nothing was changed; planned on version {} of the ledger)", plan.version));
    Ok(ExitCode::SUCCESS)
}

/// Follows an operation to its end, telling people how far it is, and programs if they want each item.
async fn watch(cx: &Context, client: &Client, id: OpId, items: bool) -> Result<Operation, CliError> {
    let (call, mut states) = client.handover.watch(id);
    let call = call.deadline(client.timeout());
    let (mut phase, mut settled) = (None, 0);
    while let Ok(Some(operation)) = states.recv().await {
        if items && !operation.phase.is_terminal() {
            cx.output.item(&serde_json::json!({ "type": "progress", "operation": operation }))?;
        } else if !cx.output.json {
            tell_progress(cx, &operation, &mut phase, &mut settled);
        }
    }
    let goes_on = |error: CliError| match error.kind() {
        ExitKind::Failed | ExitKind::Unknown | ExitKind::Unreachable => {
            let id = id.0;
            CliError::new(ExitKind::Unknown, error.message().to_owned())
                .and(format!("operation {id} goes on: `tombolo op watch {id}` tells how it ends"))
        }
        _ => error,
    };
    call.await.map_err(|error| goes_on(error.into()))
}

fn tell_progress(cx: &Context, operation: &Operation, phase: &mut Option<Phase>, settled: &mut usize) {
    let done = operation.units.iter().filter(|unit| unit.is_settled()).count();
    if done > *settled && !operation.phase.is_terminal() {
        cx.output.note(format!("  {done} of {} pieces settled", operation.units.len()));
    }
    *settled = done;
    if *phase != Some(operation.phase) {
        *phase = Some(operation.phase);
        cx.output.note(format!("operation {}: {}", operation.id.0, operation.phase));
    }
}

/// Says how an operation ended, by words and by exit code.
async fn ended(cx: &Context, client: &Client, operation: &Operation) -> Outcome {
    let granule_bytes = client.ask(client.handover.pool()).await?.meta.granule_bytes;
    let summary = summary(operation, granule_bytes);
    let kind = match operation.phase {
        Phase::Committed => return told(cx, operation, &summary),
        Phase::Partial => ExitKind::Partial,
        Phase::Quarantined | Phase::NeedsOperator => ExitKind::Operator,
        _ => match &operation.cause {
            Some(Cause::Vetoed { .. } | Cause::UnitUnavailable { .. }) => ExitKind::Denied,
            Some(Cause::StalePlan { .. } | Cause::LimitsReached { .. }) => ExitKind::Conflict,
            _ => ExitKind::Failed,
        },
    };
    if cx.output.json {
        cx.output.document("operation", operation)?;
    }
    Err(CliError::new(kind, summary))
}

fn told(cx: &Context, operation: &Operation, summary: &str) -> Outcome {
    match cx.output.json {
        true => cx.output.document("operation", operation)?,
        false => cx.output.note(summary),
    }
    Ok(ExitCode::SUCCESS)
}

/// What became of an operation, in one line or two.
fn summary(operation: &Operation, granule_bytes: u64) -> String {
    let size = |wanted: &dyn Fn(&Progress) -> bool| {
        let granules: u64 = operation.units.iter().filter(|unit| wanted(unit)).map(|unit| unit.size).sum();
        bytes(granules.saturating_mul(granule_bytes))
    };
    let (from, to) = (&operation.request.from, &operation.request.to);
    let moved = |unit: &Progress| unit.fate() == Some(&Fate::Moved);
    let mut text = match operation.phase {
        Phase::Committed => format!("moved {} from {from} to {to} in {}", size(&moved), time(operation)),
        Phase::Aborted => format!("nothing was moved from {from} to {to}"),
        _ => format!("{} of {} moved from {from} to {to}", size(&moved), size(&|_| true)),
    };
    if let Some(cause) = &operation.cause {
        text.push_str(&format!(": {cause}"));
    }
    let mut fates: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for unit in &operation.units {
        let what = match unit.fate() {
            None | Some(Fate::Moved) => continue,
            Some(Fate::Returned) if operation.phase == Phase::Aborted => continue,
            Some(Fate::Returned) => format!("stays with {from}"),
            Some(Fate::Pooled) => "is free now".to_owned(),
            Some(Fate::Stranded) => format!("is with {to}, which does not use it"),
            Some(Fate::Quarantined(reason)) => format!("is in quarantine: {reason}"),
        };
        fates.entry(what).or_default().push(unit.unit.to_string());
    }
    for (what, units) in fates {
        text.push_str(&format!("\n  {}: {what}", units.join(", ")));
    }
    for warning in &operation.warnings {
        text.push_str(&format!("\n  warning: {warning}"));
    }
    format!("{text} (operation {})", operation.id.0)
}

fn time(operation: &Operation) -> String {
    let ns = operation.ended_ns.unwrap_or(operation.began_ns).saturating_sub(operation.began_ns);
    let time = Duration::from_nanos(ns);
    if time < Duration::from_secs(10) { format!("{:.2} s", time.as_secs_f64()) } else { duration(time) }
}

async fn list(cx: &Context, client: &Client) -> Outcome {
    let operations = client.ask(client.handover.operations()).await?;
    if cx.output.json {
        cx.output.document("operations", &operations)?;
        return Ok(ExitCode::SUCCESS);
    }
    let granule_bytes = client.ask(client.handover.pool()).await?.meta.granule_bytes;
    let mut rows = table(&["op", "phase", "from", "to", "what", "age"]);
    for operation in &operations {
        let (from, to) = (&operation.request.from, &operation.request.to);
        rows.add_row([
            operation.id.0.to_string(),
            operation.phase.to_string(),
            from.to_string(),
            to.to_string(),
            total(operation, granule_bytes),
            age(operation.began_ns),
        ]);
    }
    cx.output.line(text_of(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn total(operation: &Operation, granule_bytes: u64) -> String {
    let granules: u64 = operation.units.iter().map(|unit| unit.size).sum();
    format!("{} of memory", bytes(granules.saturating_mul(granule_bytes)))
}

async fn show(cx: &Context, client: &Client, operation: &Operation) -> Outcome {
    if cx.output.json {
        cx.output.document("operation", operation)?;
        return Ok(ExitCode::SUCCESS);
    }
    let granule_bytes = client.ask(client.handover.pool()).await?.meta.granule_bytes;
    let line = |name: &str, value: String| cx.output.line(format!("{name:<10} {value}"));
    let request = &operation.request;
    line("operation", format!("{}, {}", operation.id.0, operation.phase))?;
    line("what", total(operation, granule_bytes))?;
    line("way", format!("{} -> {}", request.from, request.to))?;
    line("key", request.key.clone())?;
    line("begun", format!("{} ago", age(operation.began_ns)))?;
    if operation.ended_ns.is_some() {
        line("took", time(operation))?;
    }
    for unit in &operation.units {
        let state = match unit.fate() {
            Some(fate) => format!("{fate:?}").to_lowercase(),
            None => format!("{:?}", unit.step).to_lowercase(),
        };
        let size = bytes(unit.size.saturating_mul(granule_bytes));
        let veto = unit.veto.as_ref().map(|veto| format!(" ({})", veto.reason)).unwrap_or_default();
        line("piece", format!("{}, {size}: {state}{veto}", unit.unit))?;
    }
    for (question, end) in &operation.open {
        line("awaited", format!("{question} of the {end:?}").to_lowercase())?;
    }
    if let Some(cause) = &operation.cause {
        line("cause", cause.to_string())?;
    }
    for warning in &operation.warnings {
        line("warning", warning.clone())?;
    }
    Ok(ExitCode::SUCCESS)
}
