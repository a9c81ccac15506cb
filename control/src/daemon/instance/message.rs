//! What an instance's task is told.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tombolo_agent::api::agent::Inventory;
use tombolo_agent::api::health::HealthReport;
use tombolo_rpc::Link;
use tombolo_transport::Incarnation;

use crate::api::{ControlError, InstanceDetail, InstanceView};
use crate::keeper::Exit;
use crate::spawner::Kernel;

/// A message to an instance's task.
#[derive(Debug)]
pub(crate) enum Message {
    /// A wish of the operator's.
    Command { command: Command, reply: oneshot::Sender<Result<InstanceView, ControlError>> },
    /// Someone wants to know everything.
    Inspect { reply: oneshot::Sender<InstanceDetail> },
    /// The spawner is done.
    Spawned { incarnation: Incarnation, outcome: Result<Kernel, String> },
    /// The keeper saw the kernel end.
    Ended { incarnation: Incarnation, exit: Exit },
    /// The keeper of a kernel died and the kernel did not: another stands for it.
    StoodForAgain { incarnation: Incarnation, kernel: Kernel },
    /// An agent has proven itself.
    AgentArrived(AgentArrived),
    /// An agent has said what it is.
    AgentIntroduced { link: u64, inventory: Result<Inventory, String> },
    /// A link broke.
    LinkClosed { link: u64, reason: String },
    /// A probe came back, or did not.
    Probed { link: u64, outcome: Result<(), String> },
    /// The kernel itself was asked; `None` if its spawner cannot.
    KernelProbed { incarnation: Incarnation, answers: Option<bool> },
    /// Something came of taking it out of service.
    Fencing { incarnation: Incarnation, news: FencingNews },
    /// How the kernel and its programs are has changed.
    Reported { link: u64, report: HealthReport },
    /// The policy has changed.
    RulesChanged,
    /// It was given memory, or gave some.
    LedgerChanged,
}

/// What came of taking a kernel out of service.
#[derive(Debug)]
pub(crate) enum FencingNews {
    /// It was quiesced, or was not.
    Quiesced(Result<(), String>),
    /// Where its CPUs stand.
    Registers(String),
    /// A kill did not end it.
    NotKilled(String),
}

/// A wish of the operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Start,
    Stop(Option<Duration>),
    Restart(Option<Duration>),
    Kill,
    Remove,
    Freeze(bool),
    Crash,
}

/// An agent that has proven itself.
#[derive(Debug)]
pub(crate) struct AgentArrived {
    pub(crate) incarnation: Incarnation,
    pub(crate) link: Link,
}

/// Sends messages to an instance's task.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox(mpsc::Sender<Message>);

impl Mailbox {
    pub(super) fn new(sender: mpsc::Sender<Message>) -> Self {
        Self(sender)
    }

    /// Delivers a message; one to an instance that was removed is dropped.
    pub(super) async fn send(&self, message: Message) {
        let _ = self.0.send(message).await;
    }

    /// Carries out a command and answers with how the instance is then.
    pub(crate) async fn command(&self, name: &str, command: Command) -> Result<InstanceView, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Command { command, reply }).await;
        answer.await.unwrap_or_else(|_| Err(ControlError::no_instance(name)))
    }

    /// Everything known about the instance.
    pub(crate) async fn inspect(&self, name: &str) -> Result<InstanceDetail, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Inspect { reply }).await;
        answer.await.map_err(|_| ControlError::no_instance(name))
    }

    /// Tells that an agent has proven itself to be this instance's.
    pub(crate) async fn agent_arrived(&self, arrived: AgentArrived) {
        self.send(Message::AgentArrived(arrived)).await;
    }

    /// Tells that it was given memory, or gave some.
    pub(crate) async fn ledger_changed(&self) {
        self.send(Message::LedgerChanged).await;
    }

    /// Tells that the policy has changed.
    pub(crate) async fn rules_changed(&self) {
        self.send(Message::RulesChanged).await;
    }
}
