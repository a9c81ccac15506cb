//! Probes: checks that the agent runs inside its kernel, with the field names of Kubernetes.

use std::path::PathBuf;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// One check, repeated.
///
/// ```json
/// {"name":"answers","kind":"readiness","tcp":{"port":6379},"period_ms":500,"failure_threshold":3}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeConfig {
    /// Unique among the probes of this kernel.
    pub name: String,
    /// What a verdict means.
    pub kind: ProbeKind,
    /// What is tried: one of `exec`, `tcp`, `fabric`, `file_age`.
    #[serde(flatten)]
    pub action: ProbeAction,
    /// Wait before the first try, in milliseconds. Default 0.
    #[serde(default)]
    pub initial_delay_ms: u64,
    /// From the start of one try to the start of the next, in milliseconds, at least 10. Default 1000.
    #[serde(default = "default_period_ms")]
    pub period_ms: u64,
    /// A try that takes longer has failed, in milliseconds, at least 1. Default 1000.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Failures in a row that turn the verdict to failing, at least 1. Default 3.
    #[serde(default = "default_failure_threshold")]
    pub failure_threshold: u32,
    /// Successes in a row that turn the verdict to passing, at least 1. Default 1.
    #[serde(default = "default_success_threshold")]
    pub success_threshold: u32,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeAction {
    /// Passes if the program ends with code 0.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Passes if a TCP connection is accepted.
    Tcp {
        /// Default 127.0.0.1.
        #[serde(default = "default_host")]
        host: String,
        /// The port.
        port: u16,
    },
    /// Passes if a connection over the fabric to a port of this kernel is accepted.
    Fabric {
        /// The port.
        port: u32,
    },
    /// Passes if the file was written to within this time.
    FileAge {
        /// The file.
        path: PathBuf,
        /// In milliseconds.
        max_age_ms: u64,
    },
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
            ProbeAction::Exec { argv } if argv.first().is_none_or(String::is_empty) => {
                Err("`exec.argv` must name a program".into())
            }
            ProbeAction::FileAge { path, .. } if !path.is_absolute() => {
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
        let spoils: [fn(&mut ProbeConfig); 5] = [
            |p| p.period_ms = 1,
            |p| p.timeout_ms = 0,
            |p| p.failure_threshold = 0,
            |p| p.action = ProbeAction::Exec { argv: vec![] },
            |p| p.action = ProbeAction::FileAge { path: "x".into(), max_age_ms: 1 },
        ];
        for spoil in spoils {
            let mut probe = good.clone();
            spoil(&mut probe);
            assert!(validate_all(&[probe]).is_err());
        }
    }
}
