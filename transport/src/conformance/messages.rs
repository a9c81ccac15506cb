//! Behaviours of message connections.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::party::{MessageReceiver, Messages};
use super::tools::{Random, SETTLE, ensure, expect_error, expect_same, is_reset, poll_now, poll_then_drop};
use super::{Case, Check, Failure};

/// A sender that got rid of so many 1 KiB messages without a receiver has no back-pressure.
const WINDOW_MESSAGES_MAX: u32 = 64 * 1024;

pub(super) async fn boundaries_are_kept_at_every_length(case: Case) -> Check {
    let (caller, callee) = case.messages().await?;
    let (mut tx, _caller_rx) = caller.split();
    let (_callee_tx, mut rx) = callee.split();
    // Around every size at which an implementation may change its ways.
    let mut lens: Vec<usize> = (0..=130).collect();
    for power in 8..=16 {
        lens.extend([(1 << power) - 1, 1 << power, (1 << power) + 1]);
    }
    let mut random = Random::new(21);
    lens.extend((0..200).map(|_| random.below(9000)));
    lens.retain(|len| *len <= tx.max_len());
    let sending = async {
        for (number, len) in lens.iter().enumerate() {
            tx.send(&Random::new(number as u64).bytes(*len)).await?;
        }
        Ok::<_, Failure>(())
    };
    let receiving = async {
        for (number, len) in lens.iter().enumerate() {
            let message = received(&mut rx).await?;
            let expected = Random::new(number as u64).bytes(*len);
            expect_same(&format!("message {number} of {len} bytes"), &message, &expected)?;
        }
        Ok::<_, Failure>(())
    };
    let (sent, arrived) = tokio::join!(sending, receiving);
    sent?;
    arrived
}

pub(super) async fn messages_in_place_and_many_at_once_arrive_as_others_do(case: Case) -> Check {
    let (caller, callee) = case.messages().await?;
    let (mut tx, _caller_rx) = caller.split();
    let (_callee_tx, mut rx) = callee.split();
    let mut random = Random::new(27);
    let rounds: Vec<Vec<Vec<u8>>> = (0..24)
        .map(|_| {
            let many = random.below(80) + 1;
            (0..many)
                .map(|_| {
                    let is_long = random.below(20) == 0;
                    let len = random.below(if is_long { 9000 } else { 100 });
                    random.bytes(len)
                })
                .collect()
        })
        .collect();
    let sending = async {
        for (round, messages) in rounds.iter().enumerate() {
            match round % 3 {
                0 => tx.send_many(messages).await?,
                1 => {
                    for message in messages {
                        tx.send_in_place(message).await?;
                    }
                }
                _ => {
                    for message in messages {
                        tx.send(message).await?;
                    }
                }
            }
        }
        Ok::<_, Failure>(())
    };
    let receiving = async {
        let mut expected = rounds.iter().flatten().enumerate().peekable();
        let mut arrived = Vec::new();
        for turn in 0.. {
            if expected.peek().is_none() {
                break;
            }
            match turn % 3 {
                0 => rx.recv_many(&mut arrived).await?,
                1 => arrived.extend(rx.recv_in_place().await?),
                _ => arrived.extend(rx.recv().await?.map(Vec::from)),
            }
            ensure!(!arrived.is_empty(), "the end came before all messages");
            for message in arrived.drain(..) {
                let Some((number, expected)) = expected.next() else {
                    return Err(Failure::new("more arrived than was sent"));
                };
                expect_same(&format!("message {number} of {} bytes", expected.len()), &message, expected)?;
            }
        }
        Ok::<_, Failure>(())
    };
    let (sent, arrived) = tokio::join!(sending, receiving);
    sent?;
    arrived
}

pub(super) async fn longest_message_travels_and_longer_is_refused(case: Case) -> Check {
    let (caller, callee) = case.messages().await?;
    let (mut tx, _caller_rx) = caller.split();
    let (_callee_tx, mut rx) = callee.split();
    let max = tx.max_len();
    ensure!(max >= 64 * 1024, "the longest message is {max} bytes by default");
    let longest = Random::new(22).bytes(max);
    let (sent, arrived) = tokio::join!(tx.send(&longest), received(&mut rx));
    sent?;
    expect_same("the longest message", &arrived?, &longest)?;
    let result = tx.send(&vec![0; max + 1]).await;
    expect_error("sending a message too long", result, &[ErrorKind::InvalidInput])?;
    // Refused, not half sent: the connection goes on.
    tx.send(b"after").await?;
    expect_same("after a refused message", &received(&mut rx).await?, b"after")
}

pub(super) async fn shutdown_ends_with_none_after_the_last_message(case: Case) -> Check {
    let (caller, mut callee) = case.messages().await?;
    let (mut tx, _rx) = caller.split();
    for number in 0..10u8 {
        tx.send(&[number]).await?;
    }
    tx.shutdown().await?;
    for number in 0..10u8 {
        let message = callee.recv().await?;
        ensure!(message.as_deref() == Some(&[number][..]), "message {number} arrived as {message:?}");
    }
    for _ in 0..2 {
        let end = callee.recv().await?;
        ensure!(end.is_none(), "{end:?} arrived after the end");
    }
    Ok(())
}

pub(super) async fn message_half_close_leaves_the_other_direction_open(case: Case) -> Check {
    for (swapped, by_drop) in [(false, false), (false, true), (true, false), (true, true)] {
        let (caller, callee) = case.messages().await?;
        let (near, mut far) = if swapped { (callee, caller) } else { (caller, callee) };
        let (mut near_tx, mut near_rx) = near.split();
        near_tx.send(b"question").await?;
        if by_drop {
            drop(near_tx);
        } else {
            near_tx.shutdown().await?;
        }
        let question = far.recv().await?;
        ensure!(question.as_deref() == Some(&b"question"[..]), "the question arrived as {question:?}");
        let end = far.recv().await?;
        ensure!(end.is_none(), "{end:?} arrived after the end");
        far.send(b"answer").await?;
        expect_same("after the half-close", &received(&mut near_rx).await?, b"answer")?;
    }
    Ok(())
}

pub(super) async fn send_after_shutdown_is_an_error(case: Case) -> Check {
    let (caller, _callee) = case.messages().await?;
    let (mut tx, _rx) = caller.split();
    tx.shutdown().await?;
    expect_error("sending after shutdown", tx.send(b"too late").await, &[ErrorKind::BrokenPipe])
}

pub(super) async fn dropped_message_peer_ends_a_waiting_receiver(case: Case) -> Check {
    for callee_drops in [false, true] {
        let (caller, callee) = case.messages().await?;
        let (mut near, far) = if callee_drops { (caller, callee) } else { (callee, caller) };
        let receiver = tokio::spawn(async move { near.recv().await });
        tokio::time::sleep(SETTLE).await;
        ensure!(!receiver.is_finished(), "a receive returned with nothing sent");
        drop(far);
        match receiver.await.map_err(|error| Failure::new(error.to_string()))? {
            Ok(None) => {}
            Ok(Some(message)) => return Err(Failure::new(format!("{message:?} came from nowhere"))),
            Err(error) => ensure!(is_reset(error.kind()), "the receiver failed as {error}"),
        }
    }
    Ok(())
}

pub(super) async fn dropped_message_peer_ends_a_sender(case: Case) -> Check {
    let (mut caller, callee) = case.messages().await?;
    let sender = tokio::spawn(async move {
        loop {
            if let Err(error) = caller.send(&[7; 1000]).await {
                return error;
            }
        }
    });
    tokio::time::sleep(SETTLE).await;
    ensure!(!sender.is_finished(), "a sender without a receiver finished");
    drop(callee);
    let error = sender.await.map_err(|error| Failure::new(error.to_string()))?;
    ensure!(is_reset(error.kind()), "the sender failed as {:?}: {error}", error.kind());
    Ok(())
}

pub(super) async fn messages_in_flight_survive_the_senders_drop(case: Case) -> Check {
    let (mut caller, mut callee) = case.messages().await?;
    for number in 0..20u8 {
        caller.send(&vec![number; usize::from(number) * 20]).await?;
    }
    drop(caller);
    for number in 0..20u8 {
        let message = callee.recv().await?;
        let expected = vec![number; usize::from(number) * 20];
        ensure!(message.as_deref() == Some(&expected[..]), "message {number} arrived as {message:?}");
    }
    match callee.recv().await {
        Ok(None) => Ok(()),
        Ok(Some(message)) => Err(Failure::new(format!("{message:?} came after the last"))),
        Err(error) => expect_error("receiving from a dropped peer", Err::<(), _>(error), RESET),
    }
}

const RESET: &[ErrorKind] = &[ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];

pub(super) async fn sender_of_a_peer_that_never_receives_waits_then_resumes(case: Case) -> Check {
    let (caller, mut callee) = case.messages().await?;
    let (mut tx, _rx) = caller.split();
    let message = |number: u32| {
        let mut message = Random::new(u64::from(number)).bytes(1024);
        message[..4].copy_from_slice(&number.to_le_bytes());
        message
    };
    let mut taken = 0;
    // poll_send takes whole or nothing, so what it has not taken is still ours to send.
    loop {
        let next = message(taken);
        let attempt = async {
            poll_fn(|cx| tx.poll_send(cx, &next)).await?;
            taken += 1;
            poll_fn(|cx| tx.poll_flush(cx)).await
        };
        match timeout(SETTLE, attempt).await {
            Ok(sent) => sent?,
            Err(_) => break,
        }
        ensure!(taken < WINDOW_MESSAGES_MAX, "{taken} KiB went to a peer that receives nothing");
    }
    let total = taken + 500;
    let sending = async {
        for number in taken..total {
            tx.send(&message(number)).await?;
        }
        tx.shutdown().await
    };
    let receiving = async {
        for number in 0..total {
            let Some(found) = callee.recv().await? else {
                return Err(Failure::new(format!("the end came after {number} of {total} messages")));
            };
            expect_same(&format!("message {number}"), &found, &message(number))?;
        }
        let end = callee.recv().await?;
        ensure!(end.is_none(), "{} bytes came after the last message", end.map_or(0, |end| end.len()));
        Ok(())
    };
    let (sent, arrived) = tokio::join!(sending, receiving);
    sent?;
    arrived
}

pub(super) async fn dropped_send_is_whole_or_nothing(case: Case) -> Check {
    const ROUNDS: u32 = 3000;
    let (caller, callee) = case.messages().await?;
    let (mut tx, _caller_rx) = caller.split();
    let (_callee_tx, mut rx) = callee.split();
    let receiving = tokio::spawn(async move {
        let mut random = Random::new(31);
        let mut numbers = Vec::new();
        loop {
            if random.below(50) == 0 {
                // Let the window fill so that sends are given up half way.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let Some(message) = rx.recv().await? else { return Ok::<_, Failure>(numbers) };
            let Some(number) = message.first_chunk().map(|number| u32::from_le_bytes(*number)) else {
                return Err(Failure::new(format!("{} bytes arrived", message.len())));
            };
            let expected = numbered(number);
            expect_same(&format!("message {number}"), &message, &expected)?;
            numbers.push(number);
        }
    });
    let mut random = Random::new(32);
    let mut completed = Vec::new();
    for number in 0..ROUNDS {
        let times = 1 + random.below(3);
        if let Some(sent) = poll_then_drop(tx.send(&numbered(number)), times).await {
            sent?;
            completed.push(number);
        }
    }
    tx.shutdown().await?;
    let numbers = receiving.await.map_err(|error| Failure::new(error.to_string()))??;
    ensure!(numbers.is_sorted_by(|a, b| a < b), "messages arrived twice or out of order");
    ensure!(
        completed.iter().all(|number| numbers.binary_search(number).is_ok()),
        "a message whose send completed did not arrive"
    );
    Ok(())
}

pub(super) async fn dropped_recv_loses_nothing(case: Case) -> Check {
    const ROUNDS: u32 = 2000;
    let (caller, callee) = case.messages().await?;
    let (mut tx, _caller_rx) = caller.split();
    let (_callee_tx, mut rx) = callee.split();
    let sending = tokio::spawn(async move {
        for number in 0..ROUNDS {
            tx.send(&numbered(number)).await?;
        }
        Ok::<_, Failure>(tx)
    });
    let mut random = Random::new(33);
    for number in 0..ROUNDS {
        let message = loop {
            let times = random.below(3);
            match poll_then_drop(rx.recv(), times).await {
                Some(message) => break message?,
                // Waits with a deadline, as callers do, so that a wake-up is also given up.
                None => match timeout(Duration::from_millis(1), rx.recv()).await {
                    Ok(message) => break message?,
                    Err(_) => continue,
                },
            }
        };
        let message = message.ok_or_else(|| Failure::new(format!("the end came before message {number}")))?;
        expect_same(&format!("message {number}"), &message, &numbered(number))?;
    }
    let _tx = sending.await.map_err(|error| Failure::new(error.to_string()))??;
    ensure!(poll_now(rx.recv()).is_pending(), "more came than was sent");
    Ok(())
}

pub(super) async fn batch_becomes_visible_with_one_flush(case: Case) -> Check {
    let (caller, mut callee) = case.messages().await?;
    let (mut tx, _rx) = caller.split();
    for round in 0..50u8 {
        let mut batch = 0u8;
        // As many of sixteen as fit at once.
        while batch < 16 {
            let polled = poll_fn(|cx| Poll::Ready(tx.poll_send(cx, &[round, batch]))).await;
            match polled {
                Poll::Ready(sent) => sent?,
                Poll::Pending => break,
            }
            batch += 1;
        }
        ensure!(batch > 0, "an empty window takes no message");
        poll_fn(|cx| tx.poll_flush(cx)).await?;
        for number in 0..batch {
            let message = callee.recv().await?;
            let expected = [round, number];
            ensure!(message.as_deref() == Some(&expected[..]), "{expected:?} arrived as {message:?}");
        }
    }
    Ok(())
}

/// A message that can be told from every other, of a length that depends on its number.
fn numbered(number: u32) -> Vec<u8> {
    let len = 4 + (u64::from(number).wrapping_mul(2_654_435_761) % 3000) as usize;
    let mut message = Random::new(u64::from(number)).bytes(len);
    message[..4].copy_from_slice(&number.to_le_bytes());
    message
}

async fn received(rx: &mut MessageReceiver) -> Result<bytes::Bytes, Failure> {
    rx.recv().await?.ok_or_else(|| Failure::new("the end came instead of a message"))
}

/// Sends everything back until the peer shuts down.
pub(super) async fn echo(messages: Messages) -> Check {
    let (mut tx, mut rx) = messages.split();
    while let Some(message) = rx.recv().await? {
        tx.send(&message).await?;
    }
    tx.shutdown().await?;
    Ok(())
}
