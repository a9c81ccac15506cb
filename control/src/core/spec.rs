//! What an instance is to be: the document people write (TOML or JSON) and the daemon stores.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff::{BackoffConfig, RestartPolicy};
use super::lifecycle::{OnHang, Rules};
use super::name::InstanceName;
use tombolo_agent::config::{Entrypoint, ProbeConfig};
use tombolo_handover::PciAddress;

use crate::spawner::SpawnerKind;

/// What one instance is to be.
///
/// ```toml
/// [instance.db]
/// memory_mib = 64
/// restart = "on-failure"
/// entrypoint = { argv = ["/usr/bin/kv-server"] }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceSpec {
    /// Which driver makes its kernel. Default: `uml` if this host can, else `process`.
    pub spawner: Option<SpawnerKind>,
    /// Memory of the kernel, in MiB, at least 32. Default 64.
    pub memory_mib: u64,
    /// The least memory it is left with when memory is moved, in MiB. Default: half of `memory_mib`, at least 32.
    pub memory_min_mib: Option<u64>,
    /// The most memory it can be given while it runs, in MiB. Its kernel boots with room for it, which costs some 2 % of
    /// this. Default: `memory_mib`.
    pub memory_max_mib: Option<u64>,
    /// CPUs of the kernel. Default 1. More, and any other number while it runs, only where the spawner can move CPUs (`qemu`).
    pub cpus: u32,
    /// The fewest CPUs it is left with when CPUs are moved. Default 1.
    pub cpus_min: Option<u32>,
    /// The most CPUs it can be given while it runs. Its machine has as many from its start, parked. Default: `cpus`.
    pub cpus_max: Option<u32>,
    /// Whether it gives and gets CPUs by itself, between the two, while balancing is on. Default false.
    pub balance: bool,
    /// The devices that it is to have, as `tombolod --device` names them, or by their addresses on this host where they are set aside for kernels beside
    /// this one. Those that are free when it is started it boots with; `tombolo apply` moves the others to it, and takes from it what is not in this list.
    /// Default: nothing is said about devices.
    pub devices: Option<Vec<PciAddress>>,
    /// The kernel image. Default: the one the spawner finds.
    pub image: Option<PathBuf>,
    /// An initial archive of the host, read at each start: cpio (newc), plain or packed in any way that the kernel knows, or several one after another.
    /// It is unpacked first, then ours, with `files` and `modules`: what both have is ours, above all `/init`, which is the agent. Only where the spawner makes
    /// kernels. Default none.
    pub initrd: Option<PathBuf>,
    /// What runs in it. Default: nothing but the agent.
    pub entrypoint: Option<Entrypoint>,
    /// Checks that the agent makes inside. Default none.
    pub probes: Vec<ProbeConfig>,
    /// Whether its kernel is started again after it ended. Default `on-failure`.
    pub restart: RestartPolicy,
    /// How long to wait between restarts.
    pub backoff: BackoffConfig,
    /// What to do when it hangs. Default `report`.
    pub on_hang: OnHang,
    /// How long its agent may take to report, in milliseconds. Default 60 000.
    pub boot_timeout_ms: u64,
    /// How long it may take to stop in good order, in milliseconds. Default 10 000.
    pub grace_ms: u64,
    /// How often its agent shows a sign of life in the pool, in milliseconds, 20 to 10 000. A hang is told after some
    /// five of them; each costs a busy moment inside. A death is told at once whatever this is. Default 200.
    pub heartbeat_ms: u64,
    /// How long one of several CPUs may run nothing before that is told, in milliseconds, 400 to 60 000; 0 for never, where programs
    /// may hold a CPU for themselves with the highest real-time priority. Default 700.
    pub cpu_stuck_ms: u64,
    /// Files of the host that the kernel finds at boot.
    pub files: Vec<FileSpec>,
    /// Kernel modules to load at boot, in order: of the image that `uml` or `qemu` boots, by their names. Default none.
    pub modules: Vec<String>,
    /// Further arguments for the kernel's command line. Never put a secret here: the primary prints it.
    pub extra_args: Vec<String>,
    /// How much the agent logs (a `tracing` filter). Default `info`.
    pub log_level: String,
    /// Whether the kernel's clock is set to this host's when it is off by half a second or more: after a boot without a
    /// clock of its own, or a freeze. Only where the spawner makes kernels. Default true.
    pub sync_clock: bool,
}

/// A file of the host that the kernel finds at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Absolute path inside the kernel.
    pub guest: String,
    /// Path on the host, read at each start.
    pub source: PathBuf,
    /// Permission bits. Default 0755 (octal, as a number: 493).
    #[serde(default = "default_mode")]
    pub mode: u32,
}

/// Several instances and the policy between them: the file of `tombolo up`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetSpec {
    /// The instances, by name.
    pub instance: BTreeMap<InstanceName, InstanceSpec>,
    /// Connections to allow, as in `tombolo policy allow`: `["web db:6379"]`.
    pub allow: Vec<String>,
}

/// A specification cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the specification of `{name}` cannot be: {reason}")]
pub struct SpecError {
    name: InstanceName,
    reason: String,
}

/// Least memory of any kernel, in MiB.
const MEMORY_MIB_MIN: u64 = 32;

/// Most CPUs of any kernel.
const CPUS_MAX: u32 = 64;

fn default_mode() -> u32 {
    0o755
}

impl Default for InstanceSpec {
    fn default() -> Self {
        Self {
            spawner: None,
            memory_mib: 64,
            memory_min_mib: None,
            memory_max_mib: None,
            cpus: 1,
            cpus_min: None,
            cpus_max: None,
            balance: false,
            devices: None,
            image: None,
            initrd: None,
            entrypoint: None,
            probes: Vec::new(),
            restart: RestartPolicy::default(),
            backoff: BackoffConfig::default(),
            on_hang: OnHang::default(),
            boot_timeout_ms: 60_000,
            grace_ms: 10_000,
            heartbeat_ms: 200,
            cpu_stuck_ms: 700,
            files: Vec::new(),
            modules: Vec::new(),
            extra_args: Vec::new(),
            log_level: "info".to_owned(),
            sync_clock: true,
        }
    }
}

impl InstanceSpec {
    /// The part that the lifecycle obeys.
    pub fn rules(&self) -> Rules {
        Rules {
            restart: self.restart,
            backoff: self.backoff,
            on_hang: self.on_hang,
            boot_timeout: Duration::from_millis(self.boot_timeout_ms),
        }
    }

    /// How long it may take to stop in good order.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// The least memory it is left with, in MiB.
    pub fn memory_min_mib(&self) -> u64 {
        self.memory_min_mib.unwrap_or_else(|| (self.memory_mib / 2).max(MEMORY_MIB_MIN).min(self.memory_mib))
    }

    /// The most memory it can be given, in MiB.
    pub fn memory_max_mib(&self) -> u64 {
        self.memory_max_mib.unwrap_or(self.memory_mib)
    }

    /// The fewest CPUs it is left with.
    pub fn cpus_min(&self) -> u32 {
        self.cpus_min.unwrap_or(1)
    }

    /// The most CPUs it can be given.
    pub fn cpus_max(&self) -> u32 {
        self.cpus_max.unwrap_or(self.cpus)
    }

    /// Checks that kernels of this spawner can be what is wanted, before one is started that could not become it.
    ///
    /// # Errors
    /// [`SpecError`] names the first thing that such a kernel cannot have.
    pub fn check_for(&self, kind: SpawnerKind, name: &InstanceName) -> Result<(), SpecError> {
        let refuse = |reason: String| Err(SpecError { name: name.clone(), reason });
        match kind {
            SpawnerKind::Uml if self.cpus_max() > 1 => {
                let cpus = self.cpus_max();
                return refuse(format!(
                    "it is to have up to {cpus} CPUs, and kernels of the spawner `{kind}` have one"
                ));
            }
            SpawnerKind::Uml | SpawnerKind::Qemu | SpawnerKind::Multikernel | SpawnerKind::Process => {}
        }
        if let Some(initrd) = self.initrd.as_ref().filter(|_| !kind.makes_kernels()) {
            return refuse(format!(
                "initrd: it is to have {}, and the spawner `{kind}` makes no kernels, which would unpack it",
                initrd.display()
            ));
        }
        if let (Some(module), SpawnerKind::Multikernel | SpawnerKind::Process) = (self.modules.first(), kind)
        {
            return refuse(match kind {
                SpawnerKind::Multikernel => format!(
                    "modules: it is to have `{module}`, and where those of a kernel beside this one are nobody knows but who built it: put them into an archive, and name that by `initrd`"
                ),
                _ => format!(
                    "modules: it is to have `{module}`, and the spawner `{kind}` makes no kernels, which would load it"
                ),
            });
        }
        match self.devices.as_deref() {
            Some([device, ..]) if !kind.can_move_devices() => refuse(format!(
                "devices: it is to have {device}, and kernels of the spawner `{kind}` are given no devices"
            )),
            _ => Ok(()),
        }
    }

    /// Checks what can be checked without looking at the host.
    ///
    /// # Errors
    /// [`SpecError`] names the first thing that is wrong.
    pub fn validate(&self, name: &InstanceName) -> Result<(), SpecError> {
        let refuse = |reason: String| Err(SpecError { name: name.clone(), reason });
        let sizes = [
            ("memory_mib", self.memory_mib),
            ("memory_min_mib", self.memory_min_mib()),
            ("memory_max_mib", self.memory_max_mib()),
        ];
        if let Some((field, size)) =
            sizes.into_iter().find(|(_, size)| !(MEMORY_MIB_MIN..=1 << 20).contains(size))
        {
            return refuse(format!("{field} is {size}; it must be {MEMORY_MIB_MIN} to 1048576"));
        }
        if !(self.memory_min_mib()..=self.memory_max_mib()).contains(&self.memory_mib) {
            return refuse(format!(
                "memory_mib is {}, and must be from memory_min_mib ({}) to memory_max_mib ({})",
                self.memory_mib,
                self.memory_min_mib(),
                self.memory_max_mib()
            ));
        }
        let (least, most) = (self.cpus_min(), self.cpus_max());
        if least == 0 || most > CPUS_MAX || !(least..=most).contains(&self.cpus) {
            return refuse(format!(
                "cpus is {}, and must be from cpus_min ({least}, at least 1) to cpus_max ({most}, at most {CPUS_MAX})",
                self.cpus
            ));
        }
        let devices = self.devices.as_deref().unwrap_or_default();
        let is_twice =
            |(at, device): &(usize, &PciAddress)| devices.iter().take(*at).any(|other| other == *device);
        if let Some((_, device)) = devices.iter().enumerate().find(is_twice) {
            return refuse(format!("devices: {device} is named twice"));
        }
        if self.entrypoint.as_ref().is_some_and(|entry| entry.argv.is_empty()) {
            return refuse("entrypoint.argv is empty; name a program, or leave the entrypoint out".into());
        }
        if !(20..=10_000).contains(&self.heartbeat_ms) {
            return refuse(format!("heartbeat_ms is {}; it must be 20 to 10000", self.heartbeat_ms));
        }
        if self.cpu_stuck_ms != 0 && !(400..=60_000).contains(&self.cpu_stuck_ms) {
            return refuse(format!("cpu_stuck_ms is {}; it must be 400 to 60000, or 0", self.cpu_stuck_ms));
        }
        if self.boot_timeout_ms == 0 {
            return refuse("boot_timeout_ms is 0; no kernel boots in no time".into());
        }
        if let Some(file) = self.files.iter().find(|file| !file.guest.starts_with('/')) {
            return refuse(format!("files: `{}` is not an absolute path inside the kernel", file.guest));
        }
        if let Some(arg) = self.extra_args.iter().find(|arg| arg.contains(char::is_whitespace)) {
            return refuse(format!("extra_args: `{arg}` contains white space; give each argument apart"));
        }
        Ok(())
    }
}

impl FleetSpec {
    /// A device that two instances are to have, and who they are.
    pub fn device_wanted_twice(&self) -> Option<(PciAddress, [&InstanceName; 2])> {
        let mut wanted = BTreeMap::new();
        for (name, spec) in &self.instance {
            for device in spec.devices.iter().flatten() {
                if let Some(first) = wanted.insert(*device, name).filter(|first| *first != name) {
                    return Some((*device, [first, name]));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> InstanceName {
        "db".parse().unwrap()
    }

    #[test]
    fn an_empty_document_is_a_valid_instance() {
        let spec: InstanceSpec = toml::from_str("").unwrap();
        assert_eq!(spec, InstanceSpec::default());
        spec.validate(&name()).unwrap();
    }

    #[test]
    fn a_fleet_is_read_from_toml() {
        let fleet: FleetSpec = toml::from_str(
            r#"
            allow = ["web db:6379"]
            [instance.db]
            memory_mib = 96
            restart = "always"
            entrypoint = { argv = ["/bin/kv", "--port", "6379"] }
            [instance.web]
            spawner = "process"
            backoff = { base_ms = 200 }
            "#,
        )
        .unwrap();
        assert_eq!(fleet.instance.len(), 2);
        let web = &fleet.instance[&"web".parse().unwrap()];
        assert_eq!(web.backoff.base_ms, 200);
        assert_eq!(web.backoff.max_ms, BackoffConfig::default().max_ms);
    }

    #[test]
    fn a_device_that_two_instances_want_is_found() {
        let of = |text: &str| {
            let fleet: FleetSpec = toml::from_str(text).unwrap();
            fleet.device_wanted_twice().map(|(device, _)| device)
        };
        let (web, db) = ("[instance.web]\ndevices = ['0000:01:00.0']\n", "[instance.db]\ndevices = ");
        assert_eq!(of(&format!("{web}{db}['0000:02:00.0']")), None);
        assert_eq!(of(&format!("{web}{db}['0000:02:00.0', '0000:01:00.0']")), "0000:01:00.0".parse().ok());
    }

    #[test]
    fn a_misspelt_field_is_refused_by_name() {
        let error = toml::from_str::<InstanceSpec>("memory = 64").unwrap_err().to_string();
        assert!(error.contains("memory") && error.contains("memory_mib"), "{error}");
    }

    #[test]
    fn impossible_values_are_refused() {
        for text in [
            "memory_mib = 1",
            "memory_mib = 64\nmemory_max_mib = 63",
            "memory_mib = 64\nmemory_min_mib = 65",
            "memory_min_mib = 0",
            "cpus = 0",
            "cpus_min = 0",
            "cpus_max = 0",
            "cpus = 65",
            "cpus = 2\ncpus_min = 3",
            "devices = ['0000:01:00.0', '0000:01:00.0']",
            "entrypoint = { argv = [] }",
            "boot_timeout_ms = 0",
            "heartbeat_ms = 1",
            "cpu_stuck_ms = 399",
            "files = [{ guest = 'etc/x', source = '/x' }]",
            "extra_args = ['a b']",
        ] {
            let spec: InstanceSpec = toml::from_str(text).unwrap();
            assert!(spec.validate(&name()).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn what_kernels_of_a_spawner_cannot_have_is_refused_by_name() {
        use SpawnerKind::{Multikernel, Process, Qemu, Uml};
        let device = "devices = ['0000:01:00.0']";
        for (text, field, refused) in [
            ("cpus_max = 4", "CPUs", &[Uml][..]),
            ("cpus = 4", "CPUs", &[Uml]),
            (device, "0000:01:00.0", &[Uml, Process]),
            ("initrd = '/srv/base.img'", "/srv/base.img", &[Process]),
            ("modules = ['nvme']", "`nvme`", &[Multikernel, Process]),
            ("devices = []\ncpus_min = 1\nmemory_min_mib = 32", "", &[]),
        ] {
            let spec: InstanceSpec = toml::from_str(text).unwrap();
            spec.validate(&name()).unwrap();
            for kind in [Uml, Qemu, Multikernel, Process] {
                match (spec.check_for(kind, &name()), refused.contains(&kind)) {
                    (Err(error), true) => assert!(error.to_string().contains(field), "{error}"),
                    (outcome, is_refused) => assert_eq!(outcome.is_err(), is_refused, "{kind}: {text}"),
                }
            }
        }
    }

    #[test]
    fn a_spec_survives_the_json_it_is_stored_as() {
        let spec: InstanceSpec =
            toml::from_str("restart = 'never'\nentrypoint = { argv = ['/bin/true'] }").unwrap();
        assert_eq!(
            serde_json::from_str::<InstanceSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(),
            spec
        );
    }

    #[test]
    fn a_spec_that_an_earlier_daemon_stored_has_what_is_new_by_default() {
        let mut stored = serde_json::to_value(InstanceSpec::default()).unwrap();
        stored.as_object_mut().unwrap().remove("initrd").expect("it is stored");
        assert_eq!(serde_json::from_value::<InstanceSpec>(stored).unwrap(), InstanceSpec::default());
    }
}
