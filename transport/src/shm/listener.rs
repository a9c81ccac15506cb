//! Connections that the broker has brokered for a listener of this process.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::addr::Addr;
use crate::broker::protocol::ClientMessage;
use crate::error::{Error, ResetCause, Result};
use crate::messages::Messages;
use crate::shm::client::{Arrival, Client};
use crate::shm::conn::Conn;
use crate::shm::{messages, stream};
use crate::stream::Stream;

#[derive(Debug)]
pub(crate) struct ShmListener {
    client: Arc<Client>,
    local: Addr,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
}

impl ShmListener {
    pub(super) fn new(client: Arc<Client>, local: Addr, arrivals: mpsc::UnboundedReceiver<Arrival>) -> Self {
        Self { client, local, arrivals }
    }

    pub(crate) async fn accept_stream(&mut self) -> Result<(Stream, Addr)> {
        let conn = self.accept().await?;
        Ok((stream::open(&conn), conn.remote))
    }

    pub(crate) async fn accept_messages(&mut self) -> Result<(Messages, Addr)> {
        let conn = self.accept().await?;
        Ok((messages::open(&conn), conn.remote))
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.local
    }

    async fn accept(&mut self) -> Result<Arc<Conn>> {
        // The other end is dropped when the broker is lost, and by `drop` below.
        let gone = Error::Reset { peer: self.local, cause: ResetCause::BrokerDied };
        let conn = self.arrivals.recv().await.ok_or(gone)?;
        self.client.send(&ClientMessage::Accepted { conn: conn.id() });
        Ok(conn)
    }
}

impl Drop for ShmListener {
    fn drop(&mut self) {
        self.client.unlisten(self.local.port);
        // What waits in the queue is dropped with it, which resets it.
    }
}
