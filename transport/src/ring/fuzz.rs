//! One end of a connection against a peer that breaks into its own half: mostly honest, so that there is something to break.
//!
//! The memory is a model that panics out of bounds. When the peer has stopped writing, ours must come to rest: asleep, or with an error,
//! after no more messages or bytes than a half can hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layout::*;
use super::*;
use crate::fuzzing::Input;
use crate::mem::{Memory, MemoryMut, ModelMemory};

type Model = ModelMemory;

const MESSAGES: HalfLayout = HalfLayout { slots_log2: 2, bytes_log2: 7, loan_count: 2, loan_log2: 12 };
const STREAM: HalfLayout = HalfLayout { slots_log2: 0, bytes_log2: 7, loan_count: 0, loan_log2: 0 };

/// What the peer's half says beyond its slots.
pub(super) const CONTROL: [usize; 9] = [
    AT_STATE,
    AT_BELL_COUNT,
    AT_BYTE_TAIL,
    AT_SLOTS_CONSUMED,
    AT_BYTES_CONSUMED,
    AT_DATA_TICKET,
    AT_SPACE_TICKET,
    AT_SPACE_WANTED,
    AT_LOAN_RETURNS,
];

/// A peer that may die at any moment.
#[derive(Clone, Debug, Default)]
struct Life(Arc<AtomicBool>);

impl Liveness for Life {
    fn check(&self) -> Result<(), ResetCause> {
        if self.0.load(Ordering::Relaxed) { Err(ResetCause::PeerKernelDied) } else { Ok(()) }
    }
}

fn ends(layout: HalfLayout) -> [(OwnHalf<Model>, PeerHalf<Model>); 2] {
    let halves = [1, 2].map(|nonce| OwnHalf::init(Model::new(layout.total_len()), layout, nonce));
    [(0, 1), (1, 0)].map(|(own, peer)| {
        let peer = PeerHalf::open(halves[peer].mem.clone(), layout, peer as u64 + 1);
        (halves[own].clone(), peer.expect("a half just made"))
    })
}

/// The peer writes a word of its half, or only a part of it.
fn poke(half: &OwnHalf<Model>, input: &mut Input<'_>) {
    let slots = half.layout.slots();
    let at = match input.byte() % 2 {
        1 if slots != 0 => AT_SLOTS + 8 * input.below(slots * SLOT / 8),
        _ => input.pick(&CONTROL),
    };
    let value = match input.byte() % 4 {
        // Like the header of a slot: stamp, kind, acks.
        0 => {
            let kind = input.pick(&[0, 8, 56, 57, 58, 59, 64, 65, 66, 69, 92, 93, 255]);
            u64::from(input.byte() % 12) | kind << 32 | u64::from(input.byte() % 9) << 40
        }
        // A little off what is there.
        1 => half.mem.load(at, Ordering::Relaxed).wrapping_add(u64::from(input.byte() % 5)).wrapping_sub(2),
        2 => {
            let torn = [0xffff_ffff, 0xffff_ffff_0000_0000, 0xff, 0xff << 32][usize::from(input.byte() % 4)];
            half.mem.load(at, Ordering::Relaxed) & !torn | input.lie() & torn
        }
        _ => input.lie(),
    };
    half.mem.store(at, value, Ordering::Release);
}

pub(crate) fn messages(data: &[u8]) {
    let mut input = Input::new(data);
    let [(own, theirs), (peer_own, ours)] = ends(MESSAGES);
    let life = Life::default();
    let (mut tx, mut rx) = message_pair(own, theirs, life.clone(), None);
    let (mut peer_tx, mut peer_rx) = message_pair(peer_own.clone(), ours, (), None);
    let (mut held, mut peer_held, mut loans, mut out) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    while let Some(choice) = input.next() {
        match choice % 32 {
            0..6 => poke(&peer_own, &mut input),
            6 => {
                let _ = peer_tx.try_put(&vec![choice; input.pick(&[0, 8, 56, 60])]);
            }
            7..10 => {
                let _ = peer_tx.try_send(&vec![choice; input.pick(&[0, 8, 56, 57, 120, 3000])]);
            }
            10..13 => {
                let _ = (peer_rx.try_recv(&mut Vec::new()), peer_rx.flush());
            }
            13 if input.byte().is_multiple_of(2) => {
                let _ = peer_rx.try_recv_in_place(|message| message.len());
            }
            13 => peer_held.extend(peer_rx.try_recv_loan().ok().flatten()),
            14 => drop(peer_held.pop()),
            15 => {
                let _ = (peer_rx.arm(), peer_tx.arm(), peer_tx.flush());
            }
            16 if input.byte().is_multiple_of(2) => {
                let message = vec![choice; input.pick(&[0, 8, 56, 60, 200])];
                let _ = tx.try_put_many(std::iter::repeat_n(&message[..], input.below(40)));
            }
            16 => {
                let part = vec![choice; input.pick(&[0, 8, 48, 64, 2500])];
                let _ = (tx.try_send_parts(&[&part, &part]), tx.try_put_parts(&[&part, &part]));
                let _ = tx.try_put(&part);
            }
            17..20 => {
                let _ = tx.try_send(&vec![choice; input.pick(&[0, 8, 56, 57, 128, 129, 4096, 5000])]);
            }
            20 if input.byte().is_multiple_of(2) => {
                let _ =
                    tx.try_send_in_place(input.below(4098), |mut place| place.truncate(input.below(4098)));
            }
            20 => loans.extend(tx.loan(input.below(4097))),
            21 => {
                if let Some(loan) = loans.pop()
                    && let Err(refused) = tx.send_loan(loan)
                {
                    loans.push(refused.loan);
                }
            }
            22 => drop(loans.pop()),
            23 => {
                let (before, mut place) = (3, vec![0; 3]);
                match rx.try_recv_apart(&mut out, |_, _| Some(&mut place)) {
                    Ok(Some(rest)) => {
                        assert!(rest == place.len() - before && out.len() + rest <= rx.max_len());
                    }
                    _ => assert_eq!(place.len(), before),
                }
            }
            24 if input.byte().is_multiple_of(2) => {
                let max = rx.max_len();
                let _ = rx.try_recv_many(|message| assert!(message.len() <= max));
            }
            24..26 => {
                if let Ok(Some(len)) = rx.try_recv(&mut out) {
                    assert!(len <= rx.max_len() && len == out.len());
                }
            }
            26 => assert!(!matches!(rx.try_recv_with(<[u8]>::len), Ok(Some(len)) if len > rx.max_len())),
            27 if input.byte().is_multiple_of(2) => {
                let max = rx.max_len();
                let read = |message: &InPlace<'_, _>| {
                    assert!(message.len() <= max);
                    message.read_at(0, &mut vec![0; message.len()]);
                };
                let _ = rx.try_recv_in_place(read);
            }
            27 => {
                if let Ok(Some(message)) = rx.try_recv_loan() {
                    assert!(message.len() <= rx.max_len());
                    held.push(message);
                }
            }
            28 => {
                if let Some(message) = held.pop() {
                    let len = message.len();
                    assert!(message.into_vec().is_ok_and(|copy| copy.len() == len) || life.check().is_err());
                }
            }
            29 => {
                let _ = (tx.arm(), rx.arm(), tx.flush(), rx.flush(), rx.is_ready());
            }
            30 if input.byte() == 7 => life.0.store(true, Ordering::Relaxed),
            30 => rx.disarm(),
            _ => match input.byte() {
                0 => tx.shutdown(),
                1 => rx.shutdown(),
                2 => peer_tx.shutdown(),
                _ => tx.disarm(),
            },
        }
    }
    drop(held);
    // The peer writes no more: each slot shows one run at most. A credit that was a lie may have come true once meanwhile.
    let slots = MESSAGES.slots();
    rest(&mut rx, 28 * slots, |rx| Ok(rx.try_recv_with(|_| ())?.is_some()), MessageRx::arm);
    for len in [8, 100, 1000] {
        rest(&mut tx, 2 * slots, |tx| tx.try_send(&vec![1; len]).map(|()| true), MessageTx::arm);
    }
}

pub(crate) fn stream(data: &[u8]) {
    let mut input = Input::new(data);
    let [(own, theirs), (peer_own, ours)] = ends(STREAM);
    let life = Life::default();
    let (mut tx, mut rx) = byte_pair(own, theirs, life.clone());
    let (mut peer_tx, mut peer_rx) = byte_pair(peer_own.clone(), ours, ());
    let mut out = Vec::new();
    while let Some(choice) = input.next() {
        let n = input.below(300);
        match choice % 16 {
            0..3 => poke(&peer_own, &mut input),
            3 | 4 => {
                let _ = peer_tx.try_write(&vec![choice; n]);
            }
            5 | 6 => {
                let _ = (peer_rx.try_read(&mut vec![0; n]), peer_rx.flush());
            }
            7 => {
                let _ = (peer_rx.arm(), peer_tx.arm(n), peer_tx.flush());
            }
            8 | 9 => assert!(!tx.try_write(&vec![choice; n]).is_ok_and(|done| done > n)),
            10 | 11 => assert!(!rx.try_read(&mut vec![0; n]).is_ok_and(|done| done > n)),
            12 => {
                let before = out.len();
                let result = rx.try_read_append(&mut out, n);
                assert_eq!(out.len() - before, result.unwrap_or_default());
                assert!(out.len() - before <= n);
            }
            13 => {
                let _ = (tx.arm(n), rx.arm(), tx.flush(), rx.flush());
            }
            14 if input.byte() == 7 => life.0.store(true, Ordering::Relaxed),
            14 => tx.disarm(),
            _ => match input.byte() {
                0 => tx.shutdown(),
                1 => rx.shutdown(),
                2 => peer_tx.shutdown(),
                _ => rx.disarm(),
            },
        }
    }
    // The peer writes no more: there is a ring full of bytes at most, and room for two, as above.
    let most = STREAM.byte_capacity();
    rest(&mut rx, most, |rx| Ok(rx.try_read(&mut [0; 16])? != 0), ByteRx::arm);
    rest(&mut tx, most, |tx| tx.try_write(&[1; 16]).map(|_| true), |tx| tx.arm(16));
}

/// Tries and arms as a task does, while the peer writes nothing: ours must sleep or fail, after no more than `most` successes.
fn rest<T>(
    end: &mut T,
    most: usize,
    attempt: impl Fn(&mut T) -> Result<bool, RingError>,
    arm: impl Fn(&mut T) -> Arm,
) {
    let (mut successes, mut false_alarms) = (0, 0);
    loop {
        match attempt(end) {
            Ok(true) => {
                successes += 1;
                assert!(successes <= most, "more than {most} successes against a half that does not change");
            }
            Err(RingError::WouldBlock) if arm(end) == Arm::Ready => {
                false_alarms += 1;
                assert!(false_alarms < 3, "told to try again, again and again, for nothing");
            }
            _ => return,
        }
    }
}
