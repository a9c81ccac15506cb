//! Two ends of a link and the channel between them.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::super::{Event, Limits, Link, Nanos, Pace, Refusal, Role, SLICES_MAX, StreamError, StreamId};
use crate::addr::Port;
use crate::incarnation::Incarnation;

pub(super) const MS: Nanos = 1_000_000;
/// Where the callee of a [`World`] listens; every other port refuses.
pub(super) const LISTENING: Port = Port(7);

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Nanos,
    pub(super) ends: [Link; 2],
    /// Bytes under way: from each end to the other.
    wires: [VecDeque<u8>; 2],
    pub(super) called: [Vec<StreamId>; 2],
    /// Events that are of interest to tests, in order.
    pub(super) closed_sockets: Vec<String>,
    pub(super) ended: [usize; 2],
    /// An end whose program does not run.
    pub(super) frozen: Option<usize>,
    is_connected: bool,
    lives: u8,
    /// Of either end. A line, if they say so: what happens at its other end the first does not see.
    paces: [Pace; 2],
}

/// Small enough that a few steps reach every limit; frames are long enough to go alone.
pub(super) const SMALL_AND_SOUND: Pace = Pace {
    limits: Limits { frame_bytes: 9000, window_bytes: 20_000, window_frames: 7, stream_bytes: 100_000 },
    is_sound: true,
    ..Pace::DEFAULT
};

impl World {
    pub(super) fn new() -> Self {
        Self::with([Pace::DEFAULT; 2])
    }

    /// Over a terminal line, of which the dialler never sees the other end.
    pub(super) fn line() -> Self {
        Self::with([line(); 2])
    }

    /// Over a socket with a flow control of its own.
    pub(super) fn sound() -> Self {
        Self::with([SMALL_AND_SOUND; 2])
    }

    pub(super) fn with(paces: [Pace; 2]) -> Self {
        let mut world = Self {
            now: 1000 * MS,
            ends: [link(Role::Dialler, 1, paces[0]), link(Role::Acceptor, 2, paces[1])],
            wires: Default::default(),
            called: Default::default(),
            closed_sockets: Vec::new(),
            ended: [0; 2],
            frozen: None,
            is_connected: false,
            lives: 2,
            paces,
        };
        world.connect();
        world
    }

    pub(super) fn is_line(&self) -> bool {
        self.paces[0].is_line
    }

    /// A socket, if there is none.
    pub(super) fn connect(&mut self) {
        if !self.is_connected {
            self.is_connected = true;
            self.wires.iter_mut().for_each(VecDeque::clear);
            self.ends.iter_mut().for_each(|end| end.socket_opened(self.now));
        }
    }

    /// The socket breaks, and what is under way is lost.
    pub(super) fn cut(&mut self) {
        if self.is_line() {
            self.wires.iter_mut().for_each(VecDeque::clear);
            self.reopen(1);
        } else if self.is_connected {
            self.is_connected = false;
            self.wires.iter_mut().for_each(VecDeque::clear);
            self.ends.iter_mut().for_each(Link::socket_lost);
        }
    }

    /// An end opens its side of the line again.
    pub(super) fn reopen(&mut self, end: usize) {
        self.wires[1 - end].clear();
        self.ends[end].socket_lost();
        self.ends[end].socket_opened(self.now);
    }

    /// The program that holds an end dies, and another takes its place.
    pub(super) fn restart(&mut self, end: usize) {
        self.cut();
        self.lives += 1;
        let role = if end == 0 { Role::Dialler } else { Role::Acceptor };
        self.ends[end] = link(role, self.lives, self.paces[end]);
        self.called[end].clear();
        if self.is_line() {
            self.reopen(end);
        }
    }

    /// Lets `end` write up to `bytes` bytes into the channel.
    pub(super) fn transmit(&mut self, end: usize, mut bytes: usize) {
        while bytes > 0 && self.is_connected {
            if self.ends[end].poll_transmit(self.now).is_none() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.ends[end].transmittable(&mut slices);
            let rest: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            if !self.paces[end].is_sound {
                assert!(
                    count == 1 && rest.len() <= Limits::PACKETS.frame_bytes,
                    "a write of more than a packet"
                );
            }
            let taken = rest.len().min(bytes);
            self.wires[end].extend(&rest[..taken]);
            bytes -= taken;
            self.ends[end].transmitted(taken, self.now);
            self.check(end);
        }
    }

    /// The ring of the other end is full for one write of `end`.
    pub(super) fn refuse(&mut self, end: usize, jitter: u64) {
        let now = self.now;
        if self.is_connected && self.ends[end].poll_transmit(now).is_some() {
            self.ends[end].refused(now, jitter);
        }
    }

    /// Up to `bytes` bytes that `end` wrote arrive.
    pub(super) fn carry(&mut self, end: usize, bytes: usize) {
        let wire = &mut self.wires[end];
        let arriving: Vec<u8> = wire.drain(..bytes.min(wire.len())).collect();
        if !arriving.is_empty() {
            self.ends[1 - end].feed(&arriving, self.now);
            self.look(1 - end);
        }
    }

    /// Up to `bytes` of the bytes that `end` wrote vanish.
    pub(super) fn lose(&mut self, end: usize, bytes: usize) {
        let wire = &mut self.wires[end];
        wire.drain(..bytes.min(wire.len()));
    }

    /// Takes what `end` wrote out of the channel.
    pub(super) fn take_wire(&mut self, end: usize) -> Vec<u8> {
        self.wires[end].drain(..).collect()
    }

    /// Time passes.
    pub(super) fn pass(&mut self, nanos: Nanos) {
        self.now += nanos;
        for end in [0, 1] {
            if self.frozen != Some(end) {
                self.ends[end].handle_timeout(self.now);
                self.look(end);
            }
        }
    }

    /// Reconnects and lets everything go its way until neither end has anything to do, for at most `nanos`.
    pub(super) fn settle(&mut self, nanos: Nanos) {
        let until = self.now + nanos;
        while self.now < until {
            self.connect();
            let mut has_moved = false;
            for end in [0, 1] {
                self.transmit(end, usize::MAX);
                has_moved |= !self.wires[end].is_empty();
                self.carry(end, usize::MAX);
            }
            if has_moved {
                // A little: a conversation that never ends is cut short.
                self.now += MS / 100;
                continue;
            }
            let is_quiet = |end: usize| {
                let end = &self.ends[end];
                end.is_up() && end.outbox.is_empty() && end.acks.by.is_none() && !end.is_held_up()
            };
            if is_quiet(0) && is_quiet(1) {
                return;
            }
            let next = self.ends.iter().filter_map(Link::next_timeout).min();
            let next = next.unwrap_or(until).clamp(self.now + MS / 10, until.max(self.now + MS / 10));
            self.pass(next - self.now);
        }
    }

    /// Calls from `end`; both ends of the stream.
    pub(super) fn streams(&mut self, end: usize) -> (StreamId, StreamId) {
        let caller = self.ends[end].open(Port(1000), LISTENING).unwrap();
        assert_eq!(self.ends[end].poll_answer(caller), None);
        self.settle(20_000 * MS);
        assert_eq!(self.ends[end].poll_answer(caller), Some(Ok(())));
        (caller, self.called[1 - end].pop().unwrap())
    }

    /// Closes, at both ends, every stream that nobody took.
    pub(super) fn close_called(&mut self) {
        for end in [0, 1] {
            for stream in std::mem::take(&mut self.called[end]) {
                self.ends[end].close(stream);
            }
        }
    }

    /// Writes all of `bytes`, settling whenever there is no room.
    pub(super) fn write_all(&mut self, end: usize, stream: StreamId, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.ends[end].write(stream, rest).unwrap() {
                Some(taken) => rest = &rest[taken..],
                None => self.settle(20_000 * MS),
            }
        }
    }

    /// Reads what has arrived: the bytes, and what came after them.
    pub(super) fn read(
        &mut self,
        end: usize,
        stream: StreamId,
    ) -> (Vec<u8>, Result<Option<usize>, StreamError>) {
        let mut bytes = Vec::new();
        let mut chunk = [0; 5000];
        loop {
            match self.ends[end].read(stream, &mut chunk) {
                Ok(Some(read)) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
                other => return (bytes, other),
            }
        }
    }

    fn look(&mut self, end: usize) {
        while let Some(event) = self.ends[end].poll_event() {
            match event {
                Event::Called { stream, to, .. } if to == LISTENING => {
                    self.called[end].push(stream);
                    self.ends[end].accept(stream);
                }
                Event::Called { stream, .. } => self.ends[end].refuse(stream, Refusal::NobodyListens),
                Event::CloseSocket { why, .. } => {
                    self.closed_sockets.push(why);
                    if self.is_line() { self.reopen(end) } else { self.cut() }
                }
                Event::BeginsAnew { .. } => {}
                Event::Ended(_) => self.ended[end] += 1,
                Event::Readable(_) | Event::Writable(_) | Event::Up { .. } => {}
            }
        }
    }

    fn check(&self, end: usize) {
        let outbox = &self.ends[end].outbox;
        let limits = self.paces[0].limits.and(self.paces[1].limits);
        assert!(outbox.bytes_under_way() <= limits.window_bytes);
        assert!(outbox.frames_under_way() <= limits.window_frames);
    }
}

pub(super) fn link(role: Role, life: u8, pace: Pace) -> Link {
    Link::new(role, pace, Incarnation([life; 16]))
}

/// Of an end at a line.
pub(super) fn line() -> Pace {
    Pace { is_line: true, ..Pace::DEFAULT }
}

/// Bytes that tell their place.
pub(super) fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
