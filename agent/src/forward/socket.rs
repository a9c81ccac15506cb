//! The kinds of socket a forward joins, as one.

use std::fmt;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tombolo_transport::unix_socket::{self, BACKLOG_MAX, SocketFile};
use tombolo_transport::{Addr, Cid, Endpoint, ListenOptions, Listener, Port};

use crate::api::forward::{ForwardError, ForwardTarget};

/// Bytes both ways.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A listening socket of any kind.
pub(super) enum AnyListener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
    Fabric(Listener),
}

impl fmt::Display for ForwardTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix { path } => write!(f, "unix:{path}"),
            Self::Fabric { cid, port } => write!(f, "{cid}:{port}"),
            Self::Service { name } => f.write_str(name),
        }
    }
}

/// Connects to `target`.
pub(super) async fn connect(
    target: &ForwardTarget,
    endpoint: Option<&Endpoint>,
) -> Result<Box<dyn Socket>, ForwardError> {
    let unreachable = |reason: String| ForwardError::Unreachable { target: target.to_string(), reason };
    match target {
        ForwardTarget::Tcp { host, port } => {
            let stream = crate::net::connect(host, *port).await.map_err(|e| unreachable(e.to_string()))?;
            // Whoever is bridged did its own batching.
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream))
        }
        ForwardTarget::Unix { path } => {
            let stream = UnixStream::connect(path).await.map_err(|e| unreachable(e.to_string()))?;
            Ok(Box::new(stream))
        }
        ForwardTarget::Fabric { cid, port } => {
            let addr = Addr::new(Cid(*cid), Port(*port));
            let stream = fabric(target, endpoint)?.connect(addr).await;
            Ok(Box::new(stream.map_err(|e| unreachable(e.to_string()))?))
        }
        ForwardTarget::Service { name } => {
            let endpoint = fabric(target, endpoint)?;
            let addr = endpoint.resolve(name).await.map_err(|e| unreachable(e.to_string()))?;
            let stream = endpoint.connect(addr).await.map_err(|e| unreachable(e.to_string()))?;
            Ok(Box::new(stream))
        }
    }
}

impl AnyListener {
    /// Listens; also says where, with the port that was chosen.
    pub(super) async fn bind(
        listen: &ForwardTarget,
        endpoint: Option<&Endpoint>,
    ) -> Result<(Self, ForwardTarget), ForwardError> {
        let refuse = |reason: String| ForwardError::CannotListen { listen: listen.to_string(), reason };
        match listen {
            ForwardTarget::Tcp { host, port } => {
                let host = if host.is_empty() { "127.0.0.1" } else { host };
                let listener = crate::net::listen(host, *port).await.map_err(|e| refuse(e.to_string()))?;
                let port = listener.local_addr().map_or(*port, |addr| addr.port());
                Ok((Self::Tcp(listener), ForwardTarget::Tcp { host: host.to_owned(), port }))
            }
            ForwardTarget::Unix { path } => {
                let listening = unix_socket::listen(Path::new(path), BACKLOG_MAX);
                let (listener, file) = listening.map_err(|e| refuse(e.to_string()))?;
                Ok((Self::Unix { listener, _file: file }, listen.clone()))
            }
            ForwardTarget::Fabric { port, .. } => {
                let listener = fabric(listen, endpoint)?.listen(Port(*port), ListenOptions::default()).await;
                Self::on_fabric(listener, refuse)
            }
            ForwardTarget::Service { name } => {
                let listener = fabric(listen, endpoint)?.listen(Port::ANY, ListenOptions::named(name)).await;
                Self::on_fabric(listener, refuse)
            }
        }
    }

    fn on_fabric(
        listener: tombolo_transport::Result<Listener>,
        refuse: impl Fn(String) -> ForwardError,
    ) -> Result<(Self, ForwardTarget), ForwardError> {
        let listener = listener.map_err(|e| refuse(e.to_string()))?;
        let addr = listener.local_addr();
        let target = ForwardTarget::Fabric { cid: addr.cid.0, port: addr.port.0 };
        Ok((Self::Fabric(listener), target))
    }

    /// The next connection. Cancel safe.
    pub(super) async fn accept(&mut self) -> Result<Box<dyn Socket>, String> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
                Ok(Box::new(stream))
            }
            Self::Fabric(listener) => {
                let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
                Ok(Box::new(stream))
            }
        }
    }
}

fn fabric<'a>(target: &ForwardTarget, endpoint: Option<&'a Endpoint>) -> Result<&'a Endpoint, ForwardError> {
    endpoint.ok_or_else(|| ForwardError::NoFabric { target: target.to_string() })
}
