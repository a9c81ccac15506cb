//! Devices: set aside, given to instances that are made, and to and from kernels that run. What the host's books say of it, and what the kernels have.

use std::fs;
use std::time::Duration;

use tombolo_handover::PciAddress;
use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::Quirk;

use super::bench::{Bench, hangs, is_unknown, refusal};
use super::crashes::check_books;
use super::deeds::Happening;
use super::world::{DEVICES, MIB, World, dies_of};
use crate::spawner::multikernel::devices::{AskedDevice, LiveDevice, LiveDevices};
use crate::spawner::multikernel::doubts::Asked as _;
use crate::spawner::multikernel::host_pci::{Allowed, bench as host};
use crate::spawner::multikernel::live::LiveError;
use crate::spawner::multikernel::pool::{NamedFunction, Wish, change_on};
use crate::spawner::multikernel::record::Record;

const SECOND_NS: u64 = 1_000_000_000;
/// Two functions of one card, another card, and one that the host has.
const NIC: &str = DEVICES[0];
const NIC_TWO: &str = DEVICES[1];
const DISK: &str = DEVICES[2];
const OF_HOST: &str = DEVICES[3];

pub(super) fn function(address: &str) -> PciAddress {
    address.parse().unwrap()
}

pub(super) fn give(bench: &Bench, record: &Record, address: &str) -> Result<(), LiveError> {
    bench.devices(record, |devices| devices.give(function(address)))
}

pub(super) fn take(bench: &Bench, record: &Record, address: &str) -> Result<(), LiveError> {
    bench.devices(record, |devices| devices.take(function(address)))
}

pub(super) fn settle(bench: &Bench, record: &Record, address: &str) -> Result<(), LiveError> {
    bench.devices(record, |devices| devices.settle(function(address)))
}

/// What is said of a device.
fn seen(bench: &Bench, record: &Record, address: &str) -> Option<LiveDevice> {
    let devices = bench.devices(record, |devices| devices.all()).unwrap();
    devices.into_iter().find(|seen| seen.function == function(address))
}

fn there(address: &str) -> LiveDevice {
    LiveDevice { function: function(address), is_there: true, may_change: false }
}

/// The devices that the host's books give to an instance, and those that its kernel has.
pub(super) fn books_and_kernel(bench: &Bench, name: &str) -> (Vec<String>, Vec<String>) {
    let world = bench.model.world();
    let instance = world.machine.instance(name).unwrap();
    let mut booked: Vec<String> = instance.devices.iter().map(|device| device.pci_id.clone()).collect();
    let mut has = instance.guest.as_ref().map(|guest| guest.devices.clone()).unwrap_or_default();
    booked.sort();
    has.sort();
    (booked, has)
}

fn both(devices: &[&str]) -> (Vec<String>, Vec<String>) {
    let devices: Vec<String> = devices.iter().map(ToString::to_string).collect();
    (devices.clone(), devices)
}

/// Those that are free by the host's books.
pub(super) fn free(bench: &Bench) -> Vec<String> {
    let mut free: Vec<String> = bench
        .model
        .world()
        .machine
        .pool()
        .unwrap()
        .devices
        .iter()
        .map(|device| device.pci_id.clone())
        .collect();
    free.sort();
    free
}

/// How often a function was reset: the file holds what was written to it last.
pub(super) fn was_reset(bench: &Bench, address: &str) -> bool {
    let file = bench.pci().join("devices").join(address).join("reset");
    let was = fs::read_to_string(&file).unwrap() == "1";
    fs::write(file, "").unwrap();
    was
}

pub(super) fn quirk(bench: &Bench, quirk: Quirk, on: bool) {
    bench.model.world().machine.set_quirk(quirk, on);
}

/// `web`, to be made with these devices.
fn web(bench: &Bench, devices: &[&str]) -> Record {
    let devices = devices.iter().map(|address| function(address)).collect();
    Record { devices, ..bench.record("web", 1, &[2, 4]) }
}

/// The same, running, in a world where kernels find devices on any bus.
pub(super) fn running(bench: &Bench, devices: &[&str]) -> Record {
    quirk(bench, Quirk::DeviceNeedsKnownBus, false);
    let mut record = web(bench, devices);
    bench.make(&mut record).unwrap();
    bench.hold(&record).boot(|| false).unwrap();
    record
}

pub(super) fn wish(devices: &[&str]) -> Wish {
    let named = |address: &&str| NamedFunction { function: function(address), alias: None };
    Wish { devices: Some(devices.iter().map(named).collect()), ..Wish::default() }
}

pub(super) fn change(bench: &Bench, wish: &Wish) -> Result<Vec<String>, String> {
    change_on(&bench.model, &bench.settings(), &bench.instances(), wish, false)
}

#[test]
fn pool_gets_devices_and_gives_them_back_and_the_tree_shows_it() {
    for shows_lent in [true, false] {
        let bench = Bench::with_quirk(Quirk::PoolTreeShowsLentDevices, shows_lent);
        let done = change(&bench, &wish(&[NIC, NIC_TWO, OF_HOST])).unwrap();
        assert_eq!(
            done,
            [format!("take device {OF_HOST} from the host"), format!("give device {DISK} back to the host")]
        );
        assert_eq!(free(&bench), [NIC, NIC_TWO, OF_HOST]);
        assert_eq!(change(&bench, &wish(&[NIC, NIC_TWO, OF_HOST])), Ok(vec![]), "it is so already");
        bench.make(&mut web(&bench, &[NIC])).unwrap();
        let error = change(&bench, &wish(&[NIC_TWO])).unwrap_err();
        assert!(error.contains("instance `web` has it; nothing was changed"), "{error}");
        assert_eq!(change(&bench, &wish(&[NIC, NIC_TWO, OF_HOST])), Ok(vec![]), "lent ones are of the pool");
        check_books(&bench.model.world().machine);
    }
}

#[test]
fn device_that_this_host_uses_is_not_set_aside_and_nothing_else_is_changed() {
    let bench = Bench::new();
    let wanted = wish(&[NIC, NIC_TWO, OF_HOST]);
    host::drive(&bench.pci(), OF_HOST, "nvme");
    let error = change(&bench, &wanted).unwrap_err();
    assert!(error.contains("driven here, by `nvme`") && error.contains("unbind"), "{error}");
    assert!(error.ends_with("; nothing was changed"), "{error}");
    assert!(bench.model.world().machine.snapshot().transactions.is_empty());
    host::idle(&bench.pci(), OF_HOST);
    change(&bench, &wanted).unwrap();
}

#[test]
fn device_without_iommu_or_reset_is_set_aside_only_if_that_may_be() {
    let bench = Bench::new();
    let folder = bench.pci().join("devices").join(OF_HOST);
    fs::remove_file(folder.join("iommu_group")).unwrap();
    fs::remove_file(folder.join("reset")).unwrap();
    let wanted = wish(&[NIC, NIC_TWO, DISK, OF_HOST]);
    let error = change(&bench, &wanted).unwrap_err();
    assert!(error.contains("no IOMMU") && error.contains("nothing was changed"), "{error}");
    let some = Wish { allowed: Allowed { no_iommu: true, no_reset: false }, ..wanted.clone() };
    assert!(change(&bench, &some).unwrap_err().contains("cannot be reset"));
    let all = Wish { allowed: Allowed { no_iommu: true, no_reset: true }, ..wanted };
    change(&bench, &all).unwrap();
    assert_eq!(free(&bench), DEVICES);
}

#[test]
fn device_that_the_kernel_did_not_take_is_no_success() {
    let bench = Bench::new();
    // An operation that the kernel does not know is skipped, with success.
    bench.model.world().faults.rename = Some((b"device-add", b"device-odd"));
    let error = change(&bench, &wish(&[NIC, NIC_TWO, DISK, OF_HOST])).unwrap_err();
    assert!(error.contains(&format!("could not take device {OF_HOST}")), "{error}");
    assert!(error.contains("nothing of it is in effect"), "{error}");
    bench.model.world().faults.rename = Some((b"device-remove", b"device-remodl"));
    assert!(change(&bench, &wish(&[NIC, NIC_TWO])).is_err(), "and one that it did not give back");
}

#[test]
fn instance_is_made_with_its_devices_and_each_is_reset_before() {
    for shows_lent in [true, false] {
        let bench = Bench::with_quirk(Quirk::PoolTreeShowsLentDevices, shows_lent);
        let mut record = web(&bench, &[NIC, DISK]);
        bench.make(&mut record).unwrap();
        assert_eq!(books_and_kernel(&bench, "web").0, [NIC, DISK]);
        assert!(was_reset(&bench, NIC) && was_reset(&bench, DISK) && !was_reset(&bench, NIC_TWO));
        bench.hold(&record).boot(|| false).unwrap();
        assert_eq!(books_and_kernel(&bench, "web"), both(&[NIC, DISK]));
        bench.hold(&record).end(|_| ()).unwrap();
        bench.release("web").unwrap();
        assert!(was_reset(&bench, NIC), "what a kernel left in it does not go on");
        assert_eq!(free(&bench), [NIC, NIC_TWO, DISK]);
        bench.check();
    }
}

#[test]
fn instance_whose_device_is_silently_not_reserved_is_given_back() {
    for warns in [true, false] {
        let bench = Bench::with_quirk(Quirk::DeviceShortageWarns, warns);
        // Another program, which does not keep to the lock, takes it between our look and our overlay.
        let steal = |world: &mut World| {
            world.overlay(
                "/instances",
                &[Op::Create { name: "other", id: Some(20), memory_bytes: MIB, cpus: &[] }],
            );
            world.overlay("/instances/other", &[Op::DeviceAdd(DISK)]);
        };
        let calls = {
            let probe = Bench::with_quirk(Quirk::DeviceShortageWarns, warns);
            probe.make(&mut web(&probe, &[NIC, DISK])).unwrap();
            probe.model.world().calls
        };
        // Wherever it comes: the instance is made with it, or not at all.
        for at in 0..calls {
            let bench = if at == 0 { &bench } else { &Bench::with_quirk(Quirk::DeviceShortageWarns, warns) };
            bench.model.world().deeds.insert(at, Box::new(steal));
            match bench.make(&mut web(bench, &[NIC, DISK])) {
                Ok(()) => assert_eq!(books_and_kernel(bench, "web").0, [NIC, DISK], "at call {at}"),
                Err(error) => {
                    assert!(
                        error.contains(DISK) && error.contains("nothing of it is left"),
                        "at call {at}: {error}"
                    );
                    assert_eq!(bench.state("web"), None);
                    assert_eq!(free(bench), [NIC, NIC_TWO]);
                }
            }
            bench.check();
        }
    }
}

#[test]
fn device_that_cannot_be_had_is_told_and_the_instance_is_given_back() {
    let bench = Bench::new();
    let refused = |bench: &Bench, address: &str| {
        let error = bench.make(&mut web(bench, &[NIC, address])).unwrap_err();
        assert!(error.contains(address) && error.contains("nothing of it is left"), "{error}");
        bench.release("web").unwrap();
        assert_eq!((bench.state("web"), free(bench).contains(&NIC.to_owned())), (None, true));
        error
    };
    assert!(refused(&bench, OF_HOST).contains("not in the pool; `tombolo multikernel pool --devices`"));
    let other = Op::Create { name: "other", id: Some(20), memory_bytes: MIB, cpus: &[] };
    bench.model.world().overlay("/instances", &[other]);
    bench.model.world().overlay("/instances/other", &[Op::DeviceAdd(DISK)]);
    assert!(refused(&bench, DISK).contains("instance `other` has it"));
    // A driver of the host took it since it came to the pool: a module was loaded, say.
    host::drive(&bench.pci(), NIC_TWO, "ixgbe");
    assert!(refused(&bench, NIC_TWO).contains("driven here, by `ixgbe`"));
    host::idle(&bench.pci(), NIC_TWO);
    let reset = bench.pci().join("devices").join(NIC_TWO).join("reset");
    fs::remove_file(&reset).unwrap();
    fs::create_dir(&reset).unwrap();
    assert!(refused(&bench, NIC_TWO).contains("was not reset"));
    bench.check();
}

#[test]
fn device_comes_and_goes_while_its_kernel_runs() {
    for shows_lent in [true, false] {
        let bench = Bench::with_quirk(Quirk::PoolTreeShowsLentDevices, shows_lent);
        let web = running(&bench, &[NIC]);
        give(&bench, &web, DISK).unwrap();
        give(&bench, &web, DISK).unwrap();
        assert!(was_reset(&bench, DISK));
        assert_eq!(books_and_kernel(&bench, "web"), both(&[NIC, DISK]));
        assert_eq!((seen(&bench, &web, DISK), free(&bench)), (Some(there(DISK)), vec![NIC_TWO.to_owned()]));
        take(&bench, &web, DISK).unwrap();
        take(&bench, &web, DISK).unwrap();
        take(&bench, &web, NIC).unwrap();
        assert_eq!(books_and_kernel(&bench, "web"), both(&[]));
        assert_eq!(free(&bench), [NIC, NIC_TWO, DISK]);
        assert!(!bench.folder("web").join(AskedDevice::NAME).exists(), "nothing is open");
    }
}

#[test]
fn kernel_that_knows_no_such_bus_refuses_and_nothing_is_in_doubt() {
    let bench = Bench::new();
    let mut web = web(&bench, &[NIC]);
    bench.make(&mut web).unwrap();
    bench.hold(&web).boot(|| false).unwrap();
    give(&bench, &web, NIC_TWO).unwrap();
    assert!(refusal(give(&bench, &web, DISK)).contains("only on a bus that it found when it booted"));
    assert_eq!((seen(&bench, &web, DISK), books_and_kernel(&bench, "web")), (None, both(&[NIC, NIC_TWO])));
    assert_eq!(free(&bench), [DISK]);
}

#[test]
fn device_that_cannot_be_had_is_refused_before_the_kernel_is_asked() {
    let bench = Bench::new();
    let web = running(&bench, &[]);
    let other = Op::Create { name: "other", id: Some(20), memory_bytes: MIB, cpus: &[] };
    bench.model.world().overlay("/instances", &[other]);
    bench.model.world().overlay("/instances/other", &[Op::DeviceAdd(DISK)]);
    host::drive(&bench.pci(), NIC, "ixgbe");
    let before = bench.model.world().machine.snapshot().transactions.len();
    assert!(refusal(give(&bench, &web, DISK)).contains("`other` has it"));
    assert!(refusal(give(&bench, &web, OF_HOST)).contains("not in the pool"));
    assert!(refusal(give(&bench, &web, NIC)).contains("driven here"));
    bench.model.world().machine.halted(1);
    assert!(refusal(give(&bench, &web, NIC_TWO)).contains("no kernel runs"));
    assert_eq!(bench.model.world().machine.snapshot().transactions.len(), before);
    let fixed = Record { moves_devices: false, ..web };
    assert!(
        LiveDevices::on(&bench.model, &fixed, &bench.folder("web")).is_none(),
        "they are not the ledger's"
    );
}

#[test]
fn device_whose_acknowledgement_is_lost_stays_in_doubt_until_its_kernel_answers() {
    let bench = Bench::new();
    let web = running(&bench, &[]);
    quirk(&bench, Quirk::DeviceAckLost, true);
    assert!(is_unknown(&give(&bench, &web, NIC)));
    assert_eq!(books_and_kernel(&bench, "web"), (vec![], vec![NIC.to_owned()]), "the kernel has it");
    assert!(free(&bench).contains(&NIC.to_owned()), "and it is free by the books");
    let in_doubt = LiveDevice { function: function(NIC), is_there: false, may_change: true };
    assert_eq!(seen(&bench, &web, NIC), Some(in_doubt));
    assert!(was_reset(&bench, NIC));
    assert!(is_unknown(&take(&bench, &web, NIC)), "it is not known to be gone");
    assert!(is_unknown(&give(&bench, &web, NIC)) && is_unknown(&settle(&bench, &web, NIC)), "lost again");
    quirk(&bench, Quirk::DeviceAckLost, false);
    settle(&bench, &web, NIC).unwrap();
    assert!(!was_reset(&bench, NIC), "its kernel may use it");
    assert_eq!((seen(&bench, &web, NIC), books_and_kernel(&bench, "web")), (Some(there(NIC)), both(&[NIC])));
}

#[test]
fn kernel_that_refuses_the_device_that_it_has_is_in_doubt_until_it_ends() {
    let bench = Bench::with_quirk(Quirk::DeviceTwiceFails, true);
    let web = running(&bench, &[]);
    quirk(&bench, Quirk::DeviceAckLost, true);
    assert!(is_unknown(&give(&bench, &web, NIC)));
    quirk(&bench, Quirk::DeviceAckLost, false);
    assert!(is_unknown(&settle(&bench, &web, NIC)));
    assert_eq!(seen(&bench, &web, NIC).map(|seen| seen.may_change), Some(true));
    bench.hold(&web).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    let web = running(&bench, &[]);
    assert_eq!(seen(&bench, &web, NIC), None);
    give(&bench, &web, NIC).unwrap();
}

#[test]
fn device_that_a_kernel_did_not_let_go_in_time_may_leave_yet() {
    let bench = Bench::new();
    let web = running(&bench, &[NIC]);
    hangs(&bench, true);
    assert!(is_unknown(&take(&bench, &web, NIC)));
    let leaving = LiveDevice { may_change: true, ..there(NIC) };
    assert_eq!(seen(&bench, &web, NIC), Some(leaving));
    assert!(is_unknown(&give(&bench, &web, NIC)), "it is not known to stay");
    hangs(&bench, false);
    assert_eq!(
        books_and_kernel(&bench, "web"),
        (vec![NIC.to_owned()], vec![]),
        "it let it go when nobody waited"
    );
    assert_eq!(seen(&bench, &web, NIC), Some(leaving));
    settle(&bench, &web, NIC).unwrap();
    assert_eq!(
        (seen(&bench, &web, NIC), free(&bench)),
        (None, [NIC, NIC_TWO, DISK].map(str::to_owned).to_vec())
    );
}

#[test]
fn late_acknowledgement_that_completes_the_next_operation_is_of_the_same_device_and_kernel() {
    let bench = Bench::new();
    let web = running(&bench, &[]);
    hangs(&bench, true);
    assert!(is_unknown(&give(&bench, &web, NIC)));
    // The answer to the first comes while the second is waited for.
    let thaw = |world: &mut World| Happening::Hangs { name: 0, hangs: false }.happen(world);
    bench.model.world().while_waiting = Some((SECOND_NS, Box::new(thaw)));
    settle(&bench, &web, NIC).unwrap();
    bench.model.world().pass(Duration::from_secs(1));
    assert_eq!(books_and_kernel(&bench, "web"), both(&[NIC]));
}

#[test]
fn device_that_may_be_in_use_is_given_to_no_other_kernel() {
    let bench = Bench::new();
    let web = running(&bench, &[]);
    let mut db = bench.record("db", 2, &[6]);
    bench.make(&mut db).unwrap();
    bench.hold(&db).boot(|| false).unwrap();
    hangs(&bench, true);
    assert!(is_unknown(&give(&bench, &web, NIC)));
    assert!(refusal(give(&bench, &db, NIC)).contains("may be in use in instance `web`"));
    let mut cache = Record { devices: vec![function(NIC)], ..bench.record("cache", 3, &[1]) };
    let error = bench.make(&mut cache).unwrap_err();
    assert!(
        error.contains("may be in use in instance `web`") && error.contains("nothing of it is left"),
        "{error}"
    );
    bench.hold(&web).end(|_| ()).unwrap();
    give(&bench, &db, NIC).unwrap();
}

#[test]
fn what_the_iommu_does_not_tell_apart_is_given_to_one_kernel() {
    let bench = Bench::new();
    host::regroup(&bench.pci(), NIC_TWO, 1);
    let web = running(&bench, &[NIC]);
    let db = Record { devices: vec![function(NIC_TWO)], ..bench.record("db", 2, &[6]) };
    let error = bench.make(&mut db.clone()).unwrap_err();
    assert!(error.contains("does not tell it apart from 0000:03:00.0, which instance `web` has"), "{error}");
    give(&bench, &web, NIC_TWO).unwrap();
    take(&bench, &web, NIC).unwrap();
    take(&bench, &web, NIC_TWO).unwrap();
    hangs(&bench, true);
    assert!(is_unknown(&give(&bench, &web, NIC)));
    let error = bench.make(&mut db.clone()).unwrap_err();
    assert!(error.contains("0000:03:00.0, of its IOMMU group, may be in use in instance `web`"), "{error}");
}

#[test]
fn device_doubts_that_cannot_be_read_are_not_taken_for_none() {
    let bench = Bench::new();
    let web = running(&bench, &[DISK]);
    fs::write(bench.folder("web").join(AskedDevice::NAME), "{").unwrap();
    assert!(is_unknown(&give(&bench, &web, NIC)) && is_unknown(&take(&bench, &web, DISK)));
    assert!(bench.devices(&web, |devices| devices.all()).is_err());
    let mut db = Record { devices: vec![function(NIC)], ..bench.record("db", 2, &[6]) };
    assert!(bench.make(&mut db).unwrap_err().contains("cannot be read"));
    assert_eq!(books_and_kernel(&bench, "web"), both(&[DISK]));
}

#[test]
fn device_that_only_the_answer_shows_is_none() {
    let bench = Bench::new();
    let web = running(&bench, &[DISK]);
    // An operation that the kernel does not know is skipped, with success.
    bench.model.world().faults.rename = Some((b"device-add", b"device-odd"));
    assert!(is_unknown(&give(&bench, &web, NIC)));
    bench.model.world().faults.rename = Some((b"device-remove", b"device-remodl"));
    assert!(is_unknown(&take(&bench, &web, DISK)));
    bench.model.world().faults.rename = None;
    for address in [NIC, DISK] {
        assert_eq!(seen(&bench, &web, address).map(|seen| seen.may_change), Some(true));
        settle(&bench, &web, address).unwrap();
    }
    assert_eq!(books_and_kernel(&bench, "web"), both(&[NIC]));
}

#[test]
fn tree_whose_devices_are_not_understood_moves_none_and_keeps_cpus_moving() {
    let bench = Bench::new();
    let web = running(&bench, &[DISK]);
    let other = Op::Create { name: "other", id: Some(20), memory_bytes: MIB, cpus: &[] };
    bench.model.world().overlay("/instances", &[other]);
    bench.model.world().overlay("/instances/other", &[Op::DeviceAdd(NIC)]);
    bench.model.world().faults.garble = Some(("other/device_tree", b"linux,pci-domain", b"linux,PCI-domain"));
    assert!(is_unknown(&take(&bench, &web, DISK)), "what that tree would have told is not known");
    assert!(change(&bench, &wish(&[])).unwrap_err().contains("linux,pci-domain"));
    bench.live(&web, |live| live.give(crate::spawner::multikernel::ids::PhysicalCpu(6))).unwrap();
    bench.model.world().faults.garble = None;
    take(&bench, &web, DISK).unwrap();
}

#[test]
fn death_at_any_call_leaves_devices_that_are_known_or_in_doubt() {
    for gives in [true, false] {
        let mut is_noted = false;
        for half in 0.. {
            let bench = Bench::new();
            let web = running(&bench, if gives { &[] } else { &[NIC] });
            {
                let mut world = bench.model.world();
                world.crash_at = Some(2 * world.calls + half);
            }
            let died =
                dies_of(|| if gives { give(&bench, &web, NIC) } else { take(&bench, &web, NIC) }.unwrap());
            bench.model.world().crash_at = None;
            is_noted |= bench.folder("web").join(AskedDevice::NAME).exists();
            let found = seen(&bench, &web, NIC);
            let (books, kernel) = books_and_kernel(&bench, "web");
            assert_eq!(books, kernel, "half {half}");
            assert_eq!(found, (!books.is_empty()).then_some(there(NIC)), "half {half}");
            take(&bench, &web, NIC).unwrap();
            if !died {
                break;
            }
        }
        assert!(is_noted, "it never died in between");
    }
}

#[test]
fn death_at_any_call_of_making_one_with_devices_leaves_nothing_behind() {
    for half in 0.. {
        let bench = Bench::new();
        let calls = bench.model.world().calls;
        bench.model.world().crash_at = Some(2 * calls + half);
        let died = dies_of(|| bench.make(&mut web(&bench, &[NIC, DISK])).unwrap());
        bench.model.world().crash_at = None;
        let _ = fs::remove_file(bench.lock());
        if died {
            bench.release("web").unwrap();
            assert_eq!((bench.state("web"), free(&bench).len()), (None, 3), "half {half}");
        }
        bench.check();
        check_books(&bench.model.world().machine);
        bench.release("web").unwrap();
        bench.make(&mut web(&bench, &[NIC, DISK])).unwrap();
        if !died {
            break;
        }
    }
}
