//! How much of a kernel's heap any one other kernel may hold.
//!
//! Every connection with another kernel holds a half in our heap until both sides have closed it, and a kernel that misbehaves (or is
//! frozen) never closes. Without a limit it could take the whole heap, and nobody else could connect any more.

/// What any one other kernel may hold of a kernel's heap, by connections in whatever state, whoever made them. What would go
/// beyond is refused; connections that are there stay.
///
/// The primary kernel, which is trusted, and connections within the kernel are not bound by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerQuota {
    /// Bytes. `None`, the default: three times as many as are left free. A greedy kernel thus gets three quarters of what it finds
    /// free and leaves a quarter to others ("dynamic thresholds": Choudhury and Hahne, *Dynamic queue length thresholds for
    /// shared-memory packet switches*, 1998, with a factor of 3).
    pub heap_bytes_max: Option<u64>,
    /// Connections. Default 4096.
    pub connections_max: u32,
}

/// How many times what is left free a kernel may hold, unless told otherwise.
const FREE_FACTOR: u64 = 3;

impl Default for PeerQuota {
    fn default() -> Self {
        Self { heap_bytes_max: None, connections_max: 4096 }
    }
}

/// What connections with one other kernel hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) connections: u32,
}

impl PeerQuota {
    /// Whether `held` may be, with `free_bytes` of the heap left.
    pub(crate) fn allows(&self, held: Held, free_bytes: u64) -> bool {
        let bytes_max = self.heap_bytes_max.unwrap_or_else(|| free_bytes.saturating_mul(FREE_FACTOR));
        held.bytes <= bytes_max && held.connections <= self.connections_max
    }
}

impl Held {
    pub(crate) fn with(self, bytes: u64) -> Self {
        Self { bytes: self.bytes + bytes, connections: self.connections + 1 }
    }

    pub(crate) fn without(self, bytes: u64) -> Self {
        Self { bytes: self.bytes.saturating_sub(bytes), connections: self.connections.saturating_sub(1) }
    }
}
