//! One stream of a link: what has arrived and is not read, what is written and has not gone, what is owed to the peer.

use std::collections::VecDeque;

use super::arrived::{Arrived, Place};
use super::buffers::{Buffers, Chunk};
use super::frame::{Kind, Refusal};
use super::limits::Limits;
use crate::addr::Port;
use crate::error::ResetCause;

/// Bytes of one stream that may have arrived without being read, in each direction. The peer sends no more before the reader has
/// taken some, so a reader who does not read holds up its own stream only. Every stream begins with it; where both ends take more, it grows
/// with what is read.
pub(crate) const STREAM_WINDOW: u64 = 64 * 1024;
/// Bytes of one stream that may be written without having gone.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// The same where frames are long: a few of them.
const SEND_FRAMES_MAX: usize = 8;

/// Where a stream is in its life, and who still holds it.
///
/// ```text
/// we call:    Calling ─OPEN─▶ Awaiting ─ACCEPT─▶ Open        they call:  Called ─accept─▶ Open
///                                └─REFUSE─▶ Refused                         └─refuse─▶ Rejecting ─REFUSE─▶ forgotten
/// both:       Open ─close─▶ Closing ─CLOSE─▶ forgotten       (unread data: Aborting ─RESET─▶ forgotten)
///             Open ─RESET, or the session ends─▶ Failed ─close─▶ forgotten
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// OPEN is owed.
    Calling {
        from: Port,
        to: Port,
    },
    /// OPEN has gone; the peer owes an answer.
    Awaiting,
    /// The peer's OPEN has come; we owe an answer.
    Called,
    Open,
    /// The peer refused our call; the caller has yet to learn.
    Refused(Refusal),
    /// REFUSE is owed; nobody here holds the stream.
    Rejecting(Refusal),
    /// Closed here: what was written goes, then CLOSE.
    Closing,
    /// RESET is owed; nobody here holds the stream.
    Aborting,
    /// What has arrived may still be read; then this error.
    Failed(ResetCause),
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) life: Life,
    recv: Arrived,
    received: u64,
    /// How far the peer knows that it may send.
    granted: u64,
    /// How much may have arrived without being read.
    window: u64,
    /// The peer has ended its direction.
    peer_ended: bool,
    /// The peer reads no more, and has forgotten the stream.
    peer_closed: bool,
    /// ... without having read all that we had written.
    cut: bool,
    /// What was written and has not gone, by frame.
    send: VecDeque<Chunk>,
    send_bytes: usize,
    sent: u64,
    /// How far we may send.
    limit: u64,
    finishing: bool,
    end_sent: bool,
    /// ACCEPT is owed.
    pub(crate) owes_accept: bool,
    /// Somebody was told that there is nothing to read.
    pub(crate) wants_read: bool,
    /// Somebody was told that there is no room.
    pub(crate) wants_write: bool,
    /// In the queue of streams that owe a control frame.
    pub(crate) in_control: bool,
    /// In the queue of streams that have data or an end to send.
    pub(crate) in_data: bool,
}

/// Why an operation on a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamError {
    Reset(ResetCause),
    Refused(Refusal),
    /// This side has ended its direction.
    Shutdown,
}

impl Stream {
    pub(crate) fn new(life: Life) -> Self {
        Self {
            life,
            recv: Arrived::default(),
            received: 0,
            granted: STREAM_WINDOW,
            window: STREAM_WINDOW,
            peer_ended: false,
            peer_closed: false,
            cut: false,
            send: VecDeque::new(),
            send_bytes: 0,
            sent: 0,
            limit: STREAM_WINDOW,
            finishing: false,
            end_sent: false,
            owes_accept: false,
            wants_read: false,
            wants_write: false,
            in_control: false,
            in_data: false,
        }
    }

    // What the application does.

    /// Bytes that have arrived: some, none at the end (`Some(0)`), or none yet (`None`).
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, StreamError> {
        if !self.recv.is_empty() {
            return Ok(Some(self.recv.take(into)));
        }
        match &self.life {
            Life::Failed(cause) => Err(StreamError::Reset(cause.clone())),
            Life::Refused(refusal) => Err(StreamError::Refused(*refusal)),
            _ if self.cut => Err(StreamError::Reset(ResetCause::PeerClosed)),
            _ if self.peer_ended => Ok(Some(0)),
            _ => {
                self.wants_read = true;
                Ok(None)
            }
        }
    }

    /// Takes some of `bytes`, or `None` while there is no room.
    pub(crate) fn write(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        buffers: &mut Buffers,
    ) -> Result<Option<usize>, StreamError> {
        if self.finishing {
            return Err(StreamError::Shutdown);
        }
        match &self.life {
            Life::Failed(cause) => return Err(StreamError::Reset(cause.clone())),
            Life::Refused(refusal) => return Err(StreamError::Refused(*refusal)),
            _ if self.peer_closed => return Err(StreamError::Reset(ResetCause::PeerClosed)),
            _ => {}
        }
        let payload_max = limits.payload_bytes();
        let most = SEND_BYTES_MAX.max(SEND_FRAMES_MAX * payload_max);
        let room = most.saturating_sub(self.send_bytes);
        if room == 0 && !bytes.is_empty() {
            self.wants_write = true;
            return Ok(None);
        }
        let taken = room.min(bytes.len());
        let mut rest = &bytes[..taken];
        if let Some(last) = self.send.back_mut() {
            rest = &rest[last.append(rest, payload_max)..];
        }
        while !rest.is_empty() {
            // After what waits already, more will come.
            let wanted = if self.send.is_empty() { rest.len().min(payload_max) } else { payload_max };
            let mut chunk = buffers.take(wanted);
            rest = &rest[chunk.append(rest, payload_max)..];
            self.send.push_back(chunk);
        }
        self.send_bytes += taken;
        Ok(Some(taken))
    }

    /// Ends our direction after what was written.
    pub(crate) fn finish(&mut self) -> Result<(), StreamError> {
        self.finishing = true;
        match &self.life {
            Life::Failed(cause) => Err(StreamError::Reset(cause.clone())),
            _ if self.cut => Err(StreamError::Reset(ResetCause::PeerClosed)),
            _ => Ok(()),
        }
    }

    /// The application holds the stream no more: false if it can be forgotten at once.
    pub(crate) fn close(&mut self) -> bool {
        self.life = match &self.life {
            Life::Awaiting | Life::Called => Life::Aborting,
            Life::Open if self.peer_closed => return false,
            Life::Open if self.recv.is_empty() => Life::Closing,
            Life::Open => Life::Aborting,
            // Closing, Aborting and Rejecting are of streams that nobody holds.
            _ => return false,
        };
        self.recv = Arrived::default();
        if self.life == Life::Aborting {
            self.drop_unsent();
        }
        true
    }

    /// Ends the stream for whoever holds it: false if nobody does and it can be forgotten.
    pub(crate) fn fail(&mut self, cause: &ResetCause) -> bool {
        match self.life {
            Life::Closing | Life::Aborting | Life::Rejecting(_) => false,
            Life::Failed(_) | Life::Refused(_) => true,
            // It ended in order already, as far as the reader is concerned: there is nothing more that could be lost.
            Life::Open if self.peer_closed => true,
            _ => {
                self.life = Life::Failed(cause.clone());
                self.drop_unsent();
                true
            }
        }
    }

    // What the peer does. An `Err` says what it did wrong.

    /// Bytes of the peer; true if they are kept, false if nobody reads here any more.
    pub(crate) fn on_data(&mut self, bytes: &[u8], place: Option<Place<'_>>) -> Result<bool, String> {
        if bytes.is_empty() || self.peer_ended {
            return Err("it sent data after its end, or none in a frame for data".into());
        }
        self.received += bytes.len() as u64;
        if self.received > self.granted {
            let (received, granted) = (self.received, self.granted);
            return Err(format!("it sent {received} bytes of a stream of which it was granted {granted}"));
        }
        match self.life {
            Life::Open => {
                self.recv.push(bytes, place);
                Ok(true)
            }
            Life::Closing => {
                self.life = Life::Aborting;
                self.drop_unsent();
                Ok(false)
            }
            Life::Aborting | Life::Failed(_) => Ok(false),
            _ => Err("it sent data on a stream that is not open".into()),
        }
    }

    pub(crate) fn on_end(&mut self) -> Result<(), String> {
        let open = matches!(self.life, Life::Open | Life::Closing | Life::Aborting | Life::Failed(_));
        if self.peer_ended || !open {
            return Err("it ended a stream that was not open, or twice".into());
        }
        self.peer_ended = true;
        Ok(())
    }

    /// The peer takes bytes up to `limit`, of which it may not have read `window_max`.
    pub(crate) fn on_credit(&mut self, limit: u64, window_max: u64) -> Result<(), String> {
        if limit < self.limit || limit > self.sent + window_max {
            let (had, sent) = (self.limit, self.sent);
            return Err(format!(
                "it granted {limit} bytes of a stream that had {had} and of which {sent} went"
            ));
        }
        self.limit = limit;
        Ok(())
    }

    /// The peer has read `consumed` bytes and forgotten the stream: false if nobody holds it here either.
    pub(crate) fn on_close(&mut self, consumed: u64) -> Result<bool, String> {
        if !matches!(self.life, Life::Open | Life::Closing | Life::Aborting | Life::Failed(_)) {
            return Err("it closed a stream that was not open".into());
        }
        if consumed > self.sent {
            return Err(format!("it read {consumed} bytes of a stream of which {} went", self.sent));
        }
        self.peer_ended = true;
        self.peer_closed = true;
        self.cut = consumed < self.sent + self.send_bytes as u64;
        self.drop_unsent();
        Ok(matches!(self.life, Life::Open | Life::Failed(_)))
    }

    /// Whether the peer may not have forgotten the stream.
    pub(crate) fn is_known_to_peer(&self) -> bool {
        !self.peer_closed && !matches!(self.life, Life::Failed(_) | Life::Refused(_))
    }

    // What is owed to the peer.

    /// The control frame that is due, if any.
    pub(crate) fn control_due(&self) -> Option<Kind> {
        match self.life {
            Life::Calling { .. } => Some(Kind::Open),
            Life::Rejecting(_) => Some(Kind::Refuse),
            Life::Aborting => Some(Kind::Reset),
            Life::Open | Life::Closing if self.peer_closed => None,
            Life::Open | Life::Closing if self.owes_accept => Some(Kind::Accept),
            Life::Open if !self.peer_ended && self.credit_due() => Some(Kind::Credit),
            _ => None,
        }
    }

    /// The frame with data, or the end of them, that is due; with the length of its payload.
    pub(crate) fn data_due(&self) -> Option<(Kind, usize)> {
        if !matches!(self.life, Life::Open | Life::Closing) || self.peer_closed {
            return None;
        }
        if let Some(chunk) = self.send.front() {
            let credit = usize::try_from(self.limit - self.sent).unwrap_or(usize::MAX);
            let len = chunk.len().min(credit);
            return (len > 0).then_some((Kind::Data, len));
        }
        match self.life {
            Life::Closing => Some((Kind::Close, 8)),
            _ if self.finishing && !self.end_sent => Some((Kind::End, 0)),
            _ => None,
        }
    }

    /// Takes the first `len` bytes that were written, of those that [`Stream::data_due`] told.
    pub(crate) fn take_data(&mut self, len: usize, buffers: &mut Buffers) -> Option<Chunk> {
        let front = self.send.front_mut()?;
        let taken =
            if len < front.len() { front.split_off_front(len, buffers) } else { self.send.pop_front()? };
        self.send_bytes -= taken.len();
        self.sent += taken.len() as u64;
        Some(taken)
    }

    fn drop_unsent(&mut self) {
        self.send = VecDeque::new();
        self.send_bytes = 0;
    }

    pub(crate) fn end_went(&mut self) {
        self.end_sent = true;
    }

    /// Grants what the reader has made room for; the limit to be told. The window doubles up to `window_max`, by at most a part of what is
    /// `spare` for that in the whole link, so that something is left for streams to come.
    pub(crate) fn grant(&mut self, window_max: u64, spare: &mut u64) -> u64 {
        let growth = self.window.min(window_max.saturating_sub(self.window)).min(*spare / 4);
        *spare -= growth;
        self.window += growth;
        self.granted = self.consumed() + self.window;
        self.granted
    }

    /// How much larger than that of a new stream the window is.
    pub(crate) fn growth(&self) -> u64 {
        self.window - STREAM_WINDOW
    }

    /// How far the application has read.
    pub(crate) fn consumed(&self) -> u64 {
        self.received - self.recv.len() as u64
    }

    /// Told in halves of the window, not for every read.
    fn credit_due(&self) -> bool {
        self.consumed() + self.window >= self.granted + self.window / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Stream {
        Stream::new(Life::Open)
    }

    fn send(stream: &mut Stream, bytes: &[u8]) {
        let mut buffers = Buffers::default();
        assert_eq!(stream.write(bytes, &Limits::PACKETS, &mut buffers), Ok(Some(bytes.len())));
        stream.take_data(bytes.len(), &mut buffers).unwrap();
    }

    #[test]
    fn peer_may_send_what_was_granted_and_no_more() {
        let mut stream = open();
        let chunk = vec![1; STREAM_WINDOW as usize];
        assert_eq!(stream.on_data(&chunk, None), Ok(true));
        assert!(stream.on_data(&[1], None).unwrap_err().contains("granted"));
    }

    #[test]
    fn reading_half_a_window_makes_credit_due() {
        let mut stream = open();
        stream.on_data(&vec![1; STREAM_WINDOW as usize], None).unwrap();
        let mut half = vec![0; STREAM_WINDOW as usize / 2];
        assert_eq!(stream.control_due(), None);
        assert_eq!(stream.read(&mut half), Ok(Some(half.len())));
        assert_eq!(stream.control_due(), Some(Kind::Credit));
        assert_eq!(stream.grant(STREAM_WINDOW, &mut 1000), STREAM_WINDOW + half.len() as u64);
        assert_eq!(stream.control_due(), None);
    }

    #[test]
    fn window_doubles_with_what_is_read_as_far_as_the_link_has_room() {
        let mut stream = open();
        let mut spare = 3 * STREAM_WINDOW;
        for window in [STREAM_WINDOW * 7 / 4, STREAM_WINDOW * 37 / 16] {
            let received = stream.granted - stream.received;
            stream.on_data(&vec![1; received as usize], None).unwrap();
            while stream.read(&mut [0; 10_000]).unwrap().is_some() {}
            let read = stream.received;
            assert_eq!(stream.grant(3 * STREAM_WINDOW, &mut spare), read + window);
        }
        assert_eq!(spare + stream.growth(), 3 * STREAM_WINDOW);
    }

    #[test]
    fn close_by_a_peer_that_left_something_unread_is_a_reset_after_what_came() {
        let mut stream = open();
        stream.on_data(b"answer", None).unwrap();
        send(&mut stream, b"question");
        assert_eq!(stream.on_close(5), Ok(true));
        let mut into = [0; 16];
        assert_eq!(stream.read(&mut into), Ok(Some(6)));
        assert_eq!(stream.read(&mut into), Err(StreamError::Reset(ResetCause::PeerClosed)));
    }

    #[test]
    fn close_by_a_peer_that_read_all_is_an_end() {
        let mut stream = open();
        send(&mut stream, b"question");
        assert_eq!(stream.on_close(8), Ok(true));
        assert_eq!(stream.read(&mut [0; 4]), Ok(Some(0)));
        let written = stream.write(b"x", &Limits::PACKETS, &mut Buffers::default());
        assert_eq!(written, Err(StreamError::Reset(ResetCause::PeerClosed)));
        assert_eq!(stream.finish(), Ok(()));
    }

    #[test]
    fn closing_with_unread_data_aborts() {
        let mut stream = open();
        stream.on_data(b"unread", None).unwrap();
        assert!(stream.close());
        assert_eq!(stream.control_due(), Some(Kind::Reset));
    }
}
