//! The kernel's own AF_VSOCK sockets: virtio, VMCI, Hyper-V, loopback, and Multikernel Linux's transport.
//!
//! SOCK_STREAM only, because Multikernel's transport has nothing else; messages are framed on top.
//!
//! On Multikernel Linux a socket must be told to use that transport before it is bound or connected
//! ([`VsockTransport::Multikernel`]), and behaves differently in ways that [`VsockStream`] evens out or that a user
//! must know:
//! - a full ring fails a write with ENOSPC: retried here, with growing pauses;
//! - shutting down one direction closes both;
//! - a dead peer is silent: whoever needs to notice sends keepalives;
//! - nothing limits the sender but that ring, and bytes can vanish when the receiver has no memory: frames above carry
//!   their own checks.
//!
//! A [`paced`](crate::paced) link over one such socket has none of these defects.

mod connect;
mod stream;

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{Backlog, SockaddrLike, VsockAddr};
use tokio_vsock::VsockListener as TokioListener;

pub use connect::Answer;
pub use stream::VsockStream;

use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};

/// How to use AF_VSOCK.
#[derive(Clone, Debug, Default)]
pub struct VsockConfig {
    /// Which of the kernel's transports sockets use. Default: the kernel chooses by destination.
    pub transport: VsockTransport,
    /// The CID that connections are said to come from in [`VsockEndpoint::local_cid`]. Default: asked of /dev/vsock.
    pub local_cid: Option<Cid>,
    /// Bytes that the kernel keeps for a connection in each direction, at either end that says so; more of them under way are fewer system
    /// calls and wake-ups a byte. Default: the kernel's own, 256 KiB. Multikernel Linux's transport has nothing of the kind.
    pub buffer_bytes: Option<u32>,
}

/// One of the kernel's vsock transports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VsockTransport {
    /// The kernel chooses by destination CID, as everywhere but on Multikernel Linux.
    #[default]
    ByDestination,
    /// Multikernel Linux's transport between kernels (`SO_VM_SOCKETS_TRANSPORT` = 1).
    Multikernel,
}

/// This kernel's AF_VSOCK.
#[derive(Clone, Debug)]
pub struct VsockEndpoint {
    transport: VsockTransport,
    buffer_bytes: Option<u32>,
    local_cid: Cid,
}

/// Where connections to one port arrive.
#[derive(Debug)]
pub struct VsockListener {
    listener: TokioListener,
    transport: VsockTransport,
    local: Addr,
}

impl VsockEndpoint {
    /// Looks up this kernel's CID unless `config` gives it.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel has no AF_VSOCK.
    pub fn new(config: VsockConfig) -> Result<Self> {
        let cid = |source| Error::io("asking /dev/vsock for this kernel's cid", source);
        let local_cid = match config.local_cid {
            Some(cid) => cid,
            None => Cid(vsock::get_local_cid().map_err(cid)?),
        };
        Ok(Self { transport: config.transport, buffer_bytes: config.buffer_bytes, local_cid })
    }

    /// This kernel's CID.
    pub fn local_cid(&self) -> Cid {
        self.local_cid
    }

    /// Connects to `addr`. Must be called on a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] when that kernel answers that nobody listens there or its backlog is full;
    /// [`Error::TimedOut`] when nothing answers within `deadline`, which is all a dead kernel does.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn connect(&self, addr: Addr, deadline: Duration) -> Result<VsockStream> {
        let socket = self.socket(&format!("connecting to {addr}"))?;
        self.connect_socket(socket, addr, deadline).await
    }

    /// What comes of a call to `addr` within `deadline`: a program there takes it, or the kernel refuses it, which is its own doing whatever its user
    /// space does. The connection is closed at once. Must be called on a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`] when it could not be asked: this kernel has no such transport, or none that leads there.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn call(&self, addr: Addr, deadline: Duration) -> Result<Answer> {
        let attempt = format!("asking whether anybody answers at {addr}");
        let outcome = connect::try_connect(self.socket(&attempt)?, addr, deadline).await;
        connect::answered(outcome).map_err(|source| Error::io(attempt, source))
    }

    /// As [`VsockEndpoint::connect`], from a port below 1024 if this program may have one.
    pub(crate) async fn connect_privileged(&self, addr: Addr, deadline: Duration) -> Result<VsockStream> {
        let attempt = format!("connecting to {addr} from a privileged port");
        let socket = self.socket(&attempt)?;
        connect::bind_privileged(&socket).map_err(|source| Error::io(attempt, source))?;
        self.connect_socket(socket, addr, deadline).await
    }

    async fn connect_socket(&self, socket: OwnedFd, addr: Addr, deadline: Duration) -> Result<VsockStream> {
        let io = connect::connect(socket, addr, deadline).await?;
        let failed = |source| Error::io(format!("connecting to {addr}"), source);
        let from = io.local_addr().map_err(failed)?;
        let local = Addr::new(self.cid_or_own(from.cid()), Port(from.port()));
        VsockStream::new(io, self.transport, local, addr).map_err(failed)
    }

    /// Listens on `port` of this kernel ([`Port::ANY`]: a free one). Must be called on a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::AddrInUse`]; [`Error::Denied`] for a port below 1024 without CAP_NET_BIND_SERVICE.
    pub fn listen(&self, port: Port, backlog: u32) -> Result<VsockListener> {
        let listener = TokioListener::from(self.bind(port, backlog)?);
        let bound = listener.local_addr();
        let bound = bound.map_err(|source| Error::io(format!("listening on port {port}"), source))?;
        let local = Addr::new(self.local_cid, Port(bound.port()));
        Ok(VsockListener { listener, transport: self.transport, local })
    }

    /// The same as a listening, non-blocking socket, for programs without a runtime.
    ///
    /// # Errors
    /// As [`VsockEndpoint::listen`].
    pub fn bind(&self, port: Port, backlog: u32) -> Result<OwnedFd> {
        let wanted = Addr::new(self.local_cid, port);
        let attempt = format!("listening on {wanted}");
        let failed = |source: nix::Error| match source {
            nix::Error::EADDRINUSE => Error::AddrInUse(wanted),
            nix::Error::EACCES | nix::Error::EPERM => {
                let reason = "ports below 1024 need CAP_NET_BIND_SERVICE".into();
                Error::Denied { attempt: attempt.clone(), reason }
            }
            other => Error::io(attempt.clone(), other.into()),
        };
        let socket = self.socket(&attempt)?;
        let anywhere = VsockAddr::new(Cid::ANY.0, port.0);
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &anywhere).map_err(failed)?;
        // Linux lets one caller more wait than listen(2) was told.
        let backlog = Backlog::new(backlog.clamp(1, 4096) as i32 - 1).unwrap_or(Backlog::MAXCONN);
        nix::sys::socket::listen(&socket, backlog).map_err(failed)?;
        Ok(socket)
    }

    fn socket(&self, attempt: &str) -> Result<OwnedFd> {
        connect::open(self.transport, self.buffer_bytes).map_err(|source| Error::io(attempt, source))
    }

    fn cid_or_own(&self, cid: u32) -> Cid {
        if Cid(cid) == Cid::ANY { self.local_cid } else { Cid(cid) }
    }
}

impl VsockListener {
    /// The next connection, in the order they were made.
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    pub async fn accept(&self) -> Result<VsockStream> {
        let failed = |source| Error::io(format!("accepting on {}", self.local), source);
        let (io, from) = self.listener.accept().await.map_err(failed)?;
        let peer = Addr::new(Cid(from.cid()), Port(from.port()));
        VsockStream::new(io, self.transport, self.local, peer).map_err(failed)
    }

    /// Where this listens.
    pub fn local_addr(&self) -> Addr {
        self.local
    }
}

fn sockaddr(addr: Addr) -> impl SockaddrLike {
    VsockAddr::new(addr.cid.0, addr.port.0)
}
