//! kerf, the tool that comes with Multikernel Linux: a program that is not ours, run as its users run it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::NamedTempFile;

use crate::bed::Said;
use crate::prerequisites;

/// `kerf console` that runs. Dropping it ends it.
#[derive(Debug)]
pub struct KerfConsole {
    terminal: Child,
    shown: NamedTempFile,
}

impl KerfConsole {
    /// All that it has shown.
    ///
    /// # Panics
    /// When that cannot be read.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.shown.path()).unwrap()).into_owned()
    }

    /// Types into it.
    ///
    /// # Panics
    /// When it has ended.
    pub fn type_in(&mut self, keys: &str) {
        self.terminal.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Leaves it as its users do, and waits until it has closed the console.
    ///
    /// # Panics
    /// When it does not end in good order.
    pub fn detach(mut self) {
        self.type_in("\x1d.");
        let ended = self.terminal.wait().unwrap();
        assert!(ended.success() && self.shown().contains("Disconnected"), "{ended}: {}", self.shown());
    }
}

impl Drop for KerfConsole {
    fn drop(&mut self) {
        let _ = self.terminal.kill();
        let _ = self.terminal.wait();
    }
}

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

    /// `kerf console NAME` on a terminal of its own.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn console(&self, name: &str) -> KerfConsole {
        let mut terminal = Command::new("python3");
        // It insists on a terminal. Its folder is its own: kerf is found by `PYTHONPATH`, pty(3) is Python's.
        terminal.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])"]);
        terminal.arg(self.folder.join("bin/kerf")).args(["console", name]).env("PYTHONPATH", &self.folder);
        let shown = tempfile::NamedTempFile::new().unwrap();
        let terminal = terminal.stdin(Stdio::piped()).stdout(shown.reopen().unwrap()).spawn().unwrap();
        KerfConsole { terminal, shown }
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
