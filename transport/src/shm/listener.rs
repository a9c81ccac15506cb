//! Connections that the broker has brokered for a listener of this process.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::addr::Addr;
use crate::broker::protocol::ClientMessage;
use crate::error::{Error, ResetCause, Result};
use crate::messages::Messages;
use crate::shm::client::{Arrival, Client};
use crate::shm::{messages, stream};
use crate::stream::Stream;

#[derive(Debug)]
pub(crate) struct ShmListener {
    client: Arc<Client>,
    local: Addr,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    message_bytes_max: usize,
}

impl ShmListener {
    /// `message_bytes_max` is for connections that are relayed.
    pub(super) fn new(
        client: Arc<Client>,
        local: Addr,
        arrivals: mpsc::UnboundedReceiver<Arrival>,
        message_bytes_max: usize,
    ) -> Self {
        Self { client, local, arrivals, message_bytes_max }
    }

    pub(crate) async fn accept_stream(&mut self) -> Result<(Stream, Addr)> {
        Ok(match self.accept().await? {
            Arrival::Pool(conn) => (stream::open(&conn), conn.remote),
            Arrival::Relayed(_, relayed) => {
                let remote = relayed.remote;
                (relayed.into_stream(), remote)
            }
        })
    }

    pub(crate) async fn accept_messages(&mut self) -> Result<(Messages, Addr)> {
        Ok(match self.accept().await? {
            Arrival::Pool(conn) => (messages::open(&conn), conn.remote),
            Arrival::Relayed(_, relayed) => {
                let remote = relayed.remote;
                (relayed.into_messages(self.message_bytes_max), remote)
            }
        })
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.local
    }

    async fn accept(&mut self) -> Result<Arrival> {
        // The other end is dropped when the broker is lost, and by `drop` below.
        let gone = Error::Reset { peer: self.local, cause: ResetCause::BrokerDied };
        let arrival = self.arrivals.recv().await.ok_or(gone)?;
        let conn = match &arrival {
            Arrival::Pool(conn) => conn.id(),
            Arrival::Relayed(conn, _) => *conn,
        };
        self.client.send(&ClientMessage::Accepted { conn });
        Ok(arrival)
    }
}

impl Drop for ShmListener {
    fn drop(&mut self) {
        self.client.unlisten(self.local.port);
        // What waits in the queue is dropped with it, which resets it.
    }
}
