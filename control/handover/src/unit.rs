//! What can be handed over, and what must be known of it to choose well.
//!
//! Most units are discrete: a CPU, a PCI function, a way of a last-level cache. Memory comes in two shapes, and a spawner has
//! one of them:
//!
//! - **ranges** of physical memory, where a kernel is given addresses (Multikernel Linux). A free range can be cut; a region
//!   that a kernel holds leaves whole or not at all, because that is all the kernel can do;
//! - **lots**, where a kernel is given an amount and nobody says which bytes (virtio-mem, a balloon). A lot is so many granules
//!   that share an owner; lots of one owner are interchangeable, can be cut anywhere, and flow together when they rest.
//!
//! Either is a unit with a size in granules, so ownership, epochs and conservation are the same for all.

use std::fmt;
use std::str::FromStr;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Names a unit for as long as it is not cut or joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum UnitId {
    /// A physical CPU, by the id its platform gives it (APIC id, MPIDR affinity, hart id).
    Cpu(u32),
    /// A range of physical memory, by the number of its first granule.
    Range(u64),
    /// A lot of memory, by a number that is never reused.
    Lot(u64),
    /// A PCI function.
    Device(PciAddress),
    /// A way of a last-level cache.
    LlcWay {
        /// Which cache.
        cache: u32,
        /// Which way of it.
        way: u8,
    },
}

/// What kind of thing a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// CPUs, counted in CPUs.
    Cpu,
    /// Memory, counted in granules.
    Memory,
    /// PCI functions, counted in functions.
    Device,
    /// Cache ways, counted in ways.
    LlcWay,
}

/// A unit and what does not change when its owner does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
pub struct Unit {
    /// Its name.
    pub id: UnitId,
    /// The NUMA node it is on, where that is known.
    pub node: Option<u32>,
    /// What else is known of it.
    pub traits: Traits,
}

/// What is known of a unit beyond its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Traits {
    /// Of a CPU.
    Cpu {
        /// The core it is a thread of. Threads with the same core number are SMT siblings.
        core: u32,
        /// Whether the machine booted on it. Such a CPU never leaves the host.
        boot: bool,
    },
    /// Of memory.
    Memory {
        /// How much it is. Never 0.
        granules: u64,
    },
    /// Of a PCI function.
    Device {
        /// Functions of one group cannot be held apart by the IOMMU.
        iommu_group: Option<u32>,
        /// Whether it can be reset between owners. One that cannot may carry one owner's secrets or DMA to the next.
        can_reset: bool,
    },
    /// Of a cache way.
    LlcWay,
}

impl Unit {
    /// A CPU.
    pub fn cpu(id: u32, core: u32, node: Option<u32>) -> Self {
        Self { id: UnitId::Cpu(id), node, traits: Traits::Cpu { core, boot: false } }
    }

    /// The CPU that the machine booted on.
    pub fn boot_cpu(id: u32, core: u32, node: Option<u32>) -> Self {
        Self { id: UnitId::Cpu(id), node, traits: Traits::Cpu { core, boot: true } }
    }

    /// A range of physical memory.
    pub fn range(first_granule: u64, granules: u64, node: Option<u32>) -> Self {
        Self { id: UnitId::Range(first_granule), node, traits: Traits::Memory { granules } }
    }

    /// A lot of memory.
    pub fn lot(number: u64, granules: u64, node: Option<u32>) -> Self {
        Self { id: UnitId::Lot(number), node, traits: Traits::Memory { granules } }
    }

    /// A PCI function.
    pub fn device(address: PciAddress, iommu_group: Option<u32>, can_reset: bool) -> Self {
        Self { id: UnitId::Device(address), node: None, traits: Traits::Device { iommu_group, can_reset } }
    }

    /// How much of its kind it is: granules of memory, and 1 of anything else.
    pub fn size(&self) -> u64 {
        match self.traits {
            Traits::Memory { granules } => granules,
            Traits::Cpu { .. } | Traits::Device { .. } | Traits::LlcWay => 1,
        }
    }
}

impl UnitId {
    /// Its kind.
    pub fn kind(self) -> Kind {
        match self {
            Self::Cpu(_) => Kind::Cpu,
            Self::Range(_) | Self::Lot(_) => Kind::Memory,
            Self::Device(_) => Kind::Device,
            Self::LlcWay { .. } => Kind::LlcWay,
        }
    }
}

impl Kind {
    /// All kinds, in the order in which they are listed for people.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Device, Self::LlcWay];
}

/// The address of a PCI function: domain, bus, device, function; printed `0000:01:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Schema)]
pub struct PciAddress {
    /// Segment group.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

/// A string is not the address of a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a PCI address: expected `0000:01:00.0` (domain:bus:device.function, hexadecimal)")]
pub struct ParsePciAddressError {
    input: String,
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    /// Reads `0000:01:00.0`, or `01:00.0` in domain 0.
    fn from_str(input: &str) -> Result<Self, Self::Err> {
        parse_pci(input).ok_or_else(|| ParsePciAddressError { input: input.chars().take(64).collect() })
    }
}

fn parse_pci(input: &str) -> Option<PciAddress> {
    fn hex(text: &str, digits_max: usize) -> Option<u16> {
        let legal = (1..=digits_max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        legal.then(|| u16::from_str_radix(text, 16).ok()).flatten()
    }
    let (rest, function) = input.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let (device, function) = (hex(device, 2)?, hex(function, 1)?);
    let address = PciAddress {
        domain: hex(domain, 4)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(device).ok()?,
        function: u8::try_from(function).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl Serialize for PciAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.domain, self.bus, self.device, self.function).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for PciAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom);
        }
        let (domain, bus, device, function) = Deserialize::deserialize(deserializer)?;
        if device >= 32 || function >= 8 {
            return Err(serde::de::Error::custom("PCI device or function number out of range"));
        }
        Ok(Self { domain, bus, device, function })
    }
}

/// A string does not name a unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{input}` does not name a unit: expected such as `cpu 3`, `memory lot 7`, `memory range 4096` or `device 0000:01:00.0`"
)]
pub struct ParseUnitError {
    input: String,
}

/// Reads what [`Display`](fmt::Display) prints.
impl FromStr for UnitId {
    type Err = ParseUnitError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = input.split_ascii_whitespace().collect();
        let found = match words[..] {
            ["cpu", id] => id.parse().ok().map(Self::Cpu),
            ["memory", "range", first] => first.parse().ok().map(Self::Range),
            ["memory", "lot", number] => number.parse().ok().map(Self::Lot),
            ["device", address] => address.parse().ok().map(Self::Device),
            ["cache", cache, "way", way] => {
                cache.parse().ok().and_then(|cache| way.parse().ok().map(|way| Self::LlcWay { cache, way }))
            }
            _ => None,
        };
        found.ok_or_else(|| ParseUnitError { input: input.chars().take(64).collect() })
    }
}

/// A short name, unique among units, fit for a key of a table.
impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(id) => write!(f, "cpu {id}"),
            Self::Range(first) => write!(f, "memory range {first}"),
            Self::Lot(number) => write!(f, "memory lot {number}"),
            Self::Device(address) => write!(f, "device {address}"),
            Self::LlcWay { cache, way } => write!(f, "cache {cache} way {way}"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpu => "CPUs",
            Self::Memory => "granules of memory",
            Self::Device => "devices",
            Self::LlcWay => "cache ways",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_read_and_printed() {
        let address: PciAddress = "0000:0a:1f.7".parse().unwrap();
        assert_eq!(address, PciAddress { domain: 0, bus: 10, device: 31, function: 7 });
        assert_eq!(address.to_string(), "0000:0a:1f.7");
        assert_eq!("0a:1f.7".parse(), Ok(address));
        let json = serde_json::to_string(&UnitId::Device(address)).unwrap();
        assert_eq!(json, r#"{"device":"0000:0a:1f.7"}"#);
        assert_eq!(serde_json::from_str::<UnitId>(&json).unwrap(), UnitId::Device(address));
    }

    #[test]
    fn units_are_read_as_they_are_printed() {
        let device = UnitId::Device("0000:0a:1f.7".parse().unwrap());
        let way = UnitId::LlcWay { cache: 1, way: 2 };
        for unit in [UnitId::Cpu(3), UnitId::Range(4096), UnitId::Lot(7), device, way] {
            assert_eq!(unit.to_string().parse(), Ok(unit));
        }
        for input in ["", "cpu", "cpu x", "lot 7", "memory lot -1", "device 1", "cpu 1 2"] {
            assert!(input.parse::<UnitId>().is_err(), "{input} was accepted");
        }
    }

    #[test]
    fn what_is_no_pci_address_is_refused() {
        for input in [
            "",
            "1",
            "01:00",
            "01:20.0",
            "01:00.8",
            "x1:00.0",
            "00000:01:00.0",
            "+1:00.0",
            "01:00.0 ",
            "a:b:c:d.0",
        ] {
            assert!(input.parse::<PciAddress>().is_err(), "{input} was accepted");
        }
    }
}
