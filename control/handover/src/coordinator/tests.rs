use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::bench::{Bench, DB, WEB, kernel, party, persist, request, row};
use crate::operation::{Effect, Input, Phase};
use crate::request::What;

const CPU: UnitId = UnitId::Cpu(2);

fn move_cpu(key: &str) -> Request {
    Request { key: key.to_owned(), hooks: false, ..request("db", "web", What::Cpus(vec![2])) }
}

fn new_op(submitted: Result<Submitted<'_>, Refusal>) -> OpId {
    match submitted {
        Ok(Submitted::New(id, step)) => {
            drop(persist(step));
            id
        }
        other => panic!("not accepted: {other:?}"),
    }
}

#[test]
fn a_step_that_is_dropped_or_cannot_be_stored_has_not_happened() {
    let mut bench = Bench::cpus();
    let before = bench.coordinator.clone();
    drop(bench.coordinator.submit(0, move_cpu("key"), bench.rules).unwrap());
    assert_eq!(bench.coordinator, before);
    let Submitted::New(_, step) = bench.coordinator.submit(0, move_cpu("key"), bench.rules).unwrap() else {
        panic!("the dropped step was remembered");
    };
    assert_eq!(step.persist(|_| Err("disk full")), Err("disk full"));
    assert_eq!(bench.coordinator, before);
}

#[test]
fn effects_come_out_only_when_the_asynchronous_store_has_the_commit() {
    let mut bench = Bench::cpus();
    let Submitted::New(id, step) = bench.coordinator.submit(0, move_cpu("key"), bench.rules).unwrap() else {
        panic!("not accepted");
    };
    let mut stored = None;
    let effects = {
        let persisting = step.persist_async(|commit| {
            stored = Some(commit);
            std::future::ready(Ok::<(), ()>(()))
        });
        match pin!(persisting).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(effects)) => effects,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(stored.unwrap().operations[0].id, id);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Ask(_))));
}

#[test]
fn the_same_key_is_the_same_operation_and_with_another_body_a_mistake() {
    let mut bench = Bench::cpus();
    let id = new_op(bench.coordinator.submit(0, move_cpu("key"), bench.rules));
    assert!(
        matches!(bench.coordinator.submit(0, move_cpu("key"), bench.rules), Ok(Submitted::Known(of)) if of == id)
    );
    let other = Request { what: What::Cpus(vec![3]), ..move_cpu("key") };
    let refused = bench.coordinator.submit(0, other, bench.rules).unwrap_err();
    assert_eq!(refused, Refusal::KeyReused { key: "key".into(), operation: id });
}

#[test]
fn a_key_outlives_its_operation_until_that_is_forgotten() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu("key"));
    drop(persist(bench.coordinator.forget(0, &[id])));
    assert!(bench.coordinator.operation(id).is_some(), "one under way is not forgotten");
    bench.run();
    assert!(matches!(bench.coordinator.submit(0, move_cpu("key"), bench.rules), Ok(Submitted::Known(_))));
    let step = bench.coordinator.forget(0, &[id]);
    assert_eq!(step.commit().unwrap().forgotten_operations, [id]);
    drop(persist(step));
    assert!(bench.coordinator.operation(id).is_none());
}

#[test]
fn of_two_operations_planned_on_one_unit_the_second_to_reserve_finds_its_plan_stale() {
    let mut bench = Bench::cpus();
    let first = bench.submit(move_cpu("first"));
    let second = bench.submit(move_cpu("second"));
    bench.run();
    assert_eq!(bench.operation(first).phase, Phase::Committed);
    assert_eq!(bench.operation(second).phase, Phase::Aborted);
    let cause = bench.operation(second).cause.clone();
    assert_eq!(cause, Some(crate::operation::Cause::StalePlan { unit: CPU }));
    bench.check();
}

#[test]
fn a_unit_in_transit_is_refused_to_a_second_operation() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu("first"));
    bench.run_to(Phase::Reserved);
    let refused = bench.coordinator.submit(0, move_cpu("second"), bench.rules).unwrap_err();
    assert_eq!(refused, Refusal::Busy { unit: CPU, operation: id });
}

#[test]
fn a_new_daemon_finishes_what_it_finds_from_every_phase() {
    for phase in [
        Phase::Planned,
        Phase::Checked,
        Phase::Reserved,
        Phase::Draining,
        Phase::Offlined,
        Phase::Revoked,
        Phase::Granting,
        Phase::Onlined,
    ] {
        let mut bench = Bench::cpus();
        let id = bench.submit(Request { hooks: true, ..move_cpu("key") });
        bench.run_to(phase);
        let old = bench.operation(id).clone();
        let ledger = bench.coordinator.ledger();
        let restored = Coordinator::restore(
            ledger.meta().clone(),
            ledger.entries().cloned(),
            ledger.instances().cloned(),
            bench.coordinator.operations().cloned(),
        );
        bench.coordinator = restored.unwrap();
        bench.effects = persist(bench.coordinator.recover(0));
        let new = bench.operation(id);
        assert!(new.round > old.round, "timers and answers of the old daemon are void");
        bench.run();
        assert_eq!(bench.operation(id).phase, Phase::Committed, "taken up in {phase}");
        bench.check();
    }
}

#[test]
fn a_store_that_lost_an_operation_is_refused_until_its_units_are_quarantined() {
    let mut bench = Bench::cpus();
    bench.submit(move_cpu("key"));
    bench.run_to(Phase::Draining);
    let ledger = bench.coordinator.ledger();
    let mut entries: Vec<Entry> = ledger.entries().cloned().collect();
    let restore = |entries: &[Entry]| {
        Coordinator::restore(ledger.meta().clone(), entries.to_vec(), ledger.instances().cloned(), [])
    };
    assert!(matches!(restore(&entries), Err(Violation::OperationDisagrees { unit: CPU, .. })));
    assert_eq!(Coordinator::quarantine_orphans(&mut entries, &[]), 1);
    let mut restored = restore(&entries).unwrap();
    assert!(matches!(restored.ledger().entry(CPU).unwrap().owner, Owner::Quarantined(_)));
    drop(persist(restored.repair(0, CPU, party(DB)).unwrap()));
    assert_eq!(restored.ledger().entry(CPU).unwrap().owner, Owner::Instance(kernel(DB, 0)));
    let again = restored.repair(0, CPU, party(DB)).map(|_| ()).unwrap_err();
    assert!(matches!(again, AdminError::NotQuarantined { .. }));
}

#[test]
fn units_of_a_dead_kernel_are_its_own_until_released_or_taken_over_by_its_next_boot() {
    let mut bench = Bench::cpus();
    assert!(matches!(bench.coordinator.release(0, DB), Err(AdminError::StillRuns { .. })));
    bench.hear(Input::KernelDown(kernel(DB, 0)));
    assert_eq!(*bench.owner(CPU), Owner::Instance(kernel(DB, 0)));
    bench.hear(Input::KernelUp(kernel(DB, 1)));
    assert_eq!(*bench.owner(CPU), Owner::Instance(kernel(DB, 1)));
    bench.hear(Input::KernelDown(kernel(DB, 0)));
    assert!(bench.coordinator.ledger().is_running(kernel(DB, 1)), "late news of an earlier boot");
    bench.hear(Input::KernelDown(kernel(DB, 1)));
    assert!(matches!(bench.coordinator.dismiss(0, DB), Err(AdminError::StillHolds { .. })));
    drop(persist(bench.coordinator.release(0, DB).unwrap()));
    assert_eq!(*bench.owner(CPU), Owner::Pool);
    drop(persist(bench.coordinator.dismiss(0, DB).unwrap()));
    assert!(bench.coordinator.ledger().instance(DB).is_none());
}

#[test]
fn releasing_a_dead_kernel_outdates_looks_at_units_that_were_on_their_way_from_it() {
    let mut bench = Bench::cpus();
    bench.submit(move_cpu("key"));
    bench.run_to(Phase::Revoked);
    bench.hear(Input::KernelDown(kernel(DB, 0)));
    let epoch = |bench: &Bench| bench.coordinator.ledger().entry(CPU).unwrap().epoch;
    let before = epoch(&bench);
    // What was seen before may show the unit with a kernel that now holds nothing any more.
    let effects = persist(bench.coordinator.release(0, DB).unwrap());
    assert!(epoch(&bench) > before);
    let looks =
        |effect: &Effect| matches!(effect, Effect::Act(act) if act.unit.id == CPU && act.epoch > before);
    assert!(effects.iter().any(looks), "{effects:?}");
}

#[test]
fn two_instances_cannot_have_one_name() {
    let mut bench = Bench::cpus();
    let taken = bench.coordinator.admit(0, row(WEB, "db")).map(|_| ()).unwrap_err();
    assert_eq!(taken, AdminError::NameTaken { name: "db".into() });
}

#[test]
fn limits_are_checked_again_when_units_are_reserved() {
    let mut bench = Bench::cpus();
    let mut web = row(WEB, "web");
    web.limits.cpus = crate::Bounds::new(0, 1);
    drop(persist(bench.coordinator.admit(0, web).unwrap()));
    let first = bench.submit(Request { what: What::Cpus(vec![2]), ..move_cpu("first") });
    let second = bench.submit(Request { what: What::Cpus(vec![3]), ..move_cpu("second") });
    bench.run();
    assert_eq!(bench.operation(first).phase, Phase::Committed);
    let cause = bench.operation(second).cause.clone();
    assert_eq!(cause, Some(crate::operation::Cause::LimitsReached { of: party(WEB) }));
}

#[test]
fn only_a_step_on_which_nothing_rests_can_wait_for_the_disk() {
    let mut bench = Bench::cpus();
    let Submitted::New(_, step) = bench.coordinator.submit(0, move_cpu("key"), bench.rules).unwrap() else {
        panic!("not accepted");
    };
    assert!(!step.can_wait(), "agents are about to be asked");
    let asks = persist(step).into_iter().filter_map(|effect| match effect {
        Effect::Ask(ask) => Some(ask),
        _ => None,
    });
    let mut answers = asks.map(|ask| Input::Answered {
        operation: ask.operation,
        round: ask.round,
        question: ask.question,
        end: ask.end,
        reply: crate::operation::Reply::Yes,
    });
    let first = bench.coordinator.handle(0, answers.next().unwrap());
    assert!(first.can_wait() && first.commit().is_some(), "another is awaited");
    drop(persist(first));
    let second = bench.coordinator.handle(0, answers.next().unwrap());
    assert!(!second.can_wait(), "the operation goes on");
    drop(persist(second));
    assert!(!bench.coordinator.handle(0, Input::KernelDown(kernel(DB, 0))).can_wait());
}
