//! `tombolo pool`: who has what.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;
use tombolo_handover::unit::Traits;
use tombolo_handover::{Bounds, Entry, Kind, Limits, Party, UnitId};

use super::output::{bytes, table, text_of};
use super::{Context, Outcome};
use crate::api::handover::Books;
use crate::topology::Topology;

pub(super) async fn pool(cx: &Context) -> Outcome {
    let client = cx.client().await?;
    let books = client.ask(client.handover.pool()).await?;
    let host = client.ask(client.host.topology()).await?;
    if cx.output.json {
        cx.output.document("pool", &Document { books: &books, host: &host })?;
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
    for line in cores(&books) {
        cx.output.line(line)?;
    }
    cx.output.note(format!("(host: {})", host.describe()));
    let granule = bytes(books.meta.granule_bytes);
    cx.output
        .note(format!("(version {} of the ledger; memory moves in steps of {granule})", books.meta.version));
    Ok(ExitCode::SUCCESS)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    books: &'a Books,
    host: &'a Topology,
}

/// `core 2 (node 0): cpu 2 db, cpu 6 pool`, for each core of the host that has CPUs in the ledger. Where a CPU of the ledger is only the
/// right to run one, it has no node and no siblings, and there is nothing to tell.
fn cores(books: &Books) -> Vec<String> {
    let mut cores: BTreeMap<u32, (Option<u32>, Vec<String>)> = BTreeMap::new();
    let mut is_of_host = false;
    for entry in &books.units {
        let (UnitId::Cpu(id), Traits::Cpu { core, .. }) = (entry.unit.id, entry.unit.traits) else {
            continue;
        };
        is_of_host |= entry.unit.node.is_some() || core != id;
        let owner = entry.owner.party().map_or_else(|| entry.owner.to_string(), |party| books.name(party));
        cores.entry(core).or_insert((entry.unit.node, Vec::new())).1.push(format!("cpu {id} {owner}"));
    }
    let line = |(core, (node, cpus)): (u32, (Option<u32>, Vec<String>))| {
        let node = node.map(|node| format!(" (node {node})")).unwrap_or_default();
        format!("core {core}{node}: {}", cpus.join(", "))
    };
    cores.into_iter().filter(|_| is_of_host).map(line).collect()
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

#[cfg(test)]
mod tests {
    use tombolo_handover::{Ledger, Unit};

    use super::*;

    fn books(units: Vec<Unit>) -> Books {
        let units = units.into_iter().map(|unit| (unit, Party::Pool));
        let ledger = Ledger::discover(1, Limits::default(), units).unwrap();
        let (meta, units) = (ledger.meta().clone(), ledger.entries().cloned().collect());
        Books { meta, units, instances: Vec::new() }
    }

    #[test]
    fn cpus_of_the_host_are_listed_by_core_and_rights_to_run_one_are_not() {
        let of_host = books(vec![Unit::cpu(2, 2, Some(1)), Unit::cpu(6, 2, Some(1)), Unit::cpu(3, 3, None)]);
        assert_eq!(cores(&of_host), ["core 2 (node 1): cpu 2 pool, cpu 6 pool", "core 3: cpu 3 pool"]);
        assert!(cores(&books(vec![Unit::cpu(0, 0, None), Unit::cpu(1, 1, None)])).is_empty());
    }
}
