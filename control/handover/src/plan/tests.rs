use super::*;
use crate::bench::{Bench, DB, GRANULE, WEB, coordinator, party, pci, persist, request, row};
use crate::coordinator::Coordinator;
use crate::ledger::Bounds;
use crate::operation::Phase;
use crate::unit::Unit;

fn refused(coordinator: &Coordinator, from: &str, to: &str, what: What) -> Refusal {
    coordinator.plan(&request(from, to, what)).unwrap_err()
}

fn taken(coordinator: &Coordinator, from: &str, to: &str, what: What) -> Vec<UnitId> {
    coordinator.plan(&request(from, to, what)).unwrap().takes.into_iter().map(|take| take.unit).collect()
}

/// Two nodes of two cores of two threads each: 0 to 3 on node 0, 4 to 7 on node 1; the host has core 0.
fn smt() -> Coordinator {
    let cpu = |id: u32| Unit::cpu(id, id / 2, Some(id / 4));
    let mut units = vec![(Unit::boot_cpu(0, 0, Some(0)), Party::Host), (cpu(1), Party::Host)];
    units.extend((2..8).map(|id| (cpu(id), Party::Pool)));
    coordinator(units)
}

fn cpus(ids: &[u32]) -> Vec<UnitId> {
    ids.iter().map(|id| UnitId::Cpu(*id)).collect()
}

#[test]
fn whole_cores_go_before_split_ones() {
    let machine = smt();
    assert_eq!(taken(&machine, "pool", "db", What::CpuCount(2)), cpus(&[6, 7]));
    assert_eq!(taken(&machine, "pool", "db", What::CpuCount(4)), cpus(&[4, 5, 6, 7]));
    let plan = machine.plan(&request("pool", "db", What::CpuCount(1))).unwrap();
    assert_eq!(plan.notes.len(), 1, "a split core is pointed out: {:?}", plan.notes);
}

#[test]
fn cpus_on_the_receivers_node_go_first() {
    let cpu = |id: u32, node| Unit::cpu(id, id, Some(node));
    let machine =
        coordinator(vec![(cpu(1, 0), Party::Pool), (cpu(2, 1), Party::Pool), (cpu(3, 0), party(WEB))]);
    assert_eq!(taken(&machine, "pool", "web", What::CpuCount(1)), cpus(&[1]));
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    let bench = Bench::cpus();
    let machine = &bench.coordinator;
    let unit = UnitId::Cpu(99);
    assert_eq!(refused(machine, "db", "web", What::Cpus(vec![99])), Refusal::NoSuchUnit { unit });
    let device = pci("0000:01:00.0");
    let unit = UnitId::Device(device);
    assert_eq!(refused(machine, "db", "web", What::Device(device)), Refusal::NoSuchUnit { unit });
    assert_eq!(
        refused(machine, "mail", "web", What::CpuCount(1)),
        Refusal::NoSuchInstance { name: "mail".into() }
    );
}

#[test]
fn what_another_owns_or_moves_is_refused() {
    let mut bench = Bench::cpus();
    assert!(matches!(
        refused(&bench.coordinator, "web", "db", What::Cpus(vec![2])),
        Refusal::NotOwned { unit: UnitId::Cpu(2), .. }
    ));
    bench.submit(request("db", "web", What::Cpus(vec![2])));
    bench.run_to(Phase::Reserved);
    assert!(matches!(refused(&bench.coordinator, "db", "web", What::Cpus(vec![2])), Refusal::Busy { .. }));
}

#[test]
fn boot_cpus_and_last_cpus_stay() {
    let mut bench = Bench::cpus();
    let boot = refused(&bench.coordinator, "host", "db", What::Cpus(vec![0]));
    assert_eq!(boot, Refusal::BootCpu { unit: UnitId::Cpu(0), name: "host".into() });
    let last = refused(&bench.coordinator, "host", "db", What::CpuCount(1));
    assert_eq!(last, Refusal::LastCpu { name: "host".into(), has: 1 });
    let all = refused(&bench.coordinator, "db", "web", What::CpuCount(3));
    assert!(matches!(all, Refusal::BelowMinimum { floor: 1, has: 3, wanted: 3, .. }));
    let booted = InstanceRowWith { boot: 3 }.row();
    drop(persist(bench.coordinator.admit(0, booted).unwrap()));
    let boot = refused(&bench.coordinator, "db", "web", What::Cpus(vec![3]));
    assert_eq!(boot, Refusal::BootCpu { unit: UnitId::Cpu(3), name: "db".into() });
    assert_eq!(taken(&bench.coordinator, "db", "web", What::CpuCount(2)), cpus(&[1, 2]));
}

struct InstanceRowWith {
    boot: u32,
}

impl InstanceRowWith {
    fn row(&self) -> crate::ledger::InstanceRow {
        crate::ledger::InstanceRow { boot_cpu: Some(UnitId::Cpu(self.boot)), ..row(DB, "db") }
    }
}

#[test]
fn minimum_and_quota_are_kept() {
    let mut bench = Bench::cpus();
    let mut db = row(DB, "db");
    db.limits.cpus = Bounds::new(3, 8);
    drop(persist(bench.coordinator.admit(0, db).unwrap()));
    assert!(matches!(
        refused(&bench.coordinator, "db", "web", What::CpuCount(1)),
        Refusal::BelowMinimum { floor: 3, .. }
    ));
    let mut web = row(WEB, "web");
    web.limits.memory = Bounds::new(0, 2);
    let mut machine = coordinator(vec![(Unit::lot(0, 8, None), Party::Pool)]);
    drop(persist(machine.admit(0, web).unwrap()));
    assert!(matches!(
        refused(&machine, "pool", "web", What::MemoryBytes(3 * GRANULE)),
        Refusal::AboveMaximum { ceiling: 2, wanted: 3, .. }
    ));
}

#[test]
fn memory_that_is_too_much_nothing_or_odd_is_refused_with_what_would_do() {
    let machine = coordinator(vec![(Unit::lot(0, 4, None), Party::Pool)]);
    let memory = |bytes| refused(&machine, "pool", "db", What::MemoryBytes(bytes));
    assert!(matches!(memory(5 * GRANULE), Refusal::NotEnough { wanted: 5, available: 4, .. }));
    assert_eq!(memory(0), Refusal::Nothing);
    let odd =
        Refusal::OddSize { bytes: GRANULE + 1, granule_bytes: GRANULE, below: GRANULE, above: 2 * GRANULE };
    assert_eq!(memory(GRANULE + 1), odd);
    assert!(matches!(memory(u64::MAX), Refusal::OddSize { .. }));
    assert_eq!(refused(&machine, "pool", "db", What::CpuCount(0)), Refusal::Nothing);
    assert!(matches!(refused(&machine, "pool", "db", What::CpuCount(u32::MAX)), Refusal::NotEnough { .. }));
}

#[test]
fn a_free_range_is_cut_and_a_kernels_region_is_not() {
    let range = |first, granules| Unit::range(first, granules, None);
    let machine = coordinator(vec![
        (range(0, 8), Party::Pool),
        (range(100, 4), party(DB)),
        (range(200, 2), party(DB)),
        (range(300, 1), party(DB)),
    ]);
    let plan = machine.plan(&request("pool", "web", What::MemoryBytes(3 * GRANULE))).unwrap();
    assert_eq!((plan.takes[0].unit, plan.takes[0].size, plan.takes[0].cut), (UnitId::Range(0), 3, true));
    let five = taken(&machine, "db", "web", What::MemoryBytes(5 * GRANULE));
    assert_eq!(five, [UnitId::Range(100), UnitId::Range(300)]);
    let machine = coordinator(vec![(range(100, 4), party(DB)), (range(200, 2), party(DB))]);
    assert_eq!(
        refused(&machine, "db", "web", What::MemoryBytes(5 * GRANULE)),
        Refusal::CannotCut { name: "db".into(), wanted: 5, below: 4, above: 6 }
    );
}

#[test]
fn devices_move_with_their_iommu_group_and_need_a_reset() {
    let (a, b, c) = (pci("0000:01:00.0"), pci("0000:01:00.1"), pci("0000:02:00.0"));
    let machine = coordinator(vec![
        (Unit::device(a, Some(1), true), party(DB)),
        (Unit::device(b, Some(1), true), party(DB)),
        (Unit::device(c, Some(2), false), party(DB)),
    ]);
    assert_eq!(taken(&machine, "db", "web", What::Device(a)), [UnitId::Device(a), UnitId::Device(b)]);
    assert_eq!(refused(&machine, "db", "web", What::Device(c)), Refusal::CannotReset { device: c });
    let forced = Request { allow_no_reset: true, ..request("db", "web", What::Device(c)) };
    assert_eq!(machine.plan(&forced).unwrap().notes.len(), 1);
    let split = coordinator(vec![
        (Unit::device(a, Some(1), true), party(DB)),
        (Unit::device(b, Some(1), true), Party::Host),
    ]);
    let others = vec![UnitId::Device(b)];
    assert_eq!(refused(&split, "db", "web", What::Device(a)), Refusal::SharedGroup { device: a, others });
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let bench = Bench::cpus();
    let machine = &bench.coordinator;
    assert_eq!(refused(machine, "db", "db", What::CpuCount(1)), Refusal::SameParty { name: "db".into() });
    let twice = refused(machine, "db", "web", What::Cpus(vec![2, 2]));
    assert_eq!(twice, Refusal::NamedTwice { unit: UnitId::Cpu(2) });
    for key in [String::new(), "k".repeat(129)] {
        let keyless = Request { key, ..request("db", "web", What::CpuCount(1)) };
        assert!(matches!(machine.plan(&keyless), Err(Refusal::BadKey { .. })));
    }
    let old = Request { if_version: Some(0), ..request("db", "web", What::CpuCount(1)) };
    let found = machine.ledger().version();
    assert_eq!(machine.plan(&old), Err(Refusal::StaleVersion { expected: 0, found }));
}

#[test]
fn an_instance_that_does_not_run_neither_gives_nor_gets() {
    let mut bench = Bench::cpus();
    bench.hear(crate::Input::KernelDown(crate::bench::kernel(WEB, 0)));
    assert_eq!(
        refused(&bench.coordinator, "db", "web", What::CpuCount(1)),
        Refusal::NotRunning { name: "web".into() }
    );
}

#[test]
fn two_amounts_of_memory_do_not_move_at_one_kernel_at_once() {
    let units = vec![(Unit::lot(0, 8, None), party(DB))];
    let mut bench = Bench::new(units, crate::operation::DrainRule::Offline, crate::sim::Spawner::Certain);
    let operation = bench.submit(request("db", "web", What::MemoryBytes(GRANULE)));
    bench.run_to(Phase::Reserved);
    let second = refused(&bench.coordinator, "db", "pool", What::MemoryBytes(GRANULE));
    assert_eq!(second, Refusal::MemoryBusy { name: "db".into(), operation });
}

#[test]
fn a_plan_of_a_dry_run_changes_nothing() {
    let bench = Bench::cpus();
    let before = bench.coordinator.clone();
    bench.coordinator.plan(&request("db", "web", What::CpuCount(2))).unwrap();
    assert_eq!(bench.coordinator, before);
}
