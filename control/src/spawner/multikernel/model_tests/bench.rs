//! A model with a pool, and a place for locks and records.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tombolo_mksim::model::{Quirk, State};

use super::deeds::Happening;
use super::world::{MIB, Model, SIGNED};
use crate::spawner::multikernel::devices::LiveDevices;
use crate::spawner::multikernel::hold::Hold;
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::live::{Live, LiveError};
use crate::spawner::multikernel::load::Load;
use crate::spawner::multikernel::memory::LiveMemory;
use crate::spawner::multikernel::record::{Origin, Record};
use crate::spawner::multikernel::{Settings, folder, host_pci};

pub(super) struct Bench {
    pub(super) model: Model,
    dir: TempDir,
    nothing: File,
    signed: File,
}

impl Bench {
    /// A pool, and nothing in it.
    pub(super) fn new() -> Self {
        Self::on(Model::with_pool())
    }

    pub(super) fn on(model: Model) -> Self {
        // In memory where that is to be had: every record is synced.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let devices = model.world().machine.config().devices.clone();
        for (group, device) in (1..).zip(devices) {
            host_pci::bench::function(&dir.path().join(".pci"), &device.pci_id, group);
        }
        let mut signed = tempfile::tempfile_in(dir.path()).unwrap();
        signed.write_all(SIGNED).unwrap();
        Self { model, dir, nothing: File::open("/dev/null").unwrap(), signed }
    }

    pub(super) fn with_quirk(quirk: Quirk, on: bool) -> Self {
        let bench = Self::new();
        bench.model.world().machine.set_quirk(quirk, on);
        bench
    }

    pub(super) fn settings(&self) -> Settings {
        Settings { lock: self.lock(), console: "".into(), pci: self.pci(), ..Settings::default() }
    }

    /// Where this host tells of its functions.
    pub(super) fn pci(&self) -> PathBuf {
        self.dir.path().join(".pci")
    }

    /// Where the runtime folders are.
    pub(super) fn instances(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.dir.path().join("lock")
    }

    /// The runtime folder of an instance.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// An instance of ours, of 128 MiB.
    pub(super) fn record(&self, name: &str, id: u16, cpus: &[u32]) -> Record {
        Record {
            settings: self.settings(),
            name: name.parse().unwrap(),
            id: id.try_into().unwrap(),
            memory_bytes: 128 * MIB,
            cpus_wanted: 1,
            cpus_withheld: Vec::new(),
            moves_cpus: true,
            memory_max_bytes: Some(768 * MIB),
            devices: Vec::new(),
            moves_devices: true,
            cpus: cpus.iter().copied().map(PhysicalCpu).collect(),
            nonce: tombolo_transport::Incarnation::random().unwrap().to_string(),
            origin: Origin::Made,
            keeper_binary: "/none".into(),
        }
    }

    pub(super) fn hold<'a>(&'a self, record: &'a Record) -> Hold<'a, Model> {
        Hold::on(&self.model, record)
    }

    /// Its CPUs while it runs.
    pub(super) fn live<T>(&self, record: &Record, act: impl FnOnce(Live<'_, Model>) -> T) -> T {
        let folder = self.folder(record.name.as_str());
        act(Live::on(&self.model, record, &folder).unwrap())
    }

    /// Its devices while it runs.
    pub(super) fn devices<T>(&self, record: &Record, act: impl FnOnce(LiveDevices<'_, Model>) -> T) -> T {
        let folder = self.folder(record.name.as_str());
        act(LiveDevices::on(&self.model, record, &folder).unwrap())
    }

    /// Its memory while it runs.
    pub(super) fn memory<T>(&self, record: &Record, act: impl FnOnce(LiveMemory<'_, Model>) -> T) -> T {
        let folder = self.folder(record.name.as_str());
        act(LiveMemory::on(&self.model, record, &folder).unwrap())
    }

    /// Makes it and loads it, noted in its folder.
    pub(super) fn make(&self, record: &mut Record) -> Result<(), String> {
        let folder = self.folder(record.name.as_str());
        folder::make(&self.model, &folder, record, self.image())
    }

    /// The same of a file that has a signature, and was unpacked.
    pub(super) fn make_of_signed_file(&self, record: &mut Record) -> Result<(), String> {
        let folder = self.folder(record.name.as_str());
        let load = Load { signed: Some(self.signed.as_fd()), ..self.image() };
        folder::make(&self.model, &folder, record, load)
    }

    /// A kernel without a signature.
    pub(super) fn image(&self) -> Load<'_> {
        let nothing = self.nothing.as_fd();
        Load { image: nothing, signed: None, initrd: nothing, command_line: "quiet" }
    }

    /// `web`, number 1, with CPUs 2 and 4: made and loaded.
    pub(super) fn loaded(&self) -> Record {
        let mut record = self.record("web", 1, &[2, 4]);
        self.make(&mut record).unwrap();
        record
    }

    /// The same, running.
    pub(super) fn running(&self) -> Record {
        let record = self.loaded();
        self.hold(&record).boot(|| false).unwrap();
        assert_eq!(self.state("web"), Some(State::Active));
        record
    }

    pub(super) fn load(&self, record: &Record) -> Result<(), String> {
        self.hold(record).load(self.image())
    }

    pub(super) fn release(&self, name: &str) -> Result<(), String> {
        folder::release(&self.model, &self.folder(name))
    }

    pub(super) fn state(&self, name: &str) -> Option<State> {
        self.model.world().state(name)
    }

    pub(super) fn is_recorded(&self, name: &str) -> bool {
        let record: &Path = &self.folder(name);
        Record::read(record).unwrap().is_some()
    }

    /// What was done that should not have been.
    pub(super) fn check(&self) {
        let world = self.model.world();
        assert!(world.violations.is_empty(), "{:?}", world.violations);
    }
}

/// Has the kernel of `web` hang, or go on.
pub(super) fn hangs(bench: &Bench, hangs: bool) {
    Happening::Hangs { name: 0, hangs }.happen(&mut bench.model.world());
}

pub(super) fn is_unknown<T>(outcome: &Result<T, LiveError>) -> bool {
    matches!(outcome, Err(LiveError::Unknown(_)))
}

/// Why something was refused.
pub(super) fn refusal<T: std::fmt::Debug>(outcome: Result<T, LiveError>) -> String {
    match outcome {
        Err(LiveError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}
