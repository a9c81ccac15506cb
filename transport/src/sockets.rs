//! The backends that are sockets of some kind, as one: a byte stream each, messages framed on top.

use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};
use crate::framed::IoStream;
use crate::hybrid::{GuestListener, GuestSide, HostListener, HostSide};
use crate::memory::{MemoryEndpoint, MemoryListener};
use crate::messages::Messages;
use crate::options::{ConnectOptions, ListenOptions};
use crate::paced::{PacedEndpoint, PacedListener};
use crate::stream::Stream;
use crate::vsock::{VsockEndpoint, VsockListener};

#[derive(Clone, Debug)]
pub(crate) enum SocketEndpoint {
    Vsock(VsockEndpoint),
    HybridHost(HostSide),
    HybridGuest(GuestSide),
    Memory(MemoryEndpoint),
    Paced(PacedEndpoint),
}

#[derive(Debug)]
pub(crate) struct SocketListener {
    kind: ListenerKind,
    message_bytes_max: usize,
}

#[derive(Debug)]
enum ListenerKind {
    Vsock(VsockListener),
    HybridHost(HostListener),
    HybridGuest(GuestListener),
    Memory(MemoryListener),
    Paced(PacedListener),
}

/// A connection as its backend made it.
struct Connected {
    io: Box<dyn IoStream>,
    local: Addr,
    peer: Addr,
}

impl SocketEndpoint {
    pub(crate) fn local_cid(&self) -> Cid {
        match self {
            Self::Vsock(vsock) => vsock.local_cid(),
            Self::HybridHost(host) => host.local_cid(),
            Self::HybridGuest(guest) => guest.local_cid(),
            Self::Memory(memory) => memory.local_cid(),
            Self::Paced(paced) => paced.local_cid(),
        }
    }

    pub(crate) async fn connect(&self, addr: Addr, options: &ConnectOptions) -> Result<Stream> {
        let Connected { io, local, peer } = self.dial(addr, options).await?;
        Ok(Stream::from_io(io, local, peer))
    }

    pub(crate) async fn connect_messages(&self, addr: Addr, options: &ConnectOptions) -> Result<Messages> {
        let Connected { io, local, peer } = self.dial(addr, options).await?;
        Ok(Messages::framed(io, local, peer, options.sizes.message_bytes_max))
    }

    pub(crate) fn listen(&self, port: Port, options: &ListenOptions) -> Result<SocketListener> {
        if let Some(name) = &options.name {
            let problem = "this endpoint has no broker to tell others its name; listen without one";
            return Err(Error::Invalid(format!("cannot listen as `{name}`: {problem}")));
        }
        let backlog = options.backlog;
        let kind = match self {
            Self::Vsock(vsock) => ListenerKind::Vsock(vsock.listen(port, backlog)?),
            Self::HybridHost(host) => ListenerKind::HybridHost(host.listen(port, backlog)?),
            Self::HybridGuest(guest) => ListenerKind::HybridGuest(guest.listen(port, backlog)?),
            Self::Memory(memory) => ListenerKind::Memory(memory.listen(port, backlog)?),
            Self::Paced(paced) => ListenerKind::Paced(paced.listen(port, backlog)?),
        };
        Ok(SocketListener { kind, message_bytes_max: options.sizes.message_bytes_max })
    }

    async fn dial(&self, addr: Addr, options: &ConnectOptions) -> Result<Connected> {
        macro_rules! connected {
            ($stream:expr) => {{
                let stream = $stream;
                Connected { local: stream.local_addr(), peer: stream.peer_addr(), io: Box::new(stream) }
            }};
        }
        Ok(match self {
            Self::Vsock(vsock) => connected!(vsock.connect(addr, options.timeout).await?),
            Self::HybridHost(host) => connected!(host.connect(addr, options.timeout).await?),
            Self::HybridGuest(guest) => connected!(guest.connect(addr, options.timeout).await?),
            Self::Memory(memory) => connected!(memory.connect(addr)?),
            Self::Paced(paced) => connected!(paced.connect(addr, options.timeout).await?),
        })
    }
}

impl SocketListener {
    pub(crate) async fn accept_stream(&mut self) -> Result<(Stream, Addr)> {
        let Connected { io, local, peer } = self.accept().await?;
        Ok((Stream::from_io(io, local, peer), peer))
    }

    pub(crate) async fn accept_messages(&mut self) -> Result<(Messages, Addr)> {
        let Connected { io, local, peer } = self.accept().await?;
        Ok((Messages::framed(io, local, peer, self.message_bytes_max), peer))
    }

    pub(crate) fn local_addr(&self) -> Addr {
        match &self.kind {
            ListenerKind::Vsock(listener) => listener.local_addr(),
            ListenerKind::HybridHost(listener) => listener.local_addr(),
            ListenerKind::HybridGuest(listener) => listener.local_addr(),
            ListenerKind::Memory(listener) => listener.local_addr(),
            ListenerKind::Paced(listener) => listener.local_addr(),
        }
    }

    async fn accept(&mut self) -> Result<Connected> {
        macro_rules! connected {
            ($stream:expr) => {{
                let stream = $stream;
                Connected { local: stream.local_addr(), peer: stream.peer_addr(), io: Box::new(stream) }
            }};
        }
        Ok(match &mut self.kind {
            ListenerKind::Vsock(listener) => connected!(listener.accept().await?),
            ListenerKind::HybridHost(listener) => connected!(listener.accept().await?),
            ListenerKind::HybridGuest(listener) => connected!(listener.accept().await?),
            ListenerKind::Memory(listener) => connected!(listener.accept().await?),
            ListenerKind::Paced(listener) => connected!(listener.accept().await?),
        })
    }
}
