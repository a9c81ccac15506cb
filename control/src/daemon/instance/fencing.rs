//! Taking a kernel that hangs out of service: what the ladder ([`crate::core::fencing`]) decides, done.

use std::time::Duration;

use tombolo_transport::Incarnation;

use super::Instance;
use super::effects::{KILL_MAX, chain};
use super::message::{FencingNews, Message};
use crate::core::fencing::{Ladder, Limits, Order, Step};
use crate::core::health::Verdict;
use crate::core::{EventKind, State};
use crate::keeper::Exit;
use crate::store::Batch;

/// How long a look at the registers of a kernel that does not answer may take.
const REGISTERS_MAX: Duration = Duration::from_millis(300);

/// A kernel that is being taken out of service.
#[derive(Debug)]
pub(super) struct Fencing {
    ladder: Ladder,
    /// How it ended, once its keeper has said so.
    exit: Option<Exit>,
    /// Why the last kill did not end it.
    not_killed: Option<String>,
}

impl Instance {
    pub(super) async fn begin_fencing(&mut self) {
        let limits = Limits::for_silence(self.monitor.silence());
        let answers = self.verdict == Verdict::UserSpaceDead;
        let (ladder, step) = Ladder::begin(limits, self.now_ns(), answers);
        self.fencing = Some(Fencing { ladder, exit: None, not_killed: None });
        self.take_step(step).await;
    }

    /// Whether what the kernel says may still change anything.
    pub(super) fn may_come_back(&self) -> bool {
        self.fencing.as_ref().is_none_or(|fencing| fencing.ladder.may_stop())
    }

    /// Whether everything was tried to end it, in vain.
    pub(super) fn cannot_be_ended(&self) -> bool {
        self.fencing.as_ref().is_some_and(|fencing| fencing.ladder.has_failed())
    }

    /// It answers again, or somebody else sees to its end.
    pub(super) fn leave_ladder(&mut self) {
        let Some(fencing) = self.fencing.take() else { return };
        self.stop_killing();
        let Some(exit) = fencing.exit else { return };
        // It has ended already, and that was to be confirmed.
        let (Some(incarnation), mailbox) = (self.record.incarnation, self.mailbox.clone()) else { return };
        tokio::spawn(async move { mailbox.send(Message::Ended { incarnation, exit }).await });
    }

    /// A kernel that is being taken out of service has ended: whether that is confirmed already.
    pub(super) async fn may_bury(&mut self, exit: &Exit) -> bool {
        let (now_ns, last_beat_ns) = (self.now_ns(), self.look_at_heartbeat());
        let Some(fencing) = &mut self.fencing else { return true };
        fencing.exit = Some(exit.clone());
        let steps = fencing.ladder.reaped(now_ns, last_beat_ns);
        for step in steps {
            self.take_step(step).await;
            if step.order == Some(Order::Release) {
                self.fencing = None;
                return true;
            }
        }
        false
    }

    /// Time has passed.
    pub(super) async fn climb(&mut self) {
        if self.fencing.is_none() {
            return;
        }
        let (now_ns, last_beat_ns) = (self.now_ns(), self.look_at_heartbeat());
        let Some(step) = self.fencing.as_mut().and_then(|it| it.ladder.tick(now_ns, last_beat_ns)) else {
            return;
        };
        self.take_step(step).await;
        if step.order == Some(Order::Release)
            && let Some(exit) = self.fencing.take().and_then(|fencing| fencing.exit)
        {
            self.bury(exit).await;
        }
    }

    pub(super) async fn fencing_news(&mut self, incarnation: Incarnation, news: FencingNews) {
        if Some(incarnation) != self.record.incarnation {
            return;
        }
        let now_ns = self.now_ns();
        let Some(fencing) = &mut self.fencing else { return };
        match news {
            FencingNews::Registers(registers) => self.last_registers = Some(registers),
            FencingNews::NotKilled(reason) => {
                tracing::error!(instance = %self.record.name, reason, "could not kill it");
                fencing.not_killed = Some(reason);
            }
            FencingNews::Quiesced(outcome) => {
                let step = fencing.ladder.quiesced(now_ns);
                if let Some(step) = step {
                    self.take_step(step).await;
                }
                if let Err(reason) = outcome {
                    let step = "quiesce".to_owned();
                    self.shared.note(Some(&self.record.name), EventKind::StepFailed { step, reason }).await;
                }
            }
        }
    }

    /// Does what a step orders, but for burying it, and tells of it: in this order, as the disk may be slow.
    async fn take_step(&mut self, step: Step) {
        match step.order {
            Some(Order::Quiesce(limit)) => self.quiesce(limit),
            Some(Order::Kill { backtrace }) => self.force(backtrace),
            Some(Order::GiveUp) => return self.fence_failed(step.attempt).await,
            Some(Order::Release) | None => {}
        }
        if let Some(rung) = step.rung {
            let event = EventKind::Fencing { rung, attempt: step.attempt };
            tracing::warn!(instance = %self.record.name, ?rung, attempt = step.attempt, "it is taken out of service");
            self.shared.note(Some(&self.record.name), event).await;
        }
    }

    fn quiesce(&mut self, limit: Duration) {
        let (Some(kernel), Some(incarnation)) = (self.kernel.clone(), self.record.incarnation) else {
            return;
        };
        let mailbox = self.mailbox.clone();
        let quiescing = tokio::spawn(async move {
            let news = FencingNews::Quiesced(kernel.quiesce(limit).await);
            mailbox.send(Message::Fencing { incarnation, news }).await;
        });
        self.stop_killing();
        self.killing = Some(quiescing.abort_handle());
    }

    fn force(&mut self, backtrace: bool) {
        let (Some(kernel), Some(incarnation)) = (self.kernel.clone(), self.record.incarnation) else {
            return;
        };
        let mailbox = self.mailbox.clone();
        let killing = tokio::spawn(async move {
            if backtrace && let Some(registers) = kernel.registers(REGISTERS_MAX).await {
                let news = FencingNews::Registers(registers);
                mailbox.send(Message::Fencing { incarnation, news }).await;
            }
            let reason = match tokio::time::timeout(KILL_MAX, kernel.kill()).await {
                // Whoever waits for its end has said so already, unless this is not the first kill.
                Ok(Ok(exit)) => return mailbox.send(Message::Ended { incarnation, exit }).await,
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("it took longer than {KILL_MAX:?}"),
            };
            mailbox.send(Message::Fencing { incarnation, news: FencingNews::NotKilled(reason) }).await;
        });
        self.stop_killing();
        self.killing = Some(killing.abort_handle());
    }

    /// Nothing more can be done: it stays as it is, with all that it has.
    async fn fence_failed(&mut self, attempts: u32) {
        let not_killed = self.fencing.as_ref().and_then(|fencing| fencing.not_killed.clone());
        let reason = match self.fencing.as_ref().is_some_and(|fencing| fencing.exit.is_some()) {
            true => "its keeper says that it ended, and its heartbeat goes on".to_owned(),
            false => {
                not_killed.unwrap_or_else(|| "it was killed, and its keeper does not see it end".to_owned())
            }
        };
        tracing::error!(instance = %self.record.name, attempts, reason, "it could not be taken out of service");
        self.record.last_error = Some(format!(
            "it hangs and could not be ended ({reason}): it keeps its CPUs, memory and devices until an operator sees to it"
        ));
        let incarnation = self.record.incarnation.map(|incarnation| incarnation.to_string());
        let event = EventKind::FenceFailed { attempts, reason };
        let batch = Batch::new().put_instance(&self.record).essential(true);
        let batch = batch.event(Some(&self.record.name), incarnation, event);
        if let Err(error) = self.shared.store.commit(batch).await {
            tracing::error!(instance = %self.record.name, %error, "that could not be recorded");
        }
        self.publish();
    }

    /// When the heartbeat last moved, as of now.
    fn look_at_heartbeat(&mut self) -> Option<u64> {
        if self.record.life.state() == State::Hung
            && let Some(beats) = self.beats()
        {
            self.monitor.heartbeat(self.now_ns(), beats);
        }
        self.monitor.last_beat_ns()
    }
}
