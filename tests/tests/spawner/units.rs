//! What a running kernel can be given and can lose: memory, CPUs, devices.

use std::fs;
use std::slice::from_ref;
use std::time::Duration;

use tombolo_control::keeper::MemoryState;
use tombolo_control::spawner::{
    Acceleration, Device, DeviceState, Kernel, MemoryWanted, QemuSpawner, SpawnError, Spawner,
};
use tombolo_tests::prerequisites;
use tombolo_tests::wait::{LONG, until};

use super::{Bed, booted, console_of, nothing_is_left_of, processes_in, ring, signal};

/// What the kernel itself says is free, in bytes.
async fn free_bytes(kernel: &Kernel) -> u64 {
    let free = |console: &str| -> Vec<u64> {
        let lines = console.lines().filter_map(|line| line.trim().strip_prefix("MemFree:"));
        lines.filter_map(|line| line.trim().strip_suffix(" kB")?.parse().ok()).collect()
    };
    let before = free(&console_of(kernel)).len();
    assert_eq!(ring(kernel, b'm').await, b'n');
    until("free memory on the console", || async {
        let said = free(&console_of(kernel));
        (said.len() > before).then(|| said.last().copied().unwrap_or(0) << 10)
    })
    .await
}

pub(super) async fn memory_leaves_a_running_kernel_and_comes_back<S: Spawner>(mut bed: Bed<S>) {
    const MIB: u64 = 1 << 20;
    bed.spec.memory_max_bytes = 160 * MIB;
    let kernel = booted(&bed).await;
    let has = |present: u64| {
        Some(MemoryState { present_bytes: present, max_bytes: 160 * MIB, pending: false, certain: true })
    };
    assert_eq!(kernel.memory().await.unwrap(), has(96 * MIB), "it is left with what it is to have");
    let at_96 = free_bytes(&kernel).await;
    for present in [64, 160, 128, 96] {
        kernel.set_memory(MemoryWanted::Exactly(present * MIB), LONG).await.unwrap();
        assert_eq!(kernel.memory().await.unwrap(), has(present * MIB));
        let expected = (at_96 + present * MIB).saturating_sub(96 * MIB);
        let free = free_bytes(&kernel).await;
        assert!(free.abs_diff(expected) < 2 * MIB, "{present} MiB: {free} are free, not {expected}");
    }

    let error = kernel.set_memory(MemoryWanted::Exactly(20 * MIB), LONG).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("MiB free")), "{error}");
    let error = kernel.set_memory(MemoryWanted::Exactly(161 * MIB), LONG).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("160 MiB")), "{error}");
    assert_eq!(kernel.memory().await.unwrap(), has(96 * MIB), "what is refused changes nothing");
    assert!(free_bytes(&kernel).await.abs_diff(at_96) < 2 * MIB);

    let adopted = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    assert_eq!(adopted.memory().await.unwrap(), has(96 * MIB), "who comes later finds the same");
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

/// Where the kernel was told at its boot what can leave: 160 MiB, of which 128 stay.
pub(super) async fn memory_of_a_device_leaves_and_comes_back<S: Spawner>(mut bed: Bed<S>) {
    const MIB: u64 = 1 << 20;
    bed.spec.memory_bytes = 160 * MIB;
    bed.spec.memory_min_bytes = 128 * MIB;
    bed.spec.memory_max_bytes = 256 * MIB;
    let kernel = booted(&bed).await;
    let present = async || {
        let state = kernel.memory().await.unwrap().unwrap();
        assert!(state.certain && state.max_bytes >= 256 * MIB, "{state:?}");
        (!state.pending).then_some(state.present_bytes / MIB)
    };
    until("the memory it is to begin with", async || (present().await == Some(160)).then_some(())).await;
    let at_160 = free_bytes(&kernel).await;
    for wanted in [256, 128, 200, 160] {
        kernel.set_memory(MemoryWanted::Exactly(wanted * MIB), LONG).await.unwrap();
        assert_eq!(present().await, Some(wanted));
        let expected = at_160 + wanted * MIB - 160 * MIB;
        let free = free_bytes(&kernel).await;
        assert!(free.abs_diff(expected) < 8 * MIB, "{wanted} MiB: {free} are free, not {expected}");
    }
    for (wanted, reason) in [(126, "128 MiB for good"), (1024, "has room for"), (161, "steps of 2")] {
        let error = kernel.set_memory(MemoryWanted::Exactly(wanted * MIB), LONG).await.unwrap_err();
        assert!(
            matches!(&error, SpawnError::Refused { reason: said, .. } if said.contains(reason)),
            "{error}"
        );
    }
    kernel.freeze().await.unwrap();
    let error =
        kernel.set_memory(MemoryWanted::Exactly(200 * MIB), Duration::from_secs(6)).await.unwrap_err();
    assert!(
        matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("came to 160")),
        "{error}"
    );
    kernel.thaw().await.unwrap();
    assert_eq!(present().await, Some(160), "what a frozen kernel did not do was taken back");
    let adopted = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    assert_eq!(adopted.memory().await.unwrap(), kernel.memory().await.unwrap());
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

/// A machine with room for three CPUs, of which its kernel starts one.
pub(super) async fn cpus_are_lent_to_a_running_kernel_and_taken_when_it_has_parked_them<S: Spawner>(
    mut bed: Bed<S>,
) {
    bed.spec.cpus = vec![7];
    bed.spec.cpus_max = 3;
    let kernel = booted(&bed).await;
    let cpus = async || -> Vec<(Option<u32>, bool, bool)> {
        let cpus = kernel.cpus().await.unwrap().unwrap();
        cpus.into_iter().map(|cpu| (cpu.unit, cpu.lent, cpu.runs)).collect()
    };
    let boot = (Some(7), true, true);
    assert_eq!(cpus().await, [boot, (None, false, false), (None, false, false)]);
    let error = kernel.take_cpu(7).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("still runs")), "{error}");

    kernel.lend_cpu(9).await.unwrap();
    kernel.lend_cpu(9).await.unwrap();
    assert_eq!(cpus().await[1..], [(Some(9), true, false), (None, false, false)], "its kernel may start it");
    assert_eq!(ring(&kernel, b'c').await, b'd');
    assert_eq!(cpus().await[1], (Some(9), true, true));
    kernel.take_cpu(9).await.unwrap_err();
    assert_eq!(cpus().await[1], (Some(9), true, true), "nobody but its kernel can stop it");
    assert_eq!(ring(&kernel, b'C').await, b'D');
    kernel.take_cpu(9).await.unwrap();
    kernel.take_cpu(9).await.unwrap();
    assert_eq!(cpus().await[1], (Some(9), false, false));

    assert_eq!(ring(&kernel, b'c').await, b'd');
    assert_eq!(cpus().await[1], (Some(9), false, true), "it is seen that a kernel uses what it was not lent");
    kernel.lend_cpu(4).await.unwrap();
    assert_eq!(cpus().await[2], (Some(4), true, false), "what it uses is lent under no other name");
    let error = kernel.lend_cpu(5).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("has 3 CPUs")), "{error}");

    let adopted = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    assert_eq!(adopted.cpus().await.unwrap(), kernel.cpus().await.unwrap(), "who comes later finds the same");
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

/// On software emulation, where a CPU can be plugged once. That it is unplugged where that can be done is shown against a scripted monitor.
pub(super) async fn cpu_that_was_never_there_is_plugged_into_a_running_kernel_and_stays_where_qemu_cannot_unplug(
    mut bed: Bed<QemuSpawner>,
) {
    bed.spawner = bed.spawner.with_plugged_cpus();
    (bed.spec.cpus, bed.spec.cpus_max) = (vec![7], 3);
    let kernel = booted(&bed).await;
    let cpus = async || -> Vec<(Option<u32>, bool, bool, bool)> {
        let cpus = kernel.cpus().await.unwrap().unwrap();
        cpus.into_iter().map(|cpu| (cpu.unit, cpu.lent, cpu.present, cpu.runs)).collect()
    };
    let (boot, place) = ((Some(7), true, true, true), (None, false, false, false));
    assert_eq!(cpus().await, [boot, place, place]);
    assert_eq!(ring(&kernel, b'c').await, b'd');
    assert_eq!(cpus().await, [boot, place, place], "its kernel cannot start what is not there");

    kernel.lend_cpu(9).await.unwrap();
    kernel.lend_cpu(9).await.unwrap();
    assert_eq!(cpus().await, [boot, (Some(9), true, true, false), place]);
    until("the CPU to run", async || {
        assert_eq!(ring(&kernel, b'c').await, b'd');
        (cpus().await[1] == (Some(9), true, true, true)).then_some(())
    })
    .await;
    assert!(kernel.take_cpu(9).await.unwrap_err().to_string().contains("still runs"));
    assert_eq!(ring(&kernel, b'C').await, b'D');
    let error = kernel.take_cpu(9).await.unwrap_err();
    assert!(
        matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("tcg_register_thread")),
        "{error}"
    );
    assert_eq!(cpus().await[1], (Some(9), true, true, false), "it stays with its kernel");

    kernel.lend_cpu(4).await.unwrap();
    assert_eq!(cpus().await[2], (Some(4), true, true, false));
    let error = kernel.lend_cpu(5).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("has 3 CPUs")), "{error}");
    let adopted = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    assert_eq!(adopted.cpus().await.unwrap(), kernel.cpus().await.unwrap(), "who comes later finds the same");
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

pub(super) async fn probe_boot_tells_a_machine_that_comes_up_from_one_that_does_not(bed: Bed<QemuSpawner>) {
    let Some(agent) = prerequisites::static_program("tombolo-agent") else { return };
    let folder = bed.dir.path().join("probe");
    let on = |kvm| Acceleration { kvm, reason: String::new() };
    let emulated = on(false);
    let probe = |agent, limit| bed.spawner.probe(agent, &emulated, &folder, limit);
    probe(&agent, LONG).await.unwrap();
    assert!(!folder.exists());

    let text = bed.dir.path().join("text");
    fs::write(&text, "no program").unwrap();
    let reason = probe(&text, LONG).await.unwrap_err();
    assert!(reason.contains("ended before it reached user space"), "{reason}");
    // On the way to a mark that it would reach.
    let reason = probe(&agent, Duration::from_millis(1)).await.unwrap_err();
    assert!(reason.contains("within 1ms"), "{reason}");
    // Whatever comes of KVM here, it comes.
    let _ = bed.spawner.probe(&agent, &on(true), &folder, Duration::from_secs(5)).await;
    assert!(!folder.exists());
    until("the end of all its processes", async || processes_in(&folder).is_empty().then_some(())).await;
}

/// On a host of which only one CPU may be used nothing is seen.
pub(super) async fn cpus_run_on_the_cpus_of_this_host_that_they_are_named_after<S: Spawner>(mut bed: Bed<S>) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ours = allowed_list(&status).to_owned();
    let numbers: Vec<u32> = ours.split([',', '-']).filter_map(|number| number.parse().ok()).collect();
    let [first, .., last] = numbers[..] else { return eprintln!("skipped: only CPU {ours} may be used") };
    (bed.spec.cpus, bed.spec.cpus_max) = (vec![last], 2);
    let kernel = booted(&bed).await;
    let threads_on = |cpu: u32| -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", kernel.pid())).unwrap();
        let status = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        status.filter(|status| allowed_list(status) == cpu.to_string()).count()
    };
    assert_eq!((threads_on(first), threads_on(last)), (0, 1), "the CPU it booted on");
    kernel.lend_cpu(first).await.unwrap();
    assert_eq!((threads_on(first), threads_on(last)), (1, 1));
    assert_eq!(ring(&kernel, b'c').await, b'd');
    assert_eq!(ring(&kernel, b'C').await, b'D');
    kernel.take_cpu(first).await.unwrap();

    let error = kernel.lend_cpu(100_000).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("100000")), "{error}");
    assert!(kernel.cpus().await.unwrap().unwrap().iter().all(|cpu| cpu.unit != Some(100_000)));
    let adopted = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    adopted.lend_cpu(last).await.unwrap();
    assert_eq!(threads_on(last), 1, "it has that one already");
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;

    bed.spec.cpus = vec![100_000];
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(matches!(&error, SpawnError::BadSpec { reason, .. } if reason.contains("100000")), "{error}");
    until("the end of all its processes", async || {
        processes_in(&bed.spec.runtime_dir).is_empty().then_some(())
    })
    .await;
}

/// Where a thread may run, of the text of its `/proc/PID/status`.
fn allowed_list(status: &str) -> &str {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim()
}

pub(super) async fn devices_are_plugged_into_a_running_kernel_and_unplugged<S: Spawner>(mut bed: Bed<S>) {
    let disk = bed.dir.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let device = |text: &str| text.parse::<Device>().unwrap();
    let nvme = device(&format!("0000:01:00.0=nvme:{}", disk.display()));
    let (rng, net) = (device("0000:02:00.0=rng"), device("0000:03:00.0=net"));
    bed.spec.catalogue = vec![nvme.clone(), rng.clone(), net.clone()];
    bed.spec.devices = vec![rng.address];
    let kernel = booted(&bed).await;
    let plugged = async || -> Vec<_> {
        let devices = kernel.devices().await.unwrap().unwrap();
        devices.into_iter().map(|device| device.address).collect()
    };
    let driven = async |device: &Device, is_driven: bool| {
        let address = device.address.to_string();
        until(&format!("driver of {address}: {is_driven}"), || async {
            assert_eq!(ring(&kernel, b'd').await, b'e');
            let console = console_of(&kernel);
            let last = console.lines().rfind(|line| line.contains("with a driver:"))?.to_owned();
            (last.contains(&address) == is_driven).then_some(())
        })
        .await;
    };
    assert_eq!(plugged().await, [rng.address], "it boots with what it is to have");
    driven(&rng, true).await;
    for device in [&nvme, &net] {
        kernel.plug(device.address, from_ref(device)).await.unwrap();
        kernel.plug(device.address, from_ref(device)).await.unwrap();
        driven(device, true).await;
    }
    let mut all = plugged().await;
    all.sort_unstable();
    assert_eq!(all, [nvme.address, rng.address, net.address]);
    for device in [&nvme, &rng, &net] {
        kernel.unplug(device.address, from_ref(device), LONG).await.unwrap();
        kernel.unplug(device.address, from_ref(device), LONG).await.unwrap();
        driven(device, false).await;
    }
    assert_eq!(plugged().await, []);
    kernel.plug(nvme.address, from_ref(&nvme)).await.unwrap();
    driven(&nvme, true).await;

    kernel.freeze().await.unwrap();
    let error = kernel.unplug(nvme.address, from_ref(&nvme), Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("let it go")), "{error}");
    let leaving = DeviceState { address: nvme.address, is_there: true, may_change: true };
    assert_eq!(kernel.devices().await.unwrap().unwrap(), [leaving], "a frozen kernel lets nothing go, yet");
    let error = kernel.plug(nvme.address, from_ref(&nvme)).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("leave")), "{error}");
    kernel.thaw().await.unwrap();
    until("the disk to be gone", async || plugged().await.is_empty().then_some(())).await;
    kernel.unplug(nvme.address, from_ref(&nvme), LONG).await.unwrap();
    let gone = device(&format!("0000:01:00.0=nvme:{}", bed.dir.path().join("gone").display()));
    let error = kernel.plug(gone.address, from_ref(&gone)).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("gone")), "{error}");
    assert_eq!(plugged().await, []);
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

pub(super) async fn cpus_and_devices_that_are_for_good_cannot_be_changed<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    assert_eq!((kernel.cpus().await.unwrap(), kernel.devices().await.unwrap()), (None, None));
    let refused = |error: SpawnError| assert!(matches!(error, SpawnError::Refused { .. }), "{error}");
    refused(kernel.lend_cpu(1).await.unwrap_err());
    refused(kernel.take_cpu(1).await.unwrap_err());
    let rng = "0000:01:00.0=rng".parse::<Device>().unwrap();
    refused(kernel.plug(rng.address, from_ref(&rng)).await.unwrap_err());
    refused(kernel.unplug(rng.address, from_ref(&rng), LONG).await.unwrap_err());
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

pub(super) async fn change_of_memory_that_a_stopped_kernel_does_not_answer_ends_when_it_runs_on<
    S: Spawner,
>(
    bed: Bed<S>,
) {
    let kernel = booted(&bed).await;
    let before = kernel.memory().await.unwrap().unwrap();
    let target = before.present_bytes - (32 << 20);
    signal(kernel.pid(), "STOP");
    kernel.set_memory(MemoryWanted::Exactly(target), Duration::from_millis(300)).await.unwrap_err();
    let state = kernel.memory().await.unwrap().unwrap();
    assert!(state.pending && state.present_bytes == before.present_bytes, "{state:?}");
    let error = kernel.set_memory(MemoryWanted::Exactly(before.present_bytes), LONG).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("earlier")), "{error}");
    signal(kernel.pid(), "CONT");
    let state = until("the end of the change", || async {
        kernel.memory().await.unwrap().filter(|state| !state.pending)
    });
    assert_eq!(state.await.present_bytes, target);
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

pub(super) async fn memory_that_is_for_good_cannot_be_changed<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    assert_eq!(kernel.memory().await.unwrap(), None);
    let error = kernel.set_memory(MemoryWanted::Exactly(64 << 20), LONG).await.unwrap_err();
    assert!(matches!(error, SpawnError::Refused { .. }), "{error}");
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}
