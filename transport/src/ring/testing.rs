//! Pairs of ends for the tests of this module.

use std::sync::atomic::AtomicU64;

use super::half::{OwnHalf, PeerHalf};
use super::layout::HalfLayout;
use super::{ByteRx, ByteTx, MessageRx, MessageTx, byte_pair, message_pair};
use crate::mem::{Mapping, ModelMemory, OwnSpan, PAGE, PeerSpan};

pub(super) type Model = ModelMemory<AtomicU64>;
pub(super) type Mapped<E> = (E, E);

/// One end over model memory: its two directions.
pub(super) type ModelMessages = (MessageTx<Model, Model, ()>, MessageRx<Model, Model, ()>);
/// One end over mapped memory.
pub(super) type MappedMessages = (MessageTx<OwnSpan, PeerSpan, ()>, MessageRx<OwnSpan, PeerSpan, ()>);
/// One end over model memory.
pub(super) type ModelBytes = (ByteTx<Model, Model, ()>, ByteRx<Model, Model, ()>);
/// One end over mapped memory.
pub(super) type MappedBytes = (ByteTx<OwnSpan, PeerSpan, ()>, ByteRx<OwnSpan, PeerSpan, ()>);

/// The memory of two halves, and both ends of messages over it.
pub(super) fn model_messages(layout: HalfLayout) -> ([Model; 2], ModelMessages, ModelMessages) {
    let halves = model_halves(layout);
    let [a, b] = [[0, 1], [1, 0]].map(|ends| {
        let (own, peer) = ends_of(&halves, ends, layout);
        message_pair(own, peer, (), None)
    });
    (halves, a, b)
}

/// The memory of two halves, and both ends of a byte stream over it.
pub(super) fn model_bytes(layout: HalfLayout) -> ([Model; 2], ModelBytes, ModelBytes) {
    let halves = model_halves(layout);
    let [a, b] = [[0, 1], [1, 0]].map(|ends| {
        let (own, peer) = ends_of(&halves, ends, layout);
        byte_pair(own, peer, ())
    });
    (halves, a, b)
}

fn model_halves(layout: HalfLayout) -> [Model; 2] {
    [1, 2].map(|nonce| OwnHalf::init(Model::new(layout.total_len()), layout, nonce).mem)
}

fn ends_of(halves: &[Model; 2], ends: [usize; 2], layout: HalfLayout) -> (OwnHalf<Model>, PeerHalf<Model>) {
    let [own, peer] = ends;
    let peer = PeerHalf::open(halves[peer].clone(), layout, peer as u64 + 1).unwrap();
    (OwnHalf::existing(halves[own].clone(), layout), peer)
}

/// Both ends of messages over two real mappings of one file, as two kernels would have them.
pub(super) fn mapped_messages(layout: HalfLayout) -> Mapped<MappedMessages> {
    mapped(layout, |own, peer| message_pair(own, peer, (), None))
}

/// Both ends of a byte stream over two real mappings of one file.
pub(super) fn mapped_bytes(layout: HalfLayout) -> Mapped<MappedBytes> {
    mapped(layout, |own, peer| byte_pair(own, peer, ()))
}

fn mapped<E>(layout: HalfLayout, end: impl Fn(OwnHalf<OwnSpan>, PeerHalf<PeerSpan>) -> E) -> Mapped<E> {
    let file = tempfile::tempfile().unwrap();
    let len = layout.total_len().next_multiple_of(PAGE);
    file.set_len(2 * len as u64).unwrap();
    let mappings = [0, 1].map(|_| Mapping::map(&file, 0, 2 * len).unwrap());
    let owns = [0, 1].map(|i| {
        let span = mappings[i].make_writable(i * len..(i + 1) * len).unwrap();
        OwnHalf::init(span, layout, i as u64)
    });
    let peer = |i: usize| {
        let span = mappings[1 - i].peer(i * len, len).unwrap();
        PeerHalf::open(span, layout, i as u64).unwrap()
    };
    let [own_a, own_b] = owns;
    (end(own_a, peer(1)), end(own_b, peer(0)))
}
