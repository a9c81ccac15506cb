//! Sockets of a guest seen from its host as Unix sockets: the convention of Firecracker, Cloud Hypervisor and
//! vhost-device-vsock.
//!
//! A monitor owns a Unix socket at `PATH` for its guest.
//!
//! ```text
//! host program ── connect PATH, "CONNECT 52\n" ──▶ monitor ── AF_VSOCK 3:52 ──▶ guest program listening on 52
//!              ◀─ "OK 1073741824\n" (its host port) ─
//! host program listening at PATH_52 ◀── connect ── monitor ◀── AF_VSOCK 2:52 ── guest program
//! ```
//!
//! [`HostSide`] is the host program's part and works with any of those monitors. [`GuestSide`] is a monitor and its
//! guest in one: it lets a process without a kernel of its own be reached, and call, by the same convention.
//!
//! What the convention leaves out: the host learns neither the port a guest calls from (reported as [`Port::ANY`]) nor
//! why a call failed (the monitor just hangs up, which is reported as refused).
//!
//! [`Port::ANY`]: crate::Port::ANY

mod guest;
pub(crate) mod handshake;
mod host;
mod stream;
mod unix;

use std::path::PathBuf;

pub use guest::{GuestListener, GuestSide};
pub use host::{HostListener, HostSide};
pub use stream::HybridStream;

use crate::addr::Cid;

/// How to take part in the hybrid convention.
#[derive(Clone, Debug)]
pub struct HybridConfig {
    /// The monitor's Unix socket; `PATH_<port>` are those of listeners on the host. At most 96 bytes.
    pub path: PathBuf,
    /// CID of the guest behind the monitor.
    pub guest_cid: Cid,
    /// CID that the host goes by. Default [`Cid::HOST`].
    pub host_cid: Cid,
    /// Which side this process is.
    pub side: HybridSide,
}

/// Which side of the hybrid convention a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HybridSide {
    /// A program on the host: dials `PATH`, listens at `PATH_<port>`.
    Host,
    /// The monitor with its guest: listens at `PATH`, dials `PATH_<port>`.
    Guest,
}

impl HybridConfig {
    /// A program on the host of the guest `guest_cid` whose monitor serves `path`.
    pub fn host(path: impl Into<PathBuf>, guest_cid: Cid) -> Self {
        Self { path: path.into(), guest_cid, host_cid: Cid::HOST, side: HybridSide::Host }
    }

    /// The monitor and guest `guest_cid` that serve `path`.
    pub fn guest(path: impl Into<PathBuf>, guest_cid: Cid) -> Self {
        Self { side: HybridSide::Guest, ..Self::host(path, guest_cid) }
    }
}
