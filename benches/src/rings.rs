//! Bare rings between two processes: two halves in one file, no broker, no doorbell, both sides polling.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::anyhow;
use tombolo_transport::mem::{Mapping, OwnSpan, PAGE, PeerSpan};
use tombolo_transport::ring::{
    ByteRx, ByteTx, HalfLayout, MessageRx, MessageTx, OwnHalf, PeerHalf, byte_pair, message_pair,
};

use crate::lines::Side;

/// Sending end of a bare message ring.
pub type Tx = MessageTx<OwnSpan, PeerSpan, ()>;
/// Receiving end of a bare message ring.
pub type Rx = MessageRx<OwnSpan, PeerSpan, ()>;
/// Sending end of a bare byte ring.
pub type BytesTx = ByteTx<OwnSpan, PeerSpan, ()>;
/// Receiving end of a bare byte ring.
pub type BytesRx = ByteRx<OwnSpan, PeerSpan, ()>;

const NONCE: u64 = 0x746f_6d62_6f6c_6f21;

/// A file in memory with room for `bytes`, and a path by which another process can open it while this one lives.
pub fn shared_file(bytes: usize) -> anyhow::Result<(File, PathBuf)> {
    let fd = rustix::fs::memfd_create("tombolo-bench", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
    Ok((File::from(fd), path))
}

/// Opens a file of [`shared_file`] in the other process.
pub fn open_shared(path: &str) -> anyhow::Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

/// One side's half of a connection with both halves in `file` from `offset`; the other side makes its own.
#[derive(Debug)]
pub struct Halves {
    own: OwnHalf<OwnSpan>,
    other: PeerSpan,
    layout: HalfLayout,
}

/// Bytes of a file that two halves of `layout` need.
pub fn halves_bytes(layout: HalfLayout) -> usize {
    2 * pages_bytes(layout)
}

/// Each half has pages of its own.
fn pages_bytes(layout: HalfLayout) -> usize {
    layout.total_len().next_multiple_of(PAGE)
}

impl Halves {
    /// Makes this side's half.
    pub fn make(file: impl AsFd, offset: usize, layout: HalfLayout, side: Side) -> anyhow::Result<Self> {
        let len = pages_bytes(layout);
        let mapping = Mapping::map(file, 0, offset + 2 * len)?;
        let (own, other) = match side {
            Side::Leader => (offset, offset + len),
            Side::Follower => (offset + len, offset),
        };
        let span = mapping.make_writable(own..own + len)?;
        mapping.populate(own..own + len, true);
        mapping.populate(other..other + len, false);
        let own = OwnHalf::init(span, layout, NONCE);
        Ok(Self { own, other: mapping.peer(other, len)?, layout })
    }

    /// Both directions as messages, once the other side has made its half.
    pub fn messages(self) -> anyhow::Result<(Tx, Rx)> {
        let peer = self.peer()?;
        Ok(message_pair(self.own, peer, (), None))
    }

    /// Both directions as byte streams, once the other side has made its half.
    pub fn bytes(self) -> anyhow::Result<(BytesTx, BytesRx)> {
        let peer = self.peer()?;
        Ok(byte_pair(self.own, peer, ()))
    }

    fn peer(&self) -> anyhow::Result<PeerHalf<PeerSpan>> {
        PeerHalf::open(self.other.clone(), self.layout, NONCE).map_err(|cause| anyhow!("{cause}"))
    }
}
