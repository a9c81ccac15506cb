//! kerf, the tool that comes with Multikernel Linux: a program that is not ours, run as its users run it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::bed::Said;
use crate::prerequisites;

/// kerf, where it was fetched.
#[derive(Clone, Debug)]
pub struct Kerf {
    folder: PathBuf,
}

impl Kerf {
    /// The one that `cargo xtask fetch-kerf` fetched; `None` (said loudly) where there is none.
    ///
    /// # Panics
    /// When it is missing and [`prerequisites::REQUIRE_KERF`] is set.
    pub fn find() -> Option<Self> {
        prerequisites::kerf().map(|folder| Self { folder })
    }

    /// `kerf ARGS`, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut kerf = Command::new(self.folder.join("bin/kerf"));
        kerf.args(args).env("PYTHONPATH", &self.folder).stdin(Stdio::null());
        kerf
    }

    /// Runs `kerf ARGS` to its end.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run(&self, args: &[&str]) -> Said {
        Said::from(&self.command(args).output().unwrap())
    }

    /// Runs `kerf ARGS`, which must succeed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn must(&self, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, 0, "`kerf {}` said {said:?}", args.join(" "));
        said
    }

    /// Has it die of SIGKILL while it holds its lock.
    ///
    /// # Panics
    /// When it does not.
    pub fn die_with_the_lock(&self) {
        let script =
            "import os, kerf.runtime\nwith kerf.runtime.DeviceTreeManager().lock(): os.kill(os.getpid(), 9)";
        let mut python = Command::new("python3");
        let ended = python.args(["-c", script]).env("PYTHONPATH", &self.folder).status().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9), "{ended}");
    }
}
