//! Calls without a runtime: a client and a server that poll.
//!
//! They speak the same protocol, from the same core, as [`Link`](crate::Link), and each talks to the other or to a `Link`. They
//! trade a CPU for latency: nothing sleeps, nothing wakes, no task is switched. One call at a time, unary only.

mod client;
mod server;

use std::time::Instant;

use tombolo_transport::{Messages, TryRecv, TryRecvApart};

use crate::clock;
use crate::connection::{Connection, Event, Side};
use crate::error::LinkError;
use crate::link::{Auth, LinkConfig};

pub use client::BusyClient;
pub use server::BusyServer;

/// What carries frames without waiting. Implemented by [`Messages`].
pub trait FramePipe {
    /// Takes one frame whole and makes it visible to the peer, or nothing (`false`) while there is no room.
    ///
    /// # Errors
    /// If the pipe is broken for good.
    fn try_send(&mut self, frame: &[u8]) -> tombolo_transport::Result<bool>;

    /// Receives a frame if there is one, replacing the content of `frame`.
    ///
    /// # Errors
    /// If the pipe is broken for good.
    fn try_recv(&mut self, frame: &mut Vec<u8>) -> tombolo_transport::Result<TryRecv>;

    /// As [`FramePipe::try_send`], of a frame that lies in several parts; it may become visible only by [`FramePipe::flush`]. Unless a pipe does
    /// better, they are put together first, and sent.
    ///
    /// # Errors
    /// As there.
    fn try_put_parts(&mut self, parts: &[&[u8]]) -> tombolo_transport::Result<bool> {
        match parts {
            [frame] | [frame, []] => self.try_send(frame),
            _ => self.try_send(&parts.concat()),
        }
    }

    /// As [`FramePipe::try_recv`], but of a long frame only the first bytes go to `frame` if `place`, told these and how many follow, says where
    /// the rest is to be appended. Unless a pipe does better, frames are received whole.
    ///
    /// # Errors
    /// As there; nothing has been appended then.
    fn try_recv_apart<'a>(
        &mut self,
        frame: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> tombolo_transport::Result<TryRecvApart>
    where
        Self: Sized,
    {
        let _ = place;
        self.try_recv(frame).map(TryRecvApart::from)
    }

    /// Pushes on what was taken and has not gone out.
    ///
    /// # Errors
    /// If the pipe is broken for good.
    fn flush(&mut self) -> tombolo_transport::Result<()>;

    /// The longest frame, in bytes.
    fn max_len(&self) -> usize;

    /// How long the parts of something long are best, in bytes, while nothing else waits to be sent. Unless a pipe knows better, 16 KiB.
    fn part_len(&self) -> usize {
        crate::connection::FRAGMENT_BYTES
    }
}

impl FramePipe for Messages {
    fn try_send(&mut self, frame: &[u8]) -> tombolo_transport::Result<bool> {
        Self::try_send(self, frame)
    }

    fn try_recv(&mut self, frame: &mut Vec<u8>) -> tombolo_transport::Result<TryRecv> {
        Self::try_recv(self, frame)
    }

    fn try_put_parts(&mut self, parts: &[&[u8]]) -> tombolo_transport::Result<bool> {
        Self::try_put_parts(self, parts)
    }

    fn try_recv_apart<'a>(
        &mut self,
        frame: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> tombolo_transport::Result<TryRecvApart> {
        Self::try_recv_apart(self, frame, place)
    }

    fn flush(&mut self) -> tombolo_transport::Result<()> {
        self.try_flush().map(drop)
    }

    fn max_len(&self) -> usize {
        Self::max_len(self)
    }

    fn part_len(&self) -> usize {
        Self::part_len(self)
    }
}

/// How a frame was received.
#[derive(Clone, Copy, Debug)]
enum Received {
    /// Whole.
    Frame,
    /// But for its header, it is where it belongs: so many bytes.
    Placed(usize),
}

/// Looks at the pipe between two looks at the clock, which costs as much as several of them.
const LOOKS_PER_CLOCK: u32 = 64;
/// Ticks of the processor's own clock between two looks at the system's: about a millisecond. The system's is a system
/// call of 30 microseconds under user-mode Linux, as long as a hundred calls.
const TICKS_PER_CLOCK: u64 = 3_000_000;
/// Looks without a pause in between after something has come.
const HOT_LOOKS: u32 = 4 * LOOKS_PER_CLOCK;
/// Time between two readings of the clock after which nobody can have been listening.
const GAP_NS: u64 = 1_000_000_000;

/// What client and server have in common: one end of a link on a pipe that is polled.
#[derive(Debug)]
struct Polled<P: FramePipe> {
    conn: Connection,
    pipe: P,
    config: LinkConfig,
    /// The clock as last read: now and then, because reading it costs as much as half a call.
    clock_ns: u64,
    /// The processor's clock when the system's was read last.
    read_at: Option<u64>,
    looks: u32,
}

impl<P: FramePipe> Polled<P> {
    /// Polls until both sides have said HELLO.
    fn establish(pipe: P, config: LinkConfig, side: Side) -> Result<Self, LinkError> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce)
            .map_err(|error| LinkError::ClosedHere(format!("no random bytes for the handshake: {error}")))?;
        let frame_bytes = u32::try_from(pipe.max_len()).unwrap_or(u32::MAX);
        crate::link::check_frame_bytes(frame_bytes)?;
        let clock_ns = clock::exact_ns();
        let conn = Connection::new(config.core(side, nonce, frame_bytes, pipe.part_len()), clock_ns);
        let mut polled = Self { conn, pipe, config, clock_ns, read_at: None, looks: 0 };
        let mut frame = Vec::with_capacity(crate::connection::FRAGMENT_FRAME_BYTES as usize);
        while polled.conn.peer().is_none() {
            polled.transmit();
            if let Some(received) = polled.receive(&mut frame) {
                polled.handle(received, &frame);
                polled.settle();
            } else {
                polled.idle();
            }
            if let Some(error) = polled.conn.closed().cloned() {
                polled.transmit();
                return Err(error);
            }
        }
        polled.transmit();
        Ok(polled)
    }

    /// The time, at most a millisecond old.
    fn tick(&mut self) -> u64 {
        let ticks = tombolo_transport::mem::ticks();
        if self.read_at.is_some_and(|read_at| ticks.wrapping_sub(read_at) < TICKS_PER_CLOCK) {
            return self.clock_ns;
        }
        self.read_at = Some(ticks);
        let now = clock::exact_ns();
        if now.saturating_sub(self.clock_ns) > GAP_NS {
            self.conn.resumed(now);
        }
        self.clock_ns = now;
        now
    }

    /// Sends what is due; a peer that makes no room for long is taken for dead.
    #[inline]
    fn transmit(&mut self) {
        let Self { conn, pipe, .. } = self;
        while let Some(frame) = conn.poll_transmit() {
            // A frame that has been handed out must go: the peer makes room, or is found silent.
            let mut since = None;
            loop {
                match pipe.try_put_parts(&[frame.head, frame.body]) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => return conn.lost(LinkError::Lost(error.to_string())),
                }
                let silent = since.get_or_insert_with(Instant::now).elapsed();
                if silent >= self.config.silence_max {
                    return conn.lost(LinkError::Silent { silent });
                }
                std::thread::yield_now();
            }
        }
        if let Err(error) = pipe.flush() {
            conn.lost(LinkError::Lost(error.to_string()));
        }
    }

    /// Receives a frame, if there is one: into `frame`, or only its header, while the rest has gone to where it belongs.
    #[inline]
    fn receive(&mut self, frame: &mut Vec<u8>) -> Option<Received> {
        let Self { conn, pipe, .. } = self;
        let error = match pipe.try_recv_apart(frame, |head, rest| conn.place(head, rest)) {
            Ok(TryRecvApart::Whole) => {
                self.looks = 0;
                return Some(Received::Frame);
            }
            Ok(TryRecvApart::Apart(rest)) => {
                self.looks = 0;
                return Some(Received::Placed(rest));
            }
            Ok(TryRecvApart::Empty) => return None,
            Ok(TryRecvApart::End) => "the peer closed it without a word".to_owned(),
            Err(error) => error.to_string(),
        };
        self.conn.lost(LinkError::Lost(error));
        None
    }

    /// Acts on a frame that was just received.
    #[inline]
    fn handle<'f>(&mut self, received: Received, frame: &'f [u8]) -> Option<Event<'f>> {
        match received {
            Received::Frame => self.conn.handle_frame(self.clock_ns, frame),
            Received::Placed(rest) => self.conn.handle_placed(self.clock_ns, frame, rest),
        }
    }

    /// Nothing came: now and then, a look at the clock. Returns whether this was such a time.
    #[inline]
    fn idle(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(LOOKS_PER_CLOCK) {
            // A pause costs more than a look, so at first there is none: most answers come within a microsecond.
            if self.looks > HOT_LOOKS {
                std::hint::spin_loop();
            }
            return false;
        }
        let now = self.tick();
        if self.conn.poll_timeout().is_some_and(|due| due <= now) {
            self.conn.handle_timeout(now);
        }
        if let Err(error) = self.pipe.flush() {
            self.conn.lost(LinkError::Lost(error.to_string()));
        }
        true
    }

    /// Acts on what the handshake asks; everything else that is queued matters to nobody here.
    fn settle(&mut self) {
        while let Some(event) = self.conn.poll_event() {
            match event {
                Event::PeerHello(peer) => {
                    let Auth::Choose(choose) = &self.config.auth else { continue };
                    match choose(&peer) {
                        Ok(secret) => self.conn.authenticate(secret),
                        Err(reason) => self.conn.close(LinkError::NotAuthenticated(reason)),
                    }
                }
                Event::Established => {
                    let found = self.conn.peer().map(|peer| peer.incarnation);
                    if let Some(error) = self.config.unexpected(found) {
                        self.conn.close(error);
                    }
                }
                _ => {}
            }
        }
    }
}

impl<P: FramePipe> Drop for Polled<P> {
    fn drop(&mut self) {
        self.conn.close(LinkError::Closed);
        // The last words, if there is room for them; nobody waits for that.
        while let Some(frame) = self.conn.poll_transmit() {
            if !matches!(self.pipe.try_put_parts(&[frame.head, frame.body]), Ok(true)) {
                break;
            }
        }
        let _ = self.pipe.flush();
    }
}

#[cfg(test)]
mod tests;
