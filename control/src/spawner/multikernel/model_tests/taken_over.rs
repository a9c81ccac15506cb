//! Instances of other programs that are taken over on request: what is refused, and that one that is taken over is ours, and nothing else is.

use std::path::Path;

use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::{RebootCommand, State};

use super::bench::Bench;
use super::world::{Actor, MIB, dies_of};
use crate::spawner::multikernel::folder;
use crate::spawner::multikernel::hold::Hold;
use crate::spawner::multikernel::record::{Origin, Record};
use crate::spawner::multikernel::taken_over::{Known, Offer, OfferError, TakenOver, offer};

/// What another program makes: `web`, number 7, CPUs 2 and 4.
const THEIRS: Op<'_> = Op::Create { name: "web", id: Some(7), memory_bytes: 128 * MIB, cpus: &[2, 4] };

fn with_theirs() -> Bench {
    let bench = Bench::new();
    bench.model.world().overlay("/instances", &[THEIRS]);
    bench
}

fn offered(bench: &Bench, name: &str, force: bool) -> Result<Offer, OfferError> {
    offer(&bench.model, &bench.settings(), name, force)
}

fn refusal(bench: &Bench, name: &str) -> String {
    match offered(bench, name, false) {
        Err(OfferError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// Takes `web` over: what the daemon would record.
fn taken_over(bench: &Bench) -> Known {
    let offer = offered(bench, "web", true).unwrap();
    known(bench, offer.taken_over.clone())
}

fn known(bench: &Bench, taken_over: TakenOver) -> Known {
    bench.model.world().makers.insert("web".into(), Actor::Us);
    Known { folder: bench.folder("web"), name: "web".into(), cid: 7, taken_over: Some(taken_over) }
}

/// As the spawner starts it: in what was taken over if that is there, else in one of our own.
fn start(bench: &Bench, known: &Known) -> Result<(), String> {
    let folder = &known.folder;
    folder::clear(&bench.model, folder)?;
    let mut record = known.record(&bench.settings())?.unwrap();
    match Hold::on(&bench.model, &record).ours()? {
        Some(_) => folder::load_taken_over(&bench.model, folder, &mut record, bench.image())?,
        None => {
            record = bench.record("web", 7, &[2, 4]);
            folder::make(&bench.model, folder, &mut record, bench.image())?;
        }
    }
    bench.hold(&record).boot(|| false)
}

fn give_back(bench: &Bench, known: &Known) -> Result<(), String> {
    let record = known.record(&bench.settings())?.unwrap();
    bench.hold(&record).release(&known.folder, crate::spawner::multikernel::lock::WAIT_MAX, || false)?;
    Record::remove(&known.folder).map_err(|error| error.to_string())
}

fn loads_theirs(bench: &Bench) {
    bench.model.world().load(7).unwrap();
}

fn starts_theirs(bench: &Bench) {
    loads_theirs(bench);
    bench.model.world().reboot(RebootCommand::Boot, 7).unwrap();
}

#[test]
fn taking_over_changes_nothing_and_tells_what_there_is() {
    let bench = with_theirs();
    loads_theirs(&bench);
    let tree = |bench: &Bench| {
        let world = bench.model.world();
        let files = ["device_tree", "instances/web/device_tree", "instances/web/status"];
        let transactions = world.machine.snapshot().transactions.len();
        (files.map(|path| world.machine.read(path).unwrap()), transactions)
    };
    let before = tree(&bench);
    let offer = offered(&bench, "web", false).unwrap();
    assert_eq!(
        (offer.id, offer.cpus, offer.memory_bytes, offer.status.as_str()),
        (7, 2, 128 * MIB, "loaded")
    );
    assert_eq!(offer.taken_over.transaction, 2);
    assert!(bench.lock().exists(), "nobody changes it meanwhile");
    drop(offer);
    assert!(!bench.lock().exists());
    assert_eq!(tree(&bench), before);
    assert!(!bench.is_recorded("web"));
}

#[test]
fn what_is_taken_over_is_started_ended_and_given_back_as_ours() {
    for is_loaded in [false, true] {
        let bench = with_theirs();
        if is_loaded {
            loads_theirs(&bench);
        }
        let known = taken_over(&bench);
        start(&bench, &known).unwrap();
        let record = Record::read(&known.folder).unwrap().unwrap();
        assert_eq!((record.cpus.len(), record.memory_bytes), (2, 128 * MIB), "as the kernel has it");
        assert!(folder::may_run(&bench.model, &known.folder));
        assert_eq!(bench.model.world().machine.snapshot().transactions.len(), 1, "it was not made anew");
        folder::end(&bench.model, &known.folder).unwrap();
        folder::release(&bench.model, &known.folder).unwrap();
        assert_eq!((bench.state("web"), bench.is_recorded("web")), (None, false));
        // The next one is made anew.
        start(&bench, &known).unwrap();
        assert_eq!(Record::read(&known.folder).unwrap().unwrap().origin, Origin::Made);
        folder::end(&bench.model, &known.folder).unwrap();
        give_back(&bench, &known).unwrap();
        assert_eq!(bench.state("web"), None);
        bench.check();
    }
}

#[test]
fn start_that_fails_leaves_what_was_taken_over() {
    let bench = with_theirs();
    let known = taken_over(&bench);
    bench.model.world().faults.busy_calls = 1000;
    assert!(start(&bench, &known).is_err());
    bench.model.world().faults.busy_calls = 0;
    folder::clear(&bench.model, &known.folder).unwrap();
    assert_eq!((bench.state("web"), bench.is_recorded("web")), (Some(State::Ready), false));
    start(&bench, &known).unwrap();
    assert!(folder::clear(&bench.model, &known.folder).unwrap_err().contains("runs: end it first"));
    bench.check();
}

#[test]
fn instance_that_runs_is_taken_over_only_by_force_and_ended_before_it_is_started() {
    let bench = with_theirs();
    starts_theirs(&bench);
    let reason = refusal(&bench, "web");
    for said in ["it is active", "kerf kill web", "--force", "without an agent", "tombolo kill web"] {
        assert!(reason.contains(said), "{said}: {reason}");
    }
    let known = taken_over(&bench);
    assert_eq!(bench.state("web"), Some(State::Active), "it runs on");
    assert!(start(&bench, &known).unwrap_err().contains("`tombolo kill web` ends it by force"));
    assert!(give_back(&bench, &known).unwrap_err().contains("runs: end it first"));
    assert_eq!((bench.state("web"), bench.model.world().halts), (Some(State::Active), 0));

    let record = known.record(&bench.settings()).unwrap().unwrap();
    bench.hold(&record).end(|_| ()).unwrap();
    start(&bench, &known).unwrap();
    bench.check();
}

#[test]
fn what_cannot_be_taken_over_is_refused_with_the_reason() {
    let bench = with_theirs();
    assert!(refusal(&bench, "successor").contains("kmorph"));
    assert!(refusal(&bench, "a/b").contains("cannot be the name"));
    assert_eq!(offered(&bench, "db", false).unwrap_err(), OfferError::NotFound);

    std::fs::write(bench.lock(), "").unwrap(); // as kerf makes it
    let reason = refusal(&bench, "web");
    assert!(reason.contains("holds the lock") && bench.lock().exists(), "{reason}");
    std::fs::remove_file(bench.lock()).unwrap();

    let low = Op::Create { name: "low", id: Some(1), memory_bytes: 64 * MIB, cpus: &[6] };
    bench.model.world().overlay("/instances", &[low]);
    assert!(refusal(&bench, "low").contains("below 3 mean this kernel"));

    // One overlay of two operations, which failed: nobody knows at which.
    starts_theirs(&bench);
    let none = Op::Create { name: "x", id: None, memory_bytes: 0, cpus: &[] };
    bench.model.world().overlay("/instances", &[Op::Remove("web"), none]);
    match offered(&bench, "web", true).unwrap_err() {
        OfferError::Refused(reason) => assert!(reason.contains("it cannot be told who made it"), "{reason}"),
        other => panic!("{other:?}"),
    }

    bench.model.world().faults.is_unmounted = true;
    assert!(matches!(offered(&bench, "web", false), Err(OfferError::Failed(_))));
}

#[test]
fn instance_of_a_tombolod_that_has_left_is_taken_over_only_by_force() {
    let bench = Bench::new();
    let record = bench.record("web", 7, &[2]);
    bench.hold(&record).make().unwrap();
    assert!(refusal(&bench, "web").contains("a tombolod made it"));
    assert!(offered(&bench, "web", true).is_ok());
}

#[test]
fn instance_that_replaced_the_one_taken_over_is_another_even_if_it_was_asked_for_in_the_same_words() {
    let bench = with_theirs();
    let known = taken_over(&bench);
    {
        let mut world = bench.model.world();
        world.overlay("/instances", &[Op::Remove("web")]);
        world.overlay("/instances", &[THEIRS]);
    }
    starts_theirs(&bench);
    let record = known.record(&bench.settings()).unwrap().unwrap();
    assert_eq!(bench.hold(&record).ours(), Ok(None));
    bench.hold(&record).end(|_| ()).unwrap();
    give_back(&bench, &known).unwrap();
    assert_eq!(bench.state("web"), Some(State::Active));
    assert!(start(&bench, &known).unwrap_err().contains("made by another program"));
    bench.check();
}

#[test]
fn nothing_of_a_former_boot_of_the_host_is_ours() {
    let bench = with_theirs();
    let mut former = taken_over(&bench);
    former.taken_over.as_mut().unwrap().host_boot = "another".into();
    let record = former.record(&bench.settings()).unwrap().unwrap();
    assert_eq!(bench.hold(&record).ours(), Ok(None));
    let mut other = taken_over(&bench);
    other.taken_over.as_mut().unwrap().digest = "0".repeat(64);
    let record = other.record(&bench.settings()).unwrap().unwrap();
    assert_eq!(bench.hold(&record).ours(), Ok(None), "a transaction of that number, and other bytes");
}

/// A step of what is done with it; `false` where we died in it.
fn unless_we_die(bench: &Bench, half: u64, act: impl FnOnce() -> Result<(), String>) -> bool {
    {
        let mut world = bench.model.world();
        world.crash_at = Some(2 * world.calls + half);
    }
    let died = dies_of(|| act().unwrap());
    bench.model.world().crash_at = None;
    // Our lock is left behind, of a process that does not run.
    if died && bench.lock().exists() {
        std::fs::write(bench.lock(), "tombolo 1 7\n").unwrap();
    }
    !died
}

#[test]
fn death_at_any_call_leaves_what_was_taken_over_ours_or_given_back() {
    type Act = fn(&Bench, &Known) -> Result<(), String>;
    let end = |bench: &Bench, known: &Known| folder::end(&bench.model, &known.folder);
    let release = |bench: &Bench, known: &Known| folder::release(&bench.model, &known.folder);
    let life: [Act; 3] = [start, end, release];
    for dies_in in 0..life.len() {
        for half in 0.. {
            let bench = with_theirs();
            loads_theirs(&bench);
            let known = taken_over(&bench);
            life[..dies_in].iter().for_each(|act| act(&bench, &known).unwrap());
            let is_over = unless_we_die(&bench, half, || life[dies_in](&bench, &known));
            // The next daemon has the same record of it, and does with it what an operator wants.
            let record = known.record(&bench.settings()).unwrap().unwrap();
            bench.hold(&record).end(|_| ()).unwrap();
            give_back(&bench, &known).unwrap();
            assert_eq!((bench.state("web"), bench.is_recorded("web")), (None, false), "{dies_in}, {half}");
            assert!(!bench.lock().exists(), "the lock is left");
            bench.check();
            if is_over {
                assert!(half > 2, "step {dies_in} calls the kernel");
                break;
            }
        }
    }
}

#[test]
fn looking_at_it_leaves_nothing_whenever_we_die() {
    for half in 0.. {
        let bench = with_theirs();
        let is_over = unless_we_die(&bench, half, || match offered(&bench, "web", false) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error:?}")),
        });
        assert!(!Path::new(&bench.folder("web")).join("multikernel.json").exists());
        assert_eq!(bench.state("web"), Some(State::Ready));
        assert!(offered(&bench, "web", false).is_ok(), "after {half}");
        if is_over {
            break;
        }
    }
}
