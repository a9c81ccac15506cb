//! What goes to kernels that are not in the pool and comes from them, by whoever relays.

use tokio::sync::mpsc;

use super::Shell;
use crate::addr::Port;
use crate::broker::core::{ClientId, Elsewhere};
use crate::broker::protocol::ServerMessage;
use crate::broker::record::ConnKind;
use crate::relay::{Answered, Caller, Refusal, RelaySocket};

impl Shell {
    pub(super) fn relay_elsewhere(&mut self, relay: mpsc::UnboundedSender<Elsewhere>) {
        self.relay = Some(relay);
        self.life.core.set_relayed(true);
    }

    pub(super) fn ask_elsewhere(&mut self, elsewhere: Elsewhere) {
        let Some(relay) = &self.relay else { return };
        if let Err(mpsc::error::SendError(elsewhere)) = relay.send(elsewhere) {
            // It has stopped.
            self.relay = None;
            self.life.core.set_relayed(false);
            self.answer_elsewhere(elsewhere.client, elsewhere.request, Err(elsewhere.failure));
        }
    }

    pub(super) fn answer_elsewhere(&mut self, client: ClientId, request: u64, answered: Answered) {
        let (result, socket) = match answered {
            Ok((reply, socket)) => (Ok(reply), socket),
            Err(failure) => (Err(failure), None),
        };
        self.tell_and_pass(client, &ServerMessage::Done { request, result }, socket);
    }

    /// Passes the listener its end of the connection, and gives back the other.
    pub(super) fn arrive(
        &mut self,
        caller: &Caller,
        port: Port,
        kind: ConnKind,
    ) -> Result<RelaySocket, Refusal> {
        let (client, conn, message) = self.life.core.arrive(caller, port, kind)?;
        match RelaySocket::pair(conn) {
            Ok((near, far)) => {
                self.tell_and_pass(client, &message, Some(far));
                Ok(near)
            }
            Err(error) => {
                tracing::warn!(%error, "no socket for a connection could be made");
                self.life.core.give_up_arrival(conn);
                Err(Refusal::TooMany)
            }
        }
    }
}
