//! One trial per quirk, run with it on and with it off.

use super::testing::{Bench, GRANULE, MIB, NIC};
use super::{Errno, GUEST_LATENCY_NS, HALT_TIMEOUT_NS, ITEM_TIMEOUT_NS, Quirk, RebootCommand, Reply, State};
use crate::dtb::{Op, overlay};
use crate::fuse::tells_of_change;
use crate::terminals::Terminals;
use crate::watchers::Watchers;

/// Makes two tests of each trial, and the list of what is tried.
macro_rules! trials {
    ($($trial:ident: $quirk:ident,)*) => {
        const TRIED: &[Quirk] = &[$(Quirk::$quirk),*];
        $(mod $trial {
            use super::*;
            #[test]
            fn with_it() {
                super::$trial(Bench::with_quirk(Quirk::$quirk, true), true);
            }
            #[test]
            fn without_it() {
                super::$trial(Bench::with_quirk(Quirk::$quirk, false), false);
            }
        })*
    };
}

trials! {
    write_succeeds_on_failed_overlay: WriteSucceedsOnFailure,
    first_transaction_is_two: FirstTransactionIsTwo,
    write_is_clipped_at_a_page: WriteClippedAtPage,
    unknown_items_are_ignored: UnknownItemsIgnored,
    shortage_at_create_only_warns: CreateShortageWarns,
    earlier_operations_of_a_failed_overlay_stay: HalfAppliedOverlay,
    rmdir_undoes_what_never_ran: RmdirUndoesWhatNeverRan,
    status_changes_without_a_word: NothingNotifies,
    panic_looks_like_halt: PanicLooksLikeHalt,
    hang_stays_active: HangStaysActive,
    unload_of_an_active_instance_is_not_refused: UnloadOfActive,
    late_acknowledgement_completes_the_next_operation: LateAckCompletesNext,
    acknowledgement_of_cpu_add_is_lost: CpuAddAckLost,
    acknowledgement_of_memory_is_lost: MemoryAckLost,
    memory_that_a_kernel_has_is_refused: MemoryTwiceFails,
    acknowledgement_of_a_device_is_lost: DeviceAckLost,
    device_that_a_kernel_has_is_refused: DeviceTwiceFails,
    device_is_found_on_a_known_bus_alone: DeviceNeedsKnownBus,
    device_that_cannot_be_had_is_left_out: DeviceShortageWarns,
    device_that_an_instance_has_is_in_the_tree_of_the_pool: PoolTreeShowsLentDevices,
    memory_is_added_where_it_fits_first: FirstFitBase,
    lock_of_another_operation_is_busy: BusyWhileLocked,
    item_times_out: ItemTimesOut,
    halt_times_out: HaltTimesOut,
    fragmented_pool_has_no_memory: FragmentationFails,
    failed_and_empty_are_never_seen: FailedAndEmptyNeverSet,
    host_cannot_be_rebooted: HostRebootRefused,
    forced_halt_misses_a_cpu: ForceMissesACpu,
    console_is_of_whoever_opened_it_last: ConsoleOfLatest,
}

#[test]
fn every_quirk_is_tried() {
    for quirk in Quirk::ALL {
        assert!(TRIED.contains(&quirk), "{quirk} has no trial");
        assert_eq!(quirk.name().parse(), Ok(quirk));
    }
}

fn write_succeeds_on_failed_overlay(mut bench: Bench, on: bool) {
    let blob = overlay(None, &[("/instances/none", &[Op::CpuAdd(&[2])])]);
    let written = bench.write("overlays/new", &blob);
    assert_eq!(written, if on { Ok(blob.len() as u64) } else { Err(Errno::NOENT) });
    assert_eq!(bench.read("overlays/tx_2/status"), "failed");
}

fn first_transaction_is_two(bench: Bench, on: bool) {
    // The counter is set when the machine starts.
    let config = bench.machine.config().clone();
    let mut bench = Bench::new(config);
    bench.apply(&[("/nowhere", &[])]).unwrap();
    assert_eq!(bench.last(), if on { 2 } else { 1 });
}

fn write_is_clipped_at_a_page(mut bench: Bench, on: bool) {
    let cpus = [6; 200];
    let blob = overlay(None, &[("/resources", &[Op::CpuRemove(&cpus)])]);
    assert!(blob.len() > 4096);
    assert_eq!(bench.write("overlays/new", &blob), Ok(if on { 4096 } else { blob.len() as u64 }));
    let rest = bench.machine.write("overlays/new", 4096, &blob[4096..], bench.now_ns);
    assert_eq!(rest, Err(Errno::INVAL));
    // A page of a tree is none, so that nothing ran. All of it: the first item did, and the second found no such CPU.
    let has_run = !bench.machine.pool().unwrap().cpus.contains(&6);
    assert_eq!(has_run, !on);
}

fn unknown_items_are_ignored(mut bench: Bench, on: bool) {
    let status = bench.status_of(&[("/resources", &[Op::Unknown("cpu-ad")])]);
    assert_eq!(status, if on { "applied" } else { "failed" });
}

fn shortage_at_create_only_warns(mut bench: Bench, on: bool) {
    let create = Op::Create { name: "web", id: None, memory_bytes: MIB, cpus: &[2, 5] };
    let status = bench.status_of(&[("/instances", &[create])]);
    assert_eq!(status, if on { "applied" } else { "failed" });
    assert_eq!(bench.machine.instance("web").map(|web| web.cpus.is_empty()), on.then_some(true));
    assert!(bench.machine.pool().unwrap().cpus_free.contains(&2));
}

fn earlier_operations_of_a_failed_overlay_stay(mut bench: Bench, on: bool) {
    bench.create("web");
    let ops = [Op::CpuAdd(&[6]), Op::DeviceAdd("0000:09:00.0")];
    assert_eq!(bench.status_of(&[("/instances/web", &ops)]), "failed");
    assert_eq!(bench.cpus("web").0.contains(&6), on);
}

fn rmdir_undoes_what_never_ran(mut bench: Bench, on: bool) {
    bench.create("web");
    let create = Op::Create { name: "web", id: None, memory_bytes: MIB, cpus: &[] };
    assert_eq!(bench.status_of(&[("/instances", &[create])]), "failed");
    let path = format!("overlays/tx_{}", bench.last());
    assert_eq!(bench.rmdir(&path), Ok(0));
    // What the overlay failed to create was another's, and is gone.
    assert_eq!(bench.machine.instance("web").is_none(), on);
    assert_eq!(bench.rmdir(&path), Err(Errno::NOENT));
}

fn status_changes_without_a_word(mut bench: Bench, on: bool) {
    let told = |bench: &Bench| {
        let watchers = Watchers::default();
        let handle = watchers.open();
        watchers.has_read(handle, b"active\n");
        tells_of_change(&bench.machine, &watchers, handle, "instances/web/status", None)
    };
    bench.run();
    assert!(!told(&bench));
    bench.machine.halted(1);
    assert_eq!(told(&bench), !on);
}

fn panic_looks_like_halt(mut bench: Bench, on: bool) {
    bench.run();
    bench.machine.panicked(1);
    assert_eq!(bench.state("web"), if on { State::Loaded } else { State::Failed });
}

fn hang_stays_active(mut bench: Bench, on: bool) {
    bench.run();
    bench.machine.frozen(1);
    bench.pass(3600 * 1_000_000_000);
    assert_eq!(bench.state("web"), if on { State::Active } else { State::Failed });
}

fn unload_of_an_active_instance_is_not_refused(mut bench: Bench, on: bool) {
    bench.run();
    assert_eq!(bench.unload(1), if on { Ok(()) } else { Err(Errno::BUSY) });
    assert_eq!(bench.state("web"), if on { State::Ready } else { State::Active });
    assert!(bench.machine.instance("web").unwrap().guest.is_some());
}

fn late_acknowledgement_completes_the_next_operation(mut bench: Bench, on: bool) {
    bench.run();
    bench.machine.frozen(1);
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::CpuAdd(&[6])])]), "failed");
    let Ok(Reply::Pending(ticket)) = bench.begin(&[("/instances/web", &[Op::CpuAdd(&[6])])]) else {
        panic!("a kernel that hangs does not answer");
    };
    // The acknowledgement of the first message, which is of the same CPU.
    let late =
        super::Message { op: super::MessageOp::CpuAdd, resource: super::Resource::Cpu(6), sequence: 1 };
    bench.machine.acked(1, &late, Ok(()), bench.now_ns);
    assert_eq!(bench.is_over(ticket), on);
    assert_eq!(bench.cpus("web"), (if on { vec![2, 4, 6] } else { vec![2, 4] }, Some(vec![2, 4])));
}

fn acknowledgement_of_cpu_add_is_lost(mut bench: Bench, on: bool) {
    bench.run();
    let began_ns = bench.now_ns;
    let status = bench.status_of(&[("/instances/web", &[Op::CpuAdd(&[6])])]);
    let took_ns = bench.now_ns - began_ns;
    assert_eq!(
        (status.as_str(), took_ns),
        if on { ("failed", ITEM_TIMEOUT_NS) } else { ("applied", GUEST_LATENCY_NS) }
    );
    // The kernel has it either way: the books differ.
    assert_eq!(bench.cpus("web"), (if on { vec![2, 4] } else { vec![2, 4, 6] }, Some(vec![2, 4, 6])));
}

/// Of the host's books for `web`, and of its kernel: bases.
fn memory(bench: &Bench) -> (Vec<u64>, Vec<u64>) {
    let web = bench.machine.instance("web").unwrap();
    (web.regions.iter().map(|region| region.range.base).collect(), web.guest.as_ref().unwrap().memory.clone())
}

fn acknowledgement_of_memory_is_lost(mut bench: Bench, on: bool) {
    bench.run();
    let boot = bench.machine.pool().unwrap().chunks[0].range.base;
    let next = boot + GRANULE;
    let began_ns = bench.now_ns;
    let status = bench.status_of(&[("/instances/web", &[Op::MemoryAdd(next, GRANULE)])]);
    let took_ns = bench.now_ns - began_ns;
    let expected = if on { ("failed", ITEM_TIMEOUT_NS) } else { ("applied", GUEST_LATENCY_NS) };
    assert_eq!((status.as_str(), took_ns), expected);
    // The kernel has it either way: by the host's books it is free.
    let booked = if on { vec![boot] } else { vec![boot, next] };
    assert_eq!(memory(&bench), (booked, vec![boot, next]));
}

fn memory_that_a_kernel_has_is_refused(mut bench: Bench, on: bool) {
    bench.run();
    let boot = bench.machine.pool().unwrap().chunks[0].range.base;
    let next = boot + GRANULE;
    let add = [Op::MemoryAdd(next, GRANULE)];
    bench.machine.set_quirk(Quirk::MemoryAckLost, true);
    assert_eq!(bench.status_of(&[("/instances/web", &add)]), "failed");
    bench.machine.set_quirk(Quirk::MemoryAckLost, false);
    assert_eq!(bench.status_of(&[("/instances/web", &add)]), if on { "failed" } else { "applied" });
    assert_eq!(memory(&bench), (if on { vec![boot] } else { vec![boot, next] }, vec![boot, next]));
}

/// PCI functions of `web` on the host's side of the books, and on the kernel's.
fn devices(bench: &Bench) -> (Vec<String>, Vec<String>) {
    let web = bench.machine.instance("web").unwrap();
    let booked = web.devices.iter().map(|device| device.pci_id.clone()).collect();
    (booked, web.guest.as_ref().unwrap().devices.clone())
}

fn nic() -> Vec<String> {
    vec![NIC.to_owned()]
}

fn acknowledgement_of_a_device_is_lost(mut bench: Bench, on: bool) {
    bench.run();
    bench.machine.set_quirk(Quirk::DeviceNeedsKnownBus, false);
    let status = bench.status_of(&[("/instances/web", &[Op::DeviceAdd(NIC)])]);
    assert_eq!(status, if on { "failed" } else { "applied" });
    assert_eq!(devices(&bench), (if on { vec![] } else { nic() }, nic()));
    assert_eq!(bench.machine.pool().unwrap().devices.len(), usize::from(on), "free by the books");
}

fn device_that_a_kernel_has_is_refused(mut bench: Bench, on: bool) {
    bench.run();
    bench.machine.set_quirk(Quirk::DeviceNeedsKnownBus, false);
    let add = [Op::DeviceAdd(NIC)];
    bench.machine.set_quirk(Quirk::DeviceAckLost, true);
    assert_eq!(bench.status_of(&[("/instances/web", &add)]), "failed");
    bench.machine.set_quirk(Quirk::DeviceAckLost, false);
    assert_eq!(bench.status_of(&[("/instances/web", &add)]), if on { "failed" } else { "applied" });
    assert_eq!(devices(&bench), (if on { vec![] } else { nic() }, nic()));
}

fn device_is_found_on_a_known_bus_alone(mut bench: Bench, on: bool) {
    bench.run();
    let add = [Op::DeviceAdd(NIC)];
    assert_eq!(bench.status_of(&[("/instances/web", &add)]), if on { "failed" } else { "applied" });
    assert_eq!(devices(&bench), if on { (vec![], vec![]) } else { (nic(), nic()) });
    // One that it booted with it has let go, and finds again.
    assert_eq!(bench.reboot(RebootCommand::ForceHalt, 1), Ok(0));
    if on {
        assert_eq!(bench.status_of(&[("/instances/web", &add)]), "applied");
    }
    assert_eq!(bench.reboot(RebootCommand::Boot, 1), Ok(0));
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::DeviceRemove(NIC)])]), "applied");
    assert_eq!(bench.status_of(&[("/instances/web", &add)]), "applied");
}

fn device_that_cannot_be_had_is_left_out(mut bench: Bench, on: bool) {
    bench.create("web");
    let status = bench.status_of(&[("/instances/web", &[Op::DeviceAdd("0000:09:00.0")])]);
    assert_eq!(status, if on { "applied" } else { "failed" });
    assert!(bench.machine.instance("web").unwrap().devices.is_empty());
}

fn device_that_an_instance_has_is_in_the_tree_of_the_pool(mut bench: Bench, on: bool) {
    bench.create("web");
    let shows = |bench: &Bench| {
        let tree = bench.machine.read("device_tree").unwrap();
        tree.windows(b"pci_0000_03_00_0".len()).any(|bytes| bytes == b"pci_0000_03_00_0")
    };
    assert!(shows(&bench));
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::DeviceAdd(NIC)])]), "applied");
    assert_eq!(shows(&bench), on);
}

fn memory_is_added_where_it_fits_first(mut bench: Bench, on: bool) {
    bench.run();
    let chunk = bench.machine.pool().unwrap().chunks[0].range;
    let named = chunk.base + 4 * GRANULE;
    assert_eq!(bench.status_of(&[("/instances/web", &[Op::MemoryAdd(named, GRANULE)])]), "applied");
    let web = bench.machine.instance("web").unwrap();
    let base = if on { chunk.base + GRANULE } else { named };
    assert_eq!(web.regions[1].range.base, base);
    assert_eq!(web.guest.as_ref().unwrap().memory[1], named);
    // So that undoing it, which names the range again, finds none.
    let path = format!("overlays/tx_{}", bench.last());
    assert_eq!(bench.rmdir(&path), if on { Err(Errno::INVAL) } else { Ok(0) });
}

fn lock_of_another_operation_is_busy(mut bench: Bench, on: bool) {
    bench.run();
    let create = Op::Create { name: "db", id: None, memory_bytes: GRANULE, cpus: &[6] };
    assert_eq!(bench.status_of(&[("/instances", &[create])]), "applied");
    bench.machine.frozen(1);
    assert!(matches!(bench.begin(&[("/instances/web", &[Op::CpuRemove(&[4])])]), Ok(Reply::Pending(_))));
    // Overlays wait for the mutex; loads and boots find the kexec lock taken.
    let Ok(Reply::Pending(queued)) = bench.begin(&[("/instances/db", &[Op::CpuAdd(&[1])])]) else {
        panic!("the overlay mutex is held");
    };
    assert_eq!(bench.load(2), if on { Err(Errno::BUSY) } else { Ok(()) });
    bench.pass(ITEM_TIMEOUT_NS);
    assert!(bench.is_over(queued));
    assert_eq!(bench.cpus("db").0, [6, 1]);
    // While a halt is waited for, operations on resources fail.
    assert!(matches!(bench.machine.reboot(RebootCommand::Halt, 1, bench.now_ns), Ok(Reply::Pending(_))));
    let status = bench.status_of(&[("/instances/db", &[Op::CpuRemove(&[1])])]);
    assert_eq!(status, if on { "failed" } else { "applied" });
}

fn item_times_out(mut bench: Bench, on: bool) {
    bench.run();
    bench.machine.frozen(1);
    // Two items: the first that is not acknowledged ends it.
    let Ok(Reply::Pending(ticket)) = bench.begin(&[("/instances/web", &[Op::CpuAdd(&[6, 1])])]) else {
        panic!("a kernel that hangs does not answer");
    };
    bench.pass(ITEM_TIMEOUT_NS - 1);
    assert!(!bench.is_over(ticket));
    bench.pass(1);
    assert_eq!(bench.is_over(ticket), on);
    assert_eq!(bench.machine.pool().unwrap().cpus_free.contains(&6), on);
}

fn halt_times_out(mut bench: Bench, on: bool) {
    bench.run();
    bench.machine.frozen(1);
    let Ok(Reply::Pending(ticket)) = bench.machine.reboot(RebootCommand::Halt, 1, bench.now_ns) else {
        panic!("a kernel that hangs does not answer");
    };
    bench.pass(HALT_TIMEOUT_NS - 1);
    assert!(!bench.is_over(ticket));
    bench.pass(1);
    assert_eq!(bench.is_over(ticket), on);
    assert_eq!(bench.state("web"), State::Active);
    // The message is still there for when it goes on.
    bench.machine.thawed(1, bench.now_ns);
    bench.pass(GUEST_LATENCY_NS);
    assert_eq!(bench.state("web"), State::Loaded);
}

fn fragmented_pool_has_no_memory(mut bench: Bench, on: bool) {
    for name in ["a", "b", "c", "d"] {
        let create = Op::Create { name, id: None, memory_bytes: 2 * GRANULE, cpus: &[] };
        assert_eq!(bench.status_of(&[("/instances", &[create])]), "applied");
    }
    for name in ["a", "c"] {
        assert_eq!(bench.status_of(&[("/instances", &[Op::Remove(name)])]), "applied");
    }
    let create = Op::Create { name: "big", id: None, memory_bytes: 3 * GRANULE, cpus: &[] };
    assert_eq!(bench.status_of(&[("/instances", &[create])]), if on { "failed" } else { "applied" });
    assert_eq!(bench.machine.instance("big").map(|big| big.memory_bytes()), (!on).then_some(3 * GRANULE));
}

fn failed_and_empty_are_never_seen(mut bench: Bench, on: bool) {
    let create = Op::Create { name: "bare", id: Some(9), memory_bytes: MIB, cpus: &[] };
    assert_eq!(bench.status_of(&[("/instances", &[create])]), "applied");
    assert_eq!(bench.read("instances/bare/status"), if on { "ready" } else { "empty" });
    bench.run();
    assert_eq!(bench.reboot(RebootCommand::ForceHalt, 1), Ok(0));
    assert_eq!(bench.read("instances/web/status"), if on { "loaded" } else { "failed" });
}

fn host_cannot_be_rebooted(mut bench: Bench, on: bool) {
    bench.run();
    let restart = RebootCommand::of(0x0123_4567);
    assert_eq!(bench.reboot(restart, 0), if on { Err(Errno::PERM) } else { Ok(0) });
    assert_eq!(bench.machine.pool().is_some(), on);
}

fn forced_halt_misses_a_cpu(mut bench: Bench, on: bool) {
    bench.run();
    let runs = |bench: &Bench| bench.machine.instance("web").unwrap().guest.is_some();
    assert_eq!(bench.reboot(RebootCommand::ForceHalt, 1), Ok(0));
    assert_eq!(bench.read("instances/web/status"), "loaded");
    assert_eq!(runs(&bench), on);
    if on {
        assert_eq!(bench.reboot(RebootCommand::Boot, 1), Err(Errno::BUSY));
        assert_eq!(bench.reboot(RebootCommand::ForceHalt, 1), Ok(0));
        assert!(!runs(&bench));
    }
    assert_eq!(bench.reboot(RebootCommand::Boot, 1), Ok(0));
}

fn console_is_of_whoever_opened_it_last(bench: Bench, on: bool) {
    let (terminals, to_latest) =
        (Terminals::default(), bench.machine.config().quirks.has(Quirk::ConsoleOfLatest));
    let [first, latest, other] = [1, 1, 2].map(|id| (terminals.open(), id));
    // In the order in which they were opened, whatever the order in which they say of what.
    for (handle, id) in [latest, other, first] {
        terminals.select(handle, id);
    }
    let (first, latest) = (first.0, latest.0);
    terminals.deliver(1, b"said", to_latest);
    let heard = |handle| terminals.is_readable(handle, None);
    assert_eq!((heard(first), heard(latest), heard(other.0)), (!on, on, false));
    // Whoever closes it leaves it to the others.
    terminals.close(if on { latest } else { first });
    terminals.deliver(1, b"said", to_latest);
    assert!(heard(if on { first } else { latest }));
}
