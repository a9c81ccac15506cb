//! All streams of a link, and whose turn it is.

use std::collections::{HashMap, VecDeque};

use super::Event;
use super::frame::{Kind, Role};
use super::outbox::Outbox;
use super::stream::{Life, Stream};
use crate::error::ResetCause;

/// Streams that either side may have opened to the other at one time. With a window of 64 KiB each, a hostile peer makes us keep 32 MiB.
pub(crate) const STREAMS_MAX: usize = 512;
/// What the windows of all streams of a link together may have grown beyond that, where sockets are sound.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

/// A stream of one link. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId {
    /// Its number in frames.
    wire: u64,
    /// A peer's next life counts from the beginning, so its streams bear the number of the session too. 0 for our own, whose numbers
    /// go on.
    session: u64,
}

/// We have opened as many streams as the peer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyStreams;

#[derive(Debug)]
pub(super) struct Streams {
    map: HashMap<StreamId, Stream>,
    /// Streams that owe a control frame, and those that have data or an end to send: each goes to the back after one frame.
    control: VecDeque<StreamId>,
    data: VecDeque<StreamId>,
    role: Role,
    next_own: u64,
    last_of_peer: u64,
    session: u64,
    /// What windows of streams may yet grow by, all together.
    spare_window: u64,
}

/// A stream that the peer names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    Here(StreamId),
    /// There was one, and it is forgotten.
    Gone,
}

/// How many streams the peer has opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Those that it has not closed.
    pub(super) known_to_peer: usize,
    /// Those for which there is a place here.
    pub(super) here: usize,
}

impl Streams {
    pub(super) fn new(role: Role) -> Self {
        Self {
            map: HashMap::new(),
            control: VecDeque::new(),
            data: VecDeque::new(),
            role,
            next_own: first_of(role),
            last_of_peer: 0,
            session: 1,
            spare_window: GROWTH_BYTES_MAX,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether a stream owes a frame.
    pub(super) fn has_due(&self) -> bool {
        !self.control.is_empty() || !self.data.is_empty()
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.map.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: StreamId) {
        if let Some(stream) = self.map.remove(&id) {
            self.spare_window += stream.growth();
        }
    }

    pub(super) fn insert_own(&mut self, stream: Stream) -> Result<StreamId, TooManyStreams> {
        let known = self.map.iter().filter(|(id, stream)| id.session == 0 && stream.is_known_to_peer());
        if known.count() >= STREAMS_MAX {
            return Err(TooManyStreams);
        }
        let id = StreamId { wire: self.next_own, session: 0 };
        self.next_own += 2;
        self.map.insert(id, stream);
        Ok(id)
    }

    pub(super) fn insert_of_peer(&mut self, wire: u64, stream: Stream) -> Result<StreamId, String> {
        if self.is_own(wire) || wire <= self.last_of_peer {
            return Err(format!("it opened stream {wire} after {}", self.last_of_peer));
        }
        self.last_of_peer = wire;
        let id = StreamId { wire, session: self.session };
        self.map.insert(id, stream);
        Ok(id)
    }

    pub(super) fn find(&self, wire: u64) -> Result<Found, String> {
        let is_own = self.is_own(wire);
        let id = StreamId { wire, session: if is_own { 0 } else { self.session } };
        let was_opened = if is_own { wire < self.next_own } else { wire <= self.last_of_peer };
        match was_opened {
            true if self.map.contains_key(&id) => Ok(Found::Here(id)),
            true => Ok(Found::Gone),
            false => Err(format!("a frame about stream {wire}, which nobody opened")),
        }
    }

    pub(super) fn counts_of_peer(&self) -> Counts {
        let of_peer = self.map.iter().filter(|(id, _)| id.session != 0);
        of_peer.fold(Counts::default(), |mut counts, (id, stream)| {
            let is_known = id.session == self.session && stream.is_known_to_peer();
            counts.known_to_peer += usize::from(is_known);
            counts.here += usize::from(!matches!(stream.life, Life::Rejecting(_)));
            counts
        })
    }

    pub(super) fn tell_readable(&mut self, id: StreamId, events: &mut VecDeque<Event>) {
        let Some(stream) = self.map.get_mut(&id) else { return };
        if std::mem::take(&mut stream.wants_read) {
            events.push_back(Event::Readable(id));
        }
    }

    pub(super) fn tell_both(&mut self, id: StreamId, events: &mut VecDeque<Event>) {
        self.tell_readable(id, events);
        let Some(stream) = self.map.get_mut(&id) else { return };
        if std::mem::take(&mut stream.wants_write) {
            events.push_back(Event::Writable(id));
        }
    }

    /// Queues the stream for what it owes.
    pub(super) fn schedule(&mut self, id: StreamId) {
        let Some(stream) = self.map.get_mut(&id) else { return };
        if !stream.in_control && stream.control_due().is_some() {
            stream.in_control = true;
            self.control.push_back(id);
        }
        if !stream.in_data && stream.data_due().is_some() {
            stream.in_data = true;
            self.data.push_back(id);
        }
    }

    /// Makes the next frame of whoever's turn it is, if the window has room for it. Control frames, which are few and short, go first.
    pub(super) fn make_frame(&mut self, outbox: &mut Outbox, events: &mut VecDeque<Event>) {
        while let Some(id) = self.control.front().copied() {
            let due = self.map.get(&id).and_then(Stream::control_due);
            if due.is_some() && !outbox.has_room(8) {
                return;
            }
            self.control.pop_front();
            let Some(stream) = self.map.get_mut(&id) else { continue };
            stream.in_control = false;
            let Some(kind) = due else { continue };
            if make_control(kind, id, stream, outbox, &mut self.spare_window) {
                self.schedule(id);
            } else {
                self.remove(id);
            }
            return;
        }
        while let Some(id) = self.data.front().copied() {
            let due = self.map.get(&id).and_then(Stream::data_due);
            let due = due.map(|(kind, len)| (kind, len.min(outbox.limits().payload_bytes())));
            if due.is_some_and(|(_, len)| !outbox.has_room(len)) {
                return;
            }
            self.data.pop_front();
            let Some(stream) = self.map.get_mut(&id) else { continue };
            stream.in_data = false;
            let Some((kind, len)) = due else { continue };
            if make_data(kind, len, id, stream, outbox) {
                if std::mem::take(&mut stream.wants_write) {
                    events.push_back(Event::Writable(id));
                }
                self.schedule(id);
            } else {
                self.remove(id);
            }
            return;
        }
    }

    /// Fails every stream that somebody holds and forgets the others; calls that have not gone may be kept.
    pub(super) fn end_session(
        &mut self,
        cause: &ResetCause,
        keeps_calls: bool,
        events: &mut VecDeque<Event>,
    ) {
        let mut ids: Vec<StreamId> = self.map.keys().copied().collect();
        ids.sort_unstable();
        self.control.clear();
        self.data.clear();
        for id in ids {
            let Some(stream) = self.map.get_mut(&id) else { continue };
            stream.in_control = false;
            stream.in_data = false;
            if keeps_calls && matches!(stream.life, Life::Calling { .. }) {
                self.schedule(id);
            } else if stream.fail(cause) {
                self.tell_both(id, events);
            } else {
                self.remove(id);
            }
        }
        self.last_of_peer = 0;
        self.session += 1;
    }

    #[cfg(test)]
    pub(super) fn spare_window(&self) -> u64 {
        self.spare_window
    }

    fn is_own(&self, wire: u64) -> bool {
        wire % 2 == first_of(self.role) % 2
    }
}

fn first_of(role: Role) -> u64 {
    match role {
        Role::Dialler => 1,
        Role::Acceptor => 2,
    }
}

/// False if the stream is to be forgotten.
fn make_control(kind: Kind, id: StreamId, stream: &mut Stream, outbox: &mut Outbox, spare: &mut u64) -> bool {
    match (kind, &stream.life) {
        (Kind::Open, Life::Calling { from, to }) => {
            let mut ports = [0; 8];
            ports[..4].copy_from_slice(&from.0.to_le_bytes());
            ports[4..].copy_from_slice(&to.0.to_le_bytes());
            outbox.push_control(kind, id.wire, &ports);
            stream.life = Life::Awaiting;
            true
        }
        (Kind::Refuse, Life::Rejecting(refusal)) => {
            outbox.push_control(kind, id.wire, &[*refusal as u8]);
            false
        }
        (Kind::Accept, _) => {
            outbox.push_control(kind, id.wire, &[]);
            stream.owes_accept = false;
            true
        }
        (Kind::Credit, _) => {
            let limit = stream.grant(outbox.limits().stream_bytes as u64, spare);
            outbox.push_control(kind, id.wire, &limit.to_le_bytes());
            true
        }
        _ => {
            outbox.push_control(Kind::Reset, id.wire, &[]);
            false
        }
    }
}

/// False if the stream is to be forgotten.
fn make_data(kind: Kind, len: usize, id: StreamId, stream: &mut Stream, outbox: &mut Outbox) -> bool {
    match kind {
        Kind::Data => {
            if let Some(chunk) = stream.take_data(len, &mut outbox.buffers) {
                outbox.push_data(id.wire, chunk);
            }
        }
        Kind::End => {
            outbox.push_control(kind, id.wire, &[]);
            stream.end_went();
        }
        _ => {
            outbox.push_control(Kind::Close, id.wire, &stream.consumed().to_le_bytes());
            return false;
        }
    }
    true
}
