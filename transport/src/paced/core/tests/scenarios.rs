//! One behaviour each.

use super::super::frame::{Header, Hello, Kind};
use super::super::{Event, Limits, Link, Pace, Refusal, Role, StreamError};
use super::world::{LISTENING, MS, World, line, pattern};
use crate::addr::Port;
use crate::error::ResetCause;
use crate::incarnation::Incarnation;

const LONG: u64 = 60_000 * MS;

#[test]
fn bytes_go_both_ways_and_end_by_direction() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    world.write_all(0, caller, b"question");
    world.ends[0].finish(caller).unwrap();
    world.settle(LONG);
    assert_eq!(world.read(1, callee), (b"question".to_vec(), Ok(Some(0))));
    world.write_all(1, callee, b"answer");
    world.ends[1].finish(callee).unwrap();
    world.settle(LONG);
    assert_eq!(world.read(0, caller), (b"answer".to_vec(), Ok(Some(0))));
    assert_eq!(world.ends[0].write(caller, b"more"), Err(StreamError::Shutdown));
}

#[test]
fn call_to_a_port_without_listener_is_refused() {
    let mut world = World::new();
    let call = world.ends[0].open(Port(1), Port(8)).unwrap();
    world.settle(LONG);
    let refused = Err(StreamError::Refused(Refusal::NobodyListens));
    assert_eq!(world.ends[0].poll_answer(call), Some(refused));
    world.ends[0].close(call);
    assert!(world.ends.iter().all(|end| end.is_drained()));
}

#[test]
fn reader_who_does_not_read_blocks_nobody_else() {
    let mut world = World::new();
    let (stuck, _never_read) = world.streams(0);
    let (caller, callee) = world.streams(0);
    let mut taken = 0;
    while let Some(more) = world.ends[0].write(stuck, &[1; 4096]).unwrap() {
        taken += more;
        world.settle(LONG);
    }
    assert!(taken <= 128 * 1024, "{taken} bytes went to a reader who does not read");
    let sent = pattern(0, 300_000);
    let mut read = Vec::new();
    for chunk in sent.chunks(10_000) {
        world.write_all(0, caller, chunk);
        world.settle(LONG);
        read.extend(world.read(1, callee).0);
    }
    assert!(read == sent);
}

#[test]
fn streams_take_turns_frame_by_frame() {
    let mut world = World::new();
    let (bulk, _) = world.streams(0);
    let (small, small_callee) = world.streams(0);
    world.ends[0].write(bulk, &[1; 60_000]).unwrap();
    world.ends[0].write(small, b"hello").unwrap();
    // One frame of the bulk, one of the other.
    world.transmit(0, 4028 + 200);
    world.carry(0, usize::MAX);
    assert_eq!(world.read(1, small_callee).0, b"hello");
}

#[test]
fn socket_that_breaks_is_resumed_where_it_was() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    let sent = pattern(0, 30_000);
    world.ends[0].write(caller, &sent).unwrap();
    world.transmit(0, 20_000);
    world.carry(0, 9_000);
    world.cut();
    world.settle(LONG);
    assert_eq!(world.read(1, callee), (sent, Ok(None)));
    assert_eq!(world.ended, [0, 0]);
}

#[test]
fn line_that_one_end_opens_again_unseen_is_resumed() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    world.ends[0].write(caller, b"before").unwrap();
    world.transmit(0, 30);
    world.lose(0, usize::MAX);
    let now = world.now;
    world.ends[0].socket_lost();
    world.ends[0].socket_opened(now);
    world.settle(LONG);
    assert_eq!(world.closed_sockets, ["the peer begins anew on it"]);
    assert_eq!((world.read(1, callee).0, world.ended), (b"before".to_vec(), [0, 0]));
}

#[test]
fn line_that_breaks_unseen_by_one_end_is_resumed_at_once() {
    // Wherever it breaks, and however much of what the other end had written comes still.
    for (went, came) in (0..200).step_by(7).flat_map(|went| [0, 1, 47, 76, 500].map(|came| (went, came))) {
        let mut world = World::line();
        let (caller, callee) = world.streams(0);
        world.ends[0].write(caller, b"there").unwrap();
        world.ends[1].write(callee, b"back").unwrap();
        world.transmit(0, went);
        world.carry(0, came);
        world.cut();
        world.transmit(0, went);
        let before = world.now;
        world.settle(LONG);
        assert!(world.now - before < 500 * MS, "{went}, {came}: after {} ms", (world.now - before) / MS);
        assert_eq!(world.read(1, callee), (b"there".to_vec(), Ok(None)), "{went}, {came}");
        assert_eq!(world.read(0, caller), (b"back".to_vec(), Ok(None)), "{went}, {came}");
        assert!(world.closed_sockets.is_empty() && world.ended == [0, 0], "{:?}", world.closed_sockets);
    }
}

#[test]
fn line_that_is_cut_in_the_middle_of_a_frame_is_taken_up_without_waiting_for_the_rest_of_it() {
    for came in [1, 2, 47, 48, 49, 2000, 4027] {
        let mut world = World::line();
        let (caller, callee) = world.streams(0);
        let sent = pattern(0, 3 * 4028);
        world.ends[1].write(callee, &sent).unwrap();
        world.transmit(1, usize::MAX);
        world.carry(1, came);
        // Only the end that writes sees it.
        world.cut();
        let before = world.now;
        world.settle(LONG);
        assert!(world.now - before < 500 * MS, "{came}: after {} ms", (world.now - before) / MS);
        assert_eq!(world.read(0, caller), (sent, Ok(None)), "{came}");
        assert!(world.closed_sockets.is_empty() && world.ended == [0, 0], "{:?}", world.closed_sockets);
    }
}

#[test]
fn nobody_fills_a_line_whose_other_end_does_not_read_and_it_is_taken_up_when_that_does() {
    for waits in [0, 20_000] {
        let terminal = Pace { limits: Limits::PACKETS.with_window(3584), ..line() };
        let mut world = World::with([terminal; 2]);
        let (_, callee) = world.streams(0);
        world.ends[1].write(callee, &pattern(0, waits)).unwrap();
        world.frozen = Some(0);
        for _ in 0..600 {
            world.transmit(1, usize::MAX);
            world.pass(100 * MS);
        }
        let under_way = world.take_wire(1);
        assert!(under_way.len() < 4096 - 128, "{} bytes lie there", under_way.len());
        world.frozen = None;
        world.settle(LONG);
        world.streams(1);
    }
}

#[test]
fn hello_within_the_bytes_of_an_application_is_none() {
    let mut world = World::line();
    let (caller, callee) = world.streams(0);
    // As a kernel that knows only its own link to the primary would make it up.
    let forged =
        Hello { role: Role::Acceptor, knows: Incarnation([1; 16]), opening: 1000, limits: line().limits };
    let header =
        Header { kind: Kind::Hello, flags: 0, incarnation: Incarnation([9; 16]), seq: 0, ack: 0, stream: 0 };
    let mut sent = vec![7; 100];
    header.encode(&forged.encode(), &mut sent);
    sent.extend(pattern(0, 3000));
    world.ends[1].write(callee, &sent).unwrap();
    world.transmit(1, usize::MAX);
    world.carry(1, 1000);
    assert!(world.ends[0].is_up());
    world.settle(LONG);
    assert_eq!(world.read(0, caller), (sent, Ok(None)));
    assert!(world.closed_sockets.is_empty() && world.ended == [0, 0], "{:?}", world.closed_sockets);
}

#[test]
fn hello_that_is_lost_on_a_line_is_said_again() {
    let mut world = World::line();
    world.streams(0);
    world.cut();
    for end in [0, 1, 0, 1] {
        world.transmit(end, usize::MAX);
        world.lose(end, usize::MAX);
    }
    let before = world.now;
    world.settle(LONG);
    assert!(world.ends.iter().all(Link::is_up) && world.now - before < 1000 * MS);
    assert!(world.closed_sockets.is_empty(), "{:?}", world.closed_sockets);
}

#[test]
fn next_program_at_one_end_of_a_line_is_heard_at_once() {
    for end in [0, 1] {
        let mut world = World::line();
        let (caller, _) = world.streams(0);
        world.ends[0].write(caller, &[7; 9000]).unwrap();
        world.transmit(0, 5000);
        world.carry(0, 4500);
        world.restart(end);
        let before = world.now;
        world.settle(LONG);
        assert!(world.ends.iter().all(Link::is_up) && world.now - before < 500 * MS, "end {end}");
        assert_eq!(world.ended[1 - end], 1, "the other end knows that it is another");
    }
}

#[test]
fn hello_for_a_life_before_brings_nobody_up() {
    for end in [0, 1] {
        let mut world = World::line();
        let (caller, _) = world.streams(0);
        world.ends[0].write(caller, &[7; 9000]).unwrap();
        world.restart(end);
        world.transmit(end, usize::MAX);
        // The other end begins anew by itself, and the first HELLO of the new life gets lost by that.
        world.reopen(1 - end);
        world.transmit(1 - end, usize::MAX);
        world.carry(1 - end, usize::MAX);
        assert!(!world.ends[end].is_up(), "its peer has not heard of it yet");
        let (caller, callee) = world.streams(end);
        world.write_all(end, caller, b"all of it");
        world.settle(LONG);
        assert_eq!(world.read(1 - end, callee), (b"all of it".to_vec(), Ok(None)));
        assert_eq!(world.ended, if end == 0 { [0, 1] } else { [1, 0] });
    }
}

#[test]
fn lost_bytes_are_noticed_and_sent_again() {
    for at in [0, 1, 47, 48, 500, 4027] {
        let mut world = World::new();
        let (caller, callee) = world.streams(0);
        let sent = pattern(0, 20_000);
        world.ends[0].write(caller, &sent).unwrap();
        world.transmit(0, usize::MAX);
        world.carry(0, at);
        world.lose(0, 1);
        world.settle(LONG);
        assert_eq!(world.read(1, callee), (sent, Ok(None)), "one byte lost after {at}");
        assert_eq!(world.closed_sockets.len(), 1);
    }
}

#[test]
fn loss_of_the_last_frame_is_noticed_though_nothing_follows() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    world.ends[0].write(caller, b"last words").unwrap();
    world.transmit(0, usize::MAX);
    world.lose(0, usize::MAX);
    let before = world.now;
    world.settle(LONG);
    assert!(world.now - before < Pace::DEFAULT.keepalive, "noticed by the next keepalive only");
    assert_eq!(world.read(1, callee), (b"last words".to_vec(), Ok(None)));
    assert_eq!(world.closed_sockets, ["1 frames got lost on the way"]);
}

#[test]
fn refused_write_is_tried_again_after_a_pause_and_not_before() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    world.ends[0].write(caller, b"x").unwrap();
    for _ in 0..20 {
        world.refuse(0, 0);
        assert_eq!(world.ends[0].poll_transmit(world.now), None);
        let next = world.ends[0].next_timeout().unwrap();
        assert!(next > world.now, "a timer that is due at once makes a busy loop");
        world.pass(next - world.now);
        assert!(world.ends[0].poll_transmit(world.now).is_some());
    }
    world.settle(LONG);
    assert_eq!(world.read(1, callee).0, b"x");
}

#[test]
fn held_up_frame_makes_no_timer_that_is_always_due() {
    let mut world = World::new();
    world.settle(LONG);
    world.pass(1500 * MS);
    assert!(world.ends[0].poll_transmit(world.now).is_some(), "a keepalive is due");
    // The socket takes nothing: the next timer is the silence of the peer.
    assert!(world.ends[0].next_timeout().unwrap() > world.now);
}

#[test]
fn peer_of_another_life_ends_every_stream() {
    let mut world = World::new();
    let (caller, _) = world.streams(0);
    let (called_by_peer, _) = world.streams(1);
    world.write_all(0, caller, b"who will read this");
    world.restart(1);
    // A call that has not gone yet reaches whoever comes.
    let late = world.ends[0].open(Port(1), LISTENING).unwrap();
    world.settle(LONG);
    let reset = Err(StreamError::Reset(ResetCause::PeerKernelDied));
    assert_eq!(world.ends[0].read(caller, &mut [0; 4]), reset);
    assert_eq!(world.ends[1].read(called_by_peer, &mut [0; 4]), Err(StreamError::Shutdown));
    assert_eq!(world.ends[0].poll_answer(late), Some(Ok(())));
    assert_eq!(world.ended, [1, 0]);
}

#[test]
fn silent_peer_is_an_error_to_everybody_at_the_deadline() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    let waiting = world.ends[0].open(Port(1), LISTENING).unwrap();
    world.frozen = Some(1);
    for _ in 0..11 {
        // Sockets can be made, as to a kernel that hangs, but nothing comes.
        world.connect();
        world.transmit(0, usize::MAX);
        world.lose(0, usize::MAX);
        world.pass(1000 * MS);
    }
    world.frozen = None;
    let reset = StreamError::Reset(ResetCause::PeerKernelDied);
    assert_eq!(world.ends[0].read(caller, &mut [0; 4]), Err(reset.clone()));
    assert_eq!(world.ends[0].poll_answer(waiting), Some(Err(reset.clone())));
    // The peer, who was frozen only, learns it too: before its own clock tells it, it hears of another life.
    world.settle(LONG);
    assert_eq!(world.ends[1].read(callee, &mut [0; 4]), Err(reset));
    world.streams(1);
}

#[test]
fn idle_link_stays_up_by_keepalives() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    for _ in 0..100 {
        world.pass(500 * MS);
        for end in [0, 1] {
            world.transmit(end, usize::MAX);
            world.carry(end, usize::MAX);
        }
    }
    world.write_all(0, caller, b"still there");
    world.settle(LONG);
    assert_eq!(world.read(1, callee).0, b"still there");
    assert!(world.closed_sockets.is_empty());
}

#[test]
fn call_given_up_leaves_nothing_behind() {
    let mut world = World::new();
    for (went, answer_comes) in [(0, false), (usize::MAX, false), (usize::MAX, true)] {
        let call = world.ends[0].open(Port(1), LISTENING).unwrap();
        world.transmit(0, went);
        world.carry(0, usize::MAX);
        world.transmit(1, usize::MAX);
        world.ends[0].close(call);
        if answer_comes {
            world.carry(1, usize::MAX);
        }
        world.settle(LONG);
    }
    for callee in std::mem::take(&mut world.called[1]) {
        let (bytes, end) = world.read(1, callee);
        assert!(bytes.is_empty() && end.is_err());
        world.ends[1].close(callee);
    }
    world.settle(LONG);
    assert!(world.ends.iter().all(|end| end.is_drained()));
}

#[test]
fn closing_before_the_peer_has_read_loses_nothing() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    let sent = pattern(0, 60_000);
    world.ends[0].write(caller, &sent).unwrap();
    world.ends[0].close(caller);
    world.settle(LONG);
    assert_eq!(world.read(1, callee), (sent, Ok(Some(0))));
    let reset = Err(StreamError::Reset(ResetCause::PeerClosed));
    assert_eq!(world.ends[1].write(callee, b"x"), reset);
    world.ends[1].close(callee);
    world.settle(LONG);
    assert!(world.ends.iter().all(|end| end.is_drained()));
}

#[test]
fn bytes_to_a_stream_that_was_closed_meanwhile_are_a_reset_to_their_writer() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    world.ends[0].write(caller, b"crossing").unwrap();
    world.ends[1].close(callee);
    world.transmit(0, usize::MAX);
    world.transmit(1, usize::MAX);
    world.settle(LONG);
    let reset = Err(StreamError::Reset(ResetCause::PeerClosed));
    assert_eq!(world.ends[0].read(caller, &mut [0; 4]), reset);
}

#[test]
fn more_streams_than_a_side_may_have_are_refused_and_later_taken() {
    let mut world = World::new();
    let mut calls: Vec<_> = std::iter::from_fn(|| world.ends[0].open(Port(1), LISTENING).ok()).collect();
    assert_eq!(calls.len(), super::super::streams::STREAMS_MAX);
    world.settle(LONG);
    assert!(calls.iter().all(|call| world.ends[0].poll_answer(*call) == Some(Ok(()))));
    // Closed by the caller, and still held by who was called: no place there.
    world.ends[0].close(calls.pop().unwrap());
    world.settle(LONG);
    let call = world.ends[0].open(Port(1), LISTENING).unwrap();
    world.settle(LONG);
    let refused = Some(Err(StreamError::Refused(Refusal::TooManyStreams)));
    assert_eq!(world.ends[0].poll_answer(call), refused);
    let held = std::mem::take(&mut world.called[1]);
    held.into_iter().for_each(|stream| world.ends[1].close(stream));
    world.settle(LONG);
    let call = world.ends[0].open(Port(1), LISTENING).unwrap();
    world.settle(LONG);
    assert_eq!(world.ends[0].poll_answer(call), Some(Ok(())));
}

#[test]
fn small_writes_under_way_take_few_slots_of_the_ring() {
    let mut world = World::new();
    let (caller, _) = world.streams(0);
    for _ in 0..100 {
        world.ends[0].write(caller, b"x").unwrap();
        world.transmit(0, usize::MAX);
    }
    assert_eq!(world.ends[0].outbox.frames_under_way(), 16);
}

#[test]
fn waiter_is_told_when_there_is_something() {
    let mut world = World::new();
    let (caller, callee) = world.streams(0);
    assert_eq!(world.ends[1].read(callee, &mut [0; 4]), Ok(None));
    world.ends[0].write(caller, b"x").unwrap();
    world.transmit(0, usize::MAX);
    let bytes: Vec<u8> = world.take_wire(0);
    let now = world.now;
    world.ends[1].feed(&bytes, now);
    assert_eq!(world.ends[1].poll_event(), Some(Event::Readable(callee)));
}
