//! The management console of a User-mode Linux kernel: one datagram per command. Its answer comes from an interrupt, whatever user space does.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::UML_DIR;

/// arch/um/drivers/mconsole.h.
const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;
const DATA_BYTES: usize = 512;

/// Sends a command to the kernel that runs in `folder`. Its answer is not waited for.
pub(super) fn send(folder: &Path, command: &str) -> io::Result<()> {
    send_from(&UnixDatagram::unbound()?, folder, command)
}

/// Whether that kernel answers within `limit`.
pub(super) fn answers(folder: &Path, limit: Duration) -> io::Result<bool> {
    let socket = UnixDatagram::unbound()?;
    // The answer goes to a name that the system chooses.
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new_unnamed())?;
    send_from(&socket, folder, "version")?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(limit))?;
    Ok(socket.recv(&mut [0; 64]).is_ok())
}

fn send_from(socket: &UnixDatagram, folder: &Path, command: &str) -> io::Result<()> {
    // Socket addresses have little room: the folder is named by a descriptor.
    let folder = std::fs::File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{UML_DIR}/k/mconsole", folder.as_raw_fd());
    let mut request = Vec::with_capacity(12 + DATA_BYTES);
    let len = u32::try_from(command.len()).map_err(io::Error::other)?;
    for word in [MAGIC, VERSION, len] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    request.extend_from_slice(command.as_bytes());
    request.resize(12 + DATA_BYTES, 0);
    socket.set_nonblocking(true)?;
    socket.send_to(&request, path)?;
    Ok(())
}
