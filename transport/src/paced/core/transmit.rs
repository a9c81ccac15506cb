//! What goes to the peer, and when.

use std::io::IoSlice;

use super::frame::{FLAG_ASK, Header, Hello, Kind};
use super::outbox::Kept;
use super::pace::{BackOff, BackOffRange};
use super::{Acks, Link, Nanos, Socket, Writing};
use crate::incarnation::Incarnation;

/// Frames as long as this are written from where they are kept; shorter ones are cheaper to copy than to write one by one.
const STAYS_BYTES_MIN: usize = 8 * 1024;
/// No further frame is added to a batch that is as long as this.
const BATCH_BYTES: usize = 32 * 1024;
/// Frames in one write at most, of those that are not copied.
pub(crate) const SLICES_MAX: usize = 16;

impl Writing {
    pub(super) fn new(refused: BackOffRange) -> Self {
        Self {
            greets: true,
            greeted: None,
            batch: Vec::new(),
            kept: 0,
            written: 0,
            begins_to_wait: false,
            back_off: BackOff::new(refused),
            refused_until: None,
        }
    }
}

impl Link {
    /// The bytes to write next, the same until they went: the rest of one frame, or of some where the socket is sound. `None` while there is
    /// nothing to write, or a refused write is not to be tried again yet.
    pub(crate) fn poll_transmit(&mut self, now: Nanos) -> Option<&[u8]> {
        if self.writing.refused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.writing.refused_until = None;
        if !self.is_writing() {
            self.writing.batch.clear();
            self.writing.written = 0;
            self.stage(now);
        }
        let rest = &self.first_of_written()[self.writing.written..];
        (!rest.is_empty()).then_some(rest)
    }

    /// What [`Link::poll_transmit`] gives and, where the socket is sound, what may go in the same write after it; how many slices.
    pub(crate) fn transmittable<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let rest = &self.first_of_written()[self.writing.written..];
        let more = self.outbox.unsent(1).take(self.writing.kept.saturating_sub(1)).map(Kept::frame);
        let slices = std::iter::once(rest).chain(more).map(IoSlice::new);
        into.iter_mut().zip(slices).map(|(place, slice)| *place = slice).count()
    }

    /// So many of those bytes went.
    pub(crate) fn transmitted(&mut self, mut written: usize, now: Nanos) {
        self.writing.back_off.reset();
        while written > 0 && self.is_writing() {
            let len = self.first_of_written().len();
            let writing = &mut self.writing;
            let now_written = written.min(len - writing.written);
            written -= now_written;
            writing.written += now_written;
            if writing.written < len {
                return;
            }
            self.clocks.spoke = now;
            if std::mem::take(&mut writing.begins_to_wait) {
                self.clocks.progressed = now;
            }
            if writing.kept > 0 {
                writing.kept -= 1;
                writing.written = 0;
                self.outbox.sent_one();
            }
        }
    }

    /// The batch, or the first frame, whether it went in part or not.
    fn first_of_written(&self) -> &[u8] {
        match self.writing.kept {
            0 => &self.writing.batch,
            _ => self.outbox.unsent(0).next().map_or(&[], Kept::frame),
        }
    }

    fn is_writing(&self) -> bool {
        self.writing.written < self.first_of_written().len()
    }

    /// The peer's ring was full, and none of them went. `jitter` is any random number.
    pub(crate) fn refused(&mut self, now: Nanos, jitter: u64) {
        let pause = self.writing.back_off.pause(jitter);
        self.writing.refused_until = Some(now + pause);
    }

    /// Whether a frame waits for the socket to take it, or take it again.
    pub(super) fn is_held_up(&self) -> bool {
        self.writing.refused_until.is_some() || self.is_writing()
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
        if self.is_line_full() {
            return;
        }
        self.writing.greeted = self.peer;
        let knows = self.peer.unwrap_or(Incarnation::NONE);
        let hello = Hello { role: self.role, knows, opening: self.opening, limits: self.pace.limits };
        let header = self.header(Kind::Hello, 0, 0);
        header.encode(&hello.encode(), &mut self.writing.batch);
        self.unheard_bytes += self.writing.batch.len();
    }

    fn stage_of_session(&mut self, now: Nanos) {
        let begins_to_wait = !self.outbox.is_waiting();
        loop {
            let nth = self.writing.kept;
            if self.outbox.unsent(nth).next().is_none() {
                self.streams.make_frame(&mut self.outbox, &mut self.events);
            }
            let Some(kept) = self.outbox.unsent(nth).next() else { break };
            let (kind, seq, stream, len) = (kept.kind, kept.seq, kept.stream, kept.frame().len());
            let stays = len >= STAYS_BYTES_MIN || nth > 0 || !self.pace.is_sound;
            if !self.writing.batch.is_empty() && (stays || self.writing.batch.len() >= BATCH_BYTES) {
                return;
            }
            let header = self.header(kind, seq, stream);
            self.writing.begins_to_wait = begins_to_wait;
            self.acks = Acks::default();
            let Some(kept) = self.outbox.unsent_mut(nth) else { return };
            kept.seal(&header);
            // At a line, what is being written goes to its end whatever becomes of what is kept.
            if stays && !self.pace.is_line {
                self.writing.kept += 1;
                if !self.pace.is_sound || self.writing.kept == SLICES_MAX {
                    return;
                }
            } else {
                self.writing.batch.extend_from_slice(kept.frame());
                self.outbox.sent_one();
            }
        }
        if !self.is_writing() {
            self.stage_ack(now);
        }
    }

    fn stage_ack(&mut self, now: Nanos) {
        let is_due = self.acks.by.is_some_and(|by| now >= by);
        let speaks = now >= self.speak_by();
        if !is_due && !speaks || self.is_line_full() {
            return;
        }
        let mut header = self.header(Kind::Ack, self.outbox.last_sent(), 0);
        if speaks && self.outbox.is_waiting() {
            header.flags = FLAG_ASK;
            self.clocks.progressed = now;
        }
        header.encode(&[], &mut self.writing.batch);
        self.unheard_bytes += self.writing.batch.len();
        self.acks = Acks::default();
    }

    fn header(&self, kind: Kind, seq: u64, stream: u64) -> Header {
        Header { kind, flags: 0, incarnation: self.life, seq, ack: self.received, stream }
    }
}
