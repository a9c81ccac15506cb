//! Applications' hooks: programs in a folder that are asked before something leaves or comes, and told after it has.
//!
//! Each executable file is run in the order of names, as `HOOK PHASE END` (such as `check donor`), with `TOMBOLO_OPERATION` (a number)
//! and `TOMBOLO_UNITS` (such as `memory lot 7: 134217728 bytes` or `cpu 12: CPU 1`, one per line: the ledger's name, and what it is
//! here, if it is here already) in its environment. Exit status 0 is yes. Anything else is
//! no, and so is a hook that takes too long; the last line it wrote to stderr is the reason. The first no ends it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tombolo_handover::operation::{End, Veto};

use crate::api::exec::ExitStatus;
use crate::api::handover::{Asked, Piece};
use crate::exec::ExecEngine;

/// What is kept of a hook's stderr, in bytes: its end.
const STDERR_BYTES_MAX: usize = 512;
/// How long the rest of its stderr is awaited once it has ended, while a program that it left behind holds it open.
const STDERR_MAX: Duration = Duration::from_millis(200);
/// When a hook that said no may be asked again, in ms.
const RETRY_AFTER_MS: u64 = 10_000;

/// How long one hook may take. The control plane waits longer for all of them.
fn time_limit(phase: &str) -> Duration {
    Duration::from_secs(if phase == "pre" { 20 } else { 5 })
}

/// Runs the hooks of a phase; the first no, if there is one.
pub(super) async fn run(exec: &ExecEngine, dir: &Path, phase: &str, asked: &Asked) -> Option<Veto> {
    for hook in hooks_in(dir) {
        if let Err(reason) = run_one(exec, &hook, phase, asked).await {
            let name = hook.file_name().unwrap_or_default().display();
            tracing::warn!(hook = %hook.display(), phase, reason, operation = asked.operation.0, "a hook says no");
            let reason = format!("hook `{name}` ({phase}): {reason}");
            return Some(Veto { reason, retry_after_ms: Some(RETRY_AFTER_MS) });
        }
    }
    None
}

/// Whether there are any.
pub(super) fn are_in(dir: &Path) -> bool {
    !hooks_in(dir).is_empty()
}

/// The executable files of a folder, by name. No folder, no hooks.
fn hooks_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let mut hooks: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_executable).collect();
    hooks.sort();
    hooks
}

async fn run_one(exec: &ExecEngine, hook: &Path, phase: &str, asked: &Asked) -> Result<(), String> {
    let path = hook.to_str().ok_or("its name is not UTF-8")?;
    let end = if asked.end == End::Donor { "donor" } else { "receiver" };
    let unit = |piece: &Piece| match &piece.here {
        Some(here) => format!("{}: {here}", piece.unit),
        None => piece.unit.to_string(),
    };
    let units: Vec<String> = asked.pieces.iter().map(unit).collect();
    let env = [
        ("TOMBOLO_OPERATION".to_owned(), asked.operation.0.to_string()),
        ("TOMBOLO_UNITS".to_owned(), units.join("\n")),
    ];
    let (writer, reader) = pipe::pipe().map_err(|error| format!("no pipe can be made for it: {error}"))?;
    let stderr = writer.into_blocking_fd().map_err(|error| error.to_string())?;
    let reading = tokio::spawn(tail_of(reader));
    let argv = [path.to_owned(), phase.to_owned(), end.to_owned()];
    let limit = time_limit(phase);
    let ended = tokio::time::timeout(limit, exec.run_briefly(&argv, env, Stdio::from(stderr))).await;
    let status = match ended {
        Ok(Ok(ExitStatus::Code(0))) => return Ok(()),
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("it did not end within {limit:?}")),
    };
    let said = tokio::time::timeout(STDERR_MAX, reading).await.ok().and_then(Result::ok).unwrap_or_default();
    Err(match last_line(&said) {
        Some(line) => format!("{line} ({status})"),
        None => status.to_string(),
    })
}

/// The end of what comes through a pipe.
async fn tail_of(mut reader: pipe::Receiver) -> Vec<u8> {
    let (mut tail, mut chunk) = (Vec::new(), [0; STDERR_BYTES_MAX]);
    while let Ok(read @ 1..) = reader.read(&mut chunk).await {
        tail.extend_from_slice(&chunk[..read]);
        let excess = tail.len().saturating_sub(STDERR_BYTES_MAX);
        tail.drain(..excess);
    }
    tail
}

/// The last line with anything on it, if it is text.
fn last_line(said: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(said).ok()?;
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    (!line.contains(|c: char| c.is_control())).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use tombolo_handover::operation::Question;
    use tombolo_handover::{OpId, UnitId};

    use super::*;
    use crate::api::handover::Here;
    use crate::children::{Children, Scope};
    use crate::exec::Launcher;
    use crate::state::Lifecycle;

    fn asked() -> Asked {
        let pieces = vec![Piece { unit: UnitId::Lot(7), here: Some(Here::Memory { bytes: 64 }), epoch: 1 }];
        Asked { operation: OpId(5), question: Question::CheckHooks, end: End::Donor, pieces, lease_ms: 1000 }
    }

    fn exec() -> ExecEngine {
        let children = Children::new(Scope::OwnChildren);
        tokio::spawn(children.clone().run_reaper());
        let launcher = Launcher::new(children, "/proc/self/exe".into(), false);
        ExecEngine::new(launcher, Lifecycle::booting())
    }

    async fn run_scripts(scripts: &[(&str, u32, &str)]) -> Option<Veto> {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode, script) in scripts {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
        }
        run(&exec(), dir.path(), "check", &asked()).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hooks_say_yes_or_why_not() {
        assert_eq!(run(&exec(), Path::new("/no/such/folder"), "check", &asked()).await, None);
        assert_eq!(run_scripts(&[("10-a", 0o755, "exit 0"), ("notes", 0o644, "exit 1")]).await, None);

        let told = "test \"$1 $2 $TOMBOLO_OPERATION\" = 'check donor 5' && test \"$TOMBOLO_UNITS\" = 'memory lot 7: 64 bytes'";
        assert_eq!(run_scripts(&[("told", 0o755, told)]).await, None, "it is told what is asked");

        let no = run_scripts(&[
            ("20-b", 0o755, "echo never; exit 1"),
            ("10-a", 0o755, "echo first >&2; echo 'the backup runs' >&2; exit 3"),
        ]);
        let reason = no.await.unwrap().reason;
        assert!(reason.contains("`10-a` (check): the backup runs"), "{reason}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hooks_that_print_binary_or_without_end_say_no_without_it() {
        let binary = run_scripts(&[("x", 0o755, "printf '\\377\\001' >&2; exit 4")]).await.unwrap().reason;
        assert!(binary.starts_with("hook `x` (check): ") && binary.is_ascii(), "{binary:?}");
        let much = run_scripts(&[("x", 0o755, "seq 100000 >&2; exit 1")]).await.unwrap().reason;
        assert!(much.contains("100000") && much.len() < 100, "{much}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hook_that_hangs_says_no() {
        let reason = run_scripts(&[("x", 0o755, "sleep 3600")]).await.unwrap().reason;
        assert!(reason.contains("did not end within"), "{reason}");
    }
}
