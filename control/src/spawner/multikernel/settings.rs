//! Where the kernel's interface is found, and what a kernel finds inside: what an operator can set.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tombolo_agent::config::{Daxfs, Doorbell, PacedLine, PoolConfig};
use tombolo_transport::Port;

use super::alive::KERF_AGENT;
use super::ids::{INSTANCE_IDS, InstanceId};
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
    /// Where this host's kernel tells of its PCI functions. Default `/sys/bus/pci`.
    pub pci: PathBuf,
    /// Where the memory comes from that kernels share, and how they reach it. Without it kernels have none, and everything goes over
    /// [`Settings::link`].
    pub pool: Option<SharedPool>,
    /// What wakes a kernel, and is woken by it. Without it both find work by their timers.
    pub doorbell: Option<Wake>,
    /// What carries everything to and from a kernel without shared memory. Default: the vsock, port 700.
    pub link: Way,
    /// Why there is no shared memory although the settings ask for some.
    #[serde(skip)]
    pub(crate) why_no_pool: Option<String>,
}

/// Where shared memory comes from, and how a kernel reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SharedPool {
    /// A buffer of this kernel's heap, if it gives one.
    Auto,
    /// A buffer of a DMA heap.
    Heap {
        /// Which. Default `/dev/dma_heap/multikernel`.
        #[serde(default = "heap")]
        device: PathBuf,
        /// A file or device inside that is this memory, from its start. Default: `/dev/mem`, by its physical address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inside: Option<PathBuf>,
    },
    /// Physical memory that is nobody's.
    Mem {
        /// Its address, a multiple of the page size.
        phys: u64,
        /// Its length in bytes, a multiple of the page size.
        size: u64,
        /// The device through which it is mapped here. Default `/dev/mem`.
        #[serde(default = "mem")]
        device: PathBuf,
    },
    /// A file on a DAXFS, which kernels mount by its physical address.
    Daxfs {
        /// That address. Default: what the mount here says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        phys: Option<u64>,
        /// Its length in bytes. Default: what the mount here says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// Where kernels mount it. Default `/run/tombolo/daxfs`.
        #[serde(default = "daxfs_mount")]
        mount: PathBuf,
        /// The file in it. Default: the one that is the pool here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<PathBuf>,
    },
    /// A file or device inside, from its start; here it is the file that was named for the pool.
    Path(PathBuf),
}

impl SharedPool {
    /// The heap of this kernel's pool.
    pub(crate) const HEAP: &str = "/dev/dma_heap/multikernel";
    /// The device of all physical memory.
    pub(crate) const MEM: &str = "/dev/mem";

    /// Whether it is an ordinary file here.
    pub(crate) fn is_path(&self) -> bool {
        matches!(self, Self::Path(_))
    }
}

fn heap() -> PathBuf {
    SharedPool::HEAP.into()
}

fn mem() -> PathBuf {
    SharedPool::MEM.into()
}

fn daxfs_mount() -> PathBuf {
    "/run/tombolo/daxfs".into()
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

/// The port of [`Way::Vsock`].
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
            pci: "/sys/bus/pci".into(),
            pool: None,
            doorbell: None,
            link: Way::default(),
            why_no_pool: None,
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
        let read = toml::from_str::<Self>(&text).map_err(|error| error.to_string());
        read.and_then(|settings| settings.ports_are_ours().map(|()| settings))
            .map_err(|error| format!("the settings {} are not valid: {error}", path.display()))
    }

    /// A port of the vsock that is taken on this host cannot be that of kerf's agent, which kernels may have as well.
    fn ports_are_ours(&self) -> Result<(), String> {
        let theirs = |first: u32, last: u32| (first..=last).contains(&KERF_AGENT.0);
        match (&self.link, &self.doorbell) {
            (Way::Vsock { port }, _) if theirs(*port, *port) => Err(format!(
                "link: port {KERF_AGENT} is that of kerf's agent: leave it out, or take another below 1024"
            )),
            (_, Some(Wake::Vsock { port }))
                if theirs(*port, port.saturating_add(u32::from(*INSTANCE_IDS.end()))) =>
            {
                Err(format!(
                    "doorbell: instances have the {} ports from {port} on, and {KERF_AGENT} is that of kerf's agent: begin above it",
                    INSTANCE_IDS.end()
                ))
            }
            _ => Ok(()),
        }
    }

    /// The device of consoles, where they are recorded.
    pub(crate) fn console_device(&self) -> Option<&Path> {
        Some(self.console.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// What the agent inside is told of the pool; `None` where kernels have no shared memory.
    pub(super) fn pool_inside(&self, pool: &PoolFile) -> Option<PoolConfig> {
        match self.pool.as_ref()? {
            SharedPool::Path(path) => Some(PoolConfig::new(path, pool.len)),
            SharedPool::Mem { phys, device, .. } => {
                Some(PoolConfig { offset: *phys, ..PoolConfig::new(device, pool.len) })
            }
            SharedPool::Daxfs { phys, size, mount, file } => {
                let daxfs = Daxfs { mount: mount.clone(), phys: (*phys)?, size: (*size)? };
                Some(PoolConfig {
                    daxfs: Some(daxfs),
                    ..PoolConfig::new(mount.join(file.as_ref()?), pool.len)
                })
            }
            // Where they could be had they are one of the above by now.
            SharedPool::Auto | SharedPool::Heap { .. } => None,
        }
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

    /// Whether kernels are reached, or woken, over this kernel's vsock.
    pub(crate) fn needs_vsock(&self) -> bool {
        self.link_port().is_some() || matches!(self.wake(), Some(Wake::Vsock { .. }))
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
        assert_eq!(settings.pool, Some(SharedPool::Path("/mnt/shared/pool".into())));
        let vsock: Settings = toml::from_str("doorbell = { vsock = { port = 30000 } }").unwrap();
        assert_eq!(vsock.doorbell, Some(Wake::Vsock { port: 30_000 }));
        assert_eq!(vsock.doorbell_inside(&record(&vsock)), None, "bells are of shared memory");
        assert_eq!(settings.link_inside(), None);
        assert!(toml::from_str::<Settings>("rot = \"/x\"").is_err(), "a misspelt setting is refused");
    }

    #[test]
    fn port_of_the_agent_of_kerf_is_nobodys_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("multikernel.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Settings::read(&path)
        };
        for theirs in ["link = { vsock = { port = 1023 } }", "doorbell = { vsock = { port = 600 } }"] {
            let refused = read(theirs).unwrap_err();
            assert!(refused.contains("kerf's agent"), "{refused}");
        }
        for ours in ["link = { vsock = { port = 1022 } }", "doorbell = { vsock = { port = 1024 } }"] {
            read(ours).unwrap();
        }
    }

    #[test]
    fn shared_memory_is_named_in_the_words_of_the_field_and_told_to_the_agent() {
        let of =
            |text: &str| toml::from_str::<Settings>(&format!("pool = {text}")).map(|it| it.pool.unwrap());
        assert_eq!(of("\"auto\"").unwrap(), SharedPool::Auto);
        assert_eq!(of("{ heap = {} }").unwrap(), SharedPool::Heap { device: heap(), inside: None });
        assert!(of("{ heap = { devise = \"/x\" } }").is_err() && of("{ mem = { phys = 1 } }").is_err());
        let inside = |text: &str| {
            let pool = Some(of(text).unwrap());
            let file = PoolFile { path: "/here".into(), len: 8192 };
            Settings { pool, ..Settings::default() }.pool_inside(&file)
        };
        let mem = inside("{ mem = { phys = 0x140000000, size = 1048576 } }").unwrap();
        assert_eq!((mem.path, mem.offset, mem.len), ("/dev/mem".into(), 0x1_4000_0000, 8192));
        let daxfs = inside("{ daxfs = { phys = 0x140000000, size = 1048576, file = \"a/pool\" } }").unwrap();
        assert_eq!(daxfs.path, Path::new("/run/tombolo/daxfs/a/pool"));
        assert_eq!(daxfs.daxfs.unwrap().phys, 0x1_4000_0000);
        assert_eq!((inside("\"auto\""), inside("{ daxfs = {} }")), (None, None), "not found yet");
    }

    fn record(settings: &Settings) -> Record {
        Record {
            settings: settings.clone(),
            name: "web".parse().unwrap(),
            id: InstanceId::try_from(4).unwrap(),
            memory_bytes: 0,
            cpus_wanted: 1,
            cpus_withheld: Vec::new(),
            moves_cpus: false,
            memory_max_bytes: None,
            devices: Vec::new(),
            moves_devices: false,
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
