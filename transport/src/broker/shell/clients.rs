//! The processes of this kernel: hello, messages, and their end.

use std::collections::HashSet;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pool_fd::Passed;
use super::{Event, Shell, frame, range};
use crate::broker::core::ClientId;
use crate::broker::door::{self, Door};
use crate::broker::locks;
use crate::broker::protocol::{self, ClientMessage, ServerMessage};
use crate::broker::record::HalfRef;
use crate::broker::spans::Spans;
use crate::doorbell;
use crate::error::{Error, Result};
use crate::fds;
use crate::pool::Member;

/// How long a process may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Processes that may be attached at once.
const CLIENTS_MAX: usize = 4096;
/// Answers that may wait for a process that does not read them, before it is cut off.
const OUTGOING_MAX: usize = 8192;

/// Why a process without privileges gets no part of a pool on `/dev/mem`.
const NOT_FOR_EVERYBODY: &str = "this kernel reaches the pool through /dev/mem, and whoever has that has all memory of this kernel: only root \
                                 may attach here";

/// One attached process.
#[derive(Debug)]
pub(super) struct ClientHandle {
    outgoing: mpsc::Sender<Outgoing>,
    pub(super) eventfd: OwnedFd,
    /// The processes it can ring itself.
    neighbours: HashSet<ClientId>,
    /// A copy of the process's own descriptor of the pool, or of the file of locks, which its halves are locked on. See [`locks`].
    locks: OwnedFd,
    /// Its halves. Those that touch each other are one span, so this is small however many there are.
    held: Spans,
    /// What is locked on that descriptor: its halves, and what was one when it was last looked (see [`ClientHandle::unlock_unused`]).
    locked: Spans,
    /// It has given back halves since then.
    has_unused: bool,
    reader: JoinHandle<()>,
}

impl ClientHandle {
    /// The process has this half from here on. A lock of an earlier half of its own is as good as a new one.
    pub(super) fn hold(&mut self, half: &HalfRef) {
        let range = range(half);
        self.held.add(range.clone());
        if self.locked.covers(&range) {
            return;
        }
        match locks::lock(&self.locks, range.clone()) {
            Ok(true) => self.locked.add(range),
            Ok(false) => tracing::warn!(?range, "a half is locked by somebody else"),
            Err(error) => {
                tracing::warn!(%error, "a half could not be locked; a restarted broker may hand it out while it is in use");
            }
        }
    }

    pub(super) fn has_locked(&self, range: &Range<u64>) -> bool {
        self.locked.covers(range)
    }

    /// The process will not write this half again.
    pub(super) fn let_go(&mut self, half: &HalfRef) {
        self.has_unused |= !self.held.take(&range(half)).is_empty();
    }

    /// Unlocks what of `range` is locked here: another process gets it.
    pub(super) fn unlock(&mut self, range: &Range<u64>) {
        for part in self.locked.take(range) {
            let _ = locks::unlock(&self.locks, part);
        }
    }

    /// Unlocks all that is no half of the process any more. Not at once, because the next half is often in the same place.
    pub(super) fn unlock_unused(&mut self) {
        if !std::mem::take(&mut self.has_unused) {
            return;
        }
        let mut unused = self.locked.clone();
        self.held.iter().for_each(|range| drop(unused.take(&range)));
        for range in unused.take_all() {
            self.unlock(&range);
        }
    }
}

/// Something for a process to read.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    passed: Option<OwnedFd>,
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Accepts processes until aborted.
pub(super) async fn accept(listener: UnixListener, door: Door, events: mpsc::Sender<Event>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let verdict = door.judge(&stream);
                tokio::spawn(greet(stream, verdict, events.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: it may pass.
                tracing::warn!(%error, "a process could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Waits for the hello.
pub(super) async fn greet(
    mut stream: UnixStream,
    verdict: Result<bool, String>,
    events: mpsc::Sender<Event>,
) {
    let mut buffer = Vec::new();
    let hello = door::hello(&mut stream, &mut buffer, verdict);
    let said = tokio::time::timeout(HELLO_TIMEOUT, hello).await;
    match said.unwrap_or_else(|_| Err("no hello came in time".to_owned())) {
        Ok(privileged) => {
            let _ = events.send(Event::Attach { stream, privileged }).await;
        }
        Err(reason) => {
            tracing::debug!(reason, "a process was turned away");
            if let Some(bytes) = frame(&ServerMessage::Rejected { reason }) {
                let _ = tokio::time::timeout(HELLO_TIMEOUT, stream.write_all(&bytes)).await;
            }
        }
    }
}

async fn read(mut stream: OwnedReadHalf, client: ClientId, events: mpsc::Sender<Event>) {
    let mut buffer = Vec::new();
    'reading: while matches!(stream.read_buf(&mut buffer).await, Ok(n) if n > 0) {
        loop {
            match protocol::take::<ClientMessage>(&mut buffer) {
                Ok(Some(message)) => {
                    if events.send(Event::Message(client, message)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a process talks nonsense; cut off");
                    break 'reading;
                }
            }
        }
    }
    let _ = events.send(Event::Gone(client)).await;
}

/// Answers that go out in one write.
const ANSWERS_AT_ONCE: usize = 64;

async fn write(mut stream: OwnedWriteHalf, mut queue: mpsc::Receiver<Outgoing>) {
    let (mut waiting, mut bytes) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut waiting, ANSWERS_AT_ONCE).await != 0 {
        for outgoing in waiting.drain(..) {
            let Some(fd) = outgoing.passed else {
                bytes.extend_from_slice(&outgoing.bytes);
                continue;
            };
            if stream.write_all(&bytes).await.is_err()
                || fds::pass(stream.as_ref(), &outgoing.bytes, Some(fd)).await.is_err()
            {
                return;
            }
            bytes.clear();
        }
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
        bytes.clear();
    }
}

impl Shell {
    /// A process of our own, through a socket pair.
    pub(super) fn adopt(&self, stream: std::os::unix::net::UnixStream) {
        match UnixStream::from_std(stream) {
            Ok(stream) => {
                tokio::spawn(greet(stream, Ok(true), self.events.clone()));
            }
            Err(error) => tracing::warn!(%error, "an endpoint of this process could not attach"),
        }
    }

    pub(super) fn attach(&mut self, stream: UnixStream, privileged: bool) -> Result<()> {
        if self.life.clients.len() >= CLIENTS_MAX {
            return Err(Error::Invalid(format!("{CLIENTS_MAX} processes are attached already")));
        }
        if self.pool_fd.is_all_memory() && !privileged {
            let reason = NOT_FOR_EVERYBODY.to_owned();
            // Whoever does not read it sees the end.
            let _ = frame(&ServerMessage::Rejected { reason }).map(|bytes| stream.try_write(&bytes));
            return Err(Error::Denied { attempt: "attaching".into(), reason: NOT_FOR_EVERYBODY.into() });
        }
        let eventfd = doorbell::new_eventfd()?;
        let Passed { pool, locks } = self.pool_fd.for_process()?;
        let welcome = ServerMessage::Welcome {
            version: protocol::VERSION,
            cid: self.life.core.member(self.member).map_or(crate::addr::Cid::LOCAL, |info| info.cid),
            member: self.member,
            pool_offset: self.pool_fd.place().offset,
            pool_len: self.pool.len_bytes(),
            generation: self.life.generation,
            has_lock_file: locks.is_some(),
        };
        let bytes = protocol::encode(&welcome)?;
        // In a spawned kernel every bell goes to the primary: its processes may as well ring there themselves. But whoever has
        // a terminal can change its settings, and so silence the whole kernel: not everybody may have it.
        let line = privileged.then(|| self.lines.get(Member::PRIMARY)?.write_end()).flatten();
        let mut passed = vec![pool.as_fd(), eventfd.as_fd(), self.pipe.write_end().as_fd()];
        passed.extend(locks.as_ref().map(AsFd::as_fd));
        passed.extend(line.as_ref().map(AsFd::as_fd));
        fds::send(&stream, &bytes, &passed).map_err(|e| Error::io("welcoming a process", e))?;

        self.next_id += 1;
        let client = ClientId(self.next_id);
        let (read_half, write_half) = stream.into_split();
        let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
        tokio::spawn(write(write_half, queue));
        let reader = tokio::spawn(read(read_half, client, self.events.clone()));
        let (held, neighbours, locked) = Default::default();
        let locks = locks.unwrap_or(pool);
        let handle =
            ClientHandle { outgoing, eventfd, neighbours, locks, held, locked, has_unused: false, reader };
        self.life.clients.insert(client, handle);
        self.life.core.handle_client(client, privileged);
        tracing::debug!(?client, privileged, "a process attached");
        Ok(())
    }

    pub(super) fn drop_clients(&mut self) {
        self.life.clients.values_mut().for_each(ClientHandle::unlock_unused);
        self.life.clients.clear();
    }

    pub(super) fn tell(&mut self, client: ClientId, message: &ServerMessage) {
        self.tell_and_pass(client, message, None);
    }

    /// Gives a process the bell of another, with which it has a connection, unless it has it. Without it, it asks us to ring.
    pub(super) fn introduce(&mut self, client: ClientId, neighbour: Option<ClientId>) {
        let Some(neighbour) = neighbour else { return };
        let Some(bell) = self.life.clients.get(&neighbour).map(|other| other.eventfd.try_clone()) else {
            return;
        };
        let Some(handle) = self.life.clients.get_mut(&client) else { return };
        if !handle.neighbours.insert(neighbour) {
            return;
        }
        match bell {
            Ok(bell) => {
                self.tell_and_pass(client, &ServerMessage::Neighbour { process: neighbour.0 }, Some(bell));
            }
            Err(error) => {
                tracing::warn!(%error, "a process cannot be given the bell of another: they ring through the broker");
            }
        }
    }

    /// For those who ring through us.
    pub(super) fn ring_own_processes(&self) {
        self.life.clients.values().for_each(|client| doorbell::ring_eventfd(&client.eventfd));
    }

    pub(super) fn tell_and_pass(
        &mut self,
        client: ClientId,
        message: &ServerMessage,
        passed: Option<OwnedFd>,
    ) {
        let Some(bytes) = frame(message) else { return };
        let Some(handle) = self.life.clients.get(&client) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = handle.outgoing.try_send(Outgoing { bytes, passed })
        {
            tracing::warn!(?client, "a process does not read its answers; cut off");
            let events = self.events.clone();
            tokio::spawn(async move { events.send(Event::Gone(client)).await });
        }
    }

    /// Its socket is closed: it is dead, as a rule. If it is not (it closed only the socket, or left children), what it can
    /// still write is kept out of use until it no longer can.
    pub(super) fn lose_client(&mut self, client: ClientId) {
        let Some(mut handle) = self.life.clients.remove(&client) else { return };
        // Copies of its descriptor, in children of its, keep the locks.
        handle.unlock_unused();
        drop(handle);
        let halves = self.life.core.halves_of(client);
        tracing::debug!(?client, halves = halves.len(), "a process has gone");
        for half in halves {
            if locks::first_locked(self.pool_fd.locks(), range(&half)).is_ok_and(|locked| locked.is_some()) {
                self.life.core.quarantine(half.offset);
                self.life.quarantined.push(half);
            }
        }
        let known_to = self
            .life
            .clients
            .iter_mut()
            .filter_map(|(id, other)| other.neighbours.remove(&client).then_some(*id));
        for neighbour in known_to.collect::<Vec<_>>() {
            self.tell(neighbour, &ServerMessage::NeighbourGone { process: client.0 });
        }
        self.life.core.handle_client_gone(client);
    }
}
