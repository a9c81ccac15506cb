//! Where the kernel's interface is found, and what a kernel finds inside: what an operator can set.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tombolo_agent::config::{Doorbell, PoolConfig};

use super::record::Record;
use super::{interface, line, lock};
use crate::spawner::PoolFile;

/// Settings of the `multikernel` spawner, as a TOML file says them. All have defaults, which are right for a machine that runs that kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The kernel's file system. Default `/sys/fs/multikernel`.
    pub root: PathBuf,
    /// The device through which consoles of kernels are read and written; empty: they are not recorded, and `kerf console` has them.
    /// Default `/dev/mktty`.
    pub console: PathBuf,
    /// The lock that kerf takes around changes. Default `/var/run/kerf.lock`.
    pub lock: PathBuf,
    /// The kernel to boot where an instance names none.
    pub image: Option<PathBuf>,
    /// How a kernel reaches the pool. Without it kernels have no shared memory.
    pub pool: Option<GuestPool>,
    /// What wakes a kernel, and is woken by it. Without it both find work by their timers.
    pub doorbell: Option<Wake>,
}

/// How a kernel reaches the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestPool {
    /// A file or device inside, from its start.
    Path(PathBuf),
}

/// How host and kernel wake each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wake {
    /// A terminal line inside, which is a Unix socket here that somebody dials.
    Line {
        /// The line's device inside.
        inside: PathBuf,
        /// The socket here; `{id}` becomes the number of the instance.
        socket: String,
    },
    /// This kernel's vsock to those beside it: each kernel dials a port here, this one and its number.
    Vsock {
        /// The first port.
        port: u32,
    },
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root: interface::ROOT.into(),
            console: "/dev/mktty".into(),
            lock: lock::PATH.into(),
            image: None,
            pool: None,
            doorbell: None,
        }
    }
}

impl Settings {
    /// Reads a file of settings.
    ///
    /// # Errors
    /// One line that says which file, and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("could not read the settings {}: {error}", path.display()))?;
        toml::from_str(&text)
            .map_err(|error| format!("the settings {} are not valid: {error}", path.display()))
    }

    /// The device of consoles, where they are recorded.
    pub(crate) fn console_device(&self) -> Option<&Path> {
        Some(self.console.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// What the agent inside is told of the pool.
    pub(super) fn pool_inside(&self, pool: &PoolFile) -> Result<PoolConfig, String> {
        match &self.pool {
            Some(GuestPool::Path(path)) => Ok(PoolConfig { path: path.clone(), len: pool.len }),
            None => Err("the settings do not say how a kernel reaches the pool: set `pool`".into()),
        }
    }

    /// What the agent inside is told of its doorbell.
    pub(super) fn doorbell_inside(&self, record: &Record) -> Option<Doorbell> {
        Some(match self.doorbell.as_ref()? {
            Wake::Line { inside, .. } => Doorbell::Path(inside.clone()),
            Wake::Vsock { port } => Doorbell::Vsock(line::vsock_port(*port, record)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_what_a_file_says_and_defaults_otherwise() {
        let text = r#"
            image = "/boot/vmlinuz-mk"
            pool = { path = "/mnt/shared/pool" }
            doorbell = { line = { inside = "/dev/ttyS0", socket = "/run/x/link.{id}" } }
        "#;
        let settings: Settings = toml::from_str(text).unwrap();
        assert_eq!(settings.root, Path::new("/sys/fs/multikernel"));
        assert_eq!(settings.console_device(), Some(Path::new("/dev/mktty")));
        assert_eq!(settings.pool, Some(GuestPool::Path("/mnt/shared/pool".into())));
        let vsock: Settings = toml::from_str("doorbell = { vsock = { port = 30000 } }").unwrap();
        assert_eq!(vsock.doorbell, Some(Wake::Vsock { port: 30_000 }));
        assert!(toml::from_str::<Settings>("rot = \"/x\"").is_err(), "a misspelt setting is refused");
    }
}
