//! Many kernels of the `process` spawner: how long until all are healthy, how fast `ps` is then, and what the daemon holds for each.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::process::private_bytes;
use crate::tell;

const KERNELS: u32 = 200;
const DAEMON_MAX: Duration = Duration::from_secs(20);
const HEALTHY_MAX: Duration = Duration::from_secs(100);
const LISTINGS: usize = 100;

pub(crate) fn measure() -> anyhow::Result<()> {
    let kernels = KERNELS;
    // The primary is a member too.
    let bed = Bed::start(kernels + 1)?;
    let pid = bed.daemon.id();
    let memory_before = private_bytes(pid)?;
    let began = Instant::now();
    for number in 1..=kernels {
        bed.tombolo(&["up", &format!("k{number}"), "--no-wait", "--restart", "never"])?;
    }
    let created = began.elapsed();
    bed.wait_until_healthy(kernels as usize)?;
    let healthy = began.elapsed();
    let of = u64::from(kernels);
    let note = format!("all were created after {:.2} s, by a command each", created.as_secs_f64());
    tell("control-plane/healthy", of, healthy.as_secs_f64(), "s", note)?;
    tell("control-plane/kernels", None, f64::from(kernels), "kernels", None)?;
    let memory = private_bytes(pid)?.saturating_sub(memory_before) as f64 / f64::from(kernels) / 1024.0;
    tell("control-plane/memory", of, memory, "KiB", None)?;
    let mut listings = Vec::new();
    for _ in 0..LISTINGS {
        let began = Instant::now();
        bed.tombolo(&["ps"])?;
        listings.push(began.elapsed().as_secs_f64() * 1e3);
    }
    listings.sort_by(f64::total_cmp);
    tell(
        "control-plane/ps",
        of,
        listings[LISTINGS * 99 / 100],
        "ms",
        "the whole command, its start included".to_owned(),
    )
}

fn pool() -> PathBuf {
    PathBuf::from(format!("/dev/shm/tombolo-bench-control-{}", std::process::id()))
}

/// A daemon with a folder of its own. Dropping it ends its kernels, and it.
struct Bed {
    folder: PathBuf,
    programs: PathBuf,
    daemon: Child,
}

impl Bed {
    fn start(members: u32) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let programs = this.parent().context("this program is in no folder")?.to_owned();
        for program in ["tombolod", "tombolo", "tombolo-agent"] {
            ensure!(programs.join(program).exists(), "{program} is not built: cargo build --release --bins");
        }
        let folder = std::env::temp_dir().join(format!("tombolo-bench-control-{}", std::process::id()));
        for sub in ["state", "run"] {
            std::fs::create_dir_all(folder.join(sub))?;
        }
        let log = std::fs::File::create(folder.join("tombolod.log"))?;
        let mut daemon = Command::new(programs.join("tombolod"));
        daemon.arg("--state-dir").arg(folder.join("state")).arg("--runtime-dir").arg(folder.join("run"));
        daemon.args(["--spawner", "process", "--pool-members", &members.to_string()]);
        daemon.arg("--pool").arg(pool());
        let daemon = daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut bed = Self { folder, programs, daemon };
        bed.wait_for_daemon()?;
        Ok(bed)
    }

    fn wait_for_daemon(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DAEMON_MAX;
        loop {
            if let Some(status) = self.daemon.try_wait()? {
                let log = std::fs::read_to_string(self.folder.join("tombolod.log")).unwrap_or_default();
                bail!("tombolod ended with {status}: {}", log.lines().last().unwrap_or_default());
            }
            match self.tombolo(&["ps"]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("tombolod does not answer"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn wait_until_healthy(&self, kernels: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + HEALTHY_MAX;
        loop {
            let listed: Value = serde_json::from_slice(&self.tombolo(&["--json", "ps"])?.stdout)?;
            let views = listed["instances"].as_array().context("`ps` lists no instances")?;
            let is = |view: &&Value| view["state"] == "running" && view["health"] == "ready";
            let healthy = views.iter().filter(is).count();
            if healthy == kernels {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{healthy} of {kernels} kernels are healthy after {HEALTHY_MAX:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn tombolo(&self, args: &[&str]) -> anyhow::Result<Output> {
        let output = tombolo(&self.programs, &self.folder, args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`tombolo {}` ended with {}: {}",
            args.join(" "),
            output.status,
            said.lines().last().unwrap_or_default()
        );
        Ok(output)
    }
}

fn tombolo(programs: &Path, folder: &Path, args: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(programs.join("tombolo"));
    command.arg("--runtime-dir").arg(folder.join("run")).args(args).env_remove("TOMBOLO_SOCKET");
    command.stdin(Stdio::null()).output().context("running tombolo")
}

impl Drop for Bed {
    fn drop(&mut self) {
        // It stops the kernels in good order, then the daemon.
        let _ = tombolo(&self.programs, &self.folder, &["down"]);
        let deadline = Instant::now() + DAEMON_MAX;
        while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_file(pool());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
