//! What a caller may ask for when it connects or listens: sizes, backlog, deadlines.

use std::time::Duration;

/// Memory of one direction of a connection. Each side chooses its own; backends without shared memory use only
/// [`Sizes::message_bytes_max`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Cache-line slots of the message ring (messages up to 56 bytes travel in one). Rounded up to a power of two.
    /// Default 64.
    pub slots: u32,
    /// Bytes of the byte ring, which carries streams and longer messages. Rounded up to a power of two. Default
    /// 256 KiB: half of a small second-level cache. An extent of 32 MiB holds some 119 such halves; connections with one
    /// other kernel may hold three quarters of it ([`PeerQuota`](crate::broker::PeerQuota)).
    pub ring_bytes: u32,
    /// Buffers for very long messages, which go without passing through the ring. Default 0.
    pub loans: u32,
    /// Bytes of each such buffer. Rounded up to a power of two. Default 0.
    pub loan_bytes: u32,
    /// The longest message of a connection on a byte stream (AF_VSOCK, hybrid), in bytes. Default 1 MiB.
    pub message_bytes_max: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { slots: 64, ring_bytes: 256 * 1024, loans: 0, loan_bytes: 0, message_bytes_max: 1024 * 1024 }
    }
}

/// How a process attaches to the shared-memory fabric.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// How long a task asks a ring again and again, letting other tasks run in between, before it sleeps. About the price of a
    /// sleep and a wake-up pays best, so it is raised to that, up to 2 ms, where system calls are slow (user-mode Linux). It adapts
    /// downwards on connections where asking does not help. Zero: never ask. Default 100 µs. Whoever runs the program may say otherwise,
    /// and then exactly that holds: `TOMBOLO_SPIN=off`, or a time such as `TOMBOLO_SPIN=50us`, up to 1 s.
    pub spin: Duration,
    /// How often to look for bells that were lost, while somebody sleeps. Default 100 ms.
    pub recheck: Duration,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self { spin: Duration::from_micros(100), recheck: Duration::from_millis(100) }
    }
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// How long to wait for the answer. Default 5 s. When it runs out the connect fails with
    /// [`Error::TimedOut`](crate::Error::TimedOut) and nothing is left behind.
    pub timeout: Duration,
    /// Memory of our direction.
    pub sizes: Sizes,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), sizes: Sizes::default() }
    }
}

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted. Default 128. Further ones are refused.
    pub backlog: u32,
    /// A service name, found by others as `KERNEL/NAME`. Default none.
    pub name: Option<String>,
    /// Memory of our direction of each accepted connection.
    pub sizes: Sizes,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 128, name: None, sizes: Sizes::default() }
    }
}

impl ListenOptions {
    /// Defaults, with a service name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }
}
