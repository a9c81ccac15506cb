//! An instance that another program made in the kernel and that was taken over: what is done with it before its first start, while no keeper stands
//! for it.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Instance;
use super::effects::KEEPER_MAX;
use super::message::Command;
use crate::api::{ControlError, InstanceView};
use crate::spawner::SpawnerKind;
use crate::spawner::multikernel::Known;

/// How long a kernel may take to end by force, told three times.
const END_MAX: Duration = Duration::from_secs(15);
/// How long giving back may take before it is said that it is not done.
const GIVE_BACK_MAX: Duration = Duration::from_secs(10);

impl Instance {
    /// Whether nothing is known of a kernel but what was taken over.
    pub(super) fn has_only_what_was_taken_over(&self) -> bool {
        self.kernel.is_none() && self.record.taken_over.is_some()
    }

    /// A kernel that was taken over while it ran has no agent, and cannot be stopped in good order.
    pub(super) async fn refuse_what_has_no_agent(&self, command: Command) -> Result<(), ControlError> {
        let verb = match command {
            Command::Stop(_) => "stop",
            Command::Restart(_) => "restart",
            _ => return Ok(()),
        };
        if !self.has_only_what_was_taken_over() {
            return Ok(());
        }
        let looking = self.shared.drivers.multikernel().is_active(self.known());
        let name = self.record.name.to_string();
        let reason = match tokio::time::timeout(KEEPER_MAX, looking).await {
            Ok(Ok(false)) => return Ok(()),
            Ok(Ok(true)) => format!(
                "its kernel was taken over while it ran and has no agent: `tombolo kill {name}` ends it by force"
            ),
            Ok(Err(reason)) => reason,
            Err(_) => format!("the kernel did not say within {KEEPER_MAX:?} whether it runs"),
        };
        Err(ControlError::Conflict { verb: verb.into(), name, reason })
    }

    /// Ends by force what runs in it, in a task of its own.
    pub(super) fn end_what_was_taken_over(&self, reply: oneshot::Sender<Result<InstanceView, ControlError>>) {
        let (drivers, known, view) = (self.shared.drivers.clone(), self.known(), self.view());
        tokio::spawn(async move {
            let attempt = format!("end the kernel of `{}`", known.name);
            let outcome = match tokio::time::timeout(END_MAX, drivers.multikernel().end(known)).await {
                Ok(Ok(())) => Ok(view),
                Ok(Err(reason)) => Err(ControlError::failed(attempt, reason)),
                Err(_) => {
                    Err(ControlError::TimedOut { what: attempt, waited_ms: END_MAX.as_millis() as u64 })
                }
            };
            drop(reply.send(outcome));
        });
    }

    /// Gives back what there is of it in the kernel beside which it runs, before its record goes.
    pub(super) async fn give_back(&self) -> Result<(), ControlError> {
        if self.record.spawner != Some(SpawnerKind::Multikernel) {
            return Ok(());
        }
        let giving = self.shared.drivers.multikernel().give_back(self.known());
        let name = self.record.name.to_string();
        let reason = match tokio::time::timeout(GIVE_BACK_MAX, giving).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(_) => {
                format!("what it has in the kernel is not given back after {GIVE_BACK_MAX:?}; try again")
            }
        };
        Err(ControlError::Conflict { verb: "remove".into(), name, reason })
    }

    fn known(&self) -> Known {
        Known {
            folder: self.shared.places.instance(&self.record.name),
            name: self.record.name.to_string(),
            cid: self.record.cid.0,
            taken_over: self.record.taken_over.clone(),
        }
    }
}
