//! The demo's application: a key-value service in one kernel, a client in another.
//!
//! `serve` offers four things, each under a name of its own: `kv` (typed calls on Tokio), `kv-busy` (the same calls,
//! busy-polled), `kv-echo` (messages sent back, busy-polled) and `kv-bytes` (a stream that never ends). The client finds
//! them by name and connects directly: no broker is on the way of the data.

pub mod floor;
pub mod hardware;
pub mod inside;
pub mod measure;
pub mod serve;
pub mod timing;
pub mod vsock;
pub mod watch;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tombolo_rpc::{Blob, Ctx, Schema};
#[allow(unused_imports, reason = "used by the service macro")]
use tombolo_rpc::{Receiver, Sender};

/// Where a kernel's broker listens, unless told otherwise.
pub fn default_broker() -> PathBuf {
    std::env::var_os("TOMBOLO_BROKER").map_or_else(|| "/run/tombolo/broker.sock".into(), PathBuf::from)
}

/// A key-value store.
#[tombolo_rpc::service(name = "tombolo.demo.Kv")]
pub trait Kv {
    /// The value of `key`.
    async fn read(&self, cx: &Ctx, key: String) -> Result<Option<Blob>, KvError>;
    /// Sets the value of `key`.
    async fn write(&self, cx: &Ctx, key: String, value: Blob) -> Result<(), KvError>;
}

/// Why the store refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, thiserror::Error)]
pub enum KvError {
    /// Keys have 1 to 256 bytes.
    #[error("a key of {bytes} bytes: keys have 1 to 256")]
    BadKey {
        /// Its length.
        bytes: u32,
    },
}

/// The value that `key` must have after round `round`: the client checks every reply against it.
pub fn expected_value(key: u32, round: u32) -> Vec<u8> {
    let mut value = format!("value of {key} in round {round} ").into_bytes();
    value.resize(32, b'.');
    value
}
