//! [`Incarnation`]: one boot of one kernel, so that a restarted kernel is never taken for its former self.

use std::fmt;
use std::str::FromStr;

use postcard_schema::Schema;
use postcard_schema::schema::NamedType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// One boot of one kernel: 128 random bits, never reused, printed as 32 hex digits.
///
/// Serialised as those digits where the format is for people, as 16 bytes where it is not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub [u8; 16]);

impl Incarnation {
    /// No boot at all: what an unused member of a pool has.
    pub const NONE: Self = Self([0; 16]);

    /// A fresh one, from the system's random source.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no random source.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::io("drawing a random incarnation", std::io::Error::other(e.to_string())))?;
        Ok(Self(bytes))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A string is not 32 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not an incarnation: expected 32 hex digits")]
pub struct ParseIncarnationError {
    input: String,
}

impl FromStr for Incarnation {
    type Err = ParseIncarnationError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseIncarnationError { input: input.chars().take(64).collect() };
        if input.len() != 32 || !input.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        u128::from_str_radix(input, 16).map(|value| Self(value.to_be_bytes())).map_err(|_| refuse())
    }
}

impl Serialize for Incarnation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

impl Schema for Incarnation {
    const SCHEMA: &'static NamedType = <[u8; 16]>::SCHEMA;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnation_survives_printing_and_parsing() {
        let incarnation = Incarnation::random().unwrap();
        assert_eq!(incarnation.to_string().len(), 32);
        assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
    }

    #[test]
    fn incarnation_of_wrong_shape_is_refused() {
        for input in ["", "00", "+0000000000000000000000000000000", "g0000000000000000000000000000000"] {
            assert!(input.parse::<Incarnation>().is_err(), "{input} was accepted");
        }
    }

    #[test]
    fn incarnation_is_sixteen_bytes_in_a_binary_format() {
        let incarnation = Incarnation([7; 16]);
        let bytes = postcard::to_allocvec(&incarnation).unwrap();
        assert_eq!(bytes, [7; 16]);
        assert_eq!(postcard::from_bytes::<Incarnation>(&bytes).unwrap(), incarnation);
    }
}
