//! Doorbells that are lost at random: whoever sleeps is found by its next look around, and that it had to be found is counted.
//!
//! Brokers, processes and the line between them are tasks of one runtime whose clock jumps to the next timer, so that waiting is exact and
//! costs no time. `TOMBOLO_SEED` chooses which bells are lost.

mod common;

use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use common::Fabric;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tombolo_transport::{
    Addr, AttachOptions, Cid, ConnectOptions, Endpoint, ListenOptions, Member, Messages, Port, Sizes,
};

const RECHECK: Duration = Duration::from_millis(100);
const PORT: Port = Port(7000);

/// Passes bells on between two ends of a line, but for those that are lost: `loss` of 256.
async fn lossy_line(
    mut from: tokio::io::ReadHalf<UnixStream>,
    mut to: tokio::io::WriteHalf<UnixStream>,
    loss: u64,
    mut seed: u64,
) {
    while let Ok(bell) = from.read_u8().await {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if seed >> 56 >= loss && to.write_u8(bell).await.is_err() {
            return;
        }
    }
}

/// The primary and one kernel, with a line between them that loses bells.
async fn fabric(loss: u64) -> Fabric {
    let fabric = Fabric::new(1).await;
    let seed = std::env::var("TOMBOLO_SEED").map_or(1, |seed| seed.parse().unwrap());
    let [(near, relay_near), (far, relay_far)] = [(); 2].map(|()| StdUnixStream::pair().unwrap());
    fabric.brokers[0].add_line(Member(1), near.into()).unwrap();
    fabric.brokers[1].add_line(Member::PRIMARY, far.into()).unwrap();
    let [near, far] = [relay_near, relay_far].map(|stream| {
        stream.set_nonblocking(true).unwrap();
        tokio::io::split(UnixStream::from_std(stream).unwrap())
    });
    tokio::spawn(lossy_line(near.0, far.1, loss, seed));
    tokio::spawn(lossy_line(far.0, near.1, loss, seed ^ 0xdead_beef));
    fabric
}

/// A process that sleeps as soon as there is nothing to do.
async fn process(fabric: &Fabric, member: Member) -> Endpoint {
    let options = AttachOptions { spin: Duration::ZERO, recheck: RECHECK };
    Endpoint::attach_with(fabric.socket(member), options).await.unwrap()
}

async fn connected(fabric: &Fabric, sizes: Sizes) -> (Messages, Messages, [Endpoint; 2]) {
    let server = process(fabric, Member(1)).await;
    let mut listener =
        server.listen_messages(PORT, ListenOptions { sizes, ..ListenOptions::default() }).await.unwrap();
    let client = process(fabric, Member::PRIMARY).await;
    let options = ConnectOptions { sizes, ..ConnectOptions::default() };
    let near = client.connect_messages_with(Addr::new(Cid(3), PORT), &options).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (near, far, [client, server])
}

fn found(endpoints: &[Endpoint]) -> u64 {
    endpoints.iter().map(Endpoint::bells_found_by_timer).sum()
}

/// Round trips between two sleepers; how many took any time.
async fn round_trips(near: &mut Messages, mut far: Messages, count: u64) -> u64 {
    let echo = tokio::spawn(async move {
        while let Some(message) = far.recv().await.unwrap() {
            far.send(&message).await.unwrap();
        }
    });
    let mut waited = 0;
    for index in 0..count {
        let begun = Instant::now();
        near.send(&index.to_le_bytes()).await.unwrap();
        let back = near.recv().await.unwrap().unwrap();
        assert_eq!(back, index.to_le_bytes()[..]);
        let took = begun.elapsed();
        // Two bells, each of which may be lost.
        assert!(took <= 2 * RECHECK + 2 * TIMER_GRAIN, "message {index} took {took:?}");
        waited += u64::from(took > Duration::ZERO);
    }
    near.shutdown().await.unwrap();
    echo.await.unwrap();
    waited
}

/// Tokio's timers are exact to a millisecond.
const TIMER_GRAIN: Duration = Duration::from_millis(1);
const ROUND_TRIPS: u64 = 300;

#[tokio::test(start_paused = true)]
async fn without_loss_nobody_waits_and_nobody_is_found_by_the_timer() {
    let fabric = fabric(0).await;
    let (mut near, far, endpoints) = connected(&fabric, Sizes::default()).await;
    assert_eq!(round_trips(&mut near, far, ROUND_TRIPS).await, 0);
    assert_eq!(found(&endpoints), 0);
}

#[tokio::test(start_paused = true)]
async fn a_sleeper_whose_bell_is_lost_is_found_by_its_next_look_and_counted() {
    for loss in [64, 128, 240, 256] {
        let fabric = fabric(loss).await;
        let (mut near, far, endpoints) = connected(&fabric, Sizes::default()).await;
        let before = found(&endpoints);
        let waited = round_trips(&mut near, far, ROUND_TRIPS).await;
        let found = found(&endpoints) - before;
        assert!(waited > ROUND_TRIPS * loss / 256 / 2, "of {ROUND_TRIPS} round trips {waited} lost a bell");
        assert!(found >= waited, "{waited} waited, {found} were found by the timer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_waits_for_room_is_found_too() {
    let fabric = fabric(200).await;
    let sizes = Sizes { slots: 4, ring_bytes: 4096, ..Sizes::default() };
    let (near, mut far, endpoints) = connected(&fabric, sizes).await;
    let count = 200_u32;
    let sending = tokio::spawn(async move {
        let (mut sender, _receiver) = near.split();
        let mut longest = Duration::ZERO;
        for index in 0..count {
            let begun = Instant::now();
            sender.send(&index.to_le_bytes()).await.unwrap();
            longest = longest.max(begun.elapsed());
        }
        sender.shutdown().await.unwrap();
        longest
    });
    for index in 0..count {
        let begun = Instant::now();
        assert_eq!(far.recv().await.unwrap().unwrap(), index.to_le_bytes()[..]);
        // Ours may be lost, and that of the sender which makes it write on.
        assert!(begun.elapsed() <= 2 * RECHECK + 2 * TIMER_GRAIN);
    }
    assert_eq!(far.recv().await.unwrap(), None);
    assert!(sending.await.unwrap() <= 2 * RECHECK + 2 * TIMER_GRAIN);
    assert!(found(&endpoints) > 0);
}

/// Brokers look around by themselves, too: every connection is made, and what they had to find is in their status.
#[tokio::test(start_paused = true)]
async fn connections_are_made_and_closed_though_brokers_miss_bells() {
    let fabric = fabric(128).await;
    let server = process(&fabric, Member(1)).await;
    let mut listener = server.listen_messages(PORT, ListenOptions::default()).await.unwrap();
    let client = process(&fabric, Member::PRIMARY).await;
    let recheck = fabric.config(Member::PRIMARY).recheck_with_lines;
    for _ in 0..50 {
        let begun = Instant::now();
        let near = client.connect_messages(Addr::new(Cid(3), PORT)).await.unwrap();
        assert!(begun.elapsed() <= 2 * recheck + 2 * TIMER_GRAIN, "{:?}", begun.elapsed());
        let (mut far, _) = listener.accept().await.unwrap();
        drop(near);
        let begun = Instant::now();
        assert_eq!(far.recv().await.unwrap(), None);
        assert!(begun.elapsed() <= RECHECK + TIMER_GRAIN);
    }
    drop(listener);
    fabric.wait_until_free(0).await;
    fabric.wait_until_free(1).await;
    let mut found = 0;
    for broker in &fabric.brokers {
        found += broker.status().await.unwrap().found_by_timer;
    }
    assert!(found > 0);
}
