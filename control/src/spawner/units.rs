//! What a running kernel can be given and can lose: memory, CPUs, devices.
//!
//! Each call looks before it acts, and says what it saw rather than what it was told.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tombolo_handover::PciAddress;

use super::keeper_link::{KeeperLink, LinkError};
use super::kernel::ask;
use super::multikernel::{self, LiveChange, LiveError};
use super::{Device, Kernel, SpawnError, SpawnerKind, qemu};
use crate::keeper::{CpuLease, MemoryState, Request, Status};

/// How long a CPU that its kernel has taken offline may take to park itself.
const PARK_MAX: Duration = Duration::from_secs(2);
/// Between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// In which memory comes and goes, in bytes.
const MEMORY_STEP_BYTES: u64 = 2 << 20;
/// Why the memory of a kernel cannot be changed.
pub(super) const MEMORY_IS_FIXED: &str = "it has no memory that can leave or come";

/// Why the CPUs of a kernel cannot be changed.
const CPUS_ARE_FIXED: &str = "it has CPUs that are not in the ledger: those of another program's instance, or of a daemon that lends machines' CPUs";
/// Why the devices of a kernel cannot be changed.
const DEVICES_ARE_FIXED: &str = "its devices are not in the ledger: those of another program's instance, or of a daemon that lends machines' devices";
/// How long a kernel may take to show that it lives, before it is asked again for what it did not answer.
const SETTLE_ANSWER_MAX: Duration = Duration::from_secs(1);

/// A CPU of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// Its number in the machine, and in its kernel. On Multikernel Linux what its hardware calls it; the kernel may number it otherwise.
    pub index: u32,
    /// The ledger's name for it, if it is or was lent to the kernel.
    pub unit: Option<u32>,
    /// Whether it is lent to the kernel now.
    pub lent: bool,
    /// Whether it is one that runs on the CPU of this host it is named after, and on no other.
    pub pinned: bool,
    /// Whether it comes by being plugged, and leaves by being unplugged.
    pub pluggable: bool,
    /// Whether it is there; one that is not is a place for one.
    pub present: bool,
    /// Whether it runs; one that does not has been parked by the kernel, was never started, or is not there.
    pub runs: bool,
    /// Whether that it is lent, or is not, may still change by itself: the kernel was asked, and has not been seen to do it.
    pub may_change: bool,
}

/// A device that a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Where.
    pub address: PciAddress,
    /// Whether it is there; one that is not is on its way, perhaps.
    pub is_there: bool,
    /// Whether that may change by itself: its kernel was told to let it go, or to take it, and has not been seen to.
    pub may_change: bool,
}

/// What a kernel's memory is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryWanted {
    /// So many bytes: asked for even if it seems to have them.
    Exactly(u64),
    /// So many bytes, unless it has fewer already.
    AtMost(u64),
    /// So many bytes, unless it has more already.
    AtLeast(u64),
}

impl MemoryWanted {
    /// To how many bytes what there is has to be changed; `None`: it is what is wanted. What is not certain, or under way, is changed
    /// whatever it seems to be, and so is known afterwards. What is less than a step above is no part of what can be moved.
    pub(super) fn bytes_from(self, present: &MemoryState) -> Option<u64> {
        let steps = |bytes: u64| bytes / MEMORY_STEP_BYTES;
        let has = steps(present.present_bytes);
        let is_settled = present.certain && !present.pending;
        let (bytes, is_so) = match self {
            Self::Exactly(bytes) => (bytes, false),
            Self::AtMost(bytes) => (bytes, has <= steps(bytes)),
            Self::AtLeast(bytes) => (bytes, has >= steps(bytes)),
        };
        (!is_settled || !is_so).then_some(bytes)
    }
}

impl Kernel {
    /// How much memory it has, where that can be changed while it runs; else `None`.
    ///
    /// # Errors
    /// [`SpawnError::Ended`] when it has ended, [`SpawnError::Keeper`] when its keeper does not answer.
    pub async fn memory(&self) -> Result<Option<MemoryState>, SpawnError> {
        let action = "ask about the memory of";
        if self.kind() == SpawnerKind::Qemu {
            let (runs, state) = tokio::join!(self.must_run(action), qemu::memory_state(self.runtime_dir()));
            runs?;
            return state.map_err(|error| self.refused_to(action, error));
        }
        if self.kind() == SpawnerKind::Multikernel {
            self.must_run(action).await?;
            let state = multikernel::memory(self.runtime_dir()).await;
            return state.map_err(|error| self.not_moved(action, error));
        }
        let status = ask(self.runtime_dir(), Request::Status).await;
        status.map(|status| status.memory).map_err(|error| self.link_failed(action, error))
    }

    /// Makes its memory what is wanted: takes what is free from it, or gives back what was taken. Returns when that is so, with what it
    /// has then.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] when it could not be done, and then it has what it had before; [`SpawnError::Keeper`] or [`SpawnError::Control`]
    /// when it did not end within `deadline`, or it is not known what it came to: it may still, [`Kernel::memory`] tells. A kernel beside this one may
    /// have come to something between: what is returned is less, or more, than what is wanted.
    pub async fn set_memory(
        &self,
        wanted: MemoryWanted,
        deadline: Duration,
    ) -> Result<MemoryState, SpawnError> {
        let action = "change the memory of";
        if self.kind() == SpawnerKind::Qemu {
            self.must_run(action).await?;
            return self.done(action, qemu::set_memory(self.runtime_dir(), wanted, deadline).await);
        }
        if self.kind() == SpawnerKind::Multikernel {
            self.must_run(action).await?;
            // It has its own end, and would go on if nobody waited for it any longer.
            let changed = multikernel::set_memory(self.runtime_dir(), wanted).await;
            let state = changed.map_err(|error| self.not_moved(action, error))?;
            return state.ok_or_else(|| self.refused(action, MEMORY_IS_FIXED.into()));
        }
        let changed = timeout(deadline, async {
            let mut link = KeeperLink::connect(self.runtime_dir()).await?;
            let present = link.request_on(Request::Status).await?.0.memory;
            match present.and_then(|present| wanted.bytes_from(&present)) {
                Some(bytes) => Ok(link.request_on(Request::SetMemory { bytes }).await?.0.memory),
                None => Ok(present),
            }
        });
        let changed = changed.await.unwrap_or(Err(LinkError::Silent(deadline)));
        let state = changed.map_err(|error| self.link_failed(action, error))?;
        state.ok_or_else(|| self.refused(action, MEMORY_IS_FIXED.into()))
    }

    /// Whether its memory is the ledger's, where its spawner can move it.
    pub(crate) fn moves_memory(&self) -> bool {
        self.kind() != SpawnerKind::Multikernel || multikernel::moves_memory(self.runtime_dir())
    }

    /// Asks for a change of its memory again that was asked for and may still happen, where the kernel itself answers. Nothing where there is none, or no
    /// answer.
    ///
    /// # Errors
    /// As [`Kernel::set_memory`].
    pub async fn settle_memory(&self) -> Result<(), SpawnError> {
        if self.kind() != SpawnerKind::Multikernel || self.answers(SETTLE_ANSWER_MAX).await != Some(true) {
            return Ok(());
        }
        let action = "settle what becomes of the memory of";
        self.must_run(action).await?;
        let settled = multikernel::settle_memory(self.runtime_dir()).await;
        settled.map(drop).map_err(|error| self.not_moved(action, error))
    }

    /// Its CPUs, in order, where they can be lent and taken while it runs; else `None`.
    ///
    /// # Errors
    /// [`SpawnError::Ended`] when it has ended; [`SpawnError::Keeper`] or [`SpawnError::Control`] when it cannot be asked.
    pub async fn cpus(&self) -> Result<Option<Vec<CpuState>>, SpawnError> {
        let action = "ask about the CPUs of";
        match self.kind() {
            SpawnerKind::Qemu => {}
            SpawnerKind::Multikernel => return self.cpus_beside(action).await,
            SpawnerKind::Uml | SpawnerKind::Process => return Ok(None),
        }
        let leases = self.running_status(action).await?.cpus;
        // Of a machine all are, or none.
        let pinned = leases.iter().any(|lease| lease.pinned);
        let seen = qemu::look_at_cpus(self.runtime_dir()).await;
        let seen = seen.map_err(|error| self.refused_to(action, error))?;
        let cpus = seen.into_iter().map(|cpu| {
            let qemu::CpuSeen { index, present, pluggable, runs } = cpu;
            let lease = leases.iter().find(|lease| lease.index == index);
            let (unit, lent) = (lease.map(|lease| lease.unit), lease.is_some_and(|lease| lease.lent));
            CpuState { index, unit, lent, pinned, pluggable, present, runs, may_change: false }
        });
        Ok(Some(cpus.collect()))
    }

    /// Whether it has CPUs of the ledger's, where its spawner can move them: a kernel beside this one may have been made by a daemon whose ledger had
    /// others.
    pub(crate) fn moves_cpus(&self) -> bool {
        self.kind() != SpawnerKind::Multikernel || multikernel::moves_cpus(self.runtime_dir())
    }

    /// Lends it a CPU that the ledger calls `unit`: its kernel may start it from now on. One that it has already is no error.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] when its machine has no CPU to spare; [`SpawnError::Control`] when that is not known.
    pub async fn lend_cpu(&self, unit: u32) -> Result<(), SpawnError> {
        if self.kind() == SpawnerKind::Multikernel {
            return self.change_beside("give a CPU to", unit, LiveChange::Give).await;
        }
        let cpus = self.cpus_or_refuse("lend a CPU to").await?;
        if cpus.iter().any(|cpu| cpu.lent && cpu.unit == Some(unit)) {
            return Ok(());
        }
        let spare = || cpus.iter().filter(|cpu| !cpu.lent && !cpu.runs);
        // The one it was before, if it was here before; but places are filled from the lowest.
        let former = || spare().find(|cpu| cpu.unit == Some(unit) && !cpu.pluggable);
        let Some(cpu) = former().or_else(|| spare().next()) else {
            let reason = format!("its machine has {} CPUs, all of them in use", cpus.len());
            return Err(self.refused("lend a CPU to", reason));
        };
        let CpuState { index, pinned, present, .. } = *cpu;
        if !present {
            self.done("lend a CPU to", qemu::plug_cpu(self.runtime_dir(), index).await)?;
        }
        if pinned {
            let placed = qemu::pin_cpus(self.runtime_dir(), self.pid(), &[(index, unit)]).await;
            placed.map_err(|reason| self.refused("lend a CPU to", reason))?;
        }
        self.lease("lend a CPU to", CpuLease { index, unit, lent: true, pinned }).await
    }

    /// Takes back the CPU that the ledger calls `unit`, which its kernel has taken offline. One that it does not have is no error.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] while the CPU runs: nobody but its kernel can stop it, or when the kernel does not let it be unplugged;
    /// [`SpawnError::Control`] when it may yet be unplugged.
    pub async fn take_cpu(&self, unit: u32) -> Result<(), SpawnError> {
        let action = "take a CPU from";
        if self.kind() == SpawnerKind::Multikernel {
            return self.change_beside(action, unit, LiveChange::Take).await;
        }
        let until = Instant::now() + PARK_MAX;
        loop {
            let cpus = self.cpus_or_refuse(action).await?;
            let Some(cpu) = cpus.iter().find(|cpu| cpu.lent && cpu.unit == Some(unit)) else { return Ok(()) };
            if !cpu.runs {
                let CpuState { index, pinned, pluggable, present, .. } = *cpu;
                if pluggable && present {
                    self.done(action, qemu::unplug_cpu(self.runtime_dir(), index).await)?;
                }
                return self.lease(action, CpuLease { index, unit, lent: false, pinned }).await;
            }
            if Instant::now() >= until {
                let reason =
                    format!("CPU {} still runs in its kernel, which was to take it offline", cpu.index);
                return Err(self.refused(action, reason));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Asks for a change of a CPU again that was asked for and may still happen, where the kernel itself answers: it alone can end the doubt.
    /// Nothing where there is none, or no answer.
    ///
    /// # Errors
    /// As [`Kernel::lend_cpu`].
    pub async fn settle_cpu(&self, unit: u32) -> Result<(), SpawnError> {
        if self.kind() != SpawnerKind::Multikernel || self.answers(SETTLE_ANSWER_MAX).await != Some(true) {
            return Ok(());
        }
        self.change_beside("settle what becomes of a CPU of", unit, LiveChange::Settle).await
    }

    /// The same as [`Kernel::cpus`] for a kernel beside this one.
    async fn cpus_beside(&self, action: &'static str) -> Result<Option<Vec<CpuState>>, SpawnError> {
        self.must_run(action).await?;
        let cpus = multikernel::cpus(self.runtime_dir()).await;
        let state = |cpu: multikernel::LiveCpu| {
            let (index, lent) = (cpu.physical(), cpu.is_there);
            CpuState {
                index,
                unit: Some(index),
                lent,
                pinned: true,
                pluggable: true,
                present: lent,
                runs: lent,
                may_change: cpu.may_change,
            }
        };
        let cpus = cpus.map_err(|error| self.not_moved(action, error))?;
        Ok(cpus.map(|cpus| cpus.into_iter().map(state).collect()))
    }

    async fn change_beside(
        &self,
        action: &'static str,
        unit: u32,
        change: LiveChange,
    ) -> Result<(), SpawnError> {
        self.must_run(action).await?;
        match multikernel::change_cpu(self.runtime_dir(), unit, change).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(self.refused(action, CPUS_ARE_FIXED.into())),
            Err(error) => Err(self.not_moved(action, error)),
        }
    }

    fn not_moved(&self, action: &'static str, error: LiveError) -> SpawnError {
        match error {
            LiveError::Refused(reason) => self.refused(action, reason),
            LiveError::Unknown(reason) => self.refused_to(action, reason),
        }
    }

    /// The devices that it has, and those that may yet become its, where they can be plugged and unplugged while it runs; else `None`.
    ///
    /// # Errors
    /// As [`Kernel::cpus`].
    pub async fn devices(&self) -> Result<Option<Vec<DeviceState>>, SpawnError> {
        let action = "ask about the devices of";
        match self.kind() {
            SpawnerKind::Qemu => {}
            SpawnerKind::Multikernel => return self.devices_beside(action).await,
            SpawnerKind::Uml | SpawnerKind::Process => return Ok(None),
        }
        let departures = self.running_status(action).await?.departures;
        let plugged = qemu::plugged(self.runtime_dir()).await;
        let plugged = plugged.map_err(|error| self.refused_to(action, error))?.into_iter();
        let state = |address: PciAddress| DeviceState {
            address,
            is_there: true,
            may_change: departures.contains(&address.bus),
        };
        Ok(Some(plugged.map(state).collect()))
    }

    /// Whether its devices are the ledger's, where its spawner can move them.
    pub(crate) fn moves_devices(&self) -> bool {
        self.kind() != SpawnerKind::Multikernel || multikernel::moves_devices(self.runtime_dir())
    }

    /// Plugs a device in. One that is there already is no error. `catalogue`: what machines can have.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] when it was not; [`SpawnError::Control`] when that is not known.
    pub async fn plug(&self, address: PciAddress, catalogue: &[Device]) -> Result<(), SpawnError> {
        let action = "plug a device into";
        self.must_run(action).await?;
        let Some(device) = self.of_machine(action, address, catalogue)? else {
            return self.change_device_beside(action, address, LiveChange::Give).await;
        };
        // One that is gone has gone; should it be there still and leaving, it is left to that.
        let is_leaving = |state: &DeviceState| state.address == device.address && state.may_change;
        if self.devices().await?.is_some_and(|devices| devices.iter().any(is_leaving)) {
            return Err(self.refused(action, format!("{} is about to leave it", device.address)));
        }
        self.departure(action, device, false).await?;
        self.done(action, qemu::plug(self.runtime_dir(), device).await)
    }

    /// Unplugs a device within `deadline`; a kernel beside this one has its own, which its host sets it. One that is gone already is no error.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] when its kernel did not let it go, which it may still do; [`SpawnError::Control`] when that is not known.
    pub async fn unplug(
        &self,
        address: PciAddress,
        catalogue: &[Device],
        deadline: Duration,
    ) -> Result<(), SpawnError> {
        let action = "unplug a device from";
        self.must_run(action).await?;
        let Some(device) = self.of_machine(action, address, catalogue)? else {
            return self.change_device_beside(action, address, LiveChange::Take).await;
        };
        // Before it is told: whoever asks later is to know that it may go at any time.
        self.departure(action, device, true).await?;
        self.done(action, qemu::unplug(self.runtime_dir(), device, deadline).await)?;
        self.departure(action, device, false).await
    }

    /// Asks for a change of a device again that was asked for and may still happen, where the kernel itself answers, as [`Kernel::settle_cpu`] does.
    ///
    /// # Errors
    /// As [`Kernel::plug`].
    pub async fn settle_device(&self, address: PciAddress) -> Result<(), SpawnError> {
        if self.kind() != SpawnerKind::Multikernel || self.answers(SETTLE_ANSWER_MAX).await != Some(true) {
            return Ok(());
        }
        let action = "settle what becomes of a device of";
        self.must_run(action).await?;
        self.change_device_beside(action, address, LiveChange::Settle).await
    }

    /// What a machine has to be told of a device; `None` for a kernel beside this one, which is given the function itself.
    fn of_machine<'a>(
        &self,
        action: &'static str,
        address: PciAddress,
        catalogue: &'a [Device],
    ) -> Result<Option<&'a Device>, SpawnError> {
        match self.kind() {
            SpawnerKind::Multikernel => Ok(None),
            SpawnerKind::Qemu => {
                let found = catalogue.iter().find(|device| device.address == address);
                found.map(Some).ok_or_else(|| self.refused(action, not_in_catalogue(address)))
            }
            SpawnerKind::Uml | SpawnerKind::Process => {
                Err(self.refused(action, "its spawner cannot move devices while it runs".into()))
            }
        }
    }

    /// The same as [`Kernel::devices`] for a kernel beside this one.
    async fn devices_beside(&self, action: &'static str) -> Result<Option<Vec<DeviceState>>, SpawnError> {
        self.must_run(action).await?;
        let devices = multikernel::devices(self.runtime_dir()).await;
        let state = |device: multikernel::LiveDevice| DeviceState {
            address: device.function,
            is_there: device.is_there,
            may_change: device.may_change,
        };
        let devices = devices.map_err(|error| self.not_moved(action, error))?;
        Ok(devices.map(|devices| devices.into_iter().map(state).collect()))
    }

    async fn change_device_beside(
        &self,
        action: &'static str,
        address: PciAddress,
        change: LiveChange,
    ) -> Result<(), SpawnError> {
        match multikernel::change_device(self.runtime_dir(), address, change).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(self.refused(action, DEVICES_ARE_FIXED.into())),
            Err(error) => Err(self.not_moved(action, error)),
        }
    }

    async fn departure(
        &self,
        action: &'static str,
        device: &Device,
        pending: bool,
    ) -> Result<(), SpawnError> {
        let noted = ask(self.runtime_dir(), Request::Departure { bus: device.bus(), pending }).await;
        noted.map(drop).map_err(|error| self.link_failed(action, error))
    }

    /// What the keeper of a kernel that runs says.
    async fn running_status(&self, action: &'static str) -> Result<Status, SpawnError> {
        let status = ask(self.runtime_dir(), Request::Status).await;
        match status.map_err(|error| self.link_failed(action, error))? {
            Status { exit: Some(exit), .. } => {
                Err(SpawnError::Ended { action, runtime_dir: self.runtime_dir().to_owned(), exit })
            }
            status => Ok(status),
        }
    }

    async fn cpus_or_refuse(&self, action: &'static str) -> Result<Vec<CpuState>, SpawnError> {
        let cpus = self.cpus().await?;
        cpus.ok_or_else(|| self.refused(action, "its spawner cannot move CPUs while it runs".into()))
    }

    async fn lease(&self, action: &'static str, lease: CpuLease) -> Result<(), SpawnError> {
        let entered = ask(self.runtime_dir(), Request::LeaseCpu(lease)).await;
        entered.map(drop).map_err(|error| self.link_failed(action, error))
    }

    /// What a driver says of a change: done, refused, or not known.
    fn done<T>(
        &self,
        action: &'static str,
        outcome: Result<Result<T, String>, String>,
    ) -> Result<T, SpawnError> {
        outcome
            .map_err(|error| self.refused_to(action, error))?
            .map_err(|reason| self.refused(action, reason))
    }

    fn refused(&self, action: &'static str, reason: String) -> SpawnError {
        SpawnError::Refused { action, runtime_dir: self.runtime_dir().to_owned(), reason }
    }
}

/// Why a machine is not given a device, nor gives one up, that this daemon was not told of.
pub(crate) fn not_in_catalogue(address: PciAddress) -> String {
    format!("this daemon was started without `--device {address}=...`, so it knows nothing of it")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn bytes_from(wanted: MemoryWanted, present_bytes: u64) -> Option<u64> {
        let settled = MemoryState { present_bytes, max_bytes: 512 * MIB, pending: false, certain: true };
        for unsettled in [MemoryState { pending: true, ..settled }, MemoryState { certain: false, ..settled }]
        {
            assert!(wanted.bytes_from(&unsettled).is_some(), "what it has is not known");
        }
        wanted.bytes_from(&settled)
    }

    #[test]
    fn memory_is_changed_only_as_far_as_is_wanted() {
        use MemoryWanted::*;
        assert_eq!(bytes_from(AtMost(64 * MIB), 96 * MIB), Some(64 * MIB));
        assert_eq!(bytes_from(AtMost(64 * MIB), 64 * MIB), None);
        assert_eq!(bytes_from(AtMost(64 * MIB), 32 * MIB), None, "nothing is given back");
        assert_eq!(bytes_from(AtMost(64 * MIB), 65 * MIB), None, "half a step cannot leave");
        assert_eq!(bytes_from(AtLeast(64 * MIB), 32 * MIB), Some(64 * MIB));
        assert_eq!(bytes_from(AtLeast(64 * MIB), 64 * MIB), None);
        assert_eq!(bytes_from(AtLeast(64 * MIB), 96 * MIB), None, "nothing is taken");
        assert_eq!(bytes_from(Exactly(64 * MIB), 64 * MIB), Some(64 * MIB));
    }
}
