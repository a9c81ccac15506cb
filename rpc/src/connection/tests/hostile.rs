//! Peers that send anything at all.

use proptest::prelude::*;

use super::sim::{End, Sim, own};
use crate::connection::{Event, Payload};
use crate::error::LinkError;
use crate::wire::frame::{Header, Kind, MORE, Open};

fn frame(kind: Kind, flags: u8, aux: u16, call: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = Header { kind, flags, aux, call }.to_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

fn open(call: u32, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    Open { method: 1, fingerprint: 2, remaining_ns: None }.put(&mut frame, call, 0, more);
    frame.extend_from_slice(payload);
    frame
}

/// What B says to these frames from A.
fn verdict(frames: &[Vec<u8>]) -> Option<String> {
    let mut sim = Sim::established();
    sim.b.open(0, &super::sim::UNARY, None, &[], b"x"[..].into()).unwrap();
    sim.run();
    sim.to_b.extend(frames.iter().cloned());
    while sim.deliver(End::B) {}
    let verdict = sim.b.closed().map(ToString::to_string);
    sim.run();
    if verdict.is_some() {
        // The other side gets to know, in words.
        assert!(
            matches!(sim.a.closed(), Some(LinkError::ClosedByPeer(why)) if why.contains("broke the protocol"))
        );
    }
    verdict
}

#[test]
fn every_breach_of_the_protocol_closes_the_link_with_its_name() {
    let data = |call, body: &[u8]| frame(Kind::Data, 0, 0, call, body);
    let breaches: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("shorter than its header", vec![vec![]]),
        ("shorter than its header", vec![vec![3, 0, 0]]),
        ("unknown kind", vec![vec![77, 0, 0, 0, 0, 0, 0, 0]]),
        ("unknown flags", vec![vec![4, 0x80, 0, 0, 1, 0, 0, 0]]),
        ("are the most", vec![vec![4; 64 * 1024 + 1]]),
        ("second HELLO", vec![frame(Kind::Hello, 0, 0, 0, b"TMBL")]),
        ("PROOF at the wrong time", vec![frame(Kind::Proof, 0, 0, 0, &[0; 32])]),
        ("too short", vec![frame(Kind::Open, 0, 0, 1, &[0; 19])]),
        ("too short", vec![frame(Kind::Open, 0, 9, 1, &[0; 20])]),
        ("not the peer's to use", vec![open(2, false, b"")]),
        ("not the peer's to use", vec![open(0, false, b"")]),
        ("after 5", vec![open(5, false, b""), open(3, false, b"")]),
        ("after 5", vec![open(5, false, b""), open(5, false, b"")]),
        ("metadata of 2000 bytes", vec![frame(Kind::Open, 0, 2000, 1, &[0; 2020])]),
        ("never opened", vec![data(1, b"x")]),
        ("never opened", vec![data(4, b"x")]),
        ("never opened", vec![frame(Kind::Cancel, 0, 0, 9, b"")]),
        (
            "beyond the credit",
            (0..9).map(|i| if i == 0 { open(1, false, b"") } else { data(1, &[0; 16_000]) }).collect(),
        ),
        ("empty fragment", vec![open(1, true, b""), frame(Kind::Data, MORE, 0, 1, b"")]),
        ("empty fragment", vec![open(1, false, b""), frame(Kind::Data, MORE, 0, 1, b"")]),
        ("END in the middle", vec![open(1, true, b"x"), frame(Kind::End, 0, 0, 1, b"")]),
        ("after the end", vec![open(1, false, b""), frame(Kind::End, 0, 0, 1, b""), data(1, b"x")]),
        ("wrong side", vec![open(1, false, b""), frame(Kind::Response, 0, 0, 1, b"x")]),
        ("wrong side", vec![frame(Kind::Cancel, 0, 0, 2, b"")]),
        ("not 4", vec![frame(Kind::Credit, 0, 0, 2, b"123")]),
        ("out of range", vec![frame(Kind::Credit, 0, 0, 2, &[0; 4])]),
        ("out of range", vec![frame(Kind::Credit, 0, 0, 2, &[255; 4])]),
        ("not 8", vec![frame(Kind::Ping, 0, 0, 0, b"")]),
        ("ERROR with", vec![frame(Kind::Error, 0, 1, 2, b"short")]),
        ("ERROR with outcome 9", vec![frame(Kind::Error, 0, 1, 2, &[9; 20])]),
        (
            "changes its mind",
            vec![frame(Kind::Response, MORE, 0, 2, b"x"), frame(Kind::Response, 2, 0, 2, b"x")],
        ),
        ("after the end", vec![frame(Kind::Response, MORE, 0, 2, b"x"), data(2, b"x")]),
    ];
    for (expected, frames) in breaches {
        let why = verdict(&frames).unwrap_or_else(|| panic!("{expected}: accepted"));
        assert!(why.contains(expected), "expected `{expected}`, got `{why}`");
    }
}

#[test]
fn request_and_item_beyond_the_limit_close_the_link() {
    let more = |call| frame(Kind::Data, MORE, 0, call, &vec![0; 60_000]);
    let mut frames = vec![open(1, true, b"x")];
    frames.extend((0..150).map(|_| more(1)));
    assert!(verdict(&frames).is_some_and(|why| why.contains("a request of more than")));
}

#[test]
fn peer_that_calls_and_pings_but_never_reads_is_dropped() {
    for flood in [open as fn(u32, bool, &[u8]) -> Vec<u8>, |_, _, _| frame(Kind::Ping, 0, 0, 0, &[0; 8])] {
        let mut sim = Sim::established();
        for i in 0..100_000u32 {
            sim.to_b.push_back(flood(2 * i + 1, false, b""));
            sim.deliver(End::B);
            if sim.b.closed().is_some() {
                break;
            }
        }
        let why = sim.b.closed().expect("replies pile up without end").to_string();
        assert!(why.contains("none is read"), "{why}");
    }
}

#[test]
fn answers_that_are_not_read_are_bounded() {
    let mut sim = Sim::established();
    let mut started = 0;
    for i in 0..100_000u32 {
        sim.to_b.push_back(open(2 * i + 1, false, b""));
        sim.deliver(End::B);
        for event in sim.told_b() {
            if let Event::Opened { call, .. } = event {
                started += 1;
                sim.b.respond(call, false, vec![7; 4096].into());
            }
        }
        if sim.b.closed().is_some() {
            break;
        }
    }
    assert_eq!(started, super::sim::config(crate::connection::Side::Acceptor).calls_max);
    let why = sim.b.closed().expect("answers pile up without end").to_string();
    assert!(why.contains("none is read"), "{why}");
}

#[test]
fn items_to_a_peer_that_gives_credit_and_reads_nothing_are_bounded() {
    let mut sim = Sim::established();
    sim.to_b.push_back(open(1, false, b""));
    sim.to_b.push_back(frame(Kind::Credit, 0, 0, 1, &(1u32 << 31).to_le_bytes()));
    while sim.deliver(End::B) {}
    let mut bytes = 0;
    while sim.b.send_item(1, vec![7; 1000].into()).is_ok() {
        bytes += 1000;
        assert!(bytes < 1 << 20, "items pile up without end");
    }
}

#[test]
fn turns_of_calls_that_are_over_do_not_pile_up() {
    let mut sim = Sim::established();
    for i in 0..10_000u32 {
        let call = 2 * i + 1;
        sim.to_b.push_back(open(call, false, b""));
        sim.deliver(End::B);
        sim.b.respond(call, false, vec![7; 10_000].into());
        sim.to_b.push_back(frame(Kind::Cancel, 0, 0, call, b""));
        sim.deliver(End::B);
    }
    assert_eq!(sim.b.closed(), None);
    assert!(sim.b.bulk.len() < 1000, "{}", sim.b.bulk.len());
}

#[test]
fn idle_link_lives_on_pings_for_years() {
    let mut sim = Sim::established();
    for _ in 0..100_000 {
        sim.pass(5_000_000_000);
        sim.run();
        assert_eq!((sim.a.closed(), sim.b.closed()), (None, None), "after {} s", sim.now / 1_000_000_000);
    }
}

#[test]
fn close_with_escape_sequences_is_printed_without_them() {
    let mut sim = Sim::established();
    sim.to_b.push_back(frame(Kind::Close, 0, 1, 0, b"\x1b[31mred\n"));
    sim.deliver(End::B);
    assert_eq!(sim.b.closed(), Some(&LinkError::ClosedByPeer("[31mred".into())));
}

/// Frames that make sense on their own, in any order.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    (1u8..=15, 0u8..4, 0u16..20, 0u32..12, prop::collection::vec(any::<u8>(), 0..80)).prop_map(
        |(kind, flags, aux, call, body)| {
            let mut frame = vec![kind, flags, aux as u8, 0];
            frame.extend_from_slice(&call.to_le_bytes());
            frame.extend_from_slice(&body);
            frame
        },
    )
}

/// Drives B as a user would, whatever A sends.
fn serve(sim: &mut Sim, log: Vec<Event<'static>>) {
    for event in log {
        match event {
            Event::Opened { call, payload, .. } => match payload.len() % 4 {
                0 => sim.b.respond(call, false, payload),
                1 => {
                    let _ = sim.b.send_item(call, Payload::Owned(vec![1; 30_000].into()));
                    sim.b.respond(call, true, payload);
                }
                2 => sim.b.stop_items(call),
                _ => {}
            },
            Event::Item { call, cost, .. } => sim.b.consumed(call, cost),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_frames_never_panic_and_end_in_a_verdict_or_nothing(
        frames in prop::collection::vec(prop_oneof![
            plausible(),
            prop::collection::vec(any::<u8>(), 0..100),
        ], 0..60),
        before in any::<bool>(),
    ) {
        let mut sim = if before {
            Sim::new(super::sim::config(crate::connection::Side::Connector), super::sim::config(crate::connection::Side::Acceptor))
        } else {
            let mut sim = Sim::established();
            for _ in 0..3 {
                sim.b.open(0, &super::sim::UNARY, Some(1_000_000), &[], b"x"[..].into()).unwrap();
            }
            sim.run();
            sim
        };
        for frame in frames {
            let event = sim.b.handle_frame(sim.now, &frame).map(own);
            let mut log: Vec<_> = event.into_iter().collect();
            while let Some(event) = sim.b.poll_event() {
                log.push(event);
            }
            serve(&mut sim, log);
            while sim.b.poll_transmit().is_some() {}
            sim.now += 1000;
            sim.b.handle_timeout(sim.now);
        }
        sim.now += 60_000_000_000;
        sim.b.handle_timeout(sim.now);
        prop_assert!(sim.b.closed().is_some(), "a peer that went silent is not noticed");
        prop_assert_eq!(sim.b.in_flight(), (0, 0));
        prop_assert_eq!(sim.b.assembling_bytes, 0);
    }

    /// A real conversation with one frame changed, cut or doubled: never a panic, never a hang.
    #[test]
    fn damaged_conversation_never_panics(at in 0usize..40, how in 0u8..4, byte in any::<(u16, u8)>()) {
        let mut sim = Sim::established();
        let call = sim.open(&[1; 40_000]);
        sim.open(b"small");
        sim.a.send_item(call, Payload::Owned(vec![2; 30_000].into())).unwrap();
        sim.a.end_items(call);
        let mut moved = 0;
        for _ in 0..200 {
            if sim.transmit(End::A) {
                if moved == at && let Some(frame) = sim.to_b.back_mut() {
                    let len = frame.len();
                    match how {
                        0 => frame[usize::from(byte.0) % len.min(40)] ^= byte.1 | 1,
                        1 => frame.truncate(usize::from(byte.0) % len),
                        2 => frame.push(byte.1),
                        _ => {
                            let twice = frame.clone();
                            sim.to_b.push_back(twice);
                        }
                    }
                }
                moved += 1;
            }
            sim.deliver(End::B);
            let log = sim.told_b();
            serve(&mut sim, log);
            sim.transmit(End::B);
            sim.deliver(End::A);
        }
        sim.now += 60_000_000_000;
        sim.b.handle_timeout(sim.now);
        sim.a.handle_timeout(sim.now);
        prop_assert_eq!((sim.a.in_flight(), sim.b.in_flight()), ((0, 0), (0, 0)));
    }
}
