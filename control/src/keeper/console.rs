//! The console's record: two files of bounded size, and the last bytes in memory for classifying the exit.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How much of the console's end is kept in memory, in bytes: a panic's report with its call trace fits.
const TAIL_BYTES: usize = 16 * 1024;

/// Records console output. A write error (a full disk) is noted once and does not stop the kernel.
#[derive(Debug)]
pub(super) struct ConsoleLog {
    path: PathBuf,
    old_path: PathBuf,
    bytes_max: u64,
    file: Option<File>,
    written: u64,
    tail: Vec<u8>,
    failed: bool,
}

impl ConsoleLog {
    /// Starts a new record at `path`; an earlier one becomes `old_path`.
    pub(super) fn start(path: &Path, old_path: &Path, bytes_max: u64) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            old_path: old_path.to_owned(),
            bytes_max,
            file: None,
            written: 0,
            tail: Vec::new(),
            failed: false,
        };
        log.rotate();
        log
    }

    /// Records `bytes`.
    pub(super) fn record(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
        if self.written + bytes.len() as u64 > self.bytes_max && self.written > 0 {
            self.rotate();
        }
        let result = match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        };
        match result {
            Ok(()) => self.written += bytes.len() as u64,
            Err(error) => self.complain("write", &error),
        }
    }

    /// The last bytes recorded, at least [`TAIL_BYTES`] of them if there were as many.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail
    }

    fn rotate(&mut self) {
        if self.path.exists()
            && let Err(error) = fs::rename(&self.path, &self.old_path)
        {
            self.complain("rename", &error);
        }
        self.written = 0;
        self.file =
            match OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path) {
                Ok(file) => Some(file),
                Err(error) => {
                    self.complain("create", &error);
                    None
                }
            };
    }

    fn complain(&mut self, action: &str, error: &io::Error) {
        if !self.failed {
            eprintln!(
                "could not {action} {}: {error}; console output is no longer recorded in full",
                self.path.display()
            );
            self.failed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_record_is_bounded_and_keeps_the_latest() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("c"), dir.path().join("c.1"));
        let mut log = ConsoleLog::start(&path, &old, 100);
        for i in 0..50 {
            log.record(format!("line {i:03}\n").as_bytes());
        }
        let (new, old) = (fs::read_to_string(&path).unwrap(), fs::read_to_string(&old).unwrap());
        assert!(new.len() <= 100 && old.len() <= 100);
        assert!(format!("{old}{new}").ends_with("line 048\nline 049\n"));
        assert!(log.tail().starts_with(b"line 000"));
    }

    #[test]
    fn earlier_boot_is_kept_as_the_old_record() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("c"), dir.path().join("c.1"));
        ConsoleLog::start(&path, &old, 100).record(b"first boot");
        ConsoleLog::start(&path, &old, 100).record(b"second boot");
        assert_eq!(fs::read(&old).unwrap(), b"first boot");
        assert_eq!(fs::read(&path).unwrap(), b"second boot");
    }
}
