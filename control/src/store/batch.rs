//! A set of changes that happen together or not at all.

use redb::{Database, Durability, ReadableTable};
use serde::Serialize;
use tombolo_handover::coordinator::Commit;

use super::ledger::{LedgerChange, StoredLedger};
use super::{
    BALANCE, EVENTS, EVENTS_MAX, INSTANCES, InstanceRecord, META, POLICY, PRUNE_EVERY, RECEIPTS, SETTINGS,
    StoreError,
};
use crate::core::balance::BalanceSettings;
use crate::core::policy::Rule;
use crate::core::{Event, EventKind, InstanceName};
use crate::time::unix_ns;

/// Changes to be made together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    is_essential: bool,
    can_wait: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Schema(u64),
    NextCid(u32),
    PutInstance(String, Vec<u8>),
    DeleteInstance(String),
    PutRule(String, Vec<u8>),
    DeleteRule(String),
    PutReceipt(String, Vec<u8>),
    PutSetting(&'static str, Vec<u8>),
    DeleteSetting(&'static str),
    Ledger(LedgerChange),
    Event(Event),
}

impl Batch {
    /// No changes yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn schema(self, version: u64) -> Self {
        self.with(Change::Schema(version))
    }

    /// Records which CID comes next.
    pub fn next_cid(self, cid: u32) -> Self {
        self.with(Change::NextCid(cid))
    }

    /// Writes an instance's record.
    pub fn put_instance(self, record: &InstanceRecord) -> Self {
        self.with(Change::PutInstance(record.name.to_string(), encode(record)))
    }

    /// Deletes an instance's record.
    pub fn delete_instance(self, name: &InstanceName) -> Self {
        self.with(Change::DeleteInstance(name.to_string()))
    }

    /// Adds a policy rule.
    pub fn put_rule(self, rule: &Rule) -> Self {
        self.with(Change::PutRule(rule.to_string(), encode(rule)))
    }

    /// Deletes a policy rule.
    pub fn delete_rule(self, rule: &Rule) -> Self {
        self.with(Change::DeleteRule(rule.to_string()))
    }

    /// Remembers the result of the mutation with this idempotency key.
    pub fn put_receipt(self, key: &str, result: &impl Serialize) -> Self {
        self.with(Change::PutReceipt(key.to_owned(), encode(result)))
    }

    /// Writes how CPUs are balanced, or that they are not.
    pub fn balance(self, settings: Option<&BalanceSettings>) -> Self {
        self.with(match settings {
            Some(settings) => Change::PutSetting(BALANCE, encode(settings)),
            None => Change::DeleteSetting(BALANCE),
        })
    }

    /// Begins the ledger anew, in place of what there is.
    pub fn begin_ledger(self, ledger: StoredLedger) -> Self {
        self.with(Change::Ledger(LedgerChange::Begin(Box::new(ledger))))
    }

    /// Writes a step of the ledger and of its operations. Its events are the caller's to add.
    pub fn ledger_step(self, step: Commit) -> Self {
        self.with(Change::Ledger(LedgerChange::Step(Box::new(step))))
    }

    /// Appends an event; its number is given at the commit.
    pub fn event(
        self,
        instance: Option<&InstanceName>,
        incarnation: Option<String>,
        kind: EventKind,
    ) -> Self {
        let instance = instance.map(ToString::to_string);
        self.with(Change::Event(Event { seq: 0, at_unix_ns: unix_ns(), instance, incarnation, kind }))
    }

    /// Lets it use the room that is kept on a full disk, if `is_essential`: for what stops something, or tells that
    /// something has ended. It must be small.
    pub fn essential(self, is_essential: bool) -> Self {
        Self { is_essential, ..self }
    }

    /// Lets it reach the disk with the next batch that cannot wait: until then it is lost if this process dies.
    pub fn can_wait(self, can_wait: bool) -> Self {
        Self { can_wait, ..self }
    }

    pub(super) fn is_essential(&self) -> bool {
        self.is_essential
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn with(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    /// Makes the changes; returns the number of the newest event.
    pub(super) fn apply(&self, db: &Database) -> Result<u64, StoreError> {
        self.write(db).map_err(|error| StoreError::Refused { reason: error.to_string() })
    }

    fn write(&self, db: &Database) -> Result<u64, redb::Error> {
        let mut transaction = db.begin_write()?;
        if self.can_wait {
            transaction.set_durability(Durability::None)?;
        }
        let last_seq;
        {
            let mut meta = transaction.open_table(META)?;
            let mut instances = transaction.open_table(INSTANCES)?;
            let mut policy = transaction.open_table(POLICY)?;
            let mut receipts = transaction.open_table(RECEIPTS)?;
            let mut settings = transaction.open_table(SETTINGS)?;
            let mut events = transaction.open_table(EVENTS)?;
            let mut seq = events.last()?.map_or(0, |(key, _)| key.value());
            for change in &self.changes {
                match change {
                    Change::Schema(version) => drop(meta.insert("schema", version)?),
                    Change::NextCid(cid) => drop(meta.insert("next_cid", u64::from(*cid))?),
                    Change::PutInstance(name, value) => {
                        drop(instances.insert(name.as_str(), value.as_slice())?);
                    }
                    Change::DeleteInstance(name) => drop(instances.remove(name.as_str())?),
                    Change::PutRule(key, value) => drop(policy.insert(key.as_str(), value.as_slice())?),
                    Change::DeleteRule(key) => drop(policy.remove(key.as_str())?),
                    Change::PutReceipt(key, value) => drop(receipts.insert(key.as_str(), value.as_slice())?),
                    Change::PutSetting(key, value) => drop(settings.insert(*key, value.as_slice())?),
                    Change::DeleteSetting(key) => drop(settings.remove(*key)?),
                    Change::Ledger(change) => change.apply(&transaction)?,
                    Change::Event(event) => {
                        seq += 1;
                        let event = Event { seq, ..event.clone() };
                        events.insert(seq, encode(&event).as_slice())?;
                        if seq.is_multiple_of(PRUNE_EVERY) {
                            events.retain_in(..seq.saturating_sub(EVENTS_MAX), |_, _| false)?;
                        }
                    }
                }
            }
            last_seq = seq;
        }
        transaction.commit()?;
        Ok(last_seq)
    }
}

/// JSON of a value of ours. They hold no map with keys other than strings, the one thing JSON cannot express.
fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
