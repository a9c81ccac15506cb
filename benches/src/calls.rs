//! The typed calls that every framework is measured with, and tombolo-rpc's service of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tombolo_rpc::{Blob, Ctx, Never, Router, Schema};

use crate::payload::number_of;

/// What a [`Record`] holds, in bytes: the `bytes` of probes of calls.
pub const RECORD_BYTES: usize = 24;

/// What travels both ways: a small record, as a lookup has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Record {
    /// A number that the callee adds one to.
    pub count: u64,
    /// A key of 16 characters.
    pub key: String,
}

impl Record {
    /// The record that every measurement sends.
    pub fn sample() -> Self {
        Self { count: 41, key: "user:00000000042".into() }
    }

    /// What a server answers.
    pub fn answered(self) -> Self {
        Self { count: self.count + 1, key: self.key }
    }

    /// Whether this is the answer to [`Record::sample`].
    pub fn answers_sample(&self) -> bool {
        *self == Self::sample().answered()
    }
}

/// The call as tombolo-rpc has it.
#[tombolo_rpc::service(name = "tombolo.bench.Touch")]
pub trait Touch {
    /// Gives the record back with its count one higher.
    async fn touch(&self, cx: &Ctx, record: Record) -> Result<Record, Never>;
    /// Takes bytes, gives [`receipt`].
    async fn take(&self, cx: &Ctx, bytes: Blob) -> Result<u64, Never>;
}

/// What a server answers to a call with bytes once it has them in its own memory: their length and the number in the first eight of them.
pub fn receipt(bytes: &[u8]) -> u64 {
    number_of(bytes).unwrap_or_default().wrapping_add(bytes.len() as u64)
}

/// Answers calls, and counts them.
#[derive(Clone, Debug, Default)]
pub struct Toucher {
    served: Arc<AtomicU64>,
}

impl Toucher {
    /// How many calls have been answered.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn count(&self) {
        // Only the server's thread writes it.
        self.served.store(self.served() + 1, Ordering::Relaxed);
    }

    /// A router with [`Touch`] on it.
    pub fn router(&self) -> Router {
        Router::new().service(TouchServer::new(self.clone()))
    }
}

impl Touch for Toucher {
    async fn touch(&self, _: &Ctx, record: Record) -> Result<Record, Never> {
        self.count();
        Ok(record.answered())
    }

    async fn take(&self, _: &Ctx, bytes: Blob) -> Result<u64, Never> {
        self.count();
        Ok(receipt(&bytes))
    }
}
