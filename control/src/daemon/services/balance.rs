//! `tombolo.control.Balance`.

use tombolo_rpc::Ctx;

use super::Session;
use crate::api::balance::{Balance, BalanceStatus};
use crate::api::{ControlError, Role};
use crate::core::balance::BalanceSettings;
use crate::daemon::balance;

impl Balance for Session {
    async fn status(&self, _cx: &Ctx) -> Result<BalanceStatus, ControlError> {
        Ok(balance::status(&self.shared, &self.registry)?)
    }

    async fn rehearse(
        &self,
        _cx: &Ctx,
        settings: Option<BalanceSettings>,
    ) -> Result<BalanceStatus, ControlError> {
        settings.as_ref().map_or(Ok(()), validate)?;
        Ok(balance::rehearse(&self.shared, &self.registry, settings).await?)
    }

    async fn set(&self, _cx: &Ctx, settings: Option<BalanceSettings>) -> Result<(), ControlError> {
        self.require(Role::Operator, "balance")?;
        settings.as_ref().map_or(Ok(()), validate)?;
        let verb = if settings.is_some() { "balance" } else { "balance off" };
        let set = balance::set(self.shared.clone(), settings).await;
        let outcome = set.map_err(ControlError::from);
        self.audit(verb, None, &outcome).await;
        outcome
    }
}

/// They came over the wire.
fn validate(settings: &BalanceSettings) -> Result<(), ControlError> {
    settings.validate().map_err(|error| ControlError::Invalid { reason: error.to_string() })
}
