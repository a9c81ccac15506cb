//! What comes in: every frame is checked against what may come at this point, and a peer that breaks that loses the link.

use bytes::Bytes;

use super::call::{Call, Outgoing, Partial, is_after};
use super::{About, Config, Connection, Ended, Event, Payload, Phase, REPLIES_MAX, SMALL_BYTES};
use crate::error::{Failure, LinkError};
use crate::wire::fault::{Code, Fault, clip};
use crate::wire::frame::{APP_ERROR, HEADER_BYTES, Header, Kind, Open, number};

/// Parts of a long message that there is room made for at once: four of the longest are 64 KiB.
const PARTS_AHEAD: usize = 4;

/// The body of a frame that carries a part of a message.
#[derive(Clone, Copy)]
enum Part<'a> {
    InFrame(&'a [u8]),
    /// It is at the end of what has arrived of the message: so many bytes.
    Placed(usize),
}

impl<'a> Part<'a> {
    fn len(self) -> usize {
        match self {
            Self::InFrame(body) => body.len(),
            Self::Placed(len) => len,
        }
    }

    /// Length of `partial`, in bytes, once this is in it.
    fn len_after(self, partial: &[u8]) -> usize {
        match self {
            Self::InFrame(body) => partial.len() + body.len(),
            Self::Placed(_) => partial.len(),
        }
    }

    fn append_to(self, partial: &mut Vec<u8>) {
        if let Self::InFrame(body) = self {
            partial.extend_from_slice(body);
        }
    }

    /// As a message of its own.
    fn into_payload(self) -> Payload<'a> {
        match self {
            Self::InFrame(body) => Payload::Borrowed(body),
            // Only what continues a message is placed.
            Self::Placed(_) => Payload::Borrowed(&[]),
        }
    }
}

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

    /// Where what follows the header `head` of a frame goes, `rest` bytes: for the next part of a long message to the end of what has arrived of it.
    /// Whoever has appended it there says so with [`Connection::handle_placed`]. `None`: the frame is to be taken whole, by
    /// [`Connection::handle_frame`].
    pub fn place(&mut self, head: &[u8], rest: usize) -> Option<&mut Vec<u8>> {
        if self.phase != Phase::Open || rest == 0 {
            return None;
        }
        let (header, _) = Header::parse(head).ok()?;
        let call = self.calls.get_mut(header.call)?;
        let goes_on = match (header.kind, &call.partial_of) {
            (Kind::Data, Partial::Request(_)) => true,
            (Kind::Data, Partial::Item) => !call.items_ended && !call.discarding,
            (Kind::Response, Partial::Answer { app_error }) => *app_error == (header.flags & APP_ERROR != 0),
            _ => false,
        };
        let Config { frame_bytes_max, message_bytes_max, assembly_bytes_max, .. } = self.config;
        let room = (message_bytes_max as usize).saturating_sub(call.partial.len());
        if !goes_on
            || HEADER_BYTES + rest > frame_bytes_max as usize
            || rest > room
            || self.assembling_bytes + rest > assembly_bytes_max
        {
            return None;
        }
        if call.partial.capacity() - call.partial.len() < rest {
            // Mostly a few more follow.
            call.partial.reserve((PARTS_AHEAD * rest + SMALL_BYTES).min(room));
        }
        Some(&mut call.partial)
    }

    /// Takes a frame of which all but the header has gone to where [`Connection::place`] said, `rest` bytes. As [`Connection::handle_frame`].
    pub fn handle_placed(&mut self, now_ns: u64, head: &[u8], rest: usize) -> Option<Event<'static>> {
        let (header, _) = Header::parse(head).ok()?;
        self.heard_ns = now_ns;
        let (id, part) = (header.call, Part::Placed(rest));
        let asks = |call: &Call| matches!(call.partial_of, Partial::Request(_));
        let handled = match header.kind {
            Kind::Response => self.handle_response(id, header, part),
            _ if self.calls.get(id).is_some_and(|call| asks(call)) => {
                self.handle_request_part(id, header.more(), part)
            }
            _ => self.handle_item(id, header.more(), part),
        };
        handled.unwrap_or_else(|why| {
            self.violation(why);
            None
        })
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
            Kind::Response => return self.handle_response(id, header, Part::InFrame(body)),
            Kind::Hello | Kind::Proof | Kind::Close => return Ok(None),
            _ => {}
        }
        let Some(call) = self.calls.get_mut(id) else {
            return self.check_late(header).map(|()| None);
        };
        let mine = call.method.is_some();
        match header.kind {
            Kind::Data if matches!(call.partial_of, Partial::Request(_)) => {
                self.handle_request_part(id, header.more(), Part::InFrame(body))
            }
            Kind::Data => self.handle_item(id, header.more(), Part::InFrame(body)),
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
        let taken = self.calls_theirs != 0 && self.calls.contains(id);
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
        body: Part<'_>,
    ) -> Result<Option<Event<'a>>, String> {
        let Some(call) = self.calls.get_mut(id) else { return Ok(None) };
        let len = body.len_after(&call.partial);
        if len as u64 > u64::from(self.config.message_bytes_max) {
            return Err(format!("a request of more than {} bytes", self.config.message_bytes_max));
        }
        if body.len() == 0 && more {
            return Err(format!("an empty fragment on call {id}"));
        }
        if self.assembling_bytes + body.len() > self.config.assembly_bytes_max {
            self.fail(id, Fault::new(Code::Overloaded, false, 10_000, "too many long requests"));
            return Ok(None);
        }
        body.append_to(&mut call.partial);
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

    fn handle_item<'a>(&mut self, id: u32, more: bool, body: Part<'a>) -> Result<Option<Event<'a>>, String> {
        let max = self.config.message_bytes_max;
        let Some(call) = self.calls.get_mut(id) else { return Ok(None) };
        if call.items_ended || matches!(call.partial_of, Partial::Answer { .. }) {
            return Err(format!("an item after the end of the items of call {id}"));
        }
        let cost = (HEADER_BYTES + body.len()) as u32;
        call.granted = call
            .granted
            .checked_sub(u64::from(cost))
            .ok_or_else(|| format!("an item on call {id} beyond the credit of its stream"))?;
        if body.len() == 0 && more {
            return Err(format!("an empty fragment on call {id}"));
        }
        let len = body.len_after(&call.partial);
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
            body.append_to(&mut call.partial);
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
            body.append_to(&mut call.partial);
            self.assembling_bytes -= std::mem::take(&mut call.assembling);
            std::mem::take(&mut call.partial).into()
        } else {
            body.into_payload()
        };
        Ok(Some(Event::Item { call: id, payload, cost }))
    }

    /// Ends a call because there is no room for what is coming in on it.
    fn give_up<'a>(&mut self, id: u32) -> Event<'a> {
        if self.calls.get(id).is_some_and(|call| call.method.is_some()) {
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
        body: Part<'a>,
    ) -> Result<Option<Event<'a>>, String> {
        let app_error = header.flags & APP_ERROR != 0;
        let max = self.config.message_bytes_max;
        let Some(call) = self.calls.get_mut(id) else { return self.check_late(header).map(|()| None) };
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
        let len = body.len_after(&call.partial);
        if len as u64 > u64::from(max) {
            return Err(format!("an answer of more than {max} bytes"));
        }
        if header.more() {
            if body.len() == 0 {
                return Err(format!("an empty fragment on call {id}"));
            }
            if self.assembling_bytes + body.len() > self.config.assembly_bytes_max {
                return Ok(Some(self.give_up(id)));
            }
            call.partial_of = Partial::Answer { app_error };
            body.append_to(&mut call.partial);
            call.assembling += body.len();
            self.assembling_bytes += body.len();
            return Ok(None);
        }
        let payload = if first {
            body.into_payload()
        } else {
            body.append_to(&mut call.partial);
            std::mem::take(&mut call.partial).into()
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
            .filter(|(id, call)| call.method.is_some() && (last == 0 || is_after(*id, last)))
            .map(|(id, _)| id)
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
