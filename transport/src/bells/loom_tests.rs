//! Every interleaving of ringers and a hearer: no bell is missed by whoever looks after it.

use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicBool, AtomicU64};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::board::{GROUPS_OF_SUMMARY, group_of};
use super::{BOARD_BYTES, Board, Hearers, MemberSet};
use crate::mem::{Memory as _, MemoryMut as _, ModelMemory, PAGE};
use crate::pool::Member;

type Model = ModelMemory<AtomicU64>;

/// Two pages whose groups have one summary.
fn two_halves() -> [u64; 2] {
    let offset = |page: u64| page * PAGE as u64;
    let summary = |offset: u64| group_of(offset) / GROUPS_OF_SUMMARY;
    let first = offset(0);
    let other = (1..)
        .map(offset)
        .find(|other| summary(*other) == summary(first) && group_of(*other) != group_of(first));
    [first, other.unwrap()]
}

#[test]
fn loom_every_bell_is_heard_whatever_is_counted_beside_it() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(|| {
        let halves = two_halves();
        let board_memory = Model::new(BOARD_BYTES);
        // The count in each ringer's half.
        let counts = Model::new(16);
        let rung = Arc::new((Mutex::new(0), Condvar::new()));
        let mut hearers = Hearers::new(board_memory.clone());
        (0..2).for_each(|number| hearers.insert(halves[number], (number, 0)));
        let ringers: Vec<_> = (0..2)
            .map(|number| {
                let (board, counts, rung) =
                    (Board::new(board_memory.clone()), counts.clone(), Arc::clone(&rung));
                thread::spawn(move || {
                    counts.fetch_add(8 * number, 1);
                    board.count(halves[number]);
                    *rung.0.lock().unwrap() += 1;
                    rung.1.notify_one();
                })
            })
            .collect();
        let heard = [AtomicBool::new(false), AtomicBool::new(false)];
        let mut look = || {
            hearers.rung(|(number, seen)| {
                let count = counts.load(8 * *number, Ordering::Acquire);
                if std::mem::replace(seen, count) != count {
                    heard[*number].store(true, Ordering::Relaxed);
                }
            });
        };
        // One look at any time, one after each bell.
        look();
        for _ in 0..2 {
            let mut bells = rung.0.lock().unwrap();
            while *bells == 0 {
                bells = rung.1.wait(bells).unwrap();
            }
            *bells -= 1;
            drop(bells);
            look();
        }
        ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
        assert!(heard.iter().all(|heard| heard.load(Ordering::Relaxed)), "a bell was missed");
    });
}

#[test]
fn loom_a_member_added_while_the_set_is_emptied_comes_out_now_or_later() {
    loom::model(|| {
        let set: Arc<MemberSet<AtomicU64>> = Arc::new(MemberSet::new());
        // Two of one word and one of another.
        let adders: Vec<_> = [vec![Member(1), Member(500)], vec![Member(2)]]
            .into_iter()
            .map(|members| {
                let set = Arc::clone(&set);
                thread::spawn(move || members.into_iter().for_each(|member| set.insert(member)))
            })
            .collect();
        let mut taken = set.take();
        adders.into_iter().for_each(|adder| adder.join().unwrap());
        taken.extend(set.take());
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 500].map(Member), "each once");
        assert!(set.is_empty());
    });
}
