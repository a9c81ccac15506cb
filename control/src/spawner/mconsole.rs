//! The management console of User-mode Linux: commands to a kernel over a Unix datagram socket.
//!
//! Request: three native-endian u32 (magic, version 2, text length) and 512 bytes of text. Answer, perhaps in several
//! datagrams: three u32 (error, more to come, text length) and up to 512 bytes of text.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::keeper::unix_address;

const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;
const TEXT_BYTES: usize = 512;
/// Longest answer, in bytes.
pub(crate) const DATAGRAM_BYTES: usize = 12 + TEXT_BYTES;

/// How long a kernel may take to do as it is told: it does so from an interrupt, within a millisecond on an idle host.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Sends `command` to the kernel whose socket is `name` in `dir`, and returns its answer if that comes within
/// `answer_max`.
///
/// # Errors
/// With [`io::ErrorKind::Other`] the kernel itself said no; the message is its own.
pub(super) async fn command(
    dir: &Path,
    name: &str,
    command: &str,
    answer_max: Duration,
) -> io::Result<String> {
    let request = encode(command)?;
    let (path, _dir) = unix_address(dir, name)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    // An unnamed address asks Linux for one of its own choosing, that vanishes with the socket: the kernel answers there.
    bind(&socket, &SocketAddrUnix::new_unnamed())?;
    let socket = UnixDatagram::from_std(socket.into())?;
    let exchange = async {
        socket.connect(path)?;
        socket.send(&request).await?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 12 + TEXT_BYTES]);
        loop {
            let len = socket.recv(&mut buffer).await?;
            let part = decode(&buffer[..len])?;
            answer.extend_from_slice(part.text);
            if !part.more {
                let text = String::from_utf8_lossy(&answer).trim().to_owned();
                return if part.failed { Err(io::Error::other(text)) } else { Ok(text) };
            }
        }
    };
    let silent =
        || io::Error::new(io::ErrorKind::TimedOut, format!("no answer to `{command}` within {answer_max:?}"));
    timeout(answer_max, exchange).await.map_err(|_| silent())?
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    pub(crate) failed: bool,
    pub(crate) more: bool,
    pub(crate) text: &'a [u8],
}

pub(crate) fn encode(command: &str) -> io::Result<Vec<u8>> {
    // The kernel wants room for a terminating zero.
    if command.len() >= TEXT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a console command has at most 511 bytes"));
    }
    let mut request = Vec::with_capacity(12 + TEXT_BYTES);
    for word in [MAGIC, VERSION, command.len() as u32] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    request.extend_from_slice(command.as_bytes());
    request.resize(12 + TEXT_BYTES, 0);
    Ok(request)
}

pub(crate) fn decode(datagram: &[u8]) -> io::Result<Part<'_>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's console answer is malformed");
    let word = |index: usize| {
        let bytes =
            datagram.get(index * 4..index * 4 + 4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(bad);
        bytes.map(u32::from_ne_bytes)
    };
    let text = datagram.get(12..).ok_or_else(bad)?;
    let len = (word(2)? as usize).min(text.len());
    let text = &text[..len];
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(len);
    Ok(Part { failed: word(0)? != 0, more: word(1)? != 0, text: &text[..end] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_read_up_to_its_stated_length_or_zero() {
        let mut datagram = [0_u32, 1, 7].map(u32::to_ne_bytes).concat();
        datagram.extend_from_slice(b"stopped and more");
        assert_eq!(decode(&datagram).unwrap(), Part { failed: false, more: true, text: b"stopped" });
        let mut datagram = [5_u32, 0, 400].map(u32::to_ne_bytes).concat();
        datagram.extend_from_slice(b"no\0rubbish");
        assert_eq!(decode(&datagram).unwrap(), Part { failed: true, more: false, text: b"no" });
        assert!(decode(b"short").is_err());
    }

    #[test]
    fn command_that_is_too_long_is_refused() {
        assert!(encode(&"x".repeat(512)).is_err());
        assert_eq!(encode("stop").unwrap().len(), 524);
    }
}
