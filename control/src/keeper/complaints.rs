//! What the back end of a device complains of, passed on up to a limit: a kernel can give it cause as often as it likes.

use std::io::{self, Read, Write};
use std::process::ChildStderr;

use rustix::io::ioctl_fionbio;

/// How much is passed on in all, in bytes.
const PASSED_ON_BYTES_MAX: usize = 64 * 1024;

/// How often is read at a time: as much as a pipe holds. Whoever never stops is not to keep the keeper from everything else.
const READS_MAX: usize = 16;

/// The keeper's end of its standard error.
#[derive(Debug)]
pub(super) struct Complaints<R = ChildStderr> {
    /// None once it has closed its end.
    source: Option<R>,
    passed_on_bytes: usize,
}

impl Complaints {
    pub(super) fn new(source: ChildStderr) -> io::Result<Self> {
        ioctl_fionbio(&source, true)?;
        Ok(Self { source: Some(source), passed_on_bytes: 0 })
    }
}

impl<R: Read> Complaints<R> {
    /// What to wait for.
    pub(super) fn source(&self) -> Option<&R> {
        self.source.as_ref()
    }

    /// Passes on what has come, as far as the limit allows. The rest is read and forgotten: it is not to wait for us.
    pub(super) fn pass_on(&mut self, out: &mut impl Write) {
        let mut chunk = [0; 4096];
        for _ in 0..READS_MAX {
            let Some(source) = &mut self.source else { return };
            match source.read(&mut chunk) {
                Ok(0) => self.source = None,
                Ok(count) => {
                    let room = PASSED_ON_BYTES_MAX - self.passed_on_bytes;
                    // A log that takes no more (a full disk) costs no more than what it does not take.
                    let _ = out.write_all(&chunk[..count.min(room)]);
                    self.passed_on_bytes += count.min(room);
                    if room > 0 && count >= room {
                        let _ = out.write_all(b"\n(what else the device says is not recorded)\n");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.source = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_complaints_are_read_and_recorded_up_to_the_limit() {
        let endless = io::repeat(b'x').take(100 * PASSED_ON_BYTES_MAX as u64);
        let mut complaints = Complaints { source: Some(endless), passed_on_bytes: 0 };
        let mut log = Vec::new();
        let mut turns = 0;
        while complaints.source().is_some() {
            complaints.pass_on(&mut log);
            turns += 1;
        }
        assert!(turns > 1, "others have their turn in between");
        let recorded = log.iter().filter(|byte| **byte == b'x').count();
        assert_eq!(recorded, PASSED_ON_BYTES_MAX);
        let said = String::from_utf8(log).unwrap();
        assert_eq!(said.matches("not recorded").count(), 1);
    }

    #[test]
    fn few_complaints_are_passed_on_as_they_are() {
        let mut complaints = Complaints { source: Some(&b"it is broken\n"[..]), passed_on_bytes: 0 };
        let mut log = Vec::new();
        complaints.pass_on(&mut log);
        assert_eq!(log, b"it is broken\n");
    }
}
