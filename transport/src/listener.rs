//! [`Listener`] and [`MessageListener`]: where connections from others arrive.

use crate::addr::Addr;
use crate::error::Result;
use crate::messages::Messages;
use crate::relay::RelayListener;
use crate::shm;
use crate::sockets::SocketListener;
use crate::stream::Stream;

/// A port on which byte streams arrive. Dropping it frees the port and resets those not yet accepted.
#[derive(Debug)]
pub struct Listener(ListenerKind);

#[derive(Debug)]
enum ListenerKind {
    Shm(shm::ShmListener),
    Socket(SocketListener),
    Relayed(RelayListener),
}

/// A port on which message connections arrive. Dropping it frees the port and resets those not yet accepted.
#[derive(Debug)]
pub struct MessageListener(MessageListenerKind);

#[derive(Debug)]
enum MessageListenerKind {
    Shm(shm::ShmListener),
    Socket(SocketListener),
    Relayed(RelayListener),
}

impl Listener {
    pub(crate) fn shm(listener: shm::ShmListener) -> Self {
        Self(ListenerKind::Shm(listener))
    }

    pub(crate) fn socket(listener: SocketListener) -> Self {
        Self(ListenerKind::Socket(listener))
    }

    pub(crate) fn relayed(listener: RelayListener) -> Self {
        Self(ListenerKind::Relayed(listener))
    }

    /// The next connection and who made it.
    ///
    /// # Errors
    /// An error is final: this listener accepts no more (its broker went away, say).
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    pub async fn accept(&mut self) -> Result<(Stream, Addr)> {
        match &mut self.0 {
            ListenerKind::Shm(shm) => shm.accept_stream().await,
            ListenerKind::Socket(socket) => socket.accept_stream().await,
            ListenerKind::Relayed(relayed) => relayed.accept_stream().await,
        }
    }

    /// Where it listens: the port chosen when [`Port::ANY`](crate::Port::ANY) was asked for.
    pub fn local_addr(&self) -> Addr {
        match &self.0 {
            ListenerKind::Shm(shm) => shm.local_addr(),
            ListenerKind::Socket(socket) => socket.local_addr(),
            ListenerKind::Relayed(relayed) => relayed.local_addr(),
        }
    }
}

impl MessageListener {
    pub(crate) fn shm(listener: shm::ShmListener) -> Self {
        Self(MessageListenerKind::Shm(listener))
    }

    pub(crate) fn socket(listener: SocketListener) -> Self {
        Self(MessageListenerKind::Socket(listener))
    }

    pub(crate) fn relayed(listener: RelayListener) -> Self {
        Self(MessageListenerKind::Relayed(listener))
    }

    /// The next connection and who made it. As [`Listener::accept`].
    pub async fn accept(&mut self) -> Result<(Messages, Addr)> {
        match &mut self.0 {
            MessageListenerKind::Shm(shm) => shm.accept_messages().await,
            MessageListenerKind::Socket(socket) => socket.accept_messages().await,
            MessageListenerKind::Relayed(relayed) => relayed.accept_messages().await,
        }
    }

    /// Where it listens. As [`Listener::local_addr`].
    pub fn local_addr(&self) -> Addr {
        match &self.0 {
            MessageListenerKind::Shm(shm) => shm.local_addr(),
            MessageListenerKind::Socket(socket) => socket.local_addr(),
            MessageListenerKind::Relayed(relayed) => relayed.local_addr(),
        }
    }
}
