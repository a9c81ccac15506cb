//! Memory of kernels that run: what the host's books say of it, and what the kernels have.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::Quirk;

use super::bench::{Bench, hangs, is_unknown, refusal};
use super::deeds::{Happening, NAMES, number};
use super::world::{MIB, dies_of};
use crate::keeper::MemoryState;
use crate::spawner::MemoryWanted::{self, AtLeast, AtMost, Exactly};
use crate::spawner::multikernel::doubts::Asked as _;
use crate::spawner::multikernel::live::LiveError;
use crate::spawner::multikernel::memory::{self, LiveMemory};
use crate::spawner::multikernel::record::Record;

const SECOND_NS: u64 = 1_000_000_000;
/// What comes and goes at once.
const STEP: u64 = 128 * MIB;

/// So many steps.
fn steps(count: u64) -> u64 {
    count * STEP
}

fn set(bench: &Bench, record: &Record, wanted: MemoryWanted) -> Result<MemoryState, LiveError> {
    bench.memory(record, |memory| memory.set(wanted))
}

fn state(bench: &Bench, record: &Record) -> MemoryState {
    bench.memory(record, |memory| memory.state()).unwrap()
}

fn has(count: u64) -> MemoryState {
    MemoryState { present_bytes: steps(count), max_bytes: steps(6), pending: false, certain: true }
}

fn in_doubt(count: u64) -> MemoryState {
    MemoryState { pending: true, certain: false, ..has(count) }
}

/// Where the memory of an instance is by the host's books, and where its kernel has it: in steps from the start of the pool.
fn books_and_kernel(bench: &Bench, name: &str) -> (Vec<u64>, Vec<u64>) {
    let world = bench.model.world();
    let start = world.machine.pool().unwrap().chunks[0].range.base;
    let instance = world.machine.instance(name).unwrap();
    let guest = instance.guest.as_ref().map(|guest| guest.memory.clone()).unwrap_or_default();
    let step = |base: u64| (base - start) / STEP;
    (
        instance.regions.iter().map(|region| step(region.range.base)).collect(),
        guest.into_iter().map(step).collect(),
    )
}

fn both(regions: &[u64]) -> (Vec<u64>, Vec<u64>) {
    (regions.to_vec(), regions.to_vec())
}

fn quirk(bench: &Bench, quirk: Quirk, on: bool) {
    bench.model.world().machine.set_quirk(quirk, on);
}

#[test]
fn memory_comes_and_goes_whether_or_not_the_kernel_heeds_where() {
    for first_fit in [true, false] {
        let bench = Bench::with_quirk(Quirk::FirstFitBase, first_fit);
        let web = bench.running();
        assert_eq!(state(&bench, &web), has(1));
        assert_eq!(set(&bench, &web, Exactly(steps(3))), Ok(has(3)));
        assert_eq!(set(&bench, &web, Exactly(steps(3))), Ok(has(3)));
        assert_eq!(books_and_kernel(&bench, "web"), both(&[0, 1, 2]));
        assert_eq!(set(&bench, &web, AtMost(steps(2))), Ok(has(2)));
        assert_eq!(books_and_kernel(&bench, "web"), both(&[0, 1]), "the last that came");
        assert_eq!(set(&bench, &web, AtLeast(steps(1))), Ok(has(2)));
        assert_eq!(set(&bench, &web, AtMost(steps(1))), Ok(has(1)));
        assert!(!bench.folder("web").join(memory::AskedRegion::NAME).exists(), "nothing is open");
    }
}

#[test]
fn memory_that_cannot_be_had_is_refused_before_the_kernel_is_asked() {
    let bench = Bench::new();
    let web = bench.running();
    let before = bench.model.world().machine.snapshot().transactions.len();
    assert!(refusal(set(&bench, &web, AtMost(64 * MIB))).contains("booted with 128 MiB"));
    assert!(refusal(set(&bench, &web, Exactly(130 * MIB))).contains("steps of 128 MiB"));
    assert!(refusal(set(&bench, &web, AtLeast(130 * MIB))).contains("steps of 128 MiB"));
    assert!(refusal(set(&bench, &web, AtLeast(steps(7)))).contains("768 MiB at most"));
    bench.model.world().machine.halted(1);
    assert!(refusal(set(&bench, &web, Exactly(steps(2)))).contains("no kernel runs"));
    assert_eq!(bench.model.world().machine.snapshot().transactions.len(), before);
    let fixed = Record { memory_max_bytes: None, ..web };
    assert!(LiveMemory::on(&bench.model, &fixed, &bench.folder("web")).is_none(), "it is not the ledger's");
}

#[test]
fn shortage_in_between_leaves_what_was_had_and_says_so() {
    let bench = Bench::new();
    let web = bench.running();
    let other = Op::Create { name: "other", id: Some(20), memory_bytes: steps(5), cpus: &[6] };
    bench.model.world().overlay("/instances", &[other]);
    assert_eq!(set(&bench, &web, AtLeast(steps(6))), Ok(has(3)), "two are left");
    assert!(refusal(set(&bench, &web, AtLeast(steps(6)))).contains("0 MiB left"));
    assert_eq!(books_and_kernel(&bench, "web"), both(&[0, 6, 7]));
}

#[test]
fn memory_that_is_pinned_stays_and_what_else_there_is_is_tried() {
    let bench = Bench::new();
    let web = bench.running();
    set(&bench, &web, Exactly(steps(4))).unwrap();
    bench.model.world().machine.pinned(1, true);
    let asked = bench.model.world().machine.snapshot().transactions.len();
    assert!(refusal(set(&bench, &web, AtMost(steps(2)))).contains("refused"));
    assert!(bench.model.world().machine.snapshot().transactions.len() > asked + 4, "another one was tried");
    assert_eq!(state(&bench, &web), has(4));
    bench.model.world().machine.pinned(1, false);
    assert_eq!(set(&bench, &web, AtMost(steps(2))), Ok(has(2)));
}

#[test]
fn memory_is_not_asked_for_where_the_kernel_could_book_another_range() {
    let bench = Bench::new();
    let web = bench.running();
    let buffer = bench.model.world().machine.heap_allocate(16 * MIB).unwrap();
    let reason = refusal(set(&bench, &web, Exactly(steps(2))));
    assert!(reason.contains("not asked for until they are the same"), "{reason}");
    assert_eq!(state(&bench, &web), has(1));
    bench.model.world().machine.heap_free(buffer);
    assert_eq!(set(&bench, &web, Exactly(steps(2))), Ok(has(2)));
}

#[test]
fn range_that_was_booked_elsewhere_than_it_was_told_is_nobodys_until_the_kernel_ends() {
    let bench = Bench::new();
    let web = bench.running();
    // Between our look and our overlay a program that does not keep to the lock frees what lies below.
    let low = Op::Create { name: "low", id: Some(20), memory_bytes: steps(1), cpus: &[6] };
    bench.model.world().overlay("/instances", &[low]);
    bench.model.world().before_write =
        Some(Box::new(|world| world.overlay("/instances", &[Op::Remove("low")])));
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    assert_eq!(books_and_kernel(&bench, "web"), (vec![0, 1], vec![0, 2]));
    assert_eq!(state(&bench, &web), in_doubt(1));
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))), "it stays so");
    // The first that fits next is what the kernel uses.
    let mut db = bench.record("db", 2, &[6]);
    let reason = bench.make(&mut db).unwrap_err();
    assert!(
        reason.contains("may be in use in another") && reason.contains("nothing of it is left"),
        "{reason}"
    );
    bench.hold(&web).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    bench.make(&mut bench.record("db", 2, &[6])).unwrap();
}

#[test]
fn memory_whose_acknowledgement_is_lost_stays_in_doubt_until_its_kernel_answers() {
    let bench = Bench::with_quirk(Quirk::MemoryTwiceFails, false);
    let web = bench.running();
    quirk(&bench, Quirk::MemoryAckLost, true);
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    assert_eq!(books_and_kernel(&bench, "web"), (vec![0], vec![0, 1]), "free by the books, and in use");
    assert_eq!(state(&bench, &web), in_doubt(1));
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(1)))), "it is not known to be gone");
    quirk(&bench, Quirk::MemoryAckLost, false);
    assert_eq!(set(&bench, &web, Exactly(steps(2))), Ok(has(2)));
    assert_eq!(books_and_kernel(&bench, "web"), both(&[0, 1]));
}

#[test]
fn kernel_that_refuses_what_it_has_is_in_doubt_until_it_ends() {
    let bench = Bench::new();
    let mut web = bench.running();
    quirk(&bench, Quirk::MemoryAckLost, true);
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    quirk(&bench, Quirk::MemoryAckLost, false);
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    assert_eq!(state(&bench, &web), in_doubt(1));
    bench.hold(&web).end(|_| ()).unwrap();
    bench.release("web").unwrap();
    web = bench.running();
    assert_eq!((state(&bench, &web), set(&bench, &web, Exactly(steps(2)))), (has(1), Ok(has(2))));
}

#[test]
fn memory_that_a_kernel_let_go_late_is_its_own_until_that_is_told() {
    let bench = Bench::with_quirk(Quirk::MemoryTwiceFails, false);
    let web = bench.running();
    set(&bench, &web, Exactly(steps(2))).unwrap();
    hangs(&bench, true);
    assert!(is_unknown(&set(&bench, &web, AtMost(steps(1)))));
    assert_eq!(state(&bench, &web), in_doubt(2));
    hangs(&bench, false);
    assert_eq!(books_and_kernel(&bench, "web"), (vec![0, 1], vec![0]), "it let it go when nobody waited");
    assert_eq!(state(&bench, &web), in_doubt(2));
    assert_eq!(set(&bench, &web, AtMost(steps(1))), Ok(has(1)));
}

#[test]
fn late_acknowledgement_that_completes_the_next_operation_is_of_the_same_region_and_kernel() {
    let bench = Bench::with_quirk(Quirk::MemoryTwiceFails, false);
    let web = bench.running();
    hangs(&bench, true);
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    // The answer to the first comes while the second is waited for.
    let thaw = |world: &mut super::world::World| Happening::Hangs { name: 0, hangs: false }.happen(world);
    bench.model.world().while_waiting = Some((SECOND_NS, Box::new(thaw)));
    assert_eq!(set(&bench, &web, Exactly(steps(2))), Ok(has(2)));
    bench.model.world().pass(Duration::from_secs(1));
    assert_eq!(books_and_kernel(&bench, "web"), both(&[0, 1]));
}

#[test]
fn memory_that_may_be_in_use_is_given_to_no_other_kernel() {
    let bench = Bench::new();
    let web = bench.running();
    let mut db = bench.record("db", 2, &[6]);
    bench.make(&mut db).unwrap();
    bench.hold(&db).boot(|| false).unwrap();
    hangs(&bench, true);
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    assert!(refusal(set(&bench, &db, Exactly(steps(2)))).contains("may be in use in a kernel"));
    bench.hold(&web).end(|_| ()).unwrap();
    assert_eq!(set(&bench, &db, Exactly(steps(2))), Ok(has(2)));
}

#[test]
fn memory_doubts_that_cannot_be_read_are_not_taken_for_none() {
    let bench = Bench::new();
    let web = bench.running();
    fs::write(bench.folder("web").join(memory::AskedRegion::NAME), "{").unwrap();
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    assert!(bench.memory(&web, |memory| memory.state()).is_err());
    assert!(bench.make(&mut bench.record("db", 2, &[6])).unwrap_err().contains("cannot be read"));
    assert_eq!(books_and_kernel(&bench, "web"), both(&[0]));
}

#[test]
fn memory_that_only_the_answer_shows_is_none() {
    let bench = Bench::new();
    let web = bench.running();
    // An operation that the kernel does not know is skipped, with success.
    bench.model.world().faults.rename = Some((b"memory-add", b"memory-odd"));
    assert!(is_unknown(&set(&bench, &web, Exactly(steps(2)))));
    bench.model.world().faults.rename = None;
    assert_eq!(state(&bench, &web), in_doubt(1));
    assert_eq!(set(&bench, &web, Exactly(steps(2))), Ok(has(2)));
}

#[test]
fn death_at_any_call_leaves_memory_that_is_known_or_in_doubt() {
    for wanted in [2, 1] {
        for half in 0.. {
            let bench = Bench::new();
            let web = bench.running();
            set(&bench, &web, Exactly(steps(3 - wanted))).unwrap();
            let calls = bench.model.world().calls;
            bench.model.world().crash_at = Some(2 * calls + half);
            let died = dies_of(|| {
                set(&bench, &web, Exactly(steps(wanted))).unwrap();
            });
            bench.model.world().crash_at = None;
            let (books, kernel) = books_and_kernel(&bench, "web");
            assert_eq!(books, kernel, "half {half}");
            assert_eq!(state(&bench, &web), has(books.len() as u64), "half {half}");
            assert_eq!(set(&bench, &web, Exactly(steps(2))), Ok(has(2)), "half {half}");
            if !died {
                break;
            }
        }
    }
}

/// What happens to kernels whose memory moves.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Set one's memory to so many steps; die at this half of a call.
    Set {
        name: usize,
        steps: u64,
        dies_at: Option<u64>,
    },
    Hangs {
        name: usize,
        hangs: bool,
    },
    Pinned(usize, bool),
    Quirk(Quirk, bool),
    /// It ends, and is made and started again.
    Again(usize),
    Other {
        name: usize,
        comes: bool,
    },
    Wait(u64),
}

fn turn() -> impl Strategy<Value = Turn> {
    let name = 0..2_usize;
    let quirks =
        [Quirk::MemoryAckLost, Quirk::MemoryTwiceFails, Quirk::FirstFitBase, Quirk::LateAckCompletesNext];
    prop_oneof![
        6 => (name.clone(), 1..6_u64, prop::option::weighted(0.2, 0..120_u64))
            .prop_map(|(name, steps, dies_at)| Turn::Set { name, steps, dies_at }),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, hangs)| Turn::Hangs { name, hangs }),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, is_pinned)| Turn::Pinned(name, is_pinned)),
        2 => (prop::sample::select(quirks.to_vec()), any::<bool>()).prop_map(|(quirk, on)| Turn::Quirk(quirk, on)),
        1 => name.prop_map(Turn::Again),
        1 => (0..2_usize, any::<bool>()).prop_map(|(name, comes)| Turn::Other { name, comes }),
        1 => (0..20_u64).prop_map(Turn::Wait),
    ]
}

/// Each byte of the pool is used in one kernel of ours, as the books say, or is in doubt in that one.
fn check(bench: &Bench, records: &BTreeMap<usize, Record>) {
    let mut users: BTreeMap<u64, usize> = BTreeMap::new();
    for (name, record) in records {
        let (books, kernel) = books_and_kernel(bench, NAMES[*name]);
        let Ok(state) = bench.memory(record, |memory| memory.state()) else { panic!("it cannot be told") };
        if state.certain {
            assert_eq!(state.present_bytes, steps(books.len() as u64));
            let (mut books, mut kernel) = (books, kernel.clone());
            books.sort_unstable();
            kernel.sort_unstable();
            assert_eq!(books, kernel, "{}: {state:?}", NAMES[*name]);
        }
        for region in kernel {
            assert_eq!(users.insert(region, *name), None, "step {region} is used twice");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn memory_that_moves_is_used_in_one_kernel_whatever_happens(turns in prop::collection::vec(turn(), 1..25)) {
        let bench = Bench::new();
        let mut records = BTreeMap::new();
        let start = |records: &mut BTreeMap<usize, Record>, name: usize| {
            let cpus = [[2], [4]][name];
            let mut record = bench.record(NAMES[name], u16::try_from(number(name)).unwrap(), &cpus);
            // Where memory is in doubt none may be to be had.
            if bench.make(&mut record).is_ok() {
                bench.hold(&record).boot(|| false).unwrap();
                records.insert(name, record);
            }
        };
        (0..2).for_each(|name| start(&mut records, name));
        for turn in turns {
            match turn {
                Turn::Set { name, steps: count, dies_at } => {
                    if let Some(record) = records.get(&name) {
                        let calls = bench.model.world().calls;
                        bench.model.world().crash_at = dies_at.map(|half| 2 * calls + half);
                        let died = dies_of(|| {
                            if let Ok(state) = set(&bench, record, Exactly(steps(count))) {
                                assert!(state.certain, "{state:?}");
                            }
                        });
                        bench.model.world().crash_at = None;
                        if died {
                            let _ = fs::remove_file(bench.lock());
                        }
                    }
                }
                Turn::Hangs { name, hangs } => Happening::Hangs { name, hangs }.happen(&mut bench.model.world()),
                Turn::Pinned(name, is_pinned) => bench.model.world().machine.pinned(number(name), is_pinned),
                Turn::Quirk(quirk, on) => bench.model.world().machine.set_quirk(quirk, on),
                Turn::Again(name) => {
                    if let Some(record) = records.remove(&name) {
                        bench.hold(&record).end(|_| ()).unwrap();
                        bench.release(NAMES[name]).unwrap();
                    }
                    start(&mut records, name);
                }
                Turn::Other { name, comes } => {
                    let name = ["other", "spare"][name];
                    let create = Op::Create { name, id: None, memory_bytes: steps(1), cpus: &[] };
                    let op = if comes { create } else { Op::Remove(name) };
                    bench.model.world().overlay("/instances", &[op]);
                }
                Turn::Wait(seconds) => bench.model.world().pass(Duration::from_secs(seconds)),
            }
            check(&bench, &records);
        }
    }
}
