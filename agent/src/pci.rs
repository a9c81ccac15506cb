//! Shared memory that is the memory of a PCI function, as emulated machines give it to their kernels (ivshmem).
//!
//! Such a path is written `pci:VENDOR:DEVICE`, four hexadecimal digits each. The kernel itself has no driver for it and needs none: sysfs lets
//! a privileged program enable the function and map its third memory region, `resource2` (Documentation/PCI/sysfs-pci.rst in
//! Linux's source), whose length is a power of two, as PCI has it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the kernel lists its PCI functions.
const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// The region that is the shared memory; of the two before it, one has registers and one is for interrupts.
const REGION: &str = "resource2";

/// What kind of PCI function: its vendor and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PciId {
    vendor: u16,
    device: u16,
}

impl PciId {
    /// What a pool's path says, if it names a PCI function rather than a file.
    pub(crate) fn of_path(path: &Path) -> Option<Result<Self, String>> {
        let text = path.to_str()?.strip_prefix("pci:")?;
        Some(text.parse())
    }
}

impl FromStr for PciId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            let plain = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
        };
        let ids = text.split_once(':').and_then(|(vendor, device)| Some((number(vendor)?, number(device)?)));
        ids.map(|(vendor, device)| Self { vendor, device }).ok_or_else(|| {
            format!(
                "`pci:{text}` names no PCI function: write pci:VENDOR:DEVICE, four hexadecimal digits each"
            )
        })
    }
}

/// The file to map for a pool of `len` bytes at `path`: `path` itself, or the memory of the PCI function that it names, which is enabled.
///
/// # Errors
/// If there is no such function, or more than one, or its memory is too small, or it cannot be enabled.
pub(crate) fn file_to_map(path: &Path, len: u64) -> io::Result<PathBuf> {
    match PciId::of_path(path) {
        None => Ok(path.to_owned()),
        Some(id) => memory_of(id.map_err(io::Error::other)?, len, Path::new(FUNCTIONS)),
    }
}

fn memory_of(id: PciId, len: u64, functions: &Path) -> io::Result<PathBuf> {
    let PciId { vendor, device } = id;
    let failed = |what: String| {
        io::Error::other(format!("PCI function {vendor:04x}:{device:04x} in {}: {what}", functions.display()))
    };
    let entries = fs::read_dir(functions).map_err(|error| failed(error.to_string()))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is(path, id)).collect();
    let Some(function) = found.pop() else {
        return Err(failed("there is none; its machine must be given one (QEMU: ivshmem-plain)".into()));
    };
    if !found.is_empty() {
        return Err(failed(format!("there are {}, and nothing tells which is the pool", found.len() + 1)));
    }
    let memory = function.join(REGION);
    let have = fs::metadata(&memory).map_err(|error| failed(format!("{}: {error}", memory.display())))?.len();
    if have < len {
        return Err(failed(format!("its memory has {have} bytes, the pool {len}")));
    }
    fs::write(function.join("enable"), "1").map_err(|error| failed(format!("enabling it: {error}")))?;
    Ok(memory)
}

fn is(function: &Path, id: PciId) -> bool {
    let number = |name: &str| {
        let text = fs::read_to_string(function.join(name)).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    number("vendor") == Some(id.vendor) && number("device") == Some(id.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IVSHMEM: PciId = PciId { vendor: 0x1af4, device: 0x1110 };

    fn add(functions: &Path, name: &str, vendor: &str, device: &str) {
        let function = functions.join(name);
        fs::create_dir(&function).unwrap();
        for (name, content) in [("vendor", vendor), ("device", device), ("enable", "0")] {
            fs::write(function.join(name), format!("{content}\n")).unwrap();
        }
        fs::write(function.join(REGION), [0; 8192]).unwrap();
    }

    #[test]
    fn a_path_names_a_function_or_a_file() {
        assert_eq!(PciId::of_path(Path::new("pci:1af4:1110")), Some(Ok(IVSHMEM)));
        assert_eq!(PciId::of_path(Path::new("/dev/mmapper")), None);
        assert_eq!(file_to_map(Path::new("/dev/mmapper"), 1).unwrap(), Path::new("/dev/mmapper"));
        for wrong in ["pci:", "pci:1af4", "pci:1af4:11100", "pci:+af4:1110", "pci:1af4:1110:0", "pci:é:1110"]
        {
            assert!(matches!(PciId::of_path(Path::new(wrong)), Some(Err(_))), "{wrong}");
            assert!(file_to_map(Path::new(wrong), 1).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_one_function_is_found_and_enabled() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "0000:00:01.0", "0x8086", "0x1110");
        add(dir.path(), "0000:00:02.0", "0x1af4", "0x1110");
        add(dir.path(), "0000:00:03.0", "nonsense", "");
        let function = dir.path().join("0000:00:02.0");
        assert_eq!(memory_of(IVSHMEM, 8192, dir.path()).unwrap(), function.join(REGION));
        assert_eq!(fs::read_to_string(function.join("enable")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("0000:00:01.0/enable")).unwrap(), "0\n");
    }

    #[test]
    fn what_cannot_be_the_pool_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |len| memory_of(IVSHMEM, len, dir.path()).unwrap_err().to_string();
        assert!(refused(1).contains("there is none"));
        add(dir.path(), "a", "0x1af4", "0x1110");
        assert!(refused(8193).contains("8192 bytes, the pool 8193"));
        add(dir.path(), "b", "0x1af4", "0x1110");
        assert!(refused(1).contains("there are 2"));
        let nowhere = dir.path().join("nowhere");
        assert!(memory_of(IVSHMEM, 1, &nowhere).unwrap_err().to_string().contains("1af4:1110"));
    }
}
