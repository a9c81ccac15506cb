//! The lock of kerf: who changes what the kernel has makes a file and removes it.
//!
//! It is not a lock of the kernel's (flock), so it survives whoever made it. kerf waits for a second and gives up. A file that is older than
//! anything that is done under it is taken for one that was left behind, and so is one that names a process that does not run.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};

/// Where kerf has it.
pub(crate) const PATH: &str = "/var/run/kerf.lock";

/// How long to wait for it: another program's change may wait 30 s for a kernel that hangs.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(45);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Nothing that is done under it takes as long: kerf's longest took 30 s, and one that hangs is bounded by the kernel.
const STALE_AFTER: Duration = Duration::from_secs(15 * 60);

/// What a file of ours says besides our process; kerf's says nothing.
const MARK: &str = "tombolo";

/// The lock, held.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
}

impl Lock {
    /// Takes it, waiting for so long while another holds it.
    pub(super) fn take(path: &Path, wait: Duration) -> io::Result<Self> {
        let until = Instant::now() + wait;
        loop {
            match File::options().write(true).create_new(true).mode(0o644).open(path) {
                Ok(mut file) => {
                    // What it says is for people and for us; the file itself is the lock.
                    let _ = writeln!(file, "{MARK} {} {}", std::process::id(), start_ticks());
                    return Ok(Self { path: path.to_owned() });
                }
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Err(_) => {}
            }
            if stale(path).is_some() {
                remove_stale(path)?;
            } else if Instant::now() >= until {
                let reason = format!("another program has held {} for {wait:?}", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            } else {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path).or_else(absent_is_fine) {
            tracing::warn!(path = %self.path.display(), %error, "the lock could not be removed: kerf will wait for it in vain");
        }
    }
}

/// Removes a lock that was left behind. Nobody but us removes locks of others; so that two of us do not, the second removing what the first has
/// taken since, that is done with the folder locked.
fn remove_stale(path: &Path) -> io::Result<()> {
    let folder = File::open(path.parent().unwrap_or_else(|| Path::new("/")))?;
    flock(&folder, FlockOperation::LockExclusive)?;
    let Some(reason) = stale(path) else { return Ok(()) };
    tracing::warn!(path = %path.display(), reason, "a lock was left behind and is removed");
    fs::remove_file(path).or_else(absent_is_fine)
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Why whoever made it no longer needs it, if that is so.
pub(super) fn stale(path: &Path) -> Option<&'static str> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace();
    if words.next() == Some(MARK) {
        let pid = words.next().and_then(|pid| pid.parse().ok());
        let ticks = words.next().and_then(|ticks| ticks.parse::<u64>().ok());
        let holder = pid.and_then(crate::keeper::Process::find);
        return match holder {
            Some(process) if Some(process.start_ticks) == ticks => None,
            _ => Some("the process that took it does not run"),
        };
    }
    let made = fs::metadata(path).and_then(|meta| meta.modified()).ok()?;
    // One from the future says that a clock was set; it is left to people.
    let age = SystemTime::now().duration_since(made).ok()?;
    (age > STALE_AFTER).then_some("it is older than anything that is done under it")
}

fn start_ticks() -> u64 {
    let own = i32::try_from(std::process::id()).ok().and_then(crate::keeper::Process::find);
    own.map_or(0, |process| process.start_ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_a_process_that_has_gone_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "tombolo 1 7\n").unwrap(); // process 1 did not start at tick 7
        let lock = Lock::take(&path, WAIT_MAX).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains(&std::process::id().to_string()));
        drop(lock);
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_of_kerf_is_respected_until_it_is_older_than_any_work_under_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = File::create(&path).unwrap();
        assert_eq!(stale(&path), None);
        file.set_modified(SystemTime::now() - STALE_AFTER - Duration::from_secs(1)).unwrap();
        assert!(stale(&path).is_some());
        file.set_modified(SystemTime::now() + STALE_AFTER).unwrap();
        assert_eq!(stale(&path), None, "a clock that was set back proves nothing");
    }

    #[test]
    fn a_lock_that_is_held_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::take(&path, WAIT_MAX).unwrap();
        assert_eq!(stale(&path), None, "its holder runs");
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || Lock::take(&path, WAIT_MAX).map(drop)
        });
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn who_found_a_lock_left_behind_does_not_remove_what_another_took_since() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "tombolo 1 7\n").unwrap();
        assert!(stale(&path).is_some(), "both find it so");
        let first = Lock::take(&path, WAIT_MAX).unwrap();
        remove_stale(&path).unwrap();
        assert!(path.exists(), "the second removed the lock of the first");
        drop(first);
    }
}
