//! Connections between two kernels, checked by Stateright in every order in which things can happen.
//!
//! The model drives the code that runs: [`BrokerCore`] and the control rings between brokers over model memory. What is the model's own
//! is the shell around them, reduced to one turn ([`World::look`]), the processes, and the few words of the pool that say who is alive.
//!
//! - A bell may be lost: a broker looks at any later time, or not before its timer, which is the same.
//! - A broker, a process, or a kernel may die at any time, a broker also in the midst of its turn; it may start again at any time.
//! - A kernel may be fenced at any time after its death, or while it is frozen.
//! - A connect may be cancelled, or run out of time; a connection may be dropped by either side at any time.
//!
//! A state is the history that led to it, told apart by what it led to: the parts need not be cloned, only made again.
//!
//! Checked at every step: no memory is free that a process may still write, and no half is made where a process that lives may still write, or a peer that thinks its connection alive may still read.
//! From every state, if everybody looks, whoever is dead is started or fenced, and deadlines pass: nobody waits for an answer, whoever waits on a
//! connection has a living peer or sees its end, and when all is dropped every byte of every heap is free.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use stateright::{Checker, Model, Property};

use super::*;
use crate::broker::link::{ControlLink, Taken};
use crate::mem::{Memory, ModelMemory};
use crate::pool::Geometry;
use crate::pool::layout::control::{slots, stride};
use crate::ring::State as HalfState;

const PORT: Port = Port(80);
const STREAM: u32 = 12 << 8;
const MEMBERS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The broker of this kernel takes its turn: bells, records, who came and went.
    Look(usize),
    /// It dies in the midst of that, after so many of its decisions were carried out.
    LookAndDie(usize, u8),
    Connect,
    Cancel,
    /// The process of this kernel drops its oldest connection.
    Drop(usize),
    Expire(usize),
    ProcessDies(usize),
    BrokerDies(usize),
    KernelDies(usize),
    Start(usize),
    /// The primary declares kernel 1 dead.
    Fence,
}

/// One process's hold on a connection.
#[derive(Clone, Debug)]
struct Hold {
    conn: u64,
    own: HalfRef,
    theirs: HalfRef,
    own_generation: u64,
    peer_generation: u64,
    /// The broker that granted it is gone, and the process knows.
    is_orphan: bool,
}

/// The one process of a kernel.
#[derive(Debug, Default)]
struct Process {
    is_alive: bool,
    /// As the broker knows it; `None`: not attached.
    client: Option<ClientId>,
    asks: bool,
    holds: Vec<Hold>,
}

struct Broker {
    core: BrokerCore,
    link: ControlLink<ModelMemory, ModelMemory>,
    peer_generation: u64,
    /// Its process has hung up, and it has not noticed.
    gone: Vec<ClientId>,
    withheld: Vec<HalfRef>,
}

struct World {
    now: Instant,
    blocks: [ModelMemory; 2],
    generation: [u64; 2],
    fenced: [u64; 2],
    brokers: [Option<Broker>; 2],
    processes: [Process; 2],
    /// The halves in the pool: nonce and state bits.
    halves: BTreeMap<(usize, u64), (u64, HalfState)>,
    clients: u64,
    violation: Option<String>,
    /// Decisions that the broker which takes its turn still carries out.
    fuel: Option<u8>,
    deaths: u8,
    connects: u8,
    cancels: u8,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Instant::now(),
            blocks: [ModelMemory::new(stride(slots(MEMBERS))), ModelMemory::new(stride(slots(MEMBERS)))],
            generation: [0; 2],
            fenced: [0; 2],
            brokers: [None, None],
            processes: Default::default(),
            halves: BTreeMap::new(),
            clients: 0,
            violation: None,
            fuel: None,
            deaths: 0,
            connects: 0,
            cancels: 0,
        };
        (0..2).for_each(|kernel| world.start(kernel));
        // The first sessions are open; from here on it is every order.
        for kernel in [0, 1, 0, 1] {
            world.look(kernel);
        }
        world
    }

    fn replay(path: &[Action]) -> Self {
        let mut world = Self::new();
        path.iter().for_each(|action| world.act(*action));
        world
    }

    fn actions(&self, limits: &Limits) -> Vec<Action> {
        let mut actions = Vec::new();
        let may_die = self.deaths < limits.deaths;
        for kernel in 0..2 {
            let process = &self.processes[kernel];
            if self.brokers[kernel].is_some() {
                actions.extend([Action::Look(kernel), Action::Expire(kernel)]);
                if may_die {
                    actions.extend([Action::BrokerDies(kernel), Action::KernelDies(kernel)]);
                    actions.extend((1..4).map(|fuel| Action::LookAndDie(kernel, fuel)));
                }
            } else {
                actions.push(Action::Start(kernel));
            }
            if process.is_alive && may_die {
                actions.push(Action::ProcessDies(kernel));
            }
            if !process.holds.is_empty() {
                actions.push(Action::Drop(kernel));
            }
        }
        let caller = &self.processes[0];
        if caller.client.is_some() && !caller.asks && self.connects < limits.connects {
            actions.push(Action::Connect);
        }
        if caller.asks && self.cancels < limits.cancels {
            actions.push(Action::Cancel);
        }
        if self.fenced[1] < self.generation[1] && (may_die || self.brokers[1].is_none()) {
            actions.push(Action::Fence);
        }
        actions
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Look(kernel) => self.look(kernel),
            Action::LookAndDie(kernel, fuel) => {
                self.deaths += 1;
                self.fuel = Some(fuel);
                self.look(kernel);
                self.fuel = None;
                self.broker_dies(kernel);
            }
            Action::Connect => {
                self.connects += 1;
                self.processes[0].asks = true;
                let (request, addr, kind, layout) = (1, Addr::new(Cid(3), PORT), ConnKind::Stream, STREAM);
                self.say(0, ClientMessage::Connect { request, addr, kind, layout, timeout_ms: 1000 });
            }
            Action::Cancel => {
                self.cancels += 1;
                self.processes[0].asks = false;
                self.say(0, ClientMessage::Cancel { request: 1 });
            }
            Action::Drop(kernel) => self.drop_oldest(kernel),
            Action::Expire(kernel) => {
                let late = self.now + Duration::from_secs(3600);
                if let Some(broker) = &mut self.brokers[kernel] {
                    broker.core.handle_timeout(late);
                }
                self.carry_out(kernel);
            }
            Action::ProcessDies(kernel) => {
                self.deaths += 1;
                self.process_dies(kernel);
            }
            Action::BrokerDies(kernel) => {
                self.deaths += 1;
                self.broker_dies(kernel);
            }
            Action::KernelDies(kernel) => {
                self.deaths += 1;
                self.brokers[kernel] = None;
                self.processes[kernel] = Process::default();
            }
            Action::Start(kernel) => self.start(kernel),
            Action::Fence => {
                if self.brokers[1].is_some() {
                    self.deaths += 1; // of one that lived
                }
                self.fenced[1] = self.generation[1];
            }
        }
    }

    /// A broker starts, and with it the process attaches (anew).
    fn start(&mut self, kernel: usize) {
        self.generation[kernel] = self.begin_life(kernel);
        self.attach(kernel);
        self.look(kernel);
    }

    /// As the shell begins one: what processes still hold is withheld. The caller publishes the generation.
    fn begin_life(&mut self, kernel: usize) -> u64 {
        let generation = self.generation[kernel].max(self.fenced[kernel]) + 1;
        let geometry = Geometry { members_max: MEMBERS, extent_bytes: 1 << 20, black_box_records: 1 };
        let layout = Layout::of(geometry).expect("a valid geometry");
        let backing = Backing(Box::new(|_, _| true));
        let quota = PeerQuota::default();
        let mut core =
            BrokerCore::new(Member(kernel as u16), generation, layout, Policy::default(), quota, backing);
        let withheld: Vec<HalfRef> = self.processes[kernel].holds.iter().map(|hold| hold.own).collect();
        withheld.iter().for_each(|half| core.withhold(half.offset, pages_len(half)));
        core.handle_member_change(Member(kernel as u16), Some(info(kernel, generation)));
        let [own, theirs] = [kernel, 1 - kernel].map(|kernel| self.blocks[kernel].clone());
        let link = ControlLink::new(own, theirs, layout.control_slots, generation);
        self.brokers[kernel] = Some(Broker { core, link, peer_generation: 0, gone: Vec::new(), withheld });
        generation
    }

    fn attach(&mut self, kernel: usize) {
        self.clients += 1;
        let client = ClientId(self.clients);
        let process = &mut self.processes[kernel];
        (process.is_alive, process.client) = (true, Some(client));
        if let Some(broker) = &mut self.brokers[kernel] {
            broker.core.handle_client(client, true);
        }
        if kernel == 1 {
            let (request, port, kind, layout) = (0, PORT, ConnKind::Stream, STREAM);
            self.say(1, ClientMessage::Listen { request, port, kind, backlog: 1, name: None, layout });
        }
    }

    fn say(&mut self, kernel: usize, message: ClientMessage) {
        let (Some(broker), Some(client)) = (&mut self.brokers[kernel], self.processes[kernel].client) else {
            return;
        };
        broker.core.handle_client_message(self.now, client, message);
        self.carry_out(kernel);
    }

    fn process_dies(&mut self, kernel: usize) {
        let process = std::mem::take(&mut self.processes[kernel]);
        if let (Some(broker), Some(client)) = (&mut self.brokers[kernel], process.client) {
            broker.gone.push(client);
        }
    }

    fn broker_dies(&mut self, kernel: usize) {
        self.brokers[kernel] = None;
        self.lose_broker(kernel);
    }

    /// What a process does whose broker has hung up.
    fn lose_broker(&mut self, kernel: usize) {
        let process = &mut self.processes[kernel];
        (process.client, process.asks) = (None, false);
        for hold in &mut process.holds {
            hold.is_orphan = true;
            set(&mut self.halves, kernel, &hold.own, HalfState::RESET);
        }
    }

    fn drop_oldest(&mut self, kernel: usize) {
        let hold = self.processes[kernel].holds.remove(0);
        set(&mut self.halves, kernel, &hold.own, HalfState::CLOSED);
        if !hold.is_orphan {
            self.say(kernel, ClientMessage::Drop { conn: hold.conn });
        }
    }

    /// One turn of a broker.
    fn look(&mut self, kernel: usize) {
        if self.brokers[kernel].is_none() {
            return;
        }
        if self.fenced[kernel] >= self.generation[kernel] {
            self.lose_broker(kernel);
            self.generation[kernel] = self.begin_life(kernel);
            if self.processes[kernel].is_alive {
                self.attach(kernel);
            }
        }
        let peer = 1 - kernel;
        let peer_generation = self.live_generation(peer);
        let Some(broker) = &mut self.brokers[kernel] else { return };
        if broker.peer_generation != peer_generation {
            broker.peer_generation = peer_generation;
            match peer_generation {
                0 => broker.link.close(),
                _ => broker.link.open(peer_generation),
            }
            broker.core.handle_member_change(Member(peer as u16), Some(info(peer, peer_generation)));
        }
        for client in std::mem::take(&mut broker.gone) {
            broker.core.handle_client_gone(client);
        }
        let holds = &self.processes[kernel].holds;
        let is_held = |half: &HalfRef| holds.iter().any(|hold| hold.own == *half);
        let (withheld, free): (Vec<_>, Vec<_>) =
            std::mem::take(&mut broker.withheld).into_iter().partition(is_held);
        broker.withheld = withheld;
        free.iter().for_each(|half| broker.core.restore(half.offset, pages_len(half)));
        self.carry_out(kernel);
        while let Some(broker) = &mut self.brokers[kernel] {
            match broker.link.take() {
                Taken::Record(record) => broker.core.handle_record(Member(peer as u16), record),
                Taken::Nonsense => self.violation = Some("a record that makes no sense".into()),
                Taken::Nothing => break,
            }
            self.carry_out(kernel);
        }
    }

    /// Everything the core has decided, in order, unless the broker dies meanwhile; then what it says to its peer.
    fn carry_out(&mut self, kernel: usize) {
        while let Some(broker) = &mut self.brokers[kernel] {
            if self.fuel == Some(0) {
                return;
            }
            let Some(output) = broker.core.poll_output() else { break };
            self.fuel = self.fuel.map(|fuel| fuel - 1);
            match output {
                Output::ToClient(client, message) => self.hear(kernel, client, message),
                Output::ToPeer(_, record) => broker.link.send(record),
                Output::InitHalf(half) => self.make(kernel, half),
                Output::ResetHalf(half) => {
                    set(&mut self.halves, kernel, &half, HalfState::RESET.or(HalfState::CLOSED));
                }
                Output::Elsewhere(_)
                | Output::Granted { .. }
                | Output::Wake(_)
                | Output::Bell(_)
                | Output::Released { .. } => {}
            }
        }
        let Some(broker) = &mut self.brokers[kernel] else { return };
        broker.link.flush();
        for hold in &self.processes[kernel].holds {
            let mut heap = broker.core.heap.clone();
            heap.withhold(hold.own.offset, half_len(&hold.own));
            if heap != broker.core.heap {
                self.violation =
                    Some(format!("kernel {kernel} would give out what is written under {hold:?}"));
            }
        }
    }

    fn hear(&mut self, kernel: usize, client: ClientId, message: ServerMessage) {
        let process = &mut self.processes[kernel];
        if process.client != Some(client) {
            return;
        }
        let grant = match message {
            ServerMessage::Done { result: Ok(Reply::Connected(grant)), .. } => {
                process.asks = false;
                grant
            }
            ServerMessage::Done { result: Err(_), .. } => {
                process.asks = false;
                return;
            }
            ServerMessage::Incoming { grant, .. } => grant,
            _ => return,
        };
        let conn = grant.conn;
        process.holds.push(Hold {
            conn,
            own: grant.own_half,
            theirs: grant.peer_half,
            own_generation: grant.own_generation,
            peer_generation: grant.peer_generation,
            is_orphan: false,
        });
        self.say(kernel, ClientMessage::Accepted { conn });
    }

    /// A half is made: nobody may still write or read there.
    fn make(&mut self, kernel: usize, half: HalfRef) {
        for (reader, process) in self.processes.iter().enumerate() {
            for hold in &process.holds {
                if reader == kernel && overlap(&hold.own, &half) {
                    self.violation =
                        Some(format!("kernel {kernel} makes {half:?}, which is written under {hold:?}"));
                }
                if reader != kernel && overlap(&hold.theirs, &half) && self.is_live(reader, hold) {
                    self.violation =
                        Some(format!("kernel {kernel} makes {half:?}, which is read under {hold:?}"));
                }
            }
        }
        self.halves.retain(|(owner, offset), _| {
            *owner != kernel || !overlap(&HalfRef { offset: *offset, ..half }, &half)
        });
        self.halves.insert((kernel, half.offset), (half.nonce, HalfState::OPEN));
    }

    /// What `LiveWords::check` of a process says.
    fn is_live(&self, kernel: usize, hold: &Hold) -> bool {
        let (own, peer) = (kernel, 1 - kernel);
        !hold.is_orphan
            && self.generation[peer] == hold.peer_generation
            && self.fenced[peer] < hold.peer_generation
            && self.generation[own] == hold.own_generation
            && self.fenced[own] < hold.own_generation
    }

    fn live_generation(&self, kernel: usize) -> u64 {
        if self.fenced[kernel] < self.generation[kernel] { self.generation[kernel] } else { 0 }
    }

    /// Lets everything come to its end; what is wrong then.
    fn settle(&mut self, starts: bool) -> Option<String> {
        for kernel in 0..2 {
            if self.brokers[kernel].is_none() {
                match kernel == 0 || starts {
                    true => self.start(kernel),
                    false => self.fenced[kernel] = self.generation[kernel],
                }
            }
        }
        self.look_until_quiet();
        (0..2).for_each(|kernel| self.act(Action::Expire(kernel)));
        self.look_until_quiet();
        if self.violation.is_some() {
            return self.violation.clone();
        }
        if self.processes.iter().any(|process| process.asks) {
            return Some("a process waits for an answer that never comes".into());
        }
        for kernel in 0..2 {
            for hold in &self.processes[kernel].holds {
                let half = self.halves.get(&(1 - kernel, hold.theirs.offset));
                let bits = half.filter(|(nonce, _)| *nonce == hold.theirs.nonce).map(|(_, bits)| *bits);
                let ended = bits.is_none_or(|bits| bits.any(HalfState::CLOSED.or(HalfState::RESET)));
                let has_peer = self.processes[1 - kernel].holds.iter().any(|other| other.own == hold.theirs);
                if self.is_live(kernel, hold) && !ended && !has_peer {
                    return Some(format!("kernel {kernel} waits on a connection without a peer: {hold:?}"));
                }
            }
        }
        for kernel in 0..2 {
            while !self.processes[kernel].holds.is_empty() {
                self.drop_oldest(kernel);
            }
        }
        self.look_until_quiet();
        for (kernel, broker) in self.brokers.iter().enumerate() {
            let Some(broker) = broker else { continue };
            let counts = broker.core.counts();
            if (counts.heap_free_bytes, counts.connections) != (counts.heap_bytes, 0) {
                return Some(format!("kernel {kernel} has not got everything back: {counts:?}"));
            }
            if counts.bad_records != 0 {
                return Some(format!("kernel {kernel} blames an honest peer: {counts:?}"));
            }
        }
        self.violation.clone()
    }

    fn look_until_quiet(&mut self) {
        // A turn answers all there is, so a few rounds carry the longest conversation.
        for _ in 0..5 {
            self.look(0);
            self.look(1);
        }
    }

    /// Everything that makes a difference for what can come, in one number.
    fn digest(&self) -> u64 {
        let mut text = String::new();
        for kernel in 0..2 {
            let _ = write!(
                text,
                "{:?}|{:?}",
                self.processes[kernel],
                (self.generation[kernel], self.fenced[kernel])
            );
            let Some(Broker { core, link, peer_generation, gone, withheld }) = &self.brokers[kernel] else {
                continue;
            };
            let conns: BTreeMap<_, _> = core.conns.iter().collect();
            let _ = write!(
                text,
                "{conns:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{}",
                core.listeners,
                core.deadlines.iter().map(|(_, id)| id).collect::<Vec<_>>(),
                core.heap,
                core.next_id,
                core.next_ephemeral,
                (core.generation, core.bad_records),
                (peer_generation, gone, withheld),
                core.clients.keys().max(),
                link.digest(),
            );
        }
        let _ =
            write!(text, "{:?}{:?}", self.halves, (self.deaths, self.connects, self.cancels, self.clients));
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        for block in &self.blocks {
            (0..stride(slots(MEMBERS))).step_by(8).for_each(|at| block.load(at, Relaxed).hash(&mut hasher));
        }
        hasher.finish()
    }
}

fn info(kernel: usize, generation: u64) -> MemberInfo {
    MemberInfo { cid: Cid(2 + kernel as u32), name: ["host", "web"][kernel].into(), generation }
}

/// What the shell withholds for a half: the pages that it lies on.
fn pages_len(half: &HalfRef) -> u64 {
    half_len(half).next_multiple_of(crate::mem::PAGE as u64)
}

fn overlap(one: &HalfRef, other: &HalfRef) -> bool {
    one.offset < other.offset + half_len(other) && other.offset < one.offset + half_len(one)
}

fn set(
    halves: &mut BTreeMap<(usize, u64), (u64, HalfState)>,
    kernel: usize,
    half: &HalfRef,
    bits: HalfState,
) {
    if let Some((nonce, state)) = halves.get_mut(&(kernel, half.offset))
        && *nonce == half.nonce
    {
        *state = state.or(bits);
    }
}

/// Misfortunes and wishes in one history.
#[derive(Clone, Debug)]
struct Limits {
    deaths: u8,
    connects: u8,
    cancels: u8,
}

#[derive(Clone, Debug)]
struct History {
    path: Vec<Action>,
    digest: u64,
    next: Vec<Action>,
}

impl History {
    fn of(path: Vec<Action>, limits: &Limits) -> Self {
        let world = World::replay(&path);
        let next = if world.violation.is_some() { Vec::new() } else { world.actions(limits) };
        Self { digest: world.digest(), path, next }
    }

    /// What is wrong now, or in the end, whether kernel 1 starts again or is fenced.
    fn wrong(&self) -> Option<String> {
        let mut world = World::replay(&self.path);
        if world.violation.is_some() {
            return world.violation;
        }
        let is_dead = world.brokers[1].is_none();
        let wrong = world.settle(true);
        if is_dead { wrong.or_else(|| World::replay(&self.path).settle(false)) } else { wrong }
    }
}

impl PartialEq for History {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for History {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl Model for Limits {
    type State = History;
    type Action = Action;

    fn init_states(&self) -> Vec<History> {
        vec![History::of(Vec::new(), self)]
    }

    fn actions(&self, state: &History, actions: &mut Vec<Action>) {
        actions.extend(&state.next);
    }

    fn next_state(&self, last: &History, action: Action) -> Option<History> {
        let mut path = last.path.clone();
        path.push(action);
        Some(History::of(path, self)).filter(|next| next.digest != last.digest)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing goes wrong", |_, state: &History| state.wrong().is_none()),
            Property::sometimes("connections are made", |_, state: &History| {
                World::replay(&state.path).processes.iter().all(|process| !process.holds.is_empty())
            }),
        ]
    }
}

/// Every history of fewer than `depth` actions: the first state counts.
fn check(limits: Limits, depth: usize) {
    let checker = limits.checker().threads(2).target_max_depth(depth).spawn_bfs().join();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    if let Some(path) = checker.discovery("nothing goes wrong") {
        let last = path.last_state();
        panic!("{:?} after {:?}", last.wrong(), last.path);
    }
    checker.assert_properties();
}

#[test]
fn a_connection_survives_the_order_of_things_and_a_death() {
    check(Limits { deaths: 1, connects: 1, cancels: 0 }, 7);
}

#[test]
fn connections_survive_the_order_of_things() {
    check(Limits { deaths: 0, connects: 2, cancels: 1 }, 9);
}

#[test]
#[ignore = "takes minutes: `cargo xtask verify`"]
fn a_connection_survives_a_death_in_long_histories() {
    check(Limits { deaths: 1, connects: 1, cancels: 1 }, 10);
}

#[test]
#[ignore = "takes minutes: `cargo xtask verify`"]
fn two_connections_survive_two_deaths_in_long_histories() {
    check(Limits { deaths: 2, connects: 2, cancels: 1 }, 8);
}
