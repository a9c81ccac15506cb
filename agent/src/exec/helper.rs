//! What happens between fork and exec of a program: the hidden subcommand `exec-child`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use nix::unistd::{Gid, Uid};

/// What a shell says when a program is there but cannot be run.
const CANNOT_RUN: u8 = 126;

/// What to do before becoming the program.
#[derive(Debug, clap::Args)]
pub struct ExecChild {
    /// Descriptor to say on what failed.
    #[arg(long)]
    report: i32,
    /// Make stdin the controlling terminal of a new session.
    #[arg(long)]
    terminal: bool,
    /// User, group and supplementary groups to become.
    #[arg(long, value_delimiter = ',')]
    ids: Vec<u32>,
    /// Working directory, entered as that user.
    #[arg(long)]
    cwd: PathBuf,
    /// Who must be the parent still when all is done.
    #[arg(long)]
    parent: Option<u32>,
    /// Signal to get when the parent dies.
    #[arg(long)]
    on_parent_death: Option<i32>,
    /// Path of the program.
    program: PathBuf,
    /// Its arguments, its name first.
    #[arg(last = true, allow_hyphen_values = true)]
    argv: Vec<std::ffi::OsString>,
}

/// Which step of it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Session = 1,
    User,
    Directory,
    Tie,
    Program,
}

/// Why there is no program.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) error: io::Error,
}

impl ExecChild {
    /// Becomes the program. Returns only if that fails.
    pub fn run(&self) -> ExitCode {
        let report = crate::inherited_fd(self.report).map(File::from);
        let Err(failure) = self.become_program();
        // Whoever started this knows what to make of it; without a pipe there is nobody to tell.
        let _ = report.and_then(|mut report| report.write_all(&failure.to_bytes()));
        ExitCode::from(CANNOT_RUN)
    }

    fn become_program(&self) -> Result<std::convert::Infallible, Failure> {
        let at = |step| move |error: io::Error| Failure { step, error };
        if self.terminal {
            rustix::process::setsid().map_err(|e| at(Step::Session)(e.into()))?;
            rustix::process::ioctl_tiocsctty(io::stdin()).map_err(|e| at(Step::Session)(e.into()))?;
        }
        if let [uid, gid, groups @ ..] = &self.ids[..] {
            let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            // Only root may; others can become nobody but themselves, and keep the groups they have.
            let set_groups =
                if Uid::effective().is_root() { nix::unistd::setgroups(&groups) } else { Ok(()) };
            // In this order: the last takes away the right to the others.
            set_groups
                .and_then(|()| nix::unistd::setgid(Gid::from_raw(*gid)))
                .and_then(|()| nix::unistd::setuid(Uid::from_raw(*uid)))
                .map_err(|e| at(Step::User)(e.into()))?;
        }
        std::env::set_current_dir(&self.cwd).map_err(at(Step::Directory))?;
        // After the change of user, which would undo it.
        if let Some(signal) = self.on_parent_death {
            self.tie(signal).map_err(at(Step::Tie))?;
        }
        let mut command = Command::new(&self.program);
        if let Some((name, arguments)) = self.argv.split_first() {
            command.arg0(name).args(arguments);
        }
        Err(at(Step::Program)(command.exec()))
    }

    /// prctl(2), `PR_SET_PDEATHSIG`.
    fn tie(&self, signal: i32) -> io::Result<()> {
        let signal = rustix::process::Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before: then nobody will send it.
        match self.parent {
            Some(parent) if std::os::unix::process::parent_id() != parent => {
                Err(io::Error::other("the agent has ended"))
            }
            _ => Ok(()),
        }
    }
}

impl Step {
    const ALL: [Self; 5] = [Self::Session, Self::User, Self::Directory, Self::Tie, Self::Program];

    pub(super) fn attempt(self) -> &'static str {
        match self {
            Self::Session => "taking over the terminal",
            Self::User => "becoming the user",
            Self::Directory => "entering the directory",
            Self::Tie => "tying its life to the agent's",
            Self::Program => "starting",
        }
    }
}

impl Failure {
    /// The step and the error number.
    pub(super) const BYTES: usize = 5;

    fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [self.step as u8; Self::BYTES];
        bytes[1..].copy_from_slice(&self.error.raw_os_error().unwrap_or(0).to_ne_bytes());
        bytes
    }

    /// `None` if nothing was said.
    pub(super) fn parse(report: &[u8]) -> Option<Self> {
        let (step, errno) = report.split_first_chunk::<1>()?;
        let step = Step::ALL.into_iter().find(|known| *known as u8 == step[0]).unwrap_or(Step::Program);
        let error = match <[u8; 4]>::try_from(errno).map(i32::from_ne_bytes) {
            Ok(errno) if errno != 0 => io::Error::from_raw_os_error(errno),
            _ => io::Error::other("the helper did not say why"),
        };
        Some(Self { step, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_pipe() {
        for step in Step::ALL {
            let sent = Failure { step, error: io::Error::from_raw_os_error(13) };
            let got = Failure::parse(&sent.to_bytes()).unwrap();
            assert_eq!((got.step, got.error.raw_os_error()), (step, Some(13)));
        }
        assert!(Failure::parse(&[]).is_none());
        assert!(Failure::parse(&[2, 1]).unwrap().error.to_string().contains("did not say"));
    }
}
