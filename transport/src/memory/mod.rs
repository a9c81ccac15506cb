//! Kernels that are only tables in this process: for tests of whatever runs on top of the transport.
//!
//! A [`MemoryFabric`] holds any number of kernels; [`MemoryFabric::endpoint`] is an attachment to one of them. Bytes
//! travel through `tokio::io::duplex` pipes, messages through framing on top of those.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};
use crate::ports::{BoundPort, PortTable};

/// Bytes under way in each direction before a writer waits.
pub const WINDOW_BYTES: usize = 64 * 1024;

/// A set of kernels inside this process.
#[derive(Clone, Debug, Default)]
pub struct MemoryFabric {
    kernels: Arc<Mutex<HashMap<Cid, PortTable<MemoryStream>>>>,
}

/// An attachment to one kernel of a [`MemoryFabric`].
#[derive(Clone, Debug)]
pub struct MemoryEndpoint {
    fabric: MemoryFabric,
    cid: Cid,
    ports: PortTable<MemoryStream>,
}

/// Where callers of one port arrive.
#[derive(Debug)]
pub struct MemoryListener {
    bound: BoundPort<MemoryStream>,
}

/// One side of a connection inside this process.
#[derive(Debug)]
pub struct MemoryStream {
    io: DuplexStream,
    local: Addr,
    peer: Addr,
}

impl MemoryFabric {
    /// A fabric without kernels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Attaches to kernel `cid`, which comes into being with its first attachment.
    pub fn endpoint(&self, cid: Cid) -> MemoryEndpoint {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = kernels.entry(cid).or_insert_with(|| PortTable::new(cid)).clone();
        MemoryEndpoint { fabric: self.clone(), cid, ports }
    }

    fn ports(&self, cid: Cid) -> Option<PortTable<MemoryStream>> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).get(&cid).cloned()
    }
}

impl MemoryEndpoint {
    /// The kernel attached to.
    pub fn local_cid(&self) -> Cid {
        self.cid
    }

    /// Connects to `addr`: at once, or not at all.
    ///
    /// # Errors
    /// [`Error::Refused`] when no such kernel exists, nobody listens there or the backlog is full.
    pub fn connect(&self, addr: Addr) -> Result<MemoryStream> {
        let Some(ports) = self.fabric.ports(addr.cid) else {
            return Err(Error::Refused { addr, reason: format!("no kernel has cid {}", addr.cid) });
        };
        let place = ports.reserve(addr.port).map_err(|none| none.refusal(addr))?;
        let local = Addr::new(self.cid, self.ports.ephemeral());
        let (near, far) = tokio::io::duplex(WINDOW_BYTES);
        place.send(MemoryStream { io: far, local: addr, peer: local });
        Ok(MemoryStream { io: near, local, peer: addr })
    }

    /// Listens on `port` ([`Port::ANY`]: a free one); `backlog` callers may wait to be accepted.
    ///
    /// # Errors
    /// [`Error::AddrInUse`].
    pub fn listen(&self, port: Port, backlog: u32) -> Result<MemoryListener> {
        Ok(MemoryListener { bound: self.ports.bind(port, backlog)? })
    }
}

impl MemoryListener {
    /// The next caller, in the order they called.
    ///
    /// # Cancel safety
    /// Dropping the future loses no caller.
    pub async fn accept(&mut self) -> Result<MemoryStream> {
        let local = self.bound.addr();
        let arrived = self.bound.accept().await;
        arrived.ok_or_else(|| Error::Invalid(format!("the listener on {local} has been closed")))
    }

    /// Where this listens.
    pub fn local_addr(&self) -> Addr {
        self.bound.addr()
    }
}

impl MemoryStream {
    /// The other side.
    pub fn peer_addr(&self) -> Addr {
        self.peer
    }

    /// This side.
    pub fn local_addr(&self) -> Addr {
        self.local
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
