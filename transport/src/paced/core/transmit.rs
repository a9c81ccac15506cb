//! What goes to the peer, and when.

use super::frame::{FLAG_ASK, Header, Hello, Kind};
use super::pace::{BackOff, BackOffRange};
use super::{Acks, Link, Nanos, Socket, Writing};
use crate::incarnation::Incarnation;

impl Writing {
    pub(super) fn new(refused: BackOffRange) -> Self {
        Self {
            greets: true,
            greeted: None,
            frame: Vec::new(),
            written: 0,
            is_numbered: false,
            back_off: BackOff::new(refused),
            refused_until: None,
        }
    }
}

impl Link {
    /// The bytes to write next: the rest of one frame, the same until it went. `None` while there is nothing to write, or a refused
    /// write is not to be tried again yet.
    pub(crate) fn poll_transmit(&mut self, now: Nanos) -> Option<&[u8]> {
        if self.writing.refused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.writing.refused_until = None;
        if self.writing.written == self.writing.frame.len() {
            self.writing.frame.clear();
            self.writing.written = 0;
            self.stage(now);
        }
        let rest = &self.writing.frame[self.writing.written..];
        (!rest.is_empty()).then_some(rest)
    }

    /// So many of those bytes went.
    pub(crate) fn transmitted(&mut self, written: usize, now: Nanos) {
        let writing = &mut self.writing;
        writing.written = (writing.written + written).min(writing.frame.len());
        writing.back_off.reset();
        if writing.written < writing.frame.len() {
            return;
        }
        self.clocks.spoke = now;
        if std::mem::take(&mut writing.is_numbered) {
            if !self.outbox.is_waiting() {
                self.clocks.progressed = now;
            }
            self.outbox.sent_one();
        }
    }

    /// The peer's ring was full, and none of them went. `jitter` is any random number.
    pub(crate) fn refused(&mut self, now: Nanos, jitter: u64) {
        let pause = self.writing.back_off.pause(jitter);
        self.writing.refused_until = Some(now + pause);
    }

    /// Whether a frame waits for the socket to take it, or take it again.
    pub(super) fn is_held_up(&self) -> bool {
        self.writing.refused_until.is_some() || self.writing.written < self.writing.frame.len()
    }

    fn stage(&mut self, now: Nanos) {
        match self.socket {
            Socket::None => {}
            _ if self.writing.greets => self.stage_hello(),
            Socket::Greeting { .. } => {}
            Socket::Up => self.stage_of_session(now),
        }
    }

    fn stage_hello(&mut self) {
        self.writing.greets = false;
        self.writing.greeted = self.peer;
        let knows = self.peer.unwrap_or(Incarnation::NONE);
        let hello = Hello { role: self.role, knows, opening: self.opening };
        let header = self.header(Kind::Hello, 0, 0);
        header.encode(&hello.encode(), &mut self.writing.frame);
    }

    fn stage_of_session(&mut self, now: Nanos) {
        if self.outbox.unsent().is_none() {
            self.streams.make_frame(&mut self.outbox, &mut self.events);
        }
        if let Some(kept) = self.outbox.unsent() {
            let header = self.header(kept.kind, kept.seq, kept.stream);
            header.encode(&kept.payload, &mut self.writing.frame);
            self.writing.is_numbered = true;
            self.acks = Acks::default();
            return;
        }
        let is_due = self.acks.by.is_some_and(|by| now >= by);
        let speaks = now >= self.speak_by();
        if !is_due && !speaks {
            return;
        }
        let mut header = self.header(Kind::Ack, self.outbox.last_sent(), 0);
        if speaks && self.outbox.is_waiting() {
            header.flags = FLAG_ASK;
            self.clocks.progressed = now;
        }
        header.encode(&[], &mut self.writing.frame);
        self.acks = Acks::default();
    }

    fn header(&self, kind: Kind, seq: u64, stream: u64) -> Header {
        Header { kind, flags: 0, incarnation: self.life, seq, ack: self.received, stream }
    }
}
