//! Kernels that end, hang, and are ended.

use std::time::Duration;

use tombolo_mksim::model::{Quirk, RebootCommand, State};

use super::bench::Bench;
use crate::spawner::multikernel::ending::{Ending, Tail, ending};
use crate::spawner::multikernel::folder;
use crate::spawner::multikernel::hold::END_TRIES;
use crate::spawner::multikernel::interface::InstanceStatus;

#[test]
fn end_that_nothing_notifies_is_seen_at_the_next_look() {
    let bench = Bench::new();
    let record = bench.running();
    let calls = bench.model.world().calls;
    {
        let mut world = bench.model.world();
        // It is not reached, and ends by itself a little later.
        world.faults.deaf_halts = 1;
        world.deeds.insert(calls + 40, Box::new(|world| world.machine.halted(1)));
    }
    let mut told = Vec::new();
    bench.hold(&record).end(|step| told.push(step.to_owned())).unwrap();
    assert_eq!(told, ["force", "force again"]);
    assert_eq!(bench.hold(&record).ours(), Ok(Some(InstanceStatus::Loaded)));
}

#[test]
fn panic_that_looks_like_a_halt_is_told_by_the_console() {
    let bench = Bench::new();
    let record = bench.running();
    bench.model.world().machine.panicked(1);
    assert_eq!(bench.hold(&record).ours(), Ok(Some(InstanceStatus::Loaded)), "as after a halt");
    let mut tail = Tail::default();
    assert_eq!(ending(&tail, false), Ending::Unexplained, "no end in good order is made up");
    tail.push(b"[    2.000000] Kernel panic - not syncing: sysrq triggered crash\r\n");
    assert_eq!(ending(&tail, false), Ending::Panicked);
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), None);
}

#[test]
fn kernel_that_hangs_stays_active_until_it_is_ended_by_force() {
    let bench = Bench::new();
    let record = bench.running();
    bench.model.world().machine.frozen(1);
    bench.model.world().pass(Duration::from_secs(3600));
    assert!(folder::may_run(&bench.model, &bench.folder("web")), "nothing says that it has ended");
    assert!(bench.release("web").unwrap_err().contains("runs: end it first"));
    bench.hold(&record).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), None);
    bench.check();
}

#[test]
fn force_that_does_not_help_is_repeated_within_bounds_and_told() {
    let bench = Bench::new();
    let record = bench.running();
    bench.model.world().faults.deaf_halts = u32::MAX;
    let before_ns = bench.model.world().now_ns;
    let mut told = 0;
    let error = bench.hold(&record).end(|_| told += 1).unwrap_err();
    assert!(error.contains("does not end, told 3 times: it stays active"), "{error}");
    assert_eq!((told, bench.model.world().halts), (END_TRIES, END_TRIES));
    let took = Duration::from_nanos(bench.model.world().now_ns - before_ns);
    assert!(took < Duration::from_secs(10), "the caller waits for it: {took:?}");
    assert!(bench.release("web").is_err() && bench.is_recorded("web"));

    bench.model.world().faults.deaf_halts = 2;
    bench.hold(&record).end(|_| ()).unwrap();
    assert_eq!(bench.state("web"), Some(State::Loaded));
}

#[test]
fn cpu_that_force_has_missed_is_ended_by_another() {
    let bench = Bench::with_quirk(Quirk::ForceMissesACpu, true);
    let record = bench.running();
    let mut told = Vec::new();
    bench.hold(&record).end(|step| told.push(step.to_owned())).unwrap();
    assert_eq!(told, ["force", "force again"]);
    assert!(bench.model.world().machine.instance("web").unwrap().guest.is_none(), "it runs on");
    bench.release("web").unwrap();
    bench.check();
}

#[test]
fn unload_of_an_active_instance_is_refused_here() {
    let bench = Bench::with_quirk(Quirk::UnloadOfActive, true);
    bench.running();
    assert!(bench.release("web").unwrap_err().contains("runs: end it first"));
    let world = bench.model.world();
    assert!(world.machine.instance("web").unwrap().loaded.is_some());
    assert_eq!(world.state("web"), Some(State::Active));
}

#[test]
fn instance_that_is_started_while_the_kernel_is_busy_is_not_unloaded() {
    let bench = Bench::with_quirk(Quirk::UnloadOfActive, true);
    bench.loaded();
    {
        let mut world = bench.model.world();
        world.faults.busy_calls = 1;
        let calls = world.calls;
        // Between the first try and the second: release looks, reads whose it is, and tries.
        let start = |world: &mut super::world::World| {
            if world.faults.busy_calls == 0 && world.state("web") == Some(State::Loaded) {
                world.reboot(RebootCommand::Boot, 1).unwrap();
            }
        };
        (0..40).for_each(|call| drop(world.deeds.insert(calls + call, Box::new(start))));
    }
    let error = bench.release("web").unwrap_err();
    assert!(error.contains("could not unload instance `web`: it runs"), "{error}");
    assert_eq!(bench.state("web"), Some(State::Active));
    bench.check();
}

#[test]
fn instance_that_the_kernel_calls_failed_is_ended_before_it_is_given_back() {
    // As a fork of the kernel has it: force leaves `failed`.
    let bench = Bench::with_quirk(Quirk::FailedAndEmptyNeverSet, false);
    let record = bench.running();
    bench.hold(&record).end(|_| ()).unwrap();
    assert_eq!(bench.state("web"), Some(State::Failed));
    let halts = bench.model.world().halts;
    bench.release("web").unwrap();
    assert!(bench.model.world().halts > halts, "it may run, for all that its status says");
    assert_eq!(bench.state("web"), None);
}

#[test]
fn kernel_that_was_started_by_a_call_that_failed_is_not_lost() {
    let bench = Bench::new();
    let record = bench.loaded();
    {
        let mut world = bench.model.world();
        world.faults.busy_calls = 1;
        let calls = world.calls;
        let start = |world: &mut super::world::World| {
            if world.faults.busy_calls == 0 {
                let _ = world.reboot(RebootCommand::Boot, 1);
            }
        };
        (0..40).for_each(|call| drop(world.deeds.insert(calls + call, Box::new(start))));
    }
    bench.hold(&record).boot(|| false).unwrap();
    assert_eq!(bench.state("web"), Some(State::Active));
}
