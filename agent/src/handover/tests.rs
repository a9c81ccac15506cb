//! Orders, leases and whoever does not wait for them, on made-up kernels. A driver's `unbind` is a pipe there, so that to let a device go
//! takes until somebody reads it.

use std::fs;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use rustix::fs::{CWD, FileType, MemfdFlags, Mode, SealFlags, mknodat};
use tombolo_handover::{PciAddress, Unit};

use super::act::Turn;
use super::*;
use crate::api::handover::{Action, Piece};
use crate::children::{Children, Scope};
use crate::exec::Launcher;
use crate::state::Lifecycle;

const OP: OpId = OpId(7);
const CPU: Here = Here::Cpu { index: 1 };
const ADDRESS: PciAddress = PciAddress { domain: 0, bus: 1, device: 0, function: 0 };
const DEVICE: UnitId = UnitId::Device(ADDRESS);
const LEASE_MS: u64 = 3_600_000;

/// A kernel with two CPUs, and a device that has a driver.
struct MadeUp {
    dir: tempfile::TempDir,
    service: HandoverService,
}

fn device() -> Here {
    Here::Device { address: ADDRESS }
}

fn order(here: Here, epoch: u64, action: impl Into<Option<Action>>, lease_ms: u64) -> Order {
    let (end, action) = (End::Donor, action.into());
    let unit = match here {
        Here::Device { address } => Unit::device(address, None, true),
        _ => Unit::cpu(1, 1, None),
    };
    Order { operation: OP, end, unit, here: Some(here), epoch, action, lease_ms }
}

impl MadeUp {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |below: &str| dir.path().join(below);
        for folder in ["cpu/cpu0", "cpu/cpu1", "proc", "pci/devices/0000:01:00.0/driver"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        fs::write(path("cpu/online"), "0-1\n").unwrap();
        fs::write(path("cpu/cpu1/online"), "1\n").unwrap();
        let unbind = path("pci/devices/0000:01:00.0/driver/unbind");
        mknodat(CWD, &unbind, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let service = Self::service(&dir);
        Self { dir, service }
    }

    fn service(dir: &tempfile::TempDir) -> HandoverService {
        let path = |below: &str| dir.path().join(below);
        let kernel = Kernel {
            cpus: path("cpu"),
            pci: path("pci"),
            blocks: path("blocks"),
            proc: path("proc"),
            dev: path("dev"),
        };
        let launcher = Launcher::new(Children::new(Scope::OwnChildren), "/proc/self/exe".into(), false);
        let exec = ExecEngine::new(launcher, Lifecycle::booting());
        HandoverService::of(exec, path("hooks"), kernel, Record::at(path("run/book")))
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn driver(&self) -> PathBuf {
        self.path("pci/devices/0000:01:00.0/driver")
    }

    /// Has an order to let the device go begin, which nobody waits for then. The turn after it.
    async fn begins_to_let_go(&self, lease_ms: u64) -> Pin<Box<dyn Future<Output = Turn>>> {
        let service = self.service.clone();
        let ordered =
            tokio::spawn(async move { service.follow(&order(device(), 1, Action::Drain, lease_ms)).await });
        until(|| self.service.book().is_under_way(DEVICE)).await;
        ordered.abort();
        assert!(ordered.await.unwrap_err().is_cancelled());
        let service = self.service.clone();
        let mut next: Pin<Box<dyn Future<Output = Turn>>> =
            Box::pin(async move { service.0.turns.of(device()).await });
        assert!(poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await);
        next
    }

    /// Has the kernel let it go.
    async fn lets_go(&self, next_turn: Pin<Box<dyn Future<Output = Turn>>>) {
        let unbind = self.driver().join("unbind");
        let told = tokio::task::spawn_blocking(|| fs::read_to_string(unbind)).await.unwrap().unwrap();
        assert_eq!(told, "0000:01:00.0");
        let _turn = next_turn.await;
        fs::rename(self.driver(), self.path("former-driver")).unwrap();
    }

    fn is_online(&self) -> bool {
        fs::read_to_string(self.path("cpu/cpu1/online")).is_ok_and(|text| text.trim() == "1")
    }
}

impl Drop for MadeUp {
    /// A test that failed is not held up by who would wait for it.
    fn drop(&mut self) {
        let pipe = fs::File::options().read(true).write(true).open(self.driver().join("unbind"));
        std::mem::forget(pipe);
    }
}

/// Waits for what others bring about.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_nobody_waits_for_any_more_is_carried_out_promised_and_lapses() {
    let made_up = MadeUp::new();
    let next_turn = made_up.begins_to_let_go(0).await;
    made_up.lets_go(next_turn).await;
    until(|| made_up.path("pci/drivers_probe").exists()).await;
    fs::rename(made_up.path("former-driver"), made_up.driver()).unwrap();
    until(|| made_up.service.book().watched(OP, DEVICE).is_none()).await;
    assert_eq!(made_up.service.book().promise(OP, DEVICE), Promise::Nothing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_waits_for_what_has_been_begun_under_an_older_epoch() {
    let made_up = MadeUp::new();
    let follow = |order: Order| {
        let service = made_up.service.clone();
        tokio::spawn(async move { service.follow(&order).await })
    };
    let next_turn = made_up.begins_to_let_go(LEASE_MS).await;
    let look = follow(order(device(), 2, None, LEASE_MS));
    let cpu = follow(order(CPU, 1, None, LEASE_MS)).await.unwrap();
    assert_eq!(cpu.inside, Inside::Online, "others are looked at meanwhile");
    let cpu = follow(order(CPU, 2, Action::Drain, LEASE_MS)).await.unwrap();
    assert_eq!(cpu.inside, Inside::Offline, "and dealt with");
    assert!(!look.is_finished());
    made_up.lets_go(next_turn).await;
    assert_eq!(look.await.unwrap(), Seen { refused: None, inside: Inside::Offline });
    assert_eq!(made_up.service.book().promise(OP, DEVICE), Promise::Drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_a_look_has_overtaken_is_not_carried_out() {
    let made_up = MadeUp::new();
    let turn = made_up.service.0.turns.of(CPU).await;
    let service = made_up.service.clone();
    let ordered = tokio::spawn(async move { service.follow(&order(CPU, 1, Action::Drain, LEASE_MS)).await });
    until(|| made_up.service.book().admit(UnitId::Cpu(1), 1).is_err()).await;
    let look = made_up.service.follow(&order(CPU, 1, None, LEASE_MS)).await;
    assert_eq!(look.inside, Inside::Online);
    drop(turn);
    let seen = ordered.await.unwrap();
    assert!(seen.refused.unwrap().reason.contains("out of date"));
    assert!(made_up.is_online() && seen.inside == Inside::Online);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_again_is_tried_until_it_can() {
    let made_up = MadeUp::new();
    assert_eq!(made_up.service.follow(&order(CPU, 1, Action::Drain, LEASE_MS)).await.refused, None);
    // What cannot be written to, not even by root.
    let stuck = rustix::fs::memfd_create("stuck", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&stuck, b"0\n").unwrap();
    rustix::fs::fcntl_add_seals(&stuck, SealFlags::WRITE | SealFlags::SHRINK).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&stuck);
    fs::remove_file(made_up.path("cpu/cpu1/online")).unwrap();
    let link = made_up.path("cpu/cpu1/online");
    std::os::unix::fs::symlink(format!("/proc/self/fd/{number}"), link).unwrap();
    made_up.service.book().note(OP, UnitId::Cpu(1), 2, Duration::ZERO);
    // The clock of the test jumps to whatever is waited for.
    tokio::time::sleep(2 * Duration::from_millis(LEASE_MS)).await;
    assert!(!made_up.is_online());
    assert_eq!(made_up.service.book().leases(), [(OP, UnitId::Cpu(1))]);
    fs::remove_file(made_up.path("cpu/cpu1/online")).unwrap();
    fs::write(made_up.path("cpu/cpu1/online"), "0\n").unwrap();
    tokio::time::sleep(act::USE_AGAIN_MAX * 2).await;
    assert!(made_up.is_online());
    assert_eq!(made_up.service.book().leases(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_was_drained_and_does_not_lapse_for_anybody() {
    let made_up = MadeUp::new();
    let confirm = |operation| Asked {
        operation,
        question: Question::Confirm,
        end: End::Donor,
        pieces: vec![Piece { unit: UnitId::Cpu(1), here: Some(CPU), epoch: 5 }],
        lease_ms: 0,
    };
    let reason = made_up.service.confirm(&confirm(OP)).await.unwrap().reason;
    assert!(reason.contains("in use again"), "{reason}");
    let drain = order(CPU, 6, Action::Drain, LEASE_MS);
    assert_eq!(made_up.service.follow(&drain).await.inside, Inside::Offline);
    assert_eq!(made_up.service.book().leases(), [(OP, UnitId::Cpu(1))]);
    assert_eq!(made_up.service.confirm(&confirm(OpId(8))).await, None, "found drained by another one");
    assert_eq!(made_up.service.book().leases(), []);
    assert!(!made_up.is_online());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cpu_that_leaves_by_itself_is_emptied_for_the_move_that_drained_it() {
    let made_up = MadeUp::new();
    let here = Here::PhysicalCpu { id: 6 };
    fs::write(made_up.path("proc/cpuinfo"), "processor\t: 1\napicid\t\t: 6\n").unwrap();
    fs::write(made_up.path("cpu/online"), "0-1\n").unwrap();
    let follow = async |operation, epoch, action| {
        let order = Order { operation: OpId(operation), ..order(here, epoch, action, LEASE_MS) };
        made_up.service.follow(&order).await.inside
    };
    assert_eq!(follow(OP.0, 1, None).await, Inside::Online);
    assert_eq!(follow(OP.0, 2, Some(Action::Drain)).await, Inside::Emptied);
    assert!(made_up.is_online());
    assert_eq!(follow(8, 3, None).await, Inside::Online, "for another move nothing was promised");
    let confirm = Asked {
        operation: OP,
        question: Question::Confirm,
        end: End::Donor,
        pieces: vec![Piece { unit: UnitId::Cpu(1), here: Some(here), epoch: 5 }],
        lease_ms: LEASE_MS,
    };
    assert_eq!(made_up.service.confirm(&confirm).await, None);
    fs::write(made_up.path("proc/cpuinfo"), "processor\t: 0\napicid\t\t: 2\n").unwrap();
    assert_eq!(follow(OP.0, 6, None).await, Inside::Absent);
    assert_eq!(follow(OP.0, 7, Some(Action::Online)).await, Inside::Absent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_without_end_is_one() {
    let made_up = MadeUp::new();
    assert_eq!(made_up.service.follow(&order(CPU, 1, Action::Drain, u64::MAX)).await.refused, None);
    assert_eq!(made_up.service.book().leases(), [(OP, UnitId::Cpu(1))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_started_again_keeps_what_was_promised_and_uses_again_what_lapses() {
    let made_up = MadeUp::new();
    let unit = UnitId::Cpu(1);
    let known = |service: &HandoverService| {
        let book = service.book();
        (book.promise(OP, unit), book.leases())
    };
    assert_eq!(made_up.service.follow(&order(CPU, 3, Action::Drain, LEASE_MS)).await.inside, Inside::Offline);
    let again = MadeUp::service(&made_up.dir);
    assert_eq!(known(&again), (Promise::Drained, vec![(OP, unit)]));
    let late = again.follow(&order(CPU, 3, Action::Undrain, LEASE_MS)).await;
    assert!(late.refused.is_some() && late.inside == Inside::Offline, "{late:?}");

    again.follow(&order(CPU, 4, None, 0)).await;
    let again = MadeUp::service(&made_up.dir);
    until(|| made_up.is_online()).await;
    until(|| again.book().watched(OP, unit).is_none()).await;

    again.follow(&order(CPU, 5, Action::Drain, LEASE_MS)).await;
    let pieces = vec![Piece { unit, here: Some(CPU), epoch: 6 }];
    let (question, end) = (Question::Confirm, End::Donor);
    assert_eq!(again.confirm(&Asked { operation: OP, question, end, pieces, lease_ms: 0 }).await, None);
    let again = MadeUp::service(&made_up.dir);
    assert_eq!(known(&again), (Promise::Drained, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ended_half_way_looks_what_has_become_of_it() {
    let made_up = MadeUp::new();
    let next_turn = made_up.begins_to_let_go(LEASE_MS).await;
    until(|| made_up.path("run/book").exists()).await;
    let half_way = fs::read(made_up.path("run/book")).unwrap();
    let again = MadeUp::service(&made_up.dir);
    assert!(!again.book().is_under_way(DEVICE));
    assert_eq!(again.book().leases(), [], "its driver has it");
    made_up.lets_go(next_turn).await;
    until(|| !made_up.service.book().leases().is_empty()).await;
    // As it would be if the first agent had not lived to see that.
    let turn = made_up.service.0.turns.of(device()).await;
    fs::write(made_up.path("run/book"), half_way).unwrap();
    let again = MadeUp::service(&made_up.dir);
    assert_eq!(again.book().leases(), [(OP, DEVICE)]);
    drop(turn);
}
