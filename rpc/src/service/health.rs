//! A standard way for a program to say whether it can do its work now.
//!
//! Nobody needs it to be probed: that a program answers HELLO and [reflection](super::reflection) shows that it is there
//! and that its handlers get to run. A program that knows more (its store is still loading, its own backend is gone)
//! serves [`Health`] as well, and probes ask it. After the health checking protocol of gRPC.

use serde::{Deserialize, Serialize};

use super::Ctx;
use crate::Schema;

/// How a program is, by its own account.
#[crate::service(name = "tombolo.Health")]
pub trait Health {
    /// Whether `service` can do its work now; an empty name asks about the program as a whole.
    async fn serving(&self, cx: &Ctx, service: String) -> Result<(), NotServing>;
}

/// It cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
#[error("not serving: {reason}")]
pub struct NotServing {
    /// Why, for people.
    pub reason: String,
}
