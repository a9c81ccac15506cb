//! `tombolo pool`: who has what.

use std::process::ExitCode;

use tombolo_handover::{Bounds, Entry, Kind, Limits, Party, UnitId};

use super::output::{bytes, table, text_of};
use super::{Context, Outcome};
use crate::api::handover::Books;

pub(super) async fn pool(cx: &Context) -> Outcome {
    let client = cx.client().await?;
    let books = client.ask(client.handover.pool()).await?;
    if cx.output.json {
        cx.output.document("pool", &books)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["holder", "memory", "cpus", "devices", "state"]);
    let mut add = |name: &str, party: Party, limits: Option<&Limits>, state: &str| {
        rows.add_row([
            name.to_owned(),
            memory(&books, party, limits.map(|limits| limits.memory)),
            cpus(&books, party, limits.map(|limits| limits.cpus)),
            devices(&books, party, limits.map(|limits| limits.devices)),
            state.to_owned(),
        ]);
    };
    add("host", Party::Host, Some(&books.meta.host), "");
    add("pool", Party::Pool, None, "free");
    for row in &books.instances {
        let state = if row.running { "running" } else { "stopped" };
        add(&row.name, Party::Instance(row.kernel()), Some(&row.limits), state);
    }
    cx.output.line(text_of(&rows))?;
    for entry in books.units.iter().filter(|entry| entry.owner.party().is_none()) {
        cx.output.line(format!("{}{}: {}", entry.unit.id, size_of(&books, entry), entry.owner))?;
    }
    let granule = bytes(books.meta.granule_bytes);
    cx.output
        .note(format!("(version {} of the ledger; memory moves in steps of {granule})", books.meta.version));
    Ok(ExitCode::SUCCESS)
}

fn size_of(books: &Books, entry: &Entry) -> String {
    match entry.unit.id.kind() {
        Kind::Memory => format!(", {}", bytes(books.bytes(entry.unit.size()))),
        Kind::Cpu | Kind::Device | Kind::LlcWay => String::new(),
    }
}

/// `128.0 MiB (64.0 MiB - 256.0 MiB)`: how much, and between what it can be.
fn memory(books: &Books, party: Party, bounds: Option<Bounds>) -> String {
    let range = bounds.and_then(|bounds| range(bounds, |granules| bytes(books.bytes(granules))));
    with(bytes(books.memory_bytes(party)), range, bounds)
}

fn cpus(books: &Books, party: Party, bounds: Option<Bounds>) -> String {
    let range = bounds.and_then(|bounds| range(bounds, |count| count.to_string()));
    with(books.count(party, Kind::Cpu).to_string(), range, bounds)
}

fn devices(books: &Books, party: Party, bounds: Option<Bounds>) -> String {
    let its = books.units_of(party).filter_map(|entry| match entry.unit.id {
        UnitId::Device(address) => Some(address.to_string()),
        _ => None,
    });
    with(its.collect::<Vec<_>>().join(", "), None, bounds)
}

/// A holder that can have nothing of a kind has a dash.
fn with(amount: String, range: Option<String>, bounds: Option<Bounds>) -> String {
    match (bounds, range) {
        (Some(Bounds { max: 0, .. }), _) => "-".to_owned(),
        (_, Some(range)) => format!("{amount} ({range})"),
        (_, None) => amount,
    }
}

fn range(bounds: Bounds, text: impl Fn(u64) -> String) -> Option<String> {
    let Bounds { min, max, .. } = bounds;
    match (min, max) {
        (0, u64::MAX) => None,
        (min, u64::MAX) => Some(format!("{} or more", text(min))),
        (min, max) => Some(format!("{} - {}", text(min), text(max))),
    }
}
