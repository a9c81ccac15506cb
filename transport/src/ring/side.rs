//! What every end of a connection has: both halves, the liveness check, and whether it has stopped for good.

use super::half::{OwnHalf, PeerHalf, State};
use super::{Liveness, RingError, misbehaved};
use crate::error::ResetCause;
use crate::mem::{Memory, MemoryMut};

/// Bits of the peer's state after which it sends nothing more.
pub(super) const ENDED: State = State::SHUT_WR.or(State::CLOSED).or(State::RESET);
/// Bits of the peer's state after which it reads nothing more.
pub(super) const DEAF: State = State::SHUT_RD.or(State::CLOSED).or(State::RESET);

#[derive(Debug)]
pub(super) struct Side<M, P, L> {
    pub(super) own: OwnHalf<M>,
    pub(super) peer: PeerHalf<P>,
    pub(super) live: L,
    /// Why nothing works here any more. Once set it stays.
    pub(super) stopped: Option<RingError>,
}

impl<M: MemoryMut, P: Memory, L: Liveness> Side<M, P, L> {
    #[inline]
    pub(super) fn running(&self) -> Result<(), RingError> {
        match &self.stopped {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    #[inline]
    pub(super) fn check_alive(&mut self) -> Result<(), RingError> {
        match self.live.check() {
            Ok(()) => Ok(()),
            Err(cause) => Err(self.reset(cause)),
        }
    }

    /// For senders: fails if the peer will never read what we send.
    #[inline]
    pub(super) fn check_reader(&mut self) -> Result<(), RingError> {
        self.check_alive()?;
        if self.peer.state().any(DEAF) {
            return Err(self.reset(ResetCause::PeerClosed));
        }
        Ok(())
    }

    /// For receivers that have read everything and saw `state` with one of [`ENDED`].
    #[cold]
    pub(super) fn end_of_data(&mut self, state: State) -> Result<(), RingError> {
        self.check_alive()?;
        if state.any(State::RESET) || !state.any(State::SHUT_WR) {
            return Err(self.reset(ResetCause::PeerClosed));
        }
        Ok(())
    }

    /// The peer wrote what it must not: stops here, and tells it by our RESET bit.
    #[cold]
    pub(super) fn misbehaved(&mut self, what: impl FnOnce() -> String) -> RingError {
        self.own.set_state(State::RESET);
        self.reset(misbehaved(what()))
    }

    #[cold]
    pub(super) fn reset(&mut self, cause: ResetCause) -> RingError {
        let error = RingError::Reset(cause);
        self.stopped = Some(error.clone());
        error
    }

    /// Says that we send nothing more; whether that is news.
    pub(super) fn shut_writing(&mut self) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        self.own.set_state(State::SHUT_WR);
        self.stopped = Some(RingError::Shutdown);
        true
    }

    /// Says that we read nothing more.
    pub(super) fn shut_reading(&mut self) {
        if self.stopped.is_none() {
            self.own.set_state(State::SHUT_RD);
            self.stopped = Some(RingError::Shutdown);
        }
    }
}
