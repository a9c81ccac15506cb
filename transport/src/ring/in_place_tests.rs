//! Behaviour of messages that are written and read where they are.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::layout::*;
use super::testing::*;
use super::*;
use crate::mem::Memory as _;
use crate::mem::MemoryMut as _;

const EIGHT: HalfLayout = HalfLayout { slots_log2: 4, bytes_log2: 8, loan_count: 8, loan_log2: 12 };

fn send(tx: &mut MessageTx<Model, Model, ()>, message: &[u8]) -> Result<(), RingError> {
    tx.try_send_in_place(message.len(), |mut place| place.write_at(0, message))
}

fn receive(rx: &mut MessageRx<Model, Model, ()>) -> Result<Option<Vec<u8>>, RingError> {
    rx.try_recv_in_place(|message| {
        let mut copy = vec![0; message.len()];
        message.read_at(0, &mut copy);
        copy
    })
}

#[test]
fn messages_of_every_kind_are_read_in_place() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(EIGHT);
    for len in [0, 1, 39, 40, 41, 56, 57, 200, 4096] {
        let message: Vec<u8> = (0..len).map(|i| (i * 31 + len) as u8).collect();
        send(&mut tx, &message).unwrap();
        assert_eq!(rx.try_recv_in_place(|message| message.is_loan()), Ok(Some(true)));
        send(&mut tx, &message).unwrap();
        assert_eq!(receive(&mut rx), Ok(Some(message.clone())), "{len} bytes in a loan");
        tx.try_send(&message).unwrap();
        assert_eq!(receive(&mut rx), Ok(Some(message)), "{len} bytes");
    }
    assert_eq!(receive(&mut rx), Err(RingError::WouldBlock));
    assert_eq!(send(&mut tx, &[0; 4097]), Err(RingError::TooLong { len: 4097, max: 4096 }));
}

#[test]
fn what_is_cut_short_while_it_is_written_arrives_short() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(EIGHT);
    tx.try_send_in_place(4096, |mut place| {
        place.write_at(0, b"short");
        place.truncate(5);
        place.truncate(9);
        assert_eq!(place.len(), 5);
    })
    .unwrap();
    assert_eq!(receive(&mut rx), Ok(Some(b"short".to_vec())));
}

#[test]
fn loans_come_back_together_once_half_of_them_are_due_or_nothing_is_to_be_read() {
    let (memory, (mut tx, _), (_, mut rx)) = model_messages(EIGHT);
    let told = || memory[1].load(AT_LOAN_RETURNS, Ordering::Relaxed);
    (0..8).for_each(|_| send(&mut tx, b"x").unwrap());
    assert_eq!(send(&mut tx, b"x"), Err(RingError::WouldBlock));
    (0..3).for_each(|_| assert!(receive(&mut rx).is_ok()));
    assert_eq!(told(), 0);
    assert!(receive(&mut rx).is_ok());
    assert_eq!(told(), 0b1111);
    assert!(receive(&mut rx).is_ok());
    // What is held counts as well: it may be held until the sender has sent something.
    let held: Vec<_> = (0..3).map(|_| rx.try_recv_loan().unwrap().unwrap()).collect();
    assert_eq!(told(), 0b1_1111);
    drop(held);
    assert_eq!(told(), 0xff);
    (0..8).for_each(|_| send(&mut tx, b"x").unwrap());
    (0..5).for_each(|_| assert!(receive(&mut rx).is_ok()));
    assert_eq!(told(), 0xf0);
    (0..3).for_each(|_| assert!(receive(&mut rx).is_ok()));
    assert_eq!(receive(&mut rx), Err(RingError::WouldBlock));
    assert_eq!(told(), 0);
}

#[test]
fn a_loan_that_was_read_in_place_rings_the_sender_that_waits_for_it() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(EIGHT);
    (0..8).for_each(|_| send(&mut tx, b"x").unwrap());
    assert_eq!(send(&mut tx, b"x"), Err(RingError::WouldBlock));
    assert_eq!(tx.arm(), Arm::Sleep);
    (0..3).for_each(|_| assert!(receive(&mut rx).is_ok()));
    assert_eq!(rx.flush(), Wake::NotNeeded);
    assert!(receive(&mut rx).is_ok());
    assert_eq!(rx.flush(), Wake::Ring);
    assert_eq!(tx.arm(), Arm::Ready);
    assert_eq!(send(&mut tx, b"x"), Ok(()));
}

#[test]
fn writer_or_reader_that_panics_changes_nothing() {
    let (_, (mut tx, _), (_, mut rx)) = model_messages(EIGHT);
    let written = catch_unwind(AssertUnwindSafe(|| tx.try_send_in_place(1, |_| panic!("the writer"))));
    assert!(written.is_err());
    assert_eq!(receive(&mut rx), Err(RingError::WouldBlock));
    (0..8).for_each(|_| send(&mut tx, b"x").unwrap());
    let read = catch_unwind(AssertUnwindSafe(|| rx.try_recv_in_place::<()>(|_| panic!("the reader"))));
    assert!(read.is_err());
    (0..8).for_each(|_| assert_eq!(receive(&mut rx), Ok(Some(b"x".to_vec()))));
    assert_eq!(receive(&mut rx), Err(RingError::WouldBlock));
}

#[test]
fn loan_that_is_sent_again_before_it_came_back_is_refused() {
    let (memory, _, (_, mut rx)) = model_messages(EIGHT);
    for (slot, stamp) in [(0, 1_u64), (1, 2)] {
        let at = HalfLayout::slot_at(slot);
        memory[0].store(at + 16, 100, Ordering::Relaxed);
        memory[0].store(at, stamp | (58 << 32), Ordering::Release);
    }
    assert!(receive(&mut rx).is_ok());
    assert!(matches!(receive(&mut rx), Err(RingError::Reset(ResetCause::PeerMisbehaved(_)))));
}
