//! An end of a link that is fed anything, in whole frames or in pieces, while its streams are used.

use super::frame::{Header, Hello, Kind};
use super::{Event, Limits, Link, Nanos, Pace, Role, StreamId};
use crate::addr::Port;
use crate::fuzzing::Input;
use crate::incarnation::Incarnation;

const MS: Nanos = 1_000_000;
const OWN: Incarnation = Incarnation([2; 16]);
const PEER: Incarnation = Incarnation([9; 16]);
/// Frames under way, and streams: what one end may have for each other end at most, by `docs/paced-link.md`.
const FRAMES_MAX: usize = 2000;

/// The last frames of an honest peer: its numbers are right unless the input wants them wrong.
struct Peer {
    limits: Limits,
    seq: u64,
    acked: u64,
}

impl Peer {
    fn frame(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let kind = input.pick(&Kind::ALL);
        let is_numbered = !matches!(kind, Kind::Hello | Kind::Ack);
        self.seq += u64::from(is_numbered);
        self.acked += u64::from(input.one_in(16));
        let wrong = input.one_in(16);
        let len = match kind {
            Kind::Hello => 28,
            Kind::Open | Kind::Credit | Kind::Close => 8,
            Kind::Refuse => 1,
            Kind::Data => input.pick(&[1, 10, 1000, self.limits.payload_bytes()]),
            _ => 0,
        };
        let len = if wrong { input.below(100) } else { len };
        let mut payload = input.bytes(len.min(40)).to_vec();
        payload.resize(len, 0);
        if kind == Kind::Hello && !wrong {
            let knows = input.pick(&[OWN, Incarnation::NONE, PEER]);
            let (role, opening) = (input.pick(&[Role::Dialler, Role::Acceptor]), u64::from(input.byte()));
            payload = Hello { role, knows, opening, limits: self.limits }.encode().to_vec();
        }
        let header = Header {
            kind,
            flags: if input.one_in(8) { input.byte() } else { 0 },
            incarnation: if input.one_in(32) { OWN } else { PEER },
            seq: if kind == Kind::Hello { 0 } else { self.seq + u64::from(input.one_in(32)) },
            ack: if wrong { input.lie() } else { self.acked },
            stream: if is_numbered { u64::from(input.byte() % 8) } else { u64::from(wrong) },
        };
        let mut bytes = Vec::new();
        header.encode(&payload, &mut bytes);
        bytes
    }

    /// A socket, with the greeting of a peer that goes on where it was.
    fn greet(&mut self, end: &mut Link, now: Nanos) {
        end.socket_opened(now);
        let mut bytes = Vec::new();
        let header =
            Header { kind: Kind::Hello, flags: 0, incarnation: PEER, seq: 0, ack: self.acked, stream: 0 };
        let hello = Hello { role: Role::Dialler, knows: OWN, opening: 0, limits: self.limits };
        header.encode(&hello.encode(), &mut bytes);
        end.feed(&bytes, now);
    }
}

/// See the module; over either kind of socket.
pub(crate) fn link(data: &[u8]) {
    link_over(Pace::DEFAULT, data);
    link_over(Pace { limits: Limits::SOUND, is_sound: true, ..Pace::DEFAULT }, data);
}

fn link_over(pace: Pace, data: &[u8]) {
    let mut input = Input::new(data);
    let mut end = Link::new(Role::Acceptor, pace, OWN);
    let (mut peer, mut now) = (Peer { limits: pace.limits, seq: 0, acked: 0 }, 1000 * MS);
    let mut streams = Vec::new();
    peer.greet(&mut end, now);
    while let Some(choice) = input.next() {
        match choice % 16 {
            0..8 => {
                let frame = peer.frame(&mut input);
                if choice / 16 == 0 {
                    let cut = input.below(frame.len() + 1);
                    end.feed(&frame[..cut], now);
                    end.feed(&frame[cut..], now);
                } else {
                    end.feed(&frame, now);
                }
            }
            8 => {
                let n = usize::from(input.byte());
                end.feed(input.bytes(n), now);
            }
            9 => streams.extend(end.open(Port(1), Port(2))),
            10 | 11 => {
                if let Some(stream) = streams.get(usize::from(choice / 16)) {
                    let _ = end.write(*stream, &vec![1; input.below(9000)]);
                    assert!(!matches!(end.read(*stream, &mut [0; 500]), Ok(Some(n)) if n > 500));
                }
            }
            12 if !streams.is_empty() => {
                let at = input.below(streams.len());
                end.close(streams.swap_remove(at));
            }
            13 => end.socket_lost(),
            14 => now += MS * u64::from(input.byte()) * 20,
            _ => peer.greet(&mut end, now),
        }
        streams.extend(drain(&mut end, now));
    }
}

/// Does what the shell does; the streams called.
pub(super) fn drain(end: &mut Link, now: Nanos) -> Vec<StreamId> {
    let mut called = Vec::new();
    end.handle_timeout(now);
    while let Some(event) = end.poll_event() {
        if let Event::Called { stream, .. } = event {
            end.accept(stream);
            called.push(stream);
        }
    }
    let mut frames = 0;
    while let Some(rest) = end.poll_transmit(now) {
        let len = rest.len();
        end.transmitted(len, now);
        frames += 1;
        assert!(frames < FRAMES_MAX, "it never stops writing");
    }
    let _ = end.next_timeout();
    called
}
