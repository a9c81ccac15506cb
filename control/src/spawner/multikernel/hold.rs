//! An instance of the kernel that is ours, step by step: made, loaded, started, ended, given back. Each step reads back what came of it.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::MARK;
use super::calls::Command;
use super::clock::{BUSY_MAX, look_until, unless_busy};
use super::devices;
use super::host_pci::HostPci;
use super::ids::listed;
use super::interface::{self, InstanceStatus, Interface};
use super::load::Load;
use super::lock::{self, Lock};
use super::overlay::{Intent, NewInstance};
use super::provenance::{self, Maker, Mark};
use super::record::{Origin, Record};
use super::taken_over::host_boot;
use super::transaction::{self, ApplyError};
use super::tree::Chunk;

/// How long an instance that was told to end may take to be seen ended, before it is told again.
const END_MAX: Duration = Duration::from_secs(3);
/// How often it is told.
pub(super) const END_TRIES: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A step on one instance; every error is one sentence for people.
#[derive(Debug)]
pub(super) struct Hold<'a, I> {
    kernel: &'a I,
    record: &'a Record,
}

impl<'a, I: Interface> Hold<'a, I> {
    pub(super) fn on(kernel: &'a I, record: &'a Record) -> Self {
        Self { kernel, record }
    }

    /// Makes the instance in the kernel. On an error nothing of it is left, or the error says what is.
    #[cfg(test)]
    pub(super) fn make(&self) -> Result<(), String> {
        self.make_under(&self.lock()?)
    }

    /// The same under the lock that was held when its CPUs were chosen.
    pub(super) fn make_under(&self, _lock: &Lock) -> Result<(), String> {
        let Record { name, id, memory_bytes, cpus, .. } = self.record;
        if interface::instance(self.kernel, name).map_err(|error| error.to_string())?.is_some() {
            return Err(format!(
                "the kernel has an instance `{name}` already, made by another program: choose another name, or end that one"
            ));
        }
        let new =
            NewInstance { name: name.clone(), id: *id, memory_bytes: *memory_bytes, cpus: cpus.clone() };
        let attempt =
            format!("make instance `{name}` (number {id}, {} MiB, {})", memory_bytes >> 20, listed(cpus));
        match transaction::apply(self.kernel, &Intent::Create(new), &mark(self.record, "create")) {
            Ok(applied) => {
                tracing::debug!(instance = %name, transaction = applied.transaction, "made in the kernel");
                Ok(())
            }
            Err(error @ (ApplyError::Failed { .. } | ApplyError::Unknown(_))) => {
                let left = self.give_back();
                Err(format!("could not {attempt}: {error}; {left}; {}", self.shortage()))
            }
            Err(error) => Err(format!("could not {attempt}: {error}")),
        }
    }

    /// Removes what came of an attempt to make it. Says what is left of it.
    pub(super) fn give_back(&self) -> String {
        let outcome = match self.ours() {
            Ok(None) => match self.status() {
                Ok(None) => return "nothing of it is left".into(),
                Ok(Some(_)) => {
                    return "the instance of that name is another program's, and is left as it is".into();
                }
                Err(reason) => Err(reason),
            },
            Ok(Some(_)) => self.remove(),
            Err(reason) => Err(reason),
        };
        match outcome {
            Ok(()) => "nothing of it is left".into(),
            Err(reason) => format!("what there is of it could not be given back: {reason}"),
        }
    }

    /// What an instance could have had: the usual reason for which none is made, and the kernel names none.
    fn shortage(&self) -> String {
        let Ok(pool) = interface::pool_or_none(self.kernel) else { return "the pool cannot be read".into() };
        let names = interface::instances(self.kernel).unwrap_or_default();
        let other = |name: &String| interface::instance(self.kernel, &name.parse().ok()?).ok().flatten();
        let others: Vec<_> = names.iter().filter_map(|name| Some((name, other(name)?))).collect();
        let used = others.iter().fold(0_u64, |sum, (_, tree)| sum.saturating_add(tree.memory_bytes));
        let number = others.iter().find(|(_, tree)| tree.id == self.record.id);
        let number = number.map_or_else(String::new, |(name, _)| {
            format!("its number {} is that of instance `{name}`; ", self.record.id)
        });
        let of_node =
            |chunk: &Chunk| chunk.numa_node.map_or_else(String::new, |node| format!(" (node {node})"));
        let piece = |chunk: &Chunk| format!("{} MiB{}", chunk.bytes >> 20, of_node(chunk));
        let pieces = match pool.chunks.as_slice() {
            [] | [_] => String::new(),
            chunks => format!(", out of {}", chunks.iter().map(piece).collect::<Vec<_>>().join(", ")),
        };
        format!(
            "{number}the pool has {} MiB, of which instances have {}, and gives memory in one piece only{pieces}; it has {} CPUs to give",
            pool.memory_bytes() >> 20,
            used >> 20,
            pool.cpus_available.len()
        )
    }

    /// Puts a kernel into it.
    pub(super) fn load(&self, load: Load<'_>) -> Result<(), String> {
        let name = &self.record.name;
        match self.ours()? {
            Some(InstanceStatus::Ready) => {}
            other => return Err(format!("instance `{name}` is to be loaded, and is {}", named(other))),
        }
        // One that is loaded is busy as well, and waiting does not help.
        let is_empty = || self.status() == Ok(Some(InstanceStatus::Ready));
        load.put(self.kernel, self.record.id, is_empty)
            .map_err(|reason| format!("could not load a kernel into instance `{name}`: {reason}"))?;
        match self.status()? {
            Some(InstanceStatus::Loaded) => Ok(()),
            other => Err(format!("the kernel took the image, but instance `{name}` is {}", named(other))),
        }
    }

    /// Starts what is loaded, unless it runs. `is_called_off`: whether it is not to be started any more, asked again while the kernel is busy.
    pub(super) fn boot(&self, is_called_off: impl Fn() -> bool) -> Result<(), String> {
        let (name, id) = (&self.record.name, self.record.id);
        match self.ours()? {
            Some(InstanceStatus::Active) => return Ok(()),
            Some(InstanceStatus::Loaded) => {}
            other => return Err(format!("instance `{name}` is to be started, and is {}", named(other))),
        }
        let boot = || match is_called_off() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => self.kernel.reboot(Command::Boot, id),
        };
        let is_loaded = || self.status() == Ok(Some(InstanceStatus::Loaded));
        match unless_busy(self.kernel, BUSY_MAX, boot, is_loaded) {
            Ok(()) => Ok(()),
            // Whatever the call said, or whoever was faster.
            Err(_) if self.status() == Ok(Some(InstanceStatus::Active)) => Ok(()),
            Err(_) if is_called_off() => {
                Err(format!("instance `{name}` was to end before it was started, and is not started"))
            }
            Err(error) => Err(format!("could not start instance `{name}`: {}", boot_reason(&error))),
        }
    }

    /// Takes its CPUs from it, whatever it does, and again if it does not end. `told`: what is done, for people.
    pub(super) fn end(&self, mut told: impl FnMut(&str)) -> Result<(), String> {
        let name = &self.record.name;
        let mut last = "it stays active".to_owned();
        for _ in 0..END_TRIES {
            match self.ours()? {
                Some(InstanceStatus::Active) => {}
                // It may run for all that anybody knows; the kernel says EINVAL of one that does not.
                Some(InstanceStatus::Failed) => {
                    told("force");
                    return self.force().or_else(|error| match error.raw_os_error() {
                        Some(libc::EINVAL) => Ok(()),
                        _ => Err(format!("could not end instance `{name}`, which failed: {error}")),
                    });
                }
                _ => return Ok(()),
            }
            told("force");
            match self.force() {
                Ok(()) => {}
                // As long as it could have taken to end.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    last = format!("the kernel is busy with another instance ({error})");
                    continue;
                }
                Err(error) => last = format!("the kernel refuses ({error})"),
            }
            let has_ended = || -> Result<Option<()>, String> {
                Ok((self.status()? != Some(InstanceStatus::Active)).then_some(()))
            };
            if look_until(self.kernel, END_MAX, LOOK_AGAIN, has_ended)?.is_some() {
                told("force again");
                return self.rescue();
            }
        }
        Err(format!("instance `{name}` does not end, told {END_TRIES} times: {last}"))
    }

    /// Ends what force has missed: it runs on in an instance that is called ended, and another reaches it. Where nothing was missed this changes nothing.
    fn rescue(&self) -> Result<(), String> {
        let name = &self.record.name;
        match self.force() {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                Err(format!("instance `{name}` has ended, and a CPU of it may run on: {error}"))
            }
            _ => match self.status()? {
                Some(InstanceStatus::Active) => Err(format!("instance `{name}` was ended, and runs again")),
                _ => Ok(()),
            },
        }
    }

    fn force(&self) -> io::Result<()> {
        let force = || self.kernel.reboot(Command::ForceHalt, self.record.id);
        unless_busy(self.kernel, END_MAX, force, || true)
    }

    /// Gives back all that it has, waiting for so long while another program changes something. Refuses one that runs. `is_called_off`:
    /// whether to wait no longer while the kernel is busy.
    /// `dir`: its runtime folder.
    pub(super) fn release(
        &self,
        dir: &Path,
        wait: Duration,
        is_called_off: impl Fn() -> bool,
    ) -> Result<(), String> {
        let name = &self.record.name;
        // Looked at under the lock: kerf starts and ends kernels without it, but not ours.
        let _lock = self.lock_within(wait)?;
        match self.ours()? {
            None => return self.must_not_come(),
            Some(InstanceStatus::Active) => {
                return Err(format!("instance `{name}` runs: end it first"));
            }
            Some(InstanceStatus::Loaded) => self.unload(is_called_off)?,
            Some(InstanceStatus::Failed) => {
                self.end(|_| ())?;
                self.unload(is_called_off)?;
            }
            Some(InstanceStatus::Ready | InstanceStatus::Empty) => {}
        }
        self.quiet_devices(dir);
        self.remove()
    }

    /// Resets what it leaves of devices while its memory is its own still: nothing else keeps one that was left in the middle of its work from writing
    /// there, where there is no IOMMU. What cannot be done is done before the next kernel gets it, or refused then.
    fn quiet_devices(&self, dir: &Path) {
        let name = &self.record.name;
        let functions = devices::left_by(self.kernel, dir, self.record).unwrap_or_else(|reason| {
            tracing::warn!(instance = %name, reason, "the devices that it has are left as they are");
            Vec::new()
        });
        let host = HostPci::of(&self.record.settings);
        for function in functions {
            if let Err(unfit) = host.must_be_idle(function).and_then(|()| host.reset(function)) {
                tracing::warn!(instance = %name, %unfit, "a device is left as it is");
            }
        }
    }

    /// What is not there may be made yet: the kernel was asked, and has not said what came of it.
    fn must_not_come(&self) -> Result<(), String> {
        let name = &self.record.name;
        if self.record.origin != Origin::Made {
            return Ok(());
        }
        let pending = provenance::pending(self.kernel, Mark::Nonce(&mark(self.record, "create")));
        match pending.map_err(|error| error.to_string())? {
            Some(number) => {
                Err(format!("instance `{name}` is not there, and may come yet: tx_{number} is pending"))
            }
            None => Ok(()),
        }
    }

    /// Takes the image from it.
    pub(super) fn unload(&self, is_called_off: impl Fn() -> bool) -> Result<(), String> {
        let name = &self.record.name;
        // The kernel itself would unload one that runs, so it is looked at before each try.
        let unload = || match self.status() {
            Ok(Some(InstanceStatus::Active)) => Err(io::Error::other("it runs")),
            Ok(_) => self.kernel.unload(self.record.id),
            Err(reason) => Err(io::Error::other(reason)),
        };
        let outcome = unless_busy(self.kernel, BUSY_MAX, unload, || !is_called_off());
        match (outcome, self.status()?) {
            (_, None | Some(InstanceStatus::Ready | InstanceStatus::Empty)) => Ok(()),
            (Err(error), _) => Err(format!("could not unload instance `{name}`: {error}")),
            (Ok(()), other) => Err(format!("the image left instance `{name}`, but it is {}", named(other))),
        }
    }

    /// How what has its name is, whoever made it; `None`: there is none of that name.
    pub(super) fn status(&self) -> Result<Option<InstanceStatus>, String> {
        interface::status(self.kernel, &self.record.name).map_err(|error| error.to_string())
    }

    /// How it is; `None`: it is gone, whatever has its name now.
    pub(super) fn ours(&self) -> Result<Option<InstanceStatus>, String> {
        match self.status()? {
            Some(status) => Ok(is_ours(self.kernel, self.record)?.then_some(status)),
            None => Ok(None),
        }
    }

    fn remove(&self) -> Result<(), String> {
        let name = &self.record.name;
        let removed =
            transaction::apply(self.kernel, &Intent::Remove(name.clone()), &mark(self.record, "remove"));
        removed.map(drop).map_err(|error| format!("could not remove instance `{name}`: {error}"))
    }

    /// Keeps other programs, and our own other instances, from changing what the kernel has.
    pub(super) fn lock(&self) -> Result<Lock, String> {
        self.lock_within(lock::WAIT_MAX)
    }

    fn lock_within(&self, wait: Duration) -> Result<Lock, String> {
        let path: &Path = &self.record.settings.lock;
        Lock::take(path, wait).map_err(|error| format!("could not take the lock {}: {error}", path.display()))
    }
}

/// Whether what has the name and the number of an instance of ours is what we made, or took over.
pub(super) fn is_ours(kernel: &impl Interface, record: &Record) -> Result<bool, String> {
    let name = &record.name;
    let tree = interface::instance(kernel, name).map_err(|error| error.to_string())?;
    if tree.is_none_or(|tree| tree.id != record.id) {
        return Ok(false);
    }
    let maker = match &record.origin {
        Origin::Made => provenance::maker(kernel, name, Mark::Nonce(&mark(record, "create"))),
        // Of another boot of the host nothing is left.
        Origin::TakenOver(taken_over) if taken_over.host_boot != host_boot()? => return Ok(false),
        Origin::TakenOver(taken_over) => provenance::maker(kernel, name, Mark::TakenOver(taken_over)),
    };
    match maker.map_err(|error| error.to_string())? {
        Maker::Us => Ok(true),
        Maker::Another => Ok(false),
        Maker::Unknown(why) => Err(format!(
            "it cannot be told whether instance `{name}` is ours, so that nothing is done to it: {why}"
        )),
    }
}

/// What the transactions of an instance of ours carry.
pub(super) fn mark(record: &Record, what: &str) -> String {
    format!("{MARK}:{}:{what}", record.nonce)
}

/// What a transaction of ours carries that is no instance's.
pub(super) fn nonce_of(what: &str) -> io::Result<String> {
    let nonce = tombolo_transport::Incarnation::random().map_err(io::Error::other)?;
    Ok(format!("{MARK}:{nonce}:{what}"))
}

fn named(status: Option<InstanceStatus>) -> String {
    status.map_or_else(|| "gone".into(), |status| format!("{status:?}").to_lowercase())
}

fn boot_reason(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_SYS_BOOT",
        Some(libc::EBUSY) => "its CPUs are not parked, or the kernel is busy with another instance",
        Some(libc::EINVAL) => "it has no image or no CPU",
        Some(libc::ENOENT) => "the kernel has no such instance any more",
        _ => return error.to_string(),
    };
    format!("{error}: {hint}")
}
