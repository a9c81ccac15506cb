//! The way of a call with an idempotency key through a [`Router`](super::Router): see [`replay`](super::replay).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::handler::panicked;
use super::replay::{Answer, KEY_BYTES_MAX, Replays, RequestHash, Scope, Verdict};
use super::{Ctx, HandlerFuture, Incoming, Origin, Reply, ReplyKind, Service};
use crate::clock;
use crate::link::Cancel;
use crate::scratch::Body;
use crate::sync::time;
use crate::wire::fault::{Code, Fault};

/// A call with a key that runs. Dropped without an answer, it is forgotten.
struct Run {
    replays: Arc<Mutex<Replays>>,
    scope: Scope,
    key: Box<[u8]>,
    answer: Option<Answer>,
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut replays = lock(&self.replays);
        match self.answer.take() {
            Some(answer) => replays.answered(clock::exact_ns(), self.scope, &self.key, answer),
            None => replays.forget(self.scope, &self.key),
        }
    }
}

fn lock(replays: &Mutex<Replays>) -> std::sync::MutexGuard<'_, Replays> {
    // Each change to it is whole before anything in it can panic.
    replays.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the call, or gives the answer that it has had.
pub(super) fn start(
    replays: &Arc<Mutex<Replays>>,
    key: &[u8],
    service: &dyn Service,
    method: usize,
    mut cx: Ctx,
    args: Body,
) -> Result<HandlerFuture, Reply> {
    if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
        let why = format!("an idempotency key has 1 to {KEY_BYTES_MAX} bytes, not {}", key.len());
        return Err(Reply::fault(Fault::new(Code::Refused, false, 0, why)));
    }
    let scope = Some(cx.peer()).filter(|peer| peer.authenticated).map(|peer| peer.cid);
    // Before the lock: a long request takes its time.
    let request = hash(&cx, &args);
    let (verdict, limits) = {
        let mut replays = lock(replays);
        (replays.begin(clock::exact_ns(), scope, key, request), replays.limits)
    };
    if verdict != Verdict::Run {
        return Err(reply(verdict, limits.answer_bytes_max));
    }
    let mut run = Run { replays: replays.clone(), scope, key: key.into(), answer: None };
    let until_ns = cx.deadline_ns.unwrap_or_else(|| later(limits.run_max));
    let origin = cx.origin.clone();
    // Whoever called may go; the handler is not told.
    cx.cancel = Cancel::default();
    let handler = service.call(method, Incoming { cx, args, parts: None });
    let running = async move {
        let reply = handler.await;
        if let ReplyKind::Answer { app_error, payload } = &reply.0 {
            run.answer = Some(Answer { app_error: *app_error, payload: payload.clone().into_vec().into() });
        }
        drop(run);
        reply
    };
    Ok(match origin {
        Origin::Polled(_) => HandlerFuture::new(running),
        Origin::Link(inner) => {
            let within = Duration::from_nanos(until_ns.saturating_sub(clock::coarse_ns()));
            let task = inner.runtime().spawn(time::timeout(within, running));
            // Dropping this leaves the task running.
            HandlerFuture::new(async move {
                match task.await {
                    Ok(Ok(reply)) => reply,
                    Ok(Err(_)) => Reply::fault(Fault::new(Code::DeadlineExceeded, true, 0, "")),
                    Err(error) if error.is_panic() => panicked(&*error.into_panic()),
                    Err(_) => {
                        Reply::fault(Fault::new(Code::Cancelled, true, 0, "the server is shutting down"))
                    }
                }
            })
        }
    })
}

fn later(after: Duration) -> u64 {
    clock::coarse_ns().saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
}

fn hash(cx: &Ctx, args: &[u8]) -> RequestHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&cx.method.id.to_le_bytes());
    hasher.update(&cx.method.fingerprint.to_le_bytes());
    hasher.update(args);
    hasher.finalize().into()
}

/// The reply to a call that is not run.
fn reply(verdict: Verdict, answer_bytes_max: usize) -> Reply {
    let refused = |why: &str| Reply::fault(Fault::new(Code::Refused, false, 0, why));
    match verdict {
        Verdict::Run => Reply::fault(Fault::new(Code::Cancelled, false, 0, "")),
        Verdict::Replay(Answer { app_error, payload }) => {
            Reply(ReplyKind::Answer { app_error, payload: payload.into() })
        }
        Verdict::OtherRequest => refused("this idempotency key was used for another call"),
        // It has run: nothing that reads as "not started" may be said of it.
        Verdict::NotKept(len) => {
            Reply::fault(Fault::new(Code::TooLarge, true, answer_bytes_max as u64, len.to_string()))
        }
        Verdict::Later(after) => {
            let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
            Reply::fault(Fault::new(Code::Overloaded, false, us, ""))
        }
    }
}
