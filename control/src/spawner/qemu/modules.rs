//! Kernel modules and what they need, in the order in which they must be loaded.
//!
//! What a module needs is written in the module itself (`depends=` in its section `.modinfo`), so that a kernel that was only
//! unpacked, without an index by depmod(8), serves as well as an installed one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// All modules of one kernel.
#[derive(Debug)]
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    folder: PathBuf,
}

impl Modules {
    /// Looks at the folder of a kernel's modules (`/lib/modules/VERSION`).
    pub(super) fn in_folder(folder: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        collect(&folder.join("kernel"), &mut files)?;
        let builtin = match fs::read_to_string(folder.join("modules.builtin")) {
            Ok(text) => text.lines().filter_map(|line| name_of(Path::new(line))).collect(),
            Err(_) => BTreeSet::new(),
        };
        Ok(Self { files, builtin, folder: folder.to_owned() })
    }

    /// The files of these modules and of all that they need, each after what it needs. What is part of the kernel itself has none.
    /// The error is for people.
    pub(super) fn in_load_order(&self, names: &[String]) -> Result<Vec<PathBuf>, String> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.add(&canonical(name), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<PathBuf>) -> Result<(), String> {
        if !seen.insert(name.to_owned()) || self.builtin.contains(name) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else {
            return Err(format!("there is no module `{name}` in {}", self.folder.display()));
        };
        if file.extension().is_none_or(|extension| extension != "ko") {
            return Err(format!("the module {} is compressed: unpack it beside itself", file.display()));
        }
        let bytes = fs::read(file)
            .map_err(|error| format!("the module {} cannot be read: {error}", file.display()))?;
        for needed in needs(&bytes) {
            self.add(&canonical(&needed), seen, order)?;
        }
        order.push(file.clone());
        Ok(())
    }
}

/// What a module says that it needs.
fn needs(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else { return Vec::new() };
    let rest = &module[at + MARK.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&rest[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = name_of(&path) {
            // A plain file is worth more than a compressed one.
            if path.extension().is_some_and(|extension| extension == "ko") || !files.contains_key(&name) {
                files.insert(name, path);
            }
        }
    }
    Ok(())
}

/// `virtio_pci` for `.../virtio_pci.ko` and `.../virtio_pci.ko.xz`.
fn name_of(path: &Path) -> Option<String> {
    let (name, packed) = path.file_name()?.to_str()?.split_once(".ko")?;
    ["", ".xz", ".gz", ".zst"].contains(&packed).then(|| canonical(name))
}

/// `-` and `_` mean the same in names of modules.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kernel/drivers/x")).unwrap();
        for (name, needs) in modules {
            let content = format!("\x7fELF\0license=GPL\0depends={needs}\0retpoline=Y\0");
            fs::write(dir.path().join("kernel/drivers/x").join(name), content).unwrap();
        }
        fs::write(dir.path().join("modules.builtin"), "kernel/drivers/misc/pvpanic.ko\n").unwrap();
        dir
    }

    fn order(dir: &Path, names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let files = Modules::in_folder(dir).unwrap().in_load_order(&names)?;
        Ok(files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn each_comes_after_what_it_needs_and_once() {
        let dir = kernel(&[
            ("vsock.ko", ""),
            ("vmw_common.ko", "vsock"),
            ("vsock_loopback.ko", "vmw-common,vsock"),
            ("pvpanic-pci.ko", "pvpanic"),
            ("circle_a.ko", "circle_b"),
            ("circle_b.ko", "circle_a"),
        ]);
        let wanted = ["vsock_loopback", "vsock", "pvpanic_pci"];
        let expected = ["vsock.ko", "vmw_common.ko", "vsock_loopback.ko", "pvpanic-pci.ko"];
        assert_eq!(order(dir.path(), &wanted).unwrap(), expected);
        assert_eq!(order(dir.path(), &["pvpanic"]).unwrap(), [""; 0]);
        assert_eq!(order(dir.path(), &["circle_a"]).unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let dir = kernel(&[("packed.ko.xz", ""), ("lacking.ko", "nothing")]);
        assert!(order(dir.path(), &["lacking"]).unwrap_err().contains("`nothing`"));
        assert!(order(dir.path(), &["packed"]).unwrap_err().contains("packed.ko.xz is compressed"));
        assert!(Modules::in_folder(&dir.path().join("nowhere")).is_err());
    }
}
