//! Where a measurement keeps its files, and who removes them when it ends or is killed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tombolo_benches::turns::{Following, Leading};

const PLACE: &str = "place";
/// Names of folders and of objects in shared memory begin with this, then the leader's process id.
const PREFIX: &str = "tombolo-peers-";
const SHARED_MEMORY: &str = "/dev/shm";

/// Longer than any measurement: a peer that waits without a deadline is given up.
const GIVE_UP: Duration = Duration::from_secs(40);
/// For a follower whose leader is gone to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// A folder of one measurement. Dropping it removes it and all that peers made elsewhere under its name; both processes do, since either may
/// be the only one left.
#[derive(Debug)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// Has the follower make the place, and watch over it.
    pub(crate) fn make(leading: &mut Leading) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        let place = Self(path);
        leading.order(&format!("{PLACE} {}", place.0.display()))?;
        let sweep = place.0.clone();
        std::thread::spawn(move || {
            std::thread::sleep(GIVE_UP);
            eprintln!("no reading after {GIVE_UP:?}: given up");
            remove(&sweep);
            std::process::exit(1);
        });
        Ok(place)
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Makes the folder. The follower outlives signals to both, so that it can clear up after a leader that was killed.
///
/// # Errors
/// If the leader does not say where, or the folder cannot be made.
pub(crate) fn watch(following: &mut Following) -> anyhow::Result<Place> {
    // Threads started from here on inherit it.
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]).thread_block()?;
    let order = following.next_order()?.context("no order where to work")?;
    let path = PathBuf::from(order.words.first().context("no place in the order")?);
    let sweep = path.clone();
    std::thread::spawn(move || {
        await_end_of_leader();
        std::thread::sleep(GRACE);
        remove(&sweep);
        std::process::exit(1);
    });
    // Only now: whatever is there is watched over.
    std::fs::create_dir(&path).with_context(|| format!("making the folder {}", path.display()))?;
    following.ready()?;
    Ok(Place(path))
}

/// Returns when nobody holds the other end of this process's standard input any more.
fn await_end_of_leader() {
    let stdin = std::io::stdin();
    loop {
        // Asking for nothing leaves the orders to whoever reads them, and tells of the end alone.
        let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
        let wait = Timespec { tv_sec: 5, tv_nsec: 0 };
        if poll(&mut fds, Some(&wait)).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
        {
            return;
        }
    }
}

/// The name under which peers make objects elsewhere.
pub(crate) fn name_of(at: &Path) -> String {
    at.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}

fn remove(at: &Path) {
    let _ = std::fs::remove_dir_all(at);
    let name = name_of(at);
    for entry in std::fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten() {
        // A longer process id may begin as this one does.
        let rest = entry.file_name().to_string_lossy().strip_prefix(&name).map(str::to_owned);
        if rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit())) {
            let _ = std::fs::remove_file(entry.path()).or_else(|_| std::fs::remove_dir_all(entry.path()));
        }
    }
}
