//! The management console of a User-mode Linux kernel: one datagram per command. Answers are not waited for.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::UML_DIR;

/// arch/um/drivers/mconsole.h.
const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;
const DATA_BYTES: usize = 512;

/// Sends a command to the kernel that runs in `folder`.
pub(super) fn send(folder: &Path, command: &str) -> io::Result<()> {
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
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(&request, path)?;
    Ok(())
}
