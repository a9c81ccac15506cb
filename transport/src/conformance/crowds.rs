//! Behaviours of many connections at once.

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::messages::echo;
use super::tools::{Random, ensure, expect_same, read_to_some_end};
use super::{Case, Check, Failure};

/// Connections at once: more than any backlog used here, few enough for an emulated kernel.
const CROWD: usize = 48;

pub(super) async fn many_connections_keep_their_bytes_apart(case: Case) -> Check {
    let mut listener = case.listen().await?;
    let addr = listener.local_addr();
    let server = tokio::spawn(async move {
        let mut echoes = JoinSet::new();
        for _ in 0..CROWD {
            let (stream, _) = listener.accept().await?;
            echoes.spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await?;
                Ok::<_, Failure>(read)
            });
        }
        all(echoes).await.map(drop)
    });
    let mut callers = JoinSet::new();
    for number in 0..CROWD {
        let endpoint = case.pair.caller.clone();
        callers.spawn(async move {
            let (mut read, mut write) = endpoint.connect(addr).await?.split();
            let sent = Random::new(number as u64).bytes(20_000 + number * 1000);
            let (written, back) = tokio::join!(
                async {
                    write.write_all(&sent).await?;
                    if case_half_close(number) { write.shutdown().await } else { write.flush().await }
                },
                read_exactly(&mut read, sent.len()),
            );
            written?;
            expect_same(&format!("echo {number}"), &back?, &sent)
        });
    }
    all(callers).await?;
    server.await.map_err(|error| Failure::new(error.to_string()))?
}

/// Half of the callers close in order, half just go.
fn case_half_close(number: usize) -> bool {
    number.is_multiple_of(2)
}

async fn read_exactly(io: &mut (impl tokio::io::AsyncRead + Unpin), len: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; len];
    tokio::io::AsyncReadExt::read_exact(io, &mut bytes).await?;
    Ok(bytes)
}

pub(super) async fn many_message_connections_keep_their_messages_apart(case: Case) -> Check {
    let mut listener = case.listen_messages().await?;
    let addr = listener.local_addr();
    let server = tokio::spawn(async move {
        let mut echoes = JoinSet::new();
        for _ in 0..CROWD {
            let (messages, _) = listener.accept().await?;
            echoes.spawn(echo(messages));
        }
        all(echoes).await.map(drop)
    });
    let mut callers = JoinSet::new();
    for number in 0..CROWD {
        let endpoint = case.pair.caller.clone();
        callers.spawn(async move {
            let mut messages = endpoint.connect_messages(addr).await?;
            let mut random = Random::new(number as u64);
            for _ in 0..60 {
                let len = random.below(2000);
                let sent = random.bytes(len);
                messages.send(&sent).await?;
                let back = messages.recv().await?;
                let back = back.ok_or_else(|| Failure::new("the echo ended early"))?;
                expect_same(&format!("echo on connection {number}"), &back, &sent)?;
            }
            let (mut tx, mut rx) = messages.split();
            tx.shutdown().await?;
            let end = rx.recv().await?;
            ensure!(end.is_none(), "more came back than was sent");
            Ok(())
        });
    }
    all(callers).await?;
    server.await.map_err(|error| Failure::new(error.to_string()))?
}

pub(super) async fn short_connections_in_quick_succession(case: Case) -> Check {
    const CALLS: u32 = 150;
    let mut listener = case.listen().await?;
    let addr = listener.local_addr();
    let server = tokio::spawn(async move {
        for _ in 0..CALLS {
            let (mut stream, _) = listener.accept().await?;
            let (question, _) = read_to_some_end(&mut stream).await?;
            stream.write_all(&question).await?;
            stream.shutdown().await?;
        }
        Ok::<_, Failure>(())
    });
    for number in 0..CALLS {
        let mut stream = case.pair.caller.connect(addr).await?;
        let question = number.to_le_bytes();
        stream.write_all(&question).await?;
        if !case.limits.half_close {
            continue;
        }
        stream.shutdown().await?;
        let (answer, _) = read_to_some_end(&mut stream).await?;
        expect_same(&format!("answer {number}"), &answer, &question)?;
    }
    server.await.map_err(|error| Failure::new(error.to_string()))?
}

async fn all<T: 'static>(mut tasks: JoinSet<Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.map_err(|error| Failure::new(format!("a task of the test died: {error}")))??);
    }
    Ok(results)
}
