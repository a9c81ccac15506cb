//! The demo on a **stand-in** for Multikernel Linux: it has to be in place before a process starts, so the demo starts itself again under it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Args, Story};
use crate::{build, command, image};

/// Environment variable: the stand-in's folder, in a process that runs under it.
const FOLDER: &str = "TOMBOLO_DEMO_STANDIN";
/// The kernel, as an image that passes for one of this machine.
const IMAGE: &str = "vmlinux";
/// What all kernels share.
const POOL: &str = "pool";
const SETTINGS: &str = "multikernel.toml";

/// Whether the stand-in among these programs runs on this machine; the error says what it lacks.
pub(crate) fn can_run(programs: &Path) -> Result<()> {
    has_needs()?;
    // Whoever looks like root may not be allowed to mount, or to filter system calls: a container, say.
    let mut nothing = Command::new(programs.join("tombolo-mksim"));
    let output = nothing.args(["run", "--", "true"]).stdin(Stdio::null()).output();
    let output = output.context("could not run the stand-in")?;
    ensure!(output.status.success(), "it does not run here: {}", command::last_lines(&output.stderr));
    Ok(())
}

fn has_needs() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the stand-in mounts a file system: it needs root");
    ensure!(Path::new("/dev/fuse").exists(), "there is no /dev/fuse: modprobe fuse");
    Ok(())
}

/// Whether this process runs under the stand-in.
pub(super) fn is_here() -> bool {
    std::env::var_os(FOLDER).is_some()
}

/// Runs the same demo under the stand-in, and ends as it does.
pub(super) fn rerun(args: &Args) -> Result<()> {
    ensure!(
        args.sim,
        "kernels beside this one need Multikernel Linux, which the demo does not take over: show it on a stand-in with --sim"
    );
    ensure!(!args.keep, "the stand-in ends with the demo, and so do its kernels: leave out --keep");
    has_needs()?;
    let programs = match &args.programs {
        Some(dir) => dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?,
        None => build::static_programs()?,
    };
    let (stand_in, kernel) = (programs.join("tombolo-mksim"), image::find_or_fetch()?);
    let dir =
        tempfile::Builder::new().prefix("tombolo-standin-").tempdir().context("could not make a folder")?;
    let made = Command::new(&stand_in).arg("image").arg(&kernel).arg(dir.path().join(IMAGE)).status()?;
    ensure!(made.success(), "no image could be made of {}", kernel.display());
    std::fs::write(dir.path().join(SETTINGS), settings(dir.path()))?;
    let mut demo = Command::new(&stand_in);
    demo.arg("run").arg("--dir").arg(dir.path()).arg("--share").arg(dir.path().join(POOL)).arg("--");
    demo.arg(std::env::current_exe()?).args(["demo", "--spawner", "multikernel", "--sim", "--programs"]);
    demo.arg(&programs).args(args.json.then_some("--json"));
    if args.story == Story::Handover {
        demo.args(["--story", "handover"]);
    }
    let status =
        demo.env(FOLDER, dir.path()).stdin(Stdio::null()).status().context("could not run the stand-in")?;
    if status.success() { Ok(()) } else { bail!("the demo under the stand-in ended with {status}") }
}

fn settings(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "image = \"{dir}/{IMAGE}\"\nlock = \"{dir}/kerf.lock\"\npool = {{ path = \"/dev/mmapper\" }}\n\
         doorbell = {{ line = {{ inside = \"/dev/ttyS0\", socket = \"{dir}/link.{{id}}\" }} }}\n"
    )
}

/// The kernel that is booted there.
pub(super) fn image() -> Result<PathBuf> {
    Ok(folder()?.join(IMAGE))
}

/// What the daemon is to be told, to find everything there.
pub(super) fn daemon_arguments() -> Result<Vec<String>> {
    let dir = folder()?;
    let text = |name: &str| dir.join(name).display().to_string();
    Ok(vec!["--pool".into(), text(POOL), "--multikernel".into(), text(SETTINGS)])
}

/// Has the stand-in do something to the kernel of an instance: `freeze`, `thaw` or `panic`.
pub(super) fn control(programs: &Path, verb: &str, instance: &str) -> Result<()> {
    let mut control = Command::new(programs.join("tombolo-mksim"));
    let status = control.arg("ctl").arg("--dir").arg(folder()?).args([verb, instance]).status()?;
    ensure!(status.success(), "the stand-in did not {verb} {instance}");
    Ok(())
}

fn folder() -> Result<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from).context("this process does not run under the stand-in")
}
