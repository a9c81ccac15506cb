//! What every end of a connection has: both halves, the liveness check, whether it has stopped for good, and how it sleeps and
//! wakes the other side.

use super::half::{OwnHalf, PeerHalf, State};
use super::layout::{AT_DATA_TICKET, AT_SPACE_TICKET};
use super::park::{Arm, Parker, Ringer, Wake};
use super::{Liveness, RingError, misbehaved};
use crate::error::ResetCause;
use crate::mem::{Memory, MemoryMut};

/// Bits of the peer's state after which it sends nothing more.
pub(super) const ENDED: State = State::SHUT_WR.or(State::CLOSED).or(State::RESET);
/// Bits of the peer's state after which it reads nothing more.
pub(super) const DEAF: State = State::SHUT_RD.or(State::CLOSED).or(State::RESET);

/// Of the end that waits for room and wakes whoever waits for data.
pub(super) type SendingSide<M, P, L> = Side<M, P, L, AT_SPACE_TICKET, AT_DATA_TICKET>;
/// Of the end that waits for data and wakes whoever waits for room.
pub(super) type ReceivingSide<M, P, L> = Side<M, P, L, AT_DATA_TICKET, AT_SPACE_TICKET>;

/// It parks with our ticket word `PARK` and rings for the peer's ticket word `RING`.
#[derive(Debug)]
pub(super) struct Side<M, P, L, const PARK: usize, const RING: usize> {
    pub(super) own: OwnHalf<M>,
    pub(super) peer: PeerHalf<P>,
    pub(super) live: L,
    /// Why nothing works here any more. Once set it stays.
    pub(super) stopped: Option<Box<RingError>>,
    pub(super) parker: Parker<PARK>,
    pub(super) ringer: Ringer<RING>,
    /// For senders: something was published, or the end said, since the last flush.
    pub(super) unflushed: bool,
}

impl<M, P, L, const PARK: usize, const RING: usize> Side<M, P, L, PARK, RING>
where
    M: MemoryMut,
    P: Memory,
    L: Liveness,
{
    pub(super) fn new(own: OwnHalf<M>, peer: PeerHalf<P>, live: L) -> Self {
        let (parker, ringer) = Default::default();
        Self { own, peer, live, stopped: None, parker, ringer, unflushed: false }
    }

    /// Publishes a ticket. Look for something to do again after this, then say to [`Side::armed`] whether there is nothing.
    pub(super) fn arm(&mut self) {
        self.parker.arm(&self.own.mem);
    }

    /// The end of arming: takes the ticket back unless there is reason to wait.
    pub(super) fn armed(&mut self, wait: bool) -> Arm {
        if wait {
            return Arm::Sleep;
        }
        self.disarm();
        Arm::Ready
    }

    #[inline]
    pub(super) fn disarm(&mut self) {
        self.parker.disarm(&self.own.mem);
    }

    /// For senders: whether the peer must be rung for what was published since the last flush. Fails if it will never be read.
    #[inline]
    pub(super) fn flush(&mut self) -> Result<Wake, RingError> {
        if !std::mem::take(&mut self.unflushed) {
            return Ok(Wake::NotNeeded);
        }
        M::fence(); // pairs with the fence in `Parker::arm`
        let wake = match self.ringer.sleeper(&self.peer.mem) {
            Some(ticket) => self.ringer.ring(ticket, &self.own.mem),
            None => Wake::NotNeeded,
        };
        self.check_reader()?;
        Ok(wake)
    }

    #[inline]
    pub(super) fn running(&self) -> Result<(), RingError> {
        match &self.stopped {
            None => Ok(()),
            Some(error) => Err(RingError::clone(error)),
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
        self.stopped = Some(Box::new(error.clone()));
        error
    }

    /// Says that we send nothing more. Flush afterwards.
    pub(super) fn shut_writing(&mut self) {
        if self.stopped.is_none() {
            self.own.set_state(State::SHUT_WR);
            self.stopped = Some(Box::new(RingError::Shutdown));
            self.unflushed = true;
        }
    }

    /// Says that we read nothing more.
    pub(super) fn shut_reading(&mut self) {
        if self.stopped.is_none() {
            self.own.set_state(State::SHUT_RD);
            self.stopped = Some(Box::new(RingError::Shutdown));
        }
    }
}
