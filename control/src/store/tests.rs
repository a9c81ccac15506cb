use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use tombolo_transport::Cid;

use super::*;
use crate::core::lifecycle::{Input, State};
use crate::core::policy::Action;
use crate::core::{EventKind, InstanceName, InstanceSpec};

fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

fn record(text: &str) -> InstanceRecord {
    InstanceRecord::new(name(text), Cid(3), 1, InstanceSpec::default(), 5)
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = record("db");
    db.life.handle(&db.spec.rules(), 1, Input::Start);
    db.life.handle(&db.spec.rules(), 1, Input::Reserved);
    let rule = Rule::new(Action::Allow, "web", &"db:6379".parse().unwrap()).unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        let batch = Batch::new().put_instance(&db).put_rule(&rule).next_cid(4).put_receipt("k1", &7u32);
        store.commit_now(&batch.event(Some(&db.name), None, EventKind::Created)).unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    let found = store.instances().unwrap();
    assert_eq!(found, [db]);
    assert_eq!(found[0].life.state(), State::Reserved);
    assert_eq!(store.rules().unwrap(), [rule]);
    assert_eq!(store.next_cid().unwrap(), 4);
    assert_eq!(store.receipt::<u32>("k1").unwrap(), Some(7));
    assert_eq!(store.receipt::<u32>("k2").unwrap(), None);
}

#[test]
fn balancing_that_was_turned_on_is_on_after_a_restart_and_once_off_stays_off() {
    let dir = tempfile::tempdir().unwrap();
    let settings = BalanceSettings { hold_ms: 1_000, ..BalanceSettings::default() };
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.balance().unwrap(), None);
    store.commit_now(&Batch::new().balance(Some(&settings))).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.balance().unwrap(), Some(settings));
    store.commit_now(&Batch::new().balance(None)).unwrap();
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap().balance().unwrap(), None);
}

#[test]
fn events_are_numbered_without_gaps_and_replayed_from_any_number() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let store = Store::open(dir.path()).unwrap();
        let watch = store.watch_events();
        let batch = Batch::new().event(None, None, EventKind::Created).event(None, None, EventKind::Removed);
        store.commit_now(&batch).unwrap();
        assert_eq!(*watch.borrow(), 2 * round + 2);
    }
    let store = Store::open(dir.path()).unwrap();
    let seqs = |after, limit| -> Vec<u64> {
        store.events(after, limit).unwrap().iter().map(|event| event.seq).collect()
    };
    assert_eq!(seqs(0, 100), [1, 2, 3, 4, 5, 6]);
    assert_eq!(seqs(4, 100), [5, 6]);
    assert_eq!(seqs(2, 2), [3, 4]);
    assert_eq!(seqs(u64::MAX, 2), [0; 0]);
}

#[test]
fn deleted_records_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.commit_now(&Batch::new().put_instance(&record("db"))).unwrap();
    store.commit_now(&Batch::new().delete_instance(&name("db"))).unwrap();
    assert!(store.instances().unwrap().is_empty());
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(&path, "poetry, not records; long enough to be more than a header ".repeat(100)).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("state.redb"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_torn_record_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    if let Db::Writable(db) = &*store.db() {
        let transaction = db.begin_write().unwrap();
        transaction.open_table(INSTANCES).unwrap().insert("db", &b"{\"name\":"[..]).unwrap();
        transaction.commit().unwrap();
    }
    let error = store.instances().unwrap_err();
    assert!(matches!(&error, StoreError::Damaged { key, .. } if key == "db"), "{error}");
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path()).unwrap().commit_now(&Batch::new().schema(SCHEMA_VERSION + 1)).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Version { .. })));
}

/// A disk that can be filled and emptied by the test. A full one has room as long as the reserve is not there.
#[derive(Clone, Debug)]
struct Disk {
    memory: Arc<InMemoryBackend>,
    full: Arc<AtomicBool>,
    reserve: PathBuf,
}

impl Disk {
    fn new(reserve: PathBuf) -> Self {
        Self { memory: Arc::new(InMemoryBackend::new()), full: Arc::default(), reserve }
    }

    fn store(&self) -> Store {
        let disk = self.clone();
        let open = Opener::new(move || {
            let failed = |error: redb::DatabaseError| StoreError::Refused { reason: error.to_string() };
            Ok(Db::Writable(redb::Builder::new().create_with_backend(disk.clone()).map_err(failed)?))
        });
        Store::with_opener(open, self.reserve.clone()).unwrap()
    }

    fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    fn check(&self) -> io::Result<()> {
        match self.full.load(Ordering::SeqCst) && self.reserve.exists() {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.memory.write(offset, data)
    }
}

#[test]
fn a_full_disk_refuses_changes_whole_keeps_what_is_there_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("reserve"));
    let store = disk.store();
    store.commit_now(&Batch::new().put_instance(&record("db"))).unwrap();

    disk.set_full(true);
    let batch = Batch::new().put_instance(&record("web")).event(None, None, EventKind::Created);
    let error = store.commit_now(&batch).unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    assert!(store.refusal().is_some());
    assert!(matches!(store.commit_now(&batch), Err(StoreError::Refused { .. })));

    disk.set_full(false);
    store.commit_now(&batch).unwrap();
    let names: Vec<_> = store.instances().unwrap().iter().map(|record| record.name.to_string()).collect();
    assert_eq!(names, ["db", "web"]);
    assert_eq!(store.events(0, 10).unwrap().len(), 1);
}

#[test]
fn what_is_essential_is_recorded_on_a_full_disk_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let blocker = dir.path().join("blocked");
    let disk = Disk::new(dir.path().join("reserve"));
    let store = disk.store();
    disk.set_full(true);
    let essential = Batch::new().put_instance(&record("db")).essential(true);
    store.commit_now(&essential).unwrap();
    assert_eq!(store.instances().unwrap().len(), 1);
    assert!(store.refusal().is_some(), "the reserve is in use");

    // Where the reserve was, nothing can be made: the disk is still full.
    std::fs::create_dir(&disk.reserve).unwrap();
    let ordinary = Batch::new().put_instance(&record("web"));
    let error = store.commit_now(&ordinary).unwrap_err();
    assert!(error.to_string().contains("kept for stopping"), "{error}");
    std::fs::rename(&disk.reserve, blocker).unwrap();

    disk.set_full(false);
    store.commit_now(&ordinary).unwrap();
    assert!(store.refusal().is_none() && disk.reserve.exists());
    let kinds: Vec<_> = store.events(0, 10).unwrap().iter().map(|event| event.kind.name()).collect();
    assert_eq!(kinds, ["disk-reserve-used", "disk-reserve-restored"]);
}
