//! [`RelaySocket`]: one end of a connection between an application and whoever relays for it.
//!
//! A pair of Unix sockets of packets, so that what is written is taken whole or not at all, and an end is told from a death: the first byte
//! of a packet says whether it carries bytes or is the last. A socket that ends without that was left by a process that died.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType,
    sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::addr::Addr;
use crate::error::{Error, ResetCause};

/// Bytes of a connection in one packet, at most.
pub(super) const PACKET_BYTES_MAX: usize = 16 * 1024;
/// What the system is asked to keep of packets under way in each direction: it doubles it.
const BUFFER_BYTES: usize = 64 * 1024;
/// The same for the last packet, which must not wait: twice as much, so that it always fits.
const LAST_BUFFER_BYTES: usize = 2 * BUFFER_BYTES;

const DATA: u8 = 0;
const END: u8 = 1;

/// One end of the pair.
#[derive(Debug)]
pub(crate) struct RelaySocket(AsyncFd<OwnedFd>);

/// What one packet was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// So many bytes are in the buffer.
    Data(usize),
    /// The other side sends no more.
    End,
    /// The other side has gone without saying so, or talks nonsense.
    Lost,
}

impl RelaySocket {
    /// A connection of this process with another: its end of it, and the other's, which is to be passed beside a message about
    /// connection `id`. Must be called on a Tokio runtime.
    pub(crate) fn pair(id: u64) -> io::Result<(Self, OwnedFd)> {
        let (near, far) = pair(id)?;
        let near =
            Self::watch(near).map_err(|_| io::Error::other("an end of a connection cannot be watched"))?;
        Ok((near, far))
    }

    /// As [`RelaySocket::pair`], where both ends are passed on.
    pub(super) fn pair_for_others(ids: [u64; 2]) -> io::Result<[OwnedFd; 2]> {
        let (first, second) = pair(ids[1])?;
        greet(&second, ids[0])?;
        Ok([first, second])
    }

    /// A descriptor that came from a broker: such an end, and the connection it is of; or something else.
    pub(crate) fn recognise(fd: OwnedFd) -> Result<(u64, Self), OwnedFd> {
        if !sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::SEQPACKET) {
            return Err(fd);
        }
        let mut id = [0; 8];
        // It was written before the socket was passed.
        match rustix::net::recv(&fd, &mut id, RecvFlags::DONTWAIT) {
            Ok((_, 8)) => Self::watch(fd).map(|socket| (u64::from_le_bytes(id), socket)),
            _ => Err(fd),
        }
    }

    /// Gives back one that cannot be watched: there is no room for more, say.
    fn watch(fd: OwnedFd) -> Result<Self, OwnedFd> {
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open and in place, which is all that its successor asks"
        )]
        let watched = AsyncFd::try_new(fd);
        watched.map(Self).map_err(|error| error.into_parts().0)
    }

    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Packet> {
        self.0.async_io(tokio::io::Interest::READABLE, |fd| receive(fd, buffer)).await
    }

    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.async_io(tokio::io::Interest::WRITABLE, |fd| send(fd, DATA, bytes)).await
    }

    /// Says that nothing more comes. Waits for nobody.
    pub(super) fn end(&self) -> io::Result<()> {
        match send(self.0.get_ref(), END, &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sockopt::set_socket_send_buffer_size(&self.0, LAST_BUFFER_BYTES)?;
                send(self.0.get_ref(), END, &[])
            }
            outcome => outcome,
        }
    }

    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<Packet>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            if let Ok(outcome) = ready.try_io(|fd| receive(fd, buffer)) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(outcome) = ready.try_io(|fd| send(fd, DATA, bytes)) {
                return Poll::Ready(outcome);
            }
        }
    }
}

/// The second end begins with the number of its connection.
fn pair(id: u64) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&near, &far] {
        sockopt::set_socket_send_buffer_size(end, BUFFER_BYTES)?;
    }
    greet(&near, id)?;
    Ok((near, far))
}

fn greet(end: &OwnedFd, id: u64) -> io::Result<()> {
    rustix::net::send(end, &id.to_le_bytes(), SendFlags::NOSIGNAL)?;
    Ok(())
}

fn send(fd: impl AsFd, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(bytes)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(fd, &parts, &mut SendAncillaryBuffer::default(), flags)?;
    Ok(())
}

fn receive(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut kind = u8::MAX;
    let mut parts = [IoSliceMut::new(std::slice::from_mut(&mut kind)), IoSliceMut::new(buffer)];
    let flags = RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(fd, &mut parts, &mut RecvAncillaryBuffer::default(), flags)?;
    let is_whole = !received.flags.contains(rustix::net::ReturnFlags::TRUNC);
    Ok(match (kind, received.bytes) {
        (DATA, packet) if packet > 1 && is_whole => Packet::Data(packet - 1),
        (END, 1) => Packet::End,
        _ => Packet::Lost,
    })
}

/// A connection, as the application at its end has it.
#[derive(Debug)]
pub(crate) struct RelayStream {
    socket: RelaySocket,
    peer: Addr,
    /// What has been received and not read.
    buffer: Box<[u8]>,
    unread: std::ops::Range<usize>,
    reading: Reading,
    is_shut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    Ended,
    Lost,
}

impl RelayStream {
    pub(crate) fn new(socket: RelaySocket, peer: Addr) -> Self {
        let buffer = Box::default();
        Self { socket, peer, buffer, unread: 0..0, reading: Reading::Open, is_shut: false }
    }

    fn reset(&self) -> io::Error {
        Error::Reset { peer: self.peer, cause: ResetCause::PeerClosed }.into()
    }
}

impl AsyncRead for RelayStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.unread.is_empty() && this.reading == Reading::Open {
            if this.buffer.is_empty() {
                this.buffer = vec![0; PACKET_BYTES_MAX].into();
            }
            match ready!(this.socket.poll_receive(cx, &mut this.buffer)) {
                Ok(Packet::Data(len)) => this.unread = 0..len,
                Ok(Packet::End) => this.reading = Reading::Ended,
                Ok(Packet::Lost) | Err(_) => this.reading = Reading::Lost,
            }
        }
        if this.reading == Reading::Lost {
            return Poll::Ready(Err(this.reset()));
        }
        let len = this.unread.len().min(into.remaining());
        into.put_slice(&this.buffer[this.unread.start..this.unread.start + len]);
        this.unread.start += len;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_shut {
            return Poll::Ready(Err(Error::Shutdown { peer: self.peer }.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let packet = &bytes[..bytes.len().min(PACKET_BYTES_MAX)];
        let sent = ready!(self.socket.poll_send(cx, packet));
        Poll::Ready(sent.map(|()| packet.len()).map_err(|_| self.reset()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.is_shut, true) {
            return Poll::Ready(Ok(()));
        }
        // One who has gone needs no end.
        let _ = self.socket.end();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::addr::{Cid, Port};

    const PEER: Addr = Addr { cid: Cid(3), port: Port(9) };

    fn connection() -> [RelayStream; 2] {
        let [near, far] = RelaySocket::pair_for_others([1, 2]).unwrap();
        [(near, 1), (far, 2)].map(|(end, expected)| {
            let (id, socket) = RelaySocket::recognise(end).unwrap();
            assert_eq!(id, expected);
            RelayStream::new(socket, PEER)
        })
    }

    #[tokio::test]
    async fn end_that_was_said_is_an_end_and_one_that_was_not_is_a_reset() {
        for is_said in [true, false] {
            let [mut near, mut far] = connection();
            near.write_all(b"last words").await.unwrap();
            if is_said {
                near.shutdown().await.unwrap();
            }
            drop(near);
            let mut read = Vec::new();
            let outcome = far.read_to_end(&mut read).await;
            assert_eq!((read.as_slice(), outcome.is_ok()), (&b"last words"[..], is_said));
            let error = far.write_all(b"anyone?").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn an_end_fits_whatever_is_under_way() {
        for len in [1, 700, PACKET_BYTES_MAX] {
            let [mut near, mut far] = connection();
            let mut cx = Context::from_waker(Waker::noop());
            let mut sent = 0;
            while let Poll::Ready(written) = Pin::new(&mut near).poll_write(&mut cx, &vec![7; len]) {
                sent += written.unwrap();
            }
            near.shutdown().await.unwrap();
            drop(near);
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            assert_eq!(read.len(), sent);
        }
    }

    #[tokio::test]
    async fn other_descriptors_are_no_connections() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(RelaySocket::recognise(stream.into()).is_err());
        assert!(RelaySocket::recognise(crate::doorbell::new_eventfd().unwrap()).is_err());
    }

    #[tokio::test]
    async fn nonsense_in_place_of_a_packet_is_a_reset() {
        for nonsense in [&[9][..], &[DATA], &[END, 1], &[DATA; PACKET_BYTES_MAX + 2]] {
            let (near, far) = RelaySocket::pair(1).unwrap();
            rustix::net::send(near.0.get_ref(), nonsense, SendFlags::NOSIGNAL).unwrap();
            let (_, far) = RelaySocket::recognise(far).unwrap();
            let mut far = RelayStream::new(far, PEER);
            assert_eq!(far.read(&mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
