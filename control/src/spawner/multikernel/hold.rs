//! An instance of the kernel that is ours, step by step: made, loaded, started, ended, given back. Each step reads back what came of it.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::MARK;
use super::calls::Command;
use super::ids::PhysicalCpu;
use super::interface::{self, InstanceStatus, Interface, Mounted};
use super::lock::Lock;
use super::overlay::{Intent, NewInstance};
use super::record::Record;
use super::transaction::{self, ApplyError};

/// How long an instance that was told to end may take to be seen ended, before it is told again.
const END_MAX: Duration = Duration::from_secs(3);
/// How often it is told.
const END_TRIES: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A step on one instance; every error is one sentence for people.
#[derive(Debug)]
pub(super) struct Hold<'a, I = Mounted> {
    record: &'a Record,
    kernel: I,
}

impl<'a> Hold<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        Self::on(Mounted::at(&record.settings.root), record)
    }
}

impl<'a, I: Interface> Hold<'a, I> {
    pub(super) fn on(kernel: I, record: &'a Record) -> Self {
        Self { record, kernel }
    }

    /// Makes the instance in the kernel, under the lock that was held when its CPUs were chosen. On an error nothing of it is left, or the
    /// error says what is.
    pub(super) fn make(&self, _lock: &Lock) -> Result<(), String> {
        let Record { name, id, memory_bytes, cpus, .. } = self.record;
        if transaction::exists(&self.kernel, name).map_err(|error| error.to_string())? {
            return Err(format!(
                "the kernel has an instance `{name}` already, made by another program: choose another name, or end that one"
            ));
        }
        let new =
            NewInstance { name: name.clone(), id: *id, memory_bytes: *memory_bytes, cpus: cpus.clone() };
        let attempt =
            format!("make instance `{name}` (number {id}, {} MiB, {})", memory_bytes >> 20, listed(cpus));
        match transaction::apply(&self.kernel, &Intent::Create(new), &self.nonce("create")) {
            Ok(applied) => {
                tracing::debug!(instance = %name, transaction = applied.transaction, "made in the kernel");
                Ok(())
            }
            Err(error @ (ApplyError::Failed { .. } | ApplyError::Unknown(_))) => {
                let left = match self.remove() {
                    Ok(()) => "nothing of it is left".to_owned(),
                    Err(reason) => format!("what there is of it could not be given back: {reason}"),
                };
                Err(format!("could not {attempt}: {error}; {left}"))
            }
            Err(error) => Err(format!("could not {attempt}: {error}")),
        }
    }

    /// Puts a kernel into it.
    pub(super) fn load(
        &self,
        image: BorrowedFd<'_>,
        initrd: BorrowedFd<'_>,
        command_line: &str,
    ) -> Result<(), String> {
        let name = &self.record.name;
        let loaded = self.kernel.load(self.record.id, image, initrd, command_line);
        loaded.map_err(|error| {
            format!("could not load a kernel into instance `{name}`: {}", load_reason(&error))
        })?;
        match self.status()? {
            Some(InstanceStatus::Loaded) => Ok(()),
            other => Err(format!("the kernel took the image, but instance `{name}` is {}", named(other))),
        }
    }

    /// Starts what is loaded.
    pub(super) fn boot(&self) -> Result<(), String> {
        let name = &self.record.name;
        self.kernel
            .reboot(Command::Boot, self.record.id)
            .map_err(|error| format!("could not start instance `{name}`: {}", boot_reason(&error)))
    }

    /// Takes its CPUs from it, whatever it does, and again if it does not end. `told`: what is done, for people.
    pub(super) fn end(&self, mut told: impl FnMut(&str)) -> Result<(), String> {
        let name = &self.record.name;
        let mut last = "it stays active".to_owned();
        for _ in 0..END_TRIES {
            if self.status()? != Some(InstanceStatus::Active) {
                return Ok(());
            }
            told("force");
            if let Err(error) = self.kernel.reboot(Command::ForceHalt, self.record.id) {
                last = format!("the kernel refuses ({error})");
            }
            let until = Instant::now() + END_MAX;
            while Instant::now() < until {
                if self.status()? != Some(InstanceStatus::Active) {
                    return Ok(());
                }
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        Err(format!("instance `{name}` does not end, told {END_TRIES} times: {last}"))
    }

    /// Gives back all that it has. Refuses one that runs.
    pub(super) fn release(&self) -> Result<(), String> {
        let name = &self.record.name;
        // Looked at under the lock: kerf starts and ends kernels without it, but not ours.
        let _lock = self.lock()?;
        match self.status()? {
            None => return Ok(()),
            Some(_) if !self.is_ours()? => return Ok(()),
            Some(InstanceStatus::Active) => {
                return Err(format!("instance `{name}` runs: end it first"));
            }
            // The kernel itself would unload one that runs.
            Some(InstanceStatus::Loaded | InstanceStatus::Failed) => {
                if let Err(error) = self.kernel.unload(self.record.id)
                    && error.raw_os_error() != Some(libc::EINVAL)
                {
                    return Err(format!("could not unload instance `{name}`: {error}"));
                }
            }
            Some(InstanceStatus::Ready | InstanceStatus::Empty) => {}
        }
        self.remove()
    }

    /// How it is; `None`: there is none of that name.
    pub(super) fn status(&self) -> Result<Option<InstanceStatus>, String> {
        interface::status(&self.kernel, &self.record.name).map_err(|error| error.to_string())
    }

    /// Whether what has its name is what we made, or may have.
    fn is_ours(&self) -> Result<bool, String> {
        let tree = interface::instance(&self.kernel, &self.record.name).map_err(|error| error.to_string())?;
        Ok(tree.is_some_and(|tree| tree.id == self.record.id))
    }

    fn remove(&self) -> Result<(), String> {
        let name = &self.record.name;
        if !transaction::exists(&self.kernel, name).map_err(|error| error.to_string())? {
            return Ok(());
        }
        let removed = transaction::apply(&self.kernel, &Intent::Remove(name.clone()), &self.nonce("remove"));
        removed.map(drop).map_err(|error| format!("could not remove instance `{name}`: {error}"))
    }

    /// Keeps other programs, and our own other instances, from changing what the kernel has.
    pub(super) fn lock(&self) -> Result<Lock, String> {
        let path: &Path = &self.record.settings.lock;
        Lock::take(path).map_err(|error| format!("could not take the lock {}: {error}", path.display()))
    }

    fn nonce(&self, what: &str) -> String {
        format!("{MARK}:{}:{what}", self.record.nonce)
    }
}

/// What a transaction of ours carries.
pub(super) fn nonce_of(what: &str) -> std::io::Result<String> {
    let nonce = tombolo_transport::Incarnation::random().map_err(std::io::Error::other)?;
    Ok(format!("{MARK}:{nonce}:{what}"))
}

fn listed(cpus: &[PhysicalCpu]) -> String {
    let numbers: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    format!("physical CPUs {}", numbers.join(", "))
}

fn named(status: Option<InstanceStatus>) -> String {
    status.map_or_else(|| "gone".into(), |status| format!("{status:?}").to_lowercase())
}

fn load_reason(error: &std::io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_SYS_BOOT, kernel.kexec_load_disabled = 0, and no lockdown",
        Some(libc::EBUSY) => "the kernel is busy with another instance, or this one has an image already",
        Some(libc::ENOEXEC) => "it is not a kernel that this one can load",
        Some(libc::ENODATA | libc::ENOKEY | libc::EKEYREJECTED) => {
            "this kernel loads only signed images: sign it (kerf sign)"
        }
        Some(libc::ENOENT) => "the kernel has no such instance any more",
        Some(libc::EINVAL) => "the kernel takes no such image or command line; dmesg says which",
        _ => return error.to_string(),
    };
    format!("{error}: {hint}")
}

fn boot_reason(error: &std::io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_SYS_BOOT",
        Some(libc::EBUSY) => "its CPUs are not parked, or the kernel is busy with another instance",
        Some(libc::EINVAL) => "it has no image or no CPU",
        Some(libc::ENOENT) => "the kernel has no such instance any more",
        _ => return error.to_string(),
    };
    format!("{error}: {hint}")
}
