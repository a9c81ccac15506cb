//! Whatever carries messages and is polled: a connection, or the two rings of one.

use anyhow::bail;
use tombolo_benches::lines::Side;
use tombolo_benches::rings::{self, Halves};
use tombolo_benches::turns::{Following, Leading};
use tombolo_transport::ring::{HalfLayout, RingError};
use tombolo_transport::{MessageReceiver, MessageSender, TryRead, TryRecv};

use crate::fabric_pair::expect;

/// Both directions of something that carries messages.
pub(crate) trait Pipe {
    /// Takes a message and makes it visible, or nothing (`false`) while there is no room.
    fn try_send(&mut self, message: &[u8]) -> anyhow::Result<bool>;
    /// As [`Pipe::try_send`], of several messages, but a receiver that sleeps may learn of them only by [`Pipe::flush`]. How many were taken.
    fn try_put_many<'m>(&mut self, messages: impl Iterator<Item = &'m [u8]>) -> anyhow::Result<usize>;
    fn flush(&mut self) -> anyhow::Result<()>;
    /// Whether there was a message, which is now the content of `message`.
    fn try_recv(&mut self, message: &mut Vec<u8>) -> anyhow::Result<bool>;
    /// Has `f` read the messages that are there together: how many there were.
    fn try_recv_many(&mut self, f: impl FnMut(&[u8])) -> anyhow::Result<usize>;
}

/// A connection.
pub(crate) struct Connection(pub(crate) MessageSender, pub(crate) MessageReceiver);

impl Pipe for Connection {
    #[inline]
    fn try_send(&mut self, message: &[u8]) -> anyhow::Result<bool> {
        Ok(self.0.try_send(message)?)
    }

    #[inline]
    fn try_put_many<'m>(&mut self, messages: impl Iterator<Item = &'m [u8]>) -> anyhow::Result<usize> {
        Ok(self.0.try_put_many(messages)?)
    }

    #[inline]
    fn flush(&mut self) -> anyhow::Result<()> {
        self.0.try_flush()?;
        Ok(())
    }

    #[inline]
    fn try_recv(&mut self, message: &mut Vec<u8>) -> anyhow::Result<bool> {
        match self.1.try_recv(message)? {
            TryRecv::Message => Ok(true),
            TryRecv::Empty => Ok(false),
            TryRecv::End => bail!("the other side has shut down"),
        }
    }

    #[inline]
    fn try_recv_many(&mut self, f: impl FnMut(&[u8])) -> anyhow::Result<usize> {
        match self.1.try_recv_many(f)? {
            TryRead::Read(count) => Ok(count),
            TryRead::Empty => Ok(0),
            TryRead::End => bail!("the other side has shut down"),
        }
    }
}

/// Rings, both sides polling, no broker, no doorbell.
pub(crate) struct Bare(rings::Tx, rings::Rx);

const LAYOUT: HalfLayout = HalfLayout::MESSAGES;

impl Bare {
    pub(crate) fn lead(leading: &mut Leading) -> anyhow::Result<Self> {
        let (file, path) = rings::shared_file(rings::halves_bytes(LAYOUT))?;
        let halves = Halves::make(&file, 0, LAYOUT, Side::Leader)?;
        leading.order(&format!("halves {}", path.display()))?;
        let (tx, rx) = halves.messages()?;
        leading.order("open")?;
        Ok(Self(tx, rx))
    }

    pub(crate) fn follow(following: &mut Following) -> anyhow::Result<Self> {
        let order = expect(following, "halves")?;
        let file = rings::open_shared(order.words.first().map_or("", String::as_str))?;
        let halves = Halves::make(&file, 0, LAYOUT, Side::Follower)?;
        following.ready()?;
        expect(following, "open")?;
        let (tx, rx) = halves.messages()?;
        following.ready()?;
        Ok(Self(tx, rx))
    }
}

impl Pipe for Bare {
    #[inline]
    fn try_send(&mut self, message: &[u8]) -> anyhow::Result<bool> {
        let sent = self.try_put_many(std::iter::once(message))?;
        self.flush()?;
        Ok(sent == 1)
    }

    #[inline]
    fn try_put_many<'m>(&mut self, messages: impl Iterator<Item = &'m [u8]>) -> anyhow::Result<usize> {
        match self.0.try_put_many(messages) {
            Ok(taken) => Ok(taken),
            Err(RingError::WouldBlock) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    #[inline]
    fn flush(&mut self) -> anyhow::Result<()> {
        let _nobody_sleeps = self.0.flush()?;
        Ok(())
    }

    #[inline]
    fn try_recv(&mut self, message: &mut Vec<u8>) -> anyhow::Result<bool> {
        match self.1.try_recv(message) {
            Ok(Some(_)) => {
                let _nobody_sleeps = self.1.flush();
                Ok(true)
            }
            Ok(None) => bail!("the other side has shut down"),
            Err(RingError::WouldBlock) => {
                let _nobody_sleeps = self.1.flush();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    #[inline]
    fn try_recv_many(&mut self, f: impl FnMut(&[u8])) -> anyhow::Result<usize> {
        match self.1.try_recv_many(f) {
            Ok(Some(count)) => {
                let _nobody_sleeps = self.1.flush();
                Ok(count)
            }
            Ok(None) => bail!("the other side has shut down"),
            Err(RingError::WouldBlock) => {
                let _nobody_sleeps = self.1.flush();
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }
}
