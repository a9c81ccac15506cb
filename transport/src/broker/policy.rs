//! Who may connect to whom: an ordered list of rules, checked by the broker of the kernel that is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::addr::{Cid, Port};

/// Rules in order; the first that matches decides. Without a match: a connection from or to the primary and one within
/// a kernel is allowed, one between two spawned kernels is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Policy {
    /// The rules, first match first.
    pub rules: Vec<PolicyRule>,
}

/// One rule: `{"from":"web","to":"db","port":"6379"}` allows, with `"action":"deny"` denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Who calls.
    pub from: KernelMatch,
    /// Who is called.
    pub to: KernelMatch,
    /// Which port or service there.
    pub port: PortMatch,
    /// What then. Default allow.
    #[serde(default)]
    pub action: PolicyAction,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyAction {
    /// The connection may be made.
    #[default]
    Allow,
    /// It is refused as denied.
    Deny,
}

/// A kernel in a rule: `*`, a CID (digits) or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelMatch {
    /// Every kernel.
    Any,
    /// The one with this CID.
    Cid(Cid),
    /// The one of this name.
    Name(String),
}

/// A port in a rule: `*`, a number, or the name of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMatch {
    /// Every port.
    Any,
    /// This one.
    Port(Port),
    /// Wherever the service of this name listens.
    Service(String),
}

/// One kernel as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct KernelId<'a> {
    /// Its CID.
    pub cid: Cid,
    /// Its name; empty if not known.
    pub name: &'a str,
    /// Whether it is the primary.
    pub primary: bool,
}

impl Policy {
    /// Whether `from` may connect to `port` (which `service` names, if any) of `to`.
    pub fn allows(&self, from: KernelId<'_>, to: KernelId<'_>, port: Port, service: Option<&str>) -> bool {
        if from.cid == to.cid {
            return true;
        }
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.from.matches(from) && rule.to.matches(to) && rule.port.matches(port, service));
        match rule {
            Some(rule) => rule.action == PolicyAction::Allow,
            None => from.primary || to.primary,
        }
    }
}

impl KernelMatch {
    fn matches(&self, kernel: KernelId<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Cid(cid) => *cid == kernel.cid,
            Self::Name(name) => name == kernel.name,
        }
    }
}

impl PortMatch {
    fn matches(&self, port: Port, service: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Port(wanted) => *wanted == port,
            Self::Service(name) => Some(name.as_str()) == service,
        }
    }
}

/// A string is no kernel or port of a policy rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not {expected}")]
pub struct ParsePolicyError {
    input: String,
    expected: &'static str,
}

impl FromStr for KernelMatch {
    type Err = ParsePolicyError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        match input {
            "*" => Ok(Self::Any),
            "" => Err(ParsePolicyError { input: input.into(), expected: "a kernel: `*`, a CID or a name" }),
            _ => Ok(input.parse().map_or_else(|_| Self::Name(input.into()), |cid| Self::Cid(Cid(cid)))),
        }
    }
}

impl FromStr for PortMatch {
    type Err = ParsePolicyError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        match input {
            "*" => Ok(Self::Any),
            "" => {
                Err(ParsePolicyError { input: input.into(), expected: "a port: `*`, a number or a service" })
            }
            _ => {
                Ok(input.parse().map_or_else(|_| Self::Service(input.into()), |port| Self::Port(Port(port))))
            }
        }
    }
}

impl fmt::Display for KernelMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Cid(cid) => write!(f, "{cid}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Service(name) => f.write_str(name),
        }
    }
}

impl Serialize for KernelMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KernelMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for PortMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(cid: u32, name: &str) -> KernelId<'_> {
        KernelId { cid: Cid(cid), name, primary: cid == 2 }
    }

    fn rule(from: &str, to: &str, port: &str, action: PolicyAction) -> PolicyRule {
        PolicyRule {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            port: port.parse().unwrap(),
            action,
        }
    }

    #[test]
    fn spawned_kernels_may_not_talk_to_each_other_unless_allowed() {
        let policy = Policy::default();
        assert!(policy.allows(kernel(2, "host"), kernel(3, "web"), Port(80), None));
        assert!(policy.allows(kernel(3, "web"), kernel(2, "host"), Port(1), None));
        assert!(policy.allows(kernel(3, "web"), kernel(3, "web"), Port(1), None));
        assert!(!policy.allows(kernel(3, "web"), kernel(4, "db"), Port(6379), None));
    }

    #[test]
    fn first_matching_rule_decides() {
        let policy = Policy {
            rules: vec![
                rule("web", "db", "6379", PolicyAction::Allow),
                rule("3", "4", "kv", PolicyAction::Allow),
                rule("*", "*", "22", PolicyAction::Deny),
            ],
        };
        let (web, db, host) = (kernel(3, "web"), kernel(4, "db"), kernel(2, "host"));
        assert!(policy.allows(web, db, Port(6379), None));
        assert!(policy.allows(web, db, Port(9), Some("kv")));
        assert!(!policy.allows(web, db, Port(9), Some("other")));
        assert!(!policy.allows(db, web, Port(6379), None));
        assert!(!policy.allows(host, web, Port(22), None));
    }
}
