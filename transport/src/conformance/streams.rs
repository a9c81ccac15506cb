//! Behaviours of byte streams.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::tools::{
    End, Random, SETTLE, ensure, expect_io_error, expect_same, is_reset, poll_then_drop, read_to_some_end,
};
use super::{Case, Check, Failure};

/// Larger than any window a backend has by default, small enough for an emulated kernel.
const BULK_BYTES: usize = 3 * 1024 * 1024 + 77;
/// A writer that got rid of so much without a reader has no back-pressure.
const WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(super) async fn bytes_arrive_whole_in_order_over_any_split(case: Case) -> Check {
    let (caller, callee) = case.streams().await?;
    let (mut caller_read, mut caller_write) = caller.split();
    let (mut callee_read, mut callee_write) = callee.split();
    let there = Random::new(1).bytes(BULK_BYTES);
    let back = Random::new(2).bytes(BULK_BYTES);
    let (sent, sent_back, arrived, arrived_back) = tokio::join!(
        write_split(&mut caller_write, &there, 3),
        write_split(&mut callee_write, &back, 4),
        read_split(&mut callee_read, 5),
        read_split(&mut caller_read, 6),
    );
    sent?;
    sent_back?;
    expect_same("there", &arrived?, &there)?;
    expect_same("back", &arrived_back?, &back)
}

pub(super) async fn half_close_leaves_the_other_direction_open(case: Case) -> Check {
    for swapped in [false, true] {
        let (caller, callee) = case.streams().await?;
        let (mut near, mut far) = if swapped { (callee, caller) } else { (caller, callee) };
        near.write_all(b"last words").await?;
        near.shutdown().await?;
        let (words, end) = read_to_some_end(&mut far).await?;
        ensure!(end == End::Orderly, "half-close arrived as a reset");
        expect_same("before the half-close", &words, b"last words")?;
        let answer = Random::new(7).bytes(500_000);
        let (written, read) = tokio::join!(
            async {
                far.write_all(&answer).await?;
                far.shutdown().await
            },
            read_to_some_end(&mut near),
        );
        written?;
        let (read, end) = read?;
        ensure!(end == End::Orderly, "the answer ended in a reset");
        expect_same("after the half-close", &read, &answer)?;
    }
    Ok(())
}

pub(super) async fn write_after_shutdown_is_an_error(case: Case) -> Check {
    let (mut caller, _callee) = case.streams().await?;
    caller.shutdown().await?;
    let written = async {
        caller.write_all(b"too late").await?;
        caller.flush().await
    };
    expect_io_error("writing after shutdown", written.await, &[ErrorKind::BrokenPipe])
}

pub(super) async fn data_in_flight_survives_the_writers_drop(case: Case) -> Check {
    for len in [1, 100, 30_000] {
        let (mut caller, mut callee) = case.streams().await?;
        let sent = Random::new(len as u64).bytes(len);
        caller.write_all(&sent).await?;
        caller.flush().await?;
        drop(caller);
        let (read, end) = read_to_some_end(&mut callee).await?;
        ensure!(end == End::Orderly, "a clean close of {len} bytes arrived as a reset");
        expect_same("written before the drop", &read, &sent)?;
    }
    Ok(())
}

pub(super) async fn dropped_peer_ends_a_waiting_reader(case: Case) -> Check {
    for callee_drops in [false, true] {
        let (caller, callee) = case.streams().await?;
        let (mut near, far) = if callee_drops { (caller, callee) } else { (callee, caller) };
        let reader = tokio::spawn(async move { read_to_some_end(&mut near).await });
        tokio::time::sleep(SETTLE).await;
        ensure!(!reader.is_finished(), "a read returned with nothing sent");
        drop(far);
        let (bytes, _) = joined(reader.await)??;
        ensure!(bytes.is_empty(), "{} bytes came from nowhere", bytes.len());
    }
    Ok(())
}

pub(super) async fn dropped_peer_ends_a_writer(case: Case) -> Check {
    let (mut caller, callee) = case.streams().await?;
    let writer = tokio::spawn(async move {
        let chunk = vec![7; 64 * 1024];
        loop {
            if let Err(error) = caller.write_all(&chunk).await {
                return error;
            }
        }
    });
    tokio::time::sleep(SETTLE).await;
    ensure!(!writer.is_finished(), "a writer without a reader finished: {}", joined(writer.await)?);
    drop(callee);
    let error = joined(writer.await)?;
    ensure!(is_reset(error.kind()), "the writer failed as {:?}: {error}", error.kind());
    Ok(())
}

pub(super) async fn unread_data_dropped_with_the_peer_is_no_silence(case: Case) -> Check {
    let (mut caller, mut callee) = case.streams().await?;
    caller.write_all(&[1; 1000]).await?;
    caller.flush().await?;
    let mut first = [0];
    callee.read_exact(&mut first).await?;
    drop(callee);
    let (bytes, _) = read_to_some_end(&mut caller).await?;
    ensure!(bytes.is_empty(), "{} bytes came from nowhere", bytes.len());
    Ok(())
}

pub(super) async fn dropped_writer_half_ends_the_peers_reading(case: Case) -> Check {
    let (caller, mut callee) = case.streams().await?;
    let (mut caller_read, mut caller_write) = caller.split();
    caller_write.write_all(b"bye").await?;
    caller_write.flush().await?;
    drop(caller_write);
    let (bytes, end) = read_to_some_end(&mut callee).await?;
    ensure!(end == End::Orderly, "a dropped writing half arrived as a reset");
    expect_same("before the drop", &bytes, b"bye")?;
    callee.write_all(b"still here").await?;
    callee.shutdown().await?;
    let (bytes, _) = read_to_some_end(&mut caller_read).await?;
    expect_same("after the drop", &bytes, b"still here")
}

pub(super) async fn writer_of_a_peer_that_never_reads_waits_then_resumes(case: Case) -> Check {
    let (caller, mut callee) = case.streams().await?;
    let (_caller_read, mut caller_write) = caller.split();
    let source = Random::new(11).bytes(1 << 20);
    let mut taken = 0;
    // Until it stays pending: then the window is full.
    loop {
        let from = taken % source.len();
        match timeout(SETTLE, caller_write.write(&source[from..])).await {
            Ok(written) => taken += written?,
            Err(_) => break,
        }
        ensure!(taken < WINDOW_BYTES_MAX, "{taken} bytes went to a peer that reads nothing");
    }
    let more = 1 << 20;
    let writing = async {
        let target = taken + more;
        let mut taken = taken;
        while taken < target {
            let from = taken % source.len();
            let upto = source.len().min(from + (target - taken));
            taken += caller_write.write(&source[from..upto]).await?;
        }
        caller_write.shutdown().await
    };
    let (written, read) = tokio::join!(writing, read_to_some_end(&mut callee));
    written?;
    let (read, end) = read?;
    ensure!(end == End::Orderly, "the stream ended in a reset after {} bytes", read.len());
    let expected: Vec<u8> = source.iter().copied().cycle().take(taken + more).collect();
    expect_same("after the wait", &read, &expected)
}

pub(super) async fn dropped_read_loses_nothing(case: Case) -> Check {
    let (mut caller, mut callee) = case.streams().await?;
    let sent = Random::new(13).bytes(200_000);
    let writer = {
        let sent = sent.clone();
        tokio::spawn(async move {
            let written = write_split(&mut caller, &sent, 14).await;
            (caller, written)
        })
    };
    let mut random = Random::new(15);
    let mut read = Vec::new();
    while read.len() < sent.len() {
        // Giving up a read before it is ready must take nothing from the stream.
        let mut chunk = vec![0; 1 + random.below(4000)];
        let times = random.below(3);
        let got = match poll_then_drop(callee.read(&mut chunk), times).await {
            Some(got) => got?,
            None => match timeout(Duration::from_millis(1), callee.read(&mut chunk)).await {
                Ok(got) => got?,
                Err(_) => continue,
            },
        };
        ensure!(got > 0, "the stream ended after {} of {} bytes", read.len(), sent.len());
        read.extend_from_slice(&chunk[..got]);
    }
    let (_caller, written) = joined(writer.await)?;
    written?;
    let (more, _) = read_to_some_end(&mut callee).await?;
    ensure!(more.is_empty(), "{} bytes came after the last", more.len());
    expect_same("with reads given up", &read, &sent)
}

async fn write_split(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8], seed: u64) -> Check {
    let mut random = Random::new(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        // Mostly small pieces, now and then a large one.
        let piece = if random.below(8) == 0 { random.below(300_000) } else { random.below(5000) };
        let (now, later) = rest.split_at(piece.min(rest.len()));
        io.write_all(now).await?;
        if random.below(16) == 0 {
            io.flush().await?;
        }
        rest = later;
    }
    io.shutdown().await?;
    Ok(())
}

async fn read_split(io: &mut (impl AsyncRead + Unpin), seed: u64) -> Result<Vec<u8>, Failure> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 100_000];
    loop {
        let most = if random.below(4) == 0 { chunk.len() } else { 1 + random.below(3000) };
        let read = io.read(&mut chunk[..most]).await?;
        if read == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&chunk[..read]);
    }
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::new(format!("a task of the test died: {error}")))
}
