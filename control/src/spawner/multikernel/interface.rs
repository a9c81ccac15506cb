//! The kernel's interface, and nothing of what is done with it: a file system to read, list and write, and two system calls.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::calls::{self, Command};
use super::clock::Clock;
use super::ids::{InstanceId, InstanceName};
use super::regions::{self, Map};
use super::tree::{InstanceTree, PoolTree, TreeError};

/// Where it is mounted.
pub(crate) const ROOT: &str = "/sys/fs/multikernel";

/// Longest file that is read from there, in bytes: the limit that the kernel sets itself for trees, and some.
const READ_BYTES_MAX: u64 = 2 << 20;

/// The kernel's interface, or a model of it, and the time that passes there. A transaction is never taken back (`rmdir`): the kernel would undo
/// also what never ran.
pub(super) trait Interface: Clock {
    /// The content of a file, by its path relative to the root.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;
    /// The names in a folder.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// A file of the host's own, by its absolute path.
    fn read_of_host(&self, path: &str) -> io::Result<String>;
    /// Writes it with one write(2) at offset 0; less than all of it is an error.
    fn write_once(&self, path: &str, content: &[u8]) -> io::Result<()>;
    /// `kexec_file_load(2)`: an image goes into an instance that has none.
    fn load(
        &self,
        id: InstanceId,
        image: BorrowedFd<'_>,
        initrd: BorrowedFd<'_>,
        line: &str,
    ) -> io::Result<()>;
    /// `kexec_file_load(2)`: the image leaves the instance, even if it runs.
    fn unload(&self, id: InstanceId) -> io::Result<()>;
    /// `reboot(2)`: starts or ends an instance.
    fn reboot(&self, command: Command, id: InstanceId) -> io::Result<()>;
}

/// The one that is mounted.
#[derive(Clone, Debug)]
pub(super) struct Mounted {
    root: PathBuf,
}

impl Mounted {
    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is there: the folder exists on every kernel that has the file system, even before it is mounted.
    pub(super) fn is_mounted(&self) -> bool {
        self.root.join("overlays/new").exists()
    }
}

impl Clock for Mounted {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl Interface for Mounted {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut file = File::open(self.root.join(path))?.take(READ_BYTES_MAX + 1);
        file.read_to_end(&mut content)?;
        if content.len() as u64 > READ_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no end"));
        }
        Ok(content)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.root.join(path))?;
        // A name that is not UTF-8 is of nobody that we know; it is shown, and matches nothing.
        entries.map(|entry| Ok(String::from_utf8_lossy(entry?.file_name().as_bytes()).into_owned())).collect()
    }

    fn read_of_host(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(path)
    }

    fn write_once(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.root.join(path))?;
        match rustix::io::write(&file, content)? {
            written if written == content.len() => Ok(()),
            written => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("it took {written} of {} bytes", content.len()),
            )),
        }
    }

    fn load(
        &self,
        id: InstanceId,
        image: BorrowedFd<'_>,
        initrd: BorrowedFd<'_>,
        line: &str,
    ) -> io::Result<()> {
        calls::load(id, image, Some(initrd), line)
    }

    fn unload(&self, id: InstanceId) -> io::Result<()> {
        calls::unload(id)
    }

    fn reboot(&self, command: Command, id: InstanceId) -> io::Result<()> {
        calls::reboot(command, id)
    }
}

/// How an instance is, as the kernel has it. None of it says that a kernel runs: `active` is one whose CPU was released into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstanceStatus {
    /// It has its resources, and no image.
    Ready,
    /// It has an image, and does not run: it never did, or it halted, or it panicked.
    Loaded,
    /// It was started, and has told of no end.
    Active,
    /// The kernel says that something failed.
    Failed,
    /// It has nothing.
    Empty,
}

/// What went wrong in asking the kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// A file could not be read.
    #[error("could not read {path}: {source}")]
    Read { path: String, source: io::Error },
    /// A tree makes no sense.
    #[error("{path} cannot be understood: {source}")]
    Tree { path: String, source: TreeError },
    /// It is in no folder of the kernel's, or in none that can be seen: nothing follows from that.
    #[error(
        "{path} is not there, and yet it should be: another file system may lie over the kernel's, or it was made just now"
    )]
    Contradiction { path: String },
    /// A status that no kernel known here has.
    #[error("{path} says `{found}`, which is no status known here")]
    Status { path: String, found: String },
}

/// What the pool has.
pub(super) fn pool(interface: &impl Interface) -> Result<PoolTree, AskError> {
    let path = "device_tree".to_owned();
    let blob = interface.read(&path);
    let blob = blob.map_err(|source| AskError::Read { path: path.clone(), source })?;
    PoolTree::parse(&blob).map_err(|source| AskError::Tree { path, source })
}

/// What the pool has, which is nothing where none was made yet.
pub(super) fn pool_or_none(interface: &impl Interface) -> Result<PoolTree, AskError> {
    match pool(interface) {
        // Before there is one the kernel has no tree to give; nor has a file system that was unmounted.
        Err(AskError::Read { source, .. }) if is_no_pool(&source) => {
            instances(interface).map(|_| PoolTree::default())
        }
        Err(AskError::Tree { .. }) if interface.read("device_tree").is_ok_and(|blob| blob.is_empty()) => {
            Ok(PoolTree::default())
        }
        found => found,
    }
}

fn is_no_pool(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENODATA))
}

/// Whose the memory of the pool is.
pub(super) fn map(interface: &impl Interface) -> Result<Map, AskError> {
    let path = "/proc/iomem".to_owned();
    let text = interface.read_of_host(&path).map_err(|source| AskError::Read { path, source })?;
    Ok(Map::parse(&text))
}

/// In what memory of a running kernel comes and goes, in bytes.
pub(super) fn step_bytes(interface: &impl Interface, pool: &PoolTree) -> u64 {
    let block = interface.read_of_host("/sys/devices/system/memory/block_size_bytes").ok();
    regions::step_bytes(pool.granule_bytes, block.as_deref())
}

/// The names of all instances, whoever made them.
pub(super) fn instances(interface: &impl Interface) -> Result<Vec<String>, AskError> {
    let path = "instances".to_owned();
    interface.list(&path).map_err(|source| AskError::Read { path, source })
}

/// What an instance has; `None` if there is none of that name.
pub(super) fn instance(
    interface: &impl Interface,
    name: &InstanceName,
) -> Result<Option<InstanceTree>, AskError> {
    let Some((path, blob)) = of_instance(interface, name, "device_tree")? else { return Ok(None) };
    InstanceTree::parse(&blob, name.as_str()).map(Some).map_err(|source| AskError::Tree { path, source })
}

/// A file of an instance, with its path; `None` if there is none of that name, which is what the kernel says and not only what it does not.
fn of_instance(
    interface: &impl Interface,
    name: &InstanceName,
    file: &str,
) -> Result<Option<(String, Vec<u8>)>, AskError> {
    let path = format!("instances/{name}/{file}");
    match interface.read(&path) {
        Ok(content) => Ok(Some((path, content))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A file system that was unmounted has no such file either, and the kernel runs.
            match instances(interface)?.iter().any(|other| other == name.as_str()) {
                true => Err(AskError::Contradiction { path }),
                false => Ok(None),
            }
        }
        Err(source) => Err(AskError::Read { path, source }),
    }
}

/// How an instance is; `None` if there is none of that name.
pub(super) fn status(
    interface: &impl Interface,
    name: &InstanceName,
) -> Result<Option<InstanceStatus>, AskError> {
    let Some((path, text)) = of_instance(interface, name, "status")? else { return Ok(None) };
    match text.trim_ascii() {
        b"ready" => Ok(Some(InstanceStatus::Ready)),
        b"loaded" => Ok(Some(InstanceStatus::Loaded)),
        b"active" => Ok(Some(InstanceStatus::Active)),
        b"failed" => Ok(Some(InstanceStatus::Failed)),
        b"empty" => Ok(Some(InstanceStatus::Empty)),
        other => Err(AskError::Status { path, found: String::from_utf8_lossy(other).into_owned() }),
    }
}
