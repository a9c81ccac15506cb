//! `tombolo.control.Journal`: the numbered events.

use tombolo_rpc::Ctx;

use super::ControlError;
use crate::core::Event;

/// The events, in order, without gaps; reading may go on after any number.
#[tombolo_rpc::service(name = "tombolo.control.Journal")]
pub trait Journal {
    /// Sends the events after number `after`, then, with `follow`, those that come; answers with the last number sent.
    async fn read(&self, cx: &Ctx, after: u64, follow: bool, out: Sender<Event>)
    -> Result<u64, ControlError>;
}
