//! What runs the CPUs of a machine: KVM where a probe boot works, else software emulation.
//!
//! That `/dev/kvm` can be opened says little: where this host is itself a machine, kernels may not come up on it. So the first machine
//! that a daemon starts is preceded by a probe boot of its kernel ([`super::probe`]), once for each QEMU, kernel and boot of this host; what came
//! of it is kept in a file, for the daemons that come after. Without a `/dev/kvm` that can be opened nothing is probed.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::image::Image;
use super::probe;
use crate::keeper::write_atomically;
use crate::spawner::{SpawnError, SpawnerKind};

/// How long a probe boot may take to reach user space. Where KVM works that is under a second, and two on a busy host.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// What came of the last probe, in the daemon's state folder.
const RECORD: &str = "qemu-accel.json";
/// Where the probe boots, there.
const FOLDER: &str = "qemu-probe";
const DEVICE: &str = "/dev/kvm";
/// What to do about a device that cannot be opened.
const DEVICE_REMEDY: &str = "load the module kvm_intel or kvm_amd, and be root or in the group of /dev/kvm";

/// What is to run the CPUs of machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM if a probe boot works, else software emulation.
    Auto,
    /// KVM, without asking whether it works.
    Kvm,
    /// Software emulation.
    #[default]
    Tcg,
}

/// What runs the CPUs of a machine, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceleration {
    /// Whether it is KVM, as opposed to software emulation.
    pub kvm: bool,
    /// Why.
    pub reason: String,
}

/// What is known about it before anything is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// The next machine will run on this.
    Known(Acceleration),
    /// The next machine is preceded by a probe boot.
    Untried,
    /// It is to run on KVM, and cannot, for this reason.
    Refused(String),
}

/// What a probe was of: what it found is true for nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    /// What QEMU says of its version.
    qemu: String,
    /// Digest of the kernel (BLAKE3).
    kernel: String,
    /// The boot of this host.
    boot_id: String,
}

/// What is kept of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    subject: Subject,
    found: Acceleration,
}

/// Chooses, and remembers.
#[derive(Clone, Debug, Default)]
pub(super) struct Chooser {
    asked: Accelerator,
    /// The daemon's state folder; without one nothing is kept and KVM is not probed.
    state_dir: Option<PathBuf>,
    /// The last probe. Held while one is under way, so that there is one at a time.
    last: Arc<Mutex<Option<Record>>>,
}

impl Chooser {
    pub(super) fn new(asked: Accelerator, state_dir: Option<PathBuf>) -> Self {
        Self { asked, state_dir, last: Arc::default() }
    }

    /// Chooses for a machine with this image, of which `agent` is the first process; probes if it must.
    ///
    /// # Errors
    /// [`SpawnError::Unavailable`] when it is to be KVM and cannot be.
    pub(super) async fn choose(
        &self,
        image: &Image,
        agent: &Path,
        keeper_binary: &Path,
    ) -> Result<Acceleration, SpawnError> {
        let state_dir = match (before(self.asked, open(Path::new(DEVICE))), &self.state_dir) {
            (Prospect::Known(known), _) => return Ok(known),
            (Prospect::Refused(what), _) => {
                let (kind, remedy) =
                    (SpawnerKind::Qemu, format!("{DEVICE_REMEDY}; or tombolod --accel auto"));
                return Err(SpawnError::Unavailable { kind, what, remedy });
            }
            (Prospect::Untried, None) => return Ok(emulation("there is nowhere to keep what a probe finds")),
            (Prospect::Untried, Some(state_dir)) => state_dir,
        };
        let subject = Subject::of(image).await;
        let mut last = self.last.lock().await;
        if last.is_none() {
            *last = read(state_dir);
        }
        if let Some(record) = last.as_ref().filter(|record| record.subject == subject) {
            return Ok(record.found.clone());
        }
        let machine = probe::Machine { image, agent, keeper_binary, acceleration: &hardware("a probe boot") };
        let came_up = machine.boot(&state_dir.join(FOLDER), PROBE_MAX).await;
        let found = after(came_up.map_err(|reason| format!("{reason} ({})", image.kernel.display())));
        tracing::info!(kvm = found.kvm, reason = found.reason, "probed whether machines can run on KVM");
        let record = Record { subject, found: found.clone() };
        let kept = serde_json::to_vec_pretty(&record).map_err(std::io::Error::from);
        if let Err(error) = kept.and_then(|text| write_atomically(&state_dir.join(RECORD), &text)) {
            tracing::warn!(%error, "what the probe of KVM found is not kept: the next daemon probes again");
        }
        *last = Some(record);
        Ok(found)
    }

    /// What a machine with this image would run on. Probes nothing.
    pub(super) async fn prospect(&self, image: &Image) -> Prospect {
        let before = before(self.asked, open(Path::new(DEVICE)));
        let (Prospect::Untried, Some(state_dir)) = (&before, &self.state_dir) else { return before };
        let Some(record) = read(state_dir) else { return Prospect::Untried };
        if record.subject == Subject::of(image).await {
            Prospect::Known(record.found)
        } else {
            Prospect::Untried
        }
    }

    /// What to remove to have it probed again.
    pub(super) fn record(&self) -> Option<PathBuf> {
        self.state_dir.as_ref().map(|dir| dir.join(RECORD))
    }
}

impl Acceleration {
    /// The reason where nobody had to find one.
    pub(crate) const AS_ASKED: &str = "as asked for";

    /// Whether it is what somebody asked for.
    pub(crate) fn is_as_asked(&self) -> bool {
        self.reason == Self::AS_ASKED
    }

    /// What QEMU calls the kind of CPU that they are.
    pub(super) fn cpu_driver(&self) -> &'static str {
        if self.kvm { "host-x86_64-cpu" } else { "qemu64-x86_64-cpu" }
    }

    /// The options that say so to QEMU.
    pub(super) fn options(&self) -> [(&'static str, String); 2] {
        match self.kvm {
            true => [("-accel", "kvm".to_owned()), ("-cpu", "host".to_owned())],
            // A thread for each CPU, without which QEMU would not keep atomics on shared memory atomic. Without a source of
            // randomness whatever needs some, a proof of identity say, would wait for ever.
            false => [("-accel", "tcg,thread=multi".to_owned()), ("-cpu", "qemu64,+rdrand".to_owned())],
        }
    }
}

impl Subject {
    async fn of(image: &Image) -> Self {
        let kernel = image.kernel.clone();
        let digest =
            tokio::task::spawn_blocking(move || std::fs::read(kernel).map(|bytes| blake3::hash(&bytes)));
        let digest = digest.await.ok().and_then(Result::ok);
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            qemu: image.version().await,
            kernel: digest.map(|digest| digest.to_hex().to_string()).unwrap_or_default(),
            boot_id: boot_id.trim().to_owned(),
        }
    }
}

/// What can be said before a probe. `device`: whether it could be opened.
fn before(asked: Accelerator, device: Result<(), String>) -> Prospect {
    match (asked, device) {
        (Accelerator::Tcg, _) => Prospect::Known(emulation(Acceleration::AS_ASKED)),
        (Accelerator::Kvm, Ok(())) => Prospect::Known(hardware(Acceleration::AS_ASKED)),
        (Accelerator::Kvm, Err(reason)) => Prospect::Refused(reason),
        (Accelerator::Auto, Err(reason)) => Prospect::Known(emulation(&reason)),
        (Accelerator::Auto, Ok(())) => Prospect::Untried,
    }
}

/// What a probe boot tells.
fn after(came_up: Result<(), String>) -> Acceleration {
    match came_up {
        Ok(()) => hardware("a probe boot reached user space"),
        Err(reason) => emulation(&format!("a probe boot on KVM failed: {reason}")),
    }
}

fn hardware(reason: &str) -> Acceleration {
    Acceleration { kvm: true, reason: reason.to_owned() }
}

fn emulation(reason: &str) -> Acceleration {
    Acceleration { kvm: false, reason: reason.to_owned() }
}

fn open(device: &Path) -> Result<(), String> {
    let opened = File::options().read(true).write(true).open(device);
    opened.map(drop).map_err(|error| format!("{} cannot be opened: {error}", device.display()))
}

/// What was kept; one that cannot be read counts as none.
fn read(state_dir: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(state_dir.join(RECORD)).ok()?).ok()
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.kvm { "KVM" } else { "software emulation" }, self.reason)
    }
}

impl FromStr for Accelerator {
    type Err = String;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        match input {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(format!("`{other}` is no accelerator: choose auto, kvm or tcg")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent() -> Result<(), String> {
        Err("it is not there".into())
    }

    #[test]
    fn only_a_device_that_opens_is_probed_and_only_if_nothing_was_asked_for() {
        assert_eq!(before(Accelerator::Auto, Ok(())), Prospect::Untried);
        assert_eq!(before(Accelerator::Auto, absent()), Prospect::Known(emulation("it is not there")));
        assert_eq!(before(Accelerator::Kvm, absent()), Prospect::Refused("it is not there".into()));
        assert_eq!(before(Accelerator::Kvm, Ok(())), Prospect::Known(hardware("as asked for")));
        for device in [Ok(()), absent()] {
            assert_eq!(before(Accelerator::Tcg, device), Prospect::Known(emulation("as asked for")));
        }
        assert!(after(Ok(())).kvm && !after(Err("it hangs".into())).kvm);
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir.path().join("kvm")).unwrap_err().contains("cannot be opened"));
    }

    #[test]
    fn what_was_kept_is_read_again_and_what_is_torn_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let subject = Subject { qemu: "QEMU 7".into(), kernel: "ab".into(), boot_id: "1".into() };
        let record = Record { subject, found: hardware("a probe boot reached user space") };
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(read(dir.path()), None);
        std::fs::write(dir.path().join(RECORD), &text).unwrap();
        assert_eq!(read(dir.path()), Some(record));
        for torn in [&text[..text.len() / 2], b"", b"{}", b"\xff"] {
            std::fs::write(dir.path().join(RECORD), torn).unwrap();
            assert_eq!(read(dir.path()), None);
        }
    }

    #[test]
    fn accelerators_are_read_by_name() {
        for (name, asked) in
            [("auto", Accelerator::Auto), ("kvm", Accelerator::Kvm), ("tcg", Accelerator::Tcg)]
        {
            assert_eq!(name.parse(), Ok(asked));
        }
        assert!("hvf".parse::<Accelerator>().is_err());
    }
}
