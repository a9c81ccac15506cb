//! Tests on the **stand-in** for Multikernel Linux: a test double of the kernel's interface that boots User-mode Linux kernels.
//!
//! It has to be in place before a process starts. So a test runs its own program again under it, to run those tests there that need it:
//! [`rerun`] outside, [`here`] inside.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tombolo_control::spawner::MultikernelSettings;

use crate::prerequisites;

/// Environment variable: the stand-in's folder, where a test runs under it.
const FOLDER: &str = "TOMBOLO_STANDIN";
/// What the kernels that it boots share.
const POOL: &str = "pool";
/// What its host tells of PCI functions.
const PCI: &str = "pci";
/// The kernel, as an image that passes for one of this machine.
const IMAGE: &str = "vmlinux";

/// The stand-in that a test runs under.
#[derive(Clone, Debug)]
pub struct StandIn {
    dir: PathBuf,
    /// What the settings that it makes say of the memory that kernels share.
    memory: SharedMemory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SharedMemory {
    /// A file.
    File,
    /// A buffer of the kernel's heap.
    Heap,
    /// None.
    None,
}

/// The stand-in that this process runs under; `None` outside of it, where the test has nothing to do.
pub fn here() -> Option<StandIn> {
    std::env::var_os(FOLDER).map(|dir| StandIn { dir: dir.into(), memory: SharedMemory::File })
}

/// Runs the tests of this program whose names contain `filter` under a stand-in, one at a time. Does nothing in a process that is
/// under one already, or (said loudly) where prerequisites are missing.
///
/// # Panics
/// When they fail, with what they said.
pub fn rerun(filter: &str, options: &[&str]) {
    if here().is_some() {
        return;
    }
    let (Some(program), Some(kernel)) = (prerequisites::stand_in(), prerequisites::kernel_path()) else {
        return;
    };
    let dir = TempDir::with_prefix("tombolo-standin-").unwrap();
    let mut make_image = Command::new(&program);
    make_image.arg("image").arg(kernel).arg(dir.path().join(IMAGE));
    assert!(make_image.status().unwrap().success(), "no image could be made");
    let mut tests = Command::new(&program);
    tests.arg("run").arg("--dir").arg(dir.path()).arg("--share").arg(dir.path().join(POOL)).args(options);
    tests.arg("--").arg(std::env::current_exe().unwrap()).args([filter, "--test-threads", "1"]);
    let output = tests.env(FOLDER, dir.path()).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "the tests under the stand-in failed ({}):\n{said}", output.status);
    assert!(!said.contains("running 0 tests"), "no test is called `{filter}`");
    print!("{said}");
}

impl StandIn {
    /// The same, with settings by which kernels share no memory with the host.
    #[must_use]
    pub fn without_shared_memory(self) -> Self {
        Self { memory: SharedMemory::None, ..self }
    }

    /// The same, with settings by which they share a buffer of the kernel's heap, if it gives one.
    #[must_use]
    pub fn with_heap(self) -> Self {
        Self { memory: SharedMemory::Heap, ..self }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that the kernels it boots share.
    pub fn pool(&self) -> PathBuf {
        self.dir.join(POOL)
    }

    /// How the spawner finds everything here.
    ///
    /// # Panics
    /// When they are no settings.
    pub fn settings(&self) -> MultikernelSettings {
        let path = self.dir.join("multikernel.toml");
        std::fs::write(&path, self.settings_text()).unwrap();
        MultikernelSettings::read(&path).unwrap()
    }

    /// The same as the text of a file.
    pub fn settings_text(&self) -> String {
        format!("lock = \"{}/kerf.lock\"\n{}", self.dir.display(), self.settings_text_with_lock_of_kerf())
    }

    /// The same for those who share the lock of kerf, which is to be in a folder of their own: see [`Self::cover_host`].
    pub fn settings_text_with_lock_of_kerf(&self) -> String {
        let dir = self.dir.display();
        let line = format!("inside = \"/dev/ttyS0\", socket = \"{dir}/link.{{id}}\"");
        let doorbell = format!("doorbell = {{ line = {{ {line} }} }}");
        let link = format!("link = {{ line = {{ {line}, alive = \"{dir}/alive.{{id}}\" }} }}");
        let ways = match self.memory {
            SharedMemory::File => format!("pool = {{ path = \"/dev/mmapper\" }}\n{doorbell}"),
            // These kernels have no physical memory in common: what they map is the buffer itself.
            SharedMemory::Heap => {
                format!("pool = {{ heap = {{ inside = \"/dev/mmapper\" }} }}\n{doorbell}\n{link}")
            }
            SharedMemory::None => link,
        };
        format!("image = \"{dir}/{IMAGE}\"\npci = \"{dir}/{PCI}\"\n{ways}\n")
    }

    /// Makes a PCI function of its host, as sysfs would tell of it: idle, with an IOMMU group and a reset. Returns its folder.
    ///
    /// # Panics
    /// When that cannot be made.
    pub fn function(&self, address: &str) -> PathBuf {
        let pci = self.dir.join(PCI);
        let (folder, group) = (pci.join("devices").join(address), pci.join("groups/7"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(group.join("devices").join(address)).unwrap();
        std::fs::write(folder.join("class"), "0x020000\n").unwrap();
        std::fs::write(folder.join("reset"), "").unwrap();
        std::os::unix::fs::symlink(group, folder.join("iommu_group")).unwrap();
        folder
    }

    /// Covers the folders of the host in which kerf keeps its lock and what it notes, for this process and all that it starts: neither meets
    /// anybody outside of the stand-in.
    ///
    /// # Panics
    /// When they cannot be covered.
    pub fn cover_host(&self) {
        for folder in ["/run", "/var/lib"] {
            let flags = rustix::mount::MountFlags::NOSUID;
            rustix::mount::mount("tombolo-tests", folder, "tmpfs", flags, None).unwrap();
        }
    }

    /// The kernel that can be loaded here.
    pub fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// The instances that its kernel has, whoever made them.
    ///
    /// # Panics
    /// When it does not tell.
    pub fn instances(&self) -> Vec<String> {
        let entries = std::fs::read_dir("/sys/fs/multikernel/instances").unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// Its transactions, each with its status and with the mark of who made it, the oldest first.
    ///
    /// # Panics
    /// When it does not tell.
    pub fn transactions(&self) -> Vec<(String, String, String)> {
        let overlays = Path::new("/sys/fs/multikernel/overlays");
        let read = |name: &str, file| {
            let text = std::fs::read_to_string(overlays.join(name).join(file)).unwrap_or_default();
            text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
        };
        let entries = std::fs::read_dir(overlays).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with("tx_"));
        names.sort_by_key(|name| name["tx_".len()..].parse::<u64>().unwrap());
        names
            .into_iter()
            .map(|name| (name.clone(), read(&name, "status"), read(&name, "resources")))
            .collect()
    }

    /// Has it do something: `freeze NAME`, `quirk on NAME` and the like. Gives what it says.
    ///
    /// # Panics
    /// When it does not.
    pub fn control(&self, words: &[&str]) -> String {
        let program = prerequisites::static_program("tombolo-mksim").expect("it runs");
        let output = Command::new(program).arg("ctl").arg("--dir").arg(&self.dir).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "ctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// How many writes to the line of `name` have found its ring full.
    ///
    /// # Panics
    /// When it does not tell.
    pub fn refused(&self, name: &str) -> u64 {
        self.control(&["refused", name]).trim().parse().unwrap()
    }

    /// What its kernel log says.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("dmesg")).unwrap_or_default()
    }
}
