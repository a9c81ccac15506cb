//! What the kernel does that its documents do not say, one switch each.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A trap of the kernel's interface. Each can be switched off, to see whether a caller depends on it, and on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Quirk {
    /// `write` to `overlays/new` gives the byte count even when the operations failed. Off: it gives their errno.
    WriteSucceedsOnFailure,
    /// The counter of transactions starts at 1 and is incremented first. Off: the first is 1.
    FirstTransactionIsTwo,
    /// A write to `overlays/new` is cut at one page. Off: it is taken whole.
    WriteClippedAtPage,
    /// Operations and items of unknown name are skipped. Off: they are EINVAL.
    UnknownItemsIgnored,
    /// An instance is created without the CPUs and devices that could not be had. Off: EBUSY or ENODEV.
    CreateShortageWarns,
    /// What ran before the failed operation of an overlay stays. Off: it is undone.
    HalfAppliedOverlay,
    /// `rmdir` of a transaction undoes all its operations. Off: only those that ran.
    RmdirUndoesWhatNeverRan,
    /// Nobody who polls a status is told that it changes: `kernfs_notify` is not called. Off: poll(2) says POLLPRI.
    NothingNotifies,
    /// A panic leaves the state `loaded`. Off: `failed`.
    PanicLooksLikeHalt,
    /// A kernel that hangs stays `active`. Off: `failed`.
    HangStaysActive,
    /// Unloading is not refused while the image runs. Off: EBUSY.
    UnloadOfActive,
    /// An acknowledgement is matched by operation and resource alone. Off: also by message.
    LateAckCompletesNext,
    /// Spawned kernels bring CPUs online and their acknowledgement is lost. Off by default: a fault, not a rule.
    CpuAddAckLost,
    /// The same of memory that comes or goes. Off by default.
    MemoryAckLost,
    /// A kernel refuses memory that it has, and to let go what it has not. Off: neither is an error.
    MemoryTwiceFails,
    /// The acknowledgement of a device that comes or goes is lost. Off by default: a fault, not a rule.
    DeviceAckLost,
    /// A kernel refuses a device that it has, and to let go what it has not. Off by default: not known.
    DeviceTwiceFails,
    /// A kernel finds a device only on a bus that it found at its boot: one that it booted with a device of. Off: on any.
    DeviceNeedsKnownBus,
    /// A device that cannot be had is left out by `device-add` too, with success. Off by default: not known.
    DeviceShortageWarns,
    /// The pool's tree goes on telling of devices that instances have. Off by default: not known.
    PoolTreeShowsLentDevices,
    /// Memory is added to an instance at the first range that fits. Off: exactly at the range named.
    FirstFitBase,
    /// Whoever finds the kexec lock taken gets EBUSY. Off: nobody looks at it.
    BusyWhileLocked,
    /// An item that is not acknowledged within 10 s is ETIMEDOUT. Off: it is waited for without end.
    ItemTimesOut,
    /// A halt that is not acknowledged within 30 s is ETIMEDOUT. Off: it is waited for without end.
    HaltTimesOut,
    /// Memory of an instance is one range, so that a fragmented pool is ENOMEM. Off: it may be pieced together.
    FragmentationFails,
    /// `empty` and `failed` are never seen. Off: an instance without CPUs is `empty`, one halted by force `failed`.
    FailedAndEmptyNeverSet,
    /// `reboot` of the host is EPERM. Off: the stand-in's host restarts, with all it had lost.
    HostRebootRefused,
    /// The first forced halt of a kernel misses a CPU, which runs on; another reaches it. Off by default: a fault, not a rule.
    ForceMissesACpu,
    /// Of several that opened the console of one instance the latest hears it. Off: the first.
    ConsoleOfLatest,
}

impl Quirk {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::WriteSucceedsOnFailure,
        Self::FirstTransactionIsTwo,
        Self::WriteClippedAtPage,
        Self::UnknownItemsIgnored,
        Self::CreateShortageWarns,
        Self::HalfAppliedOverlay,
        Self::RmdirUndoesWhatNeverRan,
        Self::NothingNotifies,
        Self::PanicLooksLikeHalt,
        Self::HangStaysActive,
        Self::UnloadOfActive,
        Self::LateAckCompletesNext,
        Self::CpuAddAckLost,
        Self::MemoryAckLost,
        Self::MemoryTwiceFails,
        Self::DeviceAckLost,
        Self::DeviceTwiceFails,
        Self::DeviceNeedsKnownBus,
        Self::DeviceShortageWarns,
        Self::PoolTreeShowsLentDevices,
        Self::FirstFitBase,
        Self::BusyWhileLocked,
        Self::ItemTimesOut,
        Self::HaltTimesOut,
        Self::FragmentationFails,
        Self::FailedAndEmptyNeverSet,
        Self::HostRebootRefused,
        Self::ForceMissesACpu,
        Self::ConsoleOfLatest,
    ];

    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteSucceedsOnFailure => "write-succeeds-on-failure",
            Self::FirstTransactionIsTwo => "first-transaction-is-two",
            Self::WriteClippedAtPage => "write-clipped-at-page",
            Self::UnknownItemsIgnored => "unknown-items-ignored",
            Self::CreateShortageWarns => "create-shortage-warns",
            Self::HalfAppliedOverlay => "half-applied-overlay",
            Self::RmdirUndoesWhatNeverRan => "rmdir-undoes-what-never-ran",
            Self::NothingNotifies => "nothing-notifies",
            Self::PanicLooksLikeHalt => "panic-looks-like-halt",
            Self::HangStaysActive => "hang-stays-active",
            Self::UnloadOfActive => "unload-of-active",
            Self::LateAckCompletesNext => "late-ack-completes-next",
            Self::CpuAddAckLost => "cpu-add-ack-lost",
            Self::MemoryAckLost => "memory-ack-lost",
            Self::MemoryTwiceFails => "memory-twice-fails",
            Self::DeviceAckLost => "device-ack-lost",
            Self::DeviceTwiceFails => "device-twice-fails",
            Self::DeviceNeedsKnownBus => "device-needs-known-bus",
            Self::DeviceShortageWarns => "device-shortage-warns",
            Self::PoolTreeShowsLentDevices => "pool-tree-shows-lent-devices",
            Self::FirstFitBase => "first-fit-base",
            Self::BusyWhileLocked => "busy-while-locked",
            Self::ItemTimesOut => "item-times-out",
            Self::HaltTimesOut => "halt-times-out",
            Self::FragmentationFails => "fragmentation-fails",
            Self::FailedAndEmptyNeverSet => "failed-and-empty-never-set",
            Self::HostRebootRefused => "host-reboot-refused",
            Self::ForceMissesACpu => "force-misses-a-cpu",
            Self::ConsoleOfLatest => "console-of-latest",
        }
    }

    /// Whether the newest kernel is known to have it.
    pub fn is_default(self) -> bool {
        !matches!(
            self,
            Self::CpuAddAckLost
                | Self::MemoryAckLost
                | Self::DeviceAckLost
                | Self::DeviceTwiceFails
                | Self::DeviceShortageWarns
                | Self::PoolTreeShowsLentDevices
                | Self::ForceMissesACpu
        )
    }
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quirk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|quirk| quirk.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|quirk| quirk.name()).collect();
            format!("there is no quirk {text:?}; there are {}", names.join(", "))
        })
    }
}

impl Serialize for Quirk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Which quirks are on. Default: those of the newest kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quirks(BTreeSet<Quirk>);

impl Default for Quirks {
    fn default() -> Self {
        Self(Quirk::ALL.into_iter().filter(|quirk| quirk.is_default()).collect())
    }
}

impl Quirks {
    /// Whether this one is on.
    pub fn has(&self, quirk: Quirk) -> bool {
        self.0.contains(&quirk)
    }

    /// Switches one.
    pub fn set(&mut self, quirk: Quirk, on: bool) {
        if on {
            self.0.insert(quirk);
        } else {
            self.0.remove(&quirk);
        }
    }
}
