//! `tombolo.control.Rules`.

use tombolo_rpc::Ctx;

use super::Session;
use crate::api::rules::Rules;
use crate::api::{ControlError, Role};
use crate::core::EventKind;
use crate::core::policy::{Rule, Target};
use crate::store::Batch;

impl Rules for Session {
    async fn list(&self, _cx: &Ctx) -> Result<Vec<Rule>, ControlError> {
        Ok(self.shared.rules().to_vec())
    }

    async fn add(&self, _cx: &Ctx, rule: Rule) -> Result<(), ControlError> {
        self.require(Role::Admin, "change the policy")?;
        let outcome = self.add_rule(&rule).await;
        self.audit(&format!("policy {rule}"), None, &outcome).await;
        outcome
    }

    async fn remove(&self, _cx: &Ctx, rule: Rule) -> Result<(), ControlError> {
        self.require(Role::Admin, "change the policy")?;
        let outcome = self.remove_rule(&rule).await;
        self.audit(&format!("policy rm {rule}"), None, &outcome).await;
        outcome
    }
}

impl Session {
    async fn add_rule(&self, rule: &Rule) -> Result<(), ControlError> {
        // It came over the wire: only what `Rule::new` would make may be stored.
        let target = Target { to: rule.to.clone(), port: rule.port.clone() };
        Rule::new(rule.action, &rule.from, &target)
            .map_err(|error| ControlError::Invalid { reason: error.to_string() })?;
        let _change = self.shared.policy_changes.lock().await;
        let mut rules = self.shared.rules().to_vec();
        if rules.contains(rule) {
            return Ok(());
        }
        let added = EventKind::PolicyAdded { rule: rule.to_string() };
        self.shared.store.commit(Batch::new().put_rule(rule).event(None, None, added)).await?;
        rules.push(rule.clone());
        self.enforce(rules).await
    }

    async fn remove_rule(&self, rule: &Rule) -> Result<(), ControlError> {
        let _change = self.shared.policy_changes.lock().await;
        let mut rules = self.shared.rules().to_vec();
        let Some(index) = rules.iter().position(|other| other == rule) else {
            return Err(ControlError::NotFound { what: "policy rule".into(), name: rule.to_string() });
        };
        let removed = EventKind::PolicyRemoved { rule: rule.to_string() };
        self.shared.store.commit(Batch::new().delete_rule(rule).event(None, None, removed)).await?;
        rules.remove(index);
        self.enforce(rules).await
    }

    async fn enforce(&self, rules: Vec<Rule>) -> Result<(), ControlError> {
        self.shared
            .replace_rules(rules)
            .await
            .map_err(|error| ControlError::failed("put the policy in force on the host", error))?;
        for handle in self.registry.all() {
            handle.mailbox.rules_changed().await;
        }
        Ok(())
    }
}
