//! [`Endpoint`]: a process's attachment to the fabric, whatever carries it.

use std::path::Path;

use crate::addr::{Addr, Cid, Port};
use crate::broker::record::ConnKind;
use crate::error::{Error, Result};
use crate::hybrid::{GuestSide, HostSide, HybridConfig, HybridSide};
use crate::listener::{Listener, MessageListener};
use crate::memory::MemoryEndpoint;
use crate::messages::Messages;
use crate::options::{AttachOptions, ConnectOptions, ListenOptions};
use crate::paced::PacedEndpoint;
use crate::relay::RelayEndpoint;
use crate::shm::{self, Attached, Way};
use crate::sockets::SocketEndpoint;
use crate::stream::Stream;
use crate::vsock::{VsockConfig, VsockEndpoint};

/// A process's attachment: what it connects and listens through. Clones share it.
///
/// Connections outlive the endpoint they came from.
#[derive(Clone, Debug)]
pub struct Endpoint(Backend);

#[derive(Clone, Debug)]
enum Backend {
    Shm(shm::ShmEndpoint),
    Socket(SocketEndpoint),
    Relayed(RelayEndpoint),
}

impl Endpoint {
    /// Attaches to the fabric through this kernel's broker, which listens on the Unix socket
    /// `broker_socket` (`/run/tombolo/broker.sock` inside a spawned kernel). Connections go through shared memory; those to or from a
    /// kernel without it are [relayed](crate::relay).
    ///
    /// Must be called within a Tokio runtime, on which a task of the endpoint then runs. When the broker goes away, every
    /// connection and listener of the endpoint ends; the next call on it attaches again, if a new broker is there.
    ///
    /// # Errors
    /// [`Error::Io`] if the broker is not there or refuses our credentials;
    /// [`Error::BadPool`] if the pool it hands out is not one we can use.
    pub async fn attach(broker_socket: impl AsRef<Path>) -> Result<Self> {
        Self::attach_with(broker_socket, AttachOptions::default()).await
    }

    /// As [`Endpoint::attach`], with options.
    pub async fn attach_with(broker_socket: impl AsRef<Path>, options: AttachOptions) -> Result<Self> {
        let socket = broker_socket.as_ref();
        Ok(Self(match shm::ShmEndpoint::attach(Way::Socket(socket.to_owned()), options).await? {
            Attached::Shm(shm) => Backend::Shm(shm),
            Attached::Apart(cid) => Backend::Relayed(RelayEndpoint::new(socket.to_owned(), cid)),
        }))
    }

    /// In the process that runs the broker.
    pub(crate) async fn attach_way(way: Way) -> Result<Self> {
        match shm::ShmEndpoint::attach(way, AttachOptions::default()).await? {
            Attached::Shm(shm) => Ok(Self(Backend::Shm(shm))),
            Attached::Apart(_) => Err(Error::Invalid("a broker with a pool said that it has none".into())),
        }
    }

    /// How often a sleeping task was found by the timer because its bell had been lost. Stays 0 when all is well, and on
    /// backends without bells.
    pub fn bells_found_by_timer(&self) -> u64 {
        match &self.0 {
            Backend::Shm(shm) => shm.bells_found_by_timer(),
            Backend::Socket(_) | Backend::Relayed(_) => 0,
        }
    }

    /// This kernel's own AF_VSOCK. See [`vsock`](crate::vsock).
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel has none.
    pub fn vsock(config: VsockConfig) -> Result<Self> {
        Ok(Self(Backend::Socket(SocketEndpoint::Vsock(VsockEndpoint::new(config)?))))
    }

    /// The Unix-socket convention of Firecracker, Cloud Hypervisor and vhost-device-vsock. See
    /// [`hybrid`](crate::hybrid).
    ///
    /// Must be called within a Tokio runtime, on which the monitor of [`HybridSide::Guest`] then runs.
    ///
    /// # Errors
    /// [`Error::AddrInUse`] for a [`HybridSide::Guest`] whose path another process serves.
    pub fn hybrid(config: HybridConfig) -> Result<Self> {
        Ok(Self(Backend::Socket(match config.side {
            HybridSide::Host => SocketEndpoint::HybridHost(HostSide::new(config)),
            HybridSide::Guest => SocketEndpoint::HybridGuest(GuestSide::new(config)?),
        })))
    }

    /// An attachment to a kernel that is only a table in this process. See [`memory`](crate::memory).
    pub fn memory(endpoint: MemoryEndpoint) -> Self {
        Self(Backend::Socket(SocketEndpoint::Memory(endpoint)))
    }

    /// Links to other kernels over one socket each. See [`paced`](crate::paced).
    pub fn paced(endpoint: PacedEndpoint) -> Self {
        Self(Backend::Socket(SocketEndpoint::Paced(endpoint)))
    }

    /// The CID of this kernel.
    pub fn local_cid(&self) -> Cid {
        match &self.0 {
            Backend::Shm(shm) => shm.local_cid(),
            Backend::Socket(socket) => socket.local_cid(),
            Backend::Relayed(relayed) => relayed.local_cid(),
        }
    }

    /// Finds the address of a service by `KERNEL/SERVICE`, or by `SERVICE` alone in this kernel.
    ///
    /// # Errors
    /// [`Error::NotFound`] says which of the two names is unknown.
    pub async fn resolve(&self, name: &str) -> Result<Addr> {
        match &self.0 {
            Backend::Shm(shm) => shm.resolve(name).await,
            Backend::Relayed(relayed) => relayed.resolve(name).await,
            Backend::Socket(_) => Err(Error::NotFound {
                name: name.into(),
                reason: "this endpoint reaches kernels by CID:PORT only; names are known to a broker".into(),
            }),
        }
    }

    /// Connects a byte stream. See [`Endpoint::connect_with`].
    pub async fn connect(&self, addr: Addr) -> Result<Stream> {
        self.connect_with(addr, &ConnectOptions::default()).await
    }

    /// Connects a byte stream.
    ///
    /// # Errors
    /// [`Error::Refused`] if nobody listens there, its backlog is full or its kernel is not
    /// there, [`Error::Denied`] if a policy forbids it, [`Error::TimedOut`]
    /// after `options.timeout`, [`Error::NoMemory`] if either extent is full.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the attempt; a connection that was made meanwhile is closed.
    pub async fn connect_with(&self, addr: Addr, options: &ConnectOptions) -> Result<Stream> {
        match &self.0 {
            Backend::Shm(shm) => shm.connect(addr, options).await,
            Backend::Socket(socket) => socket.connect(addr, options).await,
            Backend::Relayed(relayed) => relayed.connect(addr, options).await,
        }
    }

    /// Connects a message connection. See [`Endpoint::connect_messages_with`].
    pub async fn connect_messages(&self, addr: Addr) -> Result<Messages> {
        self.connect_messages_with(addr, &ConnectOptions::default()).await
    }

    /// Connects a message connection. Errors and cancel safety as [`Endpoint::connect_with`].
    pub async fn connect_messages_with(&self, addr: Addr, options: &ConnectOptions) -> Result<Messages> {
        match &self.0 {
            Backend::Shm(shm) => shm.connect_messages(addr, options).await,
            Backend::Socket(socket) => socket.connect_messages(addr, options).await,
            Backend::Relayed(relayed) => relayed.connect_messages(addr, options).await,
        }
    }

    /// Listens for byte streams on `port`; [`Port::ANY`] takes a free one (see [`Listener::local_addr`]).
    ///
    /// # Errors
    /// [`Error::AddrInUse`] if the port is taken (or the name),
    /// [`Error::Denied`] for a port below 1024 without privilege.
    pub async fn listen(&self, port: Port, options: ListenOptions) -> Result<Listener> {
        match &self.0 {
            Backend::Shm(shm) => Ok(Listener::shm(shm.listen(port, options).await?)),
            Backend::Socket(socket) => Ok(Listener::socket(socket.listen(port, &options)?)),
            Backend::Relayed(relayed) => {
                Ok(Listener::relayed(relayed.listen(port, ConnKind::Stream, options).await?))
            }
        }
    }

    /// Listens for message connections on `port`. As [`Endpoint::listen`].
    pub async fn listen_messages(&self, port: Port, options: ListenOptions) -> Result<MessageListener> {
        match &self.0 {
            Backend::Shm(shm) => Ok(MessageListener::shm(shm.listen_messages(port, options).await?)),
            Backend::Socket(socket) => Ok(MessageListener::socket(socket.listen(port, &options)?)),
            Backend::Relayed(relayed) => {
                Ok(MessageListener::relayed(relayed.listen(port, ConnKind::Messages, options).await?))
            }
        }
    }
}
