//! Behaviours of connecting, listening and accepting.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tools::{ensure, expect_error, poll_now, poll_then_drop, read_to_some_end};
use super::{Case, Check};
use crate::addr::{Addr, Cid, Port};
use crate::options::{ConnectOptions, ListenOptions};

pub(super) async fn both_sides_know_each_others_addresses(case: Case) -> Check {
    let mut listener = case.listen().await?;
    let addr = listener.local_addr();
    ensure!(addr.cid == case.callee_cid(), "the listener claims to be at {addr}");
    let caller = case.pair.caller.connect(addr).await?;
    let (callee, from) = listener.accept().await?;
    ensure!(caller.peer_addr() == addr, "the caller of {addr} sees its peer at {}", caller.peer_addr());
    ensure!(callee.local_addr() == addr, "the callee at {addr} sees itself at {}", callee.local_addr());
    ensure!(callee.peer_addr() == from, "accept said {from}, the stream says {}", callee.peer_addr());
    let local = caller.local_addr();
    ensure!(local.cid == case.pair.caller.local_cid(), "the caller sees itself at {local}");
    ensure!(from.cid == local.cid, "the caller at {local} was accepted as {from}");
    if case.limits.caller_port_known {
        ensure!(from.port == local.port, "the caller at {local} was accepted as {from}");
    }
    Ok(())
}

pub(super) async fn ephemeral_ports_are_distinct(case: Case) -> Check {
    let mut ports = HashSet::new();
    let mut listeners = Vec::new();
    for _ in 0..16 {
        let listener = case.listen().await?;
        let port = listener.local_addr().port;
        ensure!(port != Port::ANY && !port.is_privileged(), "{port:?} was handed out");
        ensure!(ports.insert(port), "{port:?} was handed out twice");
        listeners.push(listener);
    }
    let mut calls = Vec::new();
    let mut callers = HashSet::new();
    for listener in &listeners {
        let call = case.pair.caller.connect(listener.local_addr()).await?;
        let local = call.local_addr();
        ensure!(callers.insert(local), "two calls at once come from {local}");
        calls.push(call);
    }
    Ok(())
}

pub(super) async fn port_in_use_is_refused_until_freed(case: Case) -> Check {
    let listener = case.listen().await?;
    let port = listener.local_addr().port;
    let second = case.pair.callee.listen(port, ListenOptions::default()).await;
    expect_error("listening twice on one port", second, &[ErrorKind::AddrInUse])?;
    // Messages and streams share the ports.
    let second = case.pair.callee.listen_messages(port, ListenOptions::default()).await;
    expect_error("listening for messages on a port of streams", second, &[ErrorKind::AddrInUse])?;
    drop(listener);
    let again = eventually(async || case.pair.callee.listen(port, ListenOptions::default()).await).await?;
    ensure!(again.local_addr().port == port, "asked for {port:?}, listening on {}", again.local_addr());
    Ok(())
}

pub(super) async fn port_without_listener_refuses(case: Case) -> Check {
    let addr = case.callee_addr(Port(54_321));
    let refused = &[ErrorKind::ConnectionRefused];
    expect_error("connecting to a free port", case.pair.caller.connect(addr).await, refused)?;
    let messages = case.pair.caller.connect_messages(addr).await;
    expect_error("connecting messages to a free port", messages, refused)
}

pub(super) async fn absent_kernel_is_an_error_within_the_deadline(case: Case) -> Check {
    let options = ConnectOptions { timeout: Duration::from_millis(500), ..ConnectOptions::default() };
    let result = case.pair.caller.connect_with(Addr::new(Cid(424_242), Port(5000)), &options).await;
    let kinds = &[ErrorKind::ConnectionRefused, ErrorKind::TimedOut];
    expect_error("connecting to a kernel that is not there", result, kinds)
}

pub(super) async fn closed_listener_refuses_later_callers(case: Case) -> Check {
    let listener = case.listen().await?;
    let addr = listener.local_addr();
    drop(case.pair.caller.connect(addr).await?);
    drop(listener);
    let mut last = Ok(());
    for _ in 0..50 {
        let result = case.pair.caller.connect(addr).await;
        last = expect_error("connecting to a closed listener", result, &[ErrorKind::ConnectionRefused]);
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    last
}

pub(super) async fn callers_waiting_at_a_closed_listener_are_ended(case: Case) -> Check {
    let listener = case.listen().await?;
    let mut caller = case.pair.caller.connect(listener.local_addr()).await?;
    drop(listener);
    let (bytes, _) = read_to_some_end(&mut caller).await?;
    ensure!(bytes.is_empty(), "{} bytes came from a listener that was closed", bytes.len());
    Ok(())
}

pub(super) async fn full_backlog_refuses_and_recovers(case: Case) -> Check {
    const BACKLOG: u32 = 4;
    let options = ListenOptions { backlog: BACKLOG, ..ListenOptions::default() };
    let mut listener = case.listen_with(Port::ANY, options).await?;
    let addr = listener.local_addr();
    let mut waiting = Vec::new();
    let refusal = loop {
        match case.pair.caller.connect(addr).await {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
        ensure!(waiting.len() < 64, "{} callers wait where {BACKLOG} may", waiting.len());
    };
    expect_error("a call beyond the backlog", Err::<(), _>(refusal), &[ErrorKind::ConnectionRefused])?;
    let most = (BACKLOG + case.limits.backlog_slack) as usize;
    ensure!(
        (BACKLOG as usize..=most).contains(&waiting.len()),
        "{} callers wait where {BACKLOG} may",
        waiting.len()
    );
    for _ in 0..2 {
        listener.accept().await?;
    }
    eventually(async || case.pair.caller.connect(addr).await).await?;
    Ok(())
}

pub(super) async fn callers_are_accepted_in_order(case: Case) -> Check {
    let mut listener = case.listen().await?;
    let mut callers = Vec::new();
    for number in 0..16 {
        let mut caller = case.pair.caller.connect(listener.local_addr()).await?;
        caller.write_u8(number).await?;
        caller.flush().await?;
        callers.push(caller);
    }
    for number in 0..16 {
        let (mut callee, _) = listener.accept().await?;
        let found = callee.read_u8().await?;
        ensure!(found == number, "caller {found} was accepted in place of {number}");
    }
    Ok(())
}

pub(super) async fn connect_answers_within_its_deadline(case: Case) -> Check {
    let mut listener = case.listen().await?;
    for timeout in [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(1)] {
        let options = ConnectOptions { timeout, ..ConnectOptions::default() };
        if let Err(error) = case.pair.caller.connect_with(listener.local_addr(), &options).await {
            expect_error("an impatient call", Err::<(), _>(error), &[ErrorKind::TimedOut])?;
        }
    }
    sound(&case, &mut listener).await
}

pub(super) async fn dropped_connect_leaves_the_listener_sound(case: Case) -> Check {
    let mut listener = case.listen().await?;
    let addr = listener.local_addr();
    for polls in 0..24 {
        drop(poll_then_drop(case.pair.caller.connect(addr), polls % 6).await);
    }
    sound(&case, &mut listener).await
}

pub(super) async fn dropped_accept_loses_no_caller(case: Case) -> Check {
    let mut listener = case.listen().await?;
    for round in 0..16u8 {
        // A wait that is given up with nobody there ...
        ensure!(poll_now(listener.accept()).is_pending(), "somebody was accepted before calling");
        let mut caller = case.pair.caller.connect(listener.local_addr()).await?;
        caller.write_u8(round).await?;
        caller.flush().await?;
        // ... and one that races with the call.
        let (mut callee, _) = match poll_then_drop(listener.accept(), 1).await {
            Some(accepted) => accepted?,
            None => listener.accept().await?,
        };
        let found = callee.read_u8().await?;
        ensure!(found == round, "caller {found} was accepted in place of {round}");
    }
    Ok(())
}

/// That a fresh call gets through, past whatever abandoned calls wait before it.
async fn sound(case: &Case, listener: &mut super::Listener) -> Check {
    const WORD: &[u8; 8] = b"complete";
    let calling = async {
        let mut caller = case.pair.caller.connect(listener_addr(case, listener)).await?;
        caller.write_all(WORD).await?;
        caller.shutdown().await?;
        Ok::<_, super::Failure>(caller)
    };
    let caller = calling.await?;
    loop {
        let (mut callee, _) = listener.accept().await?;
        let (bytes, _) = read_to_some_end(&mut callee).await?;
        if bytes == WORD {
            drop(caller);
            return Ok(());
        }
        ensure!(bytes.is_empty(), "an abandoned call sent {} bytes", bytes.len());
    }
}

fn listener_addr(case: &Case, listener: &super::Listener) -> Addr {
    case.callee_addr(listener.local_addr().port)
}

/// Retries for two seconds: what one side freed, the other sees a moment later.
async fn eventually<T>(attempt: impl AsyncFn() -> crate::error::Result<T>) -> Result<T, super::Failure> {
    for _ in 0..100 {
        if let Ok(value) = attempt().await {
            return Ok(value);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(attempt().await?)
}
