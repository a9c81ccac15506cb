//! Overlays: what the kernel answers, and what came of it.

use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::{Quirk, State};

use super::bench::Bench;
use super::world::{MIB, Model, POOL_BYTES};
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::interface;
use crate::spawner::multikernel::overlay::{Change, Intent};
use crate::spawner::multikernel::pool::{Wish, change_on};
use crate::spawner::multikernel::transaction::{self, ApplyError};

fn take_from_host(cpus: &[u32]) -> Intent {
    Intent::PoolCpus { change: Change::Add, cpus: cpus.iter().copied().map(PhysicalCpu).collect() }
}

fn wish(bench: &Bench, wish: &Wish) -> Result<Vec<String>, String> {
    change_on(&bench.model, &bench.settings(), &bench.instances(), wish, false)
}

fn memory(bytes: u64) -> Wish {
    Wish { memory_bytes: Some(bytes), ..Wish::default() }
}

#[test]
fn write_that_succeeds_on_a_failed_overlay_is_told_as_a_failure() {
    let bench = Bench::new();
    let mut record = bench.record("web", 1, &[2, 4]);
    record.memory_bytes = 2 * POOL_BYTES;
    let error = bench.make(&mut record).unwrap_err();
    assert!(error.contains("`failed`") && error.contains("nothing of it is left"), "{error}");
    assert_eq!(bench.state("web"), None);
}

#[test]
fn write_that_fails_is_looked_into_as_well() {
    let bench = Bench::with_quirk(Quirk::WriteSucceedsOnFailure, false);
    let error = transaction::apply(&bench.model, &take_from_host(&[3, 0, 5]), "tombolo:x").unwrap_err();
    let ApplyError::Failed { report, reason, .. } = &error else { panic!("{error}") };
    assert_eq!(report.done, ["CPU 3"], "it answers EINVAL, and has done this");
    assert!(reason.contains("Invalid argument"), "{reason}");
}

#[test]
fn transaction_is_found_by_its_mark_among_those_of_other_writers() {
    for blob_only in [false, true] {
        let bench = Bench::new();
        {
            let mut world = bench.model.world();
            world.before_write = Some(Box::new(|world| world.overlay("/instances", &[Op::Remove("none")])));
            world.after_write = Some(Box::new(|world| world.overlay("/instances", &[Op::Remove("none")])));
            // A kernel that does not give the mark back.
            world.faults.swap = blob_only.then_some(("/resources", "instances"));
        }
        let applied = transaction::apply(&bench.model, &take_from_host(&[3]), "tombolo:x").unwrap();
        assert_eq!(applied.transaction, "tx_3", "tx_2 and tx_4 are another's, and failed");
    }
}

#[test]
fn first_transaction_is_found_whatever_its_number() {
    for (on, first) in [(true, "tx_2"), (false, "tx_1")] {
        let model = Model::without_pool();
        let config = {
            let mut config = model.world().machine.config().clone();
            config.quirks.set(Quirk::FirstTransactionIsTwo, on);
            config
        };
        model.world().machine = tombolo_mksim::model::Machine::new(config);
        let bench = Bench::on(model);
        let wanted =
            Wish { cpus: Some(vec![PhysicalCpu(2)]), memory_bytes: Some(POOL_BYTES), ..Wish::default() };
        wish(&bench, &wanted).unwrap();
        let applied = transaction::apply(&bench.model, &take_from_host(&[3]), "tombolo:x").unwrap();
        assert_eq!(applied.transaction, first);
    }
}

#[test]
fn overlay_longer_than_a_page_is_not_sent() {
    let bench = Bench::new();
    let all: Vec<u32> = (0..600).collect();
    let error = transaction::apply(&bench.model, &take_from_host(&all), "tombolo:x").unwrap_err();
    assert!(matches!(error, ApplyError::TooLong(_)), "{error}");
    assert!(bench.model.world().machine.snapshot().transactions.is_empty(), "nothing was written");
}

#[test]
fn overlay_that_the_kernel_cut_off_is_not_known_to_have_done_nothing() {
    let bench = Bench::new();
    bench.model.world().faults.clip_bytes = Some(256);
    let error = bench.make(&mut bench.record("web", 1, &[2])).unwrap_err();
    assert!(error.contains("it took 256 of") && error.contains("not known"), "{error}");
    assert!(error.contains("nothing of it is left"), "{error}");
}

#[test]
fn operation_that_the_kernel_does_not_know_is_no_success() {
    let bench = Bench::new();
    bench.model.world().faults.rename = Some((b"instance-create", b"instance-erect_"));
    let error = bench.make(&mut bench.record("web", 1, &[2])).unwrap_err();
    assert!(error.contains("`applied`: nothing of it is in effect"), "{error}");

    bench.model.world().faults.rename = Some((b"cpu-add", b"cpu-get"));
    let error = transaction::apply(&bench.model, &take_from_host(&[3]), "tombolo:x").unwrap_err();
    assert!(error.to_string().contains("`applied`: nothing of it is in effect (CPU 3)"), "{error}");
}

#[test]
fn cpus_that_were_silently_not_reserved_are_found_and_the_instance_is_given_back() {
    let bench = Bench::new();
    let taken = Op::Create { name: "other", id: Some(9), memory_bytes: MIB, cpus: &[4] };
    bench.model.world().before_write = Some(Box::new(move |world| world.overlay("/instances", &[taken])));
    let error = bench.make(&mut bench.record("web", 1, &[2, 4])).unwrap_err();
    assert!(error.contains("`applied`") && error.contains("not: CPU 2, CPU 4"), "{error}");
    assert!(error.contains("nothing of it is left"), "{error}");
    assert_eq!((bench.state("web"), bench.state("other")), (None, Some(State::Ready)));
    bench.check();
}

#[test]
fn half_applied_overlay_is_told_unit_by_unit() {
    let bench = Bench::new();
    let cpus = [2, 4, 6, 1, 3, 0, 5].map(PhysicalCpu).to_vec();
    let error = wish(&bench, &Wish { cpus: Some(cpus), ..Wish::default() }).unwrap_err();
    assert!(error.contains("in effect: CPU 3; not: CPU 0, CPU 5"), "{error}");
    assert!(bench.model.world().machine.pool().unwrap().cpus.contains(&3), "as it says");
}

#[test]
fn baseline_that_fails_half_way_is_told_with_what_the_pool_has() {
    let bench = Bench::on(Model::without_pool());
    let cpus = Some([2, 0, 4].map(PhysicalCpu).to_vec());
    let error = wish(&bench, &Wish { cpus, memory_bytes: Some(POOL_BYTES), ..Wish::default() }).unwrap_err();
    assert!(error.contains("the pool has 1 CPUs and 1024 MiB now, not CPU 0, 4"), "{error}");
}

#[test]
fn transactions_are_never_taken_back() {
    let bench = Bench::new();
    let mut failing = bench.record("big", 2, &[2]);
    failing.memory_bytes = 2 * POOL_BYTES;
    bench.make(&mut failing).unwrap_err();
    transaction::apply(&bench.model, &take_from_host(&[3, 0]), "tombolo:x").unwrap_err();
    let record = bench.running();
    bench.hold(&record).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    let world = bench.model.world();
    let numbers: Vec<u64> = world.machine.snapshot().transactions.iter().map(|tx| tx.id).collect();
    let all: Vec<u64> = (2..2 + numbers.len() as u64).collect();
    assert_eq!(numbers, all, "each is there, failed or not");
    assert!(world.machine.pool().unwrap().cpus.contains(&3), "what a failed one did is not undone");
}

#[test]
fn instance_is_taken_wherever_its_memory_is() {
    let bench = Bench::new();
    bench.model.world().overlay(
        "/instances",
        &[Op::Create { name: "other", id: Some(9), memory_bytes: 384 * MIB, cpus: &[6] }],
    );
    bench.loaded();
    let base = |name: &str| bench.model.world().machine.instance(name).unwrap().regions[0].range.base;
    assert_eq!(base("web"), base("other") + 384 * MIB, "at the first that fits");
}

#[test]
fn memory_goes_back_to_the_host_from_where_the_kernel_had_found_it() {
    let bench = Bench::new();
    wish(&bench, &memory(2 * POOL_BYTES)).unwrap();
    // Another program's comes behind ours, and goes first.
    bench.model.world().overlay("/resources", &[Op::PoolMemoryAdd(256 * MIB)]);
    let mut told = wish(&bench, &memory(2 * POOL_BYTES)).unwrap();
    told.extend(wish(&bench, &memory(POOL_BYTES)).unwrap());
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(interface::pool(&bench.model).unwrap().memory_bytes(), POOL_BYTES);
}

#[test]
fn fragmented_pool_is_told_with_what_there_is() {
    let bench = Bench::new();
    let quarter = |name, id| Op::Create { name, id: Some(id), memory_bytes: POOL_BYTES / 4, cpus: &[] };
    let all = [quarter("a", 5), quarter("b", 6), quarter("c", 7), quarter("d", 8)];
    all.iter().for_each(|op| bench.model.world().overlay("/instances", &[*op]));
    ["a", "c"].iter().for_each(|name| bench.model.world().overlay("/instances", &[Op::Remove(name)]));
    let mut record = bench.record("web", 1, &[2]);
    record.memory_bytes = POOL_BYTES / 2;
    let error = bench.make(&mut record).unwrap_err();
    assert!(
        error.contains("1024 MiB, of which instances have 512, and gives memory in one piece"),
        "{error}"
    );
    assert!(error.contains("nothing of it is left"), "{error}");
}

#[test]
fn transaction_that_stays_pending_is_not_forgotten() {
    // Whether what it makes is there already or not.
    for memory_bytes in [128 * MIB, 2 * POOL_BYTES] {
        let bench = Bench::new();
        bench.model.world().faults.is_pending = true;
        let mut record = bench.record("web", 1, &[2]);
        record.memory_bytes = memory_bytes;
        let error = bench.make(&mut record).unwrap_err();
        assert!(error.contains("is pending still after 2s, and may take effect yet"), "{error}");
        assert!(bench.release("web").unwrap_err().contains("is `pending`") || bench.state("web").is_none());
        assert!(bench.release("web").is_err() && bench.is_recorded("web"));

        bench.model.world().faults.is_pending = false;
        bench.release("web").unwrap();
        assert_eq!((bench.state("web"), bench.is_recorded("web")), (None, false));
    }
}
