use super::*;
use crate::kernel::Incarnation;

fn kernel(id: u32) -> Kernel {
    Kernel { instance: InstanceId(id), incarnation: Incarnation([1; 16]) }
}

fn row(id: u32, name: &str) -> InstanceRow {
    InstanceRow {
        id: InstanceId(id),
        name: name.to_owned(),
        incarnation: Incarnation([1; 16]),
        running: true,
        limits: Limits::default(),
        boot_cpu: None,
    }
}

fn ledger(units: Vec<(Unit, Party)>) -> Ledger {
    let mut ledger = Ledger::discover(1 << 20, Limits::default(), units).unwrap();
    ledger.put_instance(row(3, "db"));
    ledger
}

fn sizes(ledger: &Ledger) -> Vec<(UnitId, u64)> {
    ledger.entries().map(|entry| (entry.unit.id, entry.unit.size())).collect()
}

#[test]
fn a_range_is_cut_at_its_low_end_and_joined_again_when_free() {
    let mut ledger = ledger(vec![(Unit::range(8, 8, None), Party::Pool)]);
    let (taken, _) = ledger.split(UnitId::Range(8), 3).unwrap();
    assert_eq!(taken, UnitId::Range(8));
    assert_eq!(sizes(&ledger), [(UnitId::Range(8), 3), (UnitId::Range(11), 5)]);
    ledger.check().unwrap();
    ledger.join(Party::Pool);
    assert_eq!(sizes(&ledger), [(UnitId::Range(8), 8)]);
    ledger.check().unwrap();
}

#[test]
fn ranges_of_a_kernel_stay_the_regions_they_were() {
    let mut ledger =
        ledger(vec![(Unit::range(0, 4, None), Party::Pool), (Unit::range(4, 4, None), Party::Pool)]);
    for id in [0, 4] {
        ledger.assign(UnitId::Range(id), Owner::Instance(kernel(3)));
    }
    assert!(ledger.join(Party::Instance(kernel(3))).is_empty());
}

#[test]
fn lots_of_one_owner_and_node_flow_together() {
    let mut ledger =
        ledger(vec![(Unit::lot(0, 10, Some(0)), Party::Pool), (Unit::lot(1, 10, Some(1)), Party::Pool)]);
    let (taken, _) = ledger.split(UnitId::Lot(0), 4).unwrap();
    assert_eq!(taken, UnitId::Lot(2));
    let epoch = ledger.entry(taken).unwrap().epoch;
    ledger.join(Party::Pool);
    assert_eq!(sizes(&ledger), [(UnitId::Lot(0), 10), (UnitId::Lot(1), 10)]);
    assert!(
        ledger.entry(UnitId::Lot(0)).unwrap().epoch > epoch,
        "nothing said to either part may be believed of both"
    );
    ledger.check().unwrap();
}

#[test]
fn a_unit_cannot_be_cut_to_nothing() {
    let mut ledger = ledger(vec![(Unit::lot(0, 4, None), Party::Pool), (Unit::cpu(1, 0, None), Party::Host)]);
    for (unit, take) in [
        (UnitId::Lot(0), 0),
        (UnitId::Lot(0), 4),
        (UnitId::Lot(0), 5),
        (UnitId::Cpu(1), 1),
        (UnitId::Lot(9), 1),
    ] {
        assert!(ledger.split(unit, take).is_none(), "{unit} was cut by {take}");
    }
}

#[test]
fn every_change_of_owner_raises_the_epoch() {
    let mut ledger = ledger(vec![(Unit::cpu(1, 0, None), Party::Pool)]);
    let before = ledger.entry(UnitId::Cpu(1)).unwrap().epoch;
    ledger.assign(UnitId::Cpu(1), Owner::InTransit(OpId(1)));
    ledger.assign(UnitId::Cpu(1), Owner::Pool);
    assert_eq!(ledger.entry(UnitId::Cpu(1)).unwrap().epoch, before + 2);
}

#[test]
fn stored_rows_rebuild_the_same_ledger() {
    let mut ledger =
        ledger(vec![(Unit::boot_cpu(0, 0, Some(0)), Party::Host), (Unit::lot(0, 4, None), Party::Pool)]);
    ledger.split(UnitId::Lot(0), 1);
    let entries: Vec<Entry> = ledger
        .entries()
        .map(|entry| serde_json::from_str(&serde_json::to_string(entry).unwrap()).unwrap())
        .collect();
    let restored = Ledger::restore(ledger.meta().clone(), entries, ledger.instances().cloned()).unwrap();
    assert_eq!(restored, ledger);
}

#[test]
fn a_lost_or_doubled_row_is_noticed() {
    let ledger = ledger(vec![(Unit::range(0, 8, None), Party::Pool), (Unit::range(8, 8, None), Party::Pool)]);
    let rows: Vec<Entry> = ledger.entries().cloned().collect();
    let restore =
        |rows: Vec<Entry>| Ledger::restore(ledger.meta().clone(), rows, ledger.instances().cloned());
    let lost = restore(vec![rows[0].clone()]).unwrap_err();
    assert_eq!(lost, Violation::NotConserved { kind: Kind::Memory, expected: 16, found: 8 });
    let twice = restore(vec![rows[0].clone(), rows[0].clone()]).unwrap_err();
    assert_eq!(twice, Violation::Twice { unit: UnitId::Range(0) });
    let mut wide = rows[0].clone();
    wide.unit.traits = Traits::Memory { granules: 9 };
    let overlap = restore(vec![wide, rows[1].clone()]).unwrap_err();
    assert_eq!(overlap, Violation::Overlap { first: UnitId::Range(0), second: UnitId::Range(8) });
    let mut strange = rows[0].clone();
    strange.owner = Owner::Instance(kernel(9));
    assert!(matches!(restore(vec![strange, rows[1].clone()]), Err(Violation::UnknownOwner { .. })));
}
