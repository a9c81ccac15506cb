//! ipc-channel: its channel of bytes, over Unix sockets.

use std::path::Path;

use anyhow::Context;
use ipc_channel::TryRecvError;
use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender};
use tombolo_benches::probe::{Probe, Waiting};

use crate::link::{Link, Meet};

/// What the follower sends to the leader: how to reach it, and how to hear of it.
type Ends = (IpcBytesSender, IpcBytesReceiver);

/// A channel for each direction.
#[derive(Debug)]
pub(crate) struct Channel {
    to: IpcBytesSender,
    from: IpcBytesReceiver,
    busy: bool,
}

impl Meet for Channel {
    type Offer = (IpcOneShotServer<Ends>, bool);

    const NOTE: Option<&str> = Some("every message arrives as a vector of its own");

    fn offer(_: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        let (server, name) = IpcOneShotServer::new()?;
        Ok(((server, probe.waiting == Waiting::Busy), name))
    }

    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self> {
        let (to_follower, from) = ipc::bytes_channel()?;
        let (to, from_follower) = ipc::bytes_channel()?;
        IpcSender::<Ends>::connect(word.to_owned())?.send((to_follower, from_follower))?;
        Ok(Self { to, from, busy: probe.waiting == Waiting::Busy })
    }

    fn accept((server, busy): Self::Offer) -> anyhow::Result<Self> {
        let (_, (to, from)) = server.accept()?;
        Ok(Self { to, from, busy })
    }
}

impl Link for Channel {
    fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        self.to.send(message).context("sending")
    }

    fn receive(&mut self, read: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        if !self.busy {
            return read(&self.from.recv()?);
        }
        loop {
            match self.from.try_recv() {
                Ok(message) => return read(&message),
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::IpcError(error)) => return Err(error).context("receiving"),
            }
        }
    }
}
