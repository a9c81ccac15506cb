//! What every spawner must do: one suite, run on each of them.
//!
//! The kernels run `tombolo-test-init` instead of the agent: it ticks on the console and obeys bytes on the doorbell.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tombolo_agent::config::AgentConfig;
use tombolo_control::api::beside::PoolWish;
use tombolo_control::keeper::{Exit, ExitHow};
use tombolo_control::spawner::{
    Kernel, KernelSpec, KernelStatus, MultikernelSettings, MultikernelSpawner, PoolFile, ProcessSpawner,
    QemuSpawner, SpawnError, Spawner, UmlSpawner,
};
use tombolo_tests::wait::{LONG, until};
use tombolo_tests::{prerequisites, standin};
use tombolo_transport::{Cid, Incarnation, Member};

mod beside;
mod units;

use beside::*;
use units::*;

const KEEPER: &str = env!("CARGO_BIN_EXE_tombolo-boot");

/// A spawner, and a kernel specification in a folder of its own.
struct Bed<S> {
    spawner: S,
    spec: KernelSpec,
    dir: TempDir,
}

async fn uml() -> Option<Bed<UmlSpawner>> {
    let init = prerequisites::static_program("tombolo-test-init")?;
    prerequisites::kernel_image()?;
    Some(bed(UmlSpawner::new(KEEPER), init))
}

async fn qemu() -> Option<Bed<QemuSpawner>> {
    let init = prerequisites::static_program("tombolo-test-init")?;
    prerequisites::qemu()?;
    let mut bed = bed(QemuSpawner::new(KEEPER), init);
    let bytes = 128 << 20;
    (bed.spec.memory_bytes, bed.spec.memory_min_bytes, bed.spec.memory_max_bytes) = (bytes, bytes, bytes);
    Some(bed)
}

async fn qemu_pinned() -> Option<Bed<QemuSpawner>> {
    let mut bed = qemu().await?;
    bed.spawner = bed.spawner.with_pinned_cpus(true);
    Some(bed)
}

async fn qemu_with_vsock() -> Option<Bed<QemuSpawner>> {
    let device = prerequisites::vsock_device()?;
    let mut bed = qemu().await?;
    bed.spawner = bed.spawner.with_vsock_device(Some(device));
    Some(bed)
}

/// Inside the stand-in alone: see [`beside`].
async fn multikernel() -> Option<Bed<MultikernelSpawner>> {
    let stand_in = standin::here()?;
    let mut bed = multikernel_on(&stand_in).await?;
    let pool = PoolFile { path: stand_in.pool(), len: 1 << 20 };
    fs::File::create(&pool.path).unwrap().set_len(pool.len).unwrap();
    bed.spec.pool = Some(pool);
    Some(bed)
}

/// The same where kernels share no memory with the host, which is where the kernel itself can be asked whether it lives.
async fn multikernel_without_pool() -> Option<Bed<MultikernelSpawner>> {
    let mut bed = multikernel_on(&standin::here()?.without_shared_memory()).await?;
    bed.spec.pool = None;
    Some(bed)
}

async fn multikernel_on(stand_in: &standin::StandIn) -> Option<Bed<MultikernelSpawner>> {
    let init = prerequisites::static_program("tombolo-test-init")?;
    let bed = bed(MultikernelSpawner::new(KEEPER, stand_in.settings()), init);
    let wish = PoolWish { cpus: Some(vec![2, 4]), memory_bytes: Some(1 << 30), ..PoolWish::default() };
    let instances = bed.dir.path().join("instances");
    bed.spawner.change_pool(instances, wish, false).await.unwrap();
    Some(bed)
}

async fn process() -> Option<Bed<ProcessSpawner>> {
    Some(bed(ProcessSpawner::new(KEEPER), env!("CARGO_BIN_EXE_tombolo-test-init").into()))
}

fn bed<S>(spawner: S, init: PathBuf) -> Bed<S> {
    let dir = tempfile::tempdir().unwrap();
    let pool = PoolFile { path: dir.path().join("pool"), len: 1 << 20 };
    fs::File::create(&pool.path).unwrap().set_len(pool.len).unwrap();
    let incarnation = Incarnation::random().unwrap();
    let spec = KernelSpec {
        image: None,
        initrd: None,
        memory_bytes: 96 << 20,
        memory_min_bytes: 96 << 20,
        memory_max_bytes: 96 << 20,
        cpus: Vec::new(),
        cpus_started: 1,
        cpus_withheld: Vec::new(),
        cpus_max: 1,
        catalogue: Vec::new(),
        devices: Vec::new(),
        devices_move: false,
        agent_binary: init,
        agent_config: AgentConfig::new("web", Cid(3), Member(1), incarnation, [9; 32]),
        initrd_files: Vec::new(),
        modules: Vec::new(),
        pool: Some(pool),
        runtime_dir: dir.path().join("instances/web"),
        extra_args: Vec::new(),
        taken_over: None,
    };
    Bed { spawner, spec, dir }
}

fn console_of(kernel: &Kernel) -> String {
    String::from_utf8_lossy(&fs::read(kernel.console_log()).unwrap_or_default()).into_owned()
}

async fn console_says(kernel: &Kernel, text: &str) {
    until(&format!("`{text}` on the console"), || async { console_of(kernel).contains(text).then_some(()) })
        .await;
}

async fn last_tick(kernel: &Kernel) -> usize {
    console_of(kernel).matches("tick").count()
}

async fn doorbell_of(kernel: &Kernel) -> UnixStream {
    let fd: OwnedFd = kernel.doorbell().await.unwrap();
    UnixStream::from_std(std::os::unix::net::UnixStream::from(fd)).unwrap()
}

async fn ring(kernel: &Kernel, byte: u8) -> u8 {
    let mut doorbell = doorbell_of(kernel).await;
    doorbell.write_all(&[byte]).await.unwrap();
    timeout(LONG, doorbell.read_u8()).await.expect("no answer on the doorbell").unwrap()
}

async fn booted<S: Spawner>(bed: &Bed<S>) -> Kernel {
    let kernel = bed.spawner.spawn(&bed.spec).await.unwrap();
    console_says(&kernel, "ready: web cid 3").await;
    kernel
}

async fn exit_of(kernel: &Kernel) -> Exit {
    timeout(LONG, kernel.exited()).await.expect("the kernel does not end").unwrap()
}

/// All processes whose working folder is that of the kernel: the kernel, its helpers, its keeper.
fn processes_in(dir: &Path) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let inside = all.filter(|path| fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == dir));
    inside
        .map(|path| fs::read_to_string(path.join("cmdline")).unwrap_or_default().replace('\0', " "))
        .collect()
}

async fn nothing_is_left_of(kernel: Kernel) {
    let dir = kernel.runtime_dir().to_owned();
    kernel.forget().await.unwrap();
    let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.iter().all(|name| name.to_string_lossy().starts_with("console.log")), "left: {files:?}");
    until("the end of all its processes", || async { processes_in(&dir).is_empty().then_some(()) }).await;
}

async fn boots_answers_its_doorbell_and_powers_off<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    assert_eq!(kernel.status().await.unwrap(), KernelStatus::Running);
    assert_eq!(ring(&kernel, b'a').await, b'b');
    let refused = kernel.clone().forget().await.unwrap_err();
    assert!(matches!(refused, SpawnError::Refused { .. }), "{refused}");

    assert_eq!(ring(&kernel, b'q').await, b'r');
    let exit = exit_of(&kernel).await;
    assert_eq!(exit.how, ExitHow::PoweredOff);
    assert_eq!(kernel.status().await.unwrap(), KernelStatus::Exited(exit));
    nothing_is_left_of(kernel).await;
}

async fn kill_takes_all_its_processes<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let waiting = tokio::spawn({
        let kernel = kernel.clone();
        async move { exit_of(&kernel).await }
    });
    let exit = kernel.kill().await.unwrap();
    assert_eq!(exit.how, ExitHow::Signaled(9));
    assert_eq!(waiting.await.unwrap(), exit);
    assert_eq!(kernel.kill().await.unwrap(), exit, "killing a dead kernel is no error");
    nothing_is_left_of(kernel).await;
}

async fn death_by_a_foreign_hand_is_seen<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    signal(kernel.pid(), "KILL");
    assert_eq!(exit_of(&kernel).await.how, ExitHow::Signaled(9));
    assert!(matches!(kernel.doorbell().await.unwrap_err(), SpawnError::Ended { .. }));
    assert!(matches!(kernel.freeze().await.unwrap_err(), SpawnError::Ended { .. }));
    nothing_is_left_of(kernel).await;
}

async fn freeze_stops_it_and_thaw_lets_it_run_on<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    kernel.freeze().await.unwrap();
    kernel.freeze().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await; // what was written before is on its way
    let frozen_at = last_tick(&kernel).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(last_tick(&kernel).await, frozen_at, "it ticked on while frozen");
    assert_eq!(kernel.status().await.unwrap(), KernelStatus::Running);
    kernel.thaw().await.unwrap();
    kernel.thaw().await.unwrap();
    until("more ticks", || async { (last_tick(&kernel).await > frozen_at + 3).then_some(()) }).await;
    assert_eq!(ring(&kernel, 1).await, 2);
    kernel.freeze().await.unwrap();
    assert_eq!(kernel.kill().await.unwrap().how, ExitHow::Signaled(9), "a frozen kernel can be killed");
    nothing_is_left_of(kernel).await;
}

async fn running_kernel_answers_and_frozen_one_does_not<S: Spawner>(bed: Bed<S>) {
    answers_are_told(bed, true).await;
}

async fn nobody_can_ask_a_kernel_that_is_none<S: Spawner>(bed: Bed<S>) {
    answers_are_told(bed, false).await;
}

/// Where the spawner cannot ask, it says so, frozen or not.
async fn answers_are_told<S: Spawner>(bed: Bed<S>, can_ask: bool) {
    let expected = |answers: bool| can_ask.then_some(answers);
    let kernel = booted(&bed).await;
    assert_eq!(kernel.answers(LONG).await, expected(true));
    kernel.freeze().await.unwrap();
    assert_eq!(kernel.answers(Duration::from_secs(1)).await, expected(false), "frozen by its spawner");
    kernel.thaw().await.unwrap();
    assert_eq!(kernel.answers(LONG).await, expected(true));
    signal(kernel.pid(), "STOP");
    assert_eq!(kernel.answers(Duration::from_secs(1)).await, expected(false), "stopped by a foreign hand");
    signal(kernel.pid(), "CONT");
    assert_eq!(kernel.answers(LONG).await, expected(true));
    kernel.kill().await.unwrap();
    assert_eq!(kernel.answers(Duration::from_secs(1)).await, expected(false), "ended");
    nothing_is_left_of(kernel).await;
}

async fn adopted_kernel_is_the_same<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let pid = kernel.pid();
    drop(kernel);
    let adopted = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    assert_eq!(adopted.pid(), pid);
    assert_eq!(ring(&adopted, 10).await, 11);

    let second = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(matches!(second, SpawnError::Occupied { keeper_pid: 1.., .. }), "{second}");
    assert_eq!(ring(&adopted, 20).await, 21, "the refused second one did no harm");

    adopted.kill().await.unwrap();
    let dead = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap();
    assert_eq!(
        exit_of(&dead).await.how,
        ExitHow::Signaled(9),
        "how it ended is known to whoever comes later"
    );
    nothing_is_left_of(dead).await;
    let gone = bed.spawner.adopt(&bed.spec.runtime_dir).await.unwrap_err();
    assert!(matches!(gone, SpawnError::NotFound { .. }), "{gone}");
}

async fn killed_keeper_takes_its_kernel_along<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let keeper = processes_in(kernel.runtime_dir()).len();
    assert!(keeper >= 2, "keeper and kernel run in the folder");
    signal(parent_of(kernel.pid()), "KILL");
    assert_eq!(exit_of(&kernel).await.how, ExitHow::Lost);
    nothing_is_left_of(kernel).await;
    let again = booted(&bed).await;
    again.kill().await.unwrap();
    nothing_is_left_of(again).await;
}

async fn keeper_that_cannot_be_reached_costs_no_kernel_its_life<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let (socket, away) = (kernel.runtime_dir().join("keeper.sock"), bed.dir.path().join("away"));
    fs::rename(&socket, &away).unwrap();
    for error in [kernel.status().await.unwrap_err(), kernel.exited().await.unwrap_err()] {
        assert!(matches!(error, SpawnError::Keeper { .. }), "{error}");
    }
    fs::rename(&away, &socket).unwrap();
    assert_eq!(kernel.status().await.unwrap(), KernelStatus::Running);
    assert_eq!(ring(&kernel, 5).await, 6, "it runs on");
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

async fn folder_of_a_kernel_that_was_lost_unseen_can_be_used_again<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let keeper = parent_of(kernel.pid());
    signal(keeper, "KILL");
    let gone = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
    until("the end of the keeper", || async { gone(keeper).then_some(()) }).await;
    // What is left of the kernel is swept by whoever takes the folder.
    let again = booted(&bed).await;
    assert_ne!(again.pid(), kernel.pid());
    again.kill().await.unwrap();
    nothing_is_left_of(again).await;
}

async fn terminated_keeper_kills_its_kernel_and_records_it<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    signal(parent_of(kernel.pid()), "TERM");
    assert_eq!(exit_of(&kernel).await.how, ExitHow::Signaled(9));
    nothing_is_left_of(kernel).await;
}

async fn console_serves_one_client_at_a_time<S: Spawner>(bed: Bed<S>) {
    let kernel = booted(&bed).await;
    let live = kernel.console().await.unwrap();
    let refused = kernel.console().await.unwrap_err();
    assert!(matches!(refused, SpawnError::Refused { .. }), "{refused}");
    let mut live = UnixStream::from_std(live).unwrap();
    let mut output = vec![0; 64];
    timeout(LONG, live.read_exact(&mut output)).await.expect("no live output").unwrap();
    assert!(String::from_utf8_lossy(&output).contains("tick"));
    drop(live);
    until("the console to be free again", || async { kernel.console().await.ok() }).await;
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

async fn panic_is_told_apart<S: Spawner>(bed: Bed<S>) {
    exit_status_is_told_apart(&bed, b'p', ExitHow::Panicked).await;
}

async fn end_of_init_is_a_panic<S: Spawner>(bed: Bed<S>) {
    exit_status_is_told_apart(&bed, b'x', ExitHow::Panicked).await;
}

async fn reset_is_neither_a_power_off_nor_a_panic<S: Spawner>(bed: Bed<S>) {
    exit_status_is_told_apart(&bed, b'R', ExitHow::Code(0)).await;
}

async fn exit_statuses_are_told_apart<S: Spawner>(bed: Bed<S>) {
    for (byte, code) in [(b'p', 3), (b'x', 1)] {
        exit_status_is_told_apart(&bed, byte, ExitHow::Code(code)).await;
    }
}

async fn exit_status_is_told_apart<S: Spawner>(bed: &Bed<S>, byte: u8, expected: ExitHow) {
    let kernel = booted(bed).await;
    // The answer may or may not get out before the end.
    doorbell_of(&kernel).await.write_all(&[byte]).await.unwrap();
    let exit = exit_of(&kernel).await;
    assert_eq!(exit.how, expected, "console:\n{}", console_of(&kernel));
    nothing_is_left_of(kernel).await;
}

async fn image_that_is_no_kernel_is_refused<S: Spawner>(mut bed: Bed<S>) {
    bed.spec.image = Some("/bin/true".into());
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(matches!(error, SpawnError::NotAKernel { .. }), "{error}");
    assert!(!bed.spec.runtime_dir.exists());
}

async fn initial_archive_that_no_kernel_unpacks_is_refused<S: Spawner>(mut bed: Bed<S>) {
    for (content, why) in
        [(&b""[..], "it is empty"), (b"not packed", "neither cpio"), (b"070701", "cut short")]
    {
        let path = bed.dir.path().join("initrd");
        fs::write(&path, content).unwrap();
        bed.spec.initrd = Some(path);
        let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
        assert!(matches!(&error, SpawnError::NotAnArchive { reason, .. } if reason.contains(why)), "{error}");
    }
    bed.spec.initrd = Some("/no/such/initrd".into());
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/initrd"), "{error}");
    assert!(!bed.spec.runtime_dir.exists());
}

async fn initial_archive_is_refused_where_nothing_unpacks_it<S: Spawner>(mut bed: Bed<S>) {
    bed.spec.initrd = Some("/srv/base.img".into());
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(
        matches!(&error, SpawnError::BadSpec { reason, .. } if reason.contains("/srv/base.img") && reason.contains("no kernel boots")),
        "{error}"
    );
    assert!(!bed.spec.runtime_dir.exists());
}

async fn too_little_memory_is_refused_with_what_is_needed<S: Spawner>(mut bed: Bed<S>) {
    bed.spec.memory_bytes /= 4;
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(
        matches!(&error, SpawnError::BadSpec { reason, .. } if reason.contains("MiB or more")),
        "{error}"
    );
}

async fn what_cannot_be_spawned_leaves_nothing<S: Spawner>(mut bed: Bed<S>) {
    let agent = std::mem::replace(&mut bed.spec.agent_binary, "/no/such/agent".into());
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/agent"), "{error}");
    bed.spec.agent_binary = agent;

    let pool = bed.spec.pool.replace(PoolFile { path: "/no/such/pool".into(), len: 4096 });
    let error = bed.spawner.spawn(&bed.spec).await.unwrap_err();
    assert!(
        matches!(&error, SpawnError::BadSpec { reason, .. } if reason.contains("/no/such/pool")),
        "{error}"
    );
    bed.spec.pool = pool;

    assert!(processes_in(&bed.spec.runtime_dir).is_empty());
    let left = fs::read_dir(&bed.spec.runtime_dir).map_or(0, Iterator::count);
    assert_eq!(left, 0, "files are left");
}

async fn pool_of_any_length_is_made_as_long_as_a_power_of_two<S: Spawner>(mut bed: Bed<S>) {
    let pool = PoolFile { path: bed.dir.path().join("odd-pool"), len: 3 * 4096 };
    fs::File::create(&pool.path).unwrap().set_len(pool.len).unwrap();
    bed.spec.pool = Some(pool.clone());
    let kernel = booted(&bed).await;
    assert_eq!(fs::metadata(&pool.path).unwrap().len(), 4 * 4096);
    kernel.kill().await.unwrap();
    nothing_is_left_of(kernel).await;
}

fn parent_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}

fn signal(pid: u32, name: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

macro_rules! tests {
    ($spawner:ident: $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(bed) = super::$spawner().await {
                    super::$test(bed).await;
                }
            }
        )*
    };
}

/// What every spawner does.
macro_rules! suite {
    ($spawner:ident) => {
        tests!($spawner:
            boots_answers_its_doorbell_and_powers_off, kill_takes_all_its_processes, adopted_kernel_is_the_same,
            terminated_keeper_kills_its_kernel_and_records_it, console_serves_one_client_at_a_time,
            what_cannot_be_spawned_leaves_nothing, keeper_that_cannot_be_reached_costs_no_kernel_its_life,
        );
    };
}

/// What one does besides whose kernels are processes of this host.
macro_rules! suite_of_processes {
    ($spawner:ident) => {
        suite!($spawner);
        tests!($spawner:
            death_by_a_foreign_hand_is_seen, freeze_stops_it_and_thaw_lets_it_run_on,
            killed_keeper_takes_its_kernel_along, folder_of_a_kernel_that_was_lost_unseen_can_be_used_again,
        );
    };
}

/// What one does besides that makes kernels.
macro_rules! suite_of_kernels {
    ($spawner:ident) => {
        tests!($spawner:
            panic_is_told_apart, end_of_init_is_a_panic, image_that_is_no_kernel_is_refused,
            too_little_memory_is_refused_with_what_is_needed, initial_archive_that_no_kernel_unpacks_is_refused,
        );
    };
}

mod on_uml {
    suite_of_processes!(uml);
    suite_of_kernels!(uml);
    tests!(uml:
        running_kernel_answers_and_frozen_one_does_not,
        memory_leaves_a_running_kernel_and_comes_back,
        change_of_memory_that_a_stopped_kernel_does_not_answer_ends_when_it_runs_on,
        cpus_and_devices_that_are_for_good_cannot_be_changed,
    );
}

mod on_qemu {
    suite_of_processes!(qemu);
    suite_of_kernels!(qemu);
    tests!(qemu:
        running_kernel_answers_and_frozen_one_does_not,
        memory_that_is_for_good_cannot_be_changed, memory_of_a_device_leaves_and_comes_back,
        cpus_are_lent_to_a_running_kernel_and_taken_when_it_has_parked_them,
        devices_are_plugged_into_a_running_kernel_and_unplugged,
        pool_of_any_length_is_made_as_long_as_a_power_of_two, reset_is_neither_a_power_off_nor_a_panic,
    );
}

mod on_qemu_alone {
    tests!(qemu:
        probe_boot_tells_a_machine_that_comes_up_from_one_that_does_not,
        cpu_that_was_never_there_is_plugged_into_a_running_kernel_and_stays_where_qemu_cannot_unplug,
    );
}

mod on_qemu_pinned {
    tests!(qemu_pinned: cpus_run_on_the_cpus_of_this_host_that_they_are_named_after);
}

/// What the device has a hand in: it is one more process, and sees the machine's memory.
mod on_qemu_with_vsock {
    tests!(qemu_with_vsock:
        boots_answers_its_doorbell_and_powers_off, kill_takes_all_its_processes, death_by_a_foreign_hand_is_seen,
        freeze_stops_it_and_thaw_lets_it_run_on, adopted_kernel_is_the_same, killed_keeper_takes_its_kernel_along,
        terminated_keeper_kills_its_kernel_and_records_it, what_cannot_be_spawned_leaves_nothing,
        folder_of_a_kernel_that_was_lost_unseen_can_be_used_again, panic_is_told_apart,
        memory_of_a_device_leaves_and_comes_back,
        cpus_are_lent_to_a_running_kernel_and_taken_when_it_has_parked_them,
        devices_are_plugged_into_a_running_kernel_and_unplugged,
    );
}

mod on_multikernel {
    suite!(multikernel);
    suite_of_kernels!(multikernel);
    tests!(multikernel:
        kernel_outlives_its_keeper_and_another_stands_for_it, killing_whoever_stands_for_it_does_not_end_a_kernel,
        kernel_that_ended_while_nobody_stood_for_it_is_found_ended,
        kernel_that_hangs_is_ended_by_force_and_gives_back_all_it_had, nobody_can_stop_a_kernel_and_let_it_run_on,
        end_of_a_kernel_without_a_console_is_explained_by_nothing,
        more_cpus_than_are_free_are_refused_and_nothing_is_made,
        more_memory_than_the_pool_has_is_refused_and_nothing_is_left,
        kernel_that_could_not_be_reached_is_refused_and_nothing_is_made, names_that_belong_to_others_are_refused,
    );
}

mod on_multikernel_without_pool {
    tests!(multikernel_without_pool: kernel_that_runs_answers_and_one_that_hangs_does_not);
}

mod on_process {
    suite_of_processes!(process);
    tests!(process:
        memory_that_is_for_good_cannot_be_changed, nobody_can_ask_a_kernel_that_is_none,
        exit_statuses_are_told_apart, cpus_and_devices_that_are_for_good_cannot_be_changed,
        initial_archive_is_refused_where_nothing_unpacks_it,
    );
}
