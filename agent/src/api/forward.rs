//! `tombolo.agent.Forward`: TCP and Unix sockets inside the kernel, bridged to callers or to the fabric.
//!
//! It lets programs that know nothing of the fabric take part: [`Forward::connect`] bridges one connection to a caller;
//! [`Forward::listen`] bridges every connection that comes to a socket inside this kernel (or to a port of the fabric)
//! to a target.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use tombolo_rpc::{Blob, Ctx};

/// Bridged sockets.
#[tombolo_rpc::service(name = "tombolo.agent.Forward")]
pub trait Forward {
    /// Connects to `target` and bridges it: `input` goes there, `out` comes from there.
    ///
    /// An empty first item of `out` says that the connection is there. Ending `input` shuts down that direction; the call
    /// ends when both are over.
    async fn connect(
        &self,
        cx: &Ctx,
        request: ForwardConnect,
        input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<ForwardDone, ForwardError>;
    /// Bridges every connection to `listen` with a new one to `target`, until [`Forward::unlisten`].
    async fn listen(&self, cx: &Ctx, rule: ForwardRule) -> Result<ForwardInfo, ForwardError>;
    /// Ends a rule; its open connections stay.
    async fn unlisten(&self, cx: &Ctx, id: u64) -> Result<(), ForwardError>;
    /// The rules there are.
    async fn list(&self, cx: &Ctx) -> Result<Vec<ForwardInfo>, ForwardError>;
}

/// Where to connect, or to listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "snake_case")]
pub enum ForwardTarget {
    /// A TCP port. To listen on port 0 chooses a free one.
    Tcp {
        /// An address, or a name of /etc/hosts in this kernel; default for listeners is 127.0.0.1.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix stream socket.
    Unix {
        /// Its absolute path.
        path: String,
    },
    /// A port of the fabric. To listen, `cid` is this kernel's or `u32::MAX`.
    Fabric {
        /// The kernel.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// A service of the fabric by name: `kernel/service`; to listen, the name to register in this kernel.
    Service {
        /// Its name.
        name: String,
    },
}

/// Request of [`Forward::connect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ForwardConnect {
    /// Where to.
    pub target: ForwardTarget,
    /// Give up after this long. 0 means 5 seconds.
    pub timeout_ms: u64,
}

/// How much went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ForwardDone {
    /// Bytes to the target.
    pub sent: u64,
    /// Bytes from the target.
    pub received: u64,
}

/// A listener and where its connections go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ForwardRule {
    /// Where to listen.
    pub listen: ForwardTarget,
    /// Where to connect.
    pub target: ForwardTarget,
}

/// A rule that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ForwardInfo {
    /// Its id, never reused while the agent runs.
    pub id: u64,
    /// The rule, with the port that was chosen.
    pub rule: ForwardRule,
    /// Connections that are open.
    pub open: u32,
    /// Connections so far.
    pub total: u64,
    /// Why the last connection to the target failed; empty if none did.
    pub last_failure: String,
}

/// What can go wrong in [`Forward`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum ForwardError {
    /// The target could not be reached.
    #[error("cannot connect to {target}: {reason}")]
    Unreachable {
        /// Where to.
        target: String,
        /// Why.
        reason: String,
    },
    /// The connection was lost in the middle.
    #[error(
        "the connection to {target} was lost after {sent} bytes there and {received} bytes back: {reason}"
    )]
    Lost {
        /// Where to.
        target: String,
        /// Bytes to the target.
        sent: u64,
        /// Bytes from the target.
        received: u64,
        /// Why.
        reason: String,
    },
    /// One cannot listen there.
    #[error("cannot listen on {listen}: {reason}")]
    CannotListen {
        /// Where.
        listen: String,
        /// Why.
        reason: String,
    },
    /// There is no such rule.
    #[error("there is no forward {id}; `list` shows those there are")]
    NoSuchForward {
        /// As it was asked for.
        id: u64,
    },
    /// The target names the fabric, and this kernel has none.
    #[error("cannot reach {target}: this kernel has neither a shared-memory pool nor a paced link")]
    NoFabric {
        /// Where to.
        target: String,
    },
    /// The agent takes on no work now.
    #[error("this kernel is {state} and bridges no new connections")]
    NotAccepting {
        /// `quiesced` or `shutting down`.
        state: String,
    },
}
