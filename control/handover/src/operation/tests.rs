use std::cell::RefCell;

use super::*;
use crate::bench::*;
use crate::coordinator::Coordinator;
use crate::observe::Command;
use crate::owner::Quarantine;
use crate::request::{Shortfall, What};
use crate::sim::{Luck, Spawner};
use crate::unit::Unit;

const CPU: UnitId = UnitId::Cpu(2);

fn move_cpu() -> Request {
    Request { hooks: false, ..request("db", "web", What::Cpus(vec![2])) }
}

fn fates(bench: &Bench, id: OpId) -> Vec<Fate> {
    bench.operation(id).units.iter().filter_map(|unit| unit.fate().cloned()).collect()
}

#[test]
fn a_unit_moves_by_drain_revoke_grant_online_and_each_is_seen() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu());
    bench.run();
    assert_eq!(bench.operation(id).phase, Phase::Committed);
    let expected = [Command::Drain, Command::Revoke(party(DB)), Command::Grant(party(WEB)), Command::Online];
    assert_eq!(bench.commands, expected);
    assert_eq!(*bench.owner(CPU), Owner::Instance(kernel(WEB, 0)));
    bench.check();
}

#[test]
fn growing_from_the_pool_drains_nobody_and_shrinking_grants_nobody() {
    let mut bench = Bench::cpus();
    bench.submit(Request { hooks: false, ..request("db", "pool", What::Cpus(vec![2])) });
    bench.run();
    assert_eq!(bench.commands, [Command::Drain, Command::Revoke(party(DB))]);
    bench.commands.clear();
    let back = Request { key: "back".into(), ..request("pool", "web", What::Cpus(vec![2])) };
    bench.submit(back);
    bench.run();
    assert_eq!(bench.commands, [Command::Grant(party(WEB)), Command::Online]);
    bench.check();
}

#[test]
fn hooks_run_in_order_and_post_hooks_only_warn() {
    use Question::*;
    let mut bench = Bench::cpus();
    let id = bench.submit(Request { hooks: true, ..move_cpu() });
    let reply = |ask: &Ask| if ask.question == PostHooks { no("exit status 1") } else { Some(Reply::Yes) };
    bench.run_until(|_| false, |_| Luck::Works, reply);
    let operation = bench.operation(id);
    assert_eq!(operation.phase, Phase::Committed);
    assert_eq!(operation.warnings.len(), 2);
    bench.asked.dedup();
    assert_eq!(bench.asked, [Vote, CheckHooks, Reserve, PreHooks, Confirm, PostHooks]);
}

#[test]
fn an_end_whose_applications_have_no_hooks_is_asked_for_none() {
    use Question::*;
    for (without, asked) in [
        (&[End::Donor, End::Receiver][..], &[Vote, Reserve, Confirm][..]),
        (&[End::Donor], &[Vote, CheckHooks, Reserve, PreHooks, Confirm, PostHooks]),
    ] {
        let mut bench = Bench::cpus();
        let id = bench.submit(Request { hooks: true, ..move_cpu() });
        let ends = RefCell::new(Vec::new());
        let reply = |ask: &Ask| {
            if ask.question.is_of_hooks() {
                ends.borrow_mut().push(ask.end);
            }
            let has_none = ask.question == Vote && without.contains(&ask.end);
            Some(if has_none { Reply::YesWithoutHooks } else { Reply::Yes })
        };
        bench.run_until(|_| false, |_| Luck::Works, reply);
        assert_eq!(bench.operation(id).phase, Phase::Committed);
        assert!(!ends.borrow().iter().any(|end| without.contains(end)), "{ends:?}");
        bench.asked.dedup();
        assert_eq!(bench.asked, asked);
    }
}

#[test]
fn a_vote_against_it_ends_it_before_anything_is_touched() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu());
    let reply =
        |ask: &Ask| if ask.end == End::Donor { no("thread `compute` is pinned") } else { Some(Reply::Yes) };
    bench.run_until(|_| false, |_| Luck::Works, reply);
    let operation = bench.operation(id);
    assert_eq!(operation.phase, Phase::Aborted);
    assert!(matches!(&operation.cause, Some(Cause::Vetoed { veto, .. }) if veto.reason.contains("pinned")));
    assert!(bench.commands.is_empty());
    bench.check();
}

#[test]
fn a_late_no_of_the_receiver_brings_the_drained_unit_back_and_tells_the_hooks() {
    let mut bench = Bench::cpus();
    let id = bench.submit(Request { hooks: true, ..move_cpu() });
    let reply = |ask: &Ask| if ask.question == Question::Confirm { no("no slot") } else { Some(Reply::Yes) };
    bench.run_until(|_| false, |_| Luck::Works, reply);
    assert_eq!(bench.operation(id).phase, Phase::Aborted);
    assert_eq!(bench.commands, [Command::Drain, Command::Undrain]);
    assert_eq!(bench.asked.last(), Some(&Question::UndoHooks));
    assert_eq!(*bench.owner(CPU), Owner::Instance(kernel(DB, 0)));
    bench.check();
}

#[test]
fn a_cpu_that_must_depart_online_is_brought_online_before_it_is_emptied() {
    let units = vec![(Unit::cpu(2, 2, None), party(DB)), (Unit::cpu(3, 3, None), party(DB))];
    let mut bench = Bench::new(units, DrainRule::LeaveOnline, Spawner::MayFinishLate);
    let id = bench.submit(move_cpu());
    bench.run_to(Phase::Reserved);
    // An administrator of `db` has taken it offline by hand.
    let offline = Sighting {
        attached: Some(party(DB)),
        donor: crate::observe::Inside::Offline,
        receiver: crate::observe::Inside::Absent,
        pending: false,
    };
    let progress = &bench.operation(id).units[0];
    let (unit, epoch) = (progress.unit, progress.epoch);
    bench.hear(Input::Acted { operation: id, unit, epoch, refused: None, sighting: offline });
    bench.run();
    assert_eq!(bench.commands[..2], [Command::Undrain, Command::Drain]);
    assert_eq!(bench.operation(id).phase, Phase::Committed);
    bench.check();
}

#[test]
fn answers_to_anything_but_the_newest_question_change_nothing() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu());
    bench.run_to(Phase::Offlined);
    let progress = bench.operation(id).units[0].clone();
    let gone = Sighting {
        attached: Some(Party::Pool),
        donor: crate::observe::Inside::Absent,
        receiver: crate::observe::Inside::Absent,
        pending: false,
    };
    for epoch in [0, progress.epoch - 1, progress.epoch, progress.epoch + 1] {
        let late = Input::Acted { operation: id, unit: CPU, epoch, refused: None, sighting: gone };
        assert!(bench.coordinator.handle(0, late).commit().is_none(), "epoch {epoch} was believed");
    }
    let old_timer = Input::Expired { operation: id, round: bench.operation(id).round - 1 };
    assert!(bench.coordinator.handle(0, old_timer).commit().is_none());
}

#[test]
fn it_can_be_called_off_up_to_the_point_of_no_return_and_not_after() {
    for phase in [Phase::Planned, Phase::Checked, Phase::Reserved, Phase::Draining, Phase::Offlined] {
        let mut bench = Bench::cpus();
        let id = bench.submit(Request { hooks: true, ..move_cpu() });
        bench.run_to(phase);
        let effects = persist(bench.coordinator.cancel(0, id).unwrap());
        bench.effects.extend(effects);
        bench.run();
        let operation = bench.operation(id);
        assert_eq!(
            (operation.phase, &operation.cause),
            (Phase::Aborted, &Some(Cause::Cancelled)),
            "in {phase}"
        );
        bench.check();
    }
    for phase in [Phase::Revoked, Phase::Granting] {
        let mut bench = Bench::cpus();
        let id = bench.submit(move_cpu());
        bench.run_to(phase);
        let refused = bench.coordinator.cancel(0, id).map(|_| ());
        assert_eq!(refused, Err(TooLate { operation: id, phase }.into()));
    }
}

#[test]
fn a_receiver_that_dies_after_the_revoke_leaves_the_unit_free() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu());
    bench.run_to(Phase::Granting);
    bench.world.kernel_dies(WEB);
    bench.hear(Input::KernelDown(kernel(WEB, 0)));
    bench.run();
    assert_eq!(bench.operation(id).phase, Phase::Partial);
    assert_eq!(fates(&bench, id), [Fate::Pooled]);
    assert_eq!(*bench.owner(CPU), Owner::Pool);
    bench.check();
}

#[test]
fn a_receiver_that_boots_anew_in_between_gets_nothing_it_did_not_agree_to() {
    for phase in [Phase::Reserved, Phase::Draining, Phase::Offlined] {
        let mut bench = Bench::cpus();
        let id = bench.submit(Request { hooks: true, ..move_cpu() });
        bench.run_to(phase);
        bench.world.kernel_dies(WEB);
        bench.hear(Input::KernelDown(kernel(WEB, 0)));
        bench.world.kernel_boots(kernel(WEB, 1), bench.coordinator.ledger());
        bench.hear(Input::KernelUp(kernel(WEB, 1)));
        bench.run();
        assert_eq!(bench.operation(id).phase, Phase::Aborted, "in {phase}");
        assert_eq!(*bench.owner(CPU), Owner::Instance(kernel(DB, 0)));
        bench.check();
    }
}

#[test]
fn a_donor_that_dies_while_draining_ends_it_and_its_unit_is_found() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu());
    bench.run_to(Phase::Offlined);
    bench.world.kernel_dies(DB);
    bench.hear(Input::KernelDown(kernel(DB, 0)));
    bench.run();
    assert_eq!(bench.operation(id).phase, Phase::Aborted);
    assert_eq!(fates(&bench, id), [Fate::Pooled], "a dead kernel's CPUs are detached by this spawner");
    bench.check();
}

#[test]
fn a_unit_the_receiver_cannot_use_is_taken_from_it_again() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu());
    let luck =
        |act: &Act| if act.command == Some(Command::Online) { Luck::RefusedForGood } else { Luck::Works };
    bench.run_until(|_| false, luck, |_| Some(Reply::Yes));
    assert_eq!(bench.operation(id).phase, Phase::Partial);
    assert_eq!(bench.commands.last(), Some(&Command::Revoke(party(WEB))));
    assert_eq!(*bench.owner(CPU), Owner::Pool);
    bench.check();
}

#[test]
fn what_cannot_be_drained_stops_all_or_is_left_behind_as_asked() {
    let stuck = |act: &Act| {
        let is_third = act.unit.id == UnitId::Cpu(3) && act.command == Some(Command::Drain);
        if is_third { Luck::RefusedForGood } else { Luck::Works }
    };
    for (shortfall, ended, moved) in
        [(Shortfall::Abort, Phase::Aborted, 0), (Shortfall::MoveTheRest, Phase::Partial, 1)]
    {
        let mut bench = Bench::cpus();
        let what = What::Cpus(vec![2, 3]);
        let id = bench.submit(Request { hooks: false, shortfall, ..request("db", "web", what) });
        bench.run_until(|_| false, stuck, |_| Some(Reply::Yes));
        let operation = bench.operation(id);
        assert_eq!((operation.phase, operation.moved()), (ended, moved));
        assert_eq!(operation.units[1].fate(), Some(&Fate::Returned));
        assert_eq!(operation.units[1].veto.as_ref().map(|veto| veto.reason.as_str()), Some("cannot"));
        bench.check();
    }
}

/// The move of a CPU, waiting for a revoke that timed out and may still happen.
fn revoke_timed_out() -> (Bench, OpId) {
    let units = vec![(Unit::cpu(2, 2, None), party(DB)), (Unit::cpu(3, 3, None), party(DB))];
    let mut bench = Bench::new(units, DrainRule::LeaveOnline, Spawner::MayFinishLate);
    let id = bench.submit(move_cpu());
    let luck = |act: &Act| {
        if matches!(act.command, Some(Command::Revoke(_))) { Luck::TimesOut } else { Luck::Works }
    };
    bench.run_until(|_| false, luck, |_| Some(Reply::Yes));
    (bench, id)
}

#[test]
fn a_revoke_that_may_still_happen_is_quarantined_with_that_reason() {
    let (mut bench, id) = revoke_timed_out();
    for _ in 0..bench.rules.patience {
        bench.expire(id);
        bench.run();
    }
    assert_eq!(bench.operation(id).phase, Phase::Quarantined);
    let reason = Quarantine::MayChangeYet { after: Some(Command::Revoke(party(DB))) };
    assert_eq!(*bench.owner(CPU), Owner::Quarantined(reason));
    bench.world.finish_late(0, true);
    bench.check();
}

#[test]
fn a_revoke_that_timed_out_and_happened_late_is_seen_and_goes_on() {
    let (mut bench, id) = revoke_timed_out();
    bench.world.finish_late(0, true);
    bench.expire(id);
    bench.run();
    assert_eq!(bench.operation(id).phase, Phase::Committed);
    bench.check();
}

#[test]
fn an_agent_that_goes_on_claiming_what_it_does_not_have_needs_an_operator() {
    let mut bench = Bench::cpus();
    let id = bench.submit(move_cpu());
    // Whoever does not have the unit claims to use it, from the revoke on.
    let revoked = |coordinator: &Coordinator| {
        coordinator.operation(id).is_some_and(|operation| operation.phase >= Phase::Granting)
    };
    bench.run_until(revoked, |_| Luck::Works, |_| Some(Reply::Yes));
    for _ in 0..bench.rules.patience {
        bench.run_until(|_| false, |_| Luck::Lied, |_| Some(Reply::Yes));
        bench.expire(id);
    }
    assert_eq!(bench.operation(id).phase, Phase::NeedsOperator);
    let owner = bench.owner(CPU).clone();
    assert!(matches!(owner, Owner::Quarantined(Quarantine::Contradiction { .. })), "{owner}");
    bench.check();
}

#[test]
fn silence_before_the_point_of_no_return_ends_in_undoing() {
    for silent in [Question::Vote, Question::Reserve, Question::Confirm] {
        let mut bench = Bench::cpus();
        let id = bench.submit(move_cpu());
        let reply = |ask: &Ask| (ask.question != silent).then_some(Reply::Yes);
        bench.run_until(|_| false, |_| Luck::Works, reply);
        bench.expire(id);
        bench.run();
        assert_eq!(bench.operation(id).phase, Phase::Aborted, "no answer to {silent}");
        assert!(matches!(bench.operation(id).cause, Some(Cause::Deadline { .. })));
        bench.check();
    }
}

#[test]
fn memory_by_amount_moves_in_lots_and_flows_together() {
    let units = vec![(Unit::lot(0, 16, None), party(DB)), (Unit::lot(1, 4, None), party(WEB))];
    let mut bench = Bench::new(units, DrainRule::Offline, Spawner::Certain);
    let id = bench.submit(Request { hooks: false, ..request("db", "web", What::MemoryBytes(5 * GRANULE)) });
    bench.run();
    assert_eq!(bench.operation(id).phase, Phase::Committed);
    let sizes: Vec<u64> = bench.operation(id).units.iter().map(|unit| unit.size).collect();
    assert_eq!(sizes, [2, 2, 1], "no lot is larger than 128 MiB");
    let held: Vec<(u64, Party)> = bench
        .coordinator
        .ledger()
        .entries()
        .filter_map(|entry| Some((entry.unit.size(), entry.owner.party()?)))
        .collect();
    assert_eq!(held, [(11, party(DB)), (9, party(WEB))]);
    bench.check();
}

#[test]
fn a_phase_goes_only_where_the_diagram_says() {
    use Phase::*;
    let all = [
        Planned,
        Checked,
        Reserved,
        Draining,
        Offlined,
        Revoked,
        Granting,
        Onlined,
        Undoing,
        Committed,
        Aborted,
        Partial,
        Quarantined,
        NeedsOperator,
    ];
    for from in all {
        let onward = all.iter().filter(|to| from.may_become(**to)).count();
        assert_eq!(onward == 0, from.is_terminal(), "{from}");
        for to in all.into_iter().filter(|to| from.may_become(*to)) {
            let goes_back = !from.is_before_point_of_no_return() && to.is_before_point_of_no_return();
            assert!(!goes_back, "{from} to {to} crosses the point of no return backwards");
        }
    }
}

#[test]
fn time_to_drain_runs_out_for_the_laggard_alone_if_the_rest_may_move() {
    let mut bench = Bench::cpus();
    let shortfall = Shortfall::MoveTheRest;
    let id =
        bench.submit(Request { hooks: false, shortfall, ..request("db", "web", What::Cpus(vec![2, 3])) });
    bench.run_to(Phase::Draining);
    let first_is_drained = |coordinator: &Coordinator| {
        coordinator.operation(id).is_some_and(|operation| operation.units[0].step == Step::Offlined)
    };
    bench.run_until(first_is_drained, |_| Luck::Works, |_| Some(Reply::Yes));
    // The drain of the second is still on its way when the time is over.
    bench.expire(id);
    bench.run();
    assert_eq!(fates(&bench, id), [Fate::Moved, Fate::Returned]);
    assert_eq!(bench.operation(id).phase, Phase::Partial);
    bench.check();
}

#[test]
fn a_unit_that_is_not_where_the_ledger_had_it_stops_all_unless_the_rest_may_move() {
    for (shortfall, ended) in [(Shortfall::Abort, Phase::Aborted), (Shortfall::MoveTheRest, Phase::Partial)] {
        let mut bench = Bench::cpus();
        let what = What::Cpus(vec![2, 3]);
        let id = bench.submit(Request { hooks: false, shortfall, ..request("db", "web", what) });
        bench.run_to(Phase::Reserved);
        // Somebody else has taken it from `db`.
        let act = Act {
            operation: id,
            unit: Unit::cpu(2, 2, None),
            epoch: 1,
            command: Some(Command::Revoke(party(DB))),
            after_ms: 0,
            donor: party(DB),
            receiver: party(WEB),
            resting: None,
            lease_ms: 0,
        };
        bench.world.act(&act, Luck::Works);
        bench.run();
        assert_eq!(bench.operation(id).phase, ended);
        assert_eq!(*bench.owner(CPU), Owner::Pool, "it is where it was seen");
        bench.check();
    }
}
