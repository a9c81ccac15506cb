//! A peer that writes anything anywhere in its half, at any time: we may get garbage or an error, never a panic, a hang or an
//! access out of bounds (which the model memory turns into a panic).

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::fuzz::CONTROL;
use super::layout::*;
use super::testing::*;
use super::*;
use crate::mem::{Mapping, Memory, MemoryMut};

const MESSAGES: HalfLayout = HalfLayout { slots_log2: 2, bytes_log2: 7, loan_count: 2, loan_log2: 12 };
const BYTES: HalfLayout = HalfLayout { slots_log2: 0, bytes_log2: 7, loan_count: 0, loan_log2: 0 };

/// Where the words are that mean something.
fn target() -> impl Strategy<Value = usize> {
    let control = prop::sample::select([&[AT_MAGIC], &CONTROL[..]].concat());
    prop_oneof![control, (0..4 * SLOT / 8).prop_map(|word| AT_SLOTS + 8 * word)]
}

/// Values near the right ones are the more dangerous.
fn value() -> impl Strategy<Value = u64> {
    let header = (0..12_u64, prop_oneof![0..60_u64, Just(57), Just(58), 63..94_u64, Just(255)], 0..9_u64)
        .prop_map(|(stamp, kind, acks)| stamp | kind << 32 | acks << 40);
    prop_oneof![0..300_u64, header, any::<u64>(), Just(u64::MAX), (0..64_u32).prop_map(|bit| 1 << bit)]
}

#[derive(Clone, Debug)]
enum Step {
    Poke(usize, u64),
    Send(usize),
    Put(usize),
    SendLoan,
    Recv,
    RecvLoan,
    Arm,
    Flush,
    DropHeld,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (target(), value()).prop_map(|(at, value)| Step::Poke(at, value)),
        3 => (0..5000_usize).prop_map(Step::Send),
        3 => (0..130_usize).prop_map(Step::Send),
        2 => (0..70_usize).prop_map(Step::Put),
        1 => Just(Step::SendLoan),
        4 => Just(Step::Recv),
        2 => Just(Step::RecvLoan),
        1 => Just(Step::Arm),
        2 => Just(Step::Flush),
        1 => Just(Step::DropHeld),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn messages_survive_any_word_in_the_peers_half(steps in prop::collection::vec(step(), 1..120)) {
        let (memory, (mut tx, mut rx), _) = model_messages(MESSAGES);
        let mut held = Vec::new();
        let mut out = Vec::new();
        for step in steps {
            match step {
                Step::Poke(at, value) => memory[1].store(at, value, Ordering::Relaxed),
                Step::Send(len) => {
                    let _ = tx.try_send(&vec![7; len]);
                }
                Step::Put(len) => {
                    let _ = tx.try_put(&vec![7; len]);
                }
                Step::SendLoan => {
                    if let Ok(loan) = tx.loan(4096) {
                        let _ = tx.send_loan(loan);
                    }
                }
                Step::Recv => {
                    if let Ok(Some(len)) = rx.try_recv(&mut out) {
                        prop_assert!(len <= rx.max_len() && len == out.len());
                    }
                }
                Step::RecvLoan => {
                    if let Ok(Some(received)) = rx.try_recv_loan() {
                        prop_assert!(received.len() <= rx.max_len());
                        held.push(received);
                    }
                }
                Step::Arm => {
                    let _ = (tx.arm(), rx.arm());
                }
                Step::Flush => {
                    let _ = (tx.flush(), rx.flush());
                }
                Step::DropHeld => {
                    if let Some(received) = held.pop() {
                        prop_assert!(received.into_vec().is_ok());
                    }
                }
            }
        }
    }

    #[test]
    fn byte_streams_survive_any_word_in_the_peers_half(
        steps in prop::collection::vec((target(), value(), 0..300_usize, 0..6_u8), 1..120),
    ) {
        let (memory, (mut tx, mut rx), _) = model_bytes(BYTES);
        let mut out = Vec::new();
        for (at, value, n, what) in steps {
            match what {
                0 | 1 if at < AT_SLOTS => memory[1].store(at, value, Ordering::Relaxed),
                2 => prop_assert!(!tx.try_write(&vec![7; n]).is_ok_and(|done| done > n)),
                3 => prop_assert!(!rx.try_read(&mut vec![0; n]).is_ok_and(|done| done > n)),
                4 => prop_assert!(!rx.try_read_append(&mut out, n).is_ok_and(|done| done > n)),
                _ => {
                    let _ = (tx.arm(n), rx.arm(), tx.flush(), rx.flush());
                }
            }
        }
    }

    #[test]
    fn opening_a_half_of_any_words_fails_or_finds_the_right_ones(words in prop::collection::vec(any::<u64>(), 3), good in 0..8_u8) {
        let memory = Model::new(BYTES.total_len());
        for (i, right) in [MAGIC, 5, BYTES.to_word()].into_iter().enumerate() {
            memory.store(8 * i, if good >> i & 1 == 1 { right } else { words[i] }, Ordering::Relaxed);
        }
        prop_assert_eq!(PeerHalf::open(memory, BYTES, 5).is_ok(), good == 7);
    }
}

fn misbehaviour<T: std::fmt::Debug>(result: Result<T, RingError>) -> String {
    match result {
        Err(RingError::Reset(ResetCause::PeerMisbehaved(what))) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tail_beyond_the_ring_is_named_and_ends_the_connection() {
    let (memory, _, (_, mut rx)) = model_bytes(BYTES);
    memory[0].store(AT_BYTE_TAIL, 129, Ordering::Relaxed);
    let what = misbehaviour(rx.try_read(&mut [0; 8]));
    assert_eq!(what, "its byte ring ends at 129, after 0, while we are at 0");
    memory[0].store(AT_BYTE_TAIL, 8, Ordering::Relaxed);
    assert_eq!(misbehaviour(rx.try_read(&mut [0; 8])), what, "for good");
    let state = memory[1].load(AT_STATE, Ordering::Relaxed);
    assert_ne!(state & State::RESET.bits(), 0, "the peer is told");
}

#[test]
fn positions_that_go_backwards_are_refused() {
    let (memory, (mut tx, _), (_, mut rx)) = model_bytes(BYTES);
    tx.try_write(&[1; 128]).unwrap();
    rx.try_read(&mut [0; 100]).unwrap();
    tx.try_write(&[1; 64]).unwrap();
    memory[1].store(AT_BYTES_CONSUMED, 1, Ordering::Relaxed);
    misbehaviour(tx.try_write(&[1; 200]));
}

#[test]
fn more_acks_than_messages_are_refused() {
    let (memory, (mut tx, mut rx), _) = model_messages(MESSAGES);
    tx.try_send(b"one").unwrap();
    memory[1].store(AT_SLOTS, 1 | (2 << 40), Ordering::Release);
    assert_eq!(rx.try_recv_with(<[u8]>::len), Ok(Some(0)));
    assert_eq!(misbehaviour(tx.try_send(b"two")), "it acknowledged 2 messages of 1");
}

#[test]
fn a_foreign_return_of_a_loan_is_refused() {
    let (memory, (mut tx, _), (_, mut rx)) = model_messages(MESSAGES);
    for _ in 0..2 {
        let loan = tx.loan(1).unwrap();
        tx.send_loan(loan).unwrap();
    }
    drop(rx.try_recv_loan().unwrap());
    assert!(tx.loan(1).is_ok());
    let loan = tx.loan(1).unwrap();
    tx.send_loan(loan).unwrap();
    // The other one is lent.
    memory[1].store(AT_LOAN_RETURNS, 0b100, Ordering::Relaxed);
    assert_eq!(misbehaviour(tx.loan(1)), "it returned loan 2, which it does not have");
}

#[test]
fn a_loan_lent_twice_is_refused() {
    let (memory, _, (_, mut rx)) = model_messages(MESSAGES);
    for (slot, stamp) in [(0, 1_u64), (1, 2)] {
        let at = HalfLayout::slot_at(slot);
        memory[0].store(at + 16, 100, Ordering::Relaxed);
        memory[0].store(at + 24, stamp, Ordering::Relaxed);
        memory[0].store(at, stamp | (58 << 32), Ordering::Release);
    }
    let _held = rx.try_recv_loan().unwrap().unwrap();
    misbehaviour(rx.try_recv_loan());
}

/// Another "kernel" scribbles over its whole half while we use the connection over real mappings.
#[test]
fn a_scribbling_peer_does_no_harm() {
    let layout = HalfLayout { slots_log2: 3, bytes_log2: 12, loan_count: 2, loan_log2: 12 };
    let len = layout.total_len();
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * len as u64).unwrap();
    let (ours, theirs) = (Mapping::map(&file, 0, 2 * len).unwrap(), Mapping::map(&file, 0, 2 * len).unwrap());
    let their_half = theirs.make_writable(len..2 * len).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            while !done.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = (random >> 32) as usize % (AT_SLOTS + 8 * SLOT);
                let at = at - at % 8;
                if at >= AT_STATE {
                    let small = if random & 1 == 0 { random & 0xf } else { random & 0x3f_0000_000f };
                    their_half.store(at, small, Ordering::Release);
                }
            }
        });
        for _ in 0..2000 {
            let own = OwnHalf::init(ours.make_writable(0..len).unwrap(), layout, 1);
            let _ = OwnHalf::init(theirs.make_writable(len..2 * len).unwrap(), layout, 2);
            let peer = PeerHalf::open(ours.peer(len, len).unwrap(), layout, 2).unwrap();
            let (mut tx, mut rx) = message_pair(own, peer, (), None);
            let mut out = Vec::new();
            for i in 0..50 {
                let sent = tx.try_send(&vec![1; i * 20]).is_ok();
                let flushed = tx.flush().is_ok();
                let received = rx.try_recv(&mut out).is_ok();
                let _ = (rx.flush(), rx.arm(), tx.arm(), rx.try_recv_loan().is_ok());
                if !(sent || flushed || received) {
                    break;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
