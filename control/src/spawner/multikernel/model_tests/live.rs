//! CPUs of kernels that run: what the host's books say of them, and what the kernels have.

use std::fs;
use std::time::Duration;

use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::Quirk;

use super::bench::{Bench, hangs, is_unknown, refusal};
use super::deeds::Happening;
use super::world::{MIB, dies_of};
use crate::spawner::multikernel::doubts::Asked as _;
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::live::{self, LiveCpu, LiveError};
use crate::spawner::multikernel::record::Record;

const SECOND_NS: u64 = 1_000_000_000;

fn cpu(number: u32) -> PhysicalCpu {
    PhysicalCpu(number)
}

fn give(bench: &Bench, record: &Record, number: u32) -> Result<(), LiveError> {
    bench.live(record, |live| live.give(cpu(number)))
}

fn take(bench: &Bench, record: &Record, number: u32) -> Result<(), LiveError> {
    bench.live(record, |live| live.take(cpu(number)))
}

fn settle(bench: &Bench, record: &Record, number: u32) -> Result<(), LiveError> {
    bench.live(record, |live| live.settle(cpu(number)))
}

/// What is said of a CPU.
fn seen(bench: &Bench, record: &Record, number: u32) -> Option<LiveCpu> {
    let cpus = bench.live(record, |live| live.cpus()).unwrap();
    cpus.into_iter().find(|seen| seen.cpu == cpu(number))
}

fn there(number: u32) -> LiveCpu {
    LiveCpu { cpu: cpu(number), is_there: true, may_change: false }
}

/// The CPUs that the host's books give to `web`, and those that its kernel has.
fn books_and_kernel(bench: &Bench) -> (Vec<u64>, Vec<u64>) {
    let world = bench.model.world();
    let web = world.machine.instance("web").unwrap();
    (web.cpus.clone(), web.guest.as_ref().map(|guest| guest.cpus.clone()).unwrap_or_default())
}

fn free(bench: &Bench) -> Vec<u64> {
    bench.model.world().machine.pool().unwrap().cpus_free.clone()
}

#[test]
fn cpu_comes_and_goes_while_its_kernel_runs() {
    let bench = Bench::new();
    let web = bench.running();
    give(&bench, &web, 6).unwrap();
    give(&bench, &web, 6).unwrap();
    assert_eq!(books_and_kernel(&bench), (vec![2, 4, 6], vec![2, 4, 6]));
    assert_eq!((seen(&bench, &web, 6), free(&bench)), (Some(there(6)), vec![1]));
    take(&bench, &web, 6).unwrap();
    take(&bench, &web, 6).unwrap();
    assert_eq!(books_and_kernel(&bench), (vec![2, 4], vec![2, 4]));
    assert_eq!((seen(&bench, &web, 6), free(&bench)), (None, vec![1, 6]));
    assert!(!bench.folder("web").join(live::AskedCpu::NAME).exists(), "nothing is open");
}

#[test]
fn cpu_that_cannot_be_had_is_refused_before_the_kernel_is_asked() {
    let bench = Bench::new();
    let web = bench.running();
    let other = Op::Create { name: "other", id: Some(20), memory_bytes: 64 * MIB, cpus: &[6] };
    bench.model.world().overlay("/instances", &[other]);
    let before = bench.model.world().machine.snapshot().transactions.len();
    assert!(refusal(give(&bench, &web, 6)).contains("an instance of the kernel has it"));
    assert!(refusal(give(&bench, &web, 7)).contains("not in the pool"));
    assert!(refusal(take(&bench, &web, 2)).contains("booted on"));
    bench.model.world().machine.halted(1);
    assert!(refusal(give(&bench, &web, 1)).contains("no kernel runs"));
    assert_eq!(bench.model.world().machine.snapshot().transactions.len(), before);
}

#[test]
fn cpus_of_an_instance_that_was_taken_over_are_not_ours_to_move() {
    let bench = Bench::new();
    let web = Record { moves_cpus: false, ..bench.running() };
    assert!(live::Live::on(&bench.model, &web, &bench.folder("web")).is_none());
}

#[test]
fn cpu_whose_acknowledgement_is_lost_stays_in_doubt_until_its_kernel_answers() {
    let bench = Bench::new();
    let web = bench.running();
    bench.model.world().machine.set_quirk(Quirk::CpuAddAckLost, true);
    assert!(is_unknown(&give(&bench, &web, 6)));
    assert_eq!(books_and_kernel(&bench), (vec![2, 4], vec![2, 4, 6]), "the kernel has it");
    assert_eq!(free(&bench), [1, 6], "and it is free by the books");
    let in_doubt = LiveCpu { cpu: cpu(6), is_there: false, may_change: true };
    assert_eq!(seen(&bench, &web, 6), Some(in_doubt));
    assert!(is_unknown(&take(&bench, &web, 6)), "it is not known to be gone");
    assert!(is_unknown(&settle(&bench, &web, 6)), "lost again");
    bench.model.world().machine.set_quirk(Quirk::CpuAddAckLost, false);
    settle(&bench, &web, 6).unwrap();
    assert_eq!(seen(&bench, &web, 6), Some(there(6)));
    assert_eq!(books_and_kernel(&bench), (vec![2, 4, 6], vec![2, 4, 6]));
}

#[test]
fn cpu_that_a_kernel_did_not_let_go_in_time_may_leave_yet() {
    let bench = Bench::new();
    let web = bench.running();
    hangs(&bench, true);
    assert!(is_unknown(&take(&bench, &web, 4)));
    let leaving = LiveCpu { may_change: true, ..there(4) };
    assert_eq!(seen(&bench, &web, 4), Some(leaving));
    assert!(is_unknown(&give(&bench, &web, 4)), "it is not known to stay");
    hangs(&bench, false);
    assert_eq!(books_and_kernel(&bench), (vec![2, 4], vec![2]), "its kernel let it go when nobody waited");
    assert_eq!(seen(&bench, &web, 4), Some(leaving));
    settle(&bench, &web, 4).unwrap();
    assert_eq!((seen(&bench, &web, 4), free(&bench)), (None, vec![1, 4, 6]));
}

#[test]
fn late_acknowledgement_that_completes_the_next_operation_is_of_the_same_cpu_and_kernel() {
    let bench = Bench::new();
    let web = bench.running();
    for (change, back, has) in [(4, true, vec![2]), (6, false, vec![2, 6])] {
        hangs(&bench, true);
        let outcome = if back { take(&bench, &web, change) } else { give(&bench, &web, change) };
        assert!(is_unknown(&outcome));
        // The answer to the first comes while the second is waited for.
        let thaw = |world: &mut super::world::World| Happening::Hangs { name: 0, hangs: false }.happen(world);
        bench.model.world().while_waiting = Some((SECOND_NS, Box::new(thaw)));
        settle(&bench, &web, change).unwrap();
        bench.model.world().pass(Duration::from_secs(1));
        assert_eq!(books_and_kernel(&bench), (has.clone(), has), "both are done by then");
    }
}

#[test]
fn kernel_that_does_not_answer_is_asked_once_and_given_up_after_ten_seconds() {
    let bench = Bench::new();
    let web = bench.running();
    hangs(&bench, true);
    let (before_ns, before) = {
        let world = bench.model.world();
        (world.now_ns, world.machine.snapshot().transactions.len())
    };
    assert!(is_unknown(&give(&bench, &web, 6)));
    let world = bench.model.world();
    let took_ns = world.now_ns - before_ns;
    assert!((10 * SECOND_NS..11 * SECOND_NS).contains(&took_ns), "{took_ns}");
    assert_eq!(world.machine.snapshot().transactions.len(), before + 1);
}

#[test]
fn host_that_is_busy_with_another_instance_asks_nobody_and_leaves_no_doubt() {
    let bench = Bench::new();
    let web = bench.running();
    let other = Op::Create { name: "other", id: Some(20), memory_bytes: 64 * MIB, cpus: &[1] };
    {
        let mut world = bench.model.world();
        world.overlay("/instances", &[other]);
        world.load(20).unwrap();
        world.reboot(tombolo_mksim::model::RebootCommand::Boot, 20).unwrap();
        Happening::HaltHangs(0).happen(&mut world);
    }
    assert!(refusal(give(&bench, &web, 6)).contains("busy"));
    assert_eq!(seen(&bench, &web, 6), None);
    bench.model.world().pass(Duration::from_secs(31));
    give(&bench, &web, 6).unwrap();
}

#[test]
fn what_was_noted_and_never_asked_is_crossed_out_by_the_next_daemon() {
    let mut is_noted = false;
    for half in 0.. {
        let bench = Bench::new();
        let web = bench.running();
        {
            let mut world = bench.model.world();
            world.crash_at = Some(2 * world.calls + half);
        }
        let died = dies_of(|| give(&bench, &web, 6).unwrap());
        bench.model.world().crash_at = None;
        is_noted |= bench.folder("web").join(live::AskedCpu::NAME).exists();
        let seen = seen(&bench, &web, 6);
        let (books, kernel) = books_and_kernel(&bench);
        assert_eq!(books, kernel, "half {half}");
        assert_eq!(seen, books.contains(&6).then_some(there(6)), "half {half}");
        take(&bench, &web, 6).unwrap();
        if !died {
            break;
        }
    }
    assert!(is_noted, "it never died in between");
}

#[test]
fn doubts_end_with_the_kernel_that_they_are_of() {
    let bench = Bench::new();
    let web = bench.running();
    hangs(&bench, true);
    assert!(is_unknown(&give(&bench, &web, 6)));
    bench.hold(&web).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    let web = bench.running();
    assert_eq!(seen(&bench, &web, 6), None);
    give(&bench, &web, 6).unwrap();
}

#[test]
fn doubts_that_cannot_be_read_are_not_taken_for_none() {
    let bench = Bench::new();
    let web = bench.running();
    fs::write(bench.folder("web").join(live::AskedCpu::NAME), "{").unwrap();
    assert!(is_unknown(&give(&bench, &web, 6)) && is_unknown(&take(&bench, &web, 4)));
    assert!(bench.live(&web, |live| live.cpus()).is_err());
    assert_eq!(books_and_kernel(&bench), (vec![2, 4], vec![2, 4]));
}

#[test]
fn success_that_only_one_tree_shows_is_none() {
    let bench = Bench::new();
    let web = bench.running();
    // An operation that the kernel does not know is skipped, with success.
    bench.model.world().faults.rename = Some((b"cpu-add", b"cpu-odd"));
    assert!(is_unknown(&give(&bench, &web, 6)));
    bench.model.world().faults.rename = None;
    assert_eq!(seen(&bench, &web, 6).map(|seen| seen.may_change), Some(true));
    settle(&bench, &web, 6).unwrap();
    assert_eq!(seen(&bench, &web, 6), Some(there(6)));
}

#[test]
fn cpu_that_may_run_elsewhere_is_given_to_no_new_instance() {
    let bench = Bench::new();
    let mut web = Record { cpus_wanted: 3, cpus_withheld: vec![cpu(4)], ..bench.record("web", 1, &[]) };
    bench.make(&mut web).unwrap();
    assert_eq!(web.cpus, [cpu(1), cpu(2), cpu(6)]);
    let mut db = Record { cpus_withheld: vec![cpu(4)], ..bench.record("db", 2, &[]) };
    assert!(bench.make(&mut db).unwrap_err().contains("has 0 to give"));
}
