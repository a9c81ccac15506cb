//! The program a kernel exists for.

use std::path::PathBuf;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// The program that the agent starts once the kernel is up, and keeps alive as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entrypoint {
    /// Program and arguments. A program without `/` is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Variables to set, besides a default `PATH` and `HOME`.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory. Default `/`.
    #[serde(default = "default_cwd")]
    pub cwd: PathBuf,
    /// Whom to run as: a name of /etc/passwd, `UID` or `UID:GID`. Default: as the agent.
    #[serde(default)]
    pub user: Option<User>,
    /// Whether to start it again when it ends. Default: never.
    #[serde(default)]
    pub restart: RestartPolicy,
}

/// A user name, `UID` or `UID:GID`.
pub type User = String;

/// Whether a program that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It ran once.
    #[default]
    Never,
    /// Only if it ended by a signal or with a code other than 0.
    OnFailure,
    /// However it ended.
    Always,
}

impl Entrypoint {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let refuse =
            |field: &str, reason: &str| Err(ConfigError::invalid(format!("entrypoint.{field}"), reason));
        if self.argv.first().is_none_or(String::is_empty) {
            return refuse("argv", "must name a program");
        }
        if self.argv.iter().any(|argument| argument.contains('\0')) {
            return refuse("argv", "an argument holds a zero byte");
        }
        let bad_name = |name: &str| name.is_empty() || name.contains(['=', '\0']);
        if self.env.iter().any(|(name, value)| bad_name(name) || value.contains('\0')) {
            return refuse("env", "a name is empty or holds `=`, or a zero byte is in a name or value");
        }
        if !self.cwd.is_absolute() {
            return refuse("cwd", "must be an absolute path");
        }
        if self.user.as_deref() == Some("") {
            return refuse("user", "must not be empty; leave it out to run as the agent");
        }
        Ok(())
    }
}

fn default_cwd() -> PathBuf {
    PathBuf::from("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entrypoint_without_a_program_is_refused() {
        let mut entrypoint: Entrypoint = serde_json::from_str(r#"{"argv":["/bin/app"]}"#).unwrap();
        entrypoint.validate().unwrap();
        assert_eq!(entrypoint.cwd, PathBuf::from("/"));
        entrypoint.argv.clear();
        assert!(entrypoint.validate().unwrap_err().to_string().contains("entrypoint.argv"));
    }

    #[test]
    fn restart_policies_have_their_usual_names() {
        for (name, policy) in [
            ("never", RestartPolicy::Never),
            ("on-failure", RestartPolicy::OnFailure),
            ("always", RestartPolicy::Always),
        ] {
            assert_eq!(serde_json::to_string(&policy).unwrap(), format!("\"{name}\""));
        }
    }
}
