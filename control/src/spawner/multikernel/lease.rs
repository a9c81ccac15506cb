//! The console of a kernel, lent to other programs for a while, so that `kerf console` has it to itself.
//!
//! Whoever lends it writes the lease into the kernel's runtime folder; the kernel's [warden](super::warden) looks there, lets go of the
//! console, and answers with a copy of the lease that it keeps to. A lease ends at its time, with its kernel, or when it is taken back. Its time is
//! that of `CLOCK_BOOTTIME` (clock_gettime(2)), which nobody sets and which goes on while the machine sleeps.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tombolo_agent::health::uptime_ms;

use super::record::Record;
use crate::keeper::{remove_all, write_atomically};

/// The longest that a console is lent for at once.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a warden may take to let go of a console, or to take it back; it looks every 50 ms.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Until when a console is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lease {
    until_boot_ms: u64,
}

impl Lease {
    /// Where it is in the runtime folder.
    pub(super) const NAME: &str = "console-lease.json";
    /// Where its warden says to which it keeps.
    pub(super) const KEPT: &str = "console-lease-kept.json";

    pub(super) fn of(time: Duration, now_ms: u64) -> Self {
        Self { until_boot_ms: now_ms.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)) }
    }

    /// How much of it is left; `None` if it is over.
    pub(super) fn left(self, now_ms: u64) -> Option<Duration> {
        let left_ms = self.until_boot_ms.saturating_sub(now_ms);
        (left_ms > 0).then(|| Duration::from_millis(left_ms))
    }

    /// The lease of `dir` that is not over. One that cannot be read is none: then the console is recorded, as it is without a lease.
    pub(super) fn there(dir: &Path, now_ms: u64) -> Option<Self> {
        Self::read(&dir.join(Self::NAME)).filter(|lease| lease.left(now_ms).is_some())
    }

    /// Says that `lease` is kept to in `dir`, or none.
    pub(super) fn keep(lease: Option<Self>, dir: &Path) -> io::Result<()> {
        write(lease, dir.join(Self::KEPT))
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

fn write(lease: Option<Lease>, path: PathBuf) -> io::Result<()> {
    match lease {
        Some(lease) => write_atomically(&path, &serde_json::to_vec(&lease)?),
        None => remove_all(&[path]),
    }
}

/// For how long the console of the kernel of `runtime_dir` is still lent; `None` if it is not.
pub(crate) fn console_lent(runtime_dir: &Path) -> Option<Duration> {
    let now_ms = uptime_ms();
    Lease::there(runtime_dir, now_ms)?.left(now_ms)
}

/// Lends the console of the kernel of `runtime_dir` for so long, or takes it back, and waits until its warden has done so.
///
/// # Errors
/// A sentence that says why not, and whether it may still come to be.
///
/// # Cancel safety
/// Dropping the future leaves what was asked for in force.
pub(crate) async fn lend_console(runtime_dir: &Path, time: Option<Duration>) -> Result<(), String> {
    let record =
        Record::read(runtime_dir).map_err(|error| format!("could not read what was made: {error}"))?;
    let record = record.ok_or("it has no kernel, and so no console")?;
    if record.settings.console_device().is_none() {
        return Err(
            "its console is not recorded (`console = \"\"` in the settings): other programs have it already"
                .into(),
        );
    }
    let wanted = time.map(|time| Lease::of(time.min(LEASE_MAX), uptime_ms()));
    let noted = write(wanted, runtime_dir.join(Lease::NAME));
    noted.map_err(|error| format!("could not note it in {}: {error}", runtime_dir.display()))?;
    let until = Instant::now() + ANSWER_MAX;
    while Lease::read(&runtime_dir.join(Lease::KEPT)) != wanted {
        if Instant::now() >= until {
            return Err(format!(
                "the process that stands for its kernel did not answer within {} s; it does what was asked as soon as it looks",
                ANSWER_MAX.as_secs()
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_there_until_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::of(Duration::from_secs(1), 5_000);
        write(Some(lease), dir.path().join(Lease::NAME)).unwrap();
        assert_eq!(Lease::there(dir.path(), 5_999), Some(lease));
        assert_eq!(lease.left(5_999), Some(Duration::from_millis(1)));
        assert_eq!(Lease::there(dir.path(), 6_000), None);
    }

    #[test]
    fn what_is_no_lease_lends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Lease::there(dir.path(), 0), None);
        for text in ["", "{}", "null", r#"{"until_boot_ms":-1}"#, r#"{"until_boot_ms":9,"x":1}"#] {
            std::fs::write(dir.path().join(Lease::NAME), text).unwrap();
            assert_eq!(Lease::there(dir.path(), 0), None, "{text:?}");
        }
    }

    #[test]
    fn time_of_a_lease_never_wraps() {
        assert_eq!(Lease::of(Duration::MAX, u64::MAX).left(0), Some(Duration::from_millis(u64::MAX)));
    }
}
