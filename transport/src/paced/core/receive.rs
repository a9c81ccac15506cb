//! What frames of the peer do.

use super::frame::{FLAG_ASK, Frame, Hello, Kind, NoFrame, Refusal};
use super::stream::{Life, Stream};
use super::streams::{Found, STREAMS_MAX};
use super::{Event, Fault, Link, Nanos, Socket};
use crate::addr::Port;
use crate::error::ResetCause;
use crate::incarnation::Incarnation;

type Handled = Result<(), Fault>;

impl From<NoFrame> for Fault {
    fn from(none: NoFrame) -> Self {
        match none {
            NoFrame::Incomplete => Self::Socket("a frame ended early".into()),
            NoFrame::Damaged(what) => Self::Socket(what.into()),
            NoFrame::Foreign(what) => Self::Violation(what),
        }
    }
}

impl Link {
    pub(super) fn on_frame(&mut self, frame: &Frame<'_>, now: Nanos) -> Handled {
        match (self.socket, frame.header.kind) {
            // A fault of an earlier frame of the same bytes ends them.
            (Socket::None, _) => Ok(()),
            (Socket::Greeting { .. }, Kind::Hello) => self.on_hello(frame, now),
            (Socket::Greeting { .. }, kind) => {
                Err(Fault::Socket(format!("a frame of kind {kind:?} came before any HELLO")))
            }
            (Socket::Up, Kind::Hello) if self.pace.is_line => self.on_hello_again(frame, now),
            (Socket::Up, Kind::Hello) => Err(Fault::Socket("the peer begins anew on it".into())),
            (Socket::Up, _) => self.on_session_frame(frame, now),
        }
    }

    pub(super) fn on_hello(&mut self, frame: &Frame<'_>, now: Nanos) -> Handled {
        let hello = Hello::decode(frame.payload)?;
        let theirs = frame.header.incarnation;
        if self.is_stale(frame, &hello) {
            return Ok(());
        }
        if hello.role == self.role {
            return Err(Fault::Violation(format!("both ends say that they are the {:?}", self.role)));
        }
        if theirs == Incarnation::NONE || frame.header.seq != 0 {
            return Err(Fault::Violation("a HELLO without a life, or with a number".into()));
        }
        if self.peer.is_some_and(|known| known != theirs) {
            self.end_session(&ResetCause::PeerKernelDied, true);
        }
        let limits = self.pace.limits.and(hello.limits);
        if self.peer.is_none() {
            self.outbox.set_limits(limits);
        } else if limits != self.outbox.limits() {
            // What is kept for it was made by those.
            return Err(Fault::Violation("it takes something else than before in the same life".into()));
        }
        self.peer = Some(theirs);
        self.heard_opening = hello.opening;
        self.clocks.heard = now;
        self.unheard_bytes = 0;
        if !self.greets_back(&hello, now) {
            return Ok(());
        }
        // A peer that knows another life of ours, or none, has nothing of this one.
        let has = if hello.knows == self.life { frame.header.ack } else { 0 };
        self.outbox.resume(has)?;
        self.socket = Socket::Up;
        self.clocks.progressed = now;
        self.ups += 1;
        let resumed = std::mem::replace(&mut self.has_begun, true);
        self.events.push_back(Event::Up { resumed });
        Ok(())
    }

    fn on_session_frame(&mut self, frame: &Frame<'_>, now: Nanos) -> Handled {
        let header = &frame.header;
        if Some(header.incarnation) != self.peer {
            let what = "a frame of another life than its HELLO";
            // Over a line, that life's HELLO may have got lost.
            return Err(if self.pace.is_line {
                Fault::Socket(what.into())
            } else {
                Fault::Violation(what.into())
            });
        }
        let is_numbered = header.kind != Kind::Ack;
        let expected = self.received + u64::from(is_numbered);
        if header.seq > expected {
            let lost = header.seq - expected;
            return Err(Fault::Socket(format!("{lost} frames got lost on the way")));
        }
        let is_again = is_numbered && header.seq < expected;
        if header.seq < expected && !self.pace.is_line {
            let seq = header.seq;
            return Err(Fault::Violation(format!("frame {seq} came again, where {expected} was due")));
        }
        // One that began anew may have more than it said then.
        let is_ahead = self.pace.is_line && header.ack > self.outbox.last_sent();
        if is_ahead {
            self.outbox.resume(header.ack)?;
            self.clocks.progressed = now;
        } else if self.outbox.acknowledge(header.ack)? {
            self.clocks.progressed = now;
        }
        self.clocks.heard = now;
        self.unheard_bytes = 0;
        if is_again {
            // It went on from where we were when we began anew.
            self.owe_ack(frame.payload.len(), now);
            return Ok(());
        }
        if is_numbered {
            self.received += 1;
            self.on_stream_frame(frame)?;
            self.owe_ack(frame.payload.len(), now);
            return Ok(());
        }
        let [] = frame.fields()?;
        if header.flags == FLAG_ASK {
            self.acks.by = Some(now);
        }
        Ok(())
    }

    fn owe_ack(&mut self, bytes: usize, now: Nanos) {
        self.acks.frames += 1;
        self.acks.bytes += bytes;
        let limits = self.outbox.limits();
        let many = self.acks.frames >= limits.window_frames / 4 || self.acks.bytes >= limits.window_bytes / 4;
        let by = if many { now } else { now + self.pace.ack_delay };
        self.acks.by = Some(self.acks.by.map_or(by, |earlier| earlier.min(by)));
    }

    fn on_stream_frame(&mut self, frame: &Frame<'_>) -> Handled {
        let wire = frame.header.stream;
        if frame.header.kind == Kind::Open {
            return self.on_open(wire, frame);
        }
        let id = match self.streams.find(wire)? {
            Found::Here(id) => id,
            // Sent before the peer heard that the stream is closed.
            Found::Gone => return Ok(()),
        };
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        match frame.header.kind {
            Kind::Accept => {
                let [] = frame.fields()?;
                if expect_awaiting(stream, "accepted")? {
                    stream.life = Life::Open;
                    self.streams.tell_readable(id, &mut self.events);
                }
            }
            Kind::Refuse => {
                let [reason] = frame.fields()?;
                let refusal = Refusal::of(reason)?;
                if expect_awaiting(stream, "refused")? {
                    stream.life = Life::Refused(refusal);
                    self.streams.tell_readable(id, &mut self.events);
                } else {
                    // There is nothing left to take back.
                    self.streams.remove(id);
                }
            }
            Kind::Data => {
                if stream.on_data(frame.payload, frame.place)? {
                    self.streams.tell_readable(id, &mut self.events);
                } else {
                    self.streams.schedule(id);
                }
            }
            Kind::Credit => {
                let window_max = self.outbox.limits().stream_bytes as u64;
                stream.on_credit(u64::from_le_bytes(frame.fields()?), window_max)?;
                self.streams.schedule(id);
            }
            Kind::End => {
                let [] = frame.fields()?;
                stream.on_end()?;
                self.streams.tell_readable(id, &mut self.events);
            }
            Kind::Close => {
                let is_held = stream.on_close(u64::from_le_bytes(frame.fields()?))?;
                self.streams.tell_both(id, &mut self.events);
                if !is_held {
                    self.streams.remove(id);
                }
            }
            Kind::Reset => {
                let [] = frame.fields()?;
                let is_held = stream.fail(&ResetCause::PeerClosed);
                self.streams.tell_both(id, &mut self.events);
                if !is_held {
                    self.streams.remove(id);
                }
            }
            Kind::Hello | Kind::Ack | Kind::Open => {}
        }
        Ok(())
    }

    fn on_open(&mut self, wire: u64, frame: &Frame<'_>) -> Handled {
        let ports: [u8; 8] = frame.fields()?;
        let [a, b, c, d, e, f, g, h] = ports;
        let (from, to) = (Port(u32::from_le_bytes([a, b, c, d])), Port(u32::from_le_bytes([e, f, g, h])));
        let counts = self.streams.counts_of_peer();
        if counts.known_to_peer >= STREAMS_MAX {
            return Err(Fault::Violation(format!("it opened more than {STREAMS_MAX} streams")));
        }
        let has_room = counts.here < STREAMS_MAX;
        let life = if has_room { Life::Called } else { Life::Rejecting(Refusal::TooManyStreams) };
        let id = self.streams.insert_of_peer(wire, Stream::new(life))?;
        if has_room {
            self.events.push_back(Event::Called { stream: id, from, to });
        } else {
            self.streams.schedule(id);
        }
        Ok(())
    }
}

/// Whether somebody waits for the answer that came: a call that was given up meanwhile is answered all the same.
fn expect_awaiting(stream: &Stream, what: &str) -> Result<bool, Fault> {
    match stream.life {
        Life::Awaiting => Ok(true),
        Life::Aborting => Ok(false),
        _ => Err(Fault::Violation(format!("it {what} a stream that was not waiting for that"))),
    }
}
