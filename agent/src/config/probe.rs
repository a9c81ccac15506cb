//! Probes: checks that the agent runs inside its kernel, with the field names of Kubernetes.

use std::path::PathBuf;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_transport::Addr;

use super::ConfigError;

/// One check, repeated.
///
/// ```json
/// {"name":"answers","kind":"readiness","tcp":{"port":6379},"period_ms":500,"failure_threshold":3}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document")]
pub struct ProbeConfig {
    /// Unique among the probes of this kernel.
    pub name: String,
    /// What a verdict means.
    pub kind: ProbeKind,
    /// What is tried: one of `exec`, `tcp`, `fabric`, `rpc`, `file_age`.
    #[serde(flatten)]
    pub action: ProbeAction,
    /// Wait before the first try, in milliseconds. Default 0.
    pub initial_delay_ms: u64,
    /// From the start of one try to the start of the next, in milliseconds, at least 10. Default 1000.
    pub period_ms: u64,
    /// A try that takes longer has failed, in milliseconds, at least 1. Default 1000.
    pub timeout_ms: u64,
    /// Failures in a row that turn the verdict to failing, at least 1. Default 3.
    pub failure_threshold: u32,
    /// Successes in a row that turn the verdict to passing, at least 1. Default 1.
    pub success_threshold: u32,
}

/// A probe as it is written. Serde's `flatten` would take the first action it finds and ignore whatever else is there, a
/// misspelt field as well as a second action; here neither is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: String,
    kind: ProbeKind,
    exec: Option<Exec>,
    tcp: Option<Tcp>,
    fabric: Option<Fabric>,
    rpc: Option<Rpc>,
    file_age: Option<FileAge>,
    #[serde(default)]
    initial_delay_ms: u64,
    #[serde(default = "default_period_ms")]
    period_ms: u64,
    #[serde(default = "default_timeout_ms")]
    timeout_ms: u64,
    #[serde(default = "default_failure_threshold")]
    failure_threshold: u32,
    #[serde(default = "default_success_threshold")]
    success_threshold: u32,
}

impl TryFrom<Document> for ProbeConfig {
    type Error = String;

    fn try_from(document: Document) -> Result<Self, String> {
        let Document { exec, tcp, fabric, rpc, file_age, .. } = document;
        let actions = [
            exec.map(ProbeAction::Exec),
            tcp.map(ProbeAction::Tcp),
            fabric.map(ProbeAction::Fabric),
            rpc.map(ProbeAction::Rpc),
            file_age.map(ProbeAction::FileAge),
        ];
        let mut actions = actions.into_iter().flatten();
        let (Some(action), None) = (actions.next(), actions.next()) else {
            let name = document.name;
            return Err(format!(
                "probe `{name}` must have exactly one of `exec`, `tcp`, `fabric`, `rpc`, `file_age`"
            ));
        };
        Ok(Self {
            name: document.name,
            kind: document.kind,
            action,
            initial_delay_ms: document.initial_delay_ms,
            period_ms: document.period_ms,
            timeout_ms: document.timeout_ms,
            failure_threshold: document.failure_threshold,
            success_threshold: document.success_threshold,
        })
    }
}

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// Has it started? The other kinds wait until every startup probe has passed once.
    Startup,
    /// Does it work? When it fails, the agent restarts the entrypoint as its restart policy says.
    Liveness,
    /// May it be given work?
    Readiness,
}

/// What one try does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeAction {
    /// Passes if a program ends with code 0.
    Exec(Exec),
    /// Passes if a TCP connection is accepted.
    Tcp(Tcp),
    /// Passes if a connection over the fabric to a port of this kernel is accepted.
    Fabric(Fabric),
    /// Passes if a server of tombolo-rpc answers.
    Rpc(Rpc),
    /// Passes if a file was written to lately.
    FileAge(FileAge),
}

/// [`ProbeAction::Exec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
}

/// [`ProbeAction::Tcp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// An address, or a name of /etc/hosts. Default 127.0.0.1.
    #[serde(default = "default_host")]
    pub host: String,
    /// The port.
    pub port: u16,
}

/// [`ProbeAction::Fabric`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    /// The port.
    pub port: u32,
}

/// [`ProbeAction::Rpc`].
///
/// The agent connects through this kernel's broker, as any program would, exchanges HELLO, and has the services listed by
/// reflection: every server of tombolo-rpc can be probed so, without code of its own. One that also serves
/// [`tombolo_rpc::health::Health`] is asked for its own opinion. Servers that want a secret proven cannot be probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rpc {
    /// Where it listens: `SERVICE` or `PORT` of this kernel, or `KERNEL/SERVICE` or `CID:PORT`, which policy must allow.
    pub target: String,
    /// The rpc service that must be offered there, such as `tombolo.demo.Kv`, and about which its health is asked.
    /// Default: any will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// [`ProbeAction::FileAge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileAge {
    /// The file.
    pub path: PathBuf,
    /// In milliseconds.
    pub max_age_ms: u64,
}

pub(super) fn validate_all(probes: &[ProbeConfig]) -> Result<(), ConfigError> {
    for (index, probe) in probes.iter().enumerate() {
        probe.validate().map_err(|reason| ConfigError::invalid(format!("probes[{index}]"), reason))?;
        if probes[..index].iter().any(|earlier| earlier.name == probe.name) {
            let reason = format!("there is an earlier probe named `{}`", probe.name);
            return Err(ConfigError::invalid(format!("probes[{index}].name"), reason));
        }
    }
    Ok(())
}

impl ProbeConfig {
    fn validate(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.len() > 64 {
            return Err("`name` must have 1 to 64 bytes".into());
        }
        if self.period_ms < 10 {
            return Err(format!("`period_ms` must be at least 10, is {}", self.period_ms));
        }
        if self.timeout_ms == 0 {
            return Err("`timeout_ms` must be at least 1".into());
        }
        if self.failure_threshold == 0 || self.success_threshold == 0 {
            return Err("thresholds must be at least 1".into());
        }
        match &self.action {
            ProbeAction::Exec(Exec { argv }) if argv.first().is_none_or(String::is_empty) => {
                Err("`exec.argv` must name a program".into())
            }
            ProbeAction::Rpc(Rpc { target, .. }) if target.is_empty() => {
                Err("`rpc.target` must be SERVICE, PORT, KERNEL/SERVICE or CID:PORT".into())
            }
            ProbeAction::Rpc(Rpc { target, .. })
                if target.contains(':') && target.parse::<Addr>().is_err() =>
            {
                Err(format!("`rpc.target` `{target}` is not CID:PORT"))
            }
            ProbeAction::Rpc(Rpc { service: Some(service), .. }) if service.is_empty() => {
                Err("`rpc.service` must not be empty; leave it out if any will do".into())
            }
            ProbeAction::FileAge(FileAge { path, .. }) if !path.is_absolute() => {
                Err(format!("`file_age.path` {} is not an absolute path", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn default_period_ms() -> u64 {
    1000
}
fn default_timeout_ms() -> u64 {
    1000
}
fn default_failure_threshold() -> u32 {
    3
}
fn default_success_threshold() -> u32 {
    1
}
fn default_host() -> String {
    "127.0.0.1".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ProbeConfig {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_docs() {
        let probe = parse(r#"{"name":"p","kind":"liveness","exec":{"argv":["true"]}}"#);
        assert_eq!((probe.initial_delay_ms, probe.period_ms, probe.timeout_ms), (0, 1000, 1000));
        assert_eq!((probe.failure_threshold, probe.success_threshold), (3, 1));
    }

    #[test]
    fn probes_that_make_no_sense_are_refused() {
        let good = parse(r#"{"name":"p","kind":"startup","file_age":{"path":"/x","max_age_ms":5}}"#);
        validate_all(std::slice::from_ref(&good)).unwrap();
        assert!(
            validate_all(&[good.clone(), good.clone()]).unwrap_err().to_string().contains("earlier probe")
        );
        let rpc = |target: &str, service: Option<&str>| {
            ProbeAction::Rpc(Rpc { target: target.into(), service: service.map(str::to_owned) })
        };
        let spoils: [&dyn Fn(&mut ProbeConfig); 8] = [
            &|p| p.period_ms = 1,
            &|p| p.timeout_ms = 0,
            &|p| p.failure_threshold = 0,
            &|p| p.action = ProbeAction::Exec(Exec { argv: vec![] }),
            &|p| p.action = ProbeAction::FileAge(FileAge { path: "x".into(), max_age_ms: 1 }),
            &|p| p.action = rpc("", None),
            &|p| p.action = rpc("3:many", None),
            &|p| p.action = rpc("kv", Some("")),
        ];
        for spoil in spoils {
            let mut probe = good.clone();
            spoil(&mut probe);
            assert!(validate_all(&[probe]).is_err());
        }
    }

    #[test]
    fn a_probe_that_is_written_wrongly_is_refused_not_half_understood() {
        for (text, said) in [
            (r#"{"name":"p","kind":"startup","tcp":{"port":1},"perod_ms":5}"#, "perod_ms"),
            (r#"{"name":"p","kind":"startup","tcp":{"port":1,"hots":"x"}}"#, "hots"),
            (r#"{"name":"p","kind":"startup","tcp":{"port":1},"rpc":{"target":"kv"}}"#, "exactly one"),
            (r#"{"name":"p","kind":"startup"}"#, "exactly one"),
        ] {
            let error = serde_json::from_str::<ProbeConfig>(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for action in [
            r#""exec":{"argv":["true"]}"#,
            r#""tcp":{"port":1}"#,
            r#""fabric":{"port":1}"#,
            r#""rpc":{"target":"kv","service":"tombolo.demo.Kv"}"#,
            r#""rpc":{"target":"3:6379"}"#,
            r#""file_age":{"path":"/x","max_age_ms":5}"#,
        ] {
            let probe = parse(&format!(r#"{{"name":"p","kind":"startup",{action}}}"#));
            validate_all(std::slice::from_ref(&probe)).unwrap();
            let again = parse(&serde_json::to_string(&probe).unwrap());
            assert_eq!(again, probe);
        }
    }
}
