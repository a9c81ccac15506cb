//! Whether a kernel itself answers, whatever its user space does.
//!
//! A kernel with Multikernel's vsock resets a connection to a port on which nobody listens; that takes nothing but its interrupts. One that is dead
//! or hangs says nothing. So a call to such a port is refused by a kernel that lives, and times out at one that does not.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tombolo_transport::vsock::Answer;
use tombolo_transport::{Addr, Cid, Port};

use super::ids::InstanceId;
use super::record::Record;
use super::{Settings, line};
use crate::api::beside::KernelAnswer;

/// A port that nobody listens on: the last one that can be named.
const UNUSED: Port = Port(u32::MAX - 1);
/// Where the agent of kerf listens, in kernels that have it.
pub(super) const KERF_AGENT: Port = Port(1023);

/// Whether the kernel of `runtime_dir` answers within `deadline`; `None` where this host cannot ask.
pub(crate) async fn answers(runtime_dir: &Path, deadline: Duration) -> Option<bool> {
    let record = Record::read(runtime_dir).ok().flatten()?;
    if let Some(socket) = record.settings.alive_socket(record.id) {
        return Some(says_so(&socket?, deadline).await);
    }
    called(record.id, UNUSED, deadline).await.map(|answer| answer != Answer::Nobody)
}

/// What the kernel of instance `id`, whoever made it, says within `deadline` to a call of kerf's agent, which is hung up on at once: that one takes no harm,
/// and a kernel without it refuses the call itself. `None` where this host cannot ask.
pub(crate) async fn probe(settings: &Settings, id: u32, deadline: Duration) -> Option<KernelAnswer> {
    let id = InstanceId::try_from(u16::try_from(id).ok()?).ok()?;
    if let Some(socket) = settings.alive_socket(id) {
        return Some(match says_so(&socket?, deadline).await {
            true => KernelAnswer::Kernel,
            false => KernelAnswer::Silent,
        });
    }
    called(id, KERF_AGENT, deadline).await.map(|answer| match answer {
        Answer::Program => KernelAnswer::KerfAgent,
        Answer::Kernel => KernelAnswer::Kernel,
        Answer::Nobody => KernelAnswer::Silent,
    })
}

async fn called(id: InstanceId, port: Port, deadline: Duration) -> Option<Answer> {
    let addr = Addr::new(Cid(u32::from(id.0)), port);
    line::vsock().ok()?.call(addr, deadline).await.ok()
}

/// Whether a socket that speaks for the kernel says that it lives.
async fn says_so(socket: &Path, deadline: Duration) -> bool {
    let asked = async { UnixStream::connect(socket).await?.read_u8().await };
    tokio::time::timeout(deadline, asked).await.is_ok_and(|answer| answer.is_ok())
}
