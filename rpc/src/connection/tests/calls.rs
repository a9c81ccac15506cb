//! Calls, deadlines, cancels and drain.

use super::sim::{End, SECOND, Sim, UNARY, config};
use crate::connection::{Ended, Event, Payload, Side};
use crate::error::{Failure, LinkError, Outcome};
use crate::wire::fault::{Code, Fault};

#[test]
fn call_is_answered() {
    let mut sim = Sim::established();
    let call = sim.open(b"question");
    sim.run();
    let told = sim.told_b();
    let [Event::Opened { call: served, method, fingerprint, deadline_ns: None, payload, .. }] = &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((*method, *fingerprint, &payload[..]), (UNARY.id, UNARY.fingerprint, &b"question"[..]));
    sim.b.respond(*served, false, b"answer"[..].into());
    sim.run();
    let answer = Payload::Owned(b"answer"[..].into());
    assert_eq!(sim.told_a(), [Event::Answered { call, app_error: false, payload: answer }]);
    assert_eq!((sim.a.in_flight(), sim.b.in_flight()), ((0, 0), (0, 0)));
}

#[test]
fn small_call_and_reply_are_one_frame_of_at_most_56_bytes_each() {
    let mut sim = Sim::established();
    let call = sim.a.open(0, &UNARY, Some(10 * SECOND), &[], [7; 28][..].into()).unwrap();
    sim.transmit(End::A);
    assert!(!sim.transmit(End::A));
    assert_eq!(sim.to_b[0].len(), 56);
    sim.deliver(End::B);
    sim.b.respond(call, false, [7; 48][..].into());
    sim.transmit(End::B);
    assert_eq!(sim.to_a[0].len(), 56);
}

#[test]
fn same_input_gives_same_output() {
    let run = || {
        let mut sim = Sim::established();
        let mut bytes = Vec::new();
        for i in 0..50u8 {
            sim.a.open(0, &UNARY, Some(u64::from(i) + 1), &[], Payload::Owned(vec![i; 9000].into())).unwrap();
        }
        while sim.transmit(End::A) {
            bytes.extend(sim.to_b.pop_back());
        }
        sim.pass(100);
        (bytes, sim.told_a())
    };
    assert_eq!(run(), run());
}

#[test]
fn deadline_travels_as_what_is_left_and_expires_on_both_sides() {
    let mut sim = Sim::established();
    sim.now = 7 * SECOND;
    let call = sim.a.open(sim.now, &UNARY, Some(sim.now + 1_000_000), &[], b"x"[..].into()).unwrap();
    sim.run();
    assert!(
        matches!(sim.told_b()[..], [Event::Opened { deadline_ns: Some(at), .. }] if at == 7 * SECOND + 1_000_000)
    );
    assert!(sim.a.poll_timeout() <= Some(sim.now + 1_000_000));
    sim.pass(1_000_000);
    let failure = Failure::DeadlineExceeded { started: true };
    assert_eq!(sim.told_a(), [Event::Failed { call, failure }]);
    assert_eq!(sim.told_b(), [Event::Cancelled { call, why: Ended::Deadline }]);
    sim.run();
    assert_eq!((sim.a.in_flight(), sim.b.in_flight()), ((0, 0), (0, 0)));
    assert!(sim.a.closed().is_none() && sim.b.closed().is_none());
}

#[test]
fn call_that_expires_before_it_is_sent_never_leaves() {
    let mut sim = Sim::established();
    for payload in [vec![0; 10], vec![0; 100_000]] {
        let call = sim.a.open(sim.now, &UNARY, Some(sim.now + 5), &[], payload.into()).unwrap();
        sim.pass(5);
        let failure = Failure::DeadlineExceeded { started: false };
        assert_eq!(failure.outcome(), Outcome::NotStarted);
        assert_eq!(sim.told_a(), [Event::Failed { call, failure }]);
        sim.run();
        assert_eq!(sim.told_b(), []);
    }
    let late = sim.a.open(sim.now, &UNARY, Some(sim.now), &[], b"x"[..].into());
    assert_eq!(late, Err(Failure::DeadlineExceeded { started: false }));
}

#[test]
fn cancelled_at_every_point_a_call_leaves_nothing_behind() {
    // A long request, items both ways, a long answer; A gives up after `steps` frames have moved.
    let mut steps = 0;
    loop {
        let mut sim = Sim::established();
        let call = sim.open(&[1; 40_000]);
        sim.a.send_item(call, Payload::Owned(vec![2; 30_000].into())).unwrap();
        sim.a.end_items(call);
        let mut served = None;
        let mut done = false;
        for step in 0.. {
            if step == steps {
                sim.a.cancel(call);
                break;
            }
            let moved =
                sim.transmit(End::A) | sim.deliver(End::B) | sim.transmit(End::B) | sim.deliver(End::A);
            for event in sim.told_b() {
                if let Event::Opened { call, .. } = event {
                    served = Some(call);
                    sim.b.send_item(call, Payload::Owned(vec![3; 50_000].into())).unwrap();
                    sim.b.respond(call, false, Payload::Owned(vec![4; 60_000].into()));
                }
            }
            done = sim.told_a().iter().any(|event| matches!(event, Event::Answered { .. }));
            if done || !moved {
                break;
            }
        }
        sim.run();
        assert_eq!((sim.a.in_flight(), sim.b.in_flight()), ((0, 0), (0, 0)), "after {steps} steps");
        assert!(sim.a.closed().is_none() && sim.b.closed().is_none(), "after {steps} steps");
        // The link still works, and what was assembled is accounted for.
        let next = sim.open(b"next");
        sim.run();
        sim.b.respond(next, false, b"y"[..].into());
        sim.run();
        assert!(
            sim.told_a().iter().any(|event| matches!(event, Event::Answered { call, .. } if *call == next))
        );
        assert_eq!((sim.a.assembling_bytes, sim.b.assembling_bytes), (0, 0));
        if done {
            assert!(served.is_some() && steps > 8, "only {steps} steps");
            break;
        }
        steps += 1;
    }
}

#[test]
fn call_given_up_while_the_transport_is_stuck_is_not_sent_and_neither_are_its_items() {
    let mut sim = Sim::established();
    let call = sim.open(b"x");
    sim.a.send_item(call, b"item"[..].into()).unwrap();
    sim.a.end_items(call);
    sim.a.stop_items(call);
    assert!(!sim.a.cancel(call), "it has not been sent");
    sim.run();
    assert_eq!((sim.told_a(), sim.told_b()), (vec![], vec![]));
    assert!(sim.b.closed().is_none());
}

#[test]
fn stop_does_not_overtake_the_call_it_belongs_to() {
    for len in [1, 100_000] {
        let mut sim = Sim::established();
        let call = sim.open(&vec![0; len]);
        sim.a.stop_items(call);
        sim.run();
        assert!(sim.b.closed().is_none());
        assert_eq!(sim.told_b().last(), Some(&Event::ItemsStopped { call }));
        let closed = sim.b.send_item(call, b"x"[..].into()).unwrap_err();
        assert_eq!(closed, crate::connection::SendError::Failed(Failure::StreamClosed));
    }
}

#[test]
fn late_frames_about_ended_calls_are_harmless() {
    let mut sim = Sim::established();
    let call = sim.open(b"x");
    sim.run();
    // Both end it at the same time; the two frames cross.
    sim.a.send_item(call, b"item"[..].into()).unwrap();
    sim.b.respond(call, false, b"y"[..].into());
    sim.a.cancel(call);
    sim.run();
    assert!(sim.a.closed().is_none() && sim.b.closed().is_none());
}

#[test]
fn refused_call_names_its_reason() {
    let mut sim = Sim::established();
    let call = sim.open(b"x");
    sim.run();
    sim.b.fail(call, Fault::new(Code::SchemaMismatch, false, 42, ""));
    sim.run();
    let failure =
        Failure::SchemaMismatch { method: "test.Sim/unary".into(), ours: UNARY.fingerprint, theirs: 42 };
    assert_eq!(failure.outcome(), Outcome::NotStarted);
    assert_eq!(sim.told_a(), [Event::Failed { call, failure }]);
}

#[test]
fn calls_beyond_the_peers_limit_are_shed_here_and_there() {
    let mut theirs = config(Side::Acceptor);
    theirs.calls_max = 2;
    let mut sim = Sim::established_with(config(Side::Connector), theirs);
    let first = sim.open(b"1");
    sim.open(b"2");
    let shed = sim.a.open(0, &UNARY, None, &[], b"3"[..].into()).unwrap_err();
    assert!(matches!(shed, Failure::Overloaded { .. }) && shed.retryable());
    sim.run();
    // A peer that does not count is told by B.
    let mut frame = Vec::new();
    crate::wire::frame::Open { method: 1, fingerprint: 1, remaining_ns: None }.put(&mut frame, 5, 0, false);
    sim.to_b.push_back(frame);
    sim.deliver(End::B);
    sim.transmit(End::B);
    assert_eq!(sim.to_a[0][..8], [8, 0, Code::Overloaded as u8, 0, 5, 0, 0, 0]);
    sim.to_a.clear();
    sim.b.respond(first, false, b"y"[..].into());
    sim.run();
    assert!(sim.a.open(0, &UNARY, None, &[], b"3"[..].into()).is_ok());
}

#[test]
fn call_ids_start_again_after_two_to_the_31_and_pass_over_those_in_use() {
    let mut sim = Sim::established();
    let long = sim.open(b"long");
    assert_eq!(long, 1);
    sim.run();
    // As if 2^31 - 2 calls had been made meanwhile.
    sim.a.next_id = u32::MAX;
    sim.b.last_peer_id = u32::MAX - 2;
    let ids: Vec<u32> = (0..3).map(|_| sim.open(b"x")).collect();
    assert_eq!(ids, [u32::MAX, 3, 5]);
    sim.run();
    assert!(sim.b.closed().is_none(), "{:?}", sim.b.closed());
    assert_eq!(sim.b.in_flight(), (0, 4));
}

#[test]
fn goaway_names_the_last_call_and_the_rest_is_known_not_to_have_started() {
    let mut sim = Sim::established();
    let first = sim.open(b"1");
    sim.run();
    // The second is on its way when B says GOAWAY.
    let second = sim.open(b"2");
    sim.b.go_away(0, "update");
    sim.transmit(End::B);
    sim.deliver(End::A);
    let told = sim.told_a();
    assert!(told.contains(&Event::GoingAway { reason: "update".into() }));
    let failure = Failure::Draining("update".into());
    assert!(told.contains(&Event::Failed { call: second, failure: failure.clone() }));
    assert_eq!(sim.a.open(0, &UNARY, None, &[], b"3"[..].into()), Err(failure));
    sim.run();
    assert!(sim.b.closed().is_none(), "the first call is still under way");
    sim.b.respond(first, false, b"y"[..].into());
    sim.run();
    assert!(sim.told_a().iter().any(|e| matches!(e, Event::Answered { call, .. } if *call == first)));
    assert_eq!((sim.a.closed(), sim.b.closed()), (Some(&LinkError::Closed), Some(&LinkError::Closed)));
}

#[test]
fn call_that_crosses_goaway_of_an_idle_peer_is_refused_not_cut_off() {
    let mut sim = Sim::established();
    let call = sim.open(b"1");
    sim.transmit(End::A);
    sim.b.go_away(0, "update");
    sim.run();
    let told = sim.told_a();
    let failed: Vec<_> = told.iter().filter(|e| matches!(e, Event::Failed { .. })).collect();
    let [Event::Failed { call: which, failure }] = failed[..] else { panic!("{told:?}") };
    assert_eq!((*which, failure.outcome(), failure.retryable()), (call, Outcome::NotStarted, true));
    assert_eq!(sim.a.closed(), Some(&LinkError::Closed));
}

#[test]
fn silent_peer_is_asked_and_then_given_up() {
    let mut sim = Sim::established();
    let call = sim.open(b"x");
    sim.run();
    sim.told_b();
    assert_eq!(sim.a.poll_timeout(), Some(5 * SECOND));
    sim.pass(5 * SECOND);
    assert!(sim.transmit(End::A), "no ping");
    sim.run();
    assert!(sim.told_a().contains(&Event::Pong { token: 1 }), "a peer that is there answers");
    sim.now += 15 * SECOND;
    sim.a.handle_timeout(sim.now);
    sim.collect();
    let told = sim.told_a();
    assert!(
        matches!(&told[0], Event::Failed { call: which, failure: Failure::LinkLost { started: true, .. } } if *which == call)
    );
    assert!(matches!(&told[1], Event::Closed(LinkError::Silent { .. })));
}

#[test]
fn long_request_and_the_short_ones_after_it_open_in_order() {
    let mut sim = Sim::established();
    let mut calls = Vec::new();
    for len in [10, 100_000, 10, 5_000, 10] {
        calls.push(sim.open(&vec![1; len]));
    }
    sim.run();
    assert_eq!((sim.a.closed(), sim.b.closed()), (None, None));
    let mut opened: Vec<_> = sim
        .told_b()
        .iter()
        .filter_map(|event| match event {
            Event::Opened { call, .. } => Some(*call),
            _ => None,
        })
        .collect();
    opened.sort_unstable();
    assert_eq!(opened, calls);
}
