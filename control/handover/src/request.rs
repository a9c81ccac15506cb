//! What somebody asks for, before anything is known to fit.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::unit::PciAddress;

/// A wish to move units from one holder to another.
///
/// Compared whole: the same [`key`](Self::key) with the same body is the same operation, and with any other body a mistake.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Request {
    /// Idempotency key, chosen by whoever asks. 1 to 128 bytes.
    pub key: String,
    /// Who gives.
    pub from: Side,
    /// Who gets.
    pub to: Side,
    /// What.
    pub what: What,
    /// Refuse unless the ledger is still at this version.
    #[serde(default)]
    pub if_version: Option<u64>,
    /// What to do when some of the units cannot be had.
    #[serde(default)]
    pub shortfall: Shortfall,
    /// Whether applications' hooks are run. Default true.
    #[serde(default = "yes")]
    pub hooks: bool,
    /// Whether a device may move that cannot be reset between owners. Default false.
    #[serde(default)]
    pub allow_no_reset: bool,
}

/// A holder, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The primary kernel's own use.
    Host,
    /// What is free.
    Pool,
    /// The instance of this name.
    Instance(String),
}

/// What is to move.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// So many CPUs, whichever fit best.
    CpuCount(u32),
    /// These CPUs, by platform id.
    Cpus(Vec<u32>),
    /// So much memory.
    MemoryBytes(u64),
    /// This PCI function.
    Device(PciAddress),
    /// So many ways of this cache.
    LlcWays {
        /// Which cache.
        cache: u32,
        /// How many.
        count: u8,
    },
}

/// What to do when some units cannot be had, before anything has been taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Shortfall {
    /// Give all back and say why. The default.
    #[default]
    Abort,
    /// Move the others.
    MoveTheRest,
}

/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

fn yes() -> bool {
    true
}

impl Request {
    /// A request with the defaults: all or nothing, with hooks, at any version.
    pub fn new(key: impl Into<String>, from: Side, to: Side, what: What) -> Self {
        Self {
            key: key.into(),
            from,
            to,
            what,
            if_version: None,
            shortfall: Shortfall::Abort,
            hooks: true,
            allow_no_reset: false,
        }
    }
}

impl Side {
    /// `host`, `pool`, or the name of an instance.
    pub fn named(name: &str) -> Self {
        match name {
            "host" => Self::Host,
            "pool" => Self::Pool,
            other => Self::Instance(other.to_owned()),
        }
    }
}

/// What [`Side::named`] reads.
impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Pool => "pool",
            Self::Instance(name) => name,
        })
    }
}

/// A text is not an amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It has a minus sign.
    #[error("`{input}` is negative; say how much, and by `--from` and `--to` which way")]
    Negative {
        /// What was given.
        input: String,
    },
    /// It is not digits and a unit.
    #[error("`{input}` is not a size: expected digits and a unit out of K, M, G, T, as in `256M`")]
    Malformed {
        /// What was given.
        input: String,
    },
    /// It is more than 2^64 - 1 bytes.
    #[error("`{input}` is more memory than 64 bits can count")]
    TooLarge {
        /// What was given.
        input: String,
    },
}

/// Reads `256M`, `1GiB`, `4096`: powers of 1024, bytes without a unit.
///
/// # Errors
/// [`SizeError`] says which way it is wrong.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let input = || text.chars().take(64).collect::<String>();
    if text.starts_with('-') {
        return Err(SizeError::Negative { input: input() });
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SizeError::Malformed { input: input() }),
    };
    if number.is_empty() {
        return Err(SizeError::Malformed { input: input() });
    }
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge { input: input() })?;
    number.checked_mul(1 << shift).ok_or_else(|| SizeError::TooLarge { input: input() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("256M", 256 << 20), ("1GiB", 1 << 30), ("2tb", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn negative_malformed_and_huge_sizes_are_told_apart() {
        assert!(matches!(parse_size("-256M"), Err(SizeError::Negative { .. })));
        for text in ["", "M", "1.5G", "12X", "1 G", "0x10", "+1"] {
            assert!(matches!(parse_size(text), Err(SizeError::Malformed { .. })), "{text} was accepted");
        }
        for text in ["99999999999999999999", "18446744073709551615K"] {
            assert!(matches!(parse_size(text), Err(SizeError::TooLarge { .. })), "{text} was accepted");
        }
    }
}
