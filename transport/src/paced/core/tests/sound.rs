//! What differs where sockets have a flow control of their own.

use super::super::frame::{Header, Hello, Kind};
use super::super::{Event, Limits, Pace, Role};
use super::world::{MS, SMALL_AND_SOUND, World, link, pattern};
use crate::incarnation::Incarnation;

const LONG: u64 = 60_000 * MS;

#[test]
fn long_frames_go_each_by_itself_and_short_ones_together() {
    let mut world = World::sound();
    let streams: Vec<_> = (0..3).map(|_| world.streams(0).0).collect();
    for stream in &streams {
        world.ends[0].write(*stream, b"short").unwrap();
    }
    let now = world.now;
    assert_eq!(world.ends[0].poll_transmit(now).unwrap().len(), 3 * (48 + 5));
    world.settle(LONG);
    world.ends[0].write(streams[0], &[1; 9000]).unwrap();
    world.ends[0].write(streams[1], b"short").unwrap();
    let now = world.now;
    assert_eq!(world.ends[0].poll_transmit(now).unwrap().len(), 9000);
}

#[test]
fn part_of_a_batch_that_went_may_be_acknowledged() {
    let mut world = World::sound();
    let (caller, callee) = world.streams(0);
    for (went, came) in (0..170).step_by(5).flat_map(|went| [0, 48, 49, 60, 200].map(|came| (went, came))) {
        let other = world.streams(0);
        world.ends[0].write(caller, b"one").unwrap();
        world.ends[0].write(other.0, b"other").unwrap();
        world.transmit(0, went);
        world.carry(0, came);
        // The acknowledgement comes while the rest of the batch waits for the socket.
        world.pass(6 * MS);
        world.transmit(1, usize::MAX);
        world.carry(1, usize::MAX);
        world.settle(LONG);
        assert_eq!(world.read(1, callee).0, b"one", "{went}, {came}");
        assert_eq!(world.read(1, other.1).0, b"other", "{went}, {came}");
        assert!(world.closed_sockets.is_empty(), "{:?}", world.closed_sockets);
    }
}

#[test]
fn window_of_a_stream_grows_as_it_is_read_and_comes_back_when_it_is_closed() {
    let mut world = World::with([Pace { limits: Limits::SOUND, ..SMALL_AND_SOUND }; 2]);
    let spare = world.ends[1].streams.spare_window();
    let (caller, callee) = world.streams(0);
    for chunk in pattern(0, 4 << 20).chunks(50_000) {
        world.write_all(0, caller, chunk);
        world.settle(LONG);
        assert_eq!(world.read(1, callee).0, chunk);
    }
    // Nobody reads any more.
    let mut taken = 0;
    while let Some(more) = world.ends[0].write(caller, &[1; 50_000]).unwrap() {
        taken += more;
        world.settle(LONG);
    }
    let stream_bytes = Limits::SOUND.stream_bytes;
    assert!((stream_bytes / 2..2 * stream_bytes).contains(&taken), "{taken} bytes");
    assert_eq!(spare - world.ends[1].streams.spare_window(), Limits::SOUND.stream_bytes as u64 - 65_536);
    world.ends[0].close(caller);
    world.ends[1].close(callee);
    world.settle(LONG);
    assert_eq!(world.ends[1].streams.spare_window(), spare);
}

#[test]
fn socket_that_breaks_is_resumed_where_it_was_in_the_middle_of_a_long_frame() {
    let mut world = World::sound();
    let (caller, callee) = world.streams(0);
    let sent = pattern(0, 30_000);
    world.ends[0].write(caller, &sent).unwrap();
    world.transmit(0, 13_000);
    world.carry(0, 12_000);
    world.cut();
    world.settle(LONG);
    assert_eq!(world.read(1, callee), (sent, Ok(None)));
    assert_eq!(world.ended, [0, 0]);
}

#[test]
fn end_over_packets_is_sent_no_more_than_it_takes() {
    for packets in [0, 1] {
        let mut paces = [Pace { limits: Limits::SOUND, ..SMALL_AND_SOUND }; 2];
        paces[packets] = Pace::DEFAULT;
        let mut world = World::with(paces);
        let (caller, callee) = world.streams(0);
        let sent = pattern(0, 300_000);
        let mut read = Vec::new();
        for chunk in sent.chunks(60_000) {
            world.write_all(0, caller, chunk);
            world.settle(LONG);
            read.extend(world.read(1, callee).0);
        }
        // `World` checks the windows all along.
        assert!(read == sent && world.closed_sockets.is_empty());
    }
}

#[test]
fn other_limits_in_the_same_life_break_the_protocol() {
    let mut end = link(Role::Acceptor, 2, SMALL_AND_SOUND);
    let peer = Incarnation([9; 16]);
    let mut greet = |limits| {
        end.socket_opened(0);
        let hello = Hello { role: Role::Dialler, knows: Incarnation([2; 16]), opening: 0, limits };
        let mut bytes = Vec::new();
        Header { kind: Kind::Hello, flags: 0, incarnation: peer, seq: 0, ack: 0, stream: 0 }
            .encode(&hello.encode(), &mut bytes);
        end.feed(&bytes, 0);
        std::iter::from_fn(|| end.poll_event()).last()
    };
    assert!(matches!(greet(Limits::SOUND), Some(Event::Up { resumed: false })));
    assert!(matches!(greet(Limits::SOUND), Some(Event::Up { resumed: true })));
    assert!(matches!(greet(Limits::PACKETS), Some(Event::CloseSocket { is_violation: true, .. })));
}
