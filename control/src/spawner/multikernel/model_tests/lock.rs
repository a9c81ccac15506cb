//! The kernel's own lock, and acknowledgements that come late or never: another instance's trouble is not ours for long.

use std::cell::Cell;
use std::time::Duration;

use tombolo_mksim::dtb::{Op, overlay};
use tombolo_mksim::model::{Quirk, RebootCommand, State};

use super::bench::Bench;
use super::world::{MIB, World};
use crate::spawner::multikernel::lock::WAIT_MAX;

/// Another program's kernel, number 9, on CPU 6; it runs.
fn other(world: &mut World) {
    let create = Op::Create { name: "other", id: Some(9), memory_bytes: 128 * MIB, cpus: &[6] };
    world.overlay("/instances", &[create]);
    world.load(9).unwrap();
    world.reboot(RebootCommand::Boot, 9).unwrap();
}

/// It is asked to halt, which holds the kernel's lock until it does, 30 s at most.
fn begin_halt(world: &mut World) {
    let now_ns = world.now_ns;
    world.machine.reboot(RebootCommand::Halt, 9, now_ns).unwrap();
}

/// It is given a CPU, which holds the lock until it says so, 10 s at most.
fn begin_cpu_add(world: &mut World) {
    let (now_ns, blob) = (world.now_ns, overlay(None, &[("/instances/other", &[Op::CpuAdd(&[1])])]));
    world.machine.write("overlays/new", 0, &blob, now_ns).unwrap();
}

#[test]
fn lock_of_another_operation_is_waited_for() {
    let bench = Bench::new();
    other(&mut bench.model.world());
    begin_halt(&mut bench.model.world());
    // The overlay fails, and the kernel does not say that it was busy.
    let record = bench.loaded();
    bench.model.world().faults.busy_calls = 3;
    bench.hold(&record).boot(|| false).unwrap();
    bench.model.world().faults.busy_calls = 3;
    bench.hold(&record).end(|_| ()).unwrap();
    bench.model.world().faults.busy_calls = 3;
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), None);
}

#[test]
fn lock_that_stays_taken_is_told() {
    let bench = Bench::new();
    let record = bench.loaded();
    {
        let mut world = bench.model.world();
        other(&mut world);
        world.machine.frozen(9);
        begin_halt(&mut world);
    }
    let error = bench.make(&mut bench.record("db", 3, &[1])).unwrap_err();
    assert!(error.contains("`failed`") && error.contains("nothing of it is left"), "{error}");
    let error = bench.hold(&record).boot(|| false).unwrap_err();
    assert!(error.contains("busy with another instance"), "{error}");
    assert!(bench.release("web").is_err() && bench.is_recorded("web"));
    assert_eq!(bench.state("web"), Some(State::Loaded));

    bench.model.world().pass(Duration::from_secs(30));
    bench.hold(&record).boot(|| false).unwrap();
    {
        let mut world = bench.model.world();
        begin_halt(&mut world);
    }
    let before_ns = bench.model.world().now_ns;
    let error = bench.hold(&record).end(|_| ()).unwrap_err();
    assert!(error.contains("the kernel is busy with another instance"), "{error}");
    let took = Duration::from_nanos(bench.model.world().now_ns - before_ns);
    assert!(took < Duration::from_secs(10), "the caller waits for it: {took:?}");
    assert_eq!(bench.state("web"), Some(State::Active), "as it says");
    bench.model.world().pass(Duration::from_secs(30));
    bench.hold(&record).end(|_| ()).unwrap();
    bench.release("web").unwrap();
}

#[test]
fn whoever_is_told_to_end_waits_for_the_lock_no_longer() {
    let bench = Bench::new();
    let record = bench.loaded();
    let looks = Cell::new(0);
    let is_called_off = || looks.replace(looks.get() + 1) >= 3;
    let now = || Duration::from_nanos(bench.model.world().now_ns);
    bench.model.world().faults.busy_calls = 1000;
    let before = now();
    let error = bench.hold(&record).boot(is_called_off).unwrap_err();
    assert!(error.contains("was to end before it was started"), "{error}");
    looks.set(0);
    let error = bench.hold(&record).release(&bench.folder("web"), WAIT_MAX, is_called_off).unwrap_err();
    assert!(error.contains("could not unload instance `web`"), "{error}");
    assert!(now() - before < Duration::from_secs(1), "it waited until the kernel was not busy");
    assert_eq!(bench.state("web"), Some(State::Loaded), "as it says");

    bench.model.world().faults.busy_calls = 0;
    assert!(bench.hold(&record).boot(is_called_off).is_err(), "it is not to be started");
    assert_eq!(bench.state("web"), Some(State::Loaded));
    bench.release("web").unwrap();
    assert_eq!(bench.state("web"), None);
}

#[test]
fn acknowledgement_that_another_kernel_never_gives_delays_ours_and_no_more() {
    for (quirk, is_frozen) in [(Quirk::CpuAddAckLost, false), (Quirk::LateAckCompletesNext, true)] {
        let bench = Bench::with_quirk(quirk, true);
        let record = bench.record("web", 1, &[2]);
        bench.hold(&record).make().unwrap();
        {
            let mut world = bench.model.world();
            other(&mut world);
            if is_frozen {
                world.machine.frozen(9);
            }
            begin_cpu_add(&mut world);
        }
        // An overlay waits its turn; a load is told EBUSY meanwhile.
        bench.load(&record).unwrap();
        assert!(bench.model.world().now_ns >= 10_000_000_000, "until it is given up");
        let now_ns = bench.model.world().now_ns;
        if is_frozen {
            bench.model.world().machine.thawed(9, now_ns);
        }
        let mut second = bench.record("db", 3, &[4]);
        bench.make(&mut second).unwrap();
        bench.hold(&record).boot(|| false).unwrap();
        assert_eq!((bench.state("web"), bench.state("db")), (Some(State::Active), Some(State::Loaded)));
        bench.check();
    }
}

#[test]
fn load_into_an_instance_that_has_an_image_is_told_at_once() {
    let bench = Bench::new();
    let record = bench.record("web", 1, &[2]);
    bench.hold(&record).make().unwrap();
    bench.model.world().load(1).unwrap();
    let before_ns = bench.model.world().now_ns;
    let error = bench.load(&record).unwrap_err();
    assert!(error.contains("is to be loaded, and is loaded"), "{error}");
    assert_eq!(bench.model.world().now_ns, before_ns);
}
