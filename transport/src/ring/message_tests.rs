//! Behaviour of the message rings.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::layout::*;
use super::testing::*;
use super::*;
use crate::mem::{Memory, MemoryMut};

const SMALL: HalfLayout = HalfLayout { slots_log2: 2, bytes_log2: 8, loan_count: 2, loan_log2: 12 };

fn message(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + seed * 7 + len) as u8).collect()
}

#[test]
fn a_message_of_each_kind_arrives_whole() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    let mut out = Vec::new();
    assert_eq!(tx.max_len(), 4096);
    for len in [0, 1, 8, 55, 56, 57, 128, 129, 256, 257, 4096] {
        tx.try_send(&message(len, 1)).unwrap();
        assert_eq!(rx.try_recv(&mut out), Ok(Some(len)));
        assert_eq!(out, message(len, 1), "{len}");
        tx.try_send(&message(len, 2)).unwrap();
        assert_eq!(rx.try_recv_with(<[u8]>::to_vec), Ok(Some(message(len, 2))));
        tx.try_send(&message(len, 3)).unwrap();
        let received = rx.try_recv_loan().unwrap().unwrap();
        assert_eq!(received.is_loan(), len > 128);
        assert_eq!(received.into_vec(), Ok(message(len, 3)));
    }
    assert_eq!(rx.try_recv(&mut out), Err(RingError::WouldBlock));
    assert_eq!(tx.try_send(&[0; 4097]), Err(RingError::TooLong { len: 4097, max: 4096 }));
}

#[test]
fn a_loan_is_read_alike_from_its_slot_and_from_where_it_lies() {
    let (memory, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    for len in [0, 5, 39, 40, 41, 4096] {
        let sent = message(len, 1);
        let mut loan = tx.loan(len).unwrap();
        loan.write_at(0, &sent);
        tx.send_loan(loan).unwrap();
        let received = rx.try_recv_loan().unwrap().unwrap();
        for offset in [0, 1, 5, 38, 39, 40, 41, 4000].into_iter().filter(|offset| *offset <= len) {
            for n in [0, 1, 2, 20, 96].into_iter().filter(|n| offset + n <= len) {
                let mut out = vec![0; n];
                received.read_at(offset, &mut out).unwrap();
                assert_eq!(out, sent[offset..offset + n], "{n} bytes at {offset} of {len}");
            }
        }
    }
    // What starts a message needs no line but the slot's.
    let mut loan = tx.loan(100).unwrap();
    loan.write_at(0, &[7; 100]);
    tx.send_loan(loan).unwrap();
    let received = rx.try_recv_loan().unwrap().unwrap();
    (0..2).for_each(|loan| memory[0].zero(SMALL.loan_at(loan), 4096));
    let mut out = [0; 48];
    received.read_at(0, &mut out).unwrap();
    assert_eq!(out.split_at(LOAN_HEAD), (&[7; LOAN_HEAD][..], &[0; 8][..]));
}

#[test]
fn messages_that_are_put_arrive_after_a_flush_and_share_slots() {
    let layout = HalfLayout { bytes_log2: 12, ..SMALL };
    let (_, (mut tx, _), (_, mut rx)) = model_messages(layout);
    let mut out = Vec::new();
    // Four slots for all of them.
    let lens = || (0..60).map(|i| i % 70);
    for (i, len) in lens().enumerate() {
        tx.try_put(&message(len, i)).unwrap();
    }
    let _nobody_sleeps = tx.flush().unwrap();
    for (i, len) in lens().enumerate() {
        assert_eq!(rx.try_recv(&mut out), Ok(Some(len)));
        assert_eq!(out, message(len, i), "{i}");
    }
    assert_eq!(rx.try_recv(&mut out), Err(RingError::WouldBlock));
    tx.try_put(b"at once").unwrap();
    tx.try_put(b"before the end").unwrap();
    tx.shutdown();
    assert_eq!(rx.try_recv_with(<[u8]>::to_vec), Ok(Some(b"at once".to_vec())));
    assert_eq!(rx.try_recv_with(<[u8]>::to_vec), Ok(Some(b"before the end".to_vec())));
    assert_eq!(rx.try_recv(&mut out), Ok(None));
}

/// What is put when there is no room for it is not taken, and what was put before shows.
#[test]
fn a_run_ends_where_the_byte_ring_is_full() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    let put = (0..20).take_while(|_| tx.try_put(&[7; 40]).is_ok()).count();
    assert!((6..20).contains(&put), "{put}");
    assert_eq!(tx.try_put(&[7; 128]), Err(RingError::WouldBlock));
    assert_eq!(tx.arm(), Arm::Sleep);
    for _ in 0..put {
        assert_eq!(rx.try_recv_with(<[u8]>::len), Ok(Some(40)));
    }
    assert_eq!(rx.try_recv_with(<[u8]>::len), Err(RingError::WouldBlock));
    assert_eq!(rx.flush(), Wake::Ring);
    tx.try_put(&[7; 128]).unwrap();
}

#[test]
fn a_message_in_parts_arrives_as_one() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    for len in [0, 5, 56, 57, 128, 129, 4096] {
        let whole = message(len, 1);
        let (a, b) = whole.split_at(len / 3);
        tx.try_send_parts(&[a, &[], b]).unwrap();
        assert_eq!(rx.try_recv_with(<[u8]>::to_vec), Ok(Some(whole)), "{len}");
    }
    assert_eq!(tx.try_send_parts(&[&[0; 4000], &[0; 97]]), Err(RingError::TooLong { len: 4097, max: 4096 }));
}

const LONG: HalfLayout = HalfLayout { bytes_log2: 13, ..SMALL };

#[test]
fn the_rest_of_a_long_message_is_appended_where_its_head_says() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(LONG);
    let (mut out, mut place) = (Vec::new(), b"before".to_vec());
    // Once around the ring: some lie across its end.
    for len in [3000, 2000, 4000, 1500, 3500] {
        let sent = message(len, 1);
        place.truncate(6);
        tx.try_send(&sent).unwrap();
        let received = rx.try_recv_apart(&mut out, |head, rest| {
            assert_eq!((head, rest), (&sent[..8], len - 8));
            Some(&mut place)
        });
        assert_eq!(received, Ok(Some(len - 8)));
        assert_eq!((&out[..], &place[..6], &place[6..]), (&sent[..8], &b"before"[..], &sent[8..]));
        tx.try_send(&sent).unwrap();
        assert_eq!(rx.try_recv_apart(&mut out, |_, _| None), Ok(Some(0)));
        assert_eq!(out, sent, "nobody wanted it elsewhere");
    }
    tx.try_send(&message(60, 1)).unwrap();
    assert_eq!(rx.try_recv_apart(&mut out, |_, _| panic!("a short message")), Ok(Some(0)));
    assert_eq!(out, message(60, 1));
}

/// A peer that is there for so many looks.
#[derive(Clone)]
struct LooksLeft(std::sync::Arc<std::sync::atomic::AtomicU64>);

impl Liveness for LooksLeft {
    fn check(&self) -> Result<(), ResetCause> {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 0 { Err(ResetCause::PeerKernelDied) } else { Ok(()) }
    }
}

#[test]
fn nothing_of_a_peer_that_has_died_is_left_where_its_message_was_to_go() {
    for looks in 0..2 {
        let (memory, (mut tx, _), _) = model_messages(LONG);
        let left = LooksLeft(std::sync::Arc::new(looks.into()));
        let half = |own: usize| OwnHalf::existing(memory[own].clone(), LONG);
        let peer = PeerHalf::open(memory[0].clone(), LONG, 1).unwrap();
        let (_, mut rx) = message_pair(half(1), peer, left, None);
        tx.try_send(&message(3000, 1)).unwrap();
        let (mut out, mut place) = (Vec::new(), b"before".to_vec());
        let received = rx.try_recv_apart(&mut out, |_, _| Some(&mut place));
        assert_eq!(received, Err(RingError::Reset(ResetCause::PeerKernelDied)), "after {looks} looks");
        assert_eq!((&out[..], &place[..]), (&[][..], &b"before"[..]), "after {looks} looks");
    }
}

#[test]
fn a_full_ring_blocks_and_opens_after_a_quarter() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    for i in 0..4 {
        tx.try_send(&[i]).unwrap();
    }
    assert_eq!(tx.try_send(&[4]), Err(RingError::WouldBlock));
    assert_eq!(tx.arm(), Arm::Sleep);
    assert_eq!(rx.try_recv_with(|m| m[0]), Ok(Some(0)));
    assert_eq!(rx.flush(), Wake::Ring);
    assert_eq!(rx.flush(), Wake::NotNeeded);
    tx.try_send(&[4]).unwrap();
    for i in 1..5 {
        assert_eq!(rx.try_recv_with(|m| m[0]), Ok(Some(i)));
    }
}

#[test]
fn request_and_reply_stay_in_the_first_slot() {
    let layout = HalfLayout { slots_log2: 6, ..SMALL };
    let (memory, (mut tx_a, mut rx_a), (mut tx_b, mut rx_b)) = model_messages(layout);
    for i in 0..1000_u64 {
        tx_a.try_send(&i.to_le_bytes()).unwrap();
        assert_eq!(rx_b.try_recv_with(<[u8]>::to_vec), Ok(Some(i.to_le_bytes().to_vec())));
        tx_b.try_send(b"reply").unwrap();
        assert_eq!(rx_a.try_recv_with(|m| m == b"reply"), Ok(Some(true)));
    }
    assert_eq!(
        memory[0].load(HalfLayout::slot_at(1), Ordering::Relaxed),
        0,
        "a's second slot was never used"
    );
}

#[test]
fn stamps_are_renewed_before_a_stale_one_could_look_new() {
    let (_, (mut tx_a, mut rx_a), (mut tx_b, mut rx_b)) = model_messages(SMALL);
    for _ in 0..3 {
        tx_a.try_send(b"fill the first slots").unwrap();
    }
    for _ in 0..3 {
        rx_b.try_recv_with(|_| ()).unwrap();
    }
    tx_b.try_send(b"").unwrap();
    rx_a.try_recv_with(|_| ()).unwrap();
    let position = u64::from(u32::MAX) + 1;
    tx_a.skip_to(position);
    rx_a.skip_acks_to(position);
    rx_b.skip_to(position);
    // The stamps start over: slots 1 and 2 would now show the second and third message, had they not been renewed.
    tx_a.try_send(b"new").unwrap();
    assert_eq!(rx_b.try_recv_with(<[u8]>::to_vec), Ok(Some(b"new".to_vec())));
    assert_eq!(rx_b.try_recv_with(|_| ()), Err(RingError::WouldBlock));
}

#[test]
fn a_sleeping_receiver_is_rung_once() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    assert_eq!(rx.arm(), Arm::Sleep);
    tx.try_send(b"one").unwrap();
    assert_eq!(tx.flush(), Ok(Wake::Ring));
    tx.try_send(b"two").unwrap();
    assert_eq!(tx.flush(), Ok(Wake::NotNeeded));
    assert_eq!(tx.own().bell_count(), 1);
    assert_eq!(rx.arm(), Arm::Ready);
    rx.try_recv_with(|_| ()).unwrap();
    rx.try_recv_with(|_| ()).unwrap();
    assert_eq!(rx.arm(), Arm::Sleep);
}

#[test]
fn shutdown_ends_the_stream_after_what_was_sent() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    tx.try_send(b"last").unwrap();
    assert_eq!(rx.try_recv_with(|_| ()), Ok(Some(())));
    assert_eq!(rx.arm(), Arm::Sleep);
    tx.try_send(b"really").unwrap();
    tx.shutdown();
    assert_eq!(tx.flush(), Ok(Wake::Ring));
    assert_eq!(tx.try_send(b"more"), Err(RingError::Shutdown));
    assert_eq!(rx.try_recv_with(<[u8]>::to_vec), Ok(Some(b"really".to_vec())));
    assert_eq!(rx.try_recv_with(|_| ()), Ok(None));
    assert_eq!(rx.try_recv_with(|_| ()), Ok(None));
}

#[test]
fn a_peer_that_closes_without_shutdown_resets() {
    let (_, (mut tx, _), (mut tx_b, mut rx)) = model_messages(SMALL);
    tx.try_send(b"x").unwrap();
    tx.own().set_state(State::CLOSED);
    assert_eq!(rx.try_recv_with(|_| ()), Ok(Some(())));
    assert_eq!(rx.try_recv_with(|_| ()), Err(RingError::Reset(ResetCause::PeerClosed)));
    tx_b.try_send(b"into the void").unwrap();
    assert_eq!(tx_b.flush(), Err(RingError::Reset(ResetCause::PeerClosed)));
}

#[test]
fn sending_to_who_reads_no_more_fails() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    while tx.try_send(b"x").is_ok() {}
    assert_eq!(tx.arm(), Arm::Sleep);
    rx.shutdown();
    assert_eq!(rx.flush(), Wake::Ring);
    assert_eq!(tx.arm(), Arm::Ready);
    assert_eq!(tx.try_send(b"x"), Err(RingError::Reset(ResetCause::PeerClosed)));
}

#[test]
fn loans_run_out_and_come_back_in_any_order() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    for round in 0..5_u8 {
        for i in 0..2 {
            let mut loan = tx.loan(4096).unwrap();
            loan.write_at(4000, &[round * 2 + i; 96]);
            tx.send_loan(loan).unwrap();
        }
        assert!(matches!(tx.loan(1), Err(RingError::WouldBlock)));
        assert_eq!(tx.arm(), Arm::Sleep);
        let first = rx.try_recv_loan().unwrap().unwrap();
        let second = rx.try_recv_loan().unwrap().unwrap();
        let mut byte = [0];
        second.read_at(4095, &mut byte).unwrap();
        assert_eq!(byte, [round * 2 + 1]);
        let _ = rx.flush();
        assert_eq!(tx.arm(), Arm::Sleep);
        drop(second);
        assert_eq!(tx.arm(), Arm::Ready);
        drop(first);
    }
    drop(tx.loan(10).unwrap());
    assert!(tx.loan(10).is_ok());
}

#[test]
fn a_returned_loan_rings_the_sender_that_waits_for_it() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    for _ in 0..2 {
        let loan = tx.loan(100).unwrap();
        tx.send_loan(loan).unwrap();
    }
    assert!(tx.loan(1).is_err());
    let held = rx.try_recv_loan().unwrap().unwrap();
    let _ = rx.flush();
    assert_eq!(tx.arm(), Arm::Sleep);
    drop(held);
    assert_eq!(rx.flush(), Wake::Ring);
    assert!(tx.loan(1).is_ok());
}

#[test]
fn messages_put_together_are_announced_and_received_together() {
    let (memory, (mut tx, _), (_, mut rx)) = model_messages(HalfLayout { bytes_log2: 12, ..SMALL });
    let messages: Vec<_> = (0..60).map(|i| message(i % 50, i)).collect();
    // 28 go together, so 60 take three slots of the four.
    assert_eq!(tx.try_put_many(messages.iter().map(Vec::as_slice)), Ok(60));
    let _nobody_sleeps = tx.flush().unwrap();
    assert_ne!(memory[0].load(HalfLayout::slot_at(2), Ordering::Relaxed), 0);
    assert_eq!(memory[0].load(HalfLayout::slot_at(3), Ordering::Relaxed), 0);
    let mut arrived = Vec::new();
    for together in [28, 28, 4] {
        assert_eq!(rx.try_recv_many(|message| arrived.push(message.to_vec())), Ok(Some(together)));
    }
    assert_eq!(arrived, messages);
    assert_eq!(rx.try_recv_many(|_| ()), Err(RingError::WouldBlock));
}

#[test]
fn of_many_messages_those_without_room_are_left() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(SMALL);
    // Nothing is held back for a message alone.
    assert_eq!(tx.try_put_many([&b"alone"[..]]), Ok(1));
    assert_eq!(rx.try_recv_many(|message| assert_eq!(message, b"alone")), Ok(Some(1)));
    let messages = vec![message(60, 1); 10];
    let all = || messages.iter().map(Vec::as_slice);
    let taken = tx.try_put_many(all()).unwrap();
    assert_eq!(taken, 256 / 60);
    assert_eq!(tx.try_put_many(all().skip(taken)), Err(RingError::WouldBlock));
    let mut count = 0;
    while rx.try_recv_many(|_| count += 1).is_ok() {}
    assert_eq!(count, taken);
    assert_eq!(tx.try_put_many([&[0; 5000][..], b"x"]), Err(RingError::TooLong { len: 5000, max: 4096 }));
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Put(usize),
    Flush,
    SendLoan(usize),
    SendInPlace(usize),
    PutMany(Vec<usize>),
    ReceiveMany,
    Receive,
    ReceiveInPlace,
    ReceiveLoan,
    DropHeld,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..80_usize).prop_map(Step::Send),
        2 => (0..260_usize).prop_map(Step::Send),
        1 => (0..4097_usize).prop_map(Step::Send),
        6 => (0..80_usize).prop_map(Step::Put),
        1 => Just(Step::Flush),
        1 => (0..4097_usize).prop_map(Step::SendLoan),
        1 => (0..4097_usize).prop_map(Step::SendInPlace),
        6 => Just(Step::Receive),
        2 => Just(Step::ReceiveInPlace),
        2 => prop::collection::vec(0..80_usize, 0..40).prop_map(Step::PutMany),
        2 => Just(Step::ReceiveMany),
        2 => Just(Step::ReceiveLoan),
        1 => Just(Step::DropHeld),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Two ends, both directions, every kind of message, against two queues.
    #[test]
    fn messages_arrive_whole_in_order_and_once(steps in prop::collection::vec((any::<bool>(), step()), 1..300)) {
        let (_, a, b) = model_messages(SMALL);
        let mut ends = [a, b];
        let mut oracle = [VecDeque::new(), VecDeque::new()]; // by sender
        let mut shown = [0, 0]; // of these, at least so many are visible
        let mut held = Vec::new();
        for (seed, (second, step)) in steps.into_iter().enumerate() {
            let (me, other) = (usize::from(second), usize::from(!second));
            match step {
                Step::Send(len) => match ends[me].0.try_send(&message(len, seed)) {
                    Ok(()) => {
                        oracle[me].push_back(message(len, seed));
                        shown[me] = oracle[me].len();
                    }
                    Err(error) => prop_assert_eq!(error, RingError::WouldBlock),
                },
                Step::Put(len) => match ends[me].0.try_put(&message(len, seed)) {
                    Ok(()) => oracle[me].push_back(message(len, seed)),
                    Err(error) => prop_assert_eq!(error, RingError::WouldBlock),
                },
                Step::Flush => {
                    let _nobody_sleeps = ends[me].0.flush().unwrap();
                    shown[me] = oracle[me].len();
                }
                Step::SendLoan(len) => {
                    let Ok(mut loan) = ends[me].0.loan(len) else { continue };
                    loan.write_at(0, &message(len, seed));
                    match ends[me].0.send_loan(loan) {
                        Ok(()) => {
                            oracle[me].push_back(message(len, seed));
                            shown[me] = oracle[me].len();
                        }
                        Err(refused) => prop_assert_eq!(refused.error, RingError::WouldBlock),
                    }
                }
                Step::SendInPlace(len) => {
                    let write = |mut place: InPlaceMut<'_, _>| place.write_at(0, &message(len, seed));
                    match ends[me].0.try_send_in_place(len, write) {
                        Ok(()) => {
                            oracle[me].push_back(message(len, seed));
                            shown[me] = oracle[me].len();
                        }
                        Err(error) => prop_assert_eq!(error, RingError::WouldBlock),
                    }
                }
                Step::PutMany(lens) => {
                    let messages: Vec<_> = lens.into_iter().map(|len| message(len, seed)).collect();
                    match ends[me].0.try_put_many(messages.iter().map(Vec::as_slice)) {
                        Ok(taken) => oracle[me].extend(messages.into_iter().take(taken)),
                        Err(error) => prop_assert_eq!(error, RingError::WouldBlock),
                    }
                }
                Step::ReceiveMany => {
                    let mut arrived = Vec::new();
                    match ends[me].1.try_recv_many(|message| arrived.push(message.to_vec())) {
                        Ok(count) => {
                            prop_assert_eq!(count, Some(arrived.len()));
                            shown[other] = shown[other].saturating_sub(arrived.len());
                            for message in arrived {
                                prop_assert_eq!(Some(message), oracle[other].pop_front());
                            }
                        }
                        Err(error) => {
                            prop_assert_eq!(error, RingError::WouldBlock);
                            prop_assert_eq!(shown[other], 0);
                        }
                    }
                }
                Step::ReceiveInPlace => {
                    let read = |message: &InPlace<'_, _>| {
                        let mut copy = vec![0; message.len()];
                        message.read_at(0, &mut copy);
                        copy
                    };
                    match ends[me].1.try_recv_in_place(read) {
                        Ok(read) => {
                            prop_assert_eq!(read, oracle[other].pop_front());
                            shown[other] = shown[other].saturating_sub(1);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, RingError::WouldBlock);
                            prop_assert_eq!(shown[other], 0);
                        }
                    }
                }
                Step::Receive => {
                    let mut out = vec![9; 5];
                    match ends[me].1.try_recv(&mut out) {
                        Ok(len) => {
                            prop_assert_eq!(len, Some(out.len()));
                            prop_assert_eq!(Some(out), oracle[other].pop_front());
                            shown[other] = shown[other].saturating_sub(1);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, RingError::WouldBlock);
                            prop_assert_eq!(shown[other], 0);
                        }
                    }
                }
                Step::ReceiveLoan => {
                    if let Ok(Some(received)) = ends[me].1.try_recv_loan() {
                        shown[other] = shown[other].saturating_sub(1);
                        held.push((received, oracle[other].pop_front().unwrap()));
                    }
                }
                Step::DropHeld => {
                    if let Some((received, expected)) = held.pop() {
                        prop_assert_eq!(received.into_vec(), Ok(expected));
                    }
                }
            }
        }
        for (received, expected) in held {
            prop_assert_eq!(received.into_vec(), Ok(expected));
        }
    }
}

#[test]
fn two_threads_exchange_messages_over_real_mappings() {
    let layout = HalfLayout { slots_log2: 4, bytes_log2: 12, loan_count: 3, loan_log2: 13 };
    let ((mut tx, _keep_a), (_keep_b, mut rx)) = mapped_messages(layout);
    let count = 20_000;
    let len = |i: usize| if i.is_multiple_of(17) { i % 8000 } else { i % 70 };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for i in 0..count {
                let message = message(len(i), i);
                while let Err(error) = tx.try_send(&message) {
                    assert_eq!(error, RingError::WouldBlock);
                    std::thread::yield_now();
                }
            }
        });
        let mut out = Vec::new();
        for i in 0..count {
            while let Err(error) = rx.try_recv(&mut out) {
                assert_eq!(error, RingError::WouldBlock);
                std::thread::yield_now();
            }
            assert_eq!(out, message(len(i), i), "message {i}");
        }
    });
}

/// Bursts of random length both ways: the ring restarts at its first slot, walks, fills, and acknowledges in headers, all at once.
#[test]
fn two_threads_converse_over_real_mappings() {
    let layout = HalfLayout { slots_log2: 3, bytes_log2: 10, loan_count: 2, loan_log2: 12 };
    let (a, b) = mapped_messages(layout);
    let count = 20_000;
    let converse = move |(mut tx, mut rx): MappedMessages, seed: u64| {
        let (mut sent, mut received, mut random) = (0, 0, seed);
        let mut out = Vec::new();
        while sent < count || received < count {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            for _ in 0..random >> 60 {
                let len = [8, 56, 57, 300, 2000][(sent * 7 + sent / 5) % 5];
                let next = message(len, sent);
                let is_put = random >> 40 & 1 == 0;
                if sent == count || if is_put { tx.try_put(&next) } else { tx.try_send(&next) }.is_err() {
                    break;
                }
                sent += 1;
            }
            let _nobody_sleeps = tx.flush().unwrap();
            for _ in 0..(random >> 56) & 15 {
                match rx.try_recv(&mut out) {
                    Ok(_) => {
                        assert_eq!(out, message(out.len(), received), "message {received}");
                        received += 1;
                    }
                    Err(error) => {
                        assert_eq!(error, RingError::WouldBlock);
                        std::thread::yield_now();
                        break;
                    }
                }
            }
        }
        (tx, rx) // both ends stay until both threads are done
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(move || converse(b, 2));
        let _ends = (converse(a, 1), other.join().unwrap());
    });
}
