//! What the behaviours work with: an endpoint of this process, or one that a peer program in another kernel works for us
//! (see [`remote`](super::remote)), in the same words.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::remote::{
    RemoteListener, RemoteParty, RemoteReader, RemoteReceiver, RemoteSender, RemoteStream, RemoteWriter,
};
use crate::addr::{Addr, Cid, Port};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::loan::MessageRef;
use crate::messages::TryRead;
use crate::options::{ConnectOptions, ListenOptions};
use crate::{listener, messages, stream};

/// One side of a [`Pair`](super::Pair).
#[derive(Clone, Debug)]
pub enum Party {
    /// An endpoint of this process.
    Here(Endpoint),
    /// One in another kernel, worked through a peer program there.
    There(RemoteParty),
}

impl From<Endpoint> for Party {
    fn from(endpoint: Endpoint) -> Self {
        Self::Here(endpoint)
    }
}

impl Party {
    pub(super) fn local_cid(&self) -> Cid {
        match self {
            Self::Here(endpoint) => endpoint.local_cid(),
            Self::There(remote) => remote.local_cid(),
        }
    }

    pub(super) async fn connect(&self, addr: Addr) -> Result<Stream> {
        self.connect_with(addr, &ConnectOptions::default()).await
    }

    pub(super) async fn connect_with(&self, addr: Addr, options: &ConnectOptions) -> Result<Stream> {
        match self {
            Self::Here(endpoint) => endpoint.connect_with(addr, options).await.map(Stream::here),
            Self::There(remote) => remote.connect(addr, options).await.map(Stream::there),
        }
    }

    pub(super) async fn connect_messages(&self, addr: Addr) -> Result<Messages> {
        match self {
            Self::Here(endpoint) => endpoint.connect_messages(addr).await.map(Messages::here),
            Self::There(remote) => remote.connect_messages(addr).await.map(Messages::there),
        }
    }

    pub(super) async fn listen(&self, port: Port, options: ListenOptions) -> Result<Listener> {
        Ok(match self {
            Self::Here(endpoint) => Listener::Here(endpoint.listen(port, options).await?),
            Self::There(remote) => Listener::There(remote.listen(port, &options, false).await?),
        })
    }

    pub(super) async fn listen_messages(
        &self,
        port: Port,
        options: ListenOptions,
    ) -> Result<MessageListener> {
        Ok(match self {
            Self::Here(endpoint) => MessageListener::Here(endpoint.listen_messages(port, options).await?),
            Self::There(remote) => MessageListener::There(remote.listen(port, &options, true).await?),
        })
    }
}

#[derive(Debug)]
pub(super) enum Listener {
    Here(listener::Listener),
    There(RemoteListener),
}

impl Listener {
    pub(super) async fn accept(&mut self) -> Result<(Stream, Addr)> {
        match self {
            Self::Here(listener) => {
                listener.accept().await.map(|(stream, from)| (Stream::here(stream), from))
            }
            Self::There(listener) => {
                listener.accept_stream().await.map(|(stream, from)| (Stream::there(stream), from))
            }
        }
    }

    pub(super) fn local_addr(&self) -> Addr {
        match self {
            Self::Here(listener) => listener.local_addr(),
            Self::There(listener) => listener.local_addr(),
        }
    }
}

#[derive(Debug)]
pub(super) enum MessageListener {
    Here(listener::MessageListener),
    There(RemoteListener),
}

impl MessageListener {
    pub(super) async fn accept(&mut self) -> Result<(Messages, Addr)> {
        match self {
            Self::Here(listener) => {
                listener.accept().await.map(|(messages, from)| (Messages::here(messages), from))
            }
            Self::There(listener) => listener
                .accept_messages()
                .await
                .map(|((sender, receiver), from)| (Messages::there((sender, receiver)), from)),
        }
    }

    pub(super) fn local_addr(&self) -> Addr {
        match self {
            Self::Here(listener) => listener.local_addr(),
            Self::There(listener) => listener.local_addr(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
    local: Addr,
    peer: Addr,
}

#[derive(Debug)]
pub(super) enum StreamReader {
    Here(stream::StreamReader),
    There(RemoteReader),
}

#[derive(Debug)]
pub(super) enum StreamWriter {
    Here(stream::StreamWriter),
    There(RemoteWriter),
}

impl Stream {
    fn here(stream: stream::Stream) -> Self {
        let (local, peer) = (stream.local_addr(), stream.peer_addr());
        let (reader, writer) = stream.split();
        Self { reader: StreamReader::Here(reader), writer: StreamWriter::Here(writer), local, peer }
    }

    fn there(stream: RemoteStream) -> Self {
        let RemoteStream { reader, writer, local, peer } = stream;
        Self { reader: StreamReader::There(reader), writer: StreamWriter::There(writer), local, peer }
    }

    pub(super) fn local_addr(&self) -> Addr {
        self.local
    }

    pub(super) fn peer_addr(&self) -> Addr {
        self.peer
    }

    pub(super) fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Here(reader) => Pin::new(reader).poll_read(cx, buf),
            Self::There(reader) => reader.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Here(writer) => Pin::new(writer).poll_write(cx, bytes),
            Self::There(writer) => writer.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Here(writer) => Pin::new(writer).poll_flush(cx),
            Self::There(writer) => writer.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Here(writer) => Pin::new(writer).poll_shutdown(cx),
            Self::There(writer) => writer.poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[derive(Debug)]
pub(super) struct Messages {
    sender: MessageSender,
    receiver: MessageReceiver,
}

#[derive(Debug)]
pub(super) enum MessageSender {
    Here(messages::MessageSender),
    There(RemoteSender),
}

#[derive(Debug)]
pub(super) enum MessageReceiver {
    Here(messages::MessageReceiver),
    There(RemoteReceiver),
}

impl Messages {
    fn here(messages: messages::Messages) -> Self {
        let (sender, receiver) = messages.split();
        Self { sender: MessageSender::Here(sender), receiver: MessageReceiver::Here(receiver) }
    }

    fn there((sender, receiver): (RemoteSender, RemoteReceiver)) -> Self {
        Self { sender: MessageSender::There(sender), receiver: MessageReceiver::There(receiver) }
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message).await
    }

    pub(super) async fn recv(&mut self) -> Result<Option<Bytes>> {
        self.receiver.recv().await
    }

    pub(super) fn split(self) -> (MessageSender, MessageReceiver) {
        (self.sender, self.receiver)
    }
}

impl MessageSender {
    pub(super) fn max_len(&self) -> usize {
        match self {
            Self::Here(sender) => sender.max_len(),
            Self::There(sender) => sender.max_len(),
        }
    }

    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<()>> {
        match self {
            Self::Here(sender) => sender.poll_send(cx, message),
            Self::There(sender) => sender.poll_send(cx, message),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self {
            Self::Here(sender) => sender.poll_flush(cx),
            Self::There(sender) => sender.poll_flush(cx),
        }
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Here(sender) => sender.send(message).await,
            Self::There(sender) => {
                poll_fn(|cx| sender.poll_send(cx, message)).await?;
                poll_fn(|cx| sender.poll_flush(cx)).await
            }
        }
    }

    /// A sender elsewhere just sends it.
    pub(super) async fn send_in_place(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Here(sender) => {
                let mut written = Ok(());
                sender.send_in_place(message.len(), |place| written = place.write_at(0, message)).await?;
                written
            }
            Self::There(_) => self.send(message).await,
        }
    }

    /// As many at once as there is room for, then the rest; a sender elsewhere sends one by one.
    pub(super) async fn send_many(&mut self, messages: &[Vec<u8>]) -> Result<()> {
        match self {
            Self::Here(sender) => {
                let mut rest = messages;
                while let [first, ..] = rest {
                    let taken = sender.try_put_many(rest.iter().map(Vec::as_slice))?;
                    poll_fn(|cx| sender.poll_flush(cx)).await?;
                    rest = &rest[taken..];
                    if taken == 0 {
                        sender.send(first).await?;
                        rest = &rest[1..];
                    }
                }
                Ok(())
            }
            Self::There(_) => {
                for message in messages {
                    self.send(message).await?;
                }
                Ok(())
            }
        }
    }

    pub(super) async fn shutdown(&mut self) -> Result<()> {
        match self {
            Self::Here(sender) => sender.shutdown().await,
            Self::There(sender) => poll_fn(|cx| sender.poll_shutdown(cx)).await,
        }
    }
}

impl MessageReceiver {
    /// A receiver elsewhere just receives.
    pub(super) async fn recv_in_place(&mut self) -> Result<Option<Vec<u8>>> {
        let Self::Here(receiver) = self else { return Ok(self.recv().await?.map(Vec::from)) };
        let copy = |message: &MessageRef<'_>| {
            let mut copy = vec![0; message.len()];
            message.read_at(0, &mut copy).map(|()| copy)
        };
        receiver.recv_in_place(copy).await?.transpose()
    }

    /// What is there together, or the next; a receiver elsewhere receives one.
    pub(super) async fn recv_many(&mut self, messages: &mut Vec<Vec<u8>>) -> Result<()> {
        if let Self::Here(receiver) = self
            && let TryRead::Read(_) = receiver.try_recv_many(|message| messages.push(message.to_vec()))?
        {
            return Ok(());
        }
        messages.extend(self.recv().await?.map(Vec::from));
        Ok(())
    }

    pub(super) async fn recv(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Here(receiver) => receiver.recv().await,
            Self::There(receiver) => receiver.recv().await,
        }
    }
}
