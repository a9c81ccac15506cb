//! Addresses, as in vsock(7): a kernel is a [`Cid`], a socket within it a [`Port`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Context identifier: names one kernel.
///
/// The primary kernel is [`Cid::HOST`] everywhere except on Multikernel Linux, where it is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cid(pub u32);

impl Cid {
    /// Loopback within one kernel (`VMADDR_CID_LOCAL`).
    pub const LOCAL: Self = Self(1);
    /// The primary kernel, seen from a spawned one (`VMADDR_CID_HOST`).
    pub const HOST: Self = Self(2);
    /// Any kernel (`VMADDR_CID_ANY`): valid only where one listens.
    pub const ANY: Self = Self(u32::MAX);
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cid {}", self.0)
    }
}

/// A port within one kernel.
///
/// Ports below 1024 are for privileged programs; [`Port::EPHEMERAL_FIRST`] and up are handed out to callers that
/// ask for none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(pub u32);

impl Port {
    /// Choose a free port (`VMADDR_PORT_ANY`).
    pub const ANY: Self = Self(u32::MAX);
    /// Where the control plane listens in the primary kernel; agents dial it.
    pub const CONTROL: Self = Self(1);
    /// Where a kernel takes what is [relayed](crate::relay) to it.
    pub const RELAY: Self = Self(2);
    /// The first port that is handed out to those who ask for [`Port::ANY`].
    pub const EPHEMERAL_FIRST: Self = Self(0xC000_0000);

    /// Whether only a privileged program may listen here (below 1024).
    pub fn is_privileged(self) -> bool {
        self.0 < 1024
    }

    /// Of the ports that are handed out, the one after this; after the last comes the first again.
    pub(crate) fn next_ephemeral(self) -> Self {
        if self.0 >= Self::ANY.0 - 1 { Self::EPHEMERAL_FIRST } else { Self(self.0 + 1) }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.0)
    }
}

/// Where a socket is: kernel and port, written `CID:PORT`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Addr {
    /// The kernel.
    pub cid: Cid,
    /// The port within it.
    pub port: Port,
}

impl Addr {
    /// The address of `port` in kernel `cid`.
    pub fn new(cid: Cid, port: Port) -> Self {
        Self { cid, port }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cid, self.port)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A string is not an address of the form `CID:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not an address: expected CID:PORT, two numbers below 2^32, such as 3:6379")]
pub struct ParseAddrError {
    input: String,
}

impl FromStr for Addr {
    type Err = ParseAddrError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (cid, port) = input.split_once(':')?;
            Some(Self::new(Cid(cid.parse().ok()?), Port(port.parse().ok()?)))
        };
        parse().ok_or_else(|| ParseAddrError { input: input.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_survives_printing_and_parsing() {
        let addr = Addr::new(Cid(3), Port(6379));
        assert_eq!(addr.to_string().parse(), Ok(addr));
    }

    #[test]
    fn address_without_both_numbers_is_refused() {
        for input in ["", "3", "3:", ":1", "3:4294967296", "a:b", "3:-1"] {
            assert!(input.parse::<Addr>().is_err(), "{input} was accepted");
        }
    }
}
