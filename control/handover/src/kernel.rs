//! Who can hold a unit: a kernel of this boot and no other, the host, or nobody.

use std::fmt;
use std::str::FromStr;

use postcard_schema::Schema;
use postcard_schema::schema::NamedType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instance, by the CID its record has for life. The control plane never gives a CID to another instance, so a late
/// message cannot find a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(transparent)]
pub struct InstanceId(pub u32);

/// One boot of one kernel: 128 random bits, never reused. The bits are those of the transport's type of the same name;
/// this crate has its own so that the decisions here depend on no sockets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub [u8; 16]);

/// A kernel: an instance in one of its boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
pub struct Kernel {
    /// Which instance.
    pub instance: InstanceId,
    /// Which boot of it.
    pub incarnation: Incarnation,
}

/// One end of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    /// The primary kernel's own use.
    Host,
    /// Nobody: free to be granted.
    Pool,
    /// A spawned kernel.
    Instance(Kernel),
}

impl Party {
    /// The kernel, if it is a spawned one.
    pub fn kernel(self) -> Option<Kernel> {
        match self {
            Self::Instance(kernel) => Some(kernel),
            Self::Host | Self::Pool => None,
        }
    }

    /// The instance, whichever boot of it.
    pub fn instance(self) -> Option<InstanceId> {
        self.kernel().map(|kernel| kernel.instance)
    }

    /// Whether both mean the same holder, whichever boot of it.
    pub fn is_same_holder(self, other: Self) -> bool {
        match (self, other) {
            (Self::Host, Self::Host) | (Self::Pool, Self::Pool) => true,
            (Self::Instance(a), Self::Instance(b)) => a.instance == b.instance,
            _ => false,
        }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance {}", self.0)
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

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The first 32 bits tell boots apart for people.
        let [a, b, c, d, ..] = self.incarnation.0;
        write!(f, "{}@{a:02x}{b:02x}{c:02x}{d:02x}", self.instance)
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::Pool => f.write_str("the pool"),
            Self::Instance(kernel) => kernel.fmt(f),
        }
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
        if input.len() != 32 || !input.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        u128::from_str_radix(input, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| refuse())
    }
}

// Hex digits where the format is for people, 16 bytes where it is not.
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
    fn an_incarnation_is_hex_digits_in_json() {
        let kernel = Kernel { instance: InstanceId(3), incarnation: Incarnation([0xab; 16]) };
        let json = serde_json::to_string(&kernel).unwrap();
        assert_eq!(json, format!(r#"{{"instance":3,"incarnation":"{}"}}"#, "ab".repeat(16)));
        assert_eq!(serde_json::from_str::<Kernel>(&json).unwrap(), kernel);
        assert!(serde_json::from_str::<Incarnation>(r#""ab""#).is_err());
    }

    #[test]
    fn two_boots_of_an_instance_are_the_same_holder_and_different_parties() {
        let boot = |n| Party::Instance(Kernel { instance: InstanceId(3), incarnation: Incarnation([n; 16]) });
        assert!(boot(1).is_same_holder(boot(2)));
        assert_ne!(boot(1), boot(2));
        assert!(!boot(1).is_same_holder(Party::Host));
    }
}
