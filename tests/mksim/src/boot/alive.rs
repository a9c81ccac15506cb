//! `DIR/alive.<id>`: whoever connects is sent a byte if the kernel itself answers, and nothing if it does not.
//!
//! Multikernel Linux says the same by refusing a vsock connection to a port where nobody listens, or by not answering it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Kernel;

/// How long the kernel may take to answer.
const ANSWER_MAX: Duration = Duration::from_millis(250);
/// How often it is looked whether the kernel is gone.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Serves until the kernel is gone, and whoever asks then is told so.
pub(super) fn spawn(dir: &Path, id: u32, kernel: Weak<Kernel>) -> std::io::Result<()> {
    let name = format!("alive.{id}");
    let path = dir.join(&name);
    let _ = fs::remove_file(&path);
    // Socket addresses have little room: the folder is named by a descriptor.
    let folder = File::open(dir)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
    std::thread::Builder::new().name(name).spawn(move || {
        loop {
            let mut callers = [PollFd::new(&listener, PollFlags::IN)];
            let called = poll(&mut callers, Some(&LOOK)).is_ok_and(|callers| callers > 0);
            let Some(kernel) = kernel.upgrade() else { return };
            if !called {
                continue;
            }
            let Ok((mut caller, _)) = listener.accept() else { continue };
            if super::mconsole::answers(&kernel.folder, ANSWER_MAX).unwrap_or(false) {
                // It may have given up.
                let _ = caller.write_all(&[1]);
            }
        }
    })?;
    Ok(())
}
