//! What is set aside for other kernels: how it becomes what is wanted of it.
//!
//! The first time all of it is told at once (the baseline); afterwards each change is an overlay of its own, so that one that fails leaves the
//! others as they are. Units that an instance has are nobody's to take.

use std::path::Path;

use super::Settings;
use super::devices::AskedDevice;
use super::doubts::{self, Asked};
use super::hold::nonce_of;
use super::holders::{self, Held};
use super::host_pci::{Allowed, HostPci, Unfit};
use super::ids::{Alias, PhysicalCpu, listed};
use super::interface::{self, Interface, Mounted};
use super::live::AskedCpu;
use super::lock::{self, Lock};
use super::memory::AskedRegion;
use super::overlay::{Change, Intent, baseline};
use super::regions::Span;
use super::transaction;
use super::tree::{Chunk, PoolTree};
use crate::api::beside::PoolWish;
use tombolo_handover::PciAddress;

/// What the pool is to have. `None`: as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) cpus: Option<Vec<PhysicalCpu>>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) devices: Option<Vec<NamedFunction>>,
    /// What may be, although it is not safe.
    pub(super) allowed: Allowed,
}

/// A PCI function, and the name that spawned kernels are to give to what they find in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedFunction {
    pub(super) function: PciAddress,
    pub(super) alias: Option<Alias>,
}

/// One change on the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All of it at once: there is no pool yet.
    Baseline { cpus: Vec<PhysicalCpu>, memory_bytes: u64 },
    /// One overlay.
    Overlay(Intent),
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Self::Baseline { cpus, memory_bytes } => {
                format!("make a pool of {} and {} MiB", listed(cpus), memory_bytes >> 20)
            }
            Self::Overlay(Intent::PoolCpus { change: Change::Add, cpus }) => {
                format!("take {} from the host", listed(cpus))
            }
            Self::Overlay(Intent::PoolCpus { change: Change::Remove, cpus }) => {
                format!("give {} back to the host", listed(cpus))
            }
            Self::Overlay(Intent::PoolMemoryAdd { bytes }) => {
                format!("take {} MiB from the host", bytes >> 20)
            }
            Self::Overlay(Intent::PoolMemoryRemove { chunk }) => {
                format!("give the {} MiB at {:#x} back to the host", chunk.bytes >> 20, chunk.base)
            }
            Self::Overlay(Intent::PoolDeviceAdd { function, alias }) => {
                let alias = alias.as_ref().map_or_else(String::new, |alias| format!(" as `{alias}`"));
                format!("take device {function}{alias} from the host")
            }
            Self::Overlay(Intent::PoolDeviceRemove { function }) => {
                format!("give device {function} back to the host")
            }
            Self::Overlay(intent) => format!("{intent:?}"),
        }
    }
}

/// The steps from what there is to what is wanted; the error says why there are none. `devices`: those of the pool, where some are wanted.
pub(super) fn plan(now: &PoolTree, devices: &[Held], wish: &Wish) -> Result<Vec<Step>, String> {
    // A pool that has only devices left is one, too.
    let is_empty = now.cpus.is_empty() && now.chunks.is_empty() && now.functions.addresses().is_empty();
    let mut steps = if is_empty { first(wish)? } else { further(now, wish)? };
    if let Some(wanted) = &wish.devices {
        steps.extend(of_devices(devices, wanted)?.into_iter().map(Step::Overlay));
    }
    Ok(steps)
}

/// What comes first, as with CPUs.
fn of_devices(now: &[Held], wanted: &[NamedFunction]) -> Result<Vec<Intent>, String> {
    let gone = now.iter().filter(|held| !wanted.iter().any(|named| named.function == held.function.address));
    let gone: Vec<&Held> = gone.collect();
    if let Some((function, holder)) =
        gone.iter().find_map(|held| Some((held.function.address, held.by.as_ref()?)))
    {
        return Err(format!("device {function} cannot be given back: instance `{holder}` has it"));
    }
    for named in wanted {
        let held = now.iter().find(|held| held.function.address == named.function);
        let (Some(held), Some(alias)) = (held, &named.alias) else { continue };
        // Where the tree tells no name it is left at that.
        if let Some(other) = held.function.alias.as_ref().filter(|other| *other != alias.as_str()) {
            return Err(format!(
                "device {} is in the pool as `{other}`, and gets another name only when it comes to the pool: give it back first",
                named.function
            ));
        }
    }
    let is_new = |named: &&NamedFunction| !now.iter().any(|held| held.function.address == named.function);
    let add = wanted.iter().filter(is_new).cloned();
    let add = add.map(|NamedFunction { function, alias }| Intent::PoolDeviceAdd { function, alias });
    let remove = gone.iter().map(|held| Intent::PoolDeviceRemove { function: held.function.address });
    Ok(add.chain(remove).collect())
}

/// Whether what is to come from the host can, and what is to go leaves nothing behind that the IOMMU does not tell apart from it.
fn check_host(host: &HostPci, now: &[Held], steps: &[Step], allowed: Allowed) -> Result<(), Unfit> {
    let mut pool: Vec<PciAddress> = now.iter().map(|held| held.function.address).collect();
    for step in steps {
        match step {
            Step::Overlay(Intent::PoolDeviceAdd { function, .. }) => {
                host.check(*function, allowed)?;
                pool.push(*function);
            }
            Step::Overlay(Intent::PoolDeviceRemove { function }) => pool.retain(|other| other != function),
            _ => {}
        }
    }
    for step in steps {
        if let Step::Overlay(Intent::PoolDeviceAdd { function, .. } | Intent::PoolDeviceRemove { function }) =
            step
        {
            host.check_group(*function, &pool)?;
        }
    }
    Ok(())
}

/// Whether what is to go back to the host is certain to be in no kernel of ours: one that was asked for it, and did not answer, may use what is free by
/// the books.
fn check_doubts(kernel: &impl Interface, instances: &Path, steps: &[Step]) -> Result<(), String> {
    for step in steps {
        let Step::Overlay(intent) = step else { continue };
        match intent {
            Intent::PoolCpus { change: Change::Remove, cpus } => {
                must_be_certain::<AskedCpu>(kernel, instances, |asked| cpus.contains(&asked.cpu))?;
            }
            Intent::PoolMemoryRemove { chunk } => {
                let span = Span { base: chunk.base, bytes: chunk.bytes };
                must_be_certain::<AskedRegion>(kernel, instances, |asked| asked.span.overlaps(span))?;
            }
            Intent::PoolDeviceRemove { function } => {
                must_be_certain::<AskedDevice>(kernel, instances, |asked| asked.function == *function)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn must_be_certain<A: Asked>(
    kernel: &impl Interface,
    instances: &Path,
    goes: impl Fn(&A) -> bool,
) -> Result<(), String> {
    // Where there is no folder yet, no kernel of ours was ever asked.
    if !instances.try_exists().map_err(|error| format!("{} cannot be read: {error}", instances.display()))? {
        return Ok(());
    }
    let withheld = doubts::withheld_by_any::<A>(kernel, instances, None)?;
    match withheld.into_iter().find(|(_, asked)| goes(asked)) {
        None => Ok(()),
        Some((holder, asked)) => Err(format!(
            "{} cannot be given back: it may be in use in instance `{holder}`, which was asked for it and did not answer; `tombolo op repair` asks it again, and its end settles it",
            asked.what()
        )),
    }
}

fn further(now: &PoolTree, wish: &Wish) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    if let Some(wanted) = &wish.cpus {
        let gone: Vec<PhysicalCpu> = now.cpus.iter().copied().filter(|cpu| !wanted.contains(cpu)).collect();
        if let Some(busy) = gone.iter().find(|cpu| !now.cpus_available.contains(cpu)) {
            return Err(format!("CPU {busy} cannot be given back: an instance has it"));
        }
        let new: Vec<PhysicalCpu> = wanted.iter().copied().filter(|cpu| !now.cpus.contains(cpu)).collect();
        // What comes first: a kernel that refuses it then has lost nothing.
        let parts = [(Change::Add, new), (Change::Remove, gone)];
        let parts = parts.into_iter().filter(|(_, cpus)| !cpus.is_empty());
        steps.extend(parts.map(|(change, cpus)| Step::Overlay(Intent::PoolCpus { change, cpus })));
    }
    if let Some(wanted) = wish.memory_bytes {
        let has = now.memory_bytes();
        if wanted > has {
            steps.push(Step::Overlay(Intent::PoolMemoryAdd { bytes: whole_pages(wanted - has)? }));
        } else if wanted < has {
            let chunks = fitting(&now.chunks, has - wanted)?;
            steps.extend(chunks.into_iter().map(|chunk| Step::Overlay(Intent::PoolMemoryRemove { chunk })));
        }
    }
    Ok(steps)
}

fn first(wish: &Wish) -> Result<Vec<Step>, String> {
    let cpus = wish.cpus.clone().unwrap_or_default();
    let memory_bytes = wish.memory_bytes.unwrap_or(0);
    match (cpus.is_empty(), memory_bytes == 0) {
        (true, true) if wish.devices.as_ref().is_some_and(|devices| !devices.is_empty()) => Err(
            "a new pool needs CPUs and memory, not only devices: say which (--cpus), and how much (--memory)"
                .into(),
        ),
        (true, true) => Ok(Vec::new()),
        (false, false) => Ok(vec![Step::Baseline { cpus, memory_bytes: whole_pages(memory_bytes)? }]),
        (true, false) => Err("a new pool needs CPUs as well as memory: say which (--cpus)".into()),
        (false, true) => Err("a new pool needs memory as well as CPUs: say how much (--memory)".into()),
    }
}

fn whole_pages(bytes: u64) -> Result<u64, String> {
    match bytes.is_multiple_of(4096) {
        true => Ok(bytes),
        false => Err(format!("{bytes} bytes are no whole number of pages")),
    }
}

/// Whole chunks, newest first, that are so much together: the kernel gives none back in part.
fn fitting(chunks: &[Chunk], bytes: u64) -> Result<Vec<Chunk>, String> {
    let mut left = bytes;
    let mut found = Vec::new();
    for chunk in chunks.iter().rev() {
        if chunk.bytes <= left {
            left -= chunk.bytes;
            found.push(*chunk);
        }
    }
    if left == 0 {
        return Ok(found);
    }
    let sizes: Vec<String> = chunks.iter().map(|chunk| format!("{} MiB", chunk.bytes >> 20)).collect();
    Err(format!(
        "{} MiB cannot be given back: memory goes as it came, and it came in {}",
        bytes >> 20,
        sizes.join(", ")
    ))
}

/// Makes the pool as it is wanted, step by step. `dry_run`: only says how. Returns what was done, a line each.
/// `instances`: where the runtime folders of ours are.
pub(super) fn change(
    settings: &Settings,
    instances: &Path,
    wish: PoolWish,
    dry_run: bool,
) -> Result<Vec<String>, String> {
    let wish = Wish::try_from(wish).map_err(|reason| format!("{reason}; nothing was changed"))?;
    change_on(&Mounted::at(&settings.root), settings, instances, &wish, dry_run)
}

impl TryFrom<PoolWish> for Wish {
    type Error = String;

    fn try_from(wish: PoolWish) -> Result<Self, String> {
        let PoolWish { cpus, memory_bytes, devices, allow_no_iommu, allow_no_reset } = wish;
        let named = |device: crate::api::beside::WantedDevice| -> Result<NamedFunction, String> {
            let alias = device.alias.map(|alias| alias.parse()).transpose()?;
            Ok(NamedFunction { function: device.address, alias })
        };
        let devices = devices.map(|all| all.into_iter().map(named).collect::<Result<Vec<_>, _>>());
        let devices = devices.transpose()?;
        for (at, device) in devices.iter().flatten().enumerate() {
            let before = devices.iter().flatten().take(at);
            let is_same = |other: &NamedFunction| {
                other.function == device.function || other.alias.is_some() && other.alias == device.alias
            };
            if before.into_iter().any(is_same) {
                return Err(format!("device {}, or its name, is given twice", device.function));
            }
        }
        Ok(Self {
            cpus: cpus.map(|cpus| cpus.into_iter().map(PhysicalCpu).collect()),
            memory_bytes,
            devices,
            allowed: Allowed { no_iommu: allow_no_iommu, no_reset: allow_no_reset },
        })
    }
}

pub(super) fn change_on(
    kernel: &impl Interface,
    settings: &Settings,
    instances: &Path,
    wish: &Wish,
    dry_run: bool,
) -> Result<Vec<String>, String> {
    let _lock = match dry_run {
        true => None,
        false => Some(Lock::take(&settings.lock, lock::WAIT_MAX).map_err(|error| {
            format!("could not take the lock {}: {error}; nothing was changed", settings.lock.display())
        })?),
    };
    let unchanged = |reason: String| format!("{reason}; nothing was changed");
    let now = interface::pool_or_none(kernel).map_err(|error| unchanged(error.to_string()))?;
    let devices = match wish.devices {
        Some(_) => holders::held(kernel).map_err(|error| unchanged(error.to_string()))?,
        None => Vec::new(),
    };
    let steps = plan(&now, &devices, wish).map_err(unchanged)?;
    check_host(&HostPci::of(settings), &devices, &steps, wish.allowed)
        .map_err(|unfit| unchanged(unfit.to_string()))?;
    check_doubts(kernel, instances, &steps).map_err(unchanged)?;
    let mut done: Vec<String> = Vec::new();
    for step in &steps {
        let told = step.describe();
        if !dry_run {
            take(kernel, step).map_err(|reason| {
                let before = if done.is_empty() {
                    "nothing else was changed".to_owned()
                } else {
                    format!("done before: {}", done.join("; "))
                };
                format!("could not {told}: {reason}; {before}")
            })?;
        }
        done.push(told);
    }
    Ok(done)
}

fn take(kernel: &impl Interface, step: &Step) -> Result<(), String> {
    match step {
        Step::Baseline { cpus, memory_bytes } => {
            let written = kernel.write_once("device_tree", &baseline(cpus, *memory_bytes));
            // Whatever it answered: a baseline that fails half way leaves what it did.
            let now = interface::pool_or_none(kernel).map_err(|error| error.to_string())?;
            let missing: Vec<String> =
                cpus.iter().filter(|cpu| !now.cpus.contains(cpu)).map(ToString::to_string).collect();
            match written {
                Ok(()) if missing.is_empty() && now.memory_bytes() >= *memory_bytes => Ok(()),
                outcome => {
                    let reason = outcome
                        .err()
                        .map_or_else(|| "the kernel took it".to_owned(), |error| error.to_string());
                    let has = format!(
                        "the pool has {} CPUs and {} MiB now",
                        now.cpus.len(),
                        now.memory_bytes() >> 20
                    );
                    let lacks = if missing.is_empty() {
                        String::new()
                    } else {
                        format!(", not CPU {}", missing.join(", "))
                    };
                    Err(format!("{reason}; {has}{lacks}"))
                }
            }
        }
        Step::Overlay(intent) => {
            let nonce = nonce_of("pool").map_err(|error| error.to_string())?;
            transaction::apply(kernel, intent, &nonce).map(drop).map_err(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawner::multikernel::functions::Function;

    fn cpus(numbers: &[u32]) -> Vec<PhysicalCpu> {
        numbers.iter().copied().map(PhysicalCpu).collect()
    }

    fn pool() -> PoolTree {
        let chunk = |base, bytes| Chunk { base, bytes, numa_node: None };
        PoolTree {
            cpus: cpus(&[2, 4, 6]),
            cpus_available: cpus(&[4, 6]),
            chunks: vec![chunk(1 << 32, 4 << 30), chunk(3 << 32, 1 << 30), chunk(4 << 32, 2 << 30)],
            granule_bytes: None,
            functions: Default::default(),
        }
    }

    fn wish(wanted: Option<&[u32]>, memory_bytes: Option<u64>) -> Wish {
        Wish { cpus: wanted.map(cpus), memory_bytes, ..Wish::default() }
    }

    fn plan(now: &PoolTree, wish: &Wish) -> Result<Vec<Step>, String> {
        super::plan(now, &[], wish)
    }

    fn named(address: &str, alias: Option<&str>) -> NamedFunction {
        NamedFunction { function: address.parse().unwrap(), alias: alias.map(|alias| alias.parse().unwrap()) }
    }

    #[test]
    fn devices_come_before_they_go_and_those_that_instances_have_stay() {
        let held = |address: &str, by: Option<&str>| Held {
            function: Function { address: address.parse().unwrap(), alias: None },
            by: by.map(str::to_owned),
        };
        let now = [held("0000:03:00.0", None), held("0000:04:00.0", Some("web"))];
        let of = |devices: &[NamedFunction]| {
            super::plan(&pool(), &now, &Wish { devices: Some(devices.to_vec()), ..Wish::default() })
        };
        let steps = of(&[named("0000:05:00.0", Some("uplink")), named("0000:04:00.0", None)]).unwrap();
        let told: Vec<String> = steps.iter().map(Step::describe).collect();
        assert_eq!(
            told,
            [
                "take device 0000:05:00.0 as `uplink` from the host",
                "give device 0000:03:00.0 back to the host"
            ]
        );
        let busy = of(&[named("0000:03:00.0", None)]).unwrap_err();
        assert!(busy.contains("0000:04:00.0") && busy.contains("`web` has it"), "{busy}");
        let renamed = |has: Option<&str>| {
            let alias = has.map(str::to_owned);
            let held =
                Held { function: Function { address: "0000:03:00.0".parse().unwrap(), alias }, by: None };
            let wish = Wish { devices: Some(vec![named("0000:03:00.0", Some("b"))]), ..Wish::default() };
            super::plan(&pool(), &[held], &wish)
        };
        assert!(renamed(Some("a")).unwrap_err().contains("in the pool as `a`"));
        assert_eq!((renamed(Some("b")), renamed(None)), (Ok(vec![]), Ok(vec![])));
        let alone = Wish { devices: Some(vec![named("0000:05:00.0", None)]), ..Wish::default() };
        assert!(plan(&PoolTree::default(), &alone).unwrap_err().contains("--cpus"));
    }

    #[test]
    fn device_or_name_that_is_given_twice_is_refused() {
        let of = |devices: &[(&str, Option<&str>)]| {
            let devices = devices.iter().map(|(address, alias)| crate::api::beside::WantedDevice {
                address: address.parse().unwrap(),
                alias: alias.map(str::to_owned),
            });
            Wish::try_from(PoolWish { devices: Some(devices.collect()), ..PoolWish::default() })
        };
        assert!(of(&[("0000:03:00.0", None), ("0000:04:00.0", None)]).is_ok());
        assert!(of(&[("0000:03:00.0", None), ("0000:03:00.0", None)]).unwrap_err().contains("twice"));
        assert!(
            of(&[("0000:03:00.0", Some("a")), ("0000:04:00.0", Some("a"))]).unwrap_err().contains("twice")
        );
        assert!(of(&[("0000:03:00.0", Some("no/name"))]).unwrap_err().contains("no/name"));
    }

    #[test]
    fn first_pool_is_told_at_once_and_needs_both() {
        let none = PoolTree::default();
        let both = wish(Some(&[2, 4]), Some(1 << 30));
        let step = Step::Baseline { cpus: cpus(&[2, 4]), memory_bytes: 1 << 30 };
        assert_eq!(plan(&none, &both), Ok(vec![step]));
        assert!(plan(&none, &wish(Some(&[2]), None)).unwrap_err().contains("--memory"));
        assert!(plan(&none, &wish(None, Some(1 << 30))).unwrap_err().contains("--cpus"));
        assert!(plan(&none, &wish(Some(&[2]), Some(5000))).unwrap_err().contains("pages"));
        assert_eq!(plan(&none, &Wish::default()), Ok(vec![]));
    }

    #[test]
    fn pool_grows_before_it_shrinks_and_keeps_what_instances_have() {
        let steps = plan(&pool(), &wish(Some(&[2, 4, 8]), None)).unwrap();
        let change =
            |change, numbers: &[u32]| Step::Overlay(Intent::PoolCpus { change, cpus: cpus(numbers) });
        assert_eq!(steps, [change(Change::Add, &[8]), change(Change::Remove, &[6])]);
        let busy = plan(&pool(), &wish(Some(&[4, 6]), None)).unwrap_err();
        assert!(busy.contains("CPU 2") && busy.contains("an instance has it"), "{busy}");
        assert_eq!(plan(&pool(), &wish(Some(&[6, 4, 2]), Some(7 << 30))), Ok(vec![]), "it is so already");
    }

    #[test]
    fn memory_goes_back_in_the_pieces_that_it_came_in() {
        let bases = |memory| -> Vec<u64> {
            let steps = plan(&pool(), &wish(None, Some(memory))).unwrap();
            steps
                .iter()
                .map(|step| match step {
                    Step::Overlay(Intent::PoolMemoryRemove { chunk }) => chunk.base,
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        assert_eq!(bases(5 << 30), [4 << 32]);
        assert_eq!(bases(4 << 30), [4 << 32, 3 << 32]);
        let odd = plan(&pool(), &wish(None, Some((6 << 30) + (512 << 20)))).unwrap_err();
        assert!(odd.contains("4096 MiB, 1024 MiB, 2048 MiB"), "{odd}");
    }
}
