//! A connection to a keeper: one request, one answer, perhaps with a descriptor.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use crate::keeper::{Request, Status, names, unix_address};

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

    /// Reads one byte at a time, so that nothing behind the line (the console's output) is taken. Lines are short.
    async fn read_line(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let (mut line, mut fd) = (Vec::new(), None);
        loop {
            let (byte, received) =
                self.stream.async_io(Interest::READABLE, || receive_byte(&self.stream)).await?;
            fd = received.or(fd);
            match byte {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(b'\n') => return Ok((line, fd)),
                Some(byte) => line.push(byte),
            }
        }
    }

    pub(super) fn into_std(self) -> Result<std::os::unix::net::UnixStream, LinkError> {
        self.stream.into_std().map_err(LinkError::Broken)
    }
}

fn receive_byte(stream: &UnixStream) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(((received.bytes > 0).then_some(byte[0]), fd))
}
