//! Messages.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::addr::Addr;
use crate::error::{Error, ResetCause, Result};
use crate::loan::{MessageMut, MessageRef};
use crate::mem::{OwnSpan, PeerSpan};
use crate::messages::{Messages, TryRead, TryRecv, TryRecvApart};
use crate::ring::{LoanMut, MessageRx, MessageTx, Received, RingError, Wake, message_pair};
use crate::shm::conn::{Conn, Direction, Live};
use crate::shm::wait::Waiter;

pub(super) fn open(conn: &Arc<Conn>) -> Messages {
    let ringing = Arc::clone(conn);
    let bell = Arc::new(move || ringing.ring());
    let (tx, rx) = message_pair(conn.own.clone(), conn.theirs.clone(), Live(Arc::clone(conn)), Some(bell));
    conn.adopt();
    let waiter = |direction| Waiter::new(conn, direction);
    let sender = ShmSender { tx, waiter: waiter(Direction::Writing), conn: Arc::clone(conn) };
    let receiver = ShmReceiver { rx, waiter: waiter(Direction::Reading), conn: Arc::clone(conn) };
    Messages::shm(sender, receiver)
}

#[derive(Debug)]
pub(crate) struct ShmSender {
    tx: MessageTx<OwnSpan, PeerSpan, Live>,
    waiter: Waiter,
    conn: Arc<Conn>,
}

#[derive(Debug)]
pub(crate) struct ShmReceiver {
    rx: MessageRx<OwnSpan, PeerSpan, Live>,
    waiter: Waiter,
    conn: Arc<Conn>,
}

/// A buffer in our half. It keeps the connection, and so the half, ours.
#[derive(Debug)]
pub(crate) struct ShmLoan {
    loan: LoanMut<OwnSpan>,
    _conn: Arc<Conn>,
}

/// A message that may still lie in the peer's half.
pub(crate) struct ShmReceived(Received<OwnSpan, PeerSpan, Live>);

impl ShmSender {
    pub(crate) fn max_len(&self) -> usize {
        self.tx.max_len()
    }

    pub(crate) fn part_len(&self) -> usize {
        self.tx.part_len()
    }

    #[inline]
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<()>> {
        self.poll_with(cx, |tx| tx.try_put(message))
    }

    #[inline]
    pub(crate) fn poll_send_parts(&mut self, cx: &mut Context<'_>, parts: &[&[u8]]) -> Poll<Result<()>> {
        self.poll_with(cx, |tx| tx.try_put_parts(parts))
    }

    /// `Ok(false)`: no room.
    #[inline]
    pub(crate) fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        match self.tx.try_send(message) {
            Ok(()) => {
                self.flush()?;
                Ok(true)
            }
            Err(RingError::WouldBlock) => Ok(false),
            Err(error) => Err(self.conn.error(error)),
        }
    }

    /// `Ok(false)`: no room, and what was taken before is flushed.
    #[inline]
    pub(crate) fn try_put_parts(&mut self, parts: &[&[u8]]) -> Result<bool> {
        match self.tx.try_put_parts(parts) {
            Ok(()) => Ok(true),
            Err(RingError::WouldBlock) => {
                // A peer that sleeps would never make room.
                self.flush()?;
                Ok(false)
            }
            Err(error) => Err(self.conn.error(error)),
        }
    }

    /// How many were taken; what was taken is flushed if it is not all.
    #[inline]
    pub(crate) fn try_put_many<'m>(&mut self, messages: impl IntoIterator<Item = &'m [u8]>) -> Result<usize> {
        match self.tx.try_put_many(messages) {
            Ok(taken) => Ok(taken),
            Err(RingError::WouldBlock) => {
                // A peer that sleeps would never make room.
                self.flush()?;
                Ok(0)
            }
            Err(error) => Err(self.conn.error(error)),
        }
    }

    pub(crate) fn has_loans(&self) -> bool {
        self.tx.own().layout().loan_count != 0
    }

    pub(crate) fn poll_loan(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<ShmLoan>> {
        let loan = ready!(self.poll_with(cx, |tx| tx.loan(len)))?;
        Poll::Ready(Ok(ShmLoan { loan, _conn: Arc::clone(&self.conn) }))
    }

    /// On `Pending` the loan is put back into `loan`.
    pub(crate) fn poll_send_loan(
        &mut self,
        cx: &mut Context<'_>,
        loan: &mut Option<ShmLoan>,
    ) -> Poll<Result<()>> {
        if loan.as_ref().is_some_and(|loan| !Arc::ptr_eq(&loan._conn, &self.conn)) {
            return Poll::Ready(Err(Error::Invalid("this loan is of another connection".into())));
        }
        self.poll_with(cx, |tx| {
            let Some(ShmLoan { loan: inner, _conn }) = loan.take() else { return Ok(()) };
            tx.send_loan(inner).map_err(|refused| {
                *loan = Some(ShmLoan { loan: refused.loan, _conn });
                refused.error
            })
        })
    }

    /// Once it is ready, `write` has been called.
    pub(crate) fn poll_send_in_place(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
        write: &mut Option<impl FnOnce(&mut MessageMut<'_>)>,
    ) -> Poll<Result<()>> {
        self.poll_with(cx, |tx| {
            tx.try_send_in_place(len, |message| {
                if let Some(write) = write.take() {
                    write(&mut MessageMut::shm(message));
                }
            })
        })
    }

    /// `Ok(false)`: no room.
    #[inline]
    pub(crate) fn try_send_in_place(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut MessageMut<'_>),
    ) -> Result<bool> {
        match self.tx.try_send_in_place(len, |message| write(&mut MessageMut::shm(message))) {
            Ok(()) => {
                self.flush()?;
                Ok(true)
            }
            Err(RingError::WouldBlock) => Ok(false),
            Err(error) => Err(self.conn.error(error)),
        }
    }

    /// Publishing is done with each send; this rings a peer that sleeps.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<()> {
        match self.tx.flush() {
            Ok(Wake::NotNeeded) => Ok(()),
            Ok(Wake::Ring) => {
                self.conn.ring();
                Ok(())
            }
            Err(error) => Err(self.conn.error(error)),
        }
    }

    pub(crate) fn shutdown(&mut self) -> Result<()> {
        self.tx.shutdown();
        match self.flush() {
            // Whoever has left needs no end to be told; a socket does not mind either.
            Err(Error::Reset { cause: ResetCause::PeerClosed, .. }) => Ok(()),
            result => result,
        }
    }

    #[inline]
    fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(&mut MessageTx<OwnSpan, PeerSpan, Live>) -> Result<T, RingError>,
    ) -> Poll<Result<T>> {
        loop {
            match attempt(&mut self.tx) {
                Ok(done) => {
                    self.waiter.done(&self.conn);
                    return Poll::Ready(Ok(done));
                }
                Err(RingError::WouldBlock) => {
                    // A peer that sleeps would never make room.
                    self.flush()?;
                    let Self { tx, waiter, conn } = self;
                    ready!(waiter.poll(cx, conn, || tx.arm()));
                }
                Err(error) => {
                    self.waiter.done(&self.conn);
                    return Poll::Ready(Err(self.conn.error(error)));
                }
            }
        }
    }
}

impl Drop for ShmSender {
    fn drop(&mut self) {
        self.tx.disarm();
        let _ = self.shutdown();
        self.waiter.done(&self.conn);
    }
}

impl ShmReceiver {
    pub(crate) fn peer_addr(&self) -> Addr {
        self.conn.remote
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.conn.local
    }

    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        self.poll_with(cx, |rx| {
            let mut message = Vec::new();
            Ok(rx.try_recv(&mut message)?.map(|_| Bytes::from(message)))
        })
    }

    #[inline]
    pub(crate) fn poll_recv_into(
        &mut self,
        cx: &mut Context<'_>,
        message: &mut Vec<u8>,
    ) -> Poll<Result<bool>> {
        self.poll_with(cx, |rx| Ok(rx.try_recv(message)?.is_some()))
    }

    pub(crate) fn poll_recv_apart<'a>(
        &mut self,
        cx: &mut Context<'_>,
        message: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> Poll<Result<TryRecvApart>> {
        // It is asked at most once: when there is a message, which is then received.
        let mut place = Some(place);
        self.poll_with(cx, |rx| {
            let received = rx.try_recv_apart(message, |head, rest| place.take()?(head, rest))?;
            Ok(TryRecvApart::received(received))
        })
    }

    #[inline]
    pub(crate) fn try_recv_apart<'a>(
        &mut self,
        message: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> Result<TryRecvApart> {
        let received = self.rx.try_recv_apart(message, place);
        Ok(match self.found(received)? {
            TryRead::Read(rest) => TryRecvApart::received(Some(rest)),
            TryRead::Empty => TryRecvApart::Empty,
            TryRead::End => TryRecvApart::End,
        })
    }

    pub(crate) fn poll_recv_loan(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ShmReceived>>> {
        let received = ready!(self.poll_with(cx, MessageRx::try_recv_loan))?;
        Poll::Ready(Ok(received.map(ShmReceived)))
    }

    /// Once it is ready with a message, `read` has been called.
    pub(crate) fn poll_recv_in_place<R>(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut Option<impl FnOnce(&MessageRef<'_>) -> R>,
    ) -> Poll<Result<Option<R>>> {
        let read = |rx: &mut MessageRx<OwnSpan, PeerSpan, Live>| {
            rx.try_recv_in_place(|message| read.take().map(|read| read(&MessageRef::shm(message))))
        };
        self.poll_with(cx, read).map_ok(Option::flatten)
    }

    #[inline]
    pub(crate) fn try_recv_many(&mut self, f: impl FnMut(&[u8])) -> Result<TryRead<usize>> {
        let received = self.rx.try_recv_many(f);
        self.found(received)
    }

    #[inline]
    pub(crate) fn try_recv_in_place<R>(
        &mut self,
        read: impl FnOnce(&MessageRef<'_>) -> R,
    ) -> Result<TryRead<R>> {
        let received = self.rx.try_recv_in_place(|message| read(&MessageRef::shm(message)));
        self.found(received)
    }

    #[inline]
    pub(crate) fn try_recv(&mut self, message: &mut Vec<u8>) -> Result<TryRecv> {
        let received = self.rx.try_recv(message);
        Ok(match self.found(received)? {
            TryRead::Read(_) => TryRecv::Message,
            TryRead::Empty => TryRecv::Empty,
            TryRead::End => TryRecv::End,
        })
    }

    /// What a look found, and rings a sender that waits for room.
    #[inline]
    fn found<T>(&mut self, received: Result<Option<T>, RingError>) -> Result<TryRead<T>> {
        match received {
            Ok(received) => {
                self.flush();
                Ok(TryRead::received(received))
            }
            Err(RingError::WouldBlock) => {
                self.flush();
                Ok(TryRead::Empty)
            }
            Err(error) => Err(self.conn.error(error)),
        }
    }

    #[inline]
    fn flush(&mut self) {
        if self.rx.flush() == Wake::Ring {
            self.conn.ring();
        }
    }

    #[inline]
    fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(&mut MessageRx<OwnSpan, PeerSpan, Live>) -> Result<T, RingError>,
    ) -> Poll<Result<T>> {
        loop {
            match attempt(&mut self.rx) {
                Ok(done) => {
                    self.flush();
                    self.waiter.done(&self.conn);
                    return Poll::Ready(Ok(done));
                }
                Err(RingError::WouldBlock) => {
                    self.flush();
                    let Self { rx, waiter, conn } = self;
                    ready!(waiter.poll(cx, conn, || rx.arm()));
                }
                Err(error) => {
                    self.waiter.done(&self.conn);
                    return Poll::Ready(Err(self.conn.error(error)));
                }
            }
        }
    }
}

impl Drop for ShmReceiver {
    fn drop(&mut self) {
        if matches!(self.rx.try_recv(&mut Vec::new()), Ok(Some(_))) {
            self.conn.data_lost();
        }
        self.rx.disarm();
        self.rx.shutdown();
        self.flush();
        self.waiter.done(&self.conn);
    }
}

impl ShmLoan {
    pub(crate) fn len(&self) -> usize {
        self.loan.len()
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.loan.truncate(len);
    }

    /// The caller has checked that it fits.
    pub(crate) fn write_at(&mut self, offset: usize, data: &[u8]) {
        self.loan.write_at(offset, data);
    }
}

impl ShmReceived {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The caller has checked that it is inside.
    pub(crate) fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, out).map_err(|error| said(self.0.live(), error))
    }

    pub(crate) fn into_vec(self) -> Result<Vec<u8>> {
        let live = self.0.live().cloned();
        self.0.into_vec().map_err(|error| said(live.as_ref(), error))
    }
}

/// A message that was copied cannot fail.
fn said(live: Option<&Live>, error: RingError) -> Error {
    match live {
        Some(Live(conn)) => conn.error(error),
        None => Error::Invalid(error.to_string()),
    }
}
