//! The host program's side of the hybrid convention.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::HybridConfig;
use super::handshake::{self, NoLine};
use super::stream::HybridStream;
use super::unix::{PathListener, dial, port_path};
use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};

/// A program on the host of one guest.
#[derive(Clone, Debug)]
pub struct HostSide {
    path: PathBuf,
    guest: Cid,
    host: Cid,
}

/// Where connections from the guest to one port of the host arrive.
#[derive(Debug)]
pub struct HostListener {
    socket: PathListener,
    local: Addr,
    guest: Cid,
}

impl HostSide {
    /// A program on the host, whatever `config.side` says.
    pub fn new(config: HybridConfig) -> Self {
        Self { path: config.path, guest: config.guest_cid, host: config.host_cid }
    }

    /// The CID of the host.
    pub fn local_cid(&self) -> Cid {
        self.host
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// [`Error::Refused`] when the monitor is not there or hangs up, which is all it says about a closed port;
    /// [`Error::TimedOut`] when nothing answers within `deadline`; [`Error::Invalid`] when a server at that path
    /// answers something else.
    ///
    /// # Cancel safety
    /// Dropping the future closes what had been opened.
    pub async fn connect(&self, addr: Addr, deadline: Duration) -> Result<HybridStream> {
        if addr.cid != self.guest {
            let reason = format!("{} leads to cid {} only", self.path.display(), self.guest);
            return Err(Error::Refused { addr, reason });
        }
        let timed_out = |_| Error::TimedOut { addr, deadline_ms: deadline.as_millis() as u64 };
        timeout(deadline, self.connect_unbounded(addr)).await.map_err(timed_out)?
    }

    async fn connect_unbounded(&self, addr: Addr) -> Result<HybridStream> {
        let mut io = dial(&self.path, addr).await?;
        let request = handshake::connect_line(addr.port);
        // A monitor that hangs up at once answers by that; the answer is read below either way.
        let _ = io.write_all(request.as_bytes()).await;
        let foreign =
            |what: &str| Error::Invalid(format!("{} is no vsock monitor: {what}", self.path.display()));
        let line = handshake::read_line(&mut io).await.map_err(|none| match none {
            NoLine::HungUp { after_some: false } => {
                Error::Refused { addr, reason: "the monitor hung up: nobody listens there".into() }
            }
            NoLine::HungUp { after_some: true } => foreign("it hung up within its answer"),
            NoLine::TooLong => foreign("its answer has no end"),
            NoLine::Io(source) if source.kind() == std::io::ErrorKind::ConnectionReset => {
                Error::Refused { addr, reason: "the monitor hung up: nobody listens there".into() }
            }
            NoLine::Io(source) => Error::io(format!("connecting to {addr}"), source),
        })?;
        let port = handshake::parse_ok(&line)
            .ok_or_else(|| foreign(&format!("it answered `{}`", line.escape_ascii())))?;
        Ok(HybridStream::new(io, Addr::new(self.host, port), addr))
    }

    /// Listens at `PATH_<port>` for connections from the guest; for [`Port::ANY`] at a free port.
    ///
    /// # Errors
    /// [`Error::AddrInUse`] while a process serves that path (one that has died does not count).
    pub fn listen(&self, port: Port, backlog: u32) -> Result<HostListener> {
        if port != Port::ANY {
            return self.listen_at(port, backlog);
        }
        // Other programs may draw too: start at random and take the first that is free.
        let mut draw = [0; 4];
        getrandom::fill(&mut draw)
            .map_err(|error| Error::Invalid(format!("drawing a port failed: {error}")))?;
        let span = Port::ANY.0 - Port::EPHEMERAL_FIRST.0;
        let first = u32::from_le_bytes(draw) % span;
        let mut last = Error::AddrInUse(Addr::new(self.host, Port::ANY));
        for step in 0..EPHEMERAL_TRIES {
            let offset = ((u64::from(first) + u64::from(step)) % u64::from(span)) as u32;
            match self.listen_at(Port(Port::EPHEMERAL_FIRST.0 + offset), backlog) {
                Err(error @ Error::AddrInUse(_)) => last = error,
                other => return other,
            }
        }
        Err(last)
    }

    fn listen_at(&self, port: Port, backlog: u32) -> Result<HostListener> {
        let local = Addr::new(self.host, port);
        let socket = PathListener::bind(&port_path(&self.path, port), local, backlog)?;
        Ok(HostListener { socket, local, guest: self.guest })
    }
}

/// Free ports are 2^30; so many neighbours taken means that something else is wrong.
const EPHEMERAL_TRIES: u32 = 64;

impl HostListener {
    /// The next connection from the guest. Its port there is not told: [`Port::ANY`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    pub async fn accept(&self) -> Result<HybridStream> {
        let io = self.socket.accept().await;
        let io = io.map_err(|source| Error::io(format!("accepting on {}", self.local), source))?;
        Ok(HybridStream::new(io, self.local, Addr::new(self.guest, Port::ANY)))
    }

    /// Where this listens.
    pub fn local_addr(&self) -> Addr {
        self.local
    }
}
