//! A socket at which an end need not see that the other has gone and come again, as a terminal line: either may begin anew on it at any time.
//!
//! Bytes of before and after may follow one another. So an end that begins anew passes over everything until a HELLO, and says HELLO again and again
//! until one comes; and an end that is up answers a HELLO with its own and goes on from what that acknowledges. An **opening** has a number, by which a
//! HELLO that was heard already is told from another beginning: without it two ends would answer each other for ever.
//!
//! An end is up once a HELLO has come that knows its present life, and not before: what goes before that on the line may be meant for a life before
//! it, with numbers of that session. Until then each HELLO is answered by one that knows the peer, as in a handshake of three ways.

use super::frame::{Frame, HEADER_BYTES, HELLO_FRAME_BYTES_MAX, Hello, Kind, NoFrame, Role};
use super::{Acks, Event, Fault, Link, Nanos, Socket};

/// Bytes of HELLOs and ACKs that find room on a line beside a full window: two HELLOs, and one more that is said while there is any.
const GREETINGS_BYTES: usize = 200;

impl Link {
    /// [`Link::feed`] where the socket is a line.
    pub(super) fn feed_line(&mut self, bytes: &[u8], now: Nanos) {
        let mut partial = self.inbox.take();
        partial.extend_from_slice(bytes);
        let frame_bytes_max = self.pace.limits.frame_bytes;
        let mut at = 0;
        loop {
            let rest = &partial[at..];
            let decoded = match self.socket {
                Socket::None => return,
                Socket::Greeting { .. } => match find_hello(rest, frame_bytes_max) {
                    Found::At(from) => {
                        at += from;
                        Frame::decode(&partial[at..], frame_bytes_max)
                    }
                    Found::PerhapsAt(from) => {
                        at += from;
                        break;
                    }
                },
                Socket::Up => Frame::decode(rest, frame_bytes_max),
            };
            let outcome = match decoded {
                Ok((frame, len)) => {
                    at += len;
                    self.on_frame(&frame, now)
                }
                Err(NoFrame::Incomplete) => match self.begun_anew_within(rest) {
                    Some(from) => {
                        at += from;
                        continue;
                    }
                    None => break,
                },
                Err(other) => Err(other.into()),
            };
            match outcome {
                Ok(()) => {}
                Err(Fault::Socket(why)) => self.begin_anew(why, now),
                Err(Fault::Violation(what)) => return self.end_for_violation(what),
            }
        }
        partial.drain(..at);
        self.inbox.keep(partial);
    }

    /// A HELLO where we are up: the peer begins anew, or answers once more what we have said once more.
    pub(super) fn on_hello_again(&mut self, frame: &Frame<'_>, now: Nanos) -> Result<(), Fault> {
        let hello = Hello::decode(frame.payload)?;
        if self.peer == Some(frame.header.incarnation) && hello.opening <= self.heard_opening {
            return Ok(());
        }
        self.on_hello(frame, now)?;
        // It waits for ours, and passes over all that goes before.
        self.writing.greets = true;
        Ok(())
    }

    /// Tells the peer that we know it where our last HELLO did not. Whether the peer knows us, so that what it sends next is for us.
    pub(super) fn greets_back(&mut self, hello: &Hello, now: Nanos) -> bool {
        if !self.pace.is_line {
            return true;
        }
        let knows_us = hello.knows == self.life;
        self.writing.greets |= !knows_us || self.writing.greeted != self.peer;
        if !knows_us {
            self.socket = Socket::Greeting { since: now };
        }
        knows_us
    }

    /// Whether a HELLO was sent before another of which we have heard.
    pub(super) fn is_stale(&self, frame: &Frame<'_>, hello: &Hello) -> bool {
        let is_of_this_life = self.peer == Some(frame.header.incarnation);
        self.pace.is_line && is_of_this_life && hello.opening < self.heard_opening
    }

    /// Says HELLO again where the peer's has not come.
    pub(super) fn greet_again(&mut self, now: Nanos) {
        if self.greets_again_at().is_some_and(|at| now >= at) {
            self.opening += 1;
            self.writing.greets = true;
        }
    }

    /// Whether the peer's end of the line may hold as much of ours as it can: a terminal whose program does not read is held up for good by more. Only the
    /// dialler has one, and it speaks again by itself when it reads.
    pub(super) fn is_line_full(&self) -> bool {
        let room = self.outbox.limits().window_bytes + GREETINGS_BYTES;
        let may_lie_there = self.outbox.bytes_under_way() + self.unheard_bytes;
        self.pace.is_line && self.role == Role::Acceptor && may_lie_there >= room
    }

    /// When [`Link::greet_again`] does so.
    pub(super) fn greets_again_at(&self) -> Option<Nanos> {
        let waits = matches!(self.socket, Socket::Greeting { .. })
            && !self.writing.greets
            && !self.is_held_up()
            && !self.is_line_full();
        (self.pace.is_line && waits).then_some(self.clocks.spoke + self.pace.ask)
    }

    /// Where, in what is no whole frame, the peer begins anew: the rest of that frame was lost and will not come, and to wait for so many bytes would be
    /// to take one HELLO after the other for it. Only one of the life that we know counts, which is random: the frame may be sound and carry any bytes
    /// that somebody else has made up.
    fn begun_anew_within(&self, rest: &[u8]) -> Option<usize> {
        let is_beginning = |at: &usize| {
            let rest = &rest[*at..];
            may_be_hello(rest)
                && Frame::decode(rest, self.pace.limits.frame_bytes).is_ok_and(|(frame, _)| {
                    let hello = Hello::decode(frame.payload);
                    self.peer == Some(frame.header.incarnation)
                        && hello.is_ok_and(|hello| hello.opening > self.heard_opening)
                })
        };
        (self.socket == Socket::Up).then(|| (1..rest.len()).find(is_beginning))?
    }

    fn begin_anew(&mut self, why: String, now: Nanos) {
        self.socket = Socket::Greeting { since: now };
        self.opening += 1;
        self.acks = Acks::default();
        // What is being written goes to its end: the peer may not have seen that anything is wrong.
        self.writing.greets = true;
        self.events.push_back(Event::BeginsAnew { why });
    }
}

enum Found {
    /// A whole HELLO is there.
    At(usize),
    /// Nothing before this can be one; from here on one may come.
    PerhapsAt(usize),
}

fn find_hello(bytes: &[u8], frame_bytes_max: usize) -> Found {
    for at in 0..bytes.len() {
        let rest = &bytes[at..];
        if !may_be_hello(rest) {
            continue;
        }
        match Frame::decode(rest, frame_bytes_max) {
            Ok(_) => return Found::At(at),
            Err(NoFrame::Incomplete) => return Found::PerhapsAt(at),
            Err(_) => {}
        }
    }
    Found::PerhapsAt(bytes.len())
}

/// Whether this begins as a HELLO does, as far as it goes.
fn may_be_hello(bytes: &[u8]) -> bool {
    let lengths = HEADER_BYTES..=HELLO_FRAME_BYTES_MAX;
    let has_length =
        bytes.first_chunk().is_none_or(|len| lengths.contains(&usize::from(u16::from_le_bytes(*len))));
    has_length
        && bytes.get(2).is_none_or(|kind| *kind == Kind::Hello as u8)
        && bytes.get(3).is_none_or(|flags| *flags == 0)
}
