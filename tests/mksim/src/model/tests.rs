//! What the model does whatever the quirks.

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node as _, Property as _};

use super::testing::{Bench, GRANULE, MIB, NIC};
use super::{
    Effect, EntryKind, Errno, HALT_TIMEOUT_NS, MachineConfig, Quirk, RebootCommand, Reply, Resource, State,
};
use crate::dtb::{Op, baseline, overlay};

fn u64s(blob: &[u8], node: &str, property: &str) -> Vec<u64> {
    let fdt = Fdt::new(blob).unwrap();
    let value = fdt.find_node(node).unwrap().property(property).unwrap().value().to_vec();
    value.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

#[test]
fn physical_cpus_are_even_then_odd() {
    let config = MachineConfig { cpus: 16, ..MachineConfig::default() };
    let physical: Vec<u64> = config.physical_cpus().collect();
    assert_eq!(physical, [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]);
}

#[test]
fn baseline_is_read_back_from_the_pool() {
    let bench = Bench::with_pool();
    let blob = bench.machine.read("device_tree").unwrap();
    let mut cpus = u64s(&blob, "/resources", "cpus");
    cpus.sort_unstable();
    assert_eq!(cpus, [1, 2, 4, 6]);
    assert_eq!(u64s(&blob, "/", "memory-granule"), [GRANULE]);
    let base = bench.machine.pool().unwrap().chunks[0].range.base;
    assert_eq!(u64s(&blob, &format!("/resources/memory@{base:x}"), "reg"), [base, 8 * GRANULE]);
    let fdt = Fdt::new(&blob).unwrap();
    assert!(fdt.find_node("/instances").is_none());
    assert!(fdt.find_node("/pci@0/pci_0000_03_00_0@0,0").is_some());
}

#[test]
fn baseline_that_is_wrong_is_refused_and_takes_nothing() {
    let good = baseline(&[2], &[(GRANULE, None)], &[]);
    let mut long = good.clone();
    long.push(0);
    let cases = [
        (baseline(&[], &[(GRANULE, None)], &[]), Errno::INVAL),
        (baseline(&[2], &[], &[]), Errno::INVAL),
        (baseline(&[2], &[(5, None)], &[]), Errno::INVAL),
        (baseline(&[2, 99], &[(GRANULE, None)], &[]), Errno::NODEV),
        (baseline(&[2], &[(1 << 50, None)], &[]), Errno::NOMEM),
        (long, Errno::INVAL),
        (vec![0; 64], Errno::INVAL),
        (vec![0; (1 << 20) + 1], Errno::FBIG),
    ];
    let mut bench = Bench::new(MachineConfig::default());
    for (blob, errno) in cases {
        assert_eq!(bench.write("device_tree", &blob), Err(errno));
        assert!(bench.machine.pool().is_none());
    }
    assert_eq!(bench.write("device_tree", &good), Ok(good.len() as u64));
    assert_eq!(bench.write("device_tree", &good), Err(Errno::BUSY));
}

#[test]
fn baseline_with_the_boot_cpu_stops_there_and_keeps_what_was_moved() {
    let mut bench = Bench::new(MachineConfig::default());
    let blob = baseline(&[2, 0, 4], &[(GRANULE, None)], &[]);
    assert_eq!(bench.write("device_tree", &blob), Err(Errno::BUSY));
    assert_eq!(bench.machine.pool().unwrap().cpus, [2]);
}

#[test]
fn pool_that_was_emptied_takes_a_baseline_again() {
    let mut bench = Bench::with_pool();
    let range = bench.machine.pool().unwrap().chunks[0].range;
    let ops = [Op::CpuRemove(&[1, 2, 4, 6]), Op::DeviceRemove(NIC), Op::MemoryRemove(range.base, range.size)];
    assert_eq!(bench.status_of(&[("/resources", &ops)]), "applied");
    assert_eq!(bench.machine.read("device_tree"), Ok(Vec::new()));
    let blob = baseline(&[2], &[(GRANULE, Some(0))], &[NIC]);
    assert_eq!(bench.write("device_tree", &blob), Ok(blob.len() as u64));
}

#[test]
fn files_have_the_kernels_modes_and_folders_cannot_be_made_or_removed() {
    let mut bench = Bench::with_pool();
    bench.create("web");
    let modes = [
        ("device_tree", 0o644),
        ("instances/web/id", 0o444),
        ("instances/web/status", 0o444),
        ("overlays/new", 0o200),
        ("overlays/tx_2/dtbo", 0o444),
    ];
    for (path, mode) in modes {
        assert_eq!(bench.machine.entry(path), Ok(EntryKind::File { mode }));
    }
    assert_eq!(bench.machine.read("overlays/new"), Err(Errno::ACCESS));
    assert_eq!(bench.write("instances/web/status", b"x"), Err(Errno::ACCESS));
    for folder in ["", "instances", "instances/web", "overlays"] {
        assert_eq!(bench.rmdir(folder), Err(Errno::PERM));
    }
    assert_eq!(bench.rmdir("overlays/tx_3"), Err(Errno::NOENT));
    assert_eq!(bench.machine.entry("overlays/tx_02"), Err(Errno::NOENT));
    let names: Vec<String> =
        bench.machine.list("overlays").unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["new", "tx_2"]);
}

#[test]
fn transaction_tells_its_target_its_note_and_its_blob() {
    let mut bench = Bench::with_pool();
    let create = Op::Create { name: "web", id: Some(7), memory_bytes: MIB, cpus: &[2] };
    let blob = overlay(Some("a nonce"), &[("/instances", &[create])]);
    bench.write("overlays/new", &blob).unwrap();
    assert_eq!(bench.read("overlays/tx_2/status"), "applied");
    assert_eq!(bench.read("overlays/tx_2/instance"), "/instances");
    assert_eq!(bench.read("overlays/tx_2/resources"), "a nonce");
    assert_eq!(bench.machine.read("overlays/tx_2/dtbo"), Ok(blob));
    assert_eq!(bench.read("instances/web/id"), "7");
    assert_eq!(bench.rmdir("overlays/tx_2"), Ok(0));
    assert!(bench.machine.instance("web").is_none());
    assert_eq!(bench.machine.pool().unwrap().used, []);
}

#[test]
fn instance_goes_through_its_states() {
    let mut bench = Bench::with_pool();
    bench.create("web");
    assert_eq!(bench.reboot(RebootCommand::Boot, 1), Err(Errno::INVAL));
    assert_eq!(bench.load(9), Err(Errno::NOENT));
    assert_eq!(bench.load(0), Err(Errno::INVAL));
    assert_eq!(bench.unload(1), Err(Errno::NOENT));
    assert_eq!(bench.load(1), Ok(()));
    assert_eq!(bench.load(1), Err(Errno::BUSY));
    assert_eq!(bench.reboot(RebootCommand::Halt, 1), Err(Errno::INVAL));
    assert_eq!(bench.status_of(&[("/instances", &[Op::Remove("web")])]), "failed");
    assert_eq!(bench.reboot(RebootCommand::Boot, 1), Ok(0));
    assert!(
        bench
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Boot { id: 1, memory_bytes: GRANULE, .. }))
    );
    assert_eq!(bench.reboot(RebootCommand::Boot, 1), Err(Errno::BUSY));
    bench.machine.halted(1);
    assert_eq!(bench.state("web"), State::Loaded);
    assert_eq!(bench.reboot(RebootCommand::Boot, 1), Ok(0));
    assert_eq!(bench.reboot(RebootCommand::Halt, 1), Ok(0));
    assert!(bench.effects.contains(&Effect::Kill { id: 1 }));
    assert_eq!(bench.reboot(RebootCommand::ForceHalt, 1), Ok(0));
    assert_eq!(bench.unload(1), Ok(()));
    assert_eq!(bench.state("web"), State::Ready);
    assert_eq!(bench.reboot(RebootCommand::Boot, 3), Err(Errno::NOENT));
}

#[test]
fn halt_notice_answers_a_halt_that_waits() {
    let mut bench = Bench::with_pool();
    bench.run();
    bench.machine.frozen(1);
    let Ok(Reply::Pending(ticket)) = bench.machine.reboot(RebootCommand::Halt, 1, bench.now_ns) else {
        panic!("a kernel that hangs does not answer");
    };
    bench.pass(HALT_TIMEOUT_NS / 2);
    bench.machine.halted(1);
    assert!(bench.is_over(ticket));
}

#[test]
fn cpu_moves_from_one_running_kernel_to_another() {
    let mut bench = Bench::with_pool();
    bench.run();
    let create = Op::Create { name: "db", id: None, memory_bytes: GRANULE, cpus: &[6] };
    assert_eq!(bench.status_of(&[("/instances", &[create])]), "applied");
    bench.load(2).unwrap();
    bench.reboot(RebootCommand::Boot, 2).unwrap();
    let fragments: [(&str, &[Op<'_>]); 2] =
        [("/instances/web", &[Op::CpuRemove(&[4])]), ("/instances/db", &[Op::CpuAdd(&[4])])];
    assert_eq!(bench.status_of(&fragments), "applied");
    assert_eq!(bench.cpus("web"), (vec![2], Some(vec![2])));
    assert_eq!(bench.cpus("db"), (vec![6, 4], Some(vec![6, 4])));
    assert!(bench.effects.contains(&Effect::HotAdd { id: 2, resource: Resource::Cpu(4) }));
    // The CPU that it booted on stays.
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::CpuRemove(&[2])])]), "failed");
    assert_eq!(bench.cpus("web"), (vec![2], Some(vec![2])));
}

#[test]
fn memory_and_devices_of_a_running_kernel_come_and_go() {
    let mut bench = Bench::with_pool();
    bench.run();
    let base = bench.machine.pool().unwrap().chunks[0].range.base;
    let (first, second) = (base, base + GRANULE);
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::MemoryAdd(second, MIB)])]), "failed");
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::MemoryAdd(second, GRANULE)])]), "applied");
    assert!(bench.machine.iomem().contains(" : mk-instance-1-web-region-1\n"));
    // What holds the image stays, and a part of a region is none.
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::MemoryRemove(first, GRANULE)])]), "failed");
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::MemoryRemove(second, GRANULE / 2)])]), "failed");
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::MemoryRemove(second, GRANULE)])]), "applied");
    // A kernel that booted without a device knows no bus that one could be on.
    bench.machine.set_quirk(Quirk::DeviceNeedsKnownBus, false);
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::DeviceAdd(NIC)])]), "applied");
    let pool = bench.machine.pool().unwrap();
    assert!(pool.devices.is_empty() && pool.devices_lent.len() == 1);
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::DeviceRemove(NIC)])]), "applied");
    assert_eq!(bench.machine.pool().unwrap().devices.len(), 1);
}

#[test]
fn operations_run_in_the_kernels_order_whatever_the_tree_says() {
    let mut bench = Bench::with_pool();
    bench.create("web");
    // In the order written, the first would find no CPU that is free.
    let ops = [Op::CpuAdd(&[4]), Op::CpuRemove(&[4])];
    assert_eq!(bench.status_of(&[("/instances/web", &ops)]), "applied");
    assert_eq!(bench.cpus("web").0, [2, 4]);
}

#[test]
fn heap_buffers_are_children_of_the_pool() {
    let mut bench = Bench::with_pool();
    let buffer = bench.machine.heap_allocate(5000).unwrap();
    assert_eq!(buffer.size, 8192);
    assert!(bench.machine.iomem().contains(" : daxfs\n"));
    bench.machine.heap_free(buffer);
    assert!(!bench.machine.iomem().contains("daxfs"));
    assert_eq!(bench.machine.heap_allocate(0), Err(Errno::INVAL));
    assert_eq!(bench.machine.heap_allocate(u64::MAX), Err(Errno::INVAL));
}

#[test]
fn pooled_cpus_are_not_in_cpuinfo() {
    let bench = Bench::with_pool();
    let template = "processor\t: 0\nmodel name\t: X\napicid\t\t: 0\n\nprocessor\t: 1\n";
    let info = bench.machine.cpuinfo(template);
    let apic_ids: Vec<&str> = info.lines().filter_map(|line| line.strip_prefix("apicid\t\t: ")).collect();
    assert_eq!(apic_ids, ["0", "3", "5", "7"]);
}
