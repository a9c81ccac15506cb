//! A peer that sends anything: never a panic, never without bounds.

use proptest::prelude::*;

use super::super::frame::{Header, Hello, Kind};
use super::super::fuzz::drain;
use super::super::streams::STREAMS_MAX;
use super::super::{Event, Limits, Link, Pace, Role};
use super::world::{LISTENING, MS, SMALL_AND_SOUND, line, link};
use crate::addr::Port;
use crate::incarnation::Incarnation;

const PEER: Incarnation = Incarnation([9; 16]);
/// The life of the end that is tried.
const OWN: u8 = 2;
/// Of every kind of socket.
const PACES: [fn() -> Pace; 3] = [|| Pace::DEFAULT, line, || SMALL_AND_SOUND];

/// An end that is up with a peer of our making.
fn up() -> Link {
    up_over(Pace::DEFAULT)
}

/// The same over any kind of socket.
fn up_over(pace: Pace) -> Link {
    let mut end = link(Role::Acceptor, OWN, pace);
    end.socket_opened(0);
    let mut bytes = Vec::new();
    let limits = pace.limits;
    let hello = Hello { role: Role::Dialler, knows: Incarnation([OWN; 16]), opening: 0, limits };
    header(Kind::Hello, 0, 0).encode(&hello.encode(), &mut bytes);
    end.feed(&bytes, 0);
    assert!(end.is_up());
    drain(&mut end, 0);
    end
}

fn header(kind: Kind, seq: u64, stream: u64) -> Header {
    Header { kind, flags: 0, incarnation: PEER, seq, ack: 0, stream }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

proptest! {
    #[test]
    fn garbage_never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let ends = PACES.map(|pace| [link(Role::Dialler, 1, pace()), up_over(pace())]);
        for mut end in ends.into_iter().flatten() {
            end.socket_opened(0);
            for (at, chunk) in chunks.iter().enumerate() {
                end.feed(chunk, at as u64);
                drain(&mut end, at as u64);
            }
        }
    }

    #[test]
    fn well_made_frames_in_any_order_never_panic(
        frames in prop::collection::vec(
            (kind(), 0..6u64, prop_oneof![Just(8usize), Just(0), Just(1), 0..100usize], any::<u8>(), 0..3u64),
            0..120,
        ),
        pace in prop::sample::select(PACES.to_vec()),
    ) {
        let mut end = up_over(pace());
        let mut seq = 0;
        let mut streams = vec![end.open(Port(1), Port(2)).unwrap()];
        for (at, (kind, stream, len, fill, ack)) in frames.into_iter().enumerate() {
            let now = at as u64 * MS;
            let is_numbered = !matches!(kind, Kind::Ack | Kind::Hello);
            seq += u64::from(is_numbered);
            let stream = if is_numbered { stream.max(1) } else { 0 };
            let mut bytes = Vec::new();
            Header { ack, ..header(kind, if kind == Kind::Hello { 0 } else { seq }, stream) }
                .encode(&vec![fill % 3; len], &mut bytes);
            end.feed(&bytes, now);
            streams.extend(drain(&mut end, now));
            for stream in &streams {
                let _ = end.read(*stream, &mut [0; 50]);
                let _ = end.write(*stream, &[1; 50]);
            }
            if !end.is_up() {
                end = up_over(pace());
                seq = 0;
                streams.clear();
            }
        }
    }

    #[test]
    fn damaged_bytes_of_a_good_conversation_never_panic(
        at in 0..400usize,
        bit in 0..8u8,
        pace in prop::sample::select(PACES.to_vec()),
    ) {
        let mut bytes = Vec::new();
        let hello = Hello { role: Role::Dialler, knows: Incarnation([OWN; 16]), opening: 0, limits: Limits::PACKETS };
        header(Kind::Hello, 0, 0).encode(&hello.encode(), &mut bytes);
        header(Kind::Open, 1, 1).encode(&[1, 0, 0, 0, 7, 0, 0, 0], &mut bytes);
        header(Kind::Data, 2, 1).encode(b"some data", &mut bytes);
        header(Kind::Ack, 2, 0).encode(&[], &mut bytes);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let mut end = link(Role::Acceptor, OWN, pace());
        end.socket_opened(0);
        for chunk in bytes.chunks(7) {
            end.feed(chunk, 0);
            drain(&mut end, 0);
        }
    }
}

/// A numbered frame: its kind, stream and payload.
type Numbered<'a> = (Kind, u64, &'a [u8]);

/// Frames of the peer to an end that is up; what it made of them.
fn reason(frames: &[Numbered<'_>]) -> String {
    let mut end = up();
    let mut bytes = Vec::new();
    for (seq, (kind, stream, payload)) in (1..).zip(frames) {
        header(*kind, seq, *stream).encode(payload, &mut bytes);
        end.feed(&std::mem::take(&mut bytes), 0);
        while let Some(event) = end.poll_event() {
            match event {
                Event::Called { stream, .. } => end.accept(stream),
                Event::CloseSocket { why, is_violation } => {
                    assert!(is_violation);
                    return why;
                }
                _ => {}
            }
        }
    }
    "nothing".into()
}

#[test]
fn violations_end_the_link_with_a_reason() {
    let ports: &[u8] = &[1, 0, 0, 0, 7, 0, 0, 0];
    let open: Numbered<'_> = (Kind::Open, 1, ports);
    let cases: &[(&[Numbered<'_>], &str)] = &[
        (&[(Kind::Data, 1, b"x")], "nobody opened"),
        (&[(Kind::Open, 2, ports)], "opened stream 2"),
        (&[open, open], "opened stream 1 after 1"),
        (&[(Kind::Open, 1, b"short")], "payload"),
        (&[open, (Kind::Data, 1, b"")], "none in a frame for data"),
        (&[open, (Kind::End, 1, b""), (Kind::Data, 1, b"x")], "after its end"),
        (&[open, (Kind::End, 1, b""), (Kind::End, 1, b"")], "twice"),
        (&[open, (Kind::Credit, 1, &[0; 8])], "granted 0 bytes"),
        (&[open, (Kind::Credit, 1, &[255; 8])], "granted"),
        (&[open, (Kind::Close, 1, &[255; 8])], "of which 0 went"),
        (&[open, (Kind::Accept, 1, b"")], "not waiting"),
        (&[(Kind::Accept, 2, b"")], "nobody opened"),
    ];
    for (frames, expected) in cases {
        let reason = reason(frames);
        assert!(reason.contains(expected), "{frames:?}: {reason}");
    }
}

#[test]
fn flood_beyond_the_window_of_a_stream_ends_the_link() {
    let ports: &[u8] = &[1, 0, 0, 0, 7, 0, 0, 0];
    let chunk = [1; 3000];
    let mut frames: Vec<Numbered<'_>> = vec![(Kind::Open, 1, ports)];
    frames.extend((0..30).map(|_| (Kind::Data, 1, &chunk[..])));
    assert!(reason(&frames).contains("was granted 65536"));
}

#[test]
fn flood_of_calls_is_bounded_and_ends_the_link() {
    let mut end = up();
    let mut accepted = 0;
    for number in 0..2 * STREAMS_MAX as u64 {
        let mut bytes = Vec::new();
        let mut ports = [0; 8];
        ports[4..].copy_from_slice(&LISTENING.0.to_le_bytes());
        header(Kind::Open, number + 1, 2 * number + 1).encode(&ports, &mut bytes);
        end.feed(&bytes, 0);
        accepted += drain(&mut end, 0).len();
    }
    assert_eq!(accepted, STREAMS_MAX);
    assert!(!end.is_up());
}

#[test]
fn what_is_no_hello_is_passed_over_on_a_line_and_takes_no_room() {
    let mut end = link(Role::Acceptor, OWN, line());
    end.socket_opened(0);
    // All of it begins as a HELLO could.
    let nearly: Vec<u8> = [200, 0, 1, 0, 7].repeat(20_000);
    for chunk in nearly.chunks(4096) {
        end.feed(chunk, 0);
        assert!(end.inbox.held_bytes() <= 256, "{} bytes are kept", end.inbox.held_bytes());
    }
    assert!(!end.is_up());
    let mut bytes = Vec::new();
    let hello =
        Hello { role: Role::Dialler, knows: Incarnation([OWN; 16]), opening: 1, limits: Limits::PACKETS };
    header(Kind::Hello, 0, 0).encode(&hello.encode(), &mut bytes);
    // Whatever seems to begin before it is over by then.
    bytes.extend([0; 256]);
    end.feed(&bytes, 0);
    let is_anew = |event| matches!(event, Event::Up { resumed: false });
    assert!(std::iter::from_fn(|| end.poll_event()).any(is_anew));
}
