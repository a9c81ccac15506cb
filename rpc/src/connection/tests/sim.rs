//! [`Sim`]: both ends of a link and the wires between them.

use std::collections::VecDeque;
use std::time::Duration;

use tombolo_transport::{Cid, Incarnation};

use crate::Schema;
use crate::connection::{Config, Connection, Event, Payload, Proof, Side};
use crate::schema::{MethodInfo, MethodKind};

pub(super) static UNARY: MethodInfo = MethodInfo::new(
    "test.Sim",
    "unary",
    MethodKind::Unary,
    &["bytes"],
    &[u8::SCHEMA],
    None,
    None,
    u8::SCHEMA,
    u8::SCHEMA,
);

pub(super) const SECOND: u64 = 1_000_000_000;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    A,
    B,
}

/// Two ends; what one sends waits on its wire until it is delivered.
pub(super) struct Sim {
    pub(super) a: Connection,
    pub(super) b: Connection,
    pub(super) to_a: VecDeque<Vec<u8>>,
    pub(super) to_b: VecDeque<Vec<u8>>,
    /// What each end has been told, borrowed payloads made owned.
    pub(super) log_a: Vec<Event<'static>>,
    pub(super) log_b: Vec<Event<'static>>,
    pub(super) now: u64,
    apart: bool,
}

pub(super) fn config(side: Side) -> Config {
    Config {
        side,
        cid: Cid(side as u32 + 1),
        incarnation: Incarnation([side as u8; 16]),
        nonce: [side as u8; 32],
        proof: Proof::None,
        role: format!("{side:?}"),
        build: "test".into(),
        frame_bytes_max: 64 * 1024,
        fragment_bytes: 0,
        message_bytes_max: 8 << 20,
        metadata_bytes_max: 1024,
        calls_max: 100,
        assembly_bytes_max: 16 << 20,
        window_bytes: 64 * 1024,
        handshake_timeout: Duration::from_secs(5),
        keepalive: Duration::from_secs(5),
        silence_max: Duration::from_secs(15),
    }
}

pub(super) fn own(event: Event<'_>) -> Event<'static> {
    let payload = |p: Payload<'_>| Payload::Owned(p.to_vec().into());
    match event {
        Event::Opened { call, method, fingerprint, deadline_ns, metadata, payload: p } => Event::Opened {
            call,
            method,
            fingerprint,
            deadline_ns,
            metadata: payload(metadata),
            payload: payload(p),
        },
        Event::Item { call, payload: p, cost } => Event::Item { call, payload: payload(p), cost },
        Event::Answered { call, app_error, payload: p } => {
            Event::Answered { call, app_error, payload: payload(p) }
        }
        Event::PeerHello(peer) => Event::PeerHello(peer),
        Event::Established => Event::Established,
        Event::ItemsEnded { call } => Event::ItemsEnded { call },
        Event::ItemsStopped { call } => Event::ItemsStopped { call },
        Event::Writable { call } => Event::Writable { call },
        Event::Failed { call, failure } => Event::Failed { call, failure },
        Event::Cancelled { call, why } => Event::Cancelled { call, why },
        Event::Pong { token } => Event::Pong { token },
        Event::GoingAway { reason } => Event::GoingAway { reason },
        Event::Closed(error) => Event::Closed(error),
    }
}

impl Sim {
    pub(super) fn new(a: Config, b: Config) -> Self {
        let (a, b) = (Connection::new(a, 0), Connection::new(b, 0));
        Self {
            a,
            b,
            to_a: VecDeque::new(),
            to_b: VecDeque::new(),
            log_a: Vec::new(),
            log_b: Vec::new(),
            now: 0,
            apart: false,
        }
    }

    /// Two ends that have said HELLO, with empty logs.
    pub(super) fn established() -> Self {
        Self::established_with(config(Side::Connector), config(Side::Acceptor))
    }

    pub(super) fn established_with(a: Config, b: Config) -> Self {
        let mut sim = Self::new(a, b);
        sim.run();
        assert_eq!(sim.log_a, [Event::Established]);
        assert_eq!(sim.log_b, [Event::Established]);
        sim.log_a.clear();
        sim.log_b.clear();
        sim
    }

    /// Puts the next frame of `from` on its wire; false if there is none.
    pub(super) fn transmit(&mut self, from: End) -> bool {
        let (end, wire) = match from {
            End::A => (&mut self.a, &mut self.to_b),
            End::B => (&mut self.b, &mut self.to_a),
        };
        let Some(frame) = end.poll_transmit() else { return false };
        wire.push_back(frame.to_vec());
        self.collect();
        true
    }

    /// Delivers the next frame to `to`; false if there is none.
    pub(super) fn deliver(&mut self, to: End) -> bool {
        let (end, wire, log) = match to {
            End::A => (&mut self.a, &mut self.to_a, &mut self.log_a),
            End::B => (&mut self.b, &mut self.to_b, &mut self.log_b),
        };
        let Some(frame) = wire.pop_front() else { return false };
        // One of two frames is received in two places, where that can be.
        self.apart = !self.apart;
        let (head, rest) = frame.split_at(frame.len().min(8));
        let place = if self.apart { end.place(head, rest.len()) } else { None };
        let event = match place {
            Some(place) => {
                place.extend_from_slice(rest);
                end.handle_placed(self.now, head, rest.len())
            }
            None => end.handle_frame(self.now, &frame),
        };
        log.extend(event.map(own));
        self.collect();
        true
    }

    /// Gathers the events that no frame returned.
    pub(super) fn collect(&mut self) {
        while let Some(event) = self.a.poll_event() {
            self.log_a.push(event);
        }
        while let Some(event) = self.b.poll_event() {
            self.log_b.push(event);
        }
    }

    /// Moves frames until nothing moves.
    pub(super) fn run(&mut self) {
        let mut steps = 0;
        while self.transmit(End::A) | self.transmit(End::B) | self.deliver(End::A) | self.deliver(End::B) {
            steps += 1;
            assert!(steps < 10_000_000, "the two ends keep each other busy for ever");
        }
        self.collect();
    }

    /// Lets time pass, and both ends act on it.
    pub(super) fn pass(&mut self, ns: u64) {
        self.now += ns;
        self.a.handle_timeout(self.now);
        self.b.handle_timeout(self.now);
        self.collect();
    }

    /// Calls from A.
    pub(super) fn open(&mut self, payload: &[u8]) -> u32 {
        self.a.open(self.now, &UNARY, None, &[], Payload::Borrowed(payload)).unwrap()
    }

    /// Takes what A has been told.
    pub(super) fn told_a(&mut self) -> Vec<Event<'static>> {
        std::mem::take(&mut self.log_a)
    }

    /// Takes what B has been told.
    pub(super) fn told_b(&mut self) -> Vec<Event<'static>> {
        std::mem::take(&mut self.log_b)
    }
}
