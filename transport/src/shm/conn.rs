//! One connection as its process holds it: what both directions, and every loan, keep alive.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use atomic_waker::AtomicWaker;

use crate::addr::Addr;
use crate::broker::protocol::{ClientMessage, Grant};
use crate::broker::record::{ConnKind, HalfRef};
use crate::error::{Error, ResetCause};
use crate::mem::{Memory, OwnSpan, PeerSpan};
use crate::pool::layout::{row, status};
use crate::pool::{Member, Pool};
use crate::ring::{HalfLayout, Liveness, OwnHalf, PeerHalf, RingError, State};
use crate::shm::client::Client;

/// The connection. When the last holder drops it, the peer is told, and the broker that both halves are out of use.
pub(super) struct Conn {
    pub(super) client: Arc<Client>,
    id: u64,
    pub(super) kind: ConnKind,
    pub(super) local: Addr,
    pub(super) remote: Addr,
    pub(super) peer: Member,
    /// Where our half is in the pool, and where the peer's.
    own_offset: u64,
    pub(super) peer_offset: u64,
    /// Of the process at the other end, if it is of this kernel.
    peer_bell: Option<Arc<OwnedFd>>,
    pub(super) own: OwnHalf<OwnSpan>,
    pub(super) theirs: PeerHalf<PeerSpan>,
    words: LiveWords,
    /// Where each [direction](Direction) sleeps, and whether it does.
    wakers: [AtomicWaker; 2],
    parked: [AtomicBool; 2],
    /// Dropping it tells the peer that data was lost.
    reset_on_drop: AtomicBool,
    /// The peer's bells that the reactor has seen.
    bells_seen: AtomicU64,
}

/// What a task of ours does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Reading,
    Writing,
}

/// The words that say whether the peer still is who it was, by their offsets in the pool; and what they, and [our own](OwnWords), said then.
#[derive(Clone, Debug)]
struct LiveWords {
    peer_status: usize,
    peer_fence: usize,
    own_generation: u64,
    peer_generation: u64,
}

/// The words that say whether we still are who we were, by their offsets in the pool. All connections of a process share them.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnWords {
    status: usize,
    fence: usize,
}

impl OwnWords {
    pub(super) fn new(pool: &Pool, own: Member) -> Self {
        let layout = &pool.layout;
        Self {
            status: layout.extent(own) + status::GENERATION,
            fence: layout.row(own) + row::FENCED_GENERATION,
        }
    }
}

impl LiveWords {
    fn new(pool: &Pool, grant: &Grant) -> Self {
        let layout = &pool.layout;
        Self {
            peer_status: layout.extent(grant.peer) + status::GENERATION,
            peer_fence: layout.row(grant.peer) + row::FENCED_GENERATION,
            own_generation: grant.own_generation,
            peer_generation: grant.peer_generation,
        }
    }

    #[inline]
    fn check(&self, pool: &PeerSpan, own: OwnWords) -> Result<(), ResetCause> {
        // What was copied before was copied before these loads, as in a seqlock. Free on x86-64.
        fence(Ordering::Acquire);
        let load = |offset| pool.load(offset, Ordering::Acquire);
        if load(self.peer_status) == self.peer_generation
            && load(self.peer_fence) < self.peer_generation
            && load(own.status) == self.own_generation
            && load(own.fence) < self.own_generation
        {
            return Ok(());
        }
        Err(self.cause(pool, own))
    }

    #[cold]
    fn cause(&self, pool: &PeerSpan, own: OwnWords) -> ResetCause {
        let load = |offset| pool.load(offset, Ordering::Acquire);
        if load(own.fence) >= self.own_generation {
            ResetCause::Fenced
        } else if load(own.status) != self.own_generation {
            ResetCause::BrokerDied
        } else {
            ResetCause::PeerKernelDied
        }
    }
}

impl Conn {
    /// Takes what the broker grants. If the halves are not what they should be, the connection is given back at once.
    pub(super) fn open(client: &Arc<Client>, grant: &Grant) -> Result<Arc<Self>, Error> {
        Self::try_open(client, grant).map_err(|cause| {
            client.send(&ClientMessage::Drop { conn: grant.conn });
            Error::Reset { peer: grant.remote, cause }
        })
    }

    fn try_open(client: &Arc<Client>, grant: &Grant) -> Result<Arc<Self>, ResetCause> {
        let pool = &client.pool;
        let strange = |what: String| ResetCause::PeerMisbehaved(what);
        if !pool.layout.has(grant.peer) {
            return Err(strange(format!("there is no member {}", grant.peer)));
        }
        let (offset, layout) = checked(pool, client.member, &grant.own_half)?;
        let span = pool.writable(offset, layout.total_len()).map_err(|e| strange(e.to_string()))?;
        let own = OwnHalf::existing(span, layout);
        let (offset, layout) = checked(pool, grant.peer, &grant.peer_half)?;
        let span = pool.whole().sub(offset, layout.total_len()).map_err(|e| strange(e.to_string()))?;
        let theirs = match PeerHalf::open(span, layout, grant.peer_half.nonce) {
            Ok(theirs) => theirs,
            Err(cause) => {
                own.set_state(State::RESET.or(State::CLOSED));
                return Err(cause);
            }
        };
        // Before whatever bell comes next is counted; whoever sleeps looks for itself first.
        let bells_seen = AtomicU64::new(theirs.bell_count());
        let conn = Arc::new(Self {
            client: Arc::clone(client),
            id: grant.conn,
            kind: grant.kind,
            local: grant.local,
            remote: grant.remote,
            peer: grant.peer,
            own_offset: grant.own_half.offset,
            peer_offset: grant.peer_half.offset,
            peer_bell: grant.peer_process.and_then(|process| client.neighbour(process)),
            own,
            theirs,
            words: LiveWords::new(pool, grant),
            wakers: Default::default(),
            parked: Default::default(),
            reset_on_drop: AtomicBool::new(true),
            bells_seen,
        });
        client.register(&conn);
        Ok(conn)
    }

    /// The broker's number for it.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// An application has it from here on: dropping it is an ordinary close, unless [`Conn::data_lost`].
    pub(super) fn adopt(&self) {
        self.reset_on_drop.store(false, Ordering::Relaxed);
    }

    /// What the peer sent will not all be read.
    pub(super) fn data_lost(&self) {
        self.reset_on_drop.store(true, Ordering::Relaxed);
    }

    /// How long to ask before sleeping, in ticks. Whoever shares the only processor with the peer need not ask: while it does, the
    /// peer cannot answer.
    pub(super) fn budget_ticks(&self) -> u64 {
        if self.peer == self.client.member && self.client.is_uniprocessor {
            0
        } else {
            self.client.budget_ticks
        }
    }

    /// Makes the peer look, after a bell was counted in our half. One system call.
    pub(super) fn ring(&self) {
        self.client.ring_for(self.own_offset, self.peer, self.peer_bell.as_deref());
    }

    /// As if the broker could not have passed us the peer's bell.
    #[cfg(test)]
    pub(super) fn ring_without_neighbour(&self) {
        self.client.ring_for(self.own_offset, self.peer, None);
    }

    #[inline]
    fn check(&self) -> Result<(), ResetCause> {
        if self.client.broker_died() {
            return Err(ResetCause::BrokerDied);
        }
        self.words.check(self.client.pool.whole(), self.client.own_words)
    }

    /// For the reactor: wakes the sleepers if there is something for them. Whether the peer has rung since the last look.
    pub(super) fn look(&self) -> bool {
        let bells = self.theirs.bell_count();
        let rung = self.bells_seen.swap(bells, Ordering::Relaxed) != bells;
        let ended = State::SHUT_WR.or(State::SHUT_RD).or(State::CLOSED).or(State::RESET);
        if rung || self.theirs.state().any(ended) || self.check().is_err() {
            self.wake();
        }
        rung
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.iter().any(|parked| parked.load(Ordering::Relaxed))
    }

    pub(super) fn waker(&self, direction: Direction) -> &AtomicWaker {
        &self.wakers[direction as usize]
    }

    pub(super) fn parked(&self, direction: Direction) -> &AtomicBool {
        &self.parked[direction as usize]
    }

    pub(super) fn wake(&self) {
        self.wakers.iter().for_each(AtomicWaker::wake);
    }

    /// Our broker has died: says so to the peer, whom nobody will ring.
    pub(super) fn broker_died(&self) {
        self.own.set_state(State::RESET);
        self.wake();
    }

    pub(super) fn error(&self, error: RingError) -> Error {
        match error {
            RingError::TooLong { len, max } => Error::TooLong { len, max },
            RingError::Shutdown => Error::Shutdown { peer: self.remote },
            RingError::Reset(cause) => Error::Reset { peer: self.remote, cause },
            other => Error::Invalid(format!("connection to {}: {other}", self.remote)),
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let reset = self.reset_on_drop.load(Ordering::Relaxed) || self.client.broker_died();
        self.own.set_state(if reset { State::CLOSED.or(State::RESET) } else { State::CLOSED });
        self.own.count_bell();
        self.ring();
        self.client.forget(self);
        // From here on both halves may be given to others.
        self.client.send(&ClientMessage::Drop { conn: self.id });
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// What the rings ask before they hand anything over; it also keeps the connection alive.
#[derive(Clone, Debug)]
pub(super) struct Live(pub(super) Arc<Conn>);

impl Liveness for Live {
    #[inline]
    fn check(&self) -> Result<(), ResetCause> {
        self.0.check()
    }
}

/// The place of a half in the heap of `member`. Our own broker has checked it; a second look costs nothing.
fn checked(pool: &Pool, member: Member, half: &HalfRef) -> Result<(usize, HalfLayout), ResetCause> {
    let strange = |what: String| ResetCause::PeerMisbehaved(what);
    let layout = HalfLayout::from_word(u64::from(half.layout)).map_err(|e| strange(e.to_string()))?;
    if !pool.layout.heap_contains(member, half.offset, layout.total_len() as u64) {
        return Err(strange(format!("a half at {:#x} is not in the heap of member {member}", half.offset)));
    }
    Ok((half.offset as usize, layout))
}
