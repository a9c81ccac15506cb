//! The broker's decisions, without I/O: requests and records in, outputs out, time as an argument.
//!
//! The shell ([`super::shell`]) feeds `handle_*` and carries out what [`BrokerCore::poll_output`] gives, **in order**: a half is made before
//! it is announced, and watched before its owner hears of it.
//!
//! # Life of a connection's half
//! ```text
//!           Connect                    Accept
//! (none) ───────────▶ Connecting ─────────────────▶ Established ◀─── Connect taken (acceptor)
//!                      │      │ Refuse, peer dead: free     │
//!        client gone,  │      └────────▶ (none)             │ client drops it or dies:
//!        deadline      ▼                                    ▼ Closed is sent
//!                  Abandoned ── Accept: Closed is sent ──▶ Leaving ── Closed received, or peer dead ──▶ free
//! ```
//! A half is freed only when nobody can read or write it any more: our process has dropped it (or is dead), and the peer has said CLOSED (or
//! its generation is dead). Until then its memory is held, however long that takes: never reclaimed by time.

mod connect;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
mod listen;
mod members;
#[cfg(test)]
mod model_tests;
mod relayed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::addr::{Addr, Cid, Port};
use crate::broker::heap::Heap;
use crate::broker::protocol::{ClientMessage, Failure, Reply, ServerMessage};
use crate::broker::quota::Held;
use crate::broker::record::{ConnKind, HalfRef, Record};
use crate::broker::{PeerQuota, Policy};
use crate::pool::Member;
use crate::pool::layout::Layout;
use crate::ring::HalfLayout;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use fuzz::core as fuzz_core;
pub(crate) use members::MemberInfo;
pub(crate) use relayed::{Ask, Elsewhere};

/// One attached process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(pub(crate) u64);

/// What the shell has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    ToClient(ClientId, ServerMessage),
    ToPeer(Member, Record),
    /// Make this part of our heap a fresh half.
    InitHalf(HalfRef),
    /// `client` gets this connection: note that its half is in its hands, and watch the peer's bell count for it. If the other end is a
    /// process of ours as well, that one rings it itself: introduce it.
    Granted {
        client: ClientId,
        conn: u64,
        own: HalfRef,
        peer: Member,
        peer_half: HalfRef,
        peer_process: Option<ClientId>,
    },
    /// The process that held this half is dead: say so in the half.
    ResetHalf(HalfRef),
    /// Wake the process: something about its connections changed.
    Wake(ClientId),
    /// Ask whoever relays: the kernel is none of the pool.
    Elsewhere(Elsewhere),
    /// Ring the doorbell of the peer.
    Bell(Member),
    /// The process no longer has this connection.
    Released {
        client: Option<ClientId>,
        conn: u64,
        half: HalfRef,
    },
}

/// All there is of a connection at rest. There may be very many: what it takes to make one is in [`Call`].
#[derive(Clone, Debug)]
struct Conn {
    state: ConnState,
    peer: Member,
    peer_generation: u64,
    /// The peer's number for it; 0 until ACCEPT.
    peer_id: u64,
    /// The peer will not read our half again.
    peer_closed: bool,
    half: HalfRef,
    /// Not yet accepted by the application: the listener it waits at.
    waits_at: Option<ListenerId>,
    /// Our half counts as held by the peer.
    is_charged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ConnState {
    /// CONNECT is sent; ACCEPT or REFUSE must come before the deadline.
    Connecting(Box<Call>),
    /// Nobody here waits any more; but the peer may be using our half until it answers.
    Abandoned,
    Established {
        client: ClientId,
    },
    /// Dropped here, CLOSED is sent; the peer may still read our half.
    Leaving,
}

/// A connect under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    client: ClientId,
    request: u64,
    deadline: Instant,
    ends: Ends,
}

/// What a connection connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    kind: ConnKind,
    local: Addr,
    remote: Addr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ListenerId(NonZeroU64);

#[derive(Clone, Debug)]
struct Listener {
    id: ListenerId,
    client: ClientId,
    kind: ConnKind,
    layout: HalfLayout,
    backlog: u32,
    waiting: u32,
    name: Option<String>,
}

/// A RESOLVE under way.
#[derive(Clone, Debug)]
struct Question {
    client: ClientId,
    request: u64,
    peer: Member,
    service: String,
    deadline: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    /// May listen on ports below 1024.
    privileged: bool,
}

/// Counts for [`BrokerStatus`](crate::broker::BrokerStatus).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CoreCounts {
    pub(crate) clients: usize,
    pub(crate) listeners: usize,
    pub(crate) connections: usize,
    pub(crate) heap_bytes: u64,
    pub(crate) heap_free_bytes: u64,
    pub(crate) bad_records: u64,
}

/// Makes sure that a part of the pool (offset and length in bytes) has pages behind it; `false`: the system has none left.
pub(crate) struct Backing(pub(crate) Box<dyn FnMut(u64, u64) -> bool + Send>);

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backing")
    }
}

/// The decisions of one broker. See the module.
#[derive(Debug)]
pub(crate) struct BrokerCore {
    member: Member,
    generation: u64,
    layout: Layout,
    heap: Heap,
    backing: Backing,
    policy: Policy,
    quota: PeerQuota,
    members: Vec<Option<MemberInfo>>,
    /// What connections with each member hold of our heap.
    held: Vec<Held>,
    clients: HashMap<ClientId, Client>,
    conns: HashMap<u64, Conn>,
    listeners: BTreeMap<Port, Listener>,
    /// Somebody relays to kernels that are not in the pool.
    is_relayed: bool,
    /// Relayed connections that wait to be accepted, by number.
    relayed: HashMap<u64, ListenerId>,
    names: BTreeMap<String, Port>,
    questions: HashMap<u64, Question>,
    /// When which connect or question under way has taken too long.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Numbers connections, listeners and questions. Never reused within a generation.
    next_id: NonZeroU64,
    next_ephemeral: Port,
    /// Records from us to us: both sides of a connection within this kernel.
    loopback: VecDeque<Record>,
    outputs: VecDeque<Output>,
    /// Halves, by offset, that their process may still write although we have lost sight of it; with the length to
    /// release when that ends, once nothing else holds them.
    quarantined: HashMap<u64, Option<u64>>,
    bad_records: u64,
}

impl BrokerCore {
    pub(crate) fn new(
        member: Member,
        generation: u64,
        layout: Layout,
        policy: Policy,
        quota: PeerQuota,
        backing: Backing,
    ) -> Self {
        let heap_start = (layout.extent(member) + layout.heap_offset) as u64;
        Self {
            member,
            generation,
            layout,
            heap: Heap::new(heap_start, layout.heap_len() as u64),
            backing,
            policy,
            quota,
            members: vec![None; layout.geometry.members_max as usize],
            held: vec![Held::default(); layout.geometry.members_max as usize],
            clients: HashMap::new(),
            conns: HashMap::new(),
            listeners: BTreeMap::new(),
            is_relayed: false,
            relayed: HashMap::new(),
            names: BTreeMap::new(),
            questions: HashMap::new(),
            deadlines: BTreeSet::new(),
            next_id: NonZeroU64::MIN,
            next_ephemeral: Port::EPHEMERAL_FIRST,
            loopback: VecDeque::new(),
            outputs: VecDeque::new(),
            quarantined: HashMap::new(),
            bad_records: 0,
        }
    }

    /// The next thing to do. Call until `None` after every `handle_*`.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn handle_client(&mut self, client: ClientId, privileged: bool) {
        self.clients.insert(client, Client { privileged });
    }

    pub(crate) fn handle_client_message(&mut self, now: Instant, client: ClientId, message: ClientMessage) {
        if !self.clients.contains_key(&client) {
            return;
        }
        match message {
            ClientMessage::Hello { .. } => {} // the shell's affair
            ClientMessage::Connect { request, addr, kind, layout, timeout_ms } => {
                let result = self.connect(now, client, request, addr, kind, layout, timeout_ms);
                if let Err(failure) = result {
                    let within = Duration::from_millis(timeout_ms);
                    self.connect_elsewhere(client, request, addr, kind, within, failure);
                }
            }
            ClientMessage::Cancel { request } => self.cancel(client, request),
            ClientMessage::Listen { request, port, kind, backlog, name, layout } => {
                let result = self.listen(client, port, kind, backlog, name, layout).map(Reply::Listening);
                self.answer(client, request, result);
            }
            ClientMessage::Unlisten { port } => self.unlisten(client, port),
            ClientMessage::Accepted { conn } => self.accepted(client, conn),
            ClientMessage::Resolve { request, name } => self.resolve(now, client, request, &name),
            ClientMessage::Drop { conn } => self.drop_conn(client, conn),
        }
        self.run_loopback();
    }

    /// The process is gone: it has exited, or closed its attachment and with it every connection.
    pub(crate) fn handle_client_gone(&mut self, client: ClientId) {
        self.clients.remove(&client);
        self.unlisten_all(client);
        self.drop_questions(|question| question.client == client);
        let held: Vec<u64> =
            self.conns.iter().filter(|(_, c)| c.client() == Some(client)).map(|(id, _)| *id).collect();
        for id in held {
            self.reset_conn(id);
        }
        self.run_loopback();
    }

    /// A record from a peer of that generation, which the caller has checked to be alive.
    pub(crate) fn handle_record(&mut self, peer: Member, record: Record) {
        self.take_record(peer, record);
        self.run_loopback();
    }

    pub(crate) fn handle_bad_record(&mut self) {
        self.bad_records += 1;
    }

    /// When [`BrokerCore::handle_timeout`] has something to do next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Lets deadlines pass.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.expire_connect(id);
            self.expire_question(id);
        }
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Keeps part of the heap out of use: a process of an earlier generation may still write there.
    pub(crate) fn withhold(&mut self, offset: u64, len: u64) {
        self.heap.withhold(offset, len);
    }

    /// Ends [`BrokerCore::withhold`].
    pub(crate) fn restore(&mut self, offset: u64, len: u64) {
        self.heap.restore(offset, len);
    }

    /// The halves that are in the hands of this process.
    pub(crate) fn halves_of(&self, client: ClientId) -> Vec<HalfRef> {
        let is_its = |conn: &&Conn| conn.state == ConnState::Established { client };
        self.conns.values().filter(is_its).map(|conn| conn.half).collect()
    }

    /// The half at `offset`, which is granted, is not to be given to anybody else until [`BrokerCore::end_quarantine`].
    pub(crate) fn quarantine(&mut self, offset: u64) {
        self.quarantined.entry(offset).or_insert(None);
    }

    /// Ends [`BrokerCore::quarantine`].
    pub(crate) fn end_quarantine(&mut self, offset: u64) {
        if let Some(Some(len)) = self.quarantined.remove(&offset) {
            self.heap.release(offset, len);
        }
    }

    pub(crate) fn services(&self) -> Vec<(String, Port)> {
        self.names.iter().map(|(name, port)| (name.clone(), *port)).collect()
    }

    pub(crate) fn counts(&self) -> CoreCounts {
        CoreCounts {
            clients: self.clients.len(),
            listeners: self.listeners.len(),
            connections: self.conns.len(),
            heap_bytes: self.heap.len(),
            heap_free_bytes: self.heap.free_bytes(),
            bad_records: self.bad_records,
        }
    }

    /// What connections with `peer` hold of our heap.
    pub(crate) fn held_by(&self, peer: Member) -> Held {
        self.held[peer.index()]
    }

    fn take_record(&mut self, peer: Member, record: Record) {
        match record {
            Record::Connect { from, kind, half, src_port, dst_port } => {
                self.handle_connect(peer, from, kind, half, Port(src_port), Port(dst_port));
            }
            Record::Accept { from, to, half } => self.handle_accept(peer, from, to, half),
            Record::Refuse { to, code } => self.handle_refuse(peer, to, code),
            Record::Closed { to } => self.handle_closed(peer, to),
            Record::Resolve { from, name } => {
                let port = self.names.get(&name).map(|port| port.0);
                self.send(peer, Record::Resolved { to: from, port });
            }
            Record::Resolved { to, port } => self.handle_resolved(peer, to, port),
        }
    }

    fn run_loopback(&mut self) {
        while let Some(record) = self.loopback.pop_front() {
            self.take_record(self.member, record);
        }
    }

    fn send(&mut self, peer: Member, record: Record) {
        if peer == self.member {
            self.loopback.push_back(record);
        } else {
            self.outputs.push_back(Output::ToPeer(peer, record));
        }
    }

    fn answer(&mut self, client: ClientId, request: u64, result: Result<Reply, Failure>) {
        self.outputs.push_back(Output::ToClient(client, ServerMessage::Done { request, result }));
    }

    fn fail(&mut self, client: ClientId, request: u64, failure: Failure) {
        self.answer(client, request, Err(failure));
    }

    fn fresh_id(&mut self) -> NonZeroU64 {
        let id = self.next_id;
        self.next_id = id.saturating_add(1);
        id
    }

    fn own_cid(&self) -> Cid {
        self.members[self.member.index()].as_ref().map_or(Cid::LOCAL, |info| info.cid)
    }
}

impl Conn {
    fn client(&self) -> Option<ClientId> {
        match &self.state {
            ConnState::Connecting(call) => Some(call.client),
            ConnState::Established { client } => Some(*client),
            ConnState::Abandoned | ConnState::Leaving => None,
        }
    }

    /// Our half no longer counts as held by the peer.
    fn discharge(&mut self, held: &mut [Held], heap: &Heap) {
        if std::mem::take(&mut self.is_charged) {
            let held = &mut held[self.peer.index()];
            *held = held.without(heap.taken(self.half.offset, half_len(&self.half)));
        }
    }
}

/// The length of the half, whose layout we have validated.
fn half_len(half: &HalfRef) -> u64 {
    HalfLayout::from_word(u64::from(half.layout)).map_or(0, |layout| layout.total_len() as u64)
}
