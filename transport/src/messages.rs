//! [`Messages`]: a connection that keeps message boundaries, like SOCK_SEQPACKET, on every backend.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::addr::Addr;
use crate::error::Result;
use crate::framed::{Framed, FramedReceiver, FramedSender, IoStream};

/// A connection whose sends arrive whole, in order, once.
///
/// Split it with [`Messages::split`] to send and receive from different tasks.
#[derive(Debug)]
pub struct Messages {
    sender: MessageSender,
    receiver: MessageReceiver,
}

/// The sending half of [`Messages`]. Dropping it ends the peer's receiving half after what was sent.
#[derive(Debug)]
pub struct MessageSender(Tx);

/// The receiving half of [`Messages`].
#[derive(Debug)]
pub struct MessageReceiver(Rx);

#[derive(Debug)]
enum Tx {
    Framed(FramedSender),
}

#[derive(Debug)]
enum Rx {
    Framed(FramedReceiver),
}

impl Messages {
    /// Messages over any byte stream, each preceded by its length (u32, little endian).
    ///
    /// `max_len` bounds a message in bytes in both directions; a longer one from the peer resets the connection.
    pub fn framed(io: impl IoStream, local: Addr, peer: Addr, max_len: usize) -> Self {
        let (tx, rx) = Framed::split(io, local, peer, max_len);
        Self { sender: MessageSender(Tx::Framed(tx)), receiver: MessageReceiver(Rx::Framed(rx)) }
    }

    /// Sends one message; waits while the peer's window is full. See [`MessageSender::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message).await
    }

    /// Receives one message; `None` after the peer has shut down. See [`MessageReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>> {
        self.receiver.recv().await
    }

    /// The address of the other side.
    pub fn peer_addr(&self) -> Addr {
        self.receiver.peer_addr()
    }

    /// The address of this side.
    pub fn local_addr(&self) -> Addr {
        self.receiver.local_addr()
    }

    /// Both directions, to be used apart.
    pub fn split(self) -> (MessageSender, MessageReceiver) {
        (self.sender, self.receiver)
    }
}

impl MessageSender {
    /// The longest message this connection carries, in bytes.
    pub fn max_len(&self) -> usize {
        match &self.0 {
            Tx::Framed(tx) => tx.max_len(),
        }
    }

    /// Takes one message whole, or is pending (taking nothing) while there is no room for it.
    ///
    /// A taken message may be delayed until [`MessageSender::poll_flush`]: send a batch, then flush once.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<()>> {
        match &mut self.0 {
            Tx::Framed(tx) => tx.poll_send(cx, message),
        }
    }

    /// Makes everything taken so far visible to the peer and wakes it if it sleeps.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            Tx::Framed(tx) => tx.poll_flush(cx),
        }
    }

    /// Sends one message and flushes it; waits while the peer's window is full.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the message either wholly taken or not at all.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        poll_fn(|cx| self.poll_send(cx, message)).await?;
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Ends this direction after what was sent: the peer receives everything, then `None`.
    pub async fn shutdown(&mut self) -> Result<()> {
        match &mut self.0 {
            Tx::Framed(tx) => poll_fn(|cx| tx.poll_shutdown(cx)).await,
        }
    }
}

impl MessageReceiver {
    /// Receives one message; `None` after the peer has shut down its direction.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        match &mut self.0 {
            Rx::Framed(rx) => rx.poll_recv(cx),
        }
    }

    /// Receives one message; `None` after the peer has shut down its direction.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The address of the other side.
    pub fn peer_addr(&self) -> Addr {
        match &self.0 {
            Rx::Framed(rx) => rx.peer_addr(),
        }
    }

    /// The address of this side.
    pub fn local_addr(&self) -> Addr {
        match &self.0 {
            Rx::Framed(rx) => rx.local_addr(),
        }
    }
}
