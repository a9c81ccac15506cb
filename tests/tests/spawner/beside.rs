//! What is the `multikernel` spawner's alone: its kernels are no processes of this host, and others work on the same kernel.
//!
//! All of it runs on the **stand-in** for Multikernel Linux, whose traps can be switched.

use super::*;

/// The instances that the kernel has.
fn instances() -> Vec<String> {
    let entries = fs::read_dir("/sys/fs/multikernel/instances").unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

pub(super) async fn kernel_outlives_its_keeper_and_another_stands_for_it<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let (warden, keeper) = (kernel.pid(), parent_of(kernel.pid()));
    signal(keeper, "KILL");
    until("the end of the warden", || async { (!runs(warden)).then_some(()) }).await;
    assert_eq!(instances(), ["web"]);
    let again = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    assert_ne!(again.pid(), warden);
    assert_eq!(again.status().await.unwrap(), KernelStatus::Running);
    let ticks = last_tick(&again).await;
    until("more ticks", || async { (last_tick(&again).await > ticks).then_some(()) }).await;
    until("an answer on the new doorbell", || async { (try_ring(&again, 1).await == Some(2)).then_some(()) })
        .await;
    assert_eq!(again.kill().await.unwrap().how, ExitHow::Signaled(9));
    nothing_is_left_of(again).await;
}

pub(super) async fn killing_whoever_stands_for_it_does_not_end_a_kernel<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    signal(kernel.pid(), "KILL");
    until("that nobody stands for it", || async { kernel.status().await.err() }).await;
    let again = kernel.stand_again().await.unwrap().expect("it runs");
    assert_eq!(again.status().await.unwrap(), KernelStatus::Running);
    assert!(again.stand_again().await.unwrap().is_none(), "somebody stands for it");
    again.kill().await.unwrap();
    nothing_is_left_of(again).await;
}

pub(super) async fn kernel_that_ended_while_nobody_stood_for_it_is_found_ended<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let keeper = parent_of(kernel.pid());
    signal(keeper, "KILL");
    until("the end of the keeper", || async { (!runs(keeper)).then_some(()) }).await;
    standin::here().unwrap().control(&["panic", "web"]);
    let exit = until("its end", || async { kernel.exited().await.ok() }).await;
    assert_eq!(exit.how, ExitHow::Lost);
    nothing_is_left_of(kernel).await;
    assert!(instances().is_empty(), "what it had is given back");
}

pub(super) async fn kernel_that_hangs_is_ended_by_force_and_gives_back_all_it_had<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    standin::here().unwrap().control(&["freeze", "web"]);
    assert_eq!(kernel.kill().await.unwrap().how, ExitHow::Signaled(9));
    assert!(instances().is_empty());
    nothing_is_left_of(kernel).await;
}

pub(super) async fn nobody_can_stop_a_kernel_and_let_it_run_on<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    assert!(matches!(kernel.freeze().await.unwrap_err(), SpawnError::Control { .. }));
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

/// The spawner stops no kernel here: the stand-in does.
pub(super) async fn kernel_that_runs_answers_and_one_that_hangs_does_not<S: Spawner>(bed: Bed<S>) {
    let stand_in = standin::here().unwrap();
    let kernel = booted(&bed).await;
    assert_eq!(kernel.answers(LONG).await, Some(true));
    stand_in.control(&["freeze", "web"]);
    assert_eq!(kernel.answers(Duration::from_secs(1)).await, Some(false), "it hangs");
    assert_eq!(kernel.status().await.unwrap(), KernelStatus::Running, "nothing else tells");
    stand_in.control(&["thaw", "web"]);
    assert_eq!(kernel.answers(LONG).await, Some(true));
    kernel.kill().await.unwrap();
    let answers = kernel.answers(Duration::from_secs(1)).await;
    assert_ne!(answers, Some(true), "it has ended");
    nothing_is_left_of(kernel).await;
}

pub(super) async fn end_of_a_kernel_without_a_console_is_explained_by_nothing(bed: Bed<MultikernelSpawner>) {
    let mut settings = bed.spawner.settings().clone();
    settings.console = "".into();
    let spawner = MultikernelSpawner::new(KEEPER, settings);
    let kernel = spawner.spawn(&bed.spec).await.unwrap();
    until("an answer on the doorbell", || async { (try_ring(&kernel, 1).await == Some(2)).then_some(()) })
        .await;
    let _ = try_ring(&kernel, b'q').await;
    assert_eq!(exit_of(&kernel).await.how, ExitHow::Unexplained);
    nothing_is_left_of(kernel).await;
}

pub(super) async fn more_cpus_than_are_free_are_refused_and_nothing_is_made<S: Spawner>(mut bed: Bed<S>) {
    bed.spec.cpus_started = 3;
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err().to_string();
    assert!(error.contains("the pool has 2"), "{error}");
    assert!(instances().is_empty());
}

pub(super) async fn more_memory_than_the_pool_has_is_refused_and_nothing_is_left<S: Spawner>(
    mut bed: Bed<S>,
) {
    let bytes = 2 << 30;
    (bed.spec.memory_bytes, bed.spec.memory_min_bytes, bed.spec.memory_max_bytes) = (bytes, bytes, bytes);
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err().to_string();
    assert!(error.contains("dmesg") && error.contains("nothing of it is left"), "{error}");
    assert!(instances().is_empty());
    let left: Vec<_> = fs::read_dir(&bed.spec.runtime_dir).map(Iterator::collect).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

/// This host has no vsock of Multikernel Linux.
pub(super) async fn kernel_that_could_not_be_reached_is_refused_and_nothing_is_made(
    bed: Bed<MultikernelSpawner>,
) {
    let (mut settings, default) = (bed.spawner.settings().clone(), MultikernelSettings::default());
    (settings.pool, settings.link) = (None, default.link);
    let transactions = standin::here().unwrap().transactions();
    let spawner = MultikernelSpawner::new(KEEPER, settings);
    let error = spawner.spawn(&bed.spec).await.unwrap_err().to_string();
    assert!(error.contains("CONFIG_MULTIKERNEL_VSOCKETS"), "{error}");
    assert_eq!(standin::here().unwrap().transactions(), transactions);
}

pub(super) async fn names_that_belong_to_others_are_refused<S: Spawner>(mut bed: Bed<S>) {
    bed.spec.agent_config.name = "successor".into();
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err().to_string();
    assert!(error.contains("kmorph"), "{error}");
}

fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

async fn try_ring(kernel: &Kernel, byte: u8) -> Option<u8> {
    let fd: OwnedFd = kernel.doorbell().await.ok()?;
    let mut doorbell = UnixStream::from_std(std::os::unix::net::UnixStream::from(fd)).ok()?;
    doorbell.write_all(&[byte]).await.ok()?;
    timeout(Duration::from_millis(500), doorbell.read_u8()).await.ok()?.ok()
}

#[test]
fn multikernel_does_what_every_spawner_does_on_the_stand_in() {
    standin::rerun("on_multikernel::", &[]);
}

#[test]
fn multikernel_without_shared_memory_is_asked_whether_it_lives_on_the_stand_in() {
    standin::rerun("on_multikernel_without_pool::", &[]);
}
