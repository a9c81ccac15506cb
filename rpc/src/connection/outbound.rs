//! What goes out: calls, answers, items, and whose turn it is.

use bytes::Bytes;

use super::call::{Call, Outgoing, Partial};
use super::{
    About, Connection, Ended, Event, FRAGMENT_FRAME_BYTES, LANE_BYTES_MAX, LANE_ITEM_BYTES_MAX, Payload,
    Phase, SEND_BUFFER_BYTES, SMALL_BYTES, SPARE_CALLS_MAX,
};
use crate::error::{Failure, REQUEST};
use crate::schema::MethodInfo;
use crate::wire::fault::{Code, Fault};
use crate::wire::frame::{APP_ERROR, HEADER_BYTES, Header, Kind, MORE, OPEN_BYTES, Open};

/// Small frames that may go before a fragment gets its turn, so that a flood of small calls does not starve bulk.
const SMALL_IN_A_ROW: u32 = 32;
/// Turns of calls that are over before they are swept out.
const STALE_TURNS_MAX: usize = 64;
/// What a caller is told to wait when this side itself is full.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(10);

/// Why an item was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no room now; [`Event::Writable`] will say when to try again.
    Full,
    /// It can never be sent.
    Failed(Failure),
}

/// A frame for the peer: `head`, then `body`, one message of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What comes first, its header at the least.
    pub head: &'a [u8],
    /// What follows it of a long message, from the memory that the message is in; else empty.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    fn whole(head: &'a [u8]) -> Self {
        Self { head, body: &[] }
    }

    /// The frame in one piece.
    pub fn to_vec(self) -> Vec<u8> {
        [self.head, self.body].concat()
    }
}

impl Connection {
    /// Calls a method of the peer. The call's id comes back in all events about it, until `Answered` or `Failed`.
    ///
    /// `deadline_ns` is a point in time; the peer is told how much is left when the OPEN is queued.
    pub fn open(
        &mut self,
        now_ns: u64,
        method: &'static MethodInfo,
        deadline_ns: Option<u64>,
        metadata: &[u8],
        payload: Payload<'_>,
    ) -> Result<u32, Failure> {
        if deadline_ns.is_some_and(|at| at <= now_ns) {
            return Err(Failure::DeadlineExceeded { started: false });
        }
        let remaining_ns = deadline_ns.map(|at| at - now_ns);
        self.open_with(method, remaining_ns, deadline_ns, metadata, payload, &[])
    }

    /// Calls a method of the peer, which is told that `remaining_ns` are left; here the call expires at `deadline_ns`. The arguments are `payload`,
    /// and after it the parts in `tail`, which are not copied.
    pub(crate) fn open_with(
        &mut self,
        method: &'static MethodInfo,
        remaining_ns: Option<u64>,
        deadline_ns: Option<u64>,
        metadata: &[u8],
        payload: Payload<'_>,
        tail: &[Bytes],
    ) -> Result<u32, Failure> {
        self.may_open(metadata.len(), payload.len() + len_of(tail))?;
        let id = self.take_id();
        let open = Open { method: method.id, fingerprint: method.fingerprint, remaining_ns };
        let mut call = self.new_call(deadline_ns);
        call.method = Some(method);
        // OPENs go in the order of their ids, so those of long requests wait in the same lane, with the head of theirs.
        let room = SMALL_BYTES.min(self.fragment_bytes() - OPEN_BYTES - metadata.len());
        let head = room.min(payload.len());
        let more = head < payload.len() || !tail.is_empty();
        call.in_lane = 1;
        self.small.push(About::Call(id), |out| {
            open.put(out, id, metadata.len() as u16, more);
            out.extend_from_slice(metadata);
            out.extend_from_slice(&payload[..head]);
        });
        if head < payload.len() {
            let last = tail.is_empty();
            call.queue.push_back(Outgoing::Request { payload: into_owned(payload), sent: head, last });
        }
        for (part, last) in with_last(tail) {
            call.queue.push_back(Outgoing::Request { payload: part, sent: 0, last });
        }
        self.calls.insert(id, call);
        self.calls_mine += 1;
        Ok(id)
    }

    fn may_open(&self, metadata: usize, payload: usize) -> Result<(), Failure> {
        match &self.phase {
            Phase::Open => {}
            Phase::Closed(error) => {
                return Err(Failure::LinkLost { reason: error.to_string(), started: false });
            }
            _ => {
                let reason = "the link is not established yet".to_owned();
                return Err(Failure::LinkLost { reason, started: false });
            }
        }
        if let Some(reason) = &self.peer_draining {
            return Err(Failure::Draining(reason.clone()));
        }
        let too_large = |what: &str, len: usize, max: u64| Failure::TooLarge {
            what: what.to_owned(),
            len: len as u64,
            max,
        };
        if payload as u64 > u64::from(self.peer_limits.message_bytes) {
            return Err(too_large(REQUEST, payload, self.peer_limits.message_bytes.into()));
        }
        // Metadata travels whole in the first frame.
        let room = self.fragment_bytes() - OPEN_BYTES;
        let max = usize::from(self.peer_limits.metadata_bytes).min(room);
        if metadata > max {
            return Err(too_large("the metadata of a call", metadata, max as u64));
        }
        if self.calls_mine >= self.peer_limits.calls || self.small.len_bytes() > LANE_BYTES_MAX {
            return Err(Failure::Overloaded { retry_after: RETRY_AFTER });
        }
        Ok(())
    }

    /// A record for a call, in memory of one that is over if there is any.
    #[inline]
    pub(super) fn new_call(&mut self, deadline_ns: Option<u64>) -> Box<Call> {
        let mut call = self.spare_calls.pop().unwrap_or_default();
        call.deadline_ns = deadline_ns.unwrap_or(u64::MAX);
        call.credit = u64::from(self.peer_limits.window_bytes);
        call.granted = u64::from(self.config.window_bytes);
        self.earliest_ns = self.earliest_ns.min(call.deadline_ns);
        call
    }

    fn take_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = id.wrapping_add(2);
            // After 2^31 calls the ids start again; those of calls still under way are passed over, and so is 0.
            if id != 0 && !self.calls.contains(id) {
                return id;
            }
        }
    }

    /// Gives up a call of ours. Nothing more is reported about it. Returns whether the peer may have started it.
    pub fn cancel(&mut self, call: u32) -> bool {
        if self.calls.get(call).is_none_or(|c| c.method.is_none()) {
            return true;
        }
        let started = self.drop_call(call);
        if started {
            self.control
                .push(About::Link, |out| out.extend_from_slice(&Header::new(Kind::Cancel, call).to_bytes()));
        }
        self.close_if_drained();
        started
    }

    /// Forgets a call; returns whether its OPEN has gone out.
    pub(super) fn drop_call(&mut self, id: u32) -> bool {
        let Some(mut call) = self.calls.remove(id) else { return true };
        self.assembling_bytes -= call.assembling;
        if call.method.is_some() {
            self.calls_mine -= 1;
        } else {
            self.calls_theirs -= 1;
        }
        let sent = call.sent;
        if self.spare_calls.len() < SPARE_CALLS_MAX {
            *call = Call::default();
            self.spare_calls.push(call);
        }
        sent
    }

    pub(super) fn expire_call(&mut self, id: u32) {
        let Some(call) = self.calls.get(id) else { return };
        if call.method.is_some() {
            let started = self.cancel(id);
            self.events.push_back(Event::Failed { call: id, failure: Failure::DeadlineExceeded { started } });
        } else {
            let started = call.running;
            self.fail(id, Fault::new(Code::DeadlineExceeded, started, 0, ""));
            if started {
                self.events.push_back(Event::Cancelled { call: id, why: Ended::Deadline });
            }
        }
    }

    /// Answers a call of the peer's; it is over.
    pub fn respond(&mut self, id: u32, app_error: bool, payload: Payload<'_>) {
        self.respond_with(id, app_error, payload, &[]);
    }

    /// Answers a call of the peer's with `payload`, and after it the parts in `tail`, which are not copied.
    pub(crate) fn respond_with(&mut self, id: u32, app_error: bool, payload: Payload<'_>, tail: &[Bytes]) {
        let max = self.peer_limits.message_bytes;
        let fragment = self.fragment_bytes();
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.method.is_some() || call.answering {
            return;
        }
        let len = payload.len() + len_of(tail);
        if len as u64 > u64::from(max) {
            return self.fail(id, Fault::new(Code::TooLarge, true, max.into(), len.to_string()));
        }
        if call.queue.is_empty() && len <= SMALL_BYTES && HEADER_BYTES + len <= fragment && tail.is_empty() {
            let flags = if app_error { APP_ERROR } else { 0 };
            self.answers_waiting += 1;
            self.small.push(About::Answer, |out| {
                out.extend_from_slice(&Header { flags, ..Header::new(Kind::Response, id) }.to_bytes());
                out.extend_from_slice(&payload);
            });
            self.drop_call(id);
            return;
        }
        call.answering = true;
        // A part without bytes may not be followed by others.
        if !payload.is_empty() || tail.is_empty() {
            let last = tail.is_empty();
            call.queue.push_back(Outgoing::Answer { app_error, payload: into_owned(payload), sent: 0, last });
        }
        for (part, last) in with_last(tail) {
            call.queue.push_back(Outgoing::Answer { app_error, payload: part, sent: 0, last });
        }
        self.schedule(id);
    }

    /// Fails a call of the peer's; it is over.
    pub(crate) fn fail(&mut self, id: u32, fault: Fault) {
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.method.is_some() {
            return;
        }
        let mut frame = Vec::with_capacity(64);
        error_frame(&mut frame, id, &fault);
        // Items in full go before; what is in the middle of a message cannot be cut without ending the call anyway.
        let keep = fault.code != Code::DeadlineExceeded as u16 && !call.queue.is_empty() && !call.answering;
        if keep {
            call.answering = true;
            call.queue.push_back(Outgoing::Frame(frame));
            self.schedule(id);
        } else {
            self.answers_waiting += 1;
            self.small.push(About::Answer, |out| out.extend_from_slice(&frame));
            self.drop_call(id);
            self.close_if_drained();
        }
    }

    /// Refuses a call to an end that serves nothing.
    pub(crate) fn respond_not_served(&mut self, id: u32) {
        self.fail(id, Fault::new(Code::UnknownService, false, 0, ""));
    }

    /// Refuses a call that was never started here.
    pub(super) fn refuse(&mut self, id: u32, fault: &Fault) {
        self.replies_waiting += 1;
        self.small.push(About::Reply, |out| error_frame(out, id, fault));
    }

    /// Sends an item on a call of either side.
    pub fn send_item(&mut self, id: u32, payload: Payload<'_>) -> Result<(), SendError> {
        let max = u64::from(self.peer_limits.message_bytes);
        let fragment = self.fragment_bytes();
        let Some(call) = self.calls.get_mut(id) else {
            return Err(SendError::Failed(Failure::StreamClosed));
        };
        if call.stopped || call.ended || call.answering {
            return Err(SendError::Failed(Failure::StreamClosed));
        }
        if payload.len() as u64 > max {
            let len = payload.len() as u64;
            return Err(SendError::Failed(Failure::TooLarge { what: "an item".to_owned(), len, max }));
        }
        let frame = HEADER_BYTES + payload.len();
        // A peer that gives credit and then reads nothing finds the lane bounded.
        if call.queue.is_empty()
            && payload.len() <= SMALL_BYTES
            && frame <= fragment
            && frame as u64 <= call.credit
            && self.small.len_bytes() < LANE_ITEM_BYTES_MAX
        {
            call.credit -= frame as u64;
            call.in_lane += 1;
            self.small.push(About::Call(id), |out| {
                out.extend_from_slice(&Header::new(Kind::Data, id).to_bytes());
                out.extend_from_slice(&payload);
            });
            return Ok(());
        }
        if call.queued_bytes >= SEND_BUFFER_BYTES {
            call.wants_room = true;
            return Err(SendError::Full);
        }
        call.queued_bytes += payload.len().max(HEADER_BYTES);
        call.queue.push_back(Outgoing::Item { payload: into_owned(payload), sent: 0 });
        self.schedule(id);
        Ok(())
    }

    /// Sends no more items on a call.
    pub fn end_items(&mut self, id: u32) {
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.ended || call.answering {
            return;
        }
        call.ended = true;
        if call.queue.is_empty() {
            call.in_lane += 1;
            self.small
                .push(About::Call(id), |out| out.extend_from_slice(&Header::new(Kind::End, id).to_bytes()));
        } else {
            call.queue.push_back(Outgoing::End);
            self.schedule(id);
        }
    }

    /// Wants no more items from the peer on a call; those on their way are dropped.
    pub fn stop_items(&mut self, id: u32) {
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.discarding || call.items_ended {
            return;
        }
        call.discarding = true;
        if matches!(call.partial_of, Partial::Item) {
            call.partial_of = Partial::Nothing;
            call.partial = Vec::new();
            self.assembling_bytes -= std::mem::take(&mut call.assembling);
        }
        // It must not overtake our own OPEN.
        let waits = call.method.is_some() && !call.sent;
        if waits && !call.queue.is_empty() {
            call.queue.push_back(Outgoing::Stop);
        } else {
            let (lane, about) = if waits {
                call.in_lane += 1;
                (&mut self.small, About::Call(id))
            } else {
                (&mut self.control, About::Link)
            };
            lane.push(about, |out| out.extend_from_slice(&Header::new(Kind::Stop, id).to_bytes()));
        }
    }

    /// An item that cost `cost` bytes has been read: lets the peer send as much again.
    pub fn consumed(&mut self, id: u32, cost: u32) {
        let Some(call) = self.calls.get_mut(id) else { return };
        call.unread = call.unread.saturating_sub(1);
        call.returnable += cost;
        if call.unread == 0 {
            // The item that is still coming in needs room to come in whole.
            call.returnable += std::mem::take(&mut call.partial_cost);
        }
        self.grant(id);
    }

    /// Grants what has been read, once it is worth a frame.
    pub(super) fn grant(&mut self, id: u32) {
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.returnable < self.config.window_bytes / 4 || call.items_ended || call.discarding {
            return;
        }
        let bytes = std::mem::take(&mut call.returnable);
        call.granted += u64::from(bytes);
        self.replies_waiting += 1;
        self.control.push(About::Reply, |out| {
            out.extend_from_slice(&Header::new(Kind::Credit, id).to_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        });
    }

    /// Gives the call its place among those that take turns, if it has something that it may send.
    pub(super) fn schedule(&mut self, id: u32) {
        let fragment = self.fragment_bytes();
        let Some(call) = self.calls.get_mut(id) else { return };
        if call.scheduled || !can_send(call, fragment) {
            return;
        }
        call.scheduled = true;
        // Calls that are over leave their ids here until it is their turn, which it never is if nothing is read.
        if self.bulk.len() > 2 * self.calls.len() + STALE_TURNS_MAX {
            self.bulk.retain(|id| self.calls.contains(*id));
        }
        self.bulk.push_back(id);
    }

    /// The longest frame with a fragment, in bytes: 16 KiB unless the peer takes less.
    pub(super) fn fragment_bytes(&self) -> usize {
        self.peer_limits.frame_bytes.min(FRAGMENT_FRAME_BYTES) as usize
    }

    /// The same while no other call waits for its turn.
    fn fragment_bytes_alone(&self) -> usize {
        let wanted = self.config.fragment_bytes.saturating_add(HEADER_BYTES as u32).max(FRAGMENT_FRAME_BYTES);
        self.peer_limits.frame_bytes.min(wanted) as usize
    }

    /// Whether there is something to transmit.
    pub fn wants_transmit(&self) -> bool {
        !self.control.is_empty() || !self.small.is_empty() || !self.bulk.is_empty() || self.farewell.is_some()
    }

    /// The next frame for the peer, to be sent whole and in order.
    pub fn poll_transmit(&mut self) -> Option<Frame<'_>> {
        if !self.fragment.is_empty() {
            self.fragment = Bytes::new();
        }
        if let Some(frame) = self.farewell.take() {
            self.scratch = frame;
            return Some(self.scratch_frame());
        }
        if let Some((range, about)) = self.control.pop() {
            self.replies_waiting -= u32::from(about == About::Reply);
            return Some(Frame::whole(self.control.frame(range)));
        }
        if self.small_in_a_row >= SMALL_IN_A_ROW && self.next_fragment() {
            self.small_in_a_row = 0;
            return Some(self.scratch_frame());
        }
        while let Some((range, about)) = self.small.pop() {
            match about {
                About::Call(id) if !self.leaves_lane(id) => continue,
                About::Call(_) | About::Link => {}
                About::Answer => self.answers_waiting -= 1,
                About::Reply => self.replies_waiting -= 1,
            }
            self.small_in_a_row += 1;
            return Some(Frame::whole(self.small.frame(range)));
        }
        self.small_in_a_row = 0;
        if self.next_fragment() {
            return Some(self.scratch_frame());
        }
        if self.draining {
            self.close_if_drained();
            if let Some(frame) = self.farewell.take() {
                self.scratch = frame;
                return Some(self.scratch_frame());
            }
        }
        None
    }

    fn scratch_frame(&self) -> Frame<'_> {
        Frame { head: &self.scratch, body: &self.fragment }
    }

    /// A small frame of a call is about to go out; false if it is to stay here.
    #[inline]
    fn leaves_lane(&mut self, id: u32) -> bool {
        let Some(call) = self.calls.get_mut(id) else {
            // What belongs to a call of ours that is over, and perhaps was never sent, stays. What comes before the answer
            // to a call of the peer's goes.
            return id % 2 != self.config.side as u32 % 2;
        };
        call.sent = true;
        call.in_lane -= 1;
        if call.in_lane == 0 && !call.queue.is_empty() {
            self.schedule(id);
        }
        true
    }

    /// Writes the next fragment into `scratch` and what it carries of a long message into `fragment`, taking turns; false if no call has one.
    fn next_fragment(&mut self) -> bool {
        let fragment = self.fragment_bytes();
        while let Some(id) = self.bulk.pop_front() {
            let alone = if self.bulk.is_empty() { self.fragment_bytes_alone() } else { fragment };
            let Some(call) = self.calls.get_mut(id) else { continue };
            call.scheduled = false;
            if !can_send(call, fragment) {
                continue;
            }
            self.scratch.clear();
            let done = put_fragment(&mut self.scratch, &mut self.fragment, id, call, [fragment, alone]);
            if call.wants_room && call.queued_bytes < SEND_BUFFER_BYTES / 2 {
                call.wants_room = false;
                self.events.push_back(Event::Writable { call: id });
            }
            if done {
                self.drop_call(id);
            } else {
                self.schedule(id);
            }
            return true;
        }
        false
    }
}

/// Whether the call's queue has something at its head that may be sent now.
fn can_send(call: &Call, fragment: usize) -> bool {
    match call.queue.front() {
        None => false,
        Some(_) if call.in_lane != 0 => false,
        Some(Outgoing::Item { payload, sent }) => {
            let frame = (HEADER_BYTES + payload.len() - sent).min(fragment);
            call.credit >= frame as u64
        }
        Some(_) => true,
    }
}

/// Writes one frame from the head of the call's queue: what comes first to `out`, what follows to `body`. True if the call is over with it. It has at most as
/// many bytes as the first of `longest` says; as the second once so much of a message has gone that needs no credit.
fn put_fragment(out: &mut Vec<u8>, body: &mut Bytes, id: u32, call: &mut Call, longest: [usize; 2]) -> bool {
    let [fragment, alone] = longest;
    let room = |sent: usize| if HEADER_BYTES + sent < fragment { fragment } else { alone } - HEADER_BYTES;
    let Some(head) = call.queue.front_mut() else { return false };
    let over = match head {
        Outgoing::Request { payload, sent, last } => {
            let (chunk, more) = cut(payload, sent, room(*sent));
            put_header(out, Kind::Data, if more || !*last { MORE } else { 0 }, id);
            *body = chunk;
            (!more).then_some(false)
        }
        Outgoing::Item { payload, sent } => {
            let (chunk, more) = cut(payload, sent, fragment - HEADER_BYTES);
            put_header(out, Kind::Data, if more { MORE } else { 0 }, id);
            call.credit = call.credit.saturating_sub((out.len() + chunk.len()) as u64);
            *body = chunk;
            if !more {
                call.queued_bytes = call.queued_bytes.saturating_sub(payload.len().max(HEADER_BYTES));
            }
            (!more).then_some(false)
        }
        Outgoing::End => {
            put_header(out, Kind::End, 0, id);
            Some(false)
        }
        Outgoing::Stop => {
            put_header(out, Kind::Stop, 0, id);
            Some(false)
        }
        Outgoing::Answer { app_error, payload, sent, last } => {
            let (chunk, more) = cut(payload, sent, room(*sent));
            let flags = if *app_error { APP_ERROR } else { 0 } | if more || !*last { MORE } else { 0 };
            put_header(out, Kind::Response, flags, id);
            *body = chunk;
            (!more).then_some(*last)
        }
        Outgoing::Frame(frame) => {
            out.extend_from_slice(frame);
            Some(true)
        }
    };
    if over.is_some() {
        call.queue.pop_front();
    }
    over == Some(true)
}

fn len_of(parts: &[Bytes]) -> usize {
    parts.iter().map(Bytes::len).sum()
}

/// The parts, each with whether it is the last.
fn with_last(parts: &[Bytes]) -> impl Iterator<Item = (Bytes, bool)> {
    parts.iter().enumerate().map(|(index, part)| (part.clone(), index + 1 == parts.len()))
}

/// The next `room` bytes of `payload` after `sent`, and whether more follow.
fn cut(payload: &Bytes, sent: &mut usize, room: usize) -> (Bytes, bool) {
    let end = payload.len().min(*sent + room);
    let chunk = payload.slice(*sent..end);
    *sent = end;
    (chunk, end < payload.len())
}

fn put_header(out: &mut Vec<u8>, kind: Kind, flags: u8, call: u32) {
    out.extend_from_slice(&Header { flags, ..Header::new(kind, call) }.to_bytes());
}

fn error_frame(out: &mut Vec<u8>, call: u32, fault: &Fault) {
    out.extend_from_slice(&Header { aux: fault.code, ..Header::new(Kind::Error, call) }.to_bytes());
    fault.put(out);
}

fn into_owned(payload: Payload<'_>) -> Bytes {
    match payload {
        Payload::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
        Payload::Owned(bytes) => bytes,
    }
}
