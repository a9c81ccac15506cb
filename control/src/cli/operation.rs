//! Operations, for people: following one, how it ended, what is known of it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use tombolo_handover::operation::{Cause, Fate, Progress};
use tombolo_handover::{Kind, OpId, Operation, Phase, Plan, Request, UnitId};

use super::client::Client;
use super::error::CliError;
use super::output::{age, bytes, duration, table, text_of};
use super::{Context, Outcome};
use crate::api::ExitKind;

pub(super) async fn planned(cx: &Context, client: &Client, request: &Request, plan: &Plan) -> Outcome {
    if cx.output.json {
        cx.output.document("plan", plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    let granule_bytes = client.ask(client.handover.pool()).await?.meta.granule_bytes;
    let (from, to) = (&request.from, &request.to);
    for take in &plan.takes {
        let part = if take.cut { "part of " } else { "" };
        let size = of_memory(take.unit, take.size, granule_bytes);
        cx.output.line(format!("{part}{}{size}: {from} -> {to}", take.unit))?;
    }
    for note in &plan.notes {
        cx.output.note(format!("({note})"));
    }
    cx.output.note(format!("(nothing was changed; planned on version {} of the ledger)", plan.version));
    Ok(ExitCode::SUCCESS)
}

/// Follows an operation to its end, telling people how far it is, and programs if they want each item.
pub(super) async fn watch(
    cx: &Context,
    client: &Client,
    id: OpId,
    items: bool,
) -> Result<Operation, CliError> {
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
        cx.output.note(format!("  {done} of {} units settled", operation.units.len()));
    }
    *settled = done;
    if *phase != Some(operation.phase) {
        *phase = Some(operation.phase);
        cx.output.note(format!("operation {}: {}", operation.id.0, operation.phase));
    }
}

/// Says how an operation ended, by words and by exit code.
pub(super) async fn ended(cx: &Context, client: &Client, operation: &Operation) -> Outcome {
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

pub(super) fn told(cx: &Context, operation: &Operation, summary: &str) -> Outcome {
    match cx.output.json {
        true => cx.output.document("operation", operation)?,
        false => cx.output.note(summary),
    }
    Ok(ExitCode::SUCCESS)
}

/// What became of an operation, in one line or two.
fn summary(operation: &Operation, granule_bytes: u64) -> String {
    let size = |wanted: &dyn Fn(&Progress) -> bool| {
        amount(operation.units.iter().filter(|unit| wanted(unit)), operation, granule_bytes)
    };
    let (from, to) = (&operation.request.from, &operation.request.to);
    let moved = |unit: &Progress| unit.fate() == Some(&Fate::Moved);
    let mut text = match operation.phase {
        Phase::Committed => format!("moved {} from {from} to {to} in {}", size(&moved), time(operation)),
        Phase::Aborted => format!("nothing was moved from {from} to {to}"),
        _ if operation.moved() == 0 => {
            format!("nothing of {} was moved from {from} to {to}", size(&|_| true))
        }
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
        let what = match &unit.veto {
            Some(veto) => format!("{what} ({})", veto.reason),
            None => what,
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

pub(super) async fn list(cx: &Context, client: &Client) -> Outcome {
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
    amount(operation.units.iter(), operation, granule_bytes)
}

/// How much these units of an operation are: `64.0 MiB of memory`, `2 CPUs`, `device 0000:01:00.0`.
fn amount<'a>(
    units: impl Iterator<Item = &'a Progress> + Clone,
    operation: &Operation,
    granule_bytes: u64,
) -> String {
    let size = units.clone().map(|unit| unit.size).sum::<u64>();
    let only = units.map(|unit| unit.unit).next();
    match operation.units.first().map(|unit| unit.unit.kind()) {
        None => "nothing".to_owned(),
        Some(Kind::Memory) => format!("{} of memory", bytes(size.saturating_mul(granule_bytes))),
        Some(Kind::Device) if size == 1 => only.map_or_else(String::new, |unit| unit.to_string()),
        Some(kind) => counted(kind, size),
    }
}

/// `1 CPU`, `2 CPUs`.
pub(super) fn counted(kind: Kind, count: u64) -> String {
    let many = kind.to_string();
    match count {
        1 => format!("1 {}", many.trim_end_matches('s')),
        count => format!("{count} {many}"),
    }
}

/// Of memory its size, to be put behind its name; of anything else nothing.
fn of_memory(unit: UnitId, size: u64, granule_bytes: u64) -> String {
    match unit.kind() {
        Kind::Memory => format!(", {}", bytes(size.saturating_mul(granule_bytes))),
        Kind::Cpu | Kind::Device | Kind::LlcWay => String::new(),
    }
}

pub(super) async fn show(cx: &Context, client: &Client, operation: &Operation) -> Outcome {
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
        let size = of_memory(unit.unit, unit.size, granule_bytes);
        let veto = unit.veto.as_ref().map(|veto| format!(" ({})", veto.reason)).unwrap_or_default();
        line("unit", format!("{}{size}: {state}{veto}", unit.unit))?;
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
