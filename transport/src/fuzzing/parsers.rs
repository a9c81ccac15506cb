//! Whatever is parsed of outside bytes: nothing panics, what is accepted is within its bounds, and what can be written again is the same.

use std::io::Write;
use std::task::Poll;

use super::Input;
use crate::addr::Addr;
use crate::broker::protocol::{self, ClientMessage, MESSAGE_BYTES_MAX, ServerMessage};
use crate::broker::record::{RECORD_LEN, Record};
use crate::broker::{KernelMatch, PortMatch};
use crate::doorbell::{Bell, Hearing};
use crate::hybrid::handshake;
use crate::incarnation::Incarnation;
use crate::pool::{Geometry, RowContent, Superblock, layout};
use crate::ring::HalfLayout;

/// The first byte says what the others are.
pub(super) fn parsers(data: &[u8]) {
    let mut input = Input::new(data);
    let which = input.byte();
    if which == u8::MAX {
        return crate::relay::fuzz_requests(input.rest());
    }
    match which % 8 {
        0 => superblock(&mut input),
        1 => row(&mut input),
        2 => record(&mut input),
        3 => attachment(&mut input),
        4 => doorbell(&mut input),
        5 => handshake(&mut input),
        6 => half_layout(&mut input),
        _ => words(&mut input),
    }
}

fn superblock(input: &mut Input<'_>) {
    let (mapped_len, seal) = (input.lie(), input.byte() % 4);
    let mut bytes: [u8; layout::superblock::LEN] = input.array();
    if seal > 0 {
        // Past the mark, the version and the checksum, to what they protect.
        bytes[..8].copy_from_slice(&layout::superblock::MAGIC);
        bytes[8..12].copy_from_slice(&layout::superblock::VERSION.to_le_bytes());
        if seal > 1 {
            // A geometry that may be one, so that offsets are looked at.
            bytes[42..44].fill(0);
        }
        let checksum = crc32fast::hash(&bytes[..layout::superblock::CRC]);
        bytes[layout::superblock::CRC..].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Ok(read) = Superblock::decode(&bytes, mapped_len) {
        assert_eq!(read.encode(), bytes);
        let layout = read.layout;
        assert!(layout.pool_len <= mapped_len && layout.geometry.members_max <= Geometry::MEMBERS_MAX);
        for member in layout.members() {
            let end = layout.extent(member) as u64 + layout.geometry.extent_bytes;
            assert!(
                end <= layout.pool_len && layout.row(member) + layout::row::STRIDE <= layout.extents_offset
            );
        }
    }
}

fn row(input: &mut Input<'_>) {
    let bytes = input.array();
    if let Some(row) = RowContent::decode(&bytes) {
        assert!(row.name.len() <= layout::row::NAME_BYTES_MAX);
        assert_eq!(RowContent::decode(&row.encode()), Some(row));
    }
}

fn record(input: &mut Input<'_>) {
    let mut bytes: [u8; RECORD_LEN] = input.array();
    bytes[0] %= 8;
    if let Some(record) = Record::decode(&bytes) {
        assert_eq!(Record::decode(&record.encode()), Some(record));
    }
}

/// Both directions of the socket between a process and its broker, in pieces of any size.
fn attachment(input: &mut Input<'_>) {
    let is_framed = input.one_in(2);
    let (mut from_process, mut from_broker) = (Vec::new(), Vec::new());
    while let Some(len) = input.next() {
        let piece = input.bytes(usize::from(len));
        for buffer in [&mut from_process, &mut from_broker] {
            if is_framed {
                buffer.extend_from_slice(&(piece.len() as u32).to_le_bytes());
            }
            buffer.extend_from_slice(piece);
        }
        let process = drain::<ClientMessage>(&mut from_process);
        let broker = drain::<ServerMessage>(&mut from_broker);
        if !process && !broker {
            return;
        }
    }
}

/// Takes all whole messages; whether the attachment goes on.
fn drain<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    buffer: &mut Vec<u8>,
) -> bool {
    loop {
        let before = buffer.len();
        match protocol::take::<T>(buffer) {
            Ok(Some(message)) => {
                assert!(buffer.len() < before);
                let mut again = protocol::encode(&message).expect("what was received fits a message");
                assert_eq!(protocol::take::<T>(&mut again).ok().flatten(), Some(message));
            }
            Ok(None) => {
                assert!(
                    buffer.len() < 4 + MESSAGE_BYTES_MAX,
                    "{} bytes are kept of one message",
                    buffer.len()
                );
                return true;
            }
            Err(_) => return false,
        }
    }
}

fn doorbell(input: &mut Input<'_>) {
    let bytes = input.rest();
    let members = Hearing::default().members_in(bytes);
    assert!(members.len() <= bytes.len());
    for member in &members {
        let bell = Bell::of(*member);
        assert!(u32::from(member.0) < Geometry::MEMBERS_MAX);
        assert!(bell.bytes().iter().all(|byte| bytes.contains(byte)), "nobody rang for {member}");
    }
    // In pieces, the same.
    let mut hearing = Hearing::default();
    let mut in_pieces: Vec<_> = bytes.chunks(3).flat_map(|piece| hearing.members_in(piece)).collect();
    in_pieces.sort_unstable();
    in_pieces.dedup();
    assert_eq!(in_pieces, members);
}

fn handshake(input: &mut Input<'_>) {
    let word = input.pick(&[&b""[..], b"CONNECT ", b"OK ", b"ok\t"]);
    let mut line = Vec::new();
    let _ = line.write_all(word);
    let _ = line.write_all(input.rest());
    for (parse, write) in [
        (handshake::parse_connect as fn(&[u8]) -> _, handshake::connect_line as fn(_) -> String),
        (handshake::parse_ok, handshake::ok_line),
    ] {
        if let Some(port) = parse(&line) {
            assert_eq!(parse(write(port).as_bytes()), Some(port));
        }
    }
    let mut io = line.as_slice();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let Poll::Ready(read) = Box::pin(handshake::read_line(&mut io)).as_mut().poll(&mut cx) else {
        panic!("memory makes nobody wait");
    };
    let taken = line.len() - io.len();
    assert!(taken <= handshake::LINE_BYTES_MAX);
    if let Ok(read) = read {
        assert!(!read.contains(&b'\n') && taken == read.len() + 1, "what follows the line stays");
    }
}

fn half_layout(input: &mut Input<'_>) {
    let word = if input.one_in(2) { input.word() } else { u64::from(u32::from_le_bytes(input.array())) };
    if let Ok(layout) = HalfLayout::from_word(word) {
        assert_eq!((layout.to_word(), layout.validate()), (word, Ok(layout)));
        let len = layout.total_len();
        assert!(layout.bytes_at() + layout.byte_capacity() <= len && layout.max_message() <= len);
        assert!(usize::from(layout.loan_count) * layout.loan_len() <= len);
    }
}

/// What people and programs write.
fn words(input: &mut Input<'_>) {
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    if let Ok(addr) = text.parse::<Addr>() {
        assert_eq!(addr.to_string().parse(), Ok(addr));
    }
    if let Ok(incarnation) = text.parse::<Incarnation>() {
        assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
    }
    let _ = (text.parse::<KernelMatch>(), text.parse::<PortMatch>());
}
