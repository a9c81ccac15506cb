//! The paced link: one socket between two kernels, on which every stream and message connection between them travels.
//!
//! Multikernel Linux's AF_VSOCK has no flow control, no half-close and no sign of death, fails writes with ENOSPC while the peer's ring is
//! full, and may lose bytes of a stream without a word. A paced link needs no more than that of its socket, and gives what this crate
//! promises everywhere. Any pair of bytes in order will do: AF_VSOCK, a Unix socket, a terminal line.
//!
//! ```text
//!   child, cid 3                                                   parent, cid 0
//!   ┌───────────────┐   streams   ┌────────┐          ┌────────┐   streams   ┌───────────────┐
//!   │ PacedEndpoint ├─────────────┤  link  ├══ one ═══┤  link  ├─────────────┤ PacedEndpoint │
//!   └───────────────┘             └───┬────┘  socket  └───┬────┘             └───────────────┘
//!                                  Dial: redials       PacedAcceptor: takes each new socket
//! ```
//! - **Paced**: at most 32 KiB and 16 frames are under way, all streams together, so that the ring of the peer's kernel keeps room for
//!   others. A full ring is waited for, with growing pauses. More goes where both ends say that the socket has a flow control of its own
//!   ([`SocketKind::Sound`]).
//! - **Whole**: frames are numbered and have checksums; what is missing or damaged closes the socket. What was not acknowledged goes again
//!   on the next one, so streams do not notice the loss of a socket.
//! - **Never silent**: a peer that says nothing for [`PacedConfig::give_up`], or that lives another life than before, ends every stream with
//!   [`Error::Reset`].
//!
//! [`core`](self) is the protocol without I/O, `docs/paced-link.md` its bytes. A link does not prove who the peer is; what travels on it
//! has to, as the RPC layer does.
//!
//! The child dials its parent:
//! ```no_run
//! # use std::time::Duration;
//! # use tombolo_transport::paced::{PacedConfig, PacedEndpoint, VsockDial};
//! # use tombolo_transport::vsock::{VsockConfig, VsockEndpoint, VsockTransport};
//! # use tombolo_transport::{Addr, Cid, Endpoint, Port};
//! # fn child() -> tombolo_transport::Result<Endpoint> {
//! let vsock =
//!     VsockEndpoint::new(VsockConfig { transport: VsockTransport::Multikernel, ..VsockConfig::default() })?;
//! let paced = PacedEndpoint::new(vsock.local_cid(), PacedConfig::default())?;
//! paced.dial(Cid(0), VsockDial::new(vsock, Addr::new(Cid(0), Port(700))))?;
//! Ok(Endpoint::paced(paced))
//! # }
//! ```
//! The parent says which children it expects, and takes their sockets:
//! ```no_run
//! # use tombolo_transport::paced::{PacedConfig, PacedEndpoint, SocketsFrom};
//! # use tombolo_transport::vsock::{VsockConfig, VsockEndpoint, VsockTransport};
//! # use tombolo_transport::{Cid, Endpoint, Port};
//! # fn parent() -> tombolo_transport::Result<Endpoint> {
//! let vsock =
//!     VsockEndpoint::new(VsockConfig { transport: VsockTransport::Multikernel, ..VsockConfig::default() })?;
//! let paced = PacedEndpoint::new(Cid(0), PacedConfig::default())?;
//! paced.serve(vsock.listen(Port(700), 64)?, SocketsFrom::PrivilegedPorts);
//! let _child = paced.expect(Cid(3))?;
//! Ok(Endpoint::paced(paced))
//! # }
//! ```

mod blocks;
mod config;
mod core;
mod driver;
mod endpoint;
mod shared;
mod sockets;
mod stream;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::core::fuzz_link;

pub use self::config::{PacedConfig, SocketKind};
pub use self::endpoint::{PacedAcceptor, PacedEndpoint, PacedListener};
pub use self::sockets::{Dial, SocketsFrom, VsockDial};
pub use self::stream::PacedStream;

#[cfg(doc)]
use crate::error::Error;
