//! A broker between hostile brokers of other kernels and hostile processes of its own: its books always add up.

use std::time::{Duration, Instant};

use super::*;
use crate::broker::record::RefuseCode;
use crate::fuzzing::Input;
use crate::pool::Geometry;

const OWN: Member = Member(0);
const LAYOUTS: [u32; 6] = [12 << 8, 16 << 8, 6, 0x0706, 0x0c02_0702, 30 << 8];

/// Numbers of connections: the peer's guesses are mostly those that there are.
fn id(input: &mut Input<'_>) -> u64 {
    if input.one_in(8) { input.lie() } else { u64::from(input.byte() % 24) }
}

fn half(input: &mut Input<'_>, layout: &Layout, peer: Member) -> HalfRef {
    let heap = (layout.extent(peer) + layout.heap_offset) as u64;
    let offset = match input.byte() % 8 {
        0 => input.lie(),
        1 => heap + input.lie() % 4096,
        2 => heap + 128 * u64::from(input.byte()),
        _ => heap + 4096 * u64::from(input.byte()),
    };
    let word = if input.one_in(8) { input.lie() as u32 } else { input.pick(&LAYOUTS) };
    HalfRef { offset, layout: word, nonce: input.lie() }
}

fn kind(input: &mut Input<'_>) -> ConnKind {
    input.pick(&[ConnKind::Stream, ConnKind::Messages])
}

fn port(input: &mut Input<'_>) -> Port {
    Port(input.pick(&[0, 80, 5000, 5001, 0xc000_0000, u32::MAX]))
}

fn name(input: &mut Input<'_>) -> String {
    input.pick(&["kv", "log", "", "a/b", "0123456789012345678901234567890123456789 too long"]).to_owned()
}

fn record(input: &mut Input<'_>, layout: &Layout, peer: Member) -> Record {
    match input.byte() % 8 {
        0 | 1 => {
            let (from, kind, half) = (id(input), kind(input), half(input, layout, peer));
            Record::Connect { from, kind, half, src_port: port(input).0, dst_port: port(input).0 }
        }
        2 | 3 => Record::Accept { from: id(input), to: id(input), half: half(input, layout, peer) },
        4 => Record::Refuse {
            to: id(input),
            code: input.pick(&[RefuseCode::NoListener, RefuseCode::Quota, RefuseCode::BadRequest]),
        },
        5 => Record::Closed { to: id(input) },
        6 => Record::Resolve { from: id(input), name: name(input) },
        _ => Record::Resolved { to: id(input), port: (input.one_in(2)).then(|| port(input).0) },
    }
}

fn message(input: &mut Input<'_>) -> ClientMessage {
    let request = u64::from(input.byte() % 8);
    match input.byte() % 10 {
        0..3 => ClientMessage::Connect {
            request,
            addr: Addr::new(Cid(u32::from(input.byte() % 8)), port(input)),
            kind: kind(input),
            layout: if input.one_in(8) { input.lie() as u32 } else { input.pick(&LAYOUTS) },
            timeout_ms: input.lie(),
        },
        3 => ClientMessage::Cancel { request },
        4 => ClientMessage::Listen {
            request,
            port: port(input),
            kind: kind(input),
            backlog: input.lie() as u32,
            name: (input.one_in(2)).then(|| name(input)),
            layout: input.pick(&LAYOUTS),
        },
        5 => ClientMessage::Unlisten { port: port(input) },
        6 => ClientMessage::Accepted { conn: id(input) },
        7 => ClientMessage::Resolve { request, name: format!("{}/{}", name(input), name(input)) },
        _ => ClientMessage::Drop { conn: id(input) },
    }
}

/// See the module.
pub(crate) fn core(data: &[u8]) {
    let mut input = Input::new(data);
    let geometry = Geometry { members_max: 4, extent_bytes: 2 << 20, black_box_records: 1 };
    let layout = Layout::of(geometry).expect("a valid geometry");
    let backing = Backing(Box::new(|_, _| true));
    let policy = if input.one_in(2) { allow_all() } else { Policy::default() };
    let mut core = BrokerCore::new(OWN, 1, layout, policy, PeerQuota::default(), backing);
    let start = Instant::now();
    let mut now = start;
    let mut quarantined = Vec::new();
    member(&mut core, OWN, 1);
    (1..4).for_each(|peer| member(&mut core, Member(peer), 1));
    (0..3).for_each(|client| core.handle_client(ClientId(client), client == 0));
    while let Some(choice) = input.next() {
        let client = ClientId(u64::from(choice / 16 % 3));
        let peer = Member(u16::from(1 + choice / 16 % 3));
        match choice % 16 {
            0..6 => {
                let record = record(&mut input, &layout, peer);
                // The shell has no session with the dead.
                if core.member(peer).is_some_and(|member| member.generation != 0) {
                    core.handle_record(peer, record);
                }
            }
            6..12 => {
                let message = message(&mut input);
                core.handle_client_message(now, client, message);
            }
            12 => {
                let half =
                    core.conns.values().find(|conn| conn.client() == Some(client)).map(|conn| conn.half);
                if let Some(half) = half.filter(|_| input.one_in(2)) {
                    core.quarantine(half.offset);
                    quarantined.push(half.offset);
                }
                core.handle_client_gone(client);
                core.handle_client(client, client.0 == 0);
            }
            13 => member(&mut core, peer, u64::from(input.byte() % 3)),
            14 => {
                now += Duration::from_millis(input.lie() % 100_000);
                core.handle_timeout(now);
            }
            _ => quarantined.drain(..).for_each(|offset| core.end_quarantine(offset)),
        }
        check(&mut core, &layout);
    }
    // Everybody goes: nothing is left.
    (0..3).for_each(|client| core.handle_client_gone(ClientId(client)));
    (1..4).for_each(|peer| member(&mut core, Member(peer), 0));
    quarantined.drain(..).for_each(|offset| core.end_quarantine(offset));
    check(&mut core, &layout);
    let counts = core.counts();
    assert_eq!((counts.connections, counts.heap_free_bytes), (0, counts.heap_bytes), "{core:#?}");
    assert!(core.poll_timeout().is_none() && core.names.is_empty() && core.questions.is_empty());
}

fn allow_all() -> Policy {
    use crate::broker::{KernelMatch, PolicyAction, PolicyRule, PortMatch};
    let (from, to, port, action) = (KernelMatch::Any, KernelMatch::Any, PortMatch::Any, PolicyAction::Allow);
    Policy { rules: vec![PolicyRule { from, to, port, action }] }
}

fn member(core: &mut BrokerCore, member: Member, generation: u64) {
    let name = ["host", "kv", "db", "extra"][member.index()].to_owned();
    let cid = Cid(2 + u32::from(member.0));
    core.handle_member_change(member, Some(MemberInfo { cid, name, generation }));
}

/// What holds after every step.
fn check(core: &mut BrokerCore, layout: &Layout) {
    while let Some(output) = core.poll_output() {
        match output {
            Output::InitHalf(half) => assert!(layout.heap_contains(OWN, half.offset, half_len(&half))),
            Output::Granted { peer, peer_half, .. } => {
                assert!(layout.heap_contains(peer, peer_half.offset, half_len(&peer_half)));
            }
            _ => {}
        }
    }
    // Halves in use, in order of their places, overlap neither each other nor what is free.
    let taken = |half: &HalfRef| core.heap.taken(half.offset, half_len(half));
    let mut halves: Vec<(u64, u64)> = core.conns.values().map(|c| (c.half.offset, taken(&c.half))).collect();
    let left = core.quarantined.iter().filter_map(|(offset, len)| Some((*offset, (*len)?)));
    halves.extend(left.map(|(offset, len)| (offset, core.heap.taken(offset, len))));
    halves.sort_unstable();
    assert!(halves.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "halves overlap: {halves:?}");
    let used: u64 = halves.iter().map(|(_, len)| len).sum();
    assert_eq!(used + core.heap.free_bytes(), core.heap.len());
    for peer in layout.members() {
        let charged = core.conns.values().filter(|conn| conn.is_charged && conn.peer == peer);
        let held = charged.fold(Held::default(), |held, conn| held.with(taken(&conn.half)));
        assert_eq!(core.held_by(peer), held, "what member {peer} holds");
    }
    let connecting = core.conns.values().filter(|c| matches!(c.state, ConnState::Connecting(_))).count();
    assert!(core.deadlines.len() >= connecting, "a connect that nothing ends");
    let waiting: u32 = core.listeners.values().map(|listener| listener.waiting).sum();
    let at_listener = core.conns.values().filter_map(|c| c.waits_at);
    let known = at_listener.filter(|id| core.listeners.values().any(|listener| listener.id == *id));
    assert_eq!(waiting as usize, known.count(), "the backlogs");
}
