//! What applications do with streams.

use super::Link;
use super::frame::Refusal;
use super::stream::{Life, Stream, StreamError};
use super::streams::{StreamId, TooManyStreams};
use crate::addr::Port;

/// What an operation on a stream that is not there meets: only one that was closed is not there.
const CLOSED: StreamError = StreamError::Shutdown;

impl Link {
    /// Calls port `to` of the peer. The call goes as soon as the peer is there; [`Link::poll_answer`] tells what came of it.
    pub(crate) fn open(&mut self, from: Port, to: Port) -> Result<StreamId, TooManyStreams> {
        let id = self.streams.insert_own(Stream::new(Life::Calling { from, to }))?;
        self.streams.schedule(id);
        Ok(id)
    }

    /// What came of a call: `None` while nothing has ([`Readable`](super::Event::Readable) follows).
    pub(crate) fn poll_answer(&mut self, id: StreamId) -> Option<Result<(), StreamError>> {
        let Some(stream) = self.streams.get_mut(id) else { return Some(Err(CLOSED)) };
        match &stream.life {
            Life::Calling { .. } | Life::Awaiting => {
                stream.wants_read = true;
                None
            }
            Life::Refused(refusal) => Some(Err(StreamError::Refused(*refusal))),
            Life::Failed(cause) => Some(Err(StreamError::Reset(cause.clone()))),
            _ => Some(Ok(())),
        }
    }

    /// Answers [`Called`](super::Event::Called): there is a place for it.
    pub(crate) fn accept(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.life == Life::Called
        {
            stream.life = Life::Open;
            stream.owes_accept = true;
            self.streams.schedule(id);
        }
    }

    /// Answers [`Called`](super::Event::Called): there is none. The stream is forgotten.
    pub(crate) fn refuse(&mut self, id: StreamId, refusal: Refusal) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.life == Life::Called {
            stream.life = Life::Rejecting(refusal);
            self.streams.schedule(id);
        } else {
            self.streams.remove(id);
        }
    }

    /// Bytes that have arrived: some, none at the end (`Some(0)`), or none yet (`None`; [`Readable`](super::Event::Readable) follows).
    pub(crate) fn read(&mut self, id: StreamId, into: &mut [u8]) -> Result<Option<usize>, StreamError> {
        let read = self.streams.get_mut(id).ok_or(CLOSED)?.read(into)?;
        self.streams.schedule(id);
        Ok(read)
    }

    /// Takes some of `bytes`, or `None` while there is no room ([`Writable`](super::Event::Writable) follows). What was taken goes without further ado.
    pub(crate) fn write(&mut self, id: StreamId, bytes: &[u8]) -> Result<Option<usize>, StreamError> {
        let limits = self.outbox.limits();
        let stream = self.streams.get_mut(id).ok_or(CLOSED)?;
        let taken = stream.write(bytes, &limits, &mut self.outbox.buffers)?;
        self.streams.schedule(id);
        Ok(taken)
    }

    /// Whether something could go that the shell may not know of: where the window is full, or a frame held up, it learns by other means when that
    /// is over.
    pub(crate) fn has_due(&self) -> bool {
        self.streams.has_due() && self.outbox.has_room(0) && !self.is_held_up()
    }

    /// Ends our direction after what was written. Ending it twice is no error.
    pub(crate) fn finish(&mut self, id: StreamId) -> Result<(), StreamError> {
        self.streams.get_mut(id).ok_or(CLOSED)?.finish()?;
        self.streams.schedule(id);
        Ok(())
    }

    /// Nobody here holds the stream any more. The peer gets what was written and then the end; a reset if we leave anything of its
    /// unread.
    pub(crate) fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.close() {
            self.streams.schedule(id);
        } else {
            self.streams.remove(id);
        }
    }
}
