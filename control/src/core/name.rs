//! Names of instances: short, printable, fit for a hostname, a file name and a row of the pool's superblock.

use std::fmt;
use std::str::FromStr;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Longest name, in bytes: a member row of the pool holds 32.
pub const NAME_BYTES_MAX: usize = 32;

/// The name of the primary kernel in rules and addresses; no instance may take it.
pub const HOST: &str = "host";

/// What is free to be granted, in hand-overs; no instance may take it.
pub const POOL: &str = "pool";

/// A valid instance name: a lower-case letter, then up to 31 of `a-z 0-9 -`, not ending in `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// A string is not an instance name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not an instance name: {reason}")]
pub struct NameError {
    input: String,
    reason: &'static str,
}

impl InstanceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(input: &str) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError { input: input.chars().take(64).collect(), reason });
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if input.is_empty() {
            return refuse("it is empty");
        }
        if input.len() > NAME_BYTES_MAX {
            return refuse("it is longer than 32 bytes");
        }
        if !input.bytes().all(legal) {
            return refuse("only a-z, 0-9 and `-` are allowed");
        }
        if !input.starts_with(|first: char| first.is_ascii_lowercase()) {
            return refuse("it must begin with a letter, so that it is never taken for a CID");
        }
        if input.ends_with('-') {
            return refuse("it may not end with `-`");
        }
        if input == HOST {
            return refuse("`host` means the primary kernel");
        }
        if input == POOL {
            return refuse("`pool` means what is free");
        }
        Ok(Self(input.to_owned()))
    }
}

impl TryFrom<String> for InstanceName {
    type Error = NameError;

    fn try_from(input: String) -> Result<Self, NameError> {
        input.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for name in ["web", "db-1", "x", "a23456789012345678901234567890-2"] {
            assert_eq!(name.parse::<InstanceName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_would_not_fit_a_path_a_hostname_or_a_rule_are_refused() {
        for name in [
            "",
            "-a",
            "a-",
            "3",
            "3a",
            "A",
            "a/b",
            "..",
            "a b",
            "ü",
            "host",
            "*",
            "a234567890123456789012345678901234",
        ] {
            assert!(name.parse::<InstanceName>().is_err(), "{name} was accepted");
        }
    }

    #[test]
    fn a_stored_name_is_checked_when_read_back() {
        assert!(serde_json::from_str::<InstanceName>("\"../x\"").is_err());
    }
}
