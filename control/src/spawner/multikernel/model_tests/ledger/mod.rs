//! The daemon's own books over the spawner's: its journal of instances and its ledger, in a store on disk, and lives as the daemon's task leads them.
//! Keepers, agents and links are left out; what has to do with the kernel is done by the spawner, on the model.
//!
//! Whatever the kernel and other programs do, and at whatever write to the journal or call of the kernel the daemon dies: each unit has one
//! owner, whatever is ours in the kernel is an instance of the journal, and the ledger has as running what the kernel's tree shows running. Where that
//! cannot be told the spawner says why, and leaves it alone.
//!
//! `TOMBOLO_CASES` says how many random histories are played.

mod checks;
mod daemon;
mod lots;
mod moves;

use proptest::prelude::*;
use tombolo_mksim::model::Quirk;

use self::daemon::Daemon;
use super::deeds::{Happening, NAMES, any_time, between_steps};
use crate::core::State;

/// Histories that are played unless it is said otherwise: some seconds.
const CASES: u32 = 60;
/// The names of other programs' instances that can be taken over, besides ours.
const THEIRS: [&str; 2] = ["other", "spare"];

/// What an operator wants, or what happens by itself.
#[derive(Clone, Debug)]
enum Wish {
    Create {
        name: usize,
        cpus: u32,
    },
    Adopt {
        name: usize,
        force: bool,
    },
    Start(usize),
    Kill(usize),
    Remove(usize),
    /// CPUs are to move between two that are there, or one and the pool, which comes after them.
    Move {
        from: usize,
        to: usize,
        count: u32,
    },
    /// So many steps of memory.
    MoveMemory {
        from: usize,
        to: usize,
        steps: u64,
    },
    /// A device.
    MoveDevice {
        from: usize,
        to: usize,
        device: usize,
    },
    /// What a kernel was given of memory cannot leave.
    Pins(usize, bool),
    /// The daemon sees which kernels have ended.
    Look,
    /// Time passes, in seconds.
    Wait(u64),
    Quirk(usize, bool),
    /// Kernels take CPUs, and say so to nobody.
    LosesAcks(bool),
}

/// A wish, and what comes upon it.
#[derive(Clone, Debug)]
struct Turn {
    before: Option<Happening>,
    wish: Wish,
    /// By the number of the call of the kernel that it comes before.
    meanwhile: Vec<(u64, Happening)>,
    /// So many seconds after we began to wait for a kernel all kernels that hang go on.
    thaws_after: Option<u64>,
    /// The half of a call of the kernel at which we die.
    crash_at_call: Option<u64>,
    /// The half of a write to the journal at which we die.
    crash_at_write: Option<u64>,
    /// Whether our lock is left behind.
    leaves_lock: bool,
}

fn any_name(name: usize) -> &'static str {
    NAMES.iter().chain(&THEIRS).copied().nth(name % (NAMES.len() + THEIRS.len())).unwrap_or("web")
}

fn turn() -> impl Strategy<Value = Turn> {
    let one = || 0..NAMES.len() + THEIRS.len();
    let wish = prop_oneof![
        3 => (0..NAMES.len(), 1..4_u32).prop_map(|(name, cpus)| Wish::Create { name, cpus }),
        3 => (one(), any::<bool>()).prop_map(|(name, force)| Wish::Adopt { name, force }),
        5 => one().prop_map(Wish::Start),
        3 => one().prop_map(Wish::Kill),
        2 => one().prop_map(Wish::Remove),
        5 => (0..6_usize, 0..6_usize, 1..3_u32).prop_map(|(from, to, count)| Wish::Move { from, to, count }),
        5 => (0..6_usize, 0..6_usize, 1..3_u64).prop_map(|(from, to, steps)| Wish::MoveMemory { from, to, steps }),
        4 => (0..6_usize, 0..6_usize, 0..4_usize).prop_map(|(from, to, device)| Wish::MoveDevice { from, to, device }),
        2 => Just(Wish::Look),
        1 => (0..40_u64).prop_map(Wish::Wait),
        1 => (0..Quirk::ALL.len(), any::<bool>()).prop_map(|(quirk, on)| Wish::Quirk(quirk, on)),
    ];
    (
        prop::option::weighted(0.4, between_steps()),
        wish,
        prop::collection::vec((0..60_u64, any_time()), 0..2),
        prop::option::weighted(0.2, 0..100_u64),
        prop::option::weighted(0.3, 0..12_u64),
        any::<bool>(),
    )
        .prop_map(|(before, wish, meanwhile, crash_at_call, crash_at_write, leaves_lock)| Turn {
            before,
            wish,
            meanwhile,
            thaws_after: None,
            crash_at_call,
            crash_at_write,
            leaves_lock,
        })
}

/// What comes upon two kernels that run, and whose CPUs, memory and devices move.
fn moving_turn() -> impl Strategy<Value = Turn> {
    let (name, other) = (0..2_usize, 0..3_usize);
    let before = prop_oneof![
        6 => (name.clone(), any::<bool>()).prop_map(|(name, hangs)| Happening::Hangs { name, hangs }),
        1 => (name, any::<bool>()).prop_map(|(name, panics)| Happening::Ends { name, panics }),
        1 => (other, 0..4_usize).prop_map(|(name, cpu)| Happening::Create { name, cpu, memory: 1 }),
        1 => (0..2_usize).prop_map(Happening::Remove),
        1 => (0..2_usize).prop_map(Happening::HaltHangs),
        1 => Just(Happening::Noise),
    ];
    let wish = prop_oneof![
        9 => (0..3_usize, 0..3_usize, 1..3_u32).prop_map(|(from, to, count)| Wish::Move { from, to, count }),
        9 => (0..3_usize, 0..3_usize, 1..4_u64).prop_map(|(from, to, steps)| Wish::MoveMemory { from, to, steps }),
        9 => (0..3_usize, 0..3_usize, 0..4_usize).prop_map(|(from, to, device)| Wish::MoveDevice { from, to, device }),
        1 => (0..2_usize, any::<bool>()).prop_map(|(name, is_pinned)| Wish::Pins(name, is_pinned)),
        2 => Just(Wish::Look),
        1 => (0..40_u64).prop_map(Wish::Wait),
        1 => any::<bool>().prop_map(Wish::LosesAcks),
        1 => (0..2_usize).prop_map(Wish::Start),
        1 => (0..2_usize).prop_map(Wish::Kill),
    ];
    // A kernel that hangs is not asked to vote: it must hang in the middle of it.
    let hangs = (0..2_usize).prop_map(|name| Happening::Hangs { name, hangs: true });
    let calls = prop::collection::vec((0..150_u64, prop_oneof![3 => hangs, 1 => any_time()]), 0..3);
    let thaws = prop::option::weighted(0.3, 0..11_u64);
    (
        prop::option::weighted(0.6, before),
        wish,
        calls,
        thaws,
        prop::option::weighted(0.2, 0..600_u64),
        prop::option::weighted(0.2, 0..24_u64),
        any::<bool>(),
    )
        .prop_map(
            |(before, wish, meanwhile, thaws_after, crash_at_call, crash_at_write, leaves_lock)| Turn {
                before,
                wish,
                meanwhile,
                thaws_after,
                crash_at_call,
                crash_at_write,
                leaves_lock,
            },
        )
}

fn simple(wish: Wish) -> Turn {
    let (before, meanwhile) = (None, Vec::new());
    Turn {
        before,
        wish,
        meanwhile,
        thaws_after: None,
        crash_at_call: None,
        crash_at_write: None,
        leaves_lock: false,
    }
}

/// A life of one that we make, of three whose CPUs, memory and devices come and go, and of one that is taken over.
fn lives() -> [Vec<Wish>; 5] {
    let then = [Wish::Start(2), Wish::Kill(2), Wish::Start(2), Wish::Kill(2), Wish::Remove(2)];
    let of = |first: Wish| std::iter::once(first).chain(then.iter().cloned()).collect();
    let create = Wish::Create { name: 2, cpus: 2 };
    let moving = |from, to| Wish::Move { from, to, count: 1 };
    let moves =
        vec![create.clone(), Wish::Start(2), moving(1, 0), moving(0, 1), Wish::Kill(2), Wish::Remove(2)];
    let of_memory = |from, to| Wish::MoveMemory { from, to, steps: 2 };
    let grows = vec![
        create.clone(),
        Wish::Start(2),
        of_memory(1, 0),
        of_memory(0, 1),
        Wish::Kill(2),
        Wish::Remove(2),
    ];
    let of_devices = |from, to| Wish::MoveDevice { from, to, device: 2 };
    let lends = vec![
        create.clone(),
        Wish::Start(2),
        of_devices(0, 1),
        of_devices(1, 0),
        Wish::Kill(2),
        Wish::Remove(2),
    ];
    [of(create), moves, grows, lends, of(Wish::Adopt { name: 2, force: false })]
}

/// Plays each life with a death at each half of what a step of it does.
fn die_at_each(dies: impl Fn(&mut Turn, u64)) {
    for life in lives() {
        // What comes before and after moves is in the first life.
        let is_move = |wish: &Wish| {
            matches!(wish, Wish::Move { .. } | Wish::MoveMemory { .. } | Wish::MoveDevice { .. })
        };
        let is_only_of_moves = life.iter().any(is_move);
        for dies_in in (0..life.len()).filter(|at| !is_only_of_moves || is_move(&life[*at])) {
            for half in 0.. {
                let mut daemon = Daemon::new();
                if matches!(life[0], Wish::Adopt { .. }) {
                    let create = Happening::CreateLikeOurs { name: 2, cpu: 0 };
                    create.happen(&mut daemon.bench.model.world());
                }
                for wish in &life[..dies_in] {
                    daemon.take(&simple(wish.clone()));
                }
                let mut turn = simple(life[dies_in].clone());
                dies(&mut turn, half);
                let died = daemon.take(&turn);
                daemon.leave();
                if !died {
                    break;
                }
            }
        }
    }
}

#[test]
fn death_at_any_write_to_the_journal_loses_nothing() {
    die_at_each(|turn, half| turn.crash_at_write = Some(half));
}

#[test]
fn death_at_any_call_of_the_kernel_loses_nothing() {
    die_at_each(|turn, half| turn.crash_at_call = Some(half));
}

#[test]
fn lives_come_to_their_end_without_deaths() {
    for life in lives() {
        let mut daemon = Daemon::new();
        Happening::CreateLikeOurs { name: 2, cpu: 0 }.happen(&mut daemon.bench.model.world());
        if matches!(life[0], Wish::Create { .. }) {
            Happening::Remove(0).happen(&mut daemon.bench.model.world());
        }
        for wish in &life {
            daemon.take(&simple(wish.clone()));
            let state = daemon.records.get("cache").map(|record| record.life.state());
            match wish {
                Wish::Create { .. } | Wish::Adopt { .. } => assert_eq!(state, Some(State::Defined)),
                Wish::Start(_) => assert_eq!(state, Some(State::Booting)),
                Wish::Kill(_) => assert_eq!(state, Some(State::Stopped)),
                Wish::Move { to, .. } => {
                    let cid = daemon.records["cache"].cid.0;
                    let expected = if *to == 0 { 3 } else { 2 };
                    assert_eq!(daemon.cpus_of(tombolo_handover::InstanceId(cid)).len(), expected);
                }
                Wish::MoveMemory { to, .. } => {
                    let id = tombolo_handover::InstanceId(daemon.records["cache"].cid.0);
                    let steps = daemon.memory_of(id) * crate::daemon::GRANULE_BYTES / lots::STEP_BYTES;
                    assert_eq!(steps, if *to == 0 { 3 } else { 1 });
                }
                Wish::MoveDevice { to, .. } => {
                    let id = tombolo_handover::InstanceId(daemon.records["cache"].cid.0);
                    assert_eq!(daemon.devices_of(id).len(), usize::from(*to == 0));
                }
                _ => assert_eq!(state, None),
            }
        }
        daemon.leave();
    }
}

fn cases() -> u32 {
    std::env::var("TOMBOLO_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn journal_ledger_and_kernel_agree_whatever_happens(turns in prop::collection::vec(turn(), 1..16)) {
        let mut daemon = Daemon::new();
        for turn in &turns {
            daemon.take(turn);
        }
        daemon.leave();
    }
    #[test]
    fn what_moves_is_in_one_kernel_whatever_happens(turns in prop::collection::vec(moving_turn(), 1..20)) {
        let mut daemon = Daemon::new();
        for wish in [0, 1].map(|name| Wish::Create { name, cpus: 1 }).into_iter().chain([0, 1].map(Wish::Start)) {
            daemon.take(&simple(wish));
        }
        for turn in &turns {
            daemon.take(turn);
        }
        daemon.leave();
    }
}
