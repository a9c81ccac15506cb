//! Logs of this kernel: one buffer that the kernel, the agent and the entrypoint write to.

mod buffer;
mod kmsg;
mod layer;
mod lines;
mod service;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

pub use buffer::{LINE_BYTES_MAX, LogBuffer};
pub use kmsg::follow_kernel_log;
pub use layer::LogLayer;
pub use lines::LineSplitter;
pub use service::LogsService;

use crate::api::logs::{LogCursor, LogError, LogItem, LogLevel, LogQuery, LogSource};
use crate::blackbox::BlackBox;
use crate::console::Console;

/// What the buffer holds: about 10 000 lines of usual length.
const CAPACITY_BYTES: usize = 1024 * 1024;
/// Records copied out at a time, so that a long read does not hold the lock for long.
const BATCH: usize = 64;

/// The log of this kernel. Clones share it.
#[derive(Clone, Debug)]
pub struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    buffer: Mutex<LogBuffer>,
    version: watch::Sender<u64>,
    black_box: BlackBox,
    console: Option<Console>,
}

impl Log {
    /// An empty log. Each record also goes to `black_box`, and what the entrypoint wrote also to `console`.
    pub fn new(epoch: u64, black_box: BlackBox, console: Option<Console>) -> Self {
        let buffer = Mutex::new(LogBuffer::new(epoch, CAPACITY_BYTES));
        Self(Arc::new(Inner { buffer, version: watch::Sender::new(0), black_box, console }))
    }

    /// Appends a line, without its end.
    pub fn push(&self, source: LogSource, level: LogLevel, mut text: String) {
        if text.len() > LINE_BYTES_MAX {
            text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
        }
        self.0.black_box.record(source, level, &text);
        if let (Some(console), LogSource::Stdout | LogSource::Stderr) = (&self.0.console, source) {
            console.line(text.clone().into_bytes());
        }
        self.lock().push(wall_ns(), source, level, text);
        self.0.version.send_modify(|version| *version += 1);
    }

    /// Begins to read. See [`LogBuffer::begin`].
    ///
    /// # Errors
    /// [`LogError::CursorAhead`].
    pub fn begin(&self, query: &LogQuery) -> Result<(LogReader, Option<LogItem>), LogError> {
        let (cursor, first) = self.lock().begin(query)?;
        let version = self.0.version.subscribe();
        let reader = LogReader { log: self.clone(), cursor, sources: query.sources.clone(), version };
        Ok((reader, first))
    }

    fn lock(&self) -> MutexGuard<'_, LogBuffer> {
        self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a log from a cursor on.
#[derive(Debug)]
pub struct LogReader {
    log: Log,
    cursor: LogCursor,
    sources: Vec<LogSource>,
    version: watch::Receiver<u64>,
}

impl LogReader {
    /// Where it is.
    pub fn cursor(&self) -> LogCursor {
        self.cursor
    }

    /// The next items that are there already; empty at the end.
    pub fn read_batch(&mut self) -> Vec<LogItem> {
        self.version.mark_unchanged();
        self.log.lock().read(&mut self.cursor, &self.sources, BATCH)
    }

    /// Waits until something was appended since the last [`LogReader::read_batch`]. Cancel safe.
    pub async fn changed(&mut self) {
        // The sender lives in the log that this reader holds.
        let _ = self.version.changed().await;
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
