//! The daemon's memory: instances, events, policy, settings, receipts of mutations, and the ledger of units with its journal, in one
//! transactional file (`state.redb`).
//!
//! Everything that changes goes through a [`Batch`], which is committed whole or not at all and is on disk when
//! [`Store::commit`] returns, unless it [can wait](Batch::can_wait). When the disk is full or the folder read-only, commits are refused with an error that
//! says so, reads go on, and each later commit first tries to open the file anew. Some room is kept for what is
//! [essential](Batch::essential): a full disk must not keep an operator from stopping anything.
//!
//! Values are JSON: a newer daemon reads what an older one wrote, and people can read it too.

mod batch;
mod error;
mod file;
mod ledger;
mod lock;
mod record;
mod reserve;

pub use batch::Batch;
pub use error::StoreError;
pub use ledger::StoredLedger;
pub use lock::StateLock;
pub use record::{InstanceRecord, LastEnd};

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use self::file::{Db, Opener};
use self::reserve::{Missing, RESERVE_BYTES, Reserve};
use crate::core::balance::BalanceSettings;
use crate::core::policy::Rule;
use crate::core::{Event, EventKind};

/// Version of the layout below. A store of a later version is refused, never guessed at.
const SCHEMA_VERSION: u64 = 1;
/// Events kept; the oldest go first. 100 000 events of some 300 bytes are about 30 MB.
const EVENTS_MAX: u64 = 100_000;
/// How often old events are looked for, in events.
const PRUNE_EVERY: u64 = 1_000;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const INSTANCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("instances");
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const POLICY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("policy");
const RECEIPTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("receipts");
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");

/// The key of how CPUs are balanced, in the table of settings.
const BALANCE: &str = "balance";

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: RwLock<Db>,
    open: Opener,
    reserve: Reserve,
    /// Held by whoever commits: the room of the reserve goes to one at a time.
    commits: Mutex<()>,
    last_seq: watch::Sender<u64>,
}

impl Store {
    /// Opens `state.redb` in `state_dir`, making it if it is missing. Where it can be read but not written, the store
    /// serves reads and refuses commits.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be read at all, is damaged, or was written by a later version.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        Self::with_opener(file::opener(state_dir.join("state.redb")), state_dir.join("reserve"))
    }

    fn with_opener(open: Opener, reserve: PathBuf) -> Result<Self, StoreError> {
        let db = open.open()?;
        let reserve = Reserve::new(reserve);
        let (commits, last_seq) = (Mutex::default(), watch::Sender::new(0));
        let inner = Inner { db: RwLock::new(db), open, reserve, commits, last_seq };
        let store = Self { inner: Arc::new(inner) };
        store.prepare()?;
        let last = store.last_event()?;
        store.inner.last_seq.send_replace(last);
        Ok(store)
    }

    /// Makes the tables of a new file, and checks the version of an old one.
    fn prepare(&self) -> Result<(), StoreError> {
        let found = self.read(META, |table| Ok(table.get("schema")?.map(|value| value.value())))?.flatten();
        match found {
            Some(SCHEMA_VERSION) => Ok(()),
            Some(version) => Err(StoreError::Version { found: version, supported: SCHEMA_VERSION }),
            None => match self.apply(&Batch::new().schema(SCHEMA_VERSION)) {
                Err(StoreError::Refused { .. }) => Ok(()),
                other => other.map(drop),
            },
        }
    }

    /// Why ordinary commits are refused at present, if they are.
    pub fn refusal(&self) -> Option<String> {
        let spent = || (!self.inner.reserve.is_held()).then(|| no_room("it is in use"));
        self.closed_because().or_else(spent)
    }

    fn closed_because(&self) -> Option<String> {
        match &*self.db() {
            Db::Writable(_) => None,
            Db::ReadOnly { reason, .. } | Db::Closed { reason } => Some(reason.clone()),
        }
    }

    /// Commits a batch off the async runtime; returns when it is on disk, or can wait for the next that is.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when nothing can be written; nothing of the batch has then been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the batch wholly done or not at all.
    pub async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || store.commit_now(&batch)).await {
            Ok(outcome) => outcome,
            Err(error) => {
                Err(StoreError::Refused { reason: format!("the writing task ended early: {error}") })
            }
        }
    }

    /// As [`Store::commit`], blocking the thread for a disk write.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_now(&self, batch: &Batch) -> Result<(), StoreError> {
        let _committing = self.inner.commits.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !batch.is_essential() {
            return match self.inner.reserve.check() {
                Ok(()) => self.commit_once(batch),
                Err(Missing::NoMore) => {
                    let restored = EventKind::DiskReserveRestored { bytes: RESERVE_BYTES };
                    self.commit_once(&batch.clone().event(None, None, restored))
                }
                Err(Missing::Still(error)) => Err(StoreError::Refused { reason: no_room(error) }),
            };
        }
        match self.commit_once(batch) {
            Err(error) if self.inner.reserve.release() => {
                tracing::warn!(%error, "the room kept on the disk is used: it is full");
                let used = EventKind::DiskReserveUsed { bytes: RESERVE_BYTES, reason: error.to_string() };
                self.commit_once(&batch.clone().event(None, None, used))
            }
            outcome => outcome,
        }
    }

    fn commit_once(&self, batch: &Batch) -> Result<(), StoreError> {
        if self.closed_because().is_some() {
            self.reopen()?;
        }
        match self.apply(batch) {
            Ok(last_seq) => {
                self.inner.last_seq.send_if_modified(|seq| {
                    let newer = last_seq > *seq;
                    *seq = last_seq.max(*seq);
                    newer
                });
                Ok(())
            }
            Err(error) => {
                self.inner.close(error.to_string());
                // Reads must go on: a file that takes no write can often still be read.
                let _ = self.reopen();
                Err(error)
            }
        }
    }

    fn apply(&self, batch: &Batch) -> Result<u64, StoreError> {
        match &*self.db() {
            Db::Writable(db) => batch.apply(db),
            Db::ReadOnly { reason, .. } | Db::Closed { reason } => {
                Err(StoreError::Refused { reason: reason.clone() })
            }
        }
    }

    fn reopen(&self) -> Result<(), StoreError> {
        // The old handle holds redb's own lock on the file: it must go first.
        let reason = self.closed_because().unwrap_or_default();
        let mut db = self.inner.db.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *db = Db::Closed { reason };
        *db = self.inner.open.open()?;
        Ok(())
    }

    /// All instances, by name.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a record cannot be understood.
    pub fn instances(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        self.decode_all(INSTANCES, "instance")
    }

    /// All policy rules, in order.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a rule cannot be understood.
    pub fn rules(&self) -> Result<Vec<Rule>, StoreError> {
        self.decode_all(POLICY, "policy rule")
    }

    /// Events with numbers after `after`, at most `limit` of them, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if one cannot be understood.
    pub fn events(&self, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        let rows = self.read(EVENTS, |table| {
            let range = table.range(after.saturating_add(1)..)?;
            range
                .take(limit)
                .map(|row| row.map(|(key, value)| (key.value(), value.value().to_owned())))
                .collect()
        })?;
        let rows: Vec<(u64, Vec<u8>)> = rows.unwrap_or_default();
        rows.iter().map(|(key, value)| decode("event", &key.to_string(), value)).collect()
    }

    /// The result of an earlier mutation with this idempotency key.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it cannot be understood.
    pub fn receipt<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        self.decode_one(RECEIPTS, "receipt", key)
    }

    /// How CPUs are balanced; `None` if they are not.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if that cannot be understood.
    pub fn balance(&self) -> Result<Option<BalanceSettings>, StoreError> {
        self.decode_one(SETTINGS, "setting", BALANCE)
    }

    /// The next free CID: never handed out twice in the life of a store, so that no late message finds a stranger.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn next_cid(&self) -> Result<u32, StoreError> {
        let found = self.read(META, |table| Ok(table.get("next_cid")?.map(|value| value.value())))?.flatten();
        Ok(found.and_then(|cid| u32::try_from(cid).ok()).unwrap_or(FIRST_CID))
    }

    /// The number of the newest event, as it changes.
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.inner.last_seq.subscribe()
    }

    fn last_event(&self) -> Result<u64, StoreError> {
        Ok(self.read(EVENTS, |table| Ok(table.last()?.map(|(key, _)| key.value())))?.flatten().unwrap_or(0))
    }

    /// The record of a table with this key.
    fn decode_one<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        what: &'static str,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        let found = self.read(table, |table| Ok(table.get(key)?.map(|value| value.value().to_owned())))?;
        found.flatten().map(|value: Vec<u8>| decode(what, key, &value)).transpose()
    }

    /// Every record of a table, in the order of its keys.
    fn decode_all<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        what: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.read(table, |table| {
            table
                .iter()?
                .map(|row| row.map(|(key, value)| (key.value().to_owned(), value.value().to_owned())))
                .collect()
        })?;
        let rows: Vec<(String, Vec<u8>)> = rows.unwrap_or_default();
        rows.iter().map(|(key, value)| decode(what, key, value)).collect()
    }

    /// Reads a table; `None` if it does not exist yet.
    fn read<K, V, T>(
        &self,
        table: TableDefinition<'_, K, V>,
        look: impl FnOnce(redb::ReadOnlyTable<K, V>) -> Result<T, redb::StorageError>,
    ) -> Result<Option<T>, StoreError>
    where
        K: redb::Key + 'static,
        V: redb::Value + 'static,
    {
        let failed = |error: redb::Error| StoreError::Read { reason: error.to_string() };
        let transaction = match &*self.db() {
            Db::Writable(db) => db.begin_read(),
            Db::ReadOnly { db, .. } => db.begin_read(),
            Db::Closed { reason } => return Err(StoreError::Read { reason: reason.clone() }),
        }
        .map_err(|error| failed(error.into()))?;
        match transaction.open_table(table) {
            Ok(table) => look(table).map(Some).map_err(|error| failed(error.into())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn db(&self) -> std::sync::RwLockReadGuard<'_, Db> {
        self.inner.db.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Inner {
    fn close(&self, reason: String) {
        *self.db.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Db::Closed { reason };
    }
}

fn no_room(reason: impl std::fmt::Display) -> String {
    let kib = RESERVE_BYTES >> 10;
    format!("the disk is full but for the {kib} KiB kept for stopping instances ({reason})")
}

/// CIDs 0 to 2 have meanings of their own (vsock(7)).
const FIRST_CID: u32 = 3;

fn decode<T: DeserializeOwned>(what: &'static str, key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|error| StoreError::Damaged {
        what,
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
