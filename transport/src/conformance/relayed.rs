//! [`relay`](crate::relay), set up for the suite: a primary, kernels that share no memory with it, and one that does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::backends::allow_all;
use super::faults::{Faults, FaultySocket};
use super::{Backend, Failure, Limits, Pair};
use crate::addr::Cid;
use crate::relay::testing::{APART, Kernels, MEMBER, SOUND, Spoil};

/// Connections that are relayed, between applications that attach through their brokers' Unix sockets.
#[derive(Debug)]
pub struct Relayed {
    dir: PathBuf,
    kernels: RelayedKernels,
    spoil: Spoil,
    pairs: AtomicU32,
}

/// Which kernels the two endpoints of a [`Relayed`] pair are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayedKernels {
    /// Both in one that shares no memory.
    Same,
    /// One in the primary, one in a kernel that shares no memory.
    PrimaryAndApart,
    /// In two kernels that share no memory.
    TwoApart,
    /// In one that shares memory with the primary, and one that does not.
    MemberAndApart,
}

impl Relayed {
    /// Puts pools and sockets into `dir`, an empty directory with a path of at most 80 bytes.
    pub fn in_dir(dir: impl Into<PathBuf>, kernels: RelayedKernels) -> Self {
        Self { dir: dir.into(), kernels, spoil: SOUND, pairs: AtomicU32::new(0) }
    }

    /// The same, over sockets of paced links that break, lose bytes, and are full without saying when they are no more.
    pub fn over_faulty_sockets(dir: impl Into<PathBuf>, kernels: RelayedKernels) -> Self {
        let spoil: Spoil = |socket, seed| Box::new(FaultySocket::new(socket, Some(Faults::default()), seed));
        Self { spoil, ..Self::in_dir(dir, kernels) }
    }
}

impl Backend for Relayed {
    async fn pair(&self) -> Result<Pair, Failure> {
        let prefix = self.dir.join(self.pairs.fetch_add(1, Ordering::Relaxed).to_string());
        let (caller, callee, has_member) = match self.kernels {
            RelayedKernels::Same => (APART[0], APART[0], false),
            RelayedKernels::PrimaryAndApart => (Cid::HOST, APART[0], false),
            RelayedKernels::TwoApart => (APART[0], APART[1], false),
            RelayedKernels::MemberAndApart => (MEMBER, APART[0], true),
        };
        let kernels = Kernels::start(prefix, has_member, &allow_all(), self.spoil).await?;
        Ok(Pair {
            caller: kernels.attach(caller).await?.into(),
            callee: kernels.attach(callee).await?.into(),
            keep: Box::new(kernels),
        })
    }

    fn limits(&self) -> Limits {
        Limits { backlog_slack: 0, ..Limits::default() }
    }
}
