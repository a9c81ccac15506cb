//! What other programs made is not touched, and what cannot be read proves nothing.

use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::{Quirk, RebootCommand, State};

use super::bench::Bench;
use super::world::{MIB, World};
use crate::spawner::multikernel::folder;
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::interface::InstanceStatus;
use crate::spawner::multikernel::overlay::Intent;
use crate::spawner::multikernel::pool::{Wish, change_on};
use crate::spawner::multikernel::record::Record;
use crate::spawner::multikernel::tree::Chunk;

/// Another program's, with everything that ours has: name, number, memory, CPUs.
const LIKE_OURS: Op<'_> = Op::Create { name: "web", id: Some(1), memory_bytes: 128 * MIB, cpus: &[2, 4] };

/// Another program ends ours, and makes its own, which runs.
fn replace(world: &mut World) {
    let _ = world.reboot(RebootCommand::ForceHalt, 1);
    world.unload(1).unwrap();
    world.overlay("/instances", &[Op::Remove("web")]);
    world.overlay("/instances", &[LIKE_OURS]);
    world.load(1).unwrap();
    world.reboot(RebootCommand::Boot, 1).unwrap();
}

#[test]
fn instance_of_another_program_is_not_made_again() {
    let bench = Bench::new();
    bench.model.world().overlay("/instances", &[LIKE_OURS]);
    let error = bench.make(&mut bench.record("web", 1, &[2, 4])).unwrap_err();
    assert!(error.contains("already, made by another program"), "{error}");
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), Some(State::Ready));
    assert!(!bench.is_recorded("web"), "there is nothing to give back");
    bench.check();
}

#[test]
fn instance_that_came_between_look_and_write_is_left_as_it_is() {
    let bench = Bench::new();
    bench.model.world().before_write = Some(Box::new(|world| world.overlay("/instances", &[LIKE_OURS])));
    let error = bench.make(&mut bench.record("web", 1, &[2, 4])).unwrap_err();
    assert!(error.contains("is another program's, and is left as it is"), "{error}");
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), Some(State::Ready));
    bench.check();
}

#[test]
fn instance_that_replaced_ours_in_name_and_number_is_neither_started_nor_ended_nor_given_back() {
    let bench = Bench::new();
    let record = bench.running();
    replace(&mut bench.model.world());
    let hold = bench.hold(&record);
    assert_eq!(hold.status(), Ok(Some(InstanceStatus::Active)));
    assert_eq!(hold.ours(), Ok(None));
    hold.end(|_| ()).unwrap();
    folder::end(&bench.model, &bench.folder("web")).unwrap();
    assert!(!folder::may_run(&bench.model, &bench.folder("web")), "ours does not");
    assert!(hold.boot(|| false).unwrap_err().contains("is gone"));
    assert!(bench.load(&record).unwrap_err().contains("is gone"));
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), Some(State::Active));
    assert_eq!(bench.model.world().halts, 0);
    bench.check();
}

#[test]
fn instance_whose_maker_cannot_be_told_is_left_as_it_is() {
    let bench = Bench::new();
    let record = bench.running();
    // One overlay of two operations, which failed: nobody knows at which.
    bench.model.world().overlay(
        "/instances",
        &[Op::Remove("web"), Op::Create { name: "x", id: None, memory_bytes: 0, cpus: &[] }],
    );
    let error = bench.hold(&record).end(|_| ()).unwrap_err();
    assert!(error.contains("cannot be told whether instance `web` is ours"), "{error}");
    assert!(folder::may_run(&bench.model, &bench.folder("web")));
    assert!(bench.release("web").is_err() && bench.is_recorded("web"));
    assert_eq!(bench.state("web"), Some(State::Active));
}

#[test]
fn others_that_tried_to_remove_or_make_ours_and_failed_change_nothing() {
    let bench = Bench::new();
    let record = bench.running();
    bench.model.world().overlay("/instances", &[Op::Remove("web")]);
    bench.model.world().overlay("/instances", &[LIKE_OURS]);
    bench.hold(&record).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), None);
}

#[test]
fn number_of_another_instance_is_told() {
    let bench = Bench::new();
    let other = Op::Create { name: "other", id: Some(1), memory_bytes: MIB, cpus: &[6] };
    bench.model.world().overlay("/instances", &[other]);
    let error = bench.make(&mut bench.record("web", 1, &[2])).unwrap_err();
    assert!(error.contains("its number 1 is that of instance `other`"), "{error}");
}

#[test]
fn file_system_that_was_unmounted_proves_nothing() {
    let bench = Bench::new();
    let record = bench.running();
    bench.model.world().faults.is_unmounted = true;
    let hold = bench.hold(&record);
    assert!(hold.status().is_err(), "that there is no such file does not say that the kernel ended");
    assert!(hold.end(|_| ()).is_err() && hold.boot(|| false).is_err() && hold.make().is_err());
    assert!(bench.release("web").is_err() && bench.is_recorded("web"));
    assert!(folder::may_run(&bench.model, &bench.folder("web")));
    let wish = Wish { cpus: Some(vec![PhysicalCpu(2)]), memory_bytes: Some(MIB), ..Wish::default() };
    let error = change_on(&bench.model, &bench.settings(), &bench.instances(), &wish, false).unwrap_err();
    assert!(error.contains("nothing was changed"), "{error}");

    bench.model.world().faults.is_unmounted = false;
    hold.end(|_| ()).unwrap();
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), None);
}

#[test]
fn file_system_that_is_unmounted_during_a_change_is_no_success() {
    use crate::spawner::multikernel::transaction::{ApplyError, apply};
    let bench = Bench::new();
    bench.loaded();
    let chunk = bench.model.world().machine.pool().unwrap().chunks[0].range;
    let chunk = Chunk { base: chunk.base, bytes: chunk.size, numa_node: None };
    for intent in [Intent::PoolMemoryRemove { chunk }, Intent::Remove("web".parse().unwrap())] {
        bench.model.world().faults.is_unmounted = false;
        bench.model.world().after_write = Some(Box::new(|world| world.faults.is_unmounted = true));
        let error = apply(&bench.model, &intent, "tombolo:x").unwrap_err();
        assert!(matches!(error, ApplyError::Unknown(_)), "{error}");
    }
}

#[test]
fn file_system_that_is_unmounted_at_any_call_proves_nothing() {
    for runs in [true, false] {
        for at in 0.. {
            let bench = Bench::new();
            let record = if runs { bench.running() } else { bench.loaded() };
            {
                let mut world = bench.model.world();
                let calls = world.calls;
                world.deeds.insert(calls + at, Box::new(|world| world.faults.is_unmounted = true));
            }
            let done = if runs { bench.hold(&record).end(|_| ()) } else { bench.release("web") };
            let was_unmounted = bench.model.world().faults.is_unmounted;
            assert_ne!(done.is_ok(), was_unmounted, "at call {at}: {done:?}");
            assert!(bench.is_recorded("web") || done.is_ok());
            if !was_unmounted {
                assert!(at > 3, "there are calls");
                break;
            }
        }
    }
}

#[test]
fn torn_tree_of_an_instance_proves_nothing() {
    let bench = Bench::new();
    let record = bench.running();
    let whole = bench.model.world().machine.read("instances/web/device_tree").unwrap().len();
    for bytes in 0..whole {
        bench.model.world().faults.tear = Some(("web/device_tree", bytes));
        assert!(bench.hold(&record).end(|_| ()).is_err(), "{bytes} of {whole} bytes");
        assert!(bench.release("web").is_err() && bench.is_recorded("web"));
    }
    assert_eq!(bench.state("web"), Some(State::Active));
    assert_eq!(bench.model.world().halts, 0);
}

#[test]
fn torn_tree_of_the_pool_changes_nothing() {
    let bench = Bench::new();
    let whole = bench.model.world().machine.read("device_tree").unwrap().len();
    let wish = Wish { cpus: Some(vec![PhysicalCpu(2)]), memory_bytes: Some(MIB), ..Wish::default() };
    // No bytes at all are what a kernel without a pool gives.
    for bytes in 1..whole {
        bench.model.world().faults.tear = Some(("device_tree", bytes));
        let error = change_on(&bench.model, &bench.settings(), &bench.instances(), &wish, false).unwrap_err();
        assert!(error.contains("nothing was changed"), "{bytes} of {whole} bytes: {error}");
    }
    assert!(bench.model.world().machine.snapshot().transactions.is_empty());
}

#[test]
fn tree_of_another_instance_proves_nothing() {
    let bench = Bench::new();
    let record = bench.running();
    let other = Op::Create { name: "other", id: Some(9), memory_bytes: MIB, cpus: &[6] };
    bench.model.world().overlay("/instances", &[other]);
    bench.model.world().faults.swap = Some(("instances/web/device_tree", "instances/other/device_tree"));
    let error = bench.hold(&record).end(|_| ()).unwrap_err();
    assert!(error.contains("`model` is other"), "{error}");
    assert!(bench.release("web").is_err() && bench.is_recorded("web"));
}

#[test]
fn instance_of_which_other_programs_changed_what_it_has_is_ours_still() {
    let bench = Bench::new();
    let record: Record = bench.running();
    bench.model.world().overlay("/instances/web", &[Op::CpuAdd(&[6])]);
    assert!(bench.model.world().machine.instance("web").unwrap().cpus.contains(&6));
    bench.hold(&record).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), None);
}

#[test]
fn transaction_of_ours_that_was_taken_back_took_the_instance_with_it() {
    let bench = Bench::with_quirk(Quirk::RmdirUndoesWhatNeverRan, true);
    let record = bench.record("web", 1, &[2, 4]);
    bench.hold(&record).make().unwrap();
    record.write(&bench.folder("web")).unwrap();
    {
        let mut world = bench.model.world();
        let now_ns = world.now_ns;
        world.machine.rmdir("overlays/tx_2", now_ns).unwrap();
        world.makers.clear();
        world.overlay("/instances", &[LIKE_OURS]);
    }
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), Some(State::Ready), "it is another program's");
    bench.check();
}
