//! Nothing that is written makes the model panic, and its books always add up.

use proptest::prelude::*;

use super::testing::{Bench, GRANULE, NIC};
use super::{Machine, Quirk, RebootCommand};
use crate::dtb::{Op, baseline, overlay};

/// Trees with some bytes changed, cut, or made of nothing at all.
fn blob() -> impl Strategy<Value = Vec<u8>> {
    let trees = prop_oneof![
        Just(baseline(&[2, 4], &[(GRANULE, Some(0))], &[NIC])),
        Just(overlay(Some("note"), &[("/instances/web", &[Op::CpuAdd(&[6]), Op::MemoryAdd(0, GRANULE)])])),
        Just(overlay(None, &[("/resources", &[Op::PoolMemoryAdd(GRANULE), Op::DeviceRemove(NIC)])])),
    ];
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let changed = (trees, changes, any::<prop::sample::Index>(), prop::bool::weighted(0.2)).prop_map(
        |(mut tree, changes, end, cut)| {
            for (at, byte) in changes {
                let at = at.index(tree.len());
                tree[at] = byte;
            }
            if cut {
                tree.truncate(end.index(tree.len()));
            }
            tree
        },
    );
    prop_oneof![changed, proptest::collection::vec(any::<u8>(), 0..200)]
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("device_tree".to_owned()),
        Just("overlays/new".to_owned()),
        "[a-z_/0-9]{0,20}",
        any::<String>(),
    ]
}

/// An operation on an instance or the pool.
#[derive(Clone, Debug)]
enum Act {
    Write(String, u64, Vec<u8>),
    Overlay(u8, u8, u64),
    Rmdir(u64),
    Load(u32),
    Unload(u32),
    Reboot(u8, u32),
    Frozen(u32, bool),
    Ended(u32, bool),
    Pass(u64),
    Quirk(u8, bool),
}

fn act() -> impl Strategy<Value = Act> {
    let id = 0..4_u32;
    prop_oneof![
        (path(), 0..3_u64, blob()).prop_map(|(path, offset, blob)| Act::Write(path, offset, blob)),
        (any::<u8>(), any::<u8>(), 0..9_u64).prop_map(|(op, target, n)| Act::Overlay(op, target, n)),
        (0..12_u64).prop_map(Act::Rmdir),
        id.clone().prop_map(Act::Load),
        id.clone().prop_map(Act::Unload),
        (any::<u8>(), id.clone()).prop_map(|(command, id)| Act::Reboot(command, id)),
        (id.clone(), any::<bool>()).prop_map(|(id, frozen)| Act::Frozen(id, frozen)),
        (id, any::<bool>()).prop_map(|(id, panicked)| Act::Ended(id, panicked)),
        (0..40_000_000_000_u64).prop_map(Act::Pass),
        (any::<u8>(), any::<bool>()).prop_map(|(quirk, on)| Act::Quirk(quirk, on)),
    ]
}

fn perform(bench: &mut Bench, act: &Act) {
    let now_ns = bench.now_ns;
    match act {
        // What is refused is refused: only panics matter.
        Act::Write(path, offset, blob) => {
            let _ = bench.machine.write(path, *offset, blob, now_ns);
        }
        Act::Overlay(op, target, n) => {
            let base = bench.machine.pool().and_then(|pool| pool.chunks.first()).map_or(0, |c| c.range.base);
            let (cpus, at) = ([*n], base + n * GRANULE);
            let name = ["a", "b", "c"][usize::from(target % 3)];
            let instance = format!("/instances/{name}");
            let target = if target & 4 == 0 { instance.as_str() } else { "/resources" };
            let op = match op % 9 {
                0 | 1 => Op::Create { name, id: None, memory_bytes: n * GRANULE, cpus: &cpus },
                2 => Op::Remove(name),
                3 => Op::CpuAdd(&cpus),
                4 => Op::CpuRemove(&cpus),
                5 => Op::MemoryAdd(at, GRANULE),
                6 => Op::MemoryRemove(at, GRANULE),
                7 => Op::DeviceAdd(NIC),
                _ => Op::DeviceRemove(NIC),
            };
            let _ = bench.begin(&[(target, &[op])]);
        }
        Act::Rmdir(id) => {
            let _ = bench.machine.rmdir(&format!("overlays/tx_{id}"), now_ns);
        }
        Act::Load(id) => {
            let _ = bench.load(*id);
        }
        Act::Unload(id) => {
            let _ = bench.unload(*id);
        }
        Act::Reboot(command, id) => {
            let command = match command % 4 {
                0 | 1 => RebootCommand::Boot,
                2 => RebootCommand::Halt,
                _ => RebootCommand::ForceHalt,
            };
            let _ = bench.machine.reboot(command, *id, now_ns);
        }
        Act::Frozen(id, true) => bench.machine.frozen(*id),
        Act::Frozen(id, false) => bench.machine.thawed(*id, now_ns),
        Act::Ended(id, true) => bench.machine.panicked(*id),
        Act::Ended(id, false) => bench.machine.halted(*id),
        Act::Pass(ns) => bench.pass(*ns),
        Act::Quirk(quirk, on) => {
            bench.machine.set_quirk(Quirk::ALL[usize::from(*quirk) % Quirk::ALL.len()], *on);
        }
    }
}

/// Every CPU, byte and device is somewhere, once.
fn check_books(machine: &Machine) {
    let snapshot = machine.snapshot();
    let mut cpus = snapshot.host.cpus.clone();
    cpus.extend(snapshot.pool.iter().flat_map(|pool| &pool.cpus));
    cpus.sort_unstable();
    let mut all: Vec<u64> = machine.config().physical_cpus().collect();
    all.sort_unstable();
    assert_eq!(cpus, all);
    let devices = snapshot.host.devices.len()
        + snapshot.pool.map_or(0, |pool| pool.devices.len() + pool.devices_lent.len());
    assert_eq!(devices, machine.config().devices.len());
    let Some(pool) = snapshot.pool else { return };
    for pair in pool.used.windows(2) {
        assert!(pair[0].end() <= pair[1].base, "{pair:?} overlap");
    }
    let granted: u64 = snapshot.instances.iter().map(|instance| instance.memory_bytes()).sum();
    assert_eq!(granted, pool.used.iter().map(|range| range.size).sum::<u64>());
    for instance in snapshot.instances {
        assert!(instance.cpus.iter().all(|cpu| pool.cpus.contains(cpu) && !pool.cpus_free.contains(cpu)));
    }
}

proptest! {
    #[test]
    fn random_bytes_in_writable_files_never_panic(writes in proptest::collection::vec((path(), blob()), 1..8)) {
        let mut bench = Bench::with_pool();
        bench.create("web");
        for (path, blob) in writes {
            let _ = bench.machine.write(&path, 0, &blob, 1);
            let _ = bench.machine.read(&path);
            let _ = bench.machine.list(&path);
            let _ = bench.machine.rmdir(&path, 1);
        }
        check_books(&bench.machine);
    }

    #[test]
    fn books_add_up_whatever_is_done(acts in proptest::collection::vec(act(), 1..60)) {
        let mut bench = Bench::with_pool();
        for act in acts {
            perform(&mut bench, &act);
            check_books(&bench.machine);
            let _ = bench.machine.read("device_tree");
            let _ = bench.machine.iomem();
        }
    }
}
