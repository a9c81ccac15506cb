//! A connection to a keeper: one request, one answer, perhaps with a descriptor.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use crate::keeper::{LINE_BYTES_MAX, Request, Status, names, unix_address};

/// Why an exchange with a keeper failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// Nobody serves the folder.
    #[error("no keeper answers")]
    NoKeeper(#[source] io::Error),
    /// The connection failed or ended under way.
    #[error("the connection to the keeper failed")]
    Broken(#[source] io::Error),
    /// The keeper did not answer in time.
    #[error("the keeper did not answer within {0:?}")]
    Silent(Duration),
    /// The keeper refused.
    #[error("the keeper refused: {0}")]
    Refused(String),
    /// The answer should have carried a descriptor.
    #[error("the keeper's answer carried no descriptor")]
    NoDescriptor,
}

impl From<LinkError> for io::Error {
    fn from(error: LinkError) -> Self {
        let kind = match &error {
            LinkError::NoKeeper(source) | LinkError::Broken(source) => source.kind(),
            LinkError::Silent(_) => io::ErrorKind::TimedOut,
            LinkError::Refused(_) => io::ErrorKind::PermissionDenied,
            LinkError::NoDescriptor => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// A connection to a keeper.
#[derive(Debug)]
pub(super) struct KeeperLink {
    stream: UnixStream,
}

impl KeeperLink {
    pub(super) async fn connect(dir: &Path) -> Result<Self, LinkError> {
        // Only these say that nobody serves the folder. Anything else (no descriptor left, say) is our own trouble.
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LinkError::NoKeeper(error),
            _ => LinkError::Broken(error),
        };
        let (path, _dir) = unix_address(dir, names::SOCKET).map_err(failed)?;
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        Ok(Self { stream })
    }

    /// Asks and waits for the answer.
    pub(super) async fn request(mut self, request: Request) -> Result<(Status, Option<OwnedFd>), LinkError> {
        self.request_on(request).await
    }

    /// Asks and waits for the answer, and keeps the connection.
    pub(super) async fn request_on(
        &mut self,
        request: Request,
    ) -> Result<(Status, Option<OwnedFd>), LinkError> {
        let mut line = serde_json::to_vec(&request).map_err(|error| LinkError::Broken(error.into()))?;
        line.push(b'\n');
        self.stream.write_all(&line).await.map_err(LinkError::Broken)?;
        let (line, fd) = self.read_line().await.map_err(LinkError::Broken)?;
        let status: Status =
            serde_json::from_slice(&line).map_err(|error| LinkError::Broken(error.into()))?;
        match status.refused {
            Some(reason) => Err(LinkError::Refused(reason)),
            None => Ok((status, fd)),
        }
    }

    /// Looks how long the line is before taking it, so that nothing behind it (the console's output) is taken.
    async fn read_line(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let (mut line, mut fd) = (Vec::new(), None);
        while line.last() != Some(&b'\n') {
            let received = self
                .stream
                .async_io(Interest::READABLE, || receive_up_to_end_of_line(&self.stream, &mut line));
            fd = received.await?.or(fd);
            if line.len() > LINE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok((line, fd))
    }

    pub(super) fn into_std(self) -> Result<std::os::unix::net::UnixStream, LinkError> {
        self.stream.into_std().map_err(LinkError::Broken)
    }
}

/// Appends what is there of a line, to its end if that is there.
fn receive_up_to_end_of_line(stream: &UnixStream, line: &mut Vec<u8>) -> io::Result<Option<OwnedFd>> {
    let mut seen = [0; 1024];
    let (_, seen_bytes) = recv(stream, &mut seen, RecvFlags::PEEK)?;
    if seen_bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let seen = &seen[..seen_bytes];
    let wanted = seen.iter().position(|byte| *byte == b'\n').map_or(seen.len(), |at| at + 1);
    let old_len = line.len();
    line.resize(old_len + wanted, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut line[old_len..])];
    let received = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC);
    let received_bytes = received.as_ref().map_or(0, |received| received.bytes);
    line.truncate(old_len + received_bytes);
    received?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn pair() -> (KeeperLink, std::os::unix::net::UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        (KeeperLink { stream: ours }, theirs)
    }

    #[tokio::test]
    async fn what_comes_behind_a_line_stays_in_the_socket() {
        let (link, mut keeper) = pair();
        let line = [&[b'x'; 3000][..], b"\n"].concat();
        keeper.write_all(&[&line, &b"the console's output"[..]].concat()).unwrap();
        assert_eq!(link.read_line().await.unwrap().0, line);
        drop(keeper);
        let mut stream = link.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "the console's output");
    }

    #[tokio::test]
    async fn a_line_that_does_not_end_is_an_error() {
        let (link, mut keeper) = pair();
        keeper.write_all(b"half a li").unwrap();
        drop(keeper);
        assert_eq!(link.read_line().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (link, mut keeper) = pair();
        keeper.write_all(&[b'x'; 2 * LINE_BYTES_MAX]).unwrap();
        assert_eq!(link.read_line().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
