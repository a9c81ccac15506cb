//! The operator's wishes.

use std::time::Duration;

use tokio::sync::oneshot;

use super::message::Command;
use super::{Instance, effects};
use crate::api::{ControlError, InstanceView};
use crate::core::lifecycle::Input;
use crate::core::{EventKind, State};
use crate::spawner::{Kernel, SpawnError};
use crate::store::Batch;

type Reply = oneshot::Sender<Result<InstanceView, ControlError>>;

/// How long freezing, thawing or crashing a kernel may take.
const CONTROL_MAX: Duration = Duration::from_secs(5);

impl Instance {
    pub(super) async fn command(&mut self, command: Command, reply: Reply) {
        let grace = |grace: Option<Duration>| grace.unwrap_or_else(|| self.record.spec.grace());
        let input = match command {
            Command::Start => Input::Start,
            Command::Stop(wanted) => Input::Stop(grace(wanted)),
            Command::Restart(wanted) => Input::Restart(grace(wanted)),
            Command::Kill => Input::Kill,
            Command::Remove => {
                let outcome = self.remove().await;
                drop(reply.send(outcome));
                return;
            }
            Command::Freeze(frozen) => return self.freeze(frozen, reply),
            Command::Crash => return self.crash(reply),
        };
        if let Err(error) = self.refuse_what_has_no_agent(command).await {
            drop(reply.send(Err(error)));
            return;
        }
        let outcome = self.step(input, vec![]).await;
        // Bring what follows at once under way, so that the answer shows it.
        while let Some(input) = self.inputs.pop_front() {
            let _ = self.step(input, vec![]).await;
        }
        if outcome.is_ok() && command == Command::Kill && self.has_only_what_was_taken_over() {
            return self.end_what_was_taken_over(reply);
        }
        drop(reply.send(outcome.map(|()| self.view()).map_err(ControlError::from)));
    }

    async fn remove(&mut self) -> Result<InstanceView, ControlError> {
        let state = self.record.life.state();
        if state.may_have_kernel() || state == State::Reserved {
            return Err(ControlError::Conflict {
                verb: "remove".into(),
                name: self.record.name.to_string(),
                reason: format!("it is {state}; stop it first, or use --force"),
            });
        }
        // A kernel of ours that could not be given back when it ended, or what was taken over: afterwards nobody would know whose it is.
        self.give_back().await?;
        let batch = Batch::new().delete_instance(&self.record.name).event(
            Some(&self.record.name),
            None,
            EventKind::Removed,
        );
        self.shared.store.commit(batch).await?;
        self.release().await;
        self.shared.ledger.dismiss(self.record.cid).await;
        let folder = self.shared.places.instance(&self.record.name);
        if let Err(error) = tokio::fs::remove_dir_all(&folder).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %error, "the folder of a removed instance could not be deleted");
        }
        self.removed = true;
        Ok(self.view())
    }

    fn freeze(&self, frozen: bool, reply: Reply) {
        let verb = if frozen { "freeze" } else { "thaw" };
        self.control(verb, reply, move |kernel| async move {
            if frozen { kernel.freeze().await } else { kernel.thaw().await }
        });
    }

    fn crash(&self, reply: Reply) {
        self.control("crash", reply, |kernel| async move { kernel.kill().await.map(drop) });
    }

    /// Does something to the kernel itself, in a task of its own.
    fn control<F, R>(&self, verb: &'static str, reply: Reply, act: F)
    where
        F: FnOnce(Kernel) -> R,
        R: Future<Output = Result<(), SpawnError>> + Send + 'static,
    {
        let (name, view) = (self.record.name.to_string(), self.view());
        let Some(kernel) = self.kernel.clone() else {
            let reason = format!("it is {}, it has no kernel", view.state);
            drop(reply.send(Err(ControlError::Conflict { verb: verb.into(), name, reason })));
            return;
        };
        let acting = act(kernel);
        tokio::spawn(async move {
            let outcome = match tokio::time::timeout(CONTROL_MAX, acting).await {
                Ok(Ok(())) => Ok(view),
                Ok(Err(error)) => {
                    Err(ControlError::failed(format!("{verb} `{name}`"), effects::chain(&error)))
                }
                Err(_) => Err(ControlError::TimedOut {
                    what: format!("{verb} `{name}`"),
                    waited_ms: CONTROL_MAX.as_millis() as u64,
                }),
            };
            drop(reply.send(outcome));
        });
    }
}
