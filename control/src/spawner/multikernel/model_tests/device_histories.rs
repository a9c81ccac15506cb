//! Random histories of two kernels whose devices move.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::{Instance, Quirk};

use super::bench::Bench;
use super::crashes::check_books;
use super::deeds::{Happening, NAMES, number};
use super::devices::{books_and_kernel, change, function, give, quirk, settle, take, wish};
use super::world::{DEVICES, MIB, dies_of};
use crate::spawner::multikernel::devices::AskedDevice;
use crate::spawner::multikernel::doubts::Asked as _;
use crate::spawner::multikernel::folder;
use crate::spawner::multikernel::record::Record;

/// What happens to kernels whose devices move.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Give one a device, or take it; die at this half of a call.
    Move {
        name: usize,
        device: usize,
        gives: bool,
        dies_at: Option<u64>,
    },
    Settle {
        name: usize,
        device: usize,
    },
    Hangs {
        name: usize,
        hangs: bool,
    },
    Quirk(Quirk, bool),
    /// It ends, and is made with a device and started again; die at this half of a call of that.
    Again {
        name: usize,
        device: usize,
        dies_at: Option<u64>,
    },
    /// Another program makes an instance and gives it a device, or removes it.
    Other {
        device: usize,
        comes: bool,
    },
    /// The pool gets a device, or gives it back.
    Pool {
        device: usize,
        comes: bool,
    },
    Wait(u64),
}

fn turn() -> impl Strategy<Value = Turn> {
    let (name, device) = (0..2_usize, 0..DEVICES.len());
    let dies_at = || prop::option::weighted(0.2, 0..160_u64);
    let quirks = [
        Quirk::DeviceAckLost,
        Quirk::DeviceTwiceFails,
        Quirk::DeviceNeedsKnownBus,
        Quirk::DeviceShortageWarns,
        Quirk::PoolTreeShowsLentDevices,
        Quirk::LateAckCompletesNext,
        Quirk::HalfAppliedOverlay,
        Quirk::WriteSucceedsOnFailure,
    ];
    prop_oneof![
        6 => (name.clone(), device.clone(), any::<bool>(), dies_at())
            .prop_map(|(name, device, gives, dies_at)| Turn::Move { name, device, gives, dies_at }),
        1 => (name.clone(), device.clone()).prop_map(|(name, device)| Turn::Settle { name, device }),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, hangs)| Turn::Hangs { name, hangs }),
        2 => (prop::sample::select(quirks.to_vec()), any::<bool>()).prop_map(|(quirk, on)| Turn::Quirk(quirk, on)),
        2 => (name, device.clone(), dies_at())
            .prop_map(|(name, device, dies_at)| Turn::Again { name, device, dies_at }),
        1 => (device.clone(), any::<bool>()).prop_map(|(device, comes)| Turn::Other { device, comes }),
        1 => (device, any::<bool>()).prop_map(|(device, comes)| Turn::Pool { device, comes }),
        1 => (0..20_u64).prop_map(Turn::Wait),
    ]
}

/// Each device is used in one kernel of ours, as the books say, or is in doubt in that one.
fn check(bench: &Bench, records: &BTreeMap<usize, Record>) {
    bench.check();
    check_books(&bench.model.world().machine);
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for (name, record) in records {
        let (books, kernel) = books_and_kernel(bench, NAMES[*name]);
        let Ok(devices) = bench.devices(record, |devices| devices.all()) else { panic!("it cannot be told") };
        let in_doubt: Vec<String> = devices
            .iter()
            .filter(|device| device.may_change)
            .map(|device| device.function.to_string())
            .collect();
        let settled = |devices: &[String]| -> Vec<String> {
            devices.iter().filter(|device| !in_doubt.contains(device)).cloned().collect()
        };
        assert_eq!(settled(&books), settled(&kernel), "{}: {devices:?}", NAMES[*name]);
        for device in kernel {
            assert_eq!(users.insert(device.clone(), *name), None, "{device} is used twice");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn device_that_moves_is_used_in_one_kernel_whatever_happens(turns in prop::collection::vec(turn(), 1..25)) {
        let bench = Bench::new();
        quirk(&bench, Quirk::DeviceNeedsKnownBus, false);
        let mut records = BTreeMap::new();
        let start = |records: &mut BTreeMap<usize, Record>, name: usize, device: Option<usize>| {
            let cpus = [[2], [4]][name];
            let devices = device.into_iter().map(|device| function(DEVICES[device])).collect();
            let record = bench.record(NAMES[name], u16::try_from(number(name)).unwrap(), &cpus);
            let mut record = Record { devices, ..record };
            // The device may not be to be had.
            if bench.make(&mut record).is_ok() {
                bench.hold(&record).boot(|| false).unwrap();
                records.insert(name, record);
            } else {
                bench.release(NAMES[name]).unwrap();
                assert_eq!(bench.state(NAMES[name]), None);
            }
        };
        (0..2).for_each(|name| start(&mut records, name, None));
        for turn in turns {
            let calls = bench.model.world().calls;
            let dying = |dies_at: Option<u64>, act: &mut dyn FnMut()| {
                bench.model.world().crash_at = dies_at.map(|half| 2 * calls + half);
                let died = dies_of(act);
                bench.model.world().crash_at = None;
                if died {
                    let _ = fs::remove_file(bench.lock());
                }
                died
            };
            match turn {
                Turn::Move { name, device, gives, dies_at } => {
                    if let Some(record) = records.get(&name) {
                        let address = DEVICES[device];
                        dying(dies_at, &mut || {
                            let done = if gives { give(&bench, record, address) } else { take(&bench, record, address) };
                            if done.is_ok() {
                                let (books, kernel) = books_and_kernel(&bench, NAMES[name]);
                                let has = |all: &[String]| all.iter().any(|device| device == address);
                                assert_eq!((has(&books), has(&kernel)), (gives, gives), "it says that it is so");
                            }
                        });
                    }
                }
                Turn::Settle { name, device } => {
                    if let Some(record) = records.get(&name) {
                        let _ = settle(&bench, record, DEVICES[device]);
                    }
                }
                Turn::Hangs { name, hangs } => Happening::Hangs { name, hangs }.happen(&mut bench.model.world()),
                Turn::Quirk(quirk, on) => bench.model.world().machine.set_quirk(quirk, on),
                Turn::Again { name, device, dies_at } => {
                    if let Some(record) = records.remove(&name) {
                        bench.hold(&record).end(|_| ()).unwrap();
                        bench.release(NAMES[name]).unwrap();
                    }
                    if dying(dies_at, &mut || start(&mut records, name, Some(device))) {
                        // As the next daemon does it.
                        records.remove(&name);
                        folder::end(&bench.model, &bench.folder(NAMES[name])).unwrap();
                        bench.release(NAMES[name]).unwrap();
                        assert_eq!(bench.state(NAMES[name]), None);
                    }
                }
                Turn::Other { device, comes } => {
                    let mut world = bench.model.world();
                    match comes {
                        true => {
                            world.overlay("/instances", &[Op::Create { name: "other", id: None, memory_bytes: MIB, cpus: &[] }]);
                            // What no kernel of ours may use by now: that no program could know.
                            let is_used = |instance: &&Instance| {
                                instance.guest.as_ref().is_some_and(|guest| guest.devices.iter().any(|used| used == DEVICES[device]))
                            };
                            let is_waited_for = records.keys().any(|name| bench.folder(NAMES[*name]).join(AskedDevice::NAME).exists());
                            if !is_waited_for && world.machine.snapshot().instances.iter().copied().find(is_used).is_none() {
                                world.overlay("/instances/other", &[Op::DeviceAdd(DEVICES[device])]);
                            }
                        }
                        false => world.overlay("/instances", &[Op::Remove("other")]),
                    }
                }
                Turn::Pool { device, comes } => {
                    let mut wanted: Vec<&str> = {
                        let world = bench.model.world();
                        let pool = world.machine.pool().unwrap();
                        let all = pool.devices.iter().chain(&pool.devices_lent);
                        let of = |address: &&str| all.clone().any(|device| device.pci_id == **address);
                        DEVICES.into_iter().filter(of).collect()
                    };
                    wanted.retain(|other| *other != DEVICES[device]);
                    if comes {
                        wanted.push(DEVICES[device]);
                    }
                    let _ = change(&bench, &wish(&wanted));
                }
                Turn::Wait(seconds) => bench.model.world().pass(Duration::from_secs(seconds)),
            }
            check(&bench, &records);
        }
    }
}
