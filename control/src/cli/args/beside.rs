//! The arguments of `tombolo multikernel`, and lists of CPUs and of devices.

use std::collections::BTreeSet;
use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};

use super::SpecArgs;
use super::handover::parse_size;
use crate::api::beside::WantedDevice;
use crate::core::InstanceName;

#[derive(Clone, Debug, Subcommand)]
pub enum BesideCommand {
    /// Show what the kernel has for kernels beside it, and who has it: instances of other programs (kerf) as well
    Show {
        /// Show the kernel's transactions too
        #[arg(long)]
        transactions: bool,
        /// Call every kernel that is said to run: whether it answers, and whether kerf's agent listens in it (a second at most)
        #[arg(long)]
        probe: bool,
    },
    /// Mount the kernel's interface, unless it is: nothing else here does that
    Mount,
    /// Set CPUs, memory and PCI functions aside for other kernels, or give them back to the host
    Pool(PoolChangeArgs),
}

#[derive(Clone, Debug, Args)]
pub struct AdoptArgs {
    /// The instance, by its name in the kernel
    pub name: InstanceName,
    /// Take it over even if it runs: it goes on without an agent and not watched, and can be neither stopped in good order nor
    /// started until `tombolo kill` has ended it by force. Also one that another `tombolod` made, which must not run any more
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub spec: SpecArgs,
}

#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("wish").required(true).multiple(true).args(["cpus", "memory", "devices"]))]
pub struct PoolChangeArgs {
    /// All CPUs that the pool is to have, by their physical numbers (`apicid` in /proc/cpuinfo) such as 4-7,12; or by the
    /// logical ones of CPUs that the host has now, such as cpu2,cpu3; or `none`
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// All memory that the pool is to have, such as 8G, or 0; it goes back in the pieces that it came in
    #[arg(long, value_name = "SIZE", value_parser = parse_size_or_none)]
    pub memory: Option<u64>,
    /// All PCI functions that the pool is to have, such as 0000:03:00.0,0000:04:00.0=uplink, where `uplink` is what kernels call what they find
    /// in it (a network interface, say); or `none`. Each must be whole, in use by nothing, and without a driver on this host
    #[arg(long, value_name = "LIST")]
    pub devices: Option<DeviceList>,
    /// Also functions without an IOMMU: a kernel that has one can write to all memory of this machine
    #[arg(long, requires = "devices")]
    pub allow_no_iommu: bool,
    /// Also functions that cannot be reset: a kernel gets one as the last one left it
    #[arg(long, requires = "devices")]
    pub allow_no_reset: bool,
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_size_or_none(input: &str) -> Result<u64, String> {
    if matches!(input, "0" | "none") { Ok(0) } else { parse_size(input) }
}

/// PCI functions, with what they are to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceList(pub(crate) Vec<WantedDevice>);

impl FromStr for DeviceList {
    type Err = String;

    fn from_str(input: &str) -> Result<Self, String> {
        if input == "none" {
            return Ok(Self(Vec::new()));
        }
        let one = |word: &str| {
            let (address, alias) = match word.split_once('=') {
                Some((address, alias)) => (address, Some(alias.to_owned())),
                None => (word, None),
            };
            let address = address.parse().map_err(|error| format!("{error}"))?;
            Ok(WantedDevice { address, alias })
        };
        input.split(',').map(one).collect::<Result<_, String>>().map(Self)
    }
}

/// CPUs, by their physical or logical numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<Named>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Physical(u32),
    Logical(u32),
}

/// More than any machine has; a range that was mistyped is not counted out.
const CPUS_MAX: u32 = 8192;

impl FromStr for CpuList {
    type Err = String;

    fn from_str(input: &str) -> Result<Self, String> {
        if input == "none" {
            return Ok(Self(Vec::new()));
        }
        let bad = |part: &str| format!("`{part}` names no CPU: write 4, 4-7, cpu2 or none");
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < CPUS_MAX);
        let mut named = Vec::new();
        for part in input.split(',') {
            let (name, digits): (fn(u32) -> Named, _) = match part.strip_prefix("cpu") {
                Some(digits) => (Named::Logical, digits),
                None => (Named::Physical, part),
            };
            let (first, last) = match digits.split_once('-') {
                Some((first, last)) => (number(first), number(last.trim_start_matches("cpu"))),
                None => (number(digits), number(digits)),
            };
            let (Some(first), Some(last)) = (first, last) else { return Err(bad(part)) };
            if first > last {
                return Err(format!("`{part}` ends before it begins"));
            }
            named.extend((first..=last).map(name));
        }
        Ok(Self(named))
    }
}

impl CpuList {
    /// Whether it takes a table to resolve it.
    pub(in crate::cli) fn has_logical(&self) -> bool {
        self.0.iter().any(|named| matches!(named, Named::Logical(_)))
    }

    /// The physical numbers, each once. `cpuinfo`: the text of /proc/cpuinfo.
    pub(in crate::cli) fn resolve(&self, cpuinfo: &str) -> Result<Vec<u32>, String> {
        let physical = |named: &Named| match named {
            Named::Physical(number) => Ok(*number),
            Named::Logical(number) => physical_of(*number, cpuinfo).ok_or_else(|| {
                format!("the host has no cpu{number} now, or does not tell its physical number")
            }),
        };
        let numbers: BTreeSet<u32> = self.0.iter().map(physical).collect::<Result<_, _>>()?;
        Ok(numbers.into_iter().collect())
    }
}

/// The APIC id of a CPU of /proc/cpuinfo.
fn physical_of(logical: u32, cpuinfo: &str) -> Option<u32> {
    let field = |line: &str, name: &str| -> Option<u32> {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().parse().ok())?
    };
    let blocks = cpuinfo.split("\n\n");
    let block = blocks
        .into_iter()
        .find(|block| block.lines().find_map(|line| field(line, "processor")) == Some(logical))?;
    block.lines().find_map(|line| field(line, "apicid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\napicid\t\t: 0\ninitial apicid\t: 9\n\nprocessor\t: 1\napicid\t\t: 2\n\nprocessor\t: 2\napicid\t\t: 4\n";

    fn resolved(input: &str) -> Result<Vec<u32>, String> {
        input.parse::<CpuList>()?.resolve(CPUINFO)
    }

    #[test]
    fn physical_and_logical_numbers_are_never_confused() {
        assert_eq!(resolved("4-6,1"), Ok(vec![1, 4, 5, 6]));
        assert_eq!(resolved("cpu1,cpu2"), Ok(vec![2, 4]));
        assert_eq!(resolved("cpu0-2,4"), Ok(vec![0, 2, 4]));
        assert_eq!(resolved("cpu1-cpu2"), Ok(vec![2, 4]));
        assert_eq!(resolved("none"), Ok(vec![]));
        assert!(resolved("cpu7").unwrap_err().contains("cpu7"));
    }

    #[test]
    fn devices_are_named_by_address_and_by_what_kernels_call_them() {
        let list = |input: &str| input.parse::<DeviceList>().map(|list| list.0);
        let device = |address: &str, alias: Option<&str>| WantedDevice {
            address: address.parse().unwrap(),
            alias: alias.map(str::to_owned),
        };
        assert_eq!(
            list("03:00.0,0000:04:00.1=uplink"),
            Ok(vec![device("0000:03:00.0", None), device("0000:04:00.1", Some("uplink"))])
        );
        assert_eq!(list("none"), Ok(vec![]));
        for bad in ["", ",", "eth0", "03:00", "0000:03:00.8", "0000:03:20.0", "0000:03:00.0,none"] {
            assert!(list(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn list_that_names_no_cpu_is_refused() {
        for bad in ["", ",", "4-", "-4", "7-4", "x", "cpu", "4 5", "0-99999999"] {
            assert!(resolved(bad).is_err(), "{bad:?}");
        }
    }
}
