//! Every interleaving (up to a number of preemptions) of two threads over loom's memory model.
//!
//! A payload read too early or a slot overwritten too soon shows as wrong contents; a lost wake-up as a deadlock, which loom reports.

use loom::sync::atomic::AtomicU64;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::layout::*;
use super::loan::LoanBell;
use super::*;
use crate::mem::ModelMemory;

type Model = ModelMemory<AtomicU64>;
type Messages = (MessageTx<Model, Model, ()>, MessageRx<Model, Model, ()>);
type Bytes = (ByteTx<Model, Model, ()>, ByteRx<Model, Model, ()>);

const MESSAGES: HalfLayout = HalfLayout { slots_log2: 1, bytes_log2: 6, loan_count: 1, loan_log2: 12 };
const BYTES: HalfLayout = HalfLayout { slots_log2: 0, bytes_log2: 6, loan_count: 0, loan_log2: 0 };

/// A doorbell that remembers.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring_if(&self, wake: Wake) {
        if wake == Wake::Ring {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(f);
}

/// Memory with just the words that are used: each costs the model.
fn half(layout: HalfLayout) -> Model {
    let words = |at: usize, count: usize| at..at + 8 * count;
    let slots = (0..layout.slots()).map(|slot| words(HalfLayout::slot_at(slot), 8));
    let loans = (0..usize::from(layout.loan_count)).map(|loan| words(layout.loan_at(loan), 6));
    let rest = [
        words(AT_MAGIC, 3),
        words(AT_STATE, 1),
        words(AT_BYTE_TAIL, 1),
        words(AT_SLOTS_CONSUMED, 2),
        words(AT_LOAN_RETURNS, 1),
        words(AT_DATA_TICKET, 3),
        words(AT_BELL_COUNT, 1),
        words(layout.bytes_at(), layout.byte_capacity() / 8),
    ];
    OwnHalf::init(Model::sparse(layout.total_len(), slots.chain(loans).chain(rest)), layout, 0).mem
}

fn pair<E>(layout: HalfLayout, end: impl Fn(OwnHalf<Model>, PeerHalf<Model>) -> E) -> (E, E) {
    let (a, b) = (half(layout), half(layout));
    let one = |own: &Model, peer: &Model| {
        let peer = PeerHalf::open(peer.clone(), layout, 0).unwrap();
        end(OwnHalf::existing(own.clone(), layout), peer)
    };
    (one(&a, &b), one(&b, &a))
}

fn messages() -> (Messages, Messages) {
    messages_of(MESSAGES)
}

fn messages_of(layout: HalfLayout) -> (Messages, Messages) {
    pair(layout, |own, peer| message_pair(own, peer, (), None))
}

fn bytes() -> (Bytes, Bytes) {
    pair(BYTES, |own, peer| byte_pair(own, peer, ()))
}

/// Repeats `f` while it would block.
fn spin<T>(mut f: impl FnMut() -> Result<T, RingError>) -> T {
    loop {
        match f() {
            Ok(value) => return value,
            Err(error) => assert_eq!(error, RingError::WouldBlock),
        }
        thread::yield_now();
    }
}

/// Receives the words from 1 to `last`, asleep whenever there is none.
fn receive_in_sleep(rx: &mut MessageRx<Model, Model, ()>, bell: &Bell, last: u64) {
    for i in 1..=last {
        loop {
            match rx.try_recv_with(word) {
                Ok(message) => {
                    assert_eq!(message, Some(i));
                    break;
                }
                Err(_) if rx.arm() == Arm::Sleep => bell.wait(),
                Err(_) => {}
            }
        }
    }
}

fn word(message: &[u8]) -> u64 {
    u64::from_le_bytes(message.try_into().unwrap())
}

#[test]
fn messages_are_published_whole_and_slots_reused_only_when_consumed() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = messages();
        let sender = thread::spawn(move || {
            for i in 1..=3_u64 {
                spin(|| tx.try_send(&(i * 0x0101).to_le_bytes()));
            }
        });
        for i in 1..=3_u64 {
            assert_eq!(spin(|| rx.try_recv_with(word)), Some(i * 0x0101));
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_slot_freed_by_a_piggybacked_ack_is_reused_safely() {
    check(|| {
        let ((mut tx_a, mut rx_a), (mut tx_b, mut rx_b)) = messages();
        let other = thread::spawn(move || {
            for _ in 0..2 {
                let request = spin(|| rx_b.try_recv_with(word)).unwrap();
                spin(|| tx_b.try_send(&(request + 1).to_le_bytes()));
            }
        });
        for i in 1..=2_u64 {
            spin(|| tx_a.try_send(&(i * 100).to_le_bytes()));
            assert_eq!(spin(|| rx_a.try_recv_with(word)), Some(i * 100 + 1));
        }
        other.join().unwrap();
    });
}

#[test]
fn a_parked_receiver_is_always_woken() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = messages();
        let bell = Arc::new(Bell::default());
        let ringing = Arc::clone(&bell);
        let sender = thread::spawn(move || {
            for i in 1..=2_u64 {
                spin(|| tx.try_send(&i.to_le_bytes()));
                ringing.ring_if(tx.flush().unwrap());
            }
        });
        receive_in_sleep(&mut rx, &bell, 2);
        sender.join().unwrap();
    });
}

#[test]
fn a_parked_receiver_hears_of_the_end() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = messages();
        let bell = Arc::new(Bell::default());
        let ringing = Arc::clone(&bell);
        let sender = thread::spawn(move || {
            tx.try_send(&7_u64.to_le_bytes()).unwrap();
            tx.shutdown();
            ringing.ring_if(tx.flush().unwrap());
        });
        let mut received = Vec::new();
        loop {
            match rx.try_recv_with(word) {
                Ok(Some(message)) => received.push(message),
                Ok(None) => break,
                Err(_) if rx.arm() == Arm::Sleep => bell.wait(),
                Err(_) => {}
            }
        }
        assert_eq!(received, [7], "nothing sent before the end is lost");
        sender.join().unwrap();
    });
}

#[test]
fn a_parked_sender_is_always_woken() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = messages();
        tx.try_send(&1_u64.to_le_bytes()).unwrap();
        tx.try_send(&2_u64.to_le_bytes()).unwrap();
        let bell = Arc::new(Bell::default());
        let waiting = Arc::clone(&bell);
        let sender = thread::spawn(move || {
            while tx.try_send(&3_u64.to_le_bytes()).is_err() {
                if tx.arm() == Arm::Sleep {
                    waiting.wait();
                }
            }
        });
        for i in 1..=3_u64 {
            assert_eq!(spin(|| rx.try_recv_with(word)), Some(i));
            bell.ring_if(rx.flush());
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_long_message_is_whole_when_its_slot_says_so() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) =
            messages_of(HalfLayout { loan_count: 0, loan_log2: 0, ..MESSAGES });
        let sender = thread::spawn(move || {
            tx.try_send(&[1; 60]).unwrap();
            spin(|| tx.try_send(&[2; 60]));
        });
        for i in 1..=2 {
            assert_eq!(spin(|| rx.try_recv_with(|message| message == [i; 60])), Some(true));
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_run_is_whole_when_its_slot_says_so_and_wakes_a_parked_receiver() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) =
            messages_of(HalfLayout { loan_count: 0, loan_log2: 0, ..MESSAGES });
        let bell = Arc::new(Bell::default());
        let ringing = Arc::clone(&bell);
        let sender = thread::spawn(move || {
            for i in 1..=3_u64 {
                spin(|| tx.try_put(&i.to_le_bytes()));
            }
            ringing.ring_if(tx.flush().unwrap());
        });
        receive_in_sleep(&mut rx, &bell, 3);
        sender.join().unwrap();
    });
}

#[test]
fn a_loan_is_lent_again_only_after_it_was_read() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = messages();
        let bell = Arc::new(Bell::default());
        let waiting = Arc::clone(&bell);
        let sender = thread::spawn(move || {
            for i in 1..=2_u64 {
                let mut loan = loop {
                    match tx.loan(LOAN_HEAD + 8) {
                        Ok(loan) => break loan,
                        Err(_) if tx.arm() == Arm::Sleep => waiting.wait(),
                        Err(_) => {}
                    }
                };
                loan.write_at(LOAN_HEAD, &i.to_le_bytes());
                tx.send_loan(loan).unwrap();
            }
        });
        for i in 1..=2_u64 {
            let received = spin(|| rx.try_recv_loan()).unwrap();
            let mut out = [0; 8];
            received.read_at(LOAN_HEAD, &mut out).unwrap();
            assert_eq!(word(&out), i);
            drop(received);
            bell.ring_if(rx.flush());
        }
        sender.join().unwrap();
    });
}

/// A message that was lent is dropped wherever the application likes, and the receiver need never be asked again.
#[test]
fn loans_returned_by_any_threads_wake_the_sender_that_waits_for_them() {
    check(|| {
        let layout = HalfLayout { loan_count: 2, ..MESSAGES };
        let bell = Arc::new(Bell::default());
        let ringing = Arc::clone(&bell);
        let hook: LoanBell = std::sync::Arc::new(move || ringing.ring_if(Wake::Ring));
        let ((mut tx, _a), (_b, mut rx)) =
            pair(layout, |own, peer| message_pair(own, peer, (), Some(hook.clone())));
        let mut lent = Vec::new();
        for _ in 0..2 {
            let loan = tx.loan(0).unwrap();
            tx.send_loan(loan).unwrap();
            lent.extend(rx.try_recv_loan().unwrap());
        }
        let droppers: Vec<_> = lent.into_iter().map(|message| thread::spawn(move || drop(message))).collect();
        let mut again = Vec::new();
        while again.len() < 2 {
            match tx.loan(0) {
                Ok(loan) => again.push(loan),
                Err(error) => {
                    assert_eq!(error, RingError::WouldBlock);
                    if tx.arm() == Arm::Sleep {
                        bell.wait();
                    }
                }
            }
        }
        droppers.into_iter().for_each(|dropper| dropper.join().unwrap());
    });
}

/// A message may be dropped in one thread while its buffer is lent again and received in others: it must not look as if lent twice.
#[test]
fn a_loan_that_is_lent_again_at_once_is_not_taken_for_lent_twice() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = messages();
        let loan = tx.loan(0).unwrap();
        tx.send_loan(loan).unwrap();
        let first = rx.try_recv_loan().unwrap().unwrap();
        let dropper = thread::spawn(move || drop(first));
        let loan = spin(|| tx.loan(0));
        tx.send_loan(loan).unwrap();
        assert!(rx.try_recv_loan().unwrap().unwrap().is_loan());
        dropper.join().unwrap();
    });
}

/// Loans that are read in place come back with the next look for a message, while the sender goes to sleep for want of one.
#[test]
fn loans_read_in_place_wake_the_sender_that_waits_for_them() {
    check(|| {
        let layout = HalfLayout { slots_log2: 3, loan_count: 3, ..MESSAGES };
        let ((mut tx, _a), (_b, mut rx)) = pair(layout, |own, peer| message_pair(own, peer, (), None));
        let bell = Arc::new(Bell::default());
        let waiting = Arc::clone(&bell);
        let mut send = move |i: u64| {
            let write = |mut place: InPlaceMut<'_, _>| place.write_at(LOAN_HEAD, &i.to_le_bytes());
            tx.try_send_in_place(LOAN_HEAD + 8, write).map_err(|_| tx.arm())
        };
        for i in 1..=2_u64 {
            send(i).unwrap();
        }
        let sender = thread::spawn(move || {
            for i in 3..=4_u64 {
                while let Err(arm) = send(i) {
                    if arm == Arm::Sleep {
                        waiting.wait();
                    }
                }
            }
        });
        for i in 1..=4_u64 {
            let read = |message: &InPlace<'_, _>| {
                let mut out = [0; 8];
                message.read_at(LOAN_HEAD, &mut out);
                word(&out)
            };
            let received = loop {
                match rx.try_recv_in_place(read) {
                    Ok(received) => break received,
                    Err(_) => {
                        bell.ring_if(rx.flush());
                        thread::yield_now();
                    }
                }
            };
            assert_eq!(received, Some(i));
            bell.ring_if(rx.flush());
        }
        sender.join().unwrap();
    });
}

#[test]
fn bytes_are_published_before_the_tail_and_reused_after_the_head() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = bytes();
        let sender = thread::spawn(move || {
            for i in 1..=3_u64 {
                let data = [i.to_le_bytes(); 4].concat();
                let mut done = 0;
                while done < data.len() {
                    done += spin(|| tx.try_write(&data[done..]));
                }
            }
        });
        for i in 1..=3_u64 {
            let mut out = Vec::new();
            while out.len() < 32 {
                let rest = 32 - out.len();
                spin(|| rx.try_read_append(&mut out, rest));
            }
            assert_eq!(out, [i.to_le_bytes(); 4].concat());
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_parked_writer_and_a_parked_reader_wake_each_other() {
    check(|| {
        let ((mut tx, _a), (_b, mut rx)) = bytes();
        let (data_bell, space_bell) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let (ring_data, wait_space) = (Arc::clone(&data_bell), Arc::clone(&space_bell));
        let writer = thread::spawn(move || {
            let data = [9; 80];
            let mut done = 0;
            while done < data.len() {
                match tx.try_write(&data[done..]) {
                    Ok(more) => {
                        done += more;
                        ring_data.ring_if(tx.flush().unwrap());
                    }
                    Err(_) if tx.arm(32) == Arm::Sleep => wait_space.wait(),
                    Err(_) => {}
                }
            }
        });
        let mut out = Vec::new();
        while out.len() < 80 {
            match rx.try_read_append(&mut out, 48) {
                Ok(_) => space_bell.ring_if(rx.flush()),
                Err(_) => {
                    space_bell.ring_if(rx.flush());
                    if rx.arm() == Arm::Sleep {
                        data_bell.wait();
                    }
                }
            }
        }
        assert!(out.iter().all(|byte| *byte == 9));
        writer.join().unwrap();
    });
}
