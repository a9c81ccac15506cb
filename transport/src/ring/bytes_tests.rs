//! Behaviour of the byte stream.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::testing::*;
use super::*;

const SMALL: HalfLayout = HalfLayout { slots_log2: 0, bytes_log2: 6, loan_count: 0, loan_log2: 0 };

#[test]
fn bytes_arrive_in_order_and_a_full_ring_blocks() {
    let (_, (mut tx, _), (_, mut rx)) = model_bytes(SMALL);
    let data: Vec<u8> = (0..100).collect();
    assert_eq!(tx.try_write(&data), Ok(64));
    assert_eq!(tx.try_write(&data[64..]), Err(RingError::WouldBlock));
    let mut out = [0; 40];
    assert_eq!(rx.try_read(&mut out), Ok(40));
    assert_eq!(out[..], data[..40]);
    assert_eq!(tx.try_write(&data[64..]), Ok(36));
    let mut rest = Vec::new();
    assert_eq!(rx.try_read_append(&mut rest, 1000), Ok(60));
    assert_eq!(rest, &data[40..]);
    assert_eq!(rx.try_read(&mut out), Err(RingError::WouldBlock));
}

#[test]
fn a_sleeping_writer_is_rung_only_when_there_is_the_room_it_wants() {
    let (_, (mut tx, _), (_, mut rx)) = model_bytes(SMALL);
    tx.try_write(&[1; 64]).unwrap();
    assert_eq!(tx.arm(48), Arm::Sleep);
    let mut out = [0; 16];
    for expected in [Wake::NotNeeded, Wake::NotNeeded, Wake::Ring, Wake::NotNeeded] {
        rx.try_read(&mut out).unwrap();
        assert_eq!(rx.flush(), expected);
    }
    assert_eq!(tx.arm(48), Arm::Ready);
}

#[test]
fn a_wish_for_more_than_the_ring_is_granted_when_it_is_empty() {
    let (_, (mut tx, _), (_, mut rx)) = model_bytes(SMALL);
    tx.try_write(&[1; 64]).unwrap();
    assert_eq!(tx.arm(1000), Arm::Sleep);
    let mut out = Vec::new();
    while rx.try_read_append(&mut out, 7).is_ok() {}
    assert_eq!(rx.flush(), Wake::Ring);
}

#[test]
fn half_close_delivers_everything_and_then_the_end() {
    let (_, (mut tx, _), (mut tx_back, mut rx)) = model_bytes(SMALL);
    tx.try_write(b"bye").unwrap();
    tx.shutdown();
    let mut out = Vec::new();
    assert_eq!(rx.try_read_append(&mut out, 100), Ok(3));
    assert_eq!(rx.try_read_append(&mut out, 100), Ok(0));
    assert_eq!(tx.try_write(b"more"), Err(RingError::Shutdown));
    assert_eq!(tx_back.try_write(b"still open"), Ok(10));
}

#[test]
fn a_sleeping_reader_is_rung_for_data_and_for_the_end() {
    let (_, (mut tx, _), (_, mut rx)) = model_bytes(SMALL);
    assert_eq!(rx.arm(), Arm::Sleep);
    tx.try_write(b"x").unwrap();
    assert_eq!(tx.flush(), Ok(Wake::Ring));
    assert_eq!(rx.try_read(&mut [0; 10]), Ok(1));
    assert_eq!(rx.arm(), Arm::Sleep);
    tx.shutdown();
    assert_eq!(tx.flush(), Ok(Wake::Ring));
    assert_eq!(rx.arm(), Arm::Ready);
    assert_eq!(rx.try_read(&mut [0; 10]), Ok(0));
}

#[derive(Clone, Copy)]
struct Dead;

impl Liveness for Dead {
    fn check(&self) -> Result<(), ResetCause> {
        Err(ResetCause::PeerKernelDied)
    }
}

#[test]
fn nothing_is_delivered_once_the_peer_is_dead() {
    let (memory, (mut tx, _), _) = model_bytes(SMALL);
    tx.try_write(b"too late").unwrap();
    let own = OwnHalf::existing(memory[1].clone(), SMALL);
    let peer = PeerHalf::open(memory[0].clone(), SMALL, 1).unwrap();
    let (mut tx, mut rx) = byte_pair(own, peer, Dead);
    let mut out = Vec::new();
    for _ in 0..2 {
        assert_eq!(rx.try_read_append(&mut out, 100), Err(RingError::Reset(ResetCause::PeerKernelDied)));
    }
    assert!(out.is_empty());
    assert_eq!(rx.arm(), Arm::Ready);
    tx.try_write(&[0; 64]).unwrap();
    assert_eq!(tx.flush(), Err(RingError::Reset(ResetCause::PeerKernelDied)));
}

proptest! {
    /// Any splits on both sides, through many wraps, against a queue.
    #[test]
    fn any_splits_give_the_same_bytes(steps in prop::collection::vec((any::<bool>(), 1..90_usize), 1..300)) {
        let (_, (mut tx, _), (_, mut rx)) = model_bytes(SMALL);
        let (mut oracle, mut next) = (VecDeque::new(), 0_u8);
        for (write, n) in steps {
            if write {
                let data: Vec<u8> = (0..n).map(|i| next.wrapping_add(i as u8)).collect();
                match tx.try_write(&data) {
                    Ok(done) => {
                        prop_assert!(done > 0);
                        oracle.extend(&data[..done]);
                        next = next.wrapping_add(done as u8);
                    }
                    Err(error) => prop_assert_eq!(error, RingError::WouldBlock),
                }
            } else {
                let mut out = vec![0; n];
                match rx.try_read(&mut out) {
                    Ok(done) => {
                        let expected: Vec<u8> = oracle.drain(..done).collect();
                        prop_assert_eq!(&out[..done], expected);
                        prop_assert!(done == n || oracle.is_empty());
                    }
                    Err(error) => {
                        prop_assert_eq!(error, RingError::WouldBlock);
                        prop_assert!(oracle.is_empty());
                    }
                }
            }
        }
    }
}

#[test]
fn two_threads_stream_over_real_mappings() {
    let layout = HalfLayout { slots_log2: 0, bytes_log2: 14, loan_count: 0, loan_log2: 0 };
    let ((mut tx, _keep_a), (_keep_b, mut rx)) = mapped_bytes(layout);
    let total = 8 << 20;
    let byte = |at: usize| (at ^ (at >> 8)) as u8;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut at = 0;
            while at < total {
                let n = (at % 30_011 + 1).min(total - at);
                let data: Vec<u8> = (at..at + n).map(byte).collect();
                let mut done = 0;
                while done < n {
                    match tx.try_write(&data[done..]) {
                        Ok(more) => done += more,
                        Err(error) => assert_eq!(error, RingError::WouldBlock),
                    }
                }
                at += n;
            }
            tx.shutdown();
        });
        let (mut at, mut out) = (0, vec![0; 20_000]);
        loop {
            match rx.try_read(&mut out) {
                Ok(0) => break,
                Ok(n) => {
                    assert!(out[..n].iter().enumerate().all(|(i, b)| *b == byte(at + i)), "around {at}");
                    at += n;
                }
                Err(error) => assert_eq!(error, RingError::WouldBlock),
            }
        }
        assert_eq!(at, total);
    });
}
