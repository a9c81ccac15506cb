//! What comes in: every frame is checked against what may come at this point, and a peer that breaks that loses the link.

use bytes::Bytes;

use super::call::{Outgoing, Partial, is_after};
use super::{About, Connection, Ended, Event, Payload, Phase, REPLIES_MAX};
use crate::error::{Failure, LinkError};
use crate::wire::fault::{Code, Fault, clip};
use crate::wire::frame::{APP_ERROR, Header, Kind, Open, number};

impl Connection {
    /// Takes one frame from the peer. Look at [`Connection::poll_event`] too before the next one.
    pub fn handle_frame<'a>(&mut self, now_ns: u64, frame: &'a [u8]) -> Option<Event<'a>> {
        if self.closed().is_some() {
            return None;
        }
        if frame.len() as u64 > u64::from(self.config.frame_bytes_max) {
            let max = self.config.frame_bytes_max;
            self.violation(format!("a frame of {} bytes where {max} are the most", frame.len()));
            return None;
        }
        let (header, body) = match Header::parse(frame) {
            Ok(parsed) => parsed,
            Err(why) => {
                self.violation(why);
                return None;
            }
        };
        self.heard_ns = now_ns;
        match (&self.phase, header.kind) {
            (_, Kind::Hello) => self.handle_hello(body),
            (_, Kind::Close) => {
                let text = String::from_utf8_lossy(body);
                let text: String = clip(&text).chars().filter(|c| !c.is_control()).collect();
                self.lost(LinkError::from_close(header.aux, &text));
            }
            (_, Kind::Proof) => self.handle_proof(body),
            (Phase::Open, _) => match self.handle_open_phase(now_ns, header, body) {
                Ok(event) => return event,
                Err(why) => self.violation(why),
            },
            (_, kind) => self.violation(format!("{kind:?} before the handshake was over")),
        }
        None
    }

    pub(super) fn violation(&mut self, why: impl Into<String>) {
        self.close(LinkError::Violation(why.into()));
    }

    fn handle_open_phase<'a>(
        &mut self,
        now_ns: u64,
        header: Header,
        body: &'a [u8],
    ) -> Result<Option<Event<'a>>, String> {
        let id = header.call;
        match header.kind {
            Kind::Open => return self.handle_open(now_ns, header, body),
            Kind::Ping => {
                let token: [u8; 8] = number(Kind::Ping, body)?;
                self.replies_waiting += 1;
                self.check_replies()?;
                self.control.push(About::Reply, |out| {
                    out.extend_from_slice(&Header::new(Kind::Pong, 0).to_bytes());
                    out.extend_from_slice(&token);
                });
                return Ok(None);
            }
            Kind::Pong => {
                let token = u64::from_le_bytes(number(Kind::Pong, body)?);
                if self.drain_token.is_some_and(|asked| asked <= token) {
                    self.drain_token = None;
                    self.close_if_drained();
                }
                return Ok(Some(Event::Pong { token }));
            }
            Kind::GoAway => return self.handle_go_away(id, body),
            Kind::Response => return self.handle_response(id, header, body),
            Kind::Hello | Kind::Proof | Kind::Close => return Ok(None),
            _ => {}
        }
        let Some(call) = self.calls.get_mut(&id) else {
            return self.check_late(header).map(|()| None);
        };
        let mine = call.method.is_some();
        match header.kind {
            Kind::Data if matches!(call.partial_of, Partial::Request(_)) => {
                self.handle_request_part(id, header.more(), body)
            }
            Kind::Data => self.handle_item(id, header.more(), body),
            Kind::End => {
                if call.items_ended || !matches!(call.partial_of, Partial::Nothing) {
                    return Err(format!("END in the middle of a message, or twice, on call {id}"));
                }
                call.items_ended = true;
                Ok(Some(Event::ItemsEnded { call: id }))
            }
            Kind::Stop => {
                call.stopped = true;
                call.wants_room = false;
                // Items that wait are dropped, one that is half sent too: the peer ignores its first half.
                call.queue.retain(|out| !matches!(out, Outgoing::Item { .. }));
                call.queued_bytes = 0;
                self.schedule(id);
                Ok(Some(Event::ItemsStopped { call: id }))
            }
            Kind::Credit => {
                let bytes = u32::from_le_bytes(number(Kind::Credit, body)?);
                call.credit += u64::from(bytes);
                if bytes == 0 || call.credit > u64::from(u32::MAX) {
                    return Err(format!("CREDIT of {bytes} bytes on call {id} is out of range"));
                }
                self.schedule(id);
                Ok(None)
            }
            Kind::Error if mine => {
                let fault = Fault::parse(header.aux, body)?;
                let Some(method) = call.method else { return Ok(None) };
                self.drop_call(id);
                self.close_if_drained();
                Ok(Some(Event::Failed { call: id, failure: fault.into_failure(method) }))
            }
            Kind::Cancel if !mine => {
                let running = call.running;
                self.drop_call(id);
                self.close_if_drained();
                Ok(running.then_some(Event::Cancelled { call: id, why: Ended::ByCaller }))
            }
            kind => Err(format!("{kind:?} from the wrong side on call {id}")),
        }
    }

    /// A frame about a call that is over is late and harmless; one about a call that never was is not.
    fn check_late(&self, header: Header) -> Result<(), String> {
        let id = header.call;
        let mine = id % 2 == self.config.side as u32 % 2;
        let newest = if mine { self.next_id.wrapping_sub(2) } else { self.last_peer_id };
        if id == 0 || (newest == 0 && !mine) || is_after(id, newest) {
            return Err(format!("{:?} on call {id}, which was never opened", header.kind));
        }
        Ok(())
    }

    fn check_replies(&self) -> Result<(), String> {
        // A window is given back in at most four steps.
        let credits = 4 * u64::from(self.calls_theirs.saturating_add(self.calls_mine));
        if u64::from(self.replies_waiting) > u64::from(REPLIES_MAX) + credits {
            return Err(format!("{} answers are waiting and none is read", self.replies_waiting));
        }
        Ok(())
    }

    fn handle_open<'a>(
        &mut self,
        now_ns: u64,
        header: Header,
        body: &'a [u8],
    ) -> Result<Option<Event<'a>>, String> {
        let id = header.call;
        let (open, metadata, payload) = Open::parse(&header, body)?;
        if id == 0 || id % 2 != self.config.side.other() as u32 % 2 {
            return Err(format!("OPEN with id {id}, which is not the peer's to use"));
        }
        let taken = self.calls_theirs != 0 && self.calls.contains_key(&id);
        if self.last_peer_id != 0 && !is_after(id, self.last_peer_id) || taken {
            return Err(format!("OPEN with id {id} after {}", self.last_peer_id));
        }
        if metadata.len() > usize::from(self.config.metadata_bytes_max) {
            return Err(format!("metadata of {} bytes", metadata.len()));
        }
        self.check_message(payload.len())?;
        if self.draining {
            self.refuse(id, &Fault::new(Code::Draining, false, 0, "no new calls are taken"));
            // GOAWAY has named the last call that counts; this one does not.
            return self.note_refused(id);
        }
        // Answers that the peer does not read count as well.
        if self.calls_theirs.max(self.answers_waiting) >= self.config.calls_max
            || self.assembling_bytes + payload.len() > self.config.assembly_bytes_max
        {
            self.refuse(id, &Fault::new(Code::Overloaded, false, 10_000, "too many calls"));
            return self.note_refused(id);
        }
        self.last_peer_id = id;
        let deadline_ns = open.remaining_ns.map(|left| now_ns.saturating_add(left));
        let mut call = self.new_call(deadline_ns);
        call.running = !header.more();
        self.calls_theirs += 1;
        if header.more() {
            call.partial = payload.to_vec();
            call.assembling = payload.len();
            self.assembling_bytes += payload.len();
            call.partial_of = Partial::Request(Box::new((open, Bytes::copy_from_slice(metadata))));
            self.calls.insert(id, call);
            return Ok(None);
        }
        self.calls.insert(id, call);
        Ok(Some(Event::Opened {
            call: id,
            method: open.method,
            fingerprint: open.fingerprint,
            deadline_ns,
            metadata: Payload::Borrowed(metadata),
            payload: Payload::Borrowed(payload),
        }))
    }

    fn note_refused<'a>(&mut self, id: u32) -> Result<Option<Event<'a>>, String> {
        self.last_peer_id = id;
        self.check_replies()?;
        Ok(None)
    }

    fn handle_request_part<'a>(
        &mut self,
        id: u32,
        more: bool,
        body: &[u8],
    ) -> Result<Option<Event<'a>>, String> {
        let Some(call) = self.calls.get_mut(&id) else { return Ok(None) };
        let len = call.partial.len() + body.len();
        if len as u64 > u64::from(self.config.message_bytes_max) {
            return Err(format!("a request of more than {} bytes", self.config.message_bytes_max));
        }
        if body.is_empty() && more {
            return Err(format!("an empty fragment on call {id}"));
        }
        if self.assembling_bytes + body.len() > self.config.assembly_bytes_max {
            self.fail(id, Fault::new(Code::Overloaded, false, 10_000, "too many long requests"));
            return Ok(None);
        }
        call.partial.extend_from_slice(body);
        call.assembling += body.len();
        self.assembling_bytes += body.len();
        if more {
            return Ok(None);
        }
        self.assembling_bytes -= std::mem::take(&mut call.assembling);
        let Partial::Request(request) = std::mem::take(&mut call.partial_of) else { return Ok(None) };
        let (open, metadata) = *request;
        let payload = std::mem::take(&mut call.partial);
        call.running = true;
        let deadline_ns = (call.deadline_ns != u64::MAX).then_some(call.deadline_ns);
        Ok(Some(Event::Opened {
            call: id,
            method: open.method,
            fingerprint: open.fingerprint,
            deadline_ns,
            metadata: Payload::Owned(metadata),
            payload: payload.into(),
        }))
    }

    fn handle_item<'a>(&mut self, id: u32, more: bool, body: &'a [u8]) -> Result<Option<Event<'a>>, String> {
        let max = self.config.message_bytes_max;
        let Some(call) = self.calls.get_mut(&id) else { return Ok(None) };
        if call.items_ended || matches!(call.partial_of, Partial::Answer { .. }) {
            return Err(format!("an item after the end of the items of call {id}"));
        }
        let cost = (crate::wire::frame::HEADER_BYTES + body.len()) as u32;
        call.granted = call
            .granted
            .checked_sub(u64::from(cost))
            .ok_or_else(|| format!("an item on call {id} beyond the credit of its stream"))?;
        if body.is_empty() && more {
            return Err(format!("an empty fragment on call {id}"));
        }
        let len = call.partial.len() + body.len();
        if len as u64 > u64::from(max) {
            return Err(format!("an item of more than {max} bytes"));
        }
        if call.discarding {
            return Ok(None);
        }
        if more {
            if self.assembling_bytes + body.len() > self.config.assembly_bytes_max {
                return Ok(Some(self.give_up(id)));
            }
            call.partial_of = Partial::Item;
            call.partial.extend_from_slice(body);
            call.assembling += body.len();
            self.assembling_bytes += body.len();
            call.partial_cost += cost;
            if call.unread == 0 {
                call.returnable += std::mem::take(&mut call.partial_cost);
                self.grant(id);
                self.check_replies()?;
            }
            return Ok(None);
        }
        let cost = std::mem::take(&mut call.partial_cost) + cost;
        call.unread += 1;
        let payload = if matches!(std::mem::take(&mut call.partial_of), Partial::Item) {
            let mut whole = std::mem::take(&mut call.partial);
            whole.extend_from_slice(body);
            self.assembling_bytes -= std::mem::take(&mut call.assembling);
            whole.into()
        } else {
            Payload::Borrowed(body)
        };
        Ok(Some(Event::Item { call: id, payload, cost }))
    }

    /// Ends a call because there is no room for what is coming in on it.
    fn give_up<'a>(&mut self, id: u32) -> Event<'a> {
        if self.calls.get(&id).is_some_and(|call| call.method.is_some()) {
            self.cancel(id);
            let max = self.config.assembly_bytes_max as u64;
            let what = "all that is arriving in part, together,".to_owned();
            return Event::Failed {
                call: id,
                failure: Failure::TooLarge { what, len: max.saturating_add(1), max },
            };
        }
        self.fail(id, Fault::new(Code::Overloaded, true, 10_000, "too many long items"));
        Event::Cancelled { call: id, why: Ended::Overload }
    }

    fn handle_response<'a>(
        &mut self,
        id: u32,
        header: Header,
        body: &'a [u8],
    ) -> Result<Option<Event<'a>>, String> {
        let app_error = header.flags & APP_ERROR != 0;
        let max = self.config.message_bytes_max;
        let Some(call) = self.calls.get_mut(&id) else { return self.check_late(header).map(|()| None) };
        if call.method.is_none() {
            return Err(format!("RESPONSE from the wrong side on call {id}"));
        }
        let first = match call.partial_of {
            Partial::Nothing => true,
            // The server may end the call while an item of it was still incomplete.
            Partial::Item => {
                call.partial.clear();
                self.assembling_bytes -= std::mem::take(&mut call.assembling);
                true
            }
            Partial::Answer { app_error: was } if was == app_error => false,
            _ => return Err(format!("RESPONSE changes its mind on call {id}")),
        };
        let len = call.partial.len() + body.len();
        if len as u64 > u64::from(max) {
            return Err(format!("an answer of more than {max} bytes"));
        }
        if header.more() {
            if body.is_empty() {
                return Err(format!("an empty fragment on call {id}"));
            }
            if self.assembling_bytes + body.len() > self.config.assembly_bytes_max {
                return Ok(Some(self.give_up(id)));
            }
            call.partial_of = Partial::Answer { app_error };
            call.partial.extend_from_slice(body);
            call.assembling += body.len();
            self.assembling_bytes += body.len();
            return Ok(None);
        }
        let payload = if first {
            Payload::Borrowed(body)
        } else {
            let mut whole = std::mem::take(&mut call.partial);
            whole.extend_from_slice(body);
            whole.into()
        };
        self.drop_call(id);
        self.close_if_drained();
        Ok(Some(Event::Answered { call: id, app_error, payload }))
    }

    fn handle_go_away<'a>(&mut self, last: u32, body: &[u8]) -> Result<Option<Event<'a>>, String> {
        let text = String::from_utf8_lossy(body);
        let reason: String = clip(&text).chars().filter(|c| !c.is_control()).collect();
        self.peer_draining = Some(reason.clone());
        let mut refused: Vec<u32> = self
            .calls
            .iter()
            .filter(|(id, call)| call.method.is_some() && (last == 0 || is_after(**id, last)))
            .map(|(id, _)| *id)
            .collect();
        refused.sort_unstable();
        for id in refused {
            self.drop_call(id);
            self.events.push_back(Event::Failed { call: id, failure: Failure::Draining(reason.clone()) });
        }
        Ok(Some(Event::GoingAway { reason }))
    }

    fn check_message(&self, len: usize) -> Result<(), String> {
        if len as u64 > u64::from(self.config.message_bytes_max) {
            return Err(format!("a message of {len} bytes"));
        }
        Ok(())
    }
}
