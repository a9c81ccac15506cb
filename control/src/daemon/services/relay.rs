//! Passing a call with streams on to an agent: items go through one by one, so the credit of one side is the credit of
//! the other, and nothing piles up here.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::pending;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tombolo_rpc::{Call, CallError, Link, Outcome, Receiver, Sender};

use super::Session;
use crate::api::ControlError;
use crate::api::error::Refusal;
use crate::core::State;
use crate::daemon::instance::Face;

/// How long an agent that has lost its link may take to dial in again: it does so within a second.
const DIAL_MAX: Duration = Duration::from_secs(2);

impl Session {
    /// The link to the agent of an instance. One that runs and has none dials in at any moment: a daemon was started anew, perhaps.
    pub(super) async fn agent(&self, name: &str) -> Result<Link, ControlError> {
        let handle = self.find(name)?;
        let dials =
            |face: &Face| face.link.is_none() && matches!(face.view.state, State::Running | State::Adopted);
        let mut face = handle.face.clone();
        let _ = tokio::time::timeout(DIAL_MAX, face.wait_for(|face| !dials(face))).await;
        let face = handle.face.borrow();
        face.link.clone().ok_or_else(|| ControlError::AgentUnreachable {
            name: name.to_owned(),
            state: face.view.state,
            hint: match face.view.state {
                State::Defined | State::Stopped | State::Failed | State::Lost => {
                    format!("; `tombolo start {name}` starts it")
                }
                State::Reserved | State::Loaded | State::Booting | State::Adopted => {
                    format!("; `tombolo wait {name}` waits for it")
                }
                State::Running | State::Hung | State::Draining => String::new(),
            },
        })
    }
}

/// Carries items from the caller to the agent until the caller ends them. Never ends by itself: the call does.
async fn inward<I: Serialize + DeserializeOwned>(mut input: Receiver<I>, agent: Sender<I>) -> Infallible {
    while let Ok(Some(item)) = input.recv().await {
        if agent.send(item).await.is_err() {
            break;
        }
    }
    drop(agent);
    pending().await
}

/// Carries items from the agent to the caller until the agent ends them or the caller wants no more.
async fn outward<O: Serialize + DeserializeOwned>(mut agent: Receiver<O>, out: Sender<O>) {
    while let Ok(Some(item)) = agent.recv().await {
        if out.send(item).await.is_err() {
            break;
        }
    }
}

/// A call with a stream to the agent.
pub(super) async fn relay_in<I, T, E>(
    (call, agent): (Call<T, E>, Sender<I>),
    input: Receiver<I>,
) -> Result<T, CallError<E>>
where
    I: Serialize + DeserializeOwned,
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    tokio::select! {
        answer = call => answer,
        never = inward(input, agent) => match never {},
    }
}

/// A call with a stream from the agent.
pub(super) async fn relay_out<O, T, E>(
    (call, agent): (Call<T, E>, Receiver<O>),
    out: Sender<O>,
) -> Result<T, CallError<E>>
where
    O: Serialize + DeserializeOwned,
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    outward(agent, out).await;
    call.await
}

/// A call with streams both ways.
pub(super) async fn relay_both<I, O, T, E>(
    (call, to_agent, from_agent): (Call<T, E>, Sender<I>, Receiver<O>),
    input: Receiver<I>,
    out: Sender<O>,
) -> Result<T, CallError<E>>
where
    I: Serialize + DeserializeOwned,
    O: Serialize + DeserializeOwned,
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    let answer = async {
        outward(from_agent, out).await;
        call.await
    };
    tokio::select! {
        answer = answer => answer,
        never = inward(input, to_agent) => match never {},
    }
}

/// An agent's error, in the words of the daemon.
pub(super) fn told<E: Display>(
    name: &str,
    kind_of: impl FnOnce(&E) -> Refusal,
) -> impl FnOnce(CallError<E>) -> ControlError {
    move |error| match error {
        CallError::App(refusal) => ControlError::Inside {
            name: name.to_owned(),
            kind: kind_of(&refusal),
            reason: refusal.to_string(),
        },
        CallError::Failed(failure) => ControlError::Broken {
            name: name.to_owned(),
            may_have_run: failure.outcome() != Outcome::NotStarted,
            reason: failure.to_string(),
        },
    }
}
