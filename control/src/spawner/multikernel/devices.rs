//! PCI functions of instances: given to them when they are made, and to and from kernels that run.
//!
//! As with CPUs ([`super::live`]) the spawned kernel may do late what it was asked and did not answer, and no tree shows that: a function that is free by the
//! books may be driven in a kernel. So what a running kernel is asked is noted first ([`Doubts`]) and crossed out only when the trees show it done, or
//! when it is certain that the spawned kernel was never asked; and a function that is noted for one kernel is given to no other.
//!
//! The kernel hands a function on as it was left. So it is reset before an instance gets it, where that can be done, and it is looked that nothing of
//! this host has taken it since it came to the pool.
//!
//! Three things are not known of the kernel, and either is survived:
//! - whether it reserves functions that are named when an instance is made or goes on without them: each is asked for in an overlay of its own once the
//!   instance is there, and looked for in its tree; an instance that lacks one is given back before it is loaded. (As a second fragment of the overlay that
//!   makes the instance, which is how kerf asks, a failure would leave untold whether that overlay had made it: see [`super::provenance`].)
//! - whether the pool's tree goes on telling of functions that instances have ([`super::holders`]);
//! - whether a kernel that has let go of a function forgets it: one that only took it from its driver shows it still, and its agent says that nothing drives it.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tombolo_handover::PciAddress;

use super::doubts::{Asked, Doubts, withheld};
use super::hold::mark;
use super::holders::{self, Held};
use super::host_pci::HostPci;
use super::ids::InstanceName;
use super::interface::Interface;
use super::live::{Live, LiveError, unreadable};
use super::lock::Lock;
use super::overlay::{Change, Intent};
use super::provenance::{Mark, is_known};
use super::record::{Origin, Record};
use super::transaction;

/// What puts functions into the pool.
const TO_THE_POOL: &str = "`tombolo multikernel pool --devices` puts it there";

/// The usual reason for which a kernel that runs refuses one, which nobody names.
const KNOWN_BUS: &str = "a kernel that runs finds a device only on a bus that it found when it booted: if it has booted with none of that bus, start it again with this one";

/// A function that a running kernel was asked to take or to give up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AskedDevice {
    pub(super) function: PciAddress,
    change: Change,
    mark: String,
}

impl Asked for AskedDevice {
    const NAME: &str = "multikernel-devices.json";
    const MARK: &str = "device";

    fn mark(&self) -> &str {
        &self.mark
    }

    fn what(&self) -> String {
        format!("device {}", self.function)
    }

    fn change(&self) -> Change {
        self.change
    }

    fn intent(&self, name: InstanceName) -> Intent {
        Intent::InstanceDevice { name, change: self.change, function: self.function }
    }

    fn is_about_the_same(&self, other: &Self) -> bool {
        self.function == other.function
    }
}

/// A function of a running kernel, or one that may yet become its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LiveDevice {
    pub(crate) function: PciAddress,
    /// Whether the kernel's books give it to the instance.
    pub(crate) is_there: bool,
    /// Whether that may still change by itself: it was asked for, and no answer was seen.
    pub(crate) may_change: bool,
}

/// Gives an instance that was made just now, and runs nothing yet, the functions that it is to have. The error says which it cannot have, and why; the instance
/// is to be given back then.
pub(super) fn give_all(
    kernel: &impl Interface,
    dir: &Path,
    record: &Record,
    _lock: &Lock,
) -> Result<(), String> {
    for &function in &record.devices {
        let name = record.name.clone();
        let failed = |reason: String| {
            format!("device {function} could not be given to instance `{}`: {reason}", record.name)
        };
        must_be_free(kernel, dir, record, function).map_err(failed)?;
        reset(record, function).map_err(failed)?;
        let intent = Intent::InstanceDevice { name, change: Change::Add, function };
        transaction::apply(kernel, &intent, &mark(record, &format!("device-{function}")))
            .map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// Makes sure that a function is nobody's, and fit to be given to a kernel. The error says why it is not. `dir`: of whom it is for.
fn must_be_free(
    kernel: &impl Interface,
    dir: &Path,
    record: &Record,
    function: PciAddress,
) -> Result<(), String> {
    let host = HostPci::of(&record.settings);
    // What the IOMMU does not tell apart is one kernel's, or nobody's.
    let companions = host.companions(function).map_err(|unfit| unfit.to_string())?;
    let is_of_it = |other: PciAddress| other == function || companions.contains(&other);
    let withheld = withheld::<AskedDevice>(kernel, dir)?;
    if let Some((holder, asked)) = withheld.into_iter().find(|(_, asked)| is_of_it(asked.function)) {
        let what = match asked.function {
            other if other == function => "it".to_owned(),
            other => format!("{other}, of its IOMMU group,"),
        };
        return Err(format!(
            "{what} may be in use in instance `{holder}`, which was asked for it and did not answer: it is free when that has ended"
        ));
    }
    let held = holders::held(kernel).map_err(|error| error.to_string())?;
    match held.iter().find(|held| held.function.address == function) {
        None => return Err(format!("it is not in the pool; {TO_THE_POOL}")),
        Some(Held { by: Some(holder), .. }) => return Err(format!("instance `{holder}` has it")),
        Some(Held { by: None, .. }) => {}
    }
    let of_group = held.iter().filter(|held| companions.contains(&held.function.address));
    for Held { function: other, by } in of_group {
        if let Some(holder) = by.as_ref().filter(|holder| *holder != record.name.as_str()) {
            return Err(format!(
                "the IOMMU does not tell it apart from {}, which instance `{holder}` has: they are of one kernel",
                other.address
            ));
        }
    }
    host.must_be_idle(function).map_err(|unfit| unfit.to_string())
}

/// Resets one that is nobody's, if it can be.
fn reset(record: &Record, function: PciAddress) -> Result<(), String> {
    let host = HostPci::of(&record.settings);
    if !host.reset(function).map_err(|unfit| unfit.to_string())? {
        tracing::warn!(instance = %record.name, %function, "it gets a device that cannot be reset, as it was left");
    }
    Ok(())
}

/// What an instance whose kernel has ended leaves behind: the functions that it has, and those that its kernel was asked for and may have taken, which are
/// nobody's by the books. Not what another kernel may use by now.
pub(super) fn left_by(
    kernel: &impl Interface,
    dir: &Path,
    record: &Record,
) -> Result<Vec<PciAddress>, String> {
    let asked = Doubts::<AskedDevice>::read(record, dir).map_err(LiveError::into_reason)?.asked;
    let withheld = withheld::<AskedDevice>(kernel, dir)?;
    let is_left = |held: &Held| {
        let is = |asked: &AskedDevice| asked.function == held.function.address;
        let is_its = match &held.by {
            Some(holder) => holder == record.name.as_str(),
            None => asked.iter().any(is),
        };
        is_its && !withheld.iter().any(|(_, asked)| is(asked))
    };
    let held = holders::held(kernel).map_err(|error| error.to_string())?;
    Ok(held.into_iter().filter(is_left).map(|held| held.function.address).collect())
}

/// The functions of the instance of `live`, while its kernel runs.
#[derive(Debug)]
pub(super) struct LiveDevices<'a, I> {
    live: Live<'a, I>,
}

impl<'a, I: Interface> LiveDevices<'a, I> {
    /// `None` for one whose functions are not the ledger's.
    pub(super) fn on(kernel: &'a I, record: &'a Record, dir: &'a Path) -> Option<Self> {
        let is_moved = record.moves_devices && record.origin == Origin::Made;
        is_moved.then_some(Self { live: Live { kernel, record, dir } })
    }

    /// Its functions, and those that may yet become its. What proves to be settled is crossed out, if nobody else changes anything now.
    pub(super) fn all(&self) -> Result<Vec<LiveDevice>, LiveError> {
        let noted = Doubts::<AskedDevice>::read(self.live.record, self.live.dir)?;
        let asked = match noted.asked.is_empty() {
            true => Vec::new(),
            false => match Lock::take(&self.live.record.settings.lock, Duration::ZERO) {
                Ok(lock) => self.crossed_out(&lock)?.asked,
                Err(_) => noted.asked,
            },
        };
        // Last: what is crossed out by now shows in them.
        let held = self.held()?;
        let is_open = |asked: &&AskedDevice| !self.show(&held, asked.change, asked.function);
        let open: Vec<PciAddress> = asked.iter().filter(is_open).map(|asked| asked.function).collect();
        let has = held.iter().filter(|held| self.is_its(held)).map(|held| held.function.address);
        let mut all: Vec<LiveDevice> = has
            .map(|function| LiveDevice { function, is_there: true, may_change: open.contains(&function) })
            .collect();
        for function in open {
            if !all.iter().any(|known| known.function == function) {
                all.push(LiveDevice { function, is_there: false, may_change: true });
            }
        }
        Ok(all)
    }

    /// Gives it a function of the pool. One that it has is no error.
    pub(super) fn give(&self, function: PciAddress) -> Result<(), LiveError> {
        let lock = self.live.lock()?;
        let doubts = self.crossed_out(&lock)?;
        self.give_under(&lock, doubts, function)
    }

    fn give_under(
        &self,
        lock: &Lock,
        doubts: Doubts<AskedDevice>,
        function: PciAddress,
    ) -> Result<(), LiveError> {
        let Live { kernel, record, dir } = self.live;
        if self.has(function)? {
            return match is_open(&doubts, function) {
                false => Ok(()),
                true => Err(LiveError::Unknown(format!(
                    "device {function} was to leave instance `{}`, and may yet",
                    record.name
                ))),
            };
        }
        let refused =
            |reason| format!("device {function} is not given to instance `{}`: {reason}", record.name);
        // What this kernel may have by now must not be reset under it: it is asked for again as it is, if nobody else has it meanwhile.
        let free = must_be_free(kernel, dir, record, function).map_err(refused);
        if is_open(&doubts, function) {
            free.map_err(LiveError::Unknown)?;
        } else {
            free.and_then(|()| reset(record, function).map_err(refused)).map_err(LiveError::Refused)?;
        }
        let asked = doubts.ask(&self.live, lock, |mark| AskedDevice { function, change: Change::Add, mark });
        asked.map_err(|error| match error {
            LiveError::Refused(reason) => LiveError::Refused(format!("{reason}; {KNOWN_BUS}")),
            error => error,
        })
    }

    /// Takes a function back to the pool. One that it has not, and will not get, is no error.
    pub(super) fn take(&self, function: PciAddress) -> Result<(), LiveError> {
        let lock = self.live.lock()?;
        let doubts = self.crossed_out(&lock)?;
        if !self.has(function)? {
            return match is_open(&doubts, function) {
                false => Ok(()),
                true => Err(LiveError::Unknown(format!(
                    "device {function} was to come to instance `{}`, and may yet",
                    self.live.record.name
                ))),
            };
        }
        doubts.ask(&self.live, &lock, |mark| AskedDevice { function, change: Change::Remove, mark })
    }

    /// Asks again what was asked and not seen to be done. Nothing, if nothing was.
    pub(super) fn settle(&self, function: PciAddress) -> Result<(), LiveError> {
        let lock = self.live.lock()?;
        let doubts = self.crossed_out(&lock)?;
        let open = doubts.asked.iter().find(|asked| asked.function == function);
        match open.map(|asked| asked.change) {
            None => Ok(()),
            // It may be another's meanwhile.
            Some(Change::Add) if !self.has(function)? => self.give_under(&lock, doubts, function),
            Some(change) => doubts.ask(&self.live, &lock, |mark| AskedDevice { function, change, mark }),
        }
    }

    /// What is still open, under the lock: what the trees show done is not, nor what no transaction carries.
    fn crossed_out(&self, _lock: &Lock) -> Result<Doubts<AskedDevice>, LiveError> {
        let Live { kernel, record, dir } = self.live;
        let mut doubts = Doubts::<AskedDevice>::read(record, dir)?;
        if doubts.asked.is_empty() {
            return Ok(doubts);
        }
        let held = self.held()?;
        let mut open = Vec::new();
        for asked in &doubts.asked {
            let was_asked = is_known(kernel, Mark::Nonce(&asked.mark)).map_err(unreadable)?;
            if was_asked && !self.show(&held, asked.change, asked.function) {
                open.push(asked.clone());
            }
        }
        doubts.leave_open(&self.live, open);
        Ok(doubts)
    }

    /// Whether the trees show it done: it has the function, or the pool has, and nobody besides.
    fn show(&self, held: &[Held], change: Change, function: PciAddress) -> bool {
        let found = held.iter().find(|held| held.function.address == function);
        match change {
            Change::Add => found.is_some_and(|held| self.is_its(held)),
            Change::Remove => found.is_some_and(|held| held.by.is_none()),
        }
    }

    fn is_its(&self, held: &Held) -> bool {
        held.by.as_deref() == Some(self.live.record.name.as_str())
    }

    fn has(&self, function: PciAddress) -> Result<bool, LiveError> {
        let is_it = |held: &Held| held.function.address == function && self.is_its(held);
        Ok(self.held()?.iter().any(is_it))
    }

    fn held(&self) -> Result<Vec<Held>, LiveError> {
        self.live.must_run()?;
        holders::held(self.live.kernel).map_err(unreadable)
    }
}

fn is_open(doubts: &Doubts<AskedDevice>, function: PciAddress) -> bool {
    doubts.asked.iter().any(|asked| asked.function == function)
}
