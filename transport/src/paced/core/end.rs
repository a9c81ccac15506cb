//! Time-outs, and the end of a session.

use super::{Event, Link, Nanos, Socket};
use crate::error::ResetCause;
use crate::incarnation::Incarnation;

impl Link {
    /// When [`Link::handle_timeout`] has something to do if nothing else happens.
    pub(crate) fn next_timeout(&self) -> Option<Nanos> {
        let give_up = self.peer.map(|_| self.clocks.heard + self.pace.give_up);
        // While a frame is held up, no other goes.
        let speaks = self.socket == Socket::Up && !self.is_held_up() && !self.is_line_full();
        let [ack, speak] = if speaks { [self.acks.by, Some(self.speak_by())] } else { [None, None] };
        let silence = self.silent_since().map(|since| since + self.pace.silence);
        let greets = self.greets_again_at();
        [give_up, silence, self.writing.refused_until, ack, speak, greets].into_iter().flatten().min()
    }

    /// Ends what has been silent for too long.
    pub(crate) fn handle_timeout(&mut self, now: Nanos) {
        let ms = |nanos: u64| nanos / 1_000_000;
        if self.peer.is_some() && now >= self.clocks.heard + self.pace.give_up {
            self.end_session(&ResetCause::PeerKernelDied, false);
            self.begin_another_life();
            if self.socket != Socket::None {
                self.drop_socket(format!("the peer has been silent for {} ms", ms(self.pace.give_up)));
            }
            return;
        }
        if self.silent_since().is_some_and(|since| now >= since + self.pace.silence) {
            self.drop_socket(format!("the peer said nothing on it for {} ms", ms(self.pace.silence)));
        }
        self.greet_again(now);
    }

    /// Since when the present socket brought nothing.
    fn silent_since(&self) -> Option<Nanos> {
        match self.socket {
            Socket::None => None,
            Socket::Greeting { since } => Some(since),
            Socket::Up => Some(self.clocks.heard),
        }
    }

    /// When we say something even if there is nothing to say: sooner while something waits for its acknowledgement.
    pub(super) fn speak_by(&self) -> Nanos {
        let keepalive = self.clocks.spoke + self.pace.keepalive;
        if self.outbox.is_waiting() {
            keepalive.min(self.clocks.progressed + self.pace.ask)
        } else {
            keepalive
        }
    }

    /// Ends the session and every stream, for a reason outside of the protocol.
    pub(crate) fn fail_all(&mut self, cause: &ResetCause) {
        self.end_session(cause, false);
        self.begin_another_life();
        self.socket_lost();
    }

    pub(super) fn end_for_violation(&mut self, what: String) {
        let why = format!("the peer broke the protocol: {what}");
        self.end_session(&ResetCause::PeerMisbehaved(what), false);
        self.begin_another_life();
        self.socket_lost();
        self.events.push_back(Event::CloseSocket { why, is_violation: true });
    }

    /// Fails every stream; calls that have not gone yet may be kept for the next session.
    pub(super) fn end_session(&mut self, cause: &ResetCause, keeps_calls: bool) {
        self.streams.end_session(cause, keeps_calls, &mut self.events);
        // What went may lie there unread.
        self.unheard_bytes += self.outbox.bytes_under_way();
        self.outbox.clear();
        self.received = 0;
        self.has_begun = false;
        self.acks = super::Acks::default();
        if self.peer.take().is_some() {
            self.events.push_back(Event::Ended(cause.clone()));
        }
    }

    /// The peer may believe that the session goes on: the next HELLO tells it otherwise.
    fn begin_another_life(&mut self) {
        let life = u128::from_le_bytes(self.life.0).wrapping_add(1);
        self.life = Incarnation(life.to_le_bytes());
    }
}
