//! One connection to the keeper: first a request, then perhaps the console.

use std::io::{self, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::io::IoSlice;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::wire::{LINE_BYTES_MAX, line};
use super::{Request, Status};

/// Console output a slow client may owe, in bytes; past it the client is dropped (the log has everything).
const CONSOLE_OUTPUT_BYTES_MAX: usize = 1 << 20;

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    number: u64,
    stream: UnixStream,
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are read, one at a time.
    Requests,
    /// A request was read whose answer is due.
    Waiting,
    /// Bytes go to and from the console.
    Console,
}

/// What is to happen after a client was served.
pub(super) enum Next {
    /// Nothing.
    Stay,
    /// It has gone, or broke the protocol.
    Gone,
    /// It wants this, and [`Client::answer`] is owed.
    Asks(Request),
}

impl Client {
    pub(super) fn new(stream: UnixStream, number: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (input, output) = (Vec::new(), Vec::new());
        Ok(Self { number, stream, phase: Phase::Requests, input, output, broken: false })
    }

    /// Given to no other connection.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn is_console(&self) -> bool {
        self.phase == Phase::Console
    }

    pub(super) fn become_console(&mut self) {
        self.phase = Phase::Console;
    }

    /// A client that waits is read too: that is how one sees it leave.
    pub(super) fn wants_read(&self) -> bool {
        true
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.output.is_empty() || self.broken
    }

    /// Moves bytes after poll(2) said so. Console input is appended to `console_input`.
    pub(super) fn advance(&mut self, console_input: &mut Vec<u8>) -> Next {
        if self.broken || self.flush().is_err() {
            return Next::Gone;
        }
        let mut buffer = [0; LINE_BYTES_MAX];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Next::Gone,
            Ok(n) if self.is_console() => console_input.extend_from_slice(&buffer[..n]),
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return Next::Gone,
        }
        self.next_request()
    }

    fn next_request(&mut self) -> Next {
        if self.phase != Phase::Requests {
            return if self.input.len() > LINE_BYTES_MAX { Next::Gone } else { Next::Stay };
        }
        let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else {
            return if self.input.len() > LINE_BYTES_MAX { Next::Gone } else { Next::Stay };
        };
        let request = serde_json::from_slice(&self.input[..end]);
        self.input.drain(..=end);
        match request {
            Ok(request) => {
                self.phase = Phase::Waiting;
                Next::Asks(request)
            }
            Err(_) => Next::Gone,
        }
    }

    /// Sends the answer that is owed, with a descriptor riding on it if `fd` is given.
    pub(super) fn answer(&mut self, status: &Status, fd: Option<BorrowedFd<'_>>) {
        self.phase = Phase::Requests;
        let bytes = line(status);
        let Some(fd) = fd else {
            self.output.extend_from_slice(&bytes);
            self.broken |= self.flush().is_err();
            return;
        };
        let fds = [fd];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        self.broken |= !fits || sent != Ok(bytes.len());
    }

    /// Queues console output for this client.
    pub(super) fn push_console(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
        self.broken |= self.flush().is_err() || self.output.len() > CONSOLE_OUTPUT_BYTES_MAX;
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
