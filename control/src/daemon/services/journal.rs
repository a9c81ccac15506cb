//! `tombolo.control.Journal`.

use tombolo_rpc::{Ctx, Sender};

use super::Session;
use crate::api::ControlError;
use crate::api::journal::Journal;
use crate::core::Event;

/// Events read from the store at once.
const PAGE: usize = 256;

impl Journal for Session {
    async fn read(
        &self,
        _cx: &Ctx,
        after: u64,
        follow: bool,
        out: Sender<Event>,
    ) -> Result<u64, ControlError> {
        let store = &self.shared.store;
        let mut newest = store.watch_events();
        let mut last = after;
        loop {
            newest.borrow_and_update();
            loop {
                let page = store.events(last, PAGE)?;
                if page.is_empty() {
                    break;
                }
                for event in page {
                    last = event.seq;
                    if out.send(event).await.is_err() {
                        return Ok(last);
                    }
                }
            }
            if !follow || newest.changed().await.is_err() {
                return Ok(last);
            }
        }
    }
}
