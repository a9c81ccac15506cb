//! Long messages and streams: fragments, turns, credit.

use bytes::Bytes;
use proptest::prelude::*;

use super::sim::{End, SECOND, Sim, UNARY, config};
use crate::connection::{Config, Event, FRAGMENT_FRAME_BYTES, Payload, SendError, Side};
use crate::error::Failure;
use crate::wire::frame::{HEADER_BYTES, Header, Kind};

fn kinds(wire: &std::collections::VecDeque<Vec<u8>>) -> Vec<(Kind, u32)> {
    wire.iter().map(|frame| Header::parse(frame).map(|(h, _)| (h.kind, h.call)).unwrap()).collect()
}

#[test]
fn long_message_arrives_whole_in_frames_of_at_most_16_kib() {
    let mut sim = Sim::established();
    let payload: Vec<u8> = (0..1_000_000u32).map(|i| (i / 3) as u8).collect();
    sim.open(&payload);
    while sim.transmit(End::A) {}
    assert!(sim.to_b.iter().all(|frame| frame.len() <= FRAGMENT_FRAME_BYTES as usize));
    sim.run();
    let told = sim.told_b();
    let [Event::Opened { payload: got, .. }] = &told[..] else { panic!("{}", told.len()) };
    assert!(got[..] == payload);
}

#[test]
fn long_message_that_nothing_waits_for_goes_on_in_longer_frames() {
    let with_long = |side| Config { fragment_bytes: 40_000, ..config(side) };
    let mut sim = Sim::established_with(with_long(Side::Connector), with_long(Side::Acceptor));
    sim.a.open_with(&UNARY, None, None, &[], Payload::Borrowed(b""), &[vec![1; 100_000].into()]).unwrap();
    while sim.transmit(End::A) {}
    let bodies: Vec<usize> = sim.to_b.drain(..).skip(1).map(|frame| frame.len() - HEADER_BYTES).collect();
    assert_eq!(bodies, [16 * 1024, 40_000, 40_000, 3616]);

    let turns: Vec<Bytes> = (1..3).map(|byte| vec![byte; 60_000].into()).collect();
    for tail in turns {
        sim.a.open_with(&UNARY, None, None, &[], Payload::Borrowed(b""), &[tail]).unwrap();
    }
    while sim.transmit(End::A) {}
    let bodies: Vec<usize> = sim.to_b.iter().skip(2).map(|frame| frame.len() - HEADER_BYTES).collect();
    let (last, others) = bodies.split_last().unwrap();
    assert!(others.iter().all(|len| *len <= 16 * 1024), "both wait for their turn: {bodies:?}");
    assert_eq!(*last, 60_000 - 3 * 16 * 1024);
}

#[test]
fn long_messages_take_turns() {
    let mut sim = Sim::established();
    let a = sim.open(&[1; 100_000]);
    let b = sim.open(&[2; 100_000]);
    for _ in 0..6 {
        sim.transmit(End::A);
    }
    let calls: Vec<u32> = kinds(&sim.to_b).into_iter().map(|(_, call)| call).collect();
    assert_eq!(calls, [a, b, a, b, a, b]);
}

#[test]
fn pings_and_small_calls_go_before_a_gigabyte_of_bulk() {
    let mut sim = Sim::established();
    let bulk = sim.open(b"bulk");
    sim.run();
    sim.told_b();
    let chunk = vec![9; 1 << 20];
    let mut sent = 0u64;
    let mut small = 0;
    let mut waited_most = 0;
    while sent < 1 << 30 {
        // As much bulk as the core takes, then a small call and a ping in the middle of it.
        while sim.a.send_item(bulk, Payload::Owned(chunk.clone().into())).is_ok() {
            sent += chunk.len() as u64;
        }
        let call = sim.open(b"small");
        let token = sim.a.ping(sim.now);
        let mut waited = 0;
        let answered = loop {
            sim.transmit(End::A);
            sim.deliver(End::B);
            for event in sim.told_b() {
                match event {
                    Event::Opened { call, .. } => sim.b.respond(call, false, b"y"[..].into()),
                    Event::Item { call, cost, .. } => sim.b.consumed(call, cost),
                    _ => {}
                }
            }
            while sim.transmit(End::B) | sim.deliver(End::A) {}
            waited += 1;
            let told = sim.told_a();
            if told.contains(&Event::Pong { token }) {
                assert_eq!(waited, 1, "the ping waited for bulk");
            }
            if told.iter().any(|e| matches!(e, Event::Answered { call: which, .. } if *which == call)) {
                break waited;
            }
        };
        waited_most = waited_most.max(answered);
        small += 1;
        // Let some bulk through before the next round.
        for _ in 0..40 {
            sim.transmit(End::A);
            sim.deliver(End::B);
            for event in sim.told_b() {
                if let Event::Item { call, cost, .. } = event {
                    sim.b.consumed(call, cost);
                }
            }
            while sim.transmit(End::B) | sim.deliver(End::A) {}
        }
    }
    assert!(small > 100, "{small}");
    assert!(waited_most <= 2, "a small call waited for {waited_most} frames");
}

#[test]
fn flood_of_small_calls_does_not_starve_bulk() {
    let mut theirs = config(Side::Acceptor);
    theirs.calls_max = 10_000;
    let mut sim = Sim::established_with(config(Side::Connector), theirs);
    let bulk = sim.open(&[1; 100_000]);
    for _ in 0..200 {
        sim.open(b"small");
    }
    for _ in 0..200 {
        sim.transmit(End::A);
    }
    let turns = kinds(&sim.to_b).iter().filter(|(_, call)| *call == bulk).count();
    assert!((4..=8).contains(&turns), "bulk had {turns} turns in 200 frames");
}

/// Small frames of other calls, more than may go before a fragment gets its turn.
fn crowd(sim: &mut Sim) {
    for _ in 0..64 {
        sim.open(b"small");
    }
}

#[test]
fn long_item_does_not_overtake_the_opening_of_its_call() {
    let mut sim = Sim::established();
    crowd(&mut sim);
    let call = sim.open(b"stream");
    sim.a.send_item(call, Payload::Owned(vec![1; 10_000].into())).unwrap();
    sim.run();
    assert_eq!(sim.b.closed(), None);
    let items =
        sim.told_b().iter().filter(|e| matches!(e, Event::Item { call: c, .. } if *c == call)).count();
    assert_eq!(items, 1);
}

#[test]
fn long_item_does_not_overtake_a_short_one_of_its_stream() {
    let mut sim = Sim::established();
    let call = sim.open(b"stream");
    sim.run();
    sim.told_b();
    crowd(&mut sim);
    let lens = [10, 10_000, 20, 9_000, 30];
    for len in lens {
        sim.a.send_item(call, Payload::Owned(vec![1; len].into())).unwrap();
    }
    sim.a.end_items(call);
    sim.run();
    let told = sim.told_b();
    let items: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            Event::Item { payload, .. } => Some(payload.len()),
            Event::ItemsEnded { .. } => Some(0),
            _ => None,
        })
        .collect();
    assert_eq!(items, [10, 10_000, 20, 9_000, 30, 0]);
}

#[test]
fn long_answer_does_not_overtake_the_items_before_it() {
    let mut sim = Sim::established();
    let call = sim.open(b"stream");
    crowd(&mut sim);
    sim.run();
    let opened = sim.told_b();
    // Answers to the crowd fill the lane.
    for event in opened {
        if let Event::Opened { call: other, .. } = event
            && other != call
        {
            sim.b.respond(other, false, b"y"[..].into());
        }
    }
    for _ in 0..40 {
        sim.b.send_item(call, b"item"[..].into()).unwrap();
    }
    sim.b.respond(call, false, Payload::Owned(vec![1; 10_000].into()));
    sim.run();
    assert_eq!(sim.a.closed(), None);
    let told = sim.told_a();
    let of_call: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            Event::Item { call: c, .. } if *c == call => Some(false),
            Event::Answered { call: c, .. } if *c == call => Some(true),
            _ => None,
        })
        .collect();
    assert_eq!((of_call.len(), of_call.last()), (41, Some(&true)), "items were overtaken and lost");
}

#[test]
fn answers_that_arrive_in_part_are_bounded_together() {
    let mut ours = config(Side::Connector);
    ours.assembly_bytes_max = 250_000;
    let mut sim = Sim::established_with(ours, config(Side::Acceptor));
    let calls: Vec<u32> = (0..4).map(|_| sim.open(b"x")).collect();
    sim.run();
    for call in &calls {
        sim.b.respond(*call, false, Payload::Owned(vec![1; 200_000].into()));
    }
    sim.run();
    let told = sim.told_a();
    let failed = told.iter().filter(|e| matches!(e, Event::Failed { failure: Failure::TooLarge { .. }, .. }));
    assert!((1..=3).contains(&failed.count()), "{}", told.len());
    assert_eq!((sim.a.assembling_bytes, sim.a.in_flight(), sim.b.in_flight()), (0, (0, 0), (0, 0)));
    assert!(sim.a.closed().is_none() && sim.b.closed().is_none());
}

#[test]
fn sender_stops_at_the_end_of_its_credit_and_only_this_stream() {
    let mut sim = Sim::established();
    let stuck = sim.open(b"stuck");
    let free = sim.open(b"free");
    sim.run();
    sim.told_b();
    let item = || Payload::Owned(vec![5; 10_000].into());
    let mut taken = 0;
    while sim.a.send_item(stuck, item()).is_ok() {
        taken += 1;
        sim.run();
    }
    let arrived = sim.told_b();
    assert_eq!(arrived.len(), 6, "65536 bytes of credit are 6 items of 10008 bytes");
    assert!(taken > 6, "some wait here");
    sim.a.send_item(free, item()).unwrap();
    sim.run();
    assert!(matches!(sim.told_b()[..], [Event::Item { call, .. }] if call == free));
    // Reading lets it go on, and tells who waits.
    let mut unread = arrived;
    for _ in 0..2 {
        for event in unread {
            if let Event::Item { call, cost, .. } = event {
                sim.b.consumed(call, cost);
            }
        }
        sim.run();
        unread = sim.told_b();
        assert!(!unread.is_empty());
    }
    assert!(sim.told_a().contains(&Event::Writable { call: stuck }));
}

#[test]
fn item_longer_than_the_window_gets_through_to_a_reader_that_reads() {
    let mut sim = Sim::established();
    let call = sim.open(b"x");
    sim.run();
    sim.told_b();
    let item: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    sim.a.send_item(call, Payload::Owned(item.clone().into())).unwrap();
    sim.a.end_items(call);
    sim.run();
    let told = sim.told_b();
    let [Event::Item { payload, .. }, Event::ItemsEnded { .. }] = &told[..] else { panic!("{}", told.len()) };
    assert!(payload[..] == item);
}

#[test]
fn messages_beyond_the_peers_limit_are_refused_here() {
    let mut theirs = config(Side::Acceptor);
    theirs.message_bytes_max = 1000;
    theirs.metadata_bytes_max = 10;
    let mut sim = Sim::established_with(config(Side::Connector), theirs);
    let long = sim.a.open(0, &UNARY, None, &[], vec![0; 1001].into()).unwrap_err();
    assert!(matches!(long, Failure::TooLarge { len: 1001, max: 1000, .. }));
    assert_eq!(long.outcome(), crate::Outcome::NotStarted);
    assert!(matches!(
        sim.a.open(0, &UNARY, None, &[0; 11], b""[..].into()),
        Err(Failure::TooLarge { max: 10, .. })
    ));
    let call = sim.open(b"x");
    let item = sim.a.send_item(call, vec![0; 1001].into()).unwrap_err();
    assert!(matches!(item, SendError::Failed(Failure::TooLarge { .. })));
}

#[test]
fn long_answer_that_the_caller_does_not_take_becomes_an_error() {
    let mut ours = config(Side::Connector);
    ours.message_bytes_max = 1000;
    let mut sim = Sim::established_with(ours, config(Side::Acceptor));
    let call = sim.open(b"x");
    sim.run();
    sim.b.respond(call, false, vec![0; 5000].into());
    sim.run();
    let told = sim.told_a();
    let [Event::Failed { failure, .. }] = &told[..] else { panic!("{told:?}") };
    assert!(matches!(failure, Failure::TooLarge { len: 5000, max: 1000, .. }), "{failure}");
}

#[test]
fn requests_that_arrive_in_part_are_bounded_together() {
    let mut theirs = config(Side::Acceptor);
    theirs.assembly_bytes_max = 250_000;
    let mut sim = Sim::established_with(config(Side::Connector), theirs);
    for _ in 0..4 {
        sim.open(&[1; 200_000]);
    }
    sim.run();
    let failed = sim.told_a();
    assert!((1..=3).contains(&failed.len()), "{failed:?}");
    assert!(failed.iter().all(
        |e| matches!(e, Event::Failed { failure: f @ Failure::Overloaded { .. }, .. } if f.retryable())
    ));
    assert_eq!(sim.told_b().len(), 4 - failed.len());
    assert_eq!(sim.b.assembling_bytes, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the order in which the ends are stepped, every message arrives once, whole, in the order of its stream,
    /// and nothing is left over.
    #[test]
    fn all_messages_arrive_in_order_however_the_ends_are_stepped(
        sizes in prop::collection::vec(0usize..40_000, 1..12),
        steps in prop::collection::vec(0u8..6, 0..400),
        small_frames in any::<bool>(),
        long_fragments in any::<bool>(),
        crowded in any::<bool>(),
    ) {
        let fragment_bytes = if long_fragments { 48 * 1024 } else { 0 };
        let ours = Config { fragment_bytes, ..config(Side::Connector) };
        let mut theirs = Config { fragment_bytes, ..config(Side::Acceptor) };
        if small_frames {
            theirs.frame_bytes_max = 512;
        }
        let mut sim = Sim::established_with(ours, theirs);
        let mut calls = Vec::new();
        let mut todo = sizes.iter().enumerate();
        let mut got: std::collections::HashMap<u32, Vec<Vec<u8>>> = Default::default();
        let mut sent: std::collections::HashMap<u32, Vec<Vec<u8>>> = Default::default();
        let steps = steps.into_iter().chain(std::iter::repeat_n([0, 1, 2, 3, 4, 5], 3000).flatten());
        for step in steps {
            match step {
                0 => { sim.transmit(End::A); }
                1 => { sim.transmit(End::B); }
                2 => { sim.deliver(End::A); }
                3 => { sim.deliver(End::B); }
                4 => {
                    if crowded && todo.len() != 0 && sim.a.in_flight().0 < 30 {
                        crowd(&mut sim);
                    }
                    if calls.len() < 3 {
                        calls.push(sim.open(&vec![calls.len() as u8; 10_000 * calls.len()]));
                    }
                    let next = todo.clone().next();
                    if let Some((i, len)) = next {
                        let call = calls[i % calls.len()];
                        let item = vec![i as u8; *len];
                        if sim.a.send_item(call, Payload::Owned(item.clone().into())).is_ok() {
                            sent.entry(call).or_default().push(item);
                            todo.next();
                        }
                    }
                }
                _ => for event in sim.told_b() {
                    match event {
                        Event::Item { call, payload, cost } => {
                            got.entry(call).or_default().push(payload.to_vec());
                            sim.b.consumed(call, cost);
                        }
                        Event::Opened { call, .. } if !calls.contains(&call) => {
                            sim.b.respond(call, false, b"y"[..].into());
                        }
                        _ => {}
                    }
                }
            }
        }
        prop_assert_eq!(sim.a.closed(), None);
        prop_assert_eq!(sim.b.closed(), None);
        prop_assert!(todo.next().is_none());
        prop_assert_eq!(got, sent);
        for call in calls {
            sim.b.respond(call, false, vec![1; 20_000].into());
        }
        sim.run();
        prop_assert_eq!((sim.a.in_flight(), sim.b.in_flight()), ((0, 0), (0, 0)));
        sim.pass(SECOND);
    }
}
