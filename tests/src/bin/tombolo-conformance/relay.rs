//! Mends two disagreements between user-mode Linux 6.1 and the `vhost` crate, both speakers of vhost-user, so that one
//! can be the front end of the other: UML announces memory in a message of fixed length, and gets its interrupts only
//! with a channel that the other side does not offer.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

const SET_MEM_TABLE: u32 = 5;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_SLAVE_REQ_FD: u32 = 21;
const FEATURE_SLAVE_REQ: u64 = 1 << 5;
const FLAG_NEED_REPLY: u32 = 8;
const FLAGS_REPLY: u32 = 5;
const BODY_BYTES_MAX: u32 = 4096;

struct Message {
    request: u32,
    flags: u32,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// Listens at `front`, and serves one kernel there on behalf of the device at `back` until either hangs up.
pub(crate) fn start(front: &Path, back: &Path) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let listener = UnixListener::bind(front).with_context(|| format!("listening at {}", front.display()))?;
    let device = UnixStream::connect(back).with_context(|| format!("connecting to {}", back.display()))?;
    Ok(std::thread::spawn(move || {
        let (kernel, _) = listener.accept()?;
        relay(&kernel, &device)
    }))
}

fn relay(kernel: &UnixStream, device: &UnixStream) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answers(device, kernel));
        let asked = requests(kernel, device);
        let _ = (device.shutdown(Shutdown::Both), kernel.shutdown(Shutdown::Both));
        let answered = answering.join().map_err(|_| anyhow::anyhow!("the relay panicked"))?;
        asked.and(answered)
    })
}

fn requests(kernel: &UnixStream, device: &UnixStream) -> anyhow::Result<()> {
    // The kernel takes the end of this channel for the end of the device: keep it.
    let mut channel = Vec::new();
    while let Some(mut message) = receive(kernel)? {
        match message.request {
            SET_MEM_TABLE => {
                let regions = message.body.first_chunk().map_or(0, |count| u32::from_ne_bytes(*count));
                message.body.truncate(8 + 32 * regions.min(8) as usize);
            }
            SET_PROTOCOL_FEATURES => with_features(&mut message, |bits| bits & !FEATURE_SLAVE_REQ),
            SET_SLAVE_REQ_FD => {
                channel.append(&mut message.fds);
                if message.flags & FLAG_NEED_REPLY != 0 {
                    let body = vec![0; 8];
                    send(
                        kernel,
                        &Message { request: SET_SLAVE_REQ_FD, flags: FLAGS_REPLY, body, fds: Vec::new() },
                    )?;
                }
                continue;
            }
            _ => {}
        }
        send(device, &message)?;
    }
    Ok(())
}

fn answers(device: &UnixStream, kernel: &UnixStream) -> anyhow::Result<()> {
    while let Some(mut message) = receive(device)? {
        if message.request == GET_PROTOCOL_FEATURES {
            with_features(&mut message, |bits| bits | FEATURE_SLAVE_REQ);
        }
        send(kernel, &message)?;
    }
    Ok(())
}

fn with_features(message: &mut Message, change: impl FnOnce(u64) -> u64) {
    if let Some(bits) = message.body.first_chunk_mut() {
        *bits = change(u64::from_ne_bytes(*bits)).to_ne_bytes();
    }
}

fn receive(from: &UnixStream) -> anyhow::Result<Option<Message>> {
    let mut fds = Vec::new();
    let mut header = [0; 12];
    if !fill(from, &mut header, &mut fds)? {
        return Ok(None);
    }
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    ensure!(word(8) <= BODY_BYTES_MAX, "a message of {} bytes", word(8));
    let mut body = vec![0; word(8) as usize];
    if !fill(from, &mut body, &mut fds)? {
        return Ok(None);
    }
    Ok(Some(Message { request: word(0), flags: word(4), body, fds }))
}

/// Whether `out` was filled before the end.
fn fill(from: &UnixStream, out: &mut [u8], fds: &mut Vec<OwnedFd>) -> anyhow::Result<bool> {
    let mut filled = 0;
    while filled < out.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut out[filled..])];
        let got = rustix::net::recvmsg(from, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.bytes == 0 {
            return Ok(false);
        }
        filled += got.bytes;
    }
    Ok(true)
}

fn send(to: &UnixStream, message: &Message) -> anyhow::Result<()> {
    let mut bytes = Vec::with_capacity(12 + message.body.len());
    for word in [message.request, message.flags, message.body.len() as u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(&message.body);
    let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ensure!(
            ancillary.push(SendAncillaryMessage::ScmRights(&fds)),
            "{} descriptors in one message",
            fds.len()
        );
    }
    let sent = rustix::net::sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    ensure!(sent == bytes.len(), "{sent} of {} bytes were taken", bytes.len());
    Ok(())
}
