//! What a kernel was asked and may do late: no one else gets it, the host included.

use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::Quirk;

use super::bench::{Bench, hangs, is_unknown};
use super::devices::{books_and_kernel, change, give, quirk, running, settle, take, was_reset, wish};
use super::world::{DEVICES, MIB, World};
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::pool::Wish;

const NIC: &str = DEVICES[0];
const NIC_TWO: &str = DEVICES[1];
const DISK: &str = DEVICES[2];

#[test]
fn device_that_may_be_in_use_does_not_go_back_to_the_host() {
    let bench = Bench::new();
    let web = running(&bench, &[]);
    quirk(&bench, Quirk::DeviceAckLost, true);
    assert!(is_unknown(&give(&bench, &web, NIC)));
    assert_eq!(books_and_kernel(&bench, "web").1, [NIC], "its kernel drives it");
    let before = bench.model.world().machine.snapshot().transactions.len();
    let error = change(&bench, &wish(&[NIC_TWO, DISK])).unwrap_err();
    assert!(error.contains(NIC) && error.contains("may be in use in instance `web`"), "{error}");
    assert!(error.ends_with("nothing was changed"), "{error}");
    assert_eq!(bench.model.world().machine.snapshot().transactions.len(), before);
    bench.hold(&web).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    change(&bench, &wish(&[NIC_TWO, DISK])).unwrap();
}

#[test]
fn cpu_that_may_be_in_use_does_not_go_back_to_the_host() {
    let bench = Bench::new();
    let web = bench.running();
    quirk(&bench, Quirk::CpuAddAckLost, true);
    assert!(is_unknown(&bench.live(&web, |live| live.give(PhysicalCpu(6)))));
    let wanted = Wish { cpus: Some([2, 4, 1].map(PhysicalCpu).to_vec()), ..Wish::default() };
    let error = change(&bench, &wanted).unwrap_err();
    assert!(error.contains("CPU 6 cannot be given back") && error.contains("`web`"), "{error}");
    bench.hold(&web).end(|_| ()).unwrap();
    change(&bench, &wanted).unwrap();
}

#[test]
fn device_that_another_program_has_got_meanwhile_is_not_asked_for_again() {
    let bench = Bench::new();
    let web = running(&bench, &[]);
    hangs(&bench, true);
    assert!(is_unknown(&give(&bench, &web, NIC)));
    other_has(&bench, NIC);
    let before = bench.model.world().machine.snapshot().transactions.len();
    assert!(is_unknown(&give(&bench, &web, NIC)) && is_unknown(&settle(&bench, &web, NIC)));
    assert_eq!(bench.model.world().machine.snapshot().transactions.len(), before, "nothing is asked");
}

#[test]
fn device_that_a_kernel_may_have_taken_is_reset_when_that_has_ended_and_not_before() {
    for has_another in [false, true] {
        let bench = Bench::new();
        let web = running(&bench, &[]);
        quirk(&bench, Quirk::DeviceAckLost, true);
        assert!(is_unknown(&give(&bench, &web, NIC)));
        assert!(was_reset(&bench, NIC), "before its kernel gets it");
        if has_another {
            other_has(&bench, NIC);
        }
        bench.hold(&web).end(|_| ()).unwrap();
        assert!(!was_reset(&bench, NIC));
        bench.release("web").unwrap();
        assert_eq!(was_reset(&bench, NIC), !has_another);
    }
}

#[test]
fn device_that_two_instances_have_is_nobodys_to_move_or_to_reset() {
    let bench = Bench::new();
    let web = running(&bench, &[NIC]);
    assert!(was_reset(&bench, NIC));
    other_has(&bench, NIC_TWO);
    bench.model.world().faults.garble = Some(("other/device_tree", &[0, 3, 1, 0], &[0, 3, 0, 0]));
    assert!(is_unknown(&take(&bench, &web, NIC)), "it is not said to be gone");
    assert!(bench.devices(&web, |devices| devices.all()).is_err());
    let error = change(&bench, &wish(&[DISK])).unwrap_err();
    assert!(
        error.contains("0000:03:00.0, which instance `") && error.contains("nothing was changed"),
        "{error}"
    );
    bench.hold(&web).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    assert!(!was_reset(&bench, NIC));
}

#[test]
fn what_comes_while_it_is_looked_is_not_said_to_be_certainly_away() {
    let started = || {
        let bench = Bench::new();
        let web = running(&bench, &[]);
        quirk(&bench, Quirk::DeviceAckLost, true);
        assert!(is_unknown(&give(&bench, &web, NIC)));
        quirk(&bench, Quirk::DeviceAckLost, false);
        bench.model.world().machine.set_quirk(Quirk::CpuAddAckLost, true);
        assert!(is_unknown(&bench.live(&web, |live| live.give(PhysicalCpu(6)))));
        bench.model.world().machine.set_quirk(Quirk::CpuAddAckLost, false);
        (bench, web)
    };
    for at in 0.. {
        let (bench, web) = started();
        let calls = bench.model.world().calls;
        let comes = |world: &mut World| {
            world.overlay("/instances/web", &[Op::DeviceAdd(NIC), Op::CpuAdd(&[6])]);
        };
        bench.model.world().deeds.insert(calls + at, Box::new(comes));
        let devices = bench.devices(&web, |devices| devices.all()).unwrap();
        assert_eq!(devices.len(), 1, "at call {at}: its kernel has it all the time");
        let of_devices = bench.model.world().calls - calls;
        let (bench, web) = started();
        let calls = bench.model.world().calls;
        bench.model.world().deeds.insert(calls + at, Box::new(comes));
        let cpus = bench.live(&web, |live| live.cpus()).unwrap();
        assert!(cpus.iter().any(|cpu| cpu.physical() == 6), "at call {at}: its kernel has it all the time");
        if at > of_devices.max(bench.model.world().calls - calls) {
            break;
        }
    }
}

/// Another program's instance gets a device.
fn other_has(bench: &Bench, device: &str) {
    let other = Op::Create { name: "other", id: Some(20), memory_bytes: MIB, cpus: &[] };
    bench.model.world().overlay("/instances", &[other]);
    bench.model.world().overlay("/instances/other", &[Op::DeviceAdd(device)]);
}
