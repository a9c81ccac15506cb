//! What every part of the daemon knows.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use tokio::sync::Mutex;
use tombolo_transport::pool::{Member, Pool};
use tombolo_transport::{BrokerHandle, Cid, Incarnation};

use super::balance::Balance;
use super::drivers::Drivers;
use super::handover::Ledger;
use super::instance::Mailbox;
use super::options::Places;
use super::paced::PacedLinks;
use crate::core::policy::{Rule, to_broker_policy};
use crate::core::{EventKind, InstanceName};
use crate::spawner::Device;
use crate::store::{Batch, Store};

/// What every part of the daemon knows. No lock in it but `policy_changes` is held across an await.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) places: Places,
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    pub(crate) drivers: Drivers,
    pub(crate) pool: Pool,
    pub(crate) pool_bytes: u64,
    pub(crate) broker: BrokerHandle,
    /// To the kernels that share no memory with this one.
    pub(crate) paced: PacedLinks,
    pub(crate) daemon_uid: u32,
    pub(crate) operators_gid: Option<u32>,
    pub(crate) image: Option<PathBuf>,
    /// The devices that machines can be lent.
    pub(crate) catalogue: Arc<[Device]>,
    pub(crate) started_unix_ns: u64,
    pub(crate) balance: Balance,
    rules: RwLock<Arc<Vec<Rule>>>,
    /// Held by whoever changes the policy, from reading it until it is in force: of two changes at once none is lost.
    pub(crate) policy_changes: Mutex<()>,
    /// Whether the daemon is about to end: then nothing is started any more.
    pub(crate) is_ending: AtomicBool,
    /// Who may report as an agent: one entry for each kernel that was started and has not ended.
    credentials: RwLock<HashMap<(Cid, Incarnation), Credential>>,
}

/// What an agent must prove, and whom to tell when it has.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    pub(crate) secret: [u8; 32],
    pub(crate) name: InstanceName,
    pub(crate) mailbox: Mailbox,
}

/// The parts that [`Shared`] is made of.
pub(crate) struct Parts {
    pub(crate) places: Places,
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    pub(crate) drivers: Drivers,
    pub(crate) pool: Pool,
    pub(crate) pool_bytes: u64,
    pub(crate) broker: BrokerHandle,
    pub(crate) paced: PacedLinks,
    pub(crate) operators_gid: Option<u32>,
    pub(crate) image: Option<PathBuf>,
    pub(crate) catalogue: Arc<[Device]>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) balance: Balance,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { places, store, ledger, drivers, pool, pool_bytes, .. } = parts;
        let Parts { broker, paced, operators_gid, image, catalogue, rules, balance, .. } = parts;
        Arc::new(Self {
            places,
            store,
            ledger,
            drivers,
            pool,
            pool_bytes,
            broker,
            paced,
            operators_gid,
            image,
            catalogue,
            daemon_uid: rustix::process::geteuid().as_raw(),
            started_unix_ns: crate::time::unix_ns(),
            balance,
            rules: RwLock::new(Arc::new(rules)),
            policy_changes: Mutex::default(),
            is_ending: AtomicBool::new(false),
            credentials: RwLock::default(),
        })
    }

    /// The policy as it stands.
    pub(crate) fn rules(&self) -> Arc<Vec<Rule>> {
        self.rules.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Puts a new policy in force in this kernel; the instances must be told apart.
    pub(crate) async fn replace_rules(&self, rules: Vec<Rule>) -> Result<(), tombolo_transport::Error> {
        let policy = to_broker_policy(&rules);
        *self.rules.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(rules);
        self.broker.set_policy(policy).await
    }

    pub(crate) fn credential(&self, cid: Cid, incarnation: Incarnation) -> Option<Credential> {
        self.credentials
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get(&(cid, incarnation))
            .cloned()
    }

    /// The instance whose kernel has this CID now.
    pub(crate) fn name_of(&self, cid: Cid) -> Option<InstanceName> {
        let credentials = self.credentials.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        credentials
            .iter()
            .find(|((other, _), _)| *other == cid)
            .map(|(_, credential)| credential.name.clone())
    }

    /// The CID of the instance of this name, whose kernel runs.
    pub(crate) fn cid_of(&self, name: &str) -> Option<Cid> {
        let credentials = self.credentials.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = credentials.iter().find(|(_, credential)| credential.name.as_str() == name);
        found.map(|((cid, _), _)| *cid)
    }

    /// Lets the agent of this boot report, and that of any earlier boot with this CID no more.
    pub(crate) fn admit_agent(&self, cid: Cid, incarnation: Incarnation, credential: Credential) {
        let mut credentials = self.credentials.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        credentials.retain(|(other, _), _| *other != cid);
        credentials.insert((cid, incarnation), credential);
    }

    pub(crate) fn dismiss_agent(&self, cid: Cid) {
        let mut credentials = self.credentials.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        credentials.retain(|(other, _), _| *other != cid);
    }

    /// The generation that `member`'s broker runs under; 0 if none does.
    pub(crate) fn generation(&self, member: u16) -> u64 {
        self.broker.generation(Member(member))
    }

    /// Notes an event that belongs to no step; one that cannot be recorded is logged.
    pub(crate) async fn note(&self, instance: Option<&InstanceName>, kind: EventKind) {
        let batch = Batch::new().event(instance, None, kind.clone()).essential(kind.is_of_an_end());
        if let Err(error) = self.store.commit(batch).await {
            tracing::warn!(%error, event = kind.name(), "an event could not be recorded");
        }
    }
}
