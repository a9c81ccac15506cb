//! `docs/pool-format.md` against the code: a reader written from the document alone, in another language, finds in a pool in use
//! what was put there. Needs python3; says so where there is none.

mod common;

use std::io::Write as _;
use std::process::Command;

use common::Fabric;
use tokio::io::AsyncWriteExt;
use tombolo_transport::pool::{BlackBoxLevel, Geometry, Phase, PoolSource};
use tombolo_transport::{Incarnation, ListenOptions, Member, Pool, Port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_made_from_the_document_finds_everything() {
    let geometry = Geometry { members_max: 4, extent_bytes: 2 << 20, black_box_records: 5 };
    let fabric = Fabric::with_geometry(1, geometry).await;
    let member = Pool::attach(PoolSource::path(fabric.pool_path()), Member(1)).unwrap();
    let mut black_box = member.black_box_writer().unwrap();
    for number in 1..=7 {
        black_box.record(BlackBoxLevel::Warn, &format!("word {number}"));
    }
    let mut heart = member.heartbeat_writer().unwrap();
    heart.set_incarnation(Incarnation([0xab; 16]));
    heart.set_phase(Phase::Running);
    heart.beat();

    let (client, server) =
        (fabric.brokers[0].endpoint().await.unwrap(), fabric.brokers[1].endpoint().await.unwrap());
    let mut streams = server.listen(Port(5000), ListenOptions::default()).await.unwrap();
    let mut messages = server.listen_messages(Port(5001), ListenOptions::default()).await.unwrap();
    let mut stream = client.connect(streams.local_addr()).await.unwrap();
    let (mut accepted, _) = streams.accept().await.unwrap();
    stream.write_all(b"from the caller").await.unwrap();
    accepted.write_all(b"from the acceptor").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut sender = client.connect_messages(messages.local_addr()).await.unwrap();
    let _receiver = messages.accept().await.unwrap();
    let long: Vec<u8> = (0..1000_u32).map(|at| (at % 251) as u8).collect();
    for message in [&b"short"[..], &long, b"", &long[..57]] {
        sender.send(message).await.unwrap();
    }
    // The first goes at once, the others together.
    for message in [&b"first"[..], &long[..60], &long[..5]] {
        assert!(sender.try_put_parts(&[message]).unwrap());
    }
    sender.try_flush().unwrap();

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pool_format.py");
    let output = match Command::new("python3").arg(script).arg(fabric.pool_path()).output() {
        Ok(output) => output,
        Err(error) => {
            // Not `eprintln!`: the test harness would swallow it.
            let _ = writeln!(std::io::stderr(), "SKIPPED the pool format's other reader: python3: {error}");
            return;
        }
    };
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{found}{}", String::from_utf8_lossy(&output.stderr));
    let crc = crc32fast::hash;
    for line in [
        "pool: 4 members, extents of 2097152, 5 records",
        "member 0: cid 2, host, alive",
        "member 1: cid 3, k1, alive",
        &format!("heart of member 1: 1 beats, phase 2, {}", "ab".repeat(16)),
        "black box of member 1: 3, level 3, word 3",
        "black box of member 1: 7, level 3, word 7",
        "record 1 from 0 to 1: CONNECT 1",
        "record 2 from 0 to 1: CONNECT 2",
        "record 1 from 1 to 0: ACCEPT 0",
        "half of member 0, state 3: 15 bytes, from the caller",
        "half of member 1, state 1: 17 bytes, from the acceptor",
        "half of member 0, state 1: message 0 in its slot, short",
        &format!("half of member 0, state 1: message 1 in the ring, 1000 bytes, {:08x}", crc(&long)),
        "half of member 0, state 1: message 2 in its slot, ",
        &format!("half of member 0, state 1: message 3 in the ring, 57 bytes, {:08x}", crc(&long[..57])),
        "half of member 0, state 1: message 4 in its slot, first",
        &format!("half of member 0, state 1: message 5 of a run of 2, 60 bytes, {:08x}", crc(&long[..60])),
        &format!("half of member 0, state 1: message 5 of a run of 2, 5 bytes, {:08x}", crc(&long[..5])),
    ] {
        assert!(found.lines().any(|found| found == line), "`{line}` is not among:\n{found}");
    }
    assert!(!found.contains("word 2"), "overwritten:\n{found}");
}
