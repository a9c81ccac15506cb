//! The broker's shell: one Tokio task that feeds the core from sockets, doorbells, shared memory and a timer, and carries
//! out what it decides.

mod alarm;
mod clients;
mod members;
mod pool_fd;
mod relayed;
mod start;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::addr::{Cid, Port};
use crate::bells::{Board, Hearers};
use crate::broker::core::{BrokerCore, ClientId, Elsewhere, Output};
use crate::broker::link::ControlLink;
use crate::broker::protocol::{self, ClientMessage};
use crate::broker::record::{ConnKind, HalfRef};
use crate::broker::{BrokerStatus, MemberStatus, PeerQuota, Policy, locks};
use crate::doorbell::{self, BellPipe, Line, Lines};
use crate::error::{Error, Result};
use crate::incarnation::Incarnation;
use crate::mem::{OwnSpan, PeerSpan};
use crate::pool::{Member, MemberRow, Pool, RowWriter};
use crate::relay::{Answered, Caller, Refusal, RelaySocket};
use crate::ring::{HalfLayout, OwnHalf, PeerHalf, State};
use crate::unix_socket::SocketFile;

use alarm::{Alarm, Due};
use clients::ClientHandle;
use pool_fd::PoolFd;
pub(crate) use start::start;

/// Events that may wait; senders then wait too.
const EVENTS_MAX: usize = 1024;
/// Events taken before the loop looks at its bells and its timer again.
const EVENTS_BATCH: usize = 64;

/// What the tasks around the shell tell it.
#[derive(Debug)]
pub(crate) enum Event {
    /// A process said hello and may attach.
    Attach {
        stream: UnixStream,
        privileged: bool,
    },
    Message(ClientId, ClientMessage),
    Gone(ClientId),
    /// Bells came over the line to this member.
    Bells(Member, Vec<Member>),
    /// The line to this member, if it still is that one, has ended.
    LineDown(Member, u64),
}

/// What the owner of the broker asks of it.
#[derive(Debug)]
pub(crate) enum Command {
    Adopt(std::os::unix::net::UnixStream),
    AddLine(Member, Line),
    RemoveLine(Member),
    Fence(Member, u64, oneshot::Sender<Result<()>>),
    Admit {
        member: Member,
        cid: Cid,
        name: String,
        incarnation: Incarnation,
        done: oneshot::Sender<Result<()>>,
    },
    Retire(Member, oneshot::Sender<Result<()>>),
    SetPolicy(Policy, oneshot::Sender<()>),
    /// Somebody relays to kernels that are not in the pool, and will be told what is wanted of them.
    RelayElsewhere(mpsc::UnboundedSender<Elsewhere>),
    /// What came of something that was wanted there.
    AnswerElsewhere(ClientId, u64, Answered),
    /// Somebody there calls.
    Arrive(Caller, Port, ConnKind, oneshot::Sender<Result<RelaySocket, Refusal>>),
    Services(oneshot::Sender<Vec<(String, Port)>>),
    Status(oneshot::Sender<BrokerStatus>),
    Stop(oneshot::Sender<()>),
}

/// A connection whose peer rings by counting a bell in its half.
#[derive(Debug)]
struct Watch {
    conn: u64,
    client: ClientId,
    half: PeerHalf<PeerSpan>,
    bells: u64,
}

/// Who reads a line.
#[derive(Debug)]
struct LineReader {
    task: JoinHandle<()>,
    id: u64,
}

/// What belongs to one generation: made anew when the primary has fenced us.
#[derive(Debug)]
struct Life {
    generation: u64,
    core: BrokerCore,
    /// By member; `None` at our own place.
    links: Vec<Option<ControlLink<OwnSpan, PeerSpan>>>,
    clients: HashMap<ClientId, ClientHandle>,
    /// By member; `None` while nobody here has a connection with it.
    watches: Vec<Option<Box<Hearers<PeerSpan, Watch>>>>,
    /// Which half each connection's bells are counted for, by connection.
    watched: HashMap<u64, (Member, u64)>,
    /// Peers with records to flush.
    dirty: BTreeSet<Member>,
    /// Parts of the heap that processes of an earlier generation may write.
    withheld: Vec<std::ops::Range<u64>>,
    /// Halves whose process is gone from our socket, but not dead.
    quarantined: Vec<HalfRef>,
}

#[derive(Debug)]
pub(crate) struct Shell {
    pool: Pool,
    pool_fd: PoolFd,
    member: Member,
    status: OwnSpan,
    /// Our extent from the control blocks to the end of the heap.
    extent: OwnSpan,
    board: Board<OwnSpan>,
    extent_offset: u64,
    row_writer: Option<RowWriter>,
    rows: Vec<(u64, Option<MemberRow>)>,
    life: Life,
    lines: Lines,
    line_readers: HashMap<Member, LineReader>,
    /// Whether there is a line to everybody to whom there can be one; `None`: not known since rows or lines have changed.
    hears_all: Option<bool>,
    pipe: BellPipe,
    recheck: Duration,
    recheck_with_lines: Duration,
    policy: Policy,
    quota: PeerQuota,
    /// Whoever relays to kernels that are not in the pool.
    relay: Option<mpsc::UnboundedSender<Elsewhere>>,
    socket: Option<SocketFile>,
    tasks: Vec<JoinHandle<()>>,
    events: mpsc::Sender<Event>,
    next_id: u64,
    found_by_timer: u64,
    /// Somebody rang for a process of this kernel, and it is not known for which.
    has_own_bell: bool,
}

impl Shell {
    /// Runs until it is told to stop or its owner is gone.
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        let mut alarm = Alarm::new(self.recheck_period());
        let mut stopped = None;
        loop {
            alarm.set(self.recheck_period(), self.life.core.poll_timeout());
            tokio::select! {
                event = events.recv() => {
                    // We hold a sender ourselves, so there always is an event to come.
                    if let Some(event) = event {
                        self.handle_event(event);
                        for _ in 1..EVENTS_BATCH {
                            let Ok(event) = events.try_recv() else { break };
                            self.handle_event(event);
                        }
                    }
                }
                targets = self.pipe.bells() => targets.into_iter().for_each(|target| self.ring(target)),
                command = commands.recv() => match command {
                    Some(Command::Stop(done)) => {
                        stopped = Some(done);
                        break;
                    }
                    Some(command) => self.handle_command(command),
                    None => break,
                },
                due = alarm.wait() => self.handle_alarm(due),
            }
            self.drain();
        }
        self.stop();
        // With the lock on its member: whoever has waited may start the next one.
        drop(self);
        if let Some(done) = stopped {
            let _ = done.send(());
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Attach { stream, privileged } => {
                self.refresh_members();
                if let Err(error) = self.attach(stream, privileged) {
                    tracing::warn!(%error, "a process could not attach");
                }
            }
            Event::Message(client, message) => {
                self.refresh_for(&message);
                // The clock of the alarm, which tests may stop.
                let now = tokio::time::Instant::now().into_std();
                self.life.core.handle_client_message(now, client, message);
            }
            Event::Gone(client) => self.lose_client(client),
            Event::Bells(line, bells) => self.handle_line_bells(line, &bells),
            Event::LineDown(member, id) => {
                if self.line_readers.get(&member).is_some_and(|reader| reader.id == id) {
                    tracing::debug!(%member, "doorbell line ended");
                    self.remove_line(member);
                }
            }
        }
        self.drain();
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Adopt(stream) => self.adopt(stream),
            Command::AddLine(member, line) => self.add_line(member, line),
            Command::RemoveLine(member) => self.remove_line(member),
            Command::Fence(member, generation, done) => {
                let _ = done.send(self.fence(member, generation));
            }
            Command::Admit { member, cid, name, incarnation, done } => {
                let _ = done.send(self.admit(member, cid, &name, incarnation));
            }
            Command::Retire(member, done) => {
                let _ = done.send(self.retire(member));
            }
            Command::SetPolicy(policy, done) => {
                self.policy.clone_from(&policy);
                self.life.core.set_policy(policy);
                let _ = done.send(());
            }
            Command::RelayElsewhere(relay) => self.relay_elsewhere(relay),
            Command::AnswerElsewhere(client, request, answered) => {
                self.answer_elsewhere(client, request, answered);
            }
            Command::Arrive(caller, port, kind, done) => {
                let _ = done.send(self.arrive(&caller, port, kind));
            }
            Command::Services(answer) => {
                let _ = answer.send(self.life.core.services());
            }
            Command::Status(answer) => {
                let _ = answer.send(self.status_report());
            }
            Command::Stop(_) => {} // taken by `run`
        }
    }

    fn handle_alarm(&mut self, due: Due) {
        if due.look_around {
            self.look_around();
        }
        self.life.core.handle_timeout(due.now);
    }

    /// Everything that a bell would have told us, had it not been lost; memory that has become free.
    fn look_around(&mut self) {
        self.refresh_members();
        self.drain();
        for member in self.pool.layout.members() {
            if self.scan(member) | self.sweep(member) {
                self.found_by_timer += 1;
            }
        }
        self.life.clients.values_mut().for_each(ClientHandle::unlock_unused);
        self.recover_memory();
        self.lines.retry();
        // A peer's ring that was full may have room by now.
        let full: Vec<Member> = self
            .pool
            .layout
            .members()
            .filter(|m| self.life.links[m.index()].as_ref().is_some_and(ControlLink::has_pending))
            .collect();
        self.life.dirty.extend(full);
    }

    /// Carries out what the core wants, then flushes what was said to peers, until nothing is left to do.
    fn drain(&mut self) {
        self.drain_outputs();
        while let Some(peer) = self.life.dirty.pop_first() {
            if self.life.links[peer.index()].as_mut().is_some_and(ControlLink::flush) {
                self.ring(peer);
            }
            self.drain_outputs();
        }
        if std::mem::take(&mut self.has_own_bell) {
            self.ring_own_processes();
        }
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.life.core.poll_output() {
            match output {
                Output::ToClient(client, message) => self.tell(client, &message),
                Output::ToPeer(peer, record) => {
                    if let Some(link) = &mut self.life.links[peer.index()] {
                        link.send(record);
                        self.life.dirty.insert(peer);
                    }
                }
                Output::InitHalf(half) => self.init_half(&half),
                Output::Granted { client, conn, own, peer, peer_half, peer_process } => {
                    self.granted(client, own);
                    if peer == self.member {
                        self.introduce(client, peer_process);
                    } else {
                        self.watch(client, conn, peer, &peer_half);
                    }
                }
                Output::ResetHalf(half) => self.reset_half(&half),
                Output::Wake(client) => self.wake(client),
                Output::Elsewhere(elsewhere) => self.ask_elsewhere(elsewhere),
                Output::Bell(peer) => {
                    self.life.dirty.insert(peer);
                    self.ring(peer);
                }
                Output::Released { client, conn, half } => self.released(client, conn, &half),
            }
        }
    }

    /// Makes the broker of `target` look at what we have for it.
    fn ring(&mut self, target: Member) {
        if target == self.member {
            // Processes ring each other themselves, unless one of them could not be given the other's bell.
            self.has_own_bell = true;
        } else if self.member == Member::PRIMARY {
            self.lines.ring(target, self.member);
        } else {
            self.lines.ring(Member::PRIMARY, target);
        }
    }

    /// Bells for us, that came over the line to `line`. In the primary, those for others have been passed on already.
    fn handle_line_bells(&mut self, line: Member, bells: &[Member]) {
        let layout = self.pool.layout;
        for bell in bells.iter().filter(|bell| layout.has(**bell)) {
            // The primary's line says who rings. Its own bell may also mean that somebody was fenced.
            self.refresh_members();
            self.drain();
            self.scan(if self.member == Member::PRIMARY { line } else { *bell });
        }
    }

    fn span(&self, half: &HalfRef) -> Option<(OwnSpan, HalfLayout)> {
        let layout = HalfLayout::from_word(u64::from(half.layout)).ok()?;
        let offset = usize::try_from(half.offset.checked_sub(self.extent_offset)?).ok()?;
        Some((self.extent.sub(offset, layout.total_len()).ok()?, layout))
    }

    fn init_half(&self, half: &HalfRef) {
        if let Some((span, layout)) = self.span(half) {
            OwnHalf::init(span, layout, half.nonce);
        }
    }

    fn reset_half(&self, half: &HalfRef) {
        if let Some((span, layout)) = self.span(half) {
            let own = OwnHalf::existing(span, layout);
            own.set_state(State::RESET.or(State::CLOSED));
            own.count_bell();
            self.board.count(half.offset);
        }
    }

    fn granted(&mut self, client: ClientId, own: HalfRef) {
        let range = range(&own);
        if !self.life.clients.get(&client).is_some_and(|handle| handle.has_locked(&range)) {
            self.life.clients.values_mut().for_each(|other| other.unlock(&range));
        }
        if let Some(handle) = self.life.clients.get_mut(&client) {
            handle.hold(&own);
        }
    }

    /// Looks from here on whether a peer in another kernel has rung for this connection.
    fn watch(&mut self, client: ClientId, conn: u64, peer: Member, peer_half: &HalfRef) {
        let Ok(layout) = HalfLayout::from_word(u64::from(peer_half.layout)) else { return };
        let span = self.pool.whole().sub(peer_half.offset as usize, layout.total_len());
        // If it is not what it should be, the process finds out itself.
        if let Ok(half) = span
            .map_err(|_| ())
            .and_then(|span| PeerHalf::open(span, layout, peer_half.nonce).map_err(|_| ()))
        {
            let bells = half.bell_count();
            let hearers = self.life.watches[peer.index()]
                .get_or_insert_with(|| Box::new(Hearers::new(self.pool.board(peer))));
            hearers.insert(peer_half.offset, Watch { conn, client, half, bells });
            self.life.watched.insert(conn, (peer, peer_half.offset));
        }
    }

    fn released(&mut self, client: Option<ClientId>, conn: u64, half: &HalfRef) {
        if let Some((peer, peer_half)) = self.life.watched.remove(&conn)
            && let Some(hearers) = &mut self.life.watches[peer.index()]
        {
            hearers.remove(peer_half, |watch| watch.conn == conn);
        }
        if let Some(handle) = client.and_then(|client| self.life.clients.get_mut(&client)) {
            handle.let_go(half);
        }
    }

    fn wake(&self, client: ClientId) {
        if let Some(handle) = self.life.clients.get(&client) {
            doorbell::ring_eventfd(&handle.eventfd);
        }
    }

    /// Memory is free again once the kernel says that nobody holds it.
    fn recover_memory(&mut self) {
        let is_locked = |range: std::ops::Range<u64>| {
            locks::first_locked(self.pool_fd.locks(), range).is_ok_and(|locked| locked.is_some())
        };
        let (held, free): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.life.withheld).into_iter().partition(|range| is_locked(range.clone()));
        self.life.withheld = held;
        for range in free {
            self.life.core.restore(range.start, range.end - range.start);
        }
        let (held, free): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.life.quarantined).into_iter().partition(|half| is_locked(range(half)));
        self.life.quarantined = held;
        for half in free {
            self.life.core.end_quarantine(half.offset);
        }
    }

    fn status_report(&self) -> BrokerStatus {
        let counts = self.life.core.counts();
        let members = self.pool.layout.members().filter_map(|member| {
            let info = self.life.core.member(member)?;
            let held = self.life.core.held_by(member);
            Some(MemberStatus {
                member,
                cid: info.cid,
                name: info.name.clone(),
                generation: info.generation,
                line: self.lines.has(member),
                connections: held.connections as usize,
                heap_bytes: held.bytes,
            })
        });
        BrokerStatus {
            generation: self.life.generation,
            clients: counts.clients,
            listeners: counts.listeners,
            connections: counts.connections,
            heap_bytes: counts.heap_bytes,
            heap_free_bytes: counts.heap_free_bytes,
            found_by_timer: self.found_by_timer,
            bad_records: counts.bad_records,
            members: members.collect(),
        }
    }
}

fn range(half: &HalfRef) -> std::ops::Range<u64> {
    let len = HalfLayout::from_word(u64::from(half.layout)).map_or(0, |layout| layout.total_len() as u64);
    half.offset..half.offset + len
}

/// A message, framed; one that cannot be encoded is a bug of ours and ends the attachment instead of the broker.
fn frame<T: serde::Serialize>(message: &T) -> Option<Vec<u8>> {
    protocol::encode(message).inspect_err(|error| tracing::error!(%error, "message to a process lost")).ok()
}

fn only_primary(attempt: &str) -> Error {
    Error::Invalid(format!("{attempt} is for the broker of the primary kernel"))
}
