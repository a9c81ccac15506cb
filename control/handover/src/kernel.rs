//! Who can hold a unit: a kernel of this boot and no other, the host, or nobody.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
pub use tombolo_transport::Incarnation;

/// An instance, by the CID its record has for life. The control plane never gives a CID to another instance, so a late
/// message cannot find a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(transparent)]
pub struct InstanceId(pub u32);

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
