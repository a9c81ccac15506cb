//! The service [`Logs`].

use tombolo_rpc::{Ctx, Sender};

use super::{Log, LogReader};
use crate::api::logs::{LogCursor, LogError, LogItem, LogQuery, Logs};

/// Serves [`Logs`].
#[derive(Clone, Debug)]
pub struct LogsService(Log);

impl LogsService {
    /// Serves `log`.
    pub fn new(log: Log) -> Self {
        Self(log)
    }
}

impl Logs for LogsService {
    async fn read(&self, _cx: &Ctx, query: LogQuery, out: Sender<LogItem>) -> Result<LogCursor, LogError> {
        let (mut reader, first) = self.0.begin(&query)?;
        if let Some(first) = first
            && out.send(first).await.is_err()
        {
            return Ok(reader.cursor());
        }
        loop {
            let before = reader.cursor();
            if !send_batch(&mut reader, &out).await {
                return Ok(before);
            }
            if reader.cursor() != before {
                continue;
            }
            if !query.follow {
                return Ok(reader.cursor());
            }
            reader.changed().await;
        }
    }
}

/// `false` if nobody wants more.
async fn send_batch(reader: &mut LogReader, out: &Sender<LogItem>) -> bool {
    for item in reader.read_batch() {
        if out.send(item).await.is_err() {
            return false;
        }
    }
    true
}
