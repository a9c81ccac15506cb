//! Devices that machines can be lent, one machine at a time.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tombolo_handover::PciAddress;

/// A device that a machine is lent as a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name in the ledger, and its address in every machine that has it: the one function behind a root port of its own, so
    /// `0000:BUS:00.0`, with the buses numbered from 1.
    pub address: PciAddress,
    /// What it is.
    pub model: DeviceModel,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceModel {
    /// An NVMe disk.
    Nvme {
        /// The file of the host that holds what is on it: a whole number of 512-byte blocks.
        file: PathBuf,
    },
    /// A source of random numbers (virtio-rng).
    Rng,
    /// A network card (virtio-net) to a network of its own, without a way out.
    Net,
}

/// Buses that devices can be on: as many root ports as machines have room for.
const BUS_MAX: u8 = 16;

impl Device {
    /// The number of its bus, from 1.
    pub(super) fn bus(&self) -> u8 {
        self.address.bus
    }
}

/// Reads `0000:01:00.0=nvme:/srv/disk.img`, `0000:02:00.0=rng` or `0000:03:00.0=net`.
impl FromStr for Device {
    type Err = String;

    fn from_str(input: &str) -> Result<Self, String> {
        let expected =
            "expected such as `0000:01:00.0=nvme:/srv/disk.img`, `0000:02:00.0=rng` or `0000:03:00.0=net`";
        let (address, model) =
            input.split_once('=').ok_or_else(|| format!("`{input}` names no device: {expected}"))?;
        let address: PciAddress = address.parse().map_err(|error| format!("{error}"))?;
        let PciAddress { domain, bus, device, function } = address;
        if (domain, device, function) != (0, 0, 0) || !(1..=BUS_MAX).contains(&bus) {
            return Err(format!(
                "no device can be at {address}: each has a bus of its own, 0000:01:00.0 to 0000:{BUS_MAX:02x}:00.0"
            ));
        }
        let model = match model.split_once(':') {
            Some(("nvme", file)) if file.starts_with('/') => DeviceModel::Nvme { file: file.into() },
            Some(("nvme", file)) => return Err(format!("`{file}` is not an absolute path")),
            None if model == "rng" => DeviceModel::Rng,
            None if model == "net" => DeviceModel::Net,
            _ => return Err(format!("`{model}` is no kind of device: {expected}")),
        };
        Ok(Self { address, model })
    }
}

impl fmt::Display for DeviceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nvme { file } => write!(f, "nvme:{}", file.display()),
            Self::Rng => f.write_str("rng"),
            Self::Net => f.write_str("net"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for input in ["0000:01:00.0=nvme:/srv/disk.img", "0000:02:00.0=rng", "0000:10:00.0=net"] {
            let device: Device = input.parse().unwrap();
            assert_eq!(format!("{}={}", device.address, device.model), input);
        }
        for input in [
            "",
            "rng",
            "0000:01:00.0",
            "0000:00:00.0=rng",
            "0000:11:00.0=rng",
            "0000:01:01.0=rng",
            "0001:01:00.0=rng",
            "0000:01:00.0=nvme",
            "0000:01:00.0=nvme:disk.img",
            "0000:01:00.0=rng:x",
            "0000:01:00.0=tape",
        ] {
            assert!(input.parse::<Device>().is_err(), "{input} was accepted");
        }
    }
}
