//! `tombolo.control.Rules`: who may connect to whom.

use tombolo_rpc::Ctx;

use super::ControlError;
use crate::core::policy::Rule;

/// The policy. A change is pushed to every running kernel; connections already made stay.
#[tombolo_rpc::service(name = "tombolo.control.Rules")]
pub trait Rules {
    /// The rules there are.
    async fn list(&self, cx: &Ctx) -> Result<Vec<Rule>, ControlError>;
    /// Adds a rule; one that is there already is fine.
    async fn add(&self, cx: &Ctx, rule: Rule) -> Result<(), ControlError>;
    /// Removes a rule.
    async fn remove(&self, cx: &Ctx, rule: Rule) -> Result<(), ControlError>;
}
