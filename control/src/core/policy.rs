//! Who may connect to whom. Connections between spawned kernels are refused unless a rule allows them;
//! connections from and to the primary kernel are the operator's own and are allowed.
//!
//! A `deny` rule wins over any `allow` rule, whatever their order: an exception cannot be undone by accident.

use std::fmt;
use std::str::FromStr;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use tombolo_transport::broker::{Policy, PolicyAction, PolicyRule};

use super::name::{HOST, InstanceName};

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Allows the connection.
    Allow,
    /// Refuses it even if another rule allows it.
    Deny,
}

/// One rule: may `from` connect to `to` at `port`?
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Schema)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// The kernel that connects: a name, or `*`.
    pub from: String,
    /// The kernel that listens: a name, or `*`.
    pub to: String,
    /// Where it listens: a port number, the name of a service, or `*`.
    pub port: String,
}

/// A rule, or the target of one, that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not {expected}")]
pub struct RuleError {
    input: String,
    expected: &'static str,
}

/// Where a rule points: `NAME:PORT`, `NAME:SERVICE`, `NAME` (any port) or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kernel.
    pub to: String,
    /// The port, service name or `*`.
    pub port: String,
}

impl Rule {
    /// A rule whose parts are known to be well formed.
    ///
    /// # Errors
    /// If a kernel name, port or service name is malformed.
    pub fn new(action: Action, from: &str, target: &Target) -> Result<Self, RuleError> {
        check_kernel(from)?;
        check_kernel(&target.to)?;
        check_port(&target.port)?;
        Ok(Self { action, from: from.to_owned(), to: target.to.clone(), port: target.port.clone() })
    }
}

/// The rules in the order in which brokers must try them: what is denied first, for the first match decides there.
pub fn to_broker_policy(rules: &[Rule]) -> Policy {
    let mut ordered: Vec<&Rule> = rules.iter().collect();
    ordered.sort_by_key(|rule| rule.action == Action::Allow);
    Policy { rules: ordered.into_iter().filter_map(to_broker_rule).collect() }
}

/// `None` only for a rule that [`Rule::new`] would not have made.
fn to_broker_rule(rule: &Rule) -> Option<PolicyRule> {
    let action = match rule.action {
        Action::Allow => PolicyAction::Allow,
        Action::Deny => PolicyAction::Deny,
    };
    Some(PolicyRule {
        from: rule.from.parse().ok()?,
        to: rule.to.parse().ok()?,
        port: rule.port.parse().ok()?,
        action,
    })
}

fn check_kernel(name: &str) -> Result<(), RuleError> {
    if name == "*" || name == HOST || name.parse::<InstanceName>().is_ok() {
        return Ok(());
    }
    Err(RuleError { input: name.to_owned(), expected: "the name of a kernel, or `*`" })
}

fn check_port(port: &str) -> Result<(), RuleError> {
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_service = !port.is_empty()
        && port.len() <= 64
        && port.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    let valid = port == "*" || if is_number { port.parse::<u32>().is_ok() } else { is_service };
    if valid {
        return Ok(());
    }
    Err(RuleError { input: port.to_owned(), expected: "a port below 2^32, the name of a service, or `*`" })
}

impl FromStr for Target {
    type Err = RuleError;

    fn from_str(input: &str) -> Result<Self, RuleError> {
        let (to, port) = match input.split_once(':').or_else(|| input.split_once('/')) {
            Some((to, port)) => (to, port),
            None => (input, "*"),
        };
        check_kernel(to)?;
        check_port(port)?;
        Ok(Self { to: to.to_owned(), port: port.to_owned() })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}:{}", self.action, self.from, self.to, self.port)
    }
}

#[cfg(test)]
mod tests {
    use tombolo_transport::broker::KernelId;
    use tombolo_transport::{Cid, Port};

    use super::*;

    fn rule(action: Action, from: &str, target: &str) -> Rule {
        Rule::new(action, from, &target.parse().unwrap()).unwrap()
    }

    fn allows(rules: &[Rule], from: &str, to: &str, port: u32, service: Option<&str>) -> bool {
        let id = |name| match name {
            "host" => KernelId { cid: Cid::HOST, name, primary: true },
            name => KernelId { cid: Cid(name.len() as u32 + 10), name, primary: false },
        };
        to_broker_policy(rules).allows(id(from), id(to), Port(port), service)
    }

    #[test]
    fn strangers_are_refused_and_the_primary_is_not() {
        assert!(!allows(&[], "web", "db", 6379, None));
        assert!(allows(&[], "host", "db", 6379, None));
        assert!(allows(&[], "web", "host", 1, None));
    }

    #[test]
    fn a_rule_allows_one_direction_and_one_port() {
        let rules = [rule(Action::Allow, "web", "db:6379")];
        assert!(allows(&rules, "web", "db", 6379, None));
        assert!(!allows(&rules, "db", "web", 6379, None));
        assert!(!allows(&rules, "web", "db", 6380, None));
    }

    #[test]
    fn a_service_is_allowed_by_its_name_wherever_it_listens() {
        for target in ["db:kv", "db/kv"] {
            let rules = [rule(Action::Allow, "web", target)];
            assert!(allows(&rules, "web", "db", 3_221_225_472, Some("kv")));
            assert!(!allows(&rules, "web", "db", 3_221_225_472, None));
        }
    }

    #[test]
    fn a_denial_wins_over_every_permission() {
        for rules in [
            [rule(Action::Allow, "*", "db"), rule(Action::Deny, "web", "db:6379")],
            [rule(Action::Deny, "web", "db:6379"), rule(Action::Allow, "*", "db")],
        ] {
            assert!(!allows(&rules, "web", "db", 6379, None));
            assert!(allows(&rules, "web", "db", 80, None));
            assert!(allows(&rules, "mail", "db", 6379, None));
        }
    }

    #[test]
    fn malformed_rules_are_refused() {
        for target in ["", ":1", "db:", "db:4294967296", "DB:1", "db:a b", "db:1:2"] {
            assert!(target.parse::<Target>().is_err(), "{target} was accepted");
        }
    }
}
