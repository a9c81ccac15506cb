//! The service [`Forward`].

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_rpc::{Blob, Ctx, Receiver, Sender};

use super::{CONNECT_TIMEOUT, Forwards};
use crate::api::forward::{Forward, ForwardConnect, ForwardDone, ForwardError, ForwardInfo, ForwardRule};

/// One read from a socket.
const READ_CHUNK_BYTES: usize = 64 * 1024;

/// Serves [`Forward`].
#[derive(Clone, Debug)]
pub struct ForwardService(Forwards);

impl ForwardService {
    /// Serves `forwards`.
    pub fn new(forwards: Forwards) -> Self {
        Self(forwards)
    }
}

impl Forward for ForwardService {
    async fn connect(
        &self,
        _cx: &Ctx,
        request: ForwardConnect,
        mut input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<ForwardDone, ForwardError> {
        let timeout = match request.timeout_ms {
            0 => CONNECT_TIMEOUT,
            ms => Duration::from_millis(ms),
        };
        let _room = self.0.room(&request.target)?;
        let socket = self.0.connect(&request.target, timeout).await?;
        let (mut read, mut write) = tokio::io::split(socket);
        let mut done = ForwardDone::default();
        let (sent, received) = (&mut done.sent, &mut done.received);
        let there = async {
            while let Ok(Some(piece)) = input.recv().await {
                write.write_all(&piece).await?;
                *sent += piece.len() as u64;
            }
            write.shutdown().await
        };
        let back = async {
            // Says that the connection is there. From here on `out` ends with this future: the caller sees the end.
            let mut piece = Bytes::new();
            loop {
                if out.send(Blob(piece)).await.is_err() {
                    return Ok(());
                }
                let mut buffer = BytesMut::with_capacity(READ_CHUNK_BYTES);
                let len = read.read_buf(&mut buffer).await?;
                if len == 0 {
                    drop(out);
                    return Ok(());
                }
                *received += len as u64;
                piece = buffer.freeze();
            }
        };
        let both: std::io::Result<((), ())> = tokio::try_join!(there, back);
        match both {
            Ok(_) => Ok(done),
            Err(error) => Err(ForwardError::Lost {
                target: request.target.to_string(),
                sent: done.sent,
                received: done.received,
                reason: error.to_string(),
            }),
        }
    }

    async fn listen(&self, _cx: &Ctx, rule: ForwardRule) -> Result<ForwardInfo, ForwardError> {
        self.0.listen(rule).await
    }

    async fn unlisten(&self, _cx: &Ctx, id: u64) -> Result<(), ForwardError> {
        self.0.unlisten(id)
    }

    async fn list(&self, _cx: &Ctx) -> Result<Vec<ForwardInfo>, ForwardError> {
        Ok(self.0.list())
    }
}
