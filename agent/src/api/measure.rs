//! `tombolo.agent.Measure`: bytes without meaning, to measure a link by.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_rpc::{Blob, Ctx};

/// What measures a link beside [`Agent::ping`](super::agent::Agent::ping).
#[tombolo_rpc::service(name = "tombolo.agent.Measure")]
pub trait Measure {
    /// Takes bytes until the caller ends them; how many came.
    async fn take(&self, cx: &Ctx, input: Receiver<Blob>) -> Result<u64, MeasureError>;
    /// Sends bytes until the time is over or the caller wants no more; how many were sent.
    async fn give(&self, cx: &Ctx, request: Give, out: Sender<Blob>) -> Result<u64, MeasureError>;
}

/// Request of [`Measure::give`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Give {
    /// Bytes of each item, 1 to 262 144.
    pub chunk_bytes: u32,
    /// For how long, 60 000 at most.
    pub for_ms: u32,
}

/// Why nothing was measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum MeasureError {
    /// The request makes no sense; the reason says what would.
    #[error("cannot measure so: {reason}")]
    Invalid {
        /// For people.
        reason: String,
    },
}
