//! `tombolo.agent.Handover`: this kernel's side of an operation that takes something from it or gives it something.
//!
//! The control plane decides and says who owns what; the agent knows what goes on inside. It answers questions about an
//! operation as a whole, and carries out orders about one piece of it. Every order is followed by a look, and the answer
//! is what was seen. Each carries the piece's epoch: an agent that has answered epoch *e* refuses orders with *e* or less, so that
//! what was asked before a look either shows in it or never happens.
//!
//! What an agent has promised (room, memory kept free) it keeps for `lease_ms` from the last it heard of the operation. Then it goes
//! back to normal by itself.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_handover::observe::Inside;
use tombolo_handover::operation::{End, Question, Veto};
use tombolo_handover::{OpId, PciAddress, Unit};
use tombolo_rpc::Ctx;

/// This kernel's side of a hand-over.
#[tombolo_rpc::service(name = "tombolo.agent.Handover")]
pub trait Handover {
    /// Answers a question about the operation as a whole.
    async fn ask(&self, cx: &Ctx, asked: Asked) -> Result<Answer, HandoverError>;
    /// Carries out an order about one piece, or none, and looks at it.
    async fn order(&self, cx: &Ctx, order: Order) -> Result<Seen, HandoverError>;
}

/// Request of [`Handover::ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Asked {
    /// About which operation.
    pub operation: OpId,
    /// What.
    pub question: Question,
    /// Which end of it this kernel is.
    pub end: End,
    /// All that is to move and has not arrived yet, in order.
    pub pieces: Vec<Piece>,
    /// How long to keep what is promised, in ms.
    pub lease_ms: u64,
}

/// Answer of [`Handover::ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Answer {
    /// Nothing, or why not.
    pub veto: Option<Veto>,
    /// Whether any application here has hooks; if not, they need not be asked.
    pub has_hooks: bool,
}

/// One unit on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Piece {
    /// The unit. Before it is reserved, for memory, the one it will be cut from.
    pub unit: tombolo_handover::UnitId,
    /// What it is in this kernel, if it is there.
    pub here: Option<Here>,
    /// The fencing token.
    pub epoch: u64,
}

/// Request of [`Handover::order`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Order {
    /// For which operation.
    pub operation: OpId,
    /// Which end of it this kernel is.
    pub end: End,
    /// The unit.
    pub unit: Unit,
    /// What it is in this kernel, if it is there.
    pub here: Option<Here>,
    /// The fencing token.
    pub epoch: u64,
    /// What to do first; `None` only to look.
    pub action: Option<Action>,
    /// How long to keep what is promised, in ms.
    pub lease_ms: u64,
}

/// What a unit is in the kernel that is asked, which may know it by another name than the ledger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Here {
    /// So much memory.
    Memory {
        /// In bytes.
        bytes: u64,
    },
    /// The CPU of this number.
    Cpu {
        /// As in `/sys/devices/system/cpu`.
        index: u32,
    },
    /// The CPU that its hardware calls so, whatever number the kernel gave it. Its kernel lets it go by itself when it is taken, and would not park
    /// one that is offline: it is emptied, and stays online.
    PhysicalCpu {
        /// As `apicid` in `/proc/cpuinfo`.
        id: u32,
    },
    /// The PCI function at this address.
    Device {
        /// As in `/sys/bus/pci/devices`.
        address: PciAddress,
    },
}

/// What can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Stop using it, so that it can be taken.
    Drain,
    /// Use it again.
    Undrain,
    /// Use it, and prove that it can be used.
    Online,
}

/// Answer to [`Handover::order`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Seen {
    /// Set if the order was refused, and so has had no effect.
    pub refused: Option<Veto>,
    /// What goes on with the unit inside, now.
    pub inside: Inside,
}

impl Here {
    /// How much memory it is, in bytes; 0 for anything else.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Memory { bytes } => bytes,
            Self::Cpu { .. } | Self::PhysicalCpu { .. } | Self::Device { .. } => 0,
        }
    }
}

impl fmt::Display for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { bytes } => write!(f, "{bytes} bytes"),
            Self::Cpu { index } => write!(f, "CPU {index}"),
            Self::PhysicalCpu { id } => write!(f, "physical CPU {id}"),
            Self::Device { address } => write!(f, "function {address}"),
        }
    }
}

/// Why an agent cannot answer at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum HandoverError {
    /// The system refused.
    #[error("{attempt} failed: {reason}")]
    System {
        /// What was tried.
        attempt: String,
        /// What the system said.
        reason: String,
    },
}
