//! What the agent as a whole is doing, shared by everything that must know whether to take on work.

use tokio::sync::watch;

use crate::api::health::AgentPhase;

/// The phase of this agent. Clones share it.
#[derive(Clone, Debug)]
pub struct Lifecycle(watch::Sender<AgentPhase>);

impl Lifecycle {
    /// An agent that is booting.
    pub fn booting() -> Self {
        Self(watch::Sender::new(AgentPhase::Booting))
    }

    /// What it is doing.
    pub fn phase(&self) -> AgentPhase {
        *self.0.borrow()
    }

    /// Goes to `phase`. Nothing leads back from [`AgentPhase::ShuttingDown`]; `false` if that was tried.
    pub fn enter(&self, phase: AgentPhase) -> bool {
        let mut entered = true;
        self.0.send_if_modified(|now| {
            entered = *now != AgentPhase::ShuttingDown || phase == AgentPhase::ShuttingDown;
            let changes = entered && *now != phase;
            if changes {
                *now = phase;
            }
            changes
        });
        entered
    }

    /// Tells of every change from now on.
    pub fn subscribe(&self) -> watch::Receiver<AgentPhase> {
        self.0.subscribe()
    }

    /// Whether new work is taken on.
    ///
    /// # Errors
    /// The word for what the kernel is doing instead.
    pub fn accepts_work(&self) -> Result<(), String> {
        match self.phase() {
            AgentPhase::Booting | AgentPhase::Running => Ok(()),
            AgentPhase::Quiesced => Err("quiesced".to_owned()),
            AgentPhase::ShuttingDown => Err("shutting down".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_back_from_shutting_down() {
        let lifecycle = Lifecycle::booting();
        assert!(lifecycle.enter(AgentPhase::Running) && lifecycle.accepts_work().is_ok());
        assert!(lifecycle.enter(AgentPhase::Quiesced) && lifecycle.accepts_work().is_err());
        assert!(lifecycle.enter(AgentPhase::Running));
        assert!(lifecycle.enter(AgentPhase::ShuttingDown));
        assert!(!lifecycle.enter(AgentPhase::Running));
        assert_eq!(lifecycle.phase(), AgentPhase::ShuttingDown);
    }
}
