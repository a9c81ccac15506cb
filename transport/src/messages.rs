//! [`Messages`]: a connection that keeps message boundaries, like SOCK_SEQPACKET, on every backend.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;

use crate::addr::Addr;
use crate::error::{Error, Result};
pub use crate::found::{TryRead, TryRecv, TryRecvApart};
use crate::framed::{Framed, FramedReceiver, FramedSender, IoStream};
use crate::loan::{Loan, MessageMut, MessageRef, Received};
use crate::shm::{ShmReceiver, ShmSender};

/// See [`MessageSender::part_len`].
const PART_BYTES: usize = 16 * 1024;

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
    Framed(Box<FramedSender>),
    Shm(Box<ShmSender>),
}

#[derive(Debug)]
enum Rx {
    Framed(Box<FramedReceiver>),
    Shm(Box<ShmReceiver>),
}

impl Messages {
    /// Messages over any byte stream, each preceded by its length (u32, little endian).
    ///
    /// `max_len` bounds a message in bytes in both directions; a longer one from the peer resets the connection.
    pub fn framed(io: impl IoStream, local: Addr, peer: Addr, max_len: usize) -> Self {
        let (tx, rx) = Framed::split(io, local, peer, max_len);
        Self {
            sender: MessageSender(Tx::Framed(Box::new(tx))),
            receiver: MessageReceiver(Rx::Framed(Box::new(rx))),
        }
    }

    pub(crate) fn shm(sender: ShmSender, receiver: ShmReceiver) -> Self {
        Self {
            sender: MessageSender(Tx::Shm(Box::new(sender))),
            receiver: MessageReceiver(Rx::Shm(Box::new(receiver))),
        }
    }

    /// Sends one message; waits while the peer's window is full. See [`MessageSender::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message).await
    }

    /// Receives one message; `None` after the peer has shut down. See [`MessageReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>> {
        self.receiver.recv().await
    }

    /// Sends one message at once or not at all. See [`MessageSender::try_send`].
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        self.sender.try_send(message)
    }

    /// Takes one message that lies in several parts. See [`MessageSender::try_put_parts`].
    pub fn try_put_parts(&mut self, parts: &[&[u8]]) -> Result<bool> {
        self.sender.try_put_parts(parts)
    }

    /// Takes messages until there is no room for the next. See [`MessageSender::try_put_many`].
    #[inline]
    pub fn try_put_many<'m>(&mut self, messages: impl IntoIterator<Item = &'m [u8]>) -> Result<usize> {
        self.sender.try_put_many(messages)
    }

    /// Receives what was sent together. See [`MessageReceiver::try_recv_many`].
    #[inline]
    pub fn try_recv_many(&mut self, f: impl FnMut(&[u8])) -> Result<TryRead<usize>> {
        self.receiver.try_recv_many(f)
    }

    /// Receives a message if there is one, a long one in two places. See [`MessageReceiver::try_recv_apart`].
    pub fn try_recv_apart<'a>(
        &mut self,
        message: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> Result<TryRecvApart> {
        self.receiver.try_recv_apart(message, place)
    }

    /// Receives a message if there is one. See [`MessageReceiver::try_recv`].
    pub fn try_recv(&mut self, message: &mut Vec<u8>) -> Result<TryRecv> {
        self.receiver.try_recv(message)
    }

    /// Pushes on what was taken. See [`MessageSender::try_flush`].
    pub fn try_flush(&mut self) -> Result<bool> {
        self.sender.try_flush()
    }

    /// Spins until a message is there. See [`MessageReceiver::recv_busy`].
    pub fn recv_busy(&mut self, message: &mut Vec<u8>, deadline: Instant) -> Result<TryRecv> {
        self.receiver.recv_busy(message, deadline)
    }

    /// A buffer for a long message. See [`MessageSender::loan`].
    pub async fn loan(&mut self, len: usize) -> Result<Loan> {
        self.sender.loan(len).await
    }

    /// Sends a loan. See [`MessageSender::send_loan`].
    pub async fn send_loan(&mut self, loan: Loan) -> Result<()> {
        self.sender.send_loan(loan).await
    }

    /// Receives a message and leaves it where it is. See [`MessageReceiver::recv_loan`].
    pub async fn recv_loan(&mut self) -> Result<Option<Received>> {
        self.receiver.recv_loan().await
    }

    /// Sends a message that is written where it will be read. See [`MessageSender::send_in_place`].
    pub async fn send_in_place(&mut self, len: usize, write: impl FnOnce(&mut MessageMut<'_>)) -> Result<()> {
        self.sender.send_in_place(len, write).await
    }

    /// Sends a message that is written where it will be read, at once or not at all. See [`MessageSender::try_send_in_place`].
    #[inline]
    pub fn try_send_in_place(&mut self, len: usize, write: impl FnOnce(&mut MessageMut<'_>)) -> Result<bool> {
        self.sender.try_send_in_place(len, write)
    }

    /// Reads a message where it is. See [`MessageReceiver::recv_in_place`].
    pub async fn recv_in_place<R>(&mut self, read: impl FnOnce(&MessageRef<'_>) -> R) -> Result<Option<R>> {
        self.receiver.recv_in_place(read).await
    }

    /// Reads a message where it is, if there is one. See [`MessageReceiver::try_recv_in_place`].
    #[inline]
    pub fn try_recv_in_place<R>(&mut self, read: impl FnOnce(&MessageRef<'_>) -> R) -> Result<TryRead<R>> {
        self.receiver.try_recv_in_place(read)
    }

    /// Ends our direction. See [`MessageSender::shutdown`].
    pub async fn shutdown(&mut self) -> Result<()> {
        self.sender.shutdown().await
    }

    /// The longest message this connection carries, in bytes.
    pub fn max_len(&self) -> usize {
        self.sender.max_len()
    }

    /// How long the parts of something long are best. See [`MessageSender::part_len`].
    pub fn part_len(&self) -> usize {
        self.sender.part_len()
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
            Tx::Shm(tx) => tx.max_len(),
        }
    }

    /// How long the messages are best that something long is sent in, in bytes: long enough that what each costs by itself is little beside its bytes, and
    /// short enough that the receiver reads one while the next is written. 16 KiB; up to 48 KiB in shared memory, a quarter of the ring.
    pub fn part_len(&self) -> usize {
        match &self.0 {
            Tx::Framed(_) => PART_BYTES,
            Tx::Shm(tx) => tx.part_len().max(PART_BYTES),
        }
    }

    /// Takes one message whole, or is pending (taking nothing) while there is no room for it.
    ///
    /// A taken message may be delayed until [`MessageSender::poll_flush`]: send a batch, then flush once. Short ones of a batch travel together.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<()>> {
        match &mut self.0 {
            Tx::Framed(tx) => tx.poll_send(cx, &[message]),
            Tx::Shm(tx) => tx.poll_send(cx, message),
        }
    }

    /// Takes one message that lies in several parts, without their having to be put together first. Otherwise as [`MessageSender::poll_send`].
    pub fn poll_send_parts(&mut self, cx: &mut Context<'_>, parts: &[&[u8]]) -> Poll<Result<()>> {
        match &mut self.0 {
            Tx::Framed(tx) => tx.poll_send(cx, parts),
            Tx::Shm(tx) => tx.poll_send_parts(cx, parts),
        }
    }

    /// Makes everything taken so far visible to the peer and wakes it if it sleeps.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            Tx::Framed(tx) => tx.poll_flush(cx),
            Tx::Shm(tx) => Poll::Ready(tx.flush()),
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

    /// Sends one message and flushes it, at once or not at all: `false` while there is no room for it. Needs no
    /// runtime on shared memory; on the other backends the runtime must be running for room to appear.
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        if let Tx::Shm(tx) = &mut self.0 {
            return tx.try_send(message);
        }
        let mut cx = Context::from_waker(Waker::noop());
        if self.poll_send(&mut cx, message)?.is_pending() {
            return Ok(false);
        }
        self.try_flush()?;
        Ok(true)
    }

    /// Takes one message that lies in several parts, at once or not at all. It may be delayed until [`MessageSender::try_flush`]. Otherwise as
    /// [`MessageSender::try_send`].
    pub fn try_put_parts(&mut self, parts: &[&[u8]]) -> Result<bool> {
        if let Tx::Shm(tx) = &mut self.0 {
            return tx.try_put_parts(parts);
        }
        let mut cx = Context::from_waker(Waker::noop());
        Ok(self.poll_send_parts(&mut cx, parts)?.is_ready())
    }

    /// Takes messages, at once, until there is no room for the next; returns how many. They may be delayed until [`MessageSender::try_flush`], and travel together:
    /// at a third of the cost of each by itself where they are short. Otherwise as [`MessageSender::try_send`].
    #[inline]
    pub fn try_put_many<'m>(&mut self, messages: impl IntoIterator<Item = &'m [u8]>) -> Result<usize> {
        if let Tx::Shm(tx) = &mut self.0 {
            return tx.try_put_many(messages);
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut taken = 0;
        for message in messages {
            match self.poll_send(&mut cx, message) {
                Poll::Ready(Ok(())) => taken += 1,
                // What was taken was taken; the next call says what is wrong.
                Poll::Ready(Err(error)) if taken == 0 => return Err(error),
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        Ok(taken)
    }

    /// Makes what was taken visible as far as possible without waiting; `true` if nothing is left over.
    pub fn try_flush(&mut self) -> Result<bool> {
        Ok(self.poll_flush(&mut Context::from_waker(Waker::noop()))?.is_ready())
    }

    /// A buffer for a message of `len` bytes, to be filled and sent with [`MessageSender::send_loan`]: where the connection has
    /// loans ([`Sizes::loans`](crate::Sizes::loans)) it lies in shared memory, and no byte of the message is copied on the way. Waits
    /// while all loans are out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing taken.
    pub async fn loan(&mut self, len: usize) -> Result<Loan> {
        let max = self.max_len();
        match &mut self.0 {
            Tx::Shm(tx) if tx.has_loans() => poll_fn(|cx| tx.poll_loan(cx, len)).await.map(Loan::shm),
            _ if len > max => Err(Error::TooLong { len, max }),
            _ => Ok(Loan::private(len)),
        }
    }

    /// Sends what was written into a loan, and flushes it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the message either wholly taken or not at all; a loan not sent is given back.
    pub async fn send_loan(&mut self, loan: Loan) -> Result<()> {
        match (&mut self.0, loan.into_parts()) {
            (Tx::Shm(tx), Ok(loan)) => {
                let mut loan = Some(loan);
                poll_fn(|cx| tx.poll_send_loan(cx, &mut loan)).await?;
                tx.flush()
            }
            (_, Err(message)) => self.send(&message).await,
            (_, Ok(_)) => Err(Error::Invalid("this loan is of another connection".into())),
        }
    }

    /// Sends one message of `len` bytes, which `write` writes where the receiver will read it, and flushes it: what [`MessageSender::loan`] and
    /// [`MessageSender::send_loan`] do, at half the cost, for a message that is written at once. Where the connection has no loans the message is
    /// written to private memory, and copied. `write` may shorten it. Waits while all loans are out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the message either wholly taken or not at all.
    ///
    /// # Panics
    /// Only if `write` does: nothing is sent then.
    pub async fn send_in_place(&mut self, len: usize, write: impl FnOnce(&mut MessageMut<'_>)) -> Result<()> {
        match &mut self.0 {
            Tx::Shm(tx) if tx.has_loans() => {
                let mut write = Some(write);
                poll_fn(|cx| tx.poll_send_in_place(cx, len, &mut write)).await?;
                tx.flush()
            }
            _ => {
                let message = self.written(len, write)?;
                self.send(&message).await
            }
        }
    }

    /// Sends one message as [`MessageSender::send_in_place`], at once or not at all: `false` while there is no room for it, or all loans are
    /// out. `write` is then not called; only where the connection has no loans it may have been.
    #[inline]
    pub fn try_send_in_place(&mut self, len: usize, write: impl FnOnce(&mut MessageMut<'_>)) -> Result<bool> {
        match &mut self.0 {
            Tx::Shm(tx) if tx.has_loans() => tx.try_send_in_place(len, write),
            _ => {
                let message = self.written(len, write)?;
                self.try_send(&message)
            }
        }
    }

    fn written(&self, len: usize, write: impl FnOnce(&mut MessageMut<'_>)) -> Result<Vec<u8>> {
        let max = self.max_len();
        if len > max {
            return Err(Error::TooLong { len, max });
        }
        let mut message = vec![0; len];
        write(&mut MessageMut::private(&mut message));
        Ok(message)
    }

    /// Ends this direction after what was sent: the peer receives everything, then `None`.
    pub async fn shutdown(&mut self) -> Result<()> {
        match &mut self.0 {
            Tx::Framed(tx) => poll_fn(|cx| tx.poll_shutdown(cx)).await,
            Tx::Shm(tx) => tx.shutdown(),
        }
    }
}

impl MessageReceiver {
    /// Receives one message; `None` after the peer has shut down its direction.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        match &mut self.0 {
            Rx::Framed(rx) => rx.poll_recv(cx),
            Rx::Shm(rx) => rx.poll_recv(cx),
        }
    }

    /// Receives one message; `None` after the peer has shut down its direction.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Receives one message into `message`, whose former content is replaced; `false` after the peer has shut down.
    /// Allocates only if `message` is too small.
    pub fn poll_recv_into(&mut self, cx: &mut Context<'_>, message: &mut Vec<u8>) -> Poll<Result<bool>> {
        match &mut self.0 {
            Rx::Framed(rx) => rx.poll_recv(cx).map_ok(|received| {
                message.clear();
                message.extend_from_slice(received.as_deref().unwrap_or_default());
                received.is_some()
            }),
            Rx::Shm(rx) => rx.poll_recv_into(cx, message),
        }
    }

    /// Receives one message into `message`; `false` after the peer has shut down. See [`MessageReceiver::poll_recv_into`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv_into(&mut self, message: &mut Vec<u8>) -> Result<bool> {
        poll_fn(|cx| self.poll_recv_into(cx, message)).await
    }

    /// Receives one message and leaves it where it is, if it came as a loan; `None` after the peer has shut down.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv_loan(&mut self) -> Result<Option<Received>> {
        match &mut self.0 {
            Rx::Framed(rx) => Ok(poll_fn(|cx| rx.poll_recv(cx)).await?.map(Received::private)),
            Rx::Shm(rx) => Ok(poll_fn(|cx| rx.poll_recv_loan(cx)).await?.map(Received::shm)),
        }
    }

    /// Calls `read` with one message where it is, in the sender's memory if it came as a loan, and returns what it returns; `None` after the peer has shut down.
    /// What [`MessageReceiver::recv_loan`] does, at half the cost, for a message that is read at once.
    ///
    /// The loan goes back when more messages are asked for, or at once if half of the sender's loans are here.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// As [`MessageReceiver::recv`]. What `read` has returned is dropped if the sender died meanwhile: it may be of anything.
    ///
    /// # Panics
    /// Only if `read` does; the message may then be received again.
    pub async fn recv_in_place<R>(&mut self, read: impl FnOnce(&MessageRef<'_>) -> R) -> Result<Option<R>> {
        match &mut self.0 {
            Rx::Framed(rx) => {
                let message = poll_fn(|cx| rx.poll_recv(cx)).await?;
                Ok(message.map(|message| read(&MessageRef::private(&message))))
            }
            Rx::Shm(rx) => {
                let mut read = Some(read);
                poll_fn(|cx| rx.poll_recv_in_place(cx, &mut read)).await
            }
        }
    }

    /// Reads a message as [`MessageReceiver::recv_in_place`], if there is one; `read` is called only then. Otherwise as [`MessageReceiver::try_recv`].
    #[inline]
    pub fn try_recv_in_place<R>(&mut self, read: impl FnOnce(&MessageRef<'_>) -> R) -> Result<TryRead<R>> {
        match &mut self.0 {
            Rx::Framed(rx) => Ok(match rx.poll_recv(&mut Context::from_waker(Waker::noop()))? {
                Poll::Ready(message) => {
                    TryRead::received(message.map(|message| read(&MessageRef::private(&message))))
                }
                Poll::Pending => TryRead::Empty,
            }),
            Rx::Shm(rx) => rx.try_recv_in_place(read),
        }
    }

    /// Receives a message if there is one, replacing the content of `message`. Needs no runtime on shared memory; on
    /// the other backends the runtime must be running for messages to arrive.
    pub fn try_recv(&mut self, message: &mut Vec<u8>) -> Result<TryRecv> {
        if let Rx::Shm(rx) = &mut self.0 {
            return rx.try_recv(message);
        }
        let mut cx = Context::from_waker(Waker::noop());
        Ok(match self.poll_recv_into(&mut cx, message)? {
            Poll::Ready(true) => TryRecv::Message,
            Poll::Ready(false) => TryRecv::End,
            Poll::Pending => TryRecv::Empty,
        })
    }

    /// Calls `f` with each of the messages that were sent together ([`MessageSender::try_put_many`], [`MessageSender::poll_send`]) and are next, or with
    /// the next one; returns how many. They count as received before `f` sees the first. Otherwise as [`MessageReceiver::try_recv`].
    #[inline]
    pub fn try_recv_many(&mut self, mut f: impl FnMut(&[u8])) -> Result<TryRead<usize>> {
        match &mut self.0 {
            Rx::Shm(rx) => rx.try_recv_many(f),
            Rx::Framed(rx) => Ok(match rx.poll_recv(&mut Context::from_waker(Waker::noop()))? {
                Poll::Ready(message) => TryRead::received(message.map(|message| {
                    f(&message);
                    1
                })),
                Poll::Pending => TryRead::Empty,
            }),
        }
    }

    /// As [`MessageReceiver::poll_recv_into`], but of a long message only the first eight bytes go to `message` if `place`, told these and how
    /// many follow, says where the rest is to be appended: to where it is needed, with no copy in between. Backends that have the message in
    /// one piece anyhow do not ask. Never [`TryRecvApart::Empty`]. On an error nothing has been appended.
    pub fn poll_recv_apart<'a>(
        &mut self,
        cx: &mut Context<'_>,
        message: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> Poll<Result<TryRecvApart>> {
        if let Rx::Shm(rx) = &mut self.0 {
            return rx.poll_recv_apart(cx, message, place);
        }
        self.poll_recv_into(cx, message)
            .map_ok(|more| if more { TryRecvApart::Whole } else { TryRecvApart::End })
    }

    /// Receives a message if there is one, as [`MessageReceiver::poll_recv_apart`]. Otherwise as [`MessageReceiver::try_recv`].
    pub fn try_recv_apart<'a>(
        &mut self,
        message: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> Result<TryRecvApart> {
        match &mut self.0 {
            Rx::Shm(rx) => rx.try_recv_apart(message, place),
            Rx::Framed(_) => self.try_recv(message).map(TryRecvApart::from),
        }
    }

    /// Spins until a message is there, the peer has shut down, or `deadline` passes ([`TryRecv::Empty`]).
    ///
    /// Burns a CPU while it waits, for the shortest latency; needs no runtime on shared memory.
    pub fn recv_busy(&mut self, message: &mut Vec<u8>, deadline: Instant) -> Result<TryRecv> {
        loop {
            // Reading the clock costs as much as several looks at the ring.
            for _ in 0..32 {
                match self.try_recv(message)? {
                    TryRecv::Empty => std::hint::spin_loop(),
                    found => return Ok(found),
                }
            }
            if Instant::now() >= deadline {
                return Ok(TryRecv::Empty);
            }
        }
    }

    /// The address of the other side.
    pub fn peer_addr(&self) -> Addr {
        match &self.0 {
            Rx::Framed(rx) => rx.peer_addr(),
            Rx::Shm(rx) => rx.peer_addr(),
        }
    }

    /// The address of this side.
    pub fn local_addr(&self) -> Addr {
        match &self.0 {
            Rx::Framed(rx) => rx.local_addr(),
            Rx::Shm(rx) => rx.local_addr(),
        }
    }
}
