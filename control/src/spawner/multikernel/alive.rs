//! Whether a kernel itself answers, whatever its user space does.
//!
//! A kernel with Multikernel's vsock resets a connection to a port on which nobody listens; that takes nothing but its interrupts. One that is dead
//! or hangs says nothing. So a call to such a port is refused by a kernel that lives, and times out at one that does not.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tombolo_transport::{Addr, Cid, Port};

use super::line;
use super::record::Record;

/// A port that nobody listens on: the last one that can be named.
const UNUSED: Port = Port(u32::MAX - 1);

/// Whether the kernel of `runtime_dir` answers within `deadline`; `None` where this host cannot ask.
pub(crate) async fn answers(runtime_dir: &Path, deadline: Duration) -> Option<bool> {
    let record = Record::read(runtime_dir).ok().flatten()?;
    if let Some(socket) = record.settings.alive_socket(record.id) {
        return Some(says_so(&socket?, deadline).await);
    }
    let addr = Addr::new(Cid(u32::from(record.id.0)), UNUSED);
    line::vsock().ok()?.answers(addr, deadline).await.ok()
}

/// Whether a socket that speaks for the kernel says that it lives.
async fn says_so(socket: &Path, deadline: Duration) -> bool {
    let asked = async { UnixStream::connect(socket).await?.read_u8().await };
    tokio::time::timeout(deadline, asked).await.is_ok_and(|answer| answer.is_ok())
}
