//! Brokers of one pool wired together: records arrive at once, and what would be written to shared memory is only noted.

use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::broker::protocol::Grant;
use crate::broker::record::RefuseCode;
use crate::broker::{KernelMatch, PolicyAction, PolicyRule, PortMatch};
use crate::pool::Geometry;

const APP: ClientId = ClientId(1);
const OTHER: ClientId = ClientId(2);

struct Sim {
    cores: Vec<BrokerCore>,
    now: Instant,
    to_clients: HashMap<(usize, ClientId), Vec<ServerMessage>>,
    noted: Vec<(usize, Output)>,
    /// Records to these members wait here instead of arriving.
    cut: HashMap<usize, Vec<(Member, Record)>>,
    request: u64,
}

fn layout() -> Layout {
    Layout::of(Geometry { members_max: 4, extent_bytes: 4 << 20, black_box_records: 1 }).unwrap()
}

const STREAM: u32 = 12 << 8;

impl Sim {
    fn new(kernels: usize) -> Self {
        let mut sim = Self {
            cores: (0..kernels)
                .map(|i| {
                    BrokerCore::new(
                        Member(i as u16),
                        1,
                        layout(),
                        Policy::default(),
                        PeerQuota::default(),
                        Backing(Box::new(|_, _| true)),
                    )
                })
                .collect(),
            now: Instant::now(),
            to_clients: HashMap::new(),
            noted: Vec::new(),
            cut: HashMap::new(),
            request: 0,
        };
        for core in &mut sim.cores {
            core.handle_client(APP, true);
            core.handle_client(OTHER, false);
        }
        for member in 0..kernels {
            sim.member(member, 1);
        }
        sim
    }

    /// Everybody learns of a generation of a member.
    fn member(&mut self, member: usize, generation: u64) {
        let name = ["host", "web", "db", "extra"][member].to_owned();
        let info = MemberInfo { cid: Cid(2 + member as u32), name, generation };
        for core in &mut self.cores {
            core.handle_member_change(Member(member as u16), Some(info.clone()));
        }
        self.settle();
    }

    fn settle(&mut self) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            for index in 0..self.cores.len() {
                while let Some(output) = self.cores[index].poll_output() {
                    moved = true;
                    match output {
                        Output::ToClient(client, message) => {
                            self.to_clients.entry((index, client)).or_default().push(message);
                        }
                        Output::ToPeer(peer, record) => {
                            let record = Record::decode(&record.encode()).unwrap();
                            let from = Member(index as u16);
                            match self.cut.get_mut(&peer.index()) {
                                Some(cut) => cut.push((from, record)),
                                None => self.cores[peer.index()].handle_record(from, record),
                            }
                        }
                        output => self.noted.push((index, output)),
                    }
                }
            }
        }
    }

    fn say(&mut self, kernel: usize, client: ClientId, message: ClientMessage) {
        self.cores[kernel].handle_client_message(self.now, client, message);
        self.settle();
    }

    fn heard(&mut self, kernel: usize, client: ClientId) -> Vec<ServerMessage> {
        self.to_clients.remove(&(kernel, client)).unwrap_or_default()
    }

    fn answer(&mut self, kernel: usize, client: ClientId) -> Result<Reply, Failure> {
        match self.heard(kernel, client).pop() {
            Some(ServerMessage::Done { result, .. }) => result,
            other => panic!("expected an answer, got {other:?}"),
        }
    }

    fn listen(
        &mut self,
        kernel: usize,
        client: ClientId,
        port: Port,
        name: Option<&str>,
    ) -> Result<Addr, Failure> {
        let (request, kind, name) = (0, ConnKind::Stream, name.map(str::to_owned));
        self.say(
            kernel,
            client,
            ClientMessage::Listen { request, port, kind, backlog: 2, name, layout: STREAM },
        );
        self.answer(kernel, client).map(|reply| match reply {
            Reply::Listening(addr) => addr,
            other => panic!("{other:?}"),
        })
    }

    fn start_connect(&mut self, kernel: usize, addr: Addr) -> u64 {
        self.request += 1;
        let (request, kind) = (self.request, ConnKind::Stream);
        self.say(
            kernel,
            APP,
            ClientMessage::Connect { request, addr, kind, layout: STREAM, timeout_ms: 1000 },
        );
        request
    }

    fn connect(&mut self, kernel: usize, addr: Addr) -> Result<Grant, Failure> {
        self.start_connect(kernel, addr);
        self.answer(kernel, APP).map(|reply| match reply {
            Reply::Connected(grant) => grant,
            other => panic!("{other:?}"),
        })
    }

    fn incoming(&mut self, kernel: usize, client: ClientId) -> Grant {
        match self.heard(kernel, client).pop() {
            Some(ServerMessage::Incoming { grant, .. }) => grant,
            other => panic!("expected a connection, got {other:?}"),
        }
    }

    /// Connects from `caller` to port 80 of `callee`, whose application accepts at once.
    fn connect_accepted(&mut self, caller: usize, callee: usize) -> Result<(Grant, Grant), Failure> {
        let called = self.connect(caller, addr(2 + callee as u32, 80))?;
        let accepted = self.incoming(callee, APP);
        self.say(callee, APP, ClientMessage::Accepted { conn: accepted.conn });
        Ok((called, accepted))
    }

    fn allow_all(&mut self) {
        let rule = PolicyRule {
            from: KernelMatch::Any,
            to: KernelMatch::Any,
            port: PortMatch::Any,
            action: PolicyAction::Allow,
        };
        for core in &mut self.cores {
            core.set_policy(Policy { rules: vec![rule.clone()] });
        }
    }

    fn free(&self, kernel: usize) -> u64 {
        self.cores[kernel].counts().heap_free_bytes
    }

    fn full(&self) -> u64 {
        self.cores[0].counts().heap_bytes
    }
}

fn addr(cid: u32, port: u32) -> Addr {
    Addr::new(Cid(cid), Port(port))
}

#[test]
fn connection_is_made_used_and_freed_by_both() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), None).unwrap();
    let caller = sim.connect(0, addr(3, 80)).unwrap();
    let acceptor = sim.incoming(1, APP);
    assert_eq!((caller.own_half, caller.peer_half), (acceptor.peer_half, acceptor.own_half));
    assert_eq!((caller.local, caller.remote), (acceptor.remote, acceptor.local));
    assert_eq!(caller.remote, addr(3, 80));

    sim.say(0, APP, ClientMessage::Drop { conn: caller.conn });
    assert!(sim.free(0) < sim.full(), "the acceptor may still read the caller's half");
    sim.say(1, APP, ClientMessage::Drop { conn: acceptor.conn });
    assert_eq!((sim.free(0), sim.free(1)), (sim.full(), sim.full()));
}

#[test]
fn half_is_made_before_it_is_announced_and_watched_before_its_owner_hears() {
    let mut core = Sim::new(2).cores.remove(0);
    while core.poll_output().is_some() {}
    let (request, kind, layout) = (1, ConnKind::Stream, STREAM);
    let message = ClientMessage::Connect { request, addr: addr(3, 80), kind, layout, timeout_ms: 1 };
    core.handle_client_message(Instant::now(), APP, message);
    assert!(matches!(core.poll_output(), Some(Output::InitHalf(_))));
    let Some(Output::ToPeer(_, Record::Connect { from, half, .. })) = core.poll_output() else { panic!() };
    let other = Member(1);
    let theirs = HalfRef { offset: (core.layout.extent(other) + core.layout.heap_offset) as u64, ..half };
    core.handle_record(other, Record::Accept { from: 9, to: from, half: theirs });
    assert!(matches!(core.poll_output(), Some(Output::Granted { .. })));
    assert!(matches!(core.poll_output(), Some(Output::ToClient(APP, _))));
}

#[test]
fn connections_within_a_kernel_work_too() {
    let mut sim = Sim::new(1);
    sim.listen(0, OTHER, Port(5000), None).unwrap();
    for cid in [1, 2] {
        let caller = sim.connect(0, addr(cid, 5000)).unwrap();
        let acceptor = sim.incoming(0, OTHER);
        assert_eq!(caller.remote, addr(2, 5000));
        sim.say(0, OTHER, ClientMessage::Drop { conn: acceptor.conn });
        sim.say(0, APP, ClientMessage::Drop { conn: caller.conn });
        assert_eq!(sim.free(0), sim.full());
    }
}

#[test]
fn refusals_say_why_and_hold_no_memory() {
    let mut sim = Sim::new(3);
    sim.listen(1, APP, Port(80), None).unwrap();
    let refused = |result: Result<Grant, Failure>, word: &str| match result {
        Err(Failure::Refused { reason }) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?}"),
    };
    refused(sim.connect(0, addr(3, 81)), "nobody listens");
    refused(sim.connect(0, addr(77, 80)), "no kernel of cid 77");
    assert!(matches!(sim.connect(0, addr(3, u32::MAX)), Err(Failure::Invalid { .. })));
    assert!(matches!(sim.connect(0, addr(3, 0)), Err(Failure::Invalid { .. })));
    sim.connect(0, addr(3, 80)).unwrap();
    sim.connect(0, addr(3, 80)).unwrap();
    refused(sim.connect(0, addr(3, 80)), "backlog is full");
    let held = sim.full() - sim.free(0);
    assert_eq!(held, sim.full() - sim.free(1));

    // Taking one from the backlog makes room for one.
    let taken = sim.incoming(1, APP);
    sim.say(1, APP, ClientMessage::Accepted { conn: taken.conn });
    sim.connect(0, addr(3, 80)).unwrap();
    // So does dropping one that waits.
    let waiting = sim.incoming(1, APP);
    sim.say(1, APP, ClientMessage::Drop { conn: waiting.conn });
    sim.connect(0, addr(3, 80)).unwrap();
    sim.member(2, 0);
    refused(sim.connect(0, addr(4, 80)), "not up");
}

#[test]
fn spawned_kernels_are_denied_until_a_rule_allows_it() {
    let mut sim = Sim::new(3);
    sim.listen(2, APP, Port(6379), Some("kv")).unwrap();
    assert!(matches!(sim.connect(1, addr(4, 6379)), Err(Failure::Denied { .. })));
    assert!(matches!(sim.connect(1, addr(4, 1)), Err(Failure::Denied { .. })), "nor learns what listens");
    let rule = PolicyRule {
        from: KernelMatch::Name("web".into()),
        to: KernelMatch::Any,
        port: PortMatch::Service("kv".into()),
        action: PolicyAction::Allow,
    };
    sim.cores[2].set_policy(Policy { rules: vec![rule] });
    sim.connect(1, addr(4, 6379)).unwrap();
}

#[test]
fn ports_and_names_are_taken_once() {
    let mut sim = Sim::new(2);
    assert_eq!(sim.listen(0, OTHER, Port(6000), Some("kv")), Ok(addr(2, 6000)));
    assert_eq!(sim.listen(0, APP, Port(6000), None), Err(Failure::PortInUse));
    assert_eq!(sim.listen(0, APP, Port(6001), Some("kv")), Err(Failure::NameInUse));
    assert!(matches!(sim.listen(0, OTHER, Port(80), None), Err(Failure::Denied { .. })));
    assert!(matches!(sim.listen(0, APP, Port(0), None), Err(Failure::Invalid { .. })));
    assert!(matches!(sim.listen(0, APP, Port(7), Some("a/b")), Err(Failure::Invalid { .. })));
    assert!(matches!(sim.listen(0, APP, Port(7), Some(&"x".repeat(41))), Err(Failure::Invalid { .. })));
    let first = sim.listen(0, APP, Port::ANY, None).unwrap();
    let second = sim.listen(0, APP, Port::ANY, None).unwrap();
    assert!(first.port >= Port::EPHEMERAL_FIRST && first != second);
    sim.say(0, APP, ClientMessage::Unlisten { port: Port(6000) });
    assert_eq!(sim.listen(0, APP, Port(6000), None), Err(Failure::PortInUse), "it is not APP's to free");
    sim.say(0, OTHER, ClientMessage::Unlisten { port: Port(6000) });
    assert_eq!(sim.listen(0, APP, Port(6000), Some("kv")), Ok(addr(2, 6000)));
}

#[test]
fn names_are_found_here_and_elsewhere() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(6379), Some("kv")).unwrap();
    let mut resolve = |kernel, name: &str| {
        sim.say(kernel, APP, ClientMessage::Resolve { request: 1, name: name.into() });
        sim.answer(kernel, APP)
    };
    assert_eq!(resolve(0, "web/kv"), Ok(Reply::Resolved(addr(3, 6379))));
    assert_eq!(resolve(0, "3/kv"), Ok(Reply::Resolved(addr(3, 6379))));
    assert_eq!(resolve(1, "kv"), Ok(Reply::Resolved(addr(3, 6379))));
    for (kernel, name, word) in [
        (0, "web/other", "no service"),
        (0, "moon/kv", "no kernel named `moon`"),
        (0, "kv", "no service"),
        (0, "", "no service name"),
        (0, "web/", "no service name"),
    ] {
        match resolve(kernel, name) {
            Err(Failure::NotFound { reason }) => assert!(reason.contains(word), "{name}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn connect_times_out_and_a_late_accept_is_closed_again() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), None).unwrap();
    sim.cut.insert(0, Vec::new());
    sim.start_connect(0, addr(3, 80));
    let before_deadline = sim.now + Duration::from_millis(999);
    sim.cores[0].handle_timeout(before_deadline);
    sim.settle();
    assert_eq!(sim.heard(0, APP), []);
    let deadline = sim.now + Duration::from_millis(1000);
    sim.cores[0].handle_timeout(deadline);
    sim.settle();
    assert_eq!(sim.answer(0, APP), Err(Failure::TimedOut));
    assert!(sim.free(0) < sim.full(), "the acceptor may be using it");

    let late = sim.cut.remove(&0).unwrap();
    for (peer, record) in late {
        sim.cores[0].handle_record(peer, record);
    }
    sim.settle();
    assert_eq!(sim.heard(0, APP), []);
    let acceptor = sim.incoming(1, APP);
    sim.say(1, APP, ClientMessage::Drop { conn: acceptor.conn });
    assert_eq!((sim.free(0), sim.free(1)), (sim.full(), sim.full()));
}

#[test]
fn death_of_a_process_resets_its_connections_and_frees_its_ports() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), Some("kv")).unwrap();
    let caller = sim.connect(0, addr(3, 80)).unwrap();
    let acceptor = sim.incoming(1, APP);
    sim.noted.clear();
    sim.cores[1].handle_client_gone(APP);
    sim.settle();
    assert!(sim.noted.contains(&(1, Output::ResetHalf(acceptor.own_half))));
    assert!(sim.noted.contains(&(1, Output::Bell(Member(0)))));
    assert!(sim.noted.contains(&(0, Output::Wake(APP))));
    assert!(matches!(sim.connect(0, addr(3, 80)), Err(Failure::Refused { .. })));
    assert!(sim.free(1) < sim.full(), "the caller still reads the dead process's half");
    sim.say(0, APP, ClientMessage::Drop { conn: caller.conn });
    assert_eq!((sim.free(0), sim.free(1)), (sim.full(), sim.full()));
}

#[test]
fn death_of_a_kernel_frees_what_only_it_was_reading() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), None).unwrap();
    let kept = sim.connect(0, addr(3, 80)).unwrap();
    let dropped = sim.connect(0, addr(3, 80)).unwrap();
    sim.cut.insert(1, Vec::new());
    sim.say(0, APP, ClientMessage::Drop { conn: dropped.conn });
    sim.start_connect(0, addr(3, 80));
    sim.say(0, APP, ClientMessage::Resolve { request: 50, name: "web/kv".into() });
    let held = sim.full() - sim.free(0);
    sim.member(1, 0); // fenced
    let answers = sim.heard(0, APP);
    assert!(
        answers.iter().any(|m| matches!(m, ServerMessage::Done { result: Err(Failure::Refused { .. }), .. }))
    );
    assert!(answers.iter().any(|m| matches!(m, ServerMessage::Done { request: 50, result: Err(_) })));
    assert_eq!(sim.full() - sim.free(0), held / 3, "all but the one that our process still writes");
    sim.say(0, APP, ClientMessage::Drop { conn: kept.conn });
    assert_eq!(sim.free(0), sim.full());
    assert_eq!(sim.cores[0].counts().connections, 0);
}

#[test]
fn cancelled_connect_leaves_nothing_behind() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), None).unwrap();
    sim.cut.insert(1, Vec::new());
    let request = sim.start_connect(0, addr(3, 80));
    sim.say(0, APP, ClientMessage::Cancel { request });
    for (peer, record) in sim.cut.remove(&1).unwrap() {
        sim.cores[1].handle_record(peer, record);
    }
    sim.settle();
    assert_eq!(sim.heard(0, APP), []);
    let acceptor = sim.incoming(1, APP);
    sim.say(1, APP, ClientMessage::Drop { conn: acceptor.conn });
    assert_eq!((sim.free(0), sim.free(1)), (sim.full(), sim.full()));
}

#[test]
fn a_full_extent_is_said_whose_it_is() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), None).unwrap();
    let (request, kind, layout) = (1, ConnKind::Stream, 30 << 8);
    let message = ClientMessage::Connect { request, addr: addr(3, 80), kind, layout, timeout_ms: 1 };
    sim.say(0, APP, message);
    assert!(matches!(sim.answer(0, APP), Err(Failure::NoMemory { cid: Cid(2), .. })));
    let full = sim.full();
    sim.cores[1].withhold(0, u64::MAX);
    assert!(matches!(sim.connect(0, addr(3, 80)), Err(Failure::NoMemory { cid: Cid(3), .. })));
    assert_eq!(sim.free(0), full);
}

#[test]
fn memory_that_a_dead_process_may_still_write_is_not_given_out() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), None).unwrap();
    let caller = sim.connect(0, addr(3, 80)).unwrap();
    let acceptor = sim.incoming(1, APP);
    sim.cores[1].quarantine(acceptor.own_half.offset);
    sim.cores[1].handle_client_gone(APP);
    sim.say(0, APP, ClientMessage::Drop { conn: caller.conn });
    assert!(sim.free(1) < sim.full());
    sim.cores[1].end_quarantine(acceptor.own_half.offset);
    assert_eq!(sim.free(1), sim.full());
}

#[test]
fn hostile_records_are_dropped_and_counted() {
    let mut sim = Sim::new(2);
    sim.listen(1, APP, Port(80), None).unwrap();
    let layout = layout();
    let heap = (layout.extent(Member(0)) + layout.heap_offset) as u64;
    let good = HalfRef { offset: heap, layout: STREAM, nonce: 0 };
    let peer = Member(0);
    for half in [
        HalfRef { offset: heap + 8, ..good },
        HalfRef { offset: 0, ..good },
        HalfRef { offset: u64::MAX - 4095, ..good },
        HalfRef { offset: (layout.extent(Member(1)) + layout.heap_offset) as u64, ..good },
        HalfRef { layout: 0, ..good },
        HalfRef { layout: u32::MAX, ..good },
        HalfRef { layout: 30 << 8, ..good },
    ] {
        let (from, kind, src_port, dst_port) = (1, ConnKind::Stream, 1, 80);
        sim.cores[1].handle_record(peer, Record::Connect { from, kind, half, src_port, dst_port });
        let refusal = sim.cores[1].poll_output();
        assert_eq!(
            refusal,
            Some(Output::ToPeer(peer, Record::Refuse { to: 1, code: RefuseCode::BadRequest }))
        );
    }
    let before = sim.cores[1].counts().bad_records;
    sim.cores[1].handle_record(peer, Record::Accept { from: 1, to: 99, half: good });
    sim.cores[1].handle_record(peer, Record::Closed { to: 99 });
    sim.cores[1].handle_record(peer, Record::Refuse { to: 99, code: RefuseCode::Denied });
    assert_eq!(sim.cores[1].counts().bad_records, before + 3);

    // A CLOSED, ACCEPT or REFUSE for a connection with somebody else changes nothing.
    let caller = sim.connect(0, addr(3, 80)).unwrap();
    sim.cores[0].handle_record(Member(3), Record::Closed { to: caller.conn });
    sim.cores[0].handle_record(Member(1), Record::Accept { from: 5, to: caller.conn, half: good });
    sim.cores[0].handle_record(Member(1), Record::Refuse { to: caller.conn, code: RefuseCode::Denied });
    sim.settle();
    assert_eq!(sim.cores[0].counts().connections, 1);
    assert_eq!(sim.free(1), sim.free(0));
}

#[test]
fn an_accept_with_an_impossible_half_fails_the_connect_only() {
    let mut sim = Sim::new(2);
    sim.cut.insert(1, Vec::new());
    sim.start_connect(0, addr(3, 80));
    let Some((_, Record::Connect { from, half, .. })) = sim.cut[&1].first().cloned() else { panic!() };
    sim.cores[0].handle_record(Member(1), Record::Accept { from: 4, to: from, half });
    sim.settle();
    assert!(matches!(sim.answer(0, APP), Err(Failure::Refused { .. })));
    sim.cores[0].handle_record(Member(1), Record::Closed { to: from });
    assert_eq!(sim.free(0), sim.full());
}

/// What a refusal for reasons of quota says to whom it may concern.
fn is_quota(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused { reason } if reason.contains("hold") && reason.contains("close"))
}

#[test]
fn a_kernel_that_connects_without_end_leaves_a_quarter_of_the_heap_to_others() {
    let mut sim = Sim::new(4);
    sim.allow_all();
    for greedy in [1, 3] {
        sim.cores[greedy].quota = PeerQuota { heap_bytes_max: Some(u64::MAX), connections_max: u32::MAX };
    }
    sim.listen(2, APP, Port(80), None).unwrap();
    let mut made = Vec::new();
    let refusal = loop {
        match sim.connect_accepted(1, 2) {
            Ok(pair) => made.push(pair),
            Err(failure) => break failure,
        }
    };
    assert!(is_quota(&refusal), "{refusal:?}");
    let half = half_len(&made[0].1.own_half);
    assert!(sim.free(2) >= sim.full() / 4 && sim.free(2) - half < sim.full() / 4, "{} left", sim.free(2));
    // The next greedy one gets three quarters of what is left, and the primary is not bound at all.
    while sim.connect_accepted(3, 2).is_ok() {}
    let [first, next] = [1, 3].map(|greedy| sim.cores[2].held_by(Member(greedy)).bytes);
    assert!(next > first / 5, "{next} after {first}");
    for _ in 0..8 {
        sim.connect_accepted(0, 2).unwrap();
    }
    // What it closes it may use again, once the other side has closed too.
    let (called, accepted) = made.pop().unwrap();
    sim.say(1, APP, ClientMessage::Drop { conn: called.conn });
    assert!(sim.connect_accepted(1, 2).is_err());
    sim.say(2, APP, ClientMessage::Drop { conn: accepted.conn });
    let before = sim.cores[2].held_by(Member(1));
    assert_eq!(before.connections as usize, made.len());
}

#[test]
fn a_kernel_that_never_says_closed_holds_its_share_and_no_more_until_it_is_fenced() {
    let mut sim = Sim::new(3);
    sim.allow_all();
    sim.listen(1, APP, Port(80), None).unwrap();
    sim.cut.insert(2, Vec::new()); // nothing gets through to it: it is frozen
    let calls = 2 * sim.full() / 8192;
    let mut refusals = 0;
    for _ in 0..calls {
        let request = sim.start_connect(1, addr(4, 80));
        match sim.heard(1, APP).pop() {
            None => sim.say(1, APP, ClientMessage::Cancel { request }),
            Some(ServerMessage::Done { result: Err(failure), .. }) => {
                assert!(is_quota(&failure), "{failure:?}");
                refusals += 1;
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    assert!(refusals > 0 && sim.free(1) >= sim.full() / 4);
    sim.connect_accepted(0, 1).unwrap();
    sim.member(2, 0);
    assert_eq!(sim.cores[1].held_by(Member(2)), Held::default());
}

#[test]
fn connections_of_a_dead_kernel_do_not_count_against_its_next_life() {
    let mut sim = Sim::new(3);
    sim.allow_all();
    sim.listen(2, APP, Port(80), None).unwrap();
    let (_, accepted) = sim.connect_accepted(1, 2).unwrap();
    let free = sim.free(2);
    sim.member(1, 0);
    assert_eq!(sim.cores[2].held_by(Member(1)), Held::default());
    assert_eq!(sim.free(2), free, "our process has not let go of it yet");
    sim.say(2, APP, ClientMessage::Drop { conn: accepted.conn });
    assert_eq!(sim.cores[2].held_by(Member(1)), Held::default());
    assert_eq!(sim.free(2), sim.full());
}

#[test]
fn quotas_can_be_set_in_bytes_and_connections() {
    let small = half_len(&HalfRef { offset: 0, layout: STREAM, nonce: 0 });
    for quota in [
        PeerQuota { heap_bytes_max: Some(3 * small), ..PeerQuota::default() },
        PeerQuota { connections_max: 3, ..PeerQuota::default() },
    ] {
        let mut sim = Sim::new(3);
        sim.allow_all();
        sim.cores[2].quota = quota;
        sim.listen(2, APP, Port(80), None).unwrap();
        for _ in 0..3 {
            sim.connect_accepted(1, 2).unwrap();
        }
        assert!(is_quota(&sim.connect_accepted(1, 2).unwrap_err()));
        assert_eq!(sim.cores[2].held_by(Member(1)), Held { bytes: 3 * small, connections: 3 });
        sim.connect_accepted(0, 2).unwrap();
    }
}
