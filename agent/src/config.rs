//! What an agent must know when its kernel boots: who it is, whom to trust, what to run.
//!
//! The control plane writes it as JSON, into the initrd of a spawned kernel (`/etc/tombolo/agent.json`) or into a file
//! given with `--config`. It holds the per-boot secret, so it is never put on a kernel command line and its `Debug`
//! form leaves the secret out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tombolo_transport::broker::Policy;
use tombolo_transport::paced::PacedConfig;
use tombolo_transport::{Cid, Incarnation, Member, Port};

use crate::pci::PciId;

mod probe;
mod program;

pub use probe::{Exec, Fabric, FileAge, ProbeAction, ProbeConfig, ProbeKind, Rpc, Tcp};
pub use program::{Entrypoint, RestartPolicy, User};

/// Where a spawned kernel's agent finds its configuration.
pub const DEFAULT_PATH: &str = "/etc/tombolo/agent.json";
/// Longest kernel name, in bytes: what a superblock row of the pool holds.
pub const NAME_BYTES_MAX: usize = 32;
/// Longest host name, in bytes (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES_MAX: usize = 64;
/// A faster beat costs more than 1 % of a CPU under user-mode Linux; a slower one makes a hang invisible.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 5..=60_000;
/// Less would be a few missed counts.
const CPU_STUCK_MS: std::ops::RangeInclusive<u64> = 400..=60_000;

/// The boot configuration of one agent.
///
/// Build it with [`AgentConfig::new`] and set what differs from the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Name of this kernel, unique among its siblings, at most 32 bytes.
    pub name: String,
    /// Address of this kernel.
    pub cid: Cid,
    /// Index of this kernel in the pool; 0 is the primary, so at least 1.
    pub member: Member,
    /// This boot, 32 hexadecimal digits.
    pub incarnation: Incarnation,
    /// Proves both sides of the link to one another; known to the control plane and this boot alone.
    pub secret: Secret,
    /// Address of the primary kernel, which the agent dials. Default 2.
    #[serde(default = "default_primary_cid")]
    pub primary_cid: Cid,
    /// Shared memory. Without it there is [`AgentConfig::paced`], or the agent serves only [`AgentConfig::listen`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolConfig>,
    /// What wakes a sleeping peer and is woken by it; without it the agent finds work by its timer alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doorbell: Option<Doorbell>,
    /// What carries everything between this kernel and the primary where they share no memory: a paced link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paced: Option<PacedLine>,
    /// Host name to set when running as the first process of a kernel. Default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What this kernel is for. Default: nothing but the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Entrypoint>,
    /// Checks the agent runs inside this kernel. Default: none.
    #[serde(default)]
    pub probes: Vec<ProbeConfig>,
    /// Interval between two heartbeats in the pool, in milliseconds, 5 to 60 000. Default 100.
    #[serde(default = "default_heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// How long a CPU of this kernel may run nothing before that is told, in milliseconds, 400 to 60 000. Default: CPUs are not
    /// watched, as they are another's where the agent has no kernel of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_stuck_ms: Option<u64>,
    /// Unix socket where applications of this kernel reach the fabric.
    #[serde(default = "default_broker_socket")]
    pub broker_socket: PathBuf,
    /// Who may connect to services of this kernel, besides the primary.
    #[serde(default)]
    pub policy: Policy,
    /// A `tracing` filter such as `info` or `tombolo_agent=debug,info`. Default `info`.
    #[serde(default = "default_log_level")]
    pub log_level: String,
    /// Whether the control plane may step the clock of this kernel, if the agent is its first process. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_set_clock: bool,
    /// Kernel modules to load before anything else, in this order. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<PathBuf>,
    /// A Unix socket on which the agent serves the same services to callers that know the secret: for a kernel
    /// without a pool, and for tests. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<PathBuf>,
}

/// Shared memory that this kernel maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// A file, a device (`/dev/mmapper` under user-mode Linux), or `pci:VENDOR:DEVICE`: the third memory region of the one PCI function
    /// with these identifiers, in hexadecimal (`pci:1af4:1110`, ivshmem, in an emulated machine), which the agent enables.
    pub path: PathBuf,
    /// Its length in bytes; a device does not tell. A PCI function may have more: its memory is a power of two.
    pub len: u64,
    /// Where it begins in that file or device, in bytes, a multiple of 4096: its physical address, if that is `/dev/mem`. Default 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// The file system to mount first, of which `path` is a file. Default: `path` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daxfs: Option<Daxfs>,
}

/// A DAXFS in memory that several kernels have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Daxfs {
    /// Where to mount it; made if it is not there.
    pub mount: PathBuf,
    /// Its physical address.
    pub phys: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// One end of a byte pipe to the primary: each byte says "look at your rings".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doorbell {
    /// A terminal line, opened raw.
    Path(PathBuf),
    /// A descriptor inherited from whoever started the agent.
    Fd(i32),
    /// A port of the parent kernel on Multikernel Linux's vsock, which the agent dials, and again after a loss.
    Vsock(Port),
}

/// The one socket of a [paced link](tombolo_transport::paced) to the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PacedLine {
    /// A terminal line, opened raw, and again after a loss.
    Path(PathBuf),
    /// A port of the parent kernel on Multikernel Linux's vsock, which the agent dials, and again after a loss.
    Vsock(Port),
}

impl PacedLine {
    /// How long either end of the link waits for what. A socket that died without a word is replaced after two seconds: until then the agent
    /// does not answer, and its kernel must not be taken for one that hangs.
    pub fn pace() -> PacedConfig {
        PacedConfig {
            keepalive: Duration::from_millis(500),
            silence: Duration::from_secs(2),
            ..PacedConfig::default()
        }
    }

    /// The same over a terminal line: the line discipline holds 4096 bytes (`N_TTY_BUF_SIZE`) and holds the line up before it is full, after
    /// which the lines of User-mode Linux stay still.
    pub fn pace_of_terminal() -> PacedConfig {
        PacedConfig { window_bytes: Some(3584), is_line: true, ..Self::pace() }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the agent configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not JSON of the right shape.
    #[error("the agent configuration {path} is not valid: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// A value makes no sense.
    #[error("the agent configuration is not valid: {field}: {reason}")]
    Invalid {
        /// Which field, as a path into the JSON.
        field: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }
}

impl AgentConfig {
    /// A configuration with every default.
    pub fn new(
        name: impl Into<String>,
        cid: Cid,
        member: Member,
        incarnation: Incarnation,
        secret: [u8; 32],
    ) -> Self {
        Self {
            name: name.into(),
            cid,
            member,
            incarnation,
            secret: Secret(Hex(secret)),
            primary_cid: default_primary_cid(),
            pool: None,
            doorbell: None,
            paced: None,
            hostname: None,
            entrypoint: None,
            probes: Vec::new(),
            heartbeat_ms: default_heartbeat_ms(),
            cpu_stuck_ms: None,
            broker_socket: default_broker_socket(),
            policy: Policy::default(),
            log_level: default_log_level(),
            may_set_clock: false,
            modules: Vec::new(),
            listen: None,
        }
    }

    /// Reads and validates the file `path`.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if it cannot be read, [`ConfigError::Syntax`] if it is not such a document,
    /// [`ConfigError::Invalid`] if a value is out of range.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|e| ConfigError::Syntax { path: path.to_owned(), reason: e.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// The JSON document that [`AgentConfig::read`] understands.
    pub fn to_json(&self) -> String {
        // Maps with non-string keys are the only thing serde_json refuses here, and there are none.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first value that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate_kernel_name("name", &self.name)?;
        if self.cid.0 < 3 || self.cid == Cid::ANY {
            return Err(ConfigError::invalid(
                "cid",
                format!("{} is reserved; a kernel's is 3 or more", self.cid),
            ));
        }
        if self.cid == self.primary_cid {
            return Err(ConfigError::invalid("cid", format!("{} is the primary's own", self.cid)));
        }
        if self.member == Member::PRIMARY {
            return Err(ConfigError::invalid("member", "0 is the primary; a spawned kernel's is 1 or more"));
        }
        if let Some(pool) = &self.pool {
            pool.validate()?;
        }
        if self.pool.is_some() && self.paced.is_some() {
            return Err(ConfigError::invalid("paced", "a kernel that shares memory needs no paced link"));
        }
        if let Some(Doorbell::Fd(fd @ ..3)) = self.doorbell {
            return Err(ConfigError::invalid(
                "doorbell.fd",
                format!("{fd} is not an inherited descriptor (3 or more)"),
            ));
        }
        if let Some(hostname) = &self.hostname
            && (hostname.is_empty() || hostname.len() > HOSTNAME_BYTES_MAX || hostname.contains('\0'))
        {
            return Err(ConfigError::invalid(
                "hostname",
                format!("must have 1 to {HOSTNAME_BYTES_MAX} bytes"),
            ));
        }
        if let Some(entrypoint) = &self.entrypoint {
            entrypoint.validate()?;
        }
        probe::validate_all(&self.probes)?;
        validate_ms("heartbeat_ms", self.heartbeat_ms, &HEARTBEAT_MS)?;
        if let Some(cpu_stuck_ms) = self.cpu_stuck_ms {
            validate_ms("cpu_stuck_ms", cpu_stuck_ms, &CPU_STUCK_MS)?;
        }
        validate_log_level(&self.log_level)
    }
}

impl PoolConfig {
    /// What is a file or device of its own, from its start.
    pub fn new(path: impl Into<PathBuf>, len: u64) -> Self {
        Self { path: path.into(), len, offset: 0, daxfs: None }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if let Some(id) = PciId::of_path(&self.path) {
            id.map_err(|reason| ConfigError::invalid("pool.path", reason))?;
        } else if !self.path.is_absolute() {
            return Err(ConfigError::invalid(
                "pool.path",
                format!("{} is not an absolute path", self.path.display()),
            ));
        }
        if self.len == 0 || !self.len.is_multiple_of(4096) {
            return Err(ConfigError::invalid(
                "pool.len",
                format!("{} is not a positive multiple of 4096", self.len),
            ));
        }
        if !self.offset.is_multiple_of(4096) || self.offset.checked_add(self.len).is_none() {
            return Err(ConfigError::invalid(
                "pool.offset",
                format!("{:#x} is not a multiple of 4096 with room for {} bytes", self.offset, self.len),
            ));
        }
        match &self.daxfs {
            Some(daxfs) => daxfs.validate(&self.path),
            None => Ok(()),
        }
    }
}

impl Daxfs {
    fn validate(&self, file: &Path) -> Result<(), ConfigError> {
        if !self.mount.is_absolute() || file == self.mount || !file.starts_with(&self.mount) {
            let reason = format!("{} is no absolute path above {}", self.mount.display(), file.display());
            return Err(ConfigError::invalid("pool.daxfs.mount", reason));
        }
        if self.phys == 0 || self.size == 0 || ![self.phys, self.size].iter().all(|n| n.is_multiple_of(4096))
        {
            let reason =
                format!("{:#x} and {:#x} are not both positive multiples of 4096", self.phys, self.size);
            return Err(ConfigError::invalid("pool.daxfs", reason));
        }
        Ok(())
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn validate_kernel_name(field: &str, name: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
        let reason =
            format!("`{name}` must be 1 to {NAME_BYTES_MAX} bytes of letters, digits, `-`, `_` and `.`");
        return Err(ConfigError::invalid(field, reason));
    }
    Ok(())
}

fn validate_ms(field: &str, ms: u64, allowed: &std::ops::RangeInclusive<u64>) -> Result<(), ConfigError> {
    if allowed.contains(&ms) {
        return Ok(());
    }
    let (min, max) = (allowed.start(), allowed.end());
    Err(ConfigError::invalid(field, format!("must be {min} to {max}, is {ms}")))
}

fn validate_log_level(level: &str) -> Result<(), ConfigError> {
    tracing_subscriber::EnvFilter::try_new(level)
        .map(drop)
        .map_err(|e| ConfigError::invalid("log_level", format!("`{level}` is not a filter: {e}")))
}

fn default_primary_cid() -> Cid {
    Cid::HOST
}
fn default_heartbeat_ms() -> u64 {
    100
}
fn default_broker_socket() -> PathBuf {
    PathBuf::from("/run/tombolo/broker.sock")
}
fn default_log_level() -> String {
    "info".to_owned()
}

/// `N` bytes, written as 2 x `N` hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

/// The per-boot secret. It serializes to its digits and never prints them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub Hex<32>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> FromStr for Hex<N> {
    type Err = String;

    fn from_str(digits: &str) -> Result<Self, String> {
        let wrong = || format!("expected {} hexadecimal digits, found {} characters", 2 * N, digits.len());
        if digits.len() != 2 * N || !digits.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16)
                .map_err(|_| format!("expected {} hexadecimal digits, found another character", 2 * N))?;
        }
        Ok(Self(bytes))
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        digits.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = r#"{"name":"web","cid":3,"member":1,
        "incarnation":"000102030405060708090a0b0c0d0e0f",
        "secret":"0000000000000000000000000000000000000000000000000000000000000007",
        "primary_cid":2,"pool":{"path":"/dev/mmapper","len":268435456},"doorbell":{"path":"/dev/ttyS0"},
        "hostname":"web",
        "entrypoint":{"argv":["/usr/bin/app"],"env":[["K","V"]],"cwd":"/","user":null,"restart":"on-failure"},
        "probes":[{"name":"up","kind":"readiness","tcp":{"port":80},"period_ms":500}],
        "heartbeat_ms":100,"broker_socket":"/run/tombolo/broker.sock",
        "policy":[{"from":"web","to":"db","port":"6379"}],"log_level":"info"}"#;

    fn minimal() -> AgentConfig {
        AgentConfig::new("web", Cid(3), Member(1), Incarnation([1; 16]), [2; 32])
    }

    #[test]
    fn a_full_document_is_understood() {
        let config: AgentConfig = serde_json::from_str(CONTRACT).unwrap();
        config.validate().unwrap();
        assert_eq!(config.incarnation.to_string(), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(config.policy.rules.len(), 1);
        assert_eq!(config.doorbell, Some(Doorbell::Path("/dev/ttyS0".into())));
        assert_eq!(config.entrypoint.unwrap().restart, RestartPolicy::OnFailure);
        let fd: Doorbell = serde_json::from_str(r#"{"fd":5}"#).unwrap();
        assert_eq!(fd, Doorbell::Fd(5));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut config: AgentConfig = serde_json::from_str(CONTRACT).unwrap();
        config.modules = vec!["/lib/vsock.ko".into()];
        (config.pool, config.paced) = (None, Some(PacedLine::Vsock(Port(700))));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.json");
        std::fs::write(&path, config.to_json()).unwrap();
        assert_eq!(AgentConfig::read(&path).unwrap(), config);
    }

    #[test]
    fn the_secret_is_not_printed() {
        let printed = format!("{:?}", minimal());
        assert!(!printed.contains("0202"), "{printed}");
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        type Spoil = fn(&mut AgentConfig);
        let cases: [(&str, Spoil); 14] = [
            ("name", |c| c.name = "a/b".into()),
            ("name", |c| c.name = "x".repeat(33)),
            ("cid", |c| c.cid = Cid::HOST),
            ("member", |c| c.member = Member::PRIMARY),
            ("pool.len", |c| c.pool = Some(PoolConfig::new("/p", 4095))),
            ("pool.offset", |c| c.pool = Some(PoolConfig { offset: 8, ..PoolConfig::new("/dev/mem", 4096) })),
            ("pool.daxfs.mount", |c| {
                let daxfs = Some(Daxfs { mount: "/m".into(), phys: 4096, size: 4096 });
                c.pool = Some(PoolConfig { daxfs, ..PoolConfig::new("/p", 4096) });
            }),
            ("pool.daxfs", |c| {
                let daxfs = Some(Daxfs { mount: "/m".into(), phys: 4097, size: 4096 });
                c.pool = Some(PoolConfig { daxfs, ..PoolConfig::new("/m/p", 4096) });
            }),
            ("pool.path", |c| c.pool = Some(PoolConfig::new("p", 4096))),
            ("pool.path", |c| c.pool = Some(PoolConfig::new("pci:1af4", 4096))),
            ("paced", |c| {
                c.pool = Some(PoolConfig::new("/p", 4096));
                c.paced = Some(PacedLine::Vsock(Port(700)));
            }),
            ("heartbeat_ms", |c| c.heartbeat_ms = 0),
            ("doorbell.fd", |c| c.doorbell = Some(Doorbell::Fd(1))),
            ("log_level", |c| c.log_level = "a=b=c".into()),
        ];
        for (field, spoil) in cases {
            let mut config = minimal();
            spoil(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!(": {field}: ")), "{field}: {error}");
        }
        let mut config = minimal();
        config.pool = Some(PoolConfig::new("pci:1af4:1110", 4096));
        config.validate().unwrap();
    }

    #[test]
    fn a_field_nobody_knows_is_refused() {
        let text = CONTRACT.replace("\"hostname\"", "\"hostnam\"");
        let error = serde_json::from_str::<AgentConfig>(&text).unwrap_err().to_string();
        assert!(error.contains("hostnam"), "{error}");
    }

    #[test]
    fn hexadecimal_of_another_length_is_refused() {
        for digits in ["", "00", &"0".repeat(33), &"g".repeat(32), &"é".repeat(16)] {
            assert!(digits.parse::<Hex<16>>().is_err(), "{digits}");
        }
    }
}
