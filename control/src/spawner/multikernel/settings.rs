//! Where the kernel's interface is found, and what a kernel finds inside: what an operator can set.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tombolo_agent::config::{Doorbell, PacedLine, PoolConfig};
use tombolo_transport::Port;

use super::ids::InstanceId;
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
    /// How a kernel reaches the pool. Without it kernels have no shared memory, and everything goes over [`Settings::link`].
    pub pool: Option<GuestPool>,
    /// What wakes a kernel, and is woken by it. Without it both find work by their timers.
    pub doorbell: Option<Wake>,
    /// What carries everything to and from a kernel without shared memory. Default: the vsock, port 700.
    pub link: Way,
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

/// What the one socket is that carries everything between host and kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Way {
    /// This kernel's vsock to those beside it: all dial the same port here.
    Vsock {
        /// Below 1024, it is nobody's but a privileged program's while no daemon runs.
        port: u32,
    },
    /// A terminal line inside, which is a Unix socket here that somebody dials.
    Line {
        /// The line's device inside.
        inside: PathBuf,
        /// The socket here; `{id}` becomes the number of the instance.
        socket: String,
        /// Where one can ask here whether the kernel itself lives: a Unix socket that sends a byte as long as it does; `{id}` as above. Without
        /// it nobody can ask.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alive: Option<String>,
    },
}

/// The port of [`Way::Vsock`]: not that of kerf's agent, 1023.
const LINK_PORT: u32 = 700;

impl Default for Way {
    fn default() -> Self {
        Self::Vsock { port: LINK_PORT }
    }
}

/// The host's end of the one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostEnd {
    /// A port of this kernel's vsock, to which kernels are known by their CIDs.
    Vsock(Port),
    /// A socket of one kernel.
    Unix(PathBuf),
}

impl Way {
    fn inside(&self) -> PacedLine {
        match self {
            Self::Vsock { port } => PacedLine::Vsock(Port(*port)),
            Self::Line { inside, .. } => PacedLine::Path(inside.clone()),
        }
    }

    fn outside(&self, id: InstanceId) -> HostEnd {
        match self {
            Self::Vsock { port } => HostEnd::Vsock(Port(*port)),
            Self::Line { socket, .. } => HostEnd::Unix(numbered(socket, id)),
        }
    }
}

fn numbered(path: &str, id: InstanceId) -> PathBuf {
    path.replace("{id}", &id.to_string()).into()
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
            link: Way::default(),
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

    /// What the agent inside is told of the pool; `None` where kernels have no shared memory.
    pub(super) fn pool_inside(&self, pool: &PoolFile) -> Option<PoolConfig> {
        let GuestPool::Path(path) = self.pool.as_ref()?;
        Some(PoolConfig::new(path, pool.len))
    }

    /// What the agent inside is told of its doorbell, which only a kernel that shares memory has.
    pub(super) fn doorbell_inside(&self, record: &Record) -> Option<Doorbell> {
        Some(match self.wake()? {
            Wake::Line { inside, .. } => Doorbell::Path(inside.clone()),
            Wake::Vsock { port } => Doorbell::Vsock(line::vsock_port(*port, record)),
        })
    }

    /// What wakes a kernel that shares memory.
    pub(super) fn wake(&self) -> Option<&Wake> {
        self.doorbell.as_ref().filter(|_| self.pool.is_some())
    }

    /// What the agent inside is told of the one socket that carries everything; `None` where there is shared memory.
    pub(super) fn link_inside(&self) -> Option<PacedLine> {
        self.pool.is_none().then(|| self.link.inside())
    }

    /// The port of this kernel's vsock on which all depends; `None` where that is shared memory, or another socket.
    pub(crate) fn link_port(&self) -> Option<Port> {
        match &self.link {
            Way::Vsock { port } if self.pool.is_none() => Some(Port(*port)),
            _ => None,
        }
    }

    /// The same here.
    pub(super) fn link_outside(&self, id: InstanceId) -> Option<HostEnd> {
        self.pool.is_none().then(|| self.link.outside(id))
    }

    /// Where to ask whether the kernel of that number lives, if it is not its vsock that tells.
    pub(super) fn alive_socket(&self, id: InstanceId) -> Option<Option<PathBuf>> {
        match &self.link {
            Way::Line { alive, .. } if self.pool.is_none() => {
                Some(alive.as_ref().map(|path| numbered(path, id)))
            }
            _ => None,
        }
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
        assert_eq!(vsock.doorbell_inside(&record(&vsock)), None, "bells are of shared memory");
        assert_eq!(settings.link_inside(), None);
        assert!(toml::from_str::<Settings>("rot = \"/x\"").is_err(), "a misspelt setting is refused");
    }

    fn record(settings: &Settings) -> Record {
        Record {
            settings: settings.clone(),
            name: "web".parse().unwrap(),
            id: InstanceId::try_from(4).unwrap(),
            memory_bytes: 0,
            cpus_wanted: 1,
            cpus: Vec::new(),
            nonce: String::new(),
            origin: super::super::record::Origin::Made,
            keeper_binary: PathBuf::new(),
        }
    }

    #[test]
    fn kernels_without_a_pool_are_reached_over_one_socket() {
        let id = InstanceId::try_from(4).unwrap();
        let default: Settings = toml::from_str("").unwrap();
        assert_eq!(default.link_inside(), Some(PacedLine::Vsock(Port(700))));
        assert_eq!(default.link_outside(id), Some(HostEnd::Vsock(Port(700))));
        assert_eq!(default.alive_socket(id), None, "the vsock tells");
        let text = r#"link = { line = { inside = "/dev/ttyS0", socket = "/run/x/link.{id}" } }"#;
        let line: Settings = toml::from_str(text).unwrap();
        assert_eq!(line.link_inside(), Some(PacedLine::Path("/dev/ttyS0".into())));
        assert_eq!(line.link_outside(id), Some(HostEnd::Unix("/run/x/link.4".into())));
        assert_eq!(line.alive_socket(id), Some(None), "nobody can be asked");
    }
}
