//! The demo's private control plane: a daemon with folders of its own, reached through the command line as a user would.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use super::{SpawnerKind, stand_in};
use crate::command::{self, Lines};
use crate::process;

/// How long any one command may take: a kernel boots in 2 s on an idle machine, in 30 s on a very busy one.
const COMMAND_MAX: Duration = Duration::from_secs(90);

/// How long the daemon may take to answer.
const DAEMON_MAX: Duration = Duration::from_secs(30);

/// A disk that machines can have, one at a time.
pub(super) const DISK: &str = "0000:01:00.0";
const DISK_BYTES: u64 = 64 << 20;

/// The demo's application, inside a kernel.
const GUEST_APP: &str = "/usr/bin/tombolo-demo-kv";

/// A daemon and how to talk to it.
#[derive(Debug)]
pub(super) struct Bed {
    pub(super) spawner: SpawnerKind,
    dir: PathBuf,
    programs: PathBuf,
    image: Option<PathBuf>,
    daemon: Child,
    /// Shared-memory files that were there before us.
    shm_before: Vec<PathBuf>,
}

/// What must be cleaned up, whatever happens.
#[derive(Debug, Default)]
pub(super) struct Remains {
    dir: Option<tempfile::TempDir>,
    pool: Option<PathBuf>,
    /// Where the logs of a failure were kept.
    pub(super) logs: Option<PathBuf>,
}

impl Remains {
    /// Ends every process below this one, and removes the folder and the pool; keeps the logs if asked to.
    pub(super) fn clean_up(&mut self, keep_logs: bool) {
        for process in process::kill_descendants() {
            eprintln!("could not end process {}: {}", process.pid, process.command);
        }
        if let Some(pool) = self.pool.take() {
            let _ = fs::remove_file(pool);
        }
        let Some(dir) = self.dir.take() else { return };
        if keep_logs {
            self.logs = keep_logs_of(dir.path());
        }
        let path = dir.path().to_owned();
        if let Err(error) = dir.close() {
            eprintln!("could not remove {}: {error}", path.display());
        }
    }

    /// Leaves everything as it is.
    pub(super) fn release(&mut self) {
        self.dir.take().map(tempfile::TempDir::keep);
    }
}

/// Copies whatever explains a failure out of the folder that goes away.
fn keep_logs_of(dir: &Path) -> Option<PathBuf> {
    let kept = std::env::temp_dir().join(format!("tombolo-demo-logs-{}", std::process::id()));
    let mut found = Vec::new();
    collect_logs(dir, &mut found);
    fs::create_dir_all(&kept).ok()?;
    for log in found {
        let name = log.strip_prefix(dir).unwrap_or(&log).display().to_string().replace('/', "_");
        let _ = fs::copy(&log, kept.join(name));
    }
    Some(kept)
}

fn collect_logs(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        let is_log = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.contains(".log") || matches!(name.as_str(), "exit.json" | "kernel.json" | "job.json")
        };
        match kind {
            Ok(kind) if kind.is_dir() => collect_logs(&path, found),
            Ok(kind) if kind.is_file() && is_log(&path) => found.push(path),
            _ => {}
        }
    }
}

impl Bed {
    /// Makes the folders and starts the daemon.
    pub(super) fn start(
        programs: &Path,
        spawner: SpawnerKind,
        image: Option<PathBuf>,
        remains: &Mutex<Remains>,
    ) -> Result<Self> {
        Self::start_with(programs, spawner, image, &[], remains)
    }

    /// The same, with these arguments for the first daemon.
    pub(super) fn start_with(
        programs: &Path,
        spawner: SpawnerKind,
        image: Option<PathBuf>,
        args: &[&str],
        remains: &Mutex<Remains>,
    ) -> Result<Self> {
        let shm_before = shm_files();
        let dir =
            tempfile::Builder::new().prefix("tombolo-demo-").tempdir().context("could not make a folder")?;
        let path = dir.path().to_owned();
        remains.lock().map_err(|_| anyhow::anyhow!("the clean-up state is lost"))?.dir = Some(dir);
        for sub in ["state", "run"] {
            fs::create_dir(path.join(sub))?;
        }
        fs::File::create(disk_in(&path))?.set_len(DISK_BYTES)?;
        let daemon = start_daemon(&path, programs, spawner, image.as_deref(), args)?;
        let mut bed = Self { spawner, dir: path, programs: programs.to_owned(), image, daemon, shm_before };
        bed.wait_for_daemon()?;
        let pool = shm_files().into_iter().find(|file| !bed.shm_before.contains(file));
        remains.lock().map_err(|_| anyhow::anyhow!("the clean-up state is lost"))?.pool = pool;
        Ok(bed)
    }

    pub(super) fn daemon_pid(&self) -> u32 {
        self.daemon.id()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// SIGKILL to the daemon, and a new one in its place.
    pub(super) fn replace_daemon(&mut self) -> Result<()> {
        self.replace_daemon_by(&[])
    }

    /// The same with further arguments for the new one. A daemon that is dead already is only replaced.
    pub(super) fn replace_daemon_by(&mut self, args: &[&str]) -> Result<()> {
        self.daemon.kill()?;
        self.daemon.wait()?;
        self.daemon = start_daemon(&self.dir, &self.programs, self.spawner, self.image.as_deref(), args)?;
        self.wait_for_daemon()
    }

    /// Ends the kernel of an instance as by an accident: all its processes at once, or where those are none of this host, by a panic.
    pub(super) fn strike_down(&self, instance: &str, pid: i32) -> Result<()> {
        if self.spawner == SpawnerKind::Multikernel {
            return stand_in::control(&self.programs, "panic", instance);
        }
        kill_group(pid);
        Ok(())
    }

    /// Has the kernel of an instance hang, or go on.
    pub(super) fn set_frozen(&self, instance: &str, frozen: bool) -> Result<()> {
        let verb = if frozen { "freeze" } else { "thaw" };
        match self.spawner {
            SpawnerKind::Multikernel => stand_in::control(&self.programs, verb, instance),
            _ => self.tombolo(&["debug", verb, instance]).map(drop),
        }
    }

    /// The file behind the disk.
    pub(super) fn disk(&self) -> PathBuf {
        disk_in(&self.dir)
    }

    /// The folder of an instance.
    pub(super) fn instance_dir(&self, instance: &str) -> PathBuf {
        self.dir.join("state/instances").join(instance)
    }

    /// Waits until the daemon has ended by itself, as it should or not.
    pub(super) fn wait_for_daemon_end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + DAEMON_MAX;
        loop {
            if let Some(status) = self.daemon.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "tombolod did not end within {DAEMON_MAX:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for_daemon(&mut self) -> Result<()> {
        let deadline = Instant::now() + DAEMON_MAX;
        loop {
            if let Some(status) = self.daemon.try_wait()? {
                let log = fs::read(self.dir.join("tombolod.log")).unwrap_or_default();
                bail!("tombolod ended with {status}: {}", command::last_lines(&log));
            }
            match self.tombolo(&["ps"]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("tombolod does not answer"));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// `tombolo ARGS`, not yet run.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut tombolo = Command::new(self.programs.join("tombolo"));
        tombolo.arg("--runtime-dir").arg(self.dir.join("run")).args(args).env_remove("TOMBOLO_SOCKET");
        tombolo
    }

    /// Runs `tombolo ARGS`, which must succeed; returns what it printed.
    pub(super) fn tombolo(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command(args);
        let output = command::run_for(&mut command, COMMAND_MAX)?;
        ensure!(
            output.status.success(),
            "`tombolo {}` ended with {}: {}",
            args.join(" "),
            output.status,
            command::last_lines(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()),
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `tombolo --json ARGS` and returns the document it printed.
    pub(super) fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.tombolo(&[&["--json"], args].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("`tombolo --json {}` printed no JSON: {text}", args.join(" ")))
    }

    /// What the control plane knows of an instance at a glance.
    pub(super) fn view(&self, instance: &str) -> Result<Value> {
        let mut detail = self.json(&["inspect", instance])?;
        Ok(detail["instance"]["view"].take())
    }

    /// Runs the demo's application in an instance and returns the JSON on its last line.
    pub(super) fn app(&self, instance: &str, args: &[&str]) -> Result<Value> {
        let mut words = vec!["exec".to_owned(), instance.to_owned(), "--".to_owned()];
        words.extend(self.app_words(instance, args));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        last_json(&self.tombolo(&words)?)
    }

    /// Starts the demo's application in an instance; its lines are read as they come.
    pub(super) fn app_lines(&self, instance: &str, args: &[&str]) -> Result<Lines> {
        let mut command = self.command(&["exec", instance, "--"]);
        command.args(self.app_words(instance, args));
        Lines::start(&mut command)
    }

    /// The command line of the demo's application within an instance.
    pub(super) fn app_words(&self, instance: &str, args: &[&str]) -> Vec<String> {
        let mut words = vec![match self.spawner.makes_kernels() {
            true => GUEST_APP.to_owned(),
            // It sees the host's files.
            false => self.host_app().display().to_string(),
        }];
        words.extend(args.iter().map(|&arg| arg.to_owned()));
        if self.spawner == SpawnerKind::Process {
            let socket = self.instance_dir(instance).join("broker.sock");
            words.extend(["--broker".into(), socket.display().to_string()]);
        }
        words
    }

    /// Runs the demo's application on the host.
    pub(super) fn host_app_json(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(self.host_app());
        let output = command::run_for(command.args(args), COMMAND_MAX)?;
        ensure!(
            output.status.success(),
            "{} failed: {}",
            command::name_of(&command),
            command::last_lines(&output.stderr)
        );
        last_json(&String::from_utf8_lossy(&output.stdout))
    }

    fn host_app(&self) -> PathBuf {
        self.programs.join("tombolo-demo-kv")
    }

    /// The argument that puts the application into a kernel.
    pub(super) fn app_file(&self) -> String {
        format!("{}:{GUEST_APP}", self.host_app().display())
    }

    /// A path for a file inside an instance.
    pub(super) fn guest_path(&self, name: &str) -> String {
        match self.spawner.makes_kernels() {
            true => format!("/tmp/{name}"),
            false => self.dir.join(format!("inside-{name}")).display().to_string(),
        }
    }

    /// Processes, sockets and shared-memory files that are left of us.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = process::descendants()
            .into_iter()
            .map(|process| format!("process {} ({})", process.pid, process.command))
            .collect();
        sockets_in(&self.dir, &mut left);
        let bound = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let dir = self.dir.display().to_string();
        left.extend(
            bound.lines().filter(|line| line.contains(&dir)).map(|line| format!("bound socket {line}")),
        );
        let new = shm_files().into_iter().filter(|file| !self.shm_before.contains(file) && !is_mapped(file));
        left.extend(new.map(|file| format!("shared memory {}", file.display())));
        left
    }
}

fn start_daemon(
    dir: &Path,
    programs: &Path,
    spawner: SpawnerKind,
    image: Option<&Path>,
    args: &[&str],
) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(dir.join("tombolod.log"))?;
    let mut daemon = Command::new(programs.join("tombolod"));
    daemon
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--runtime-dir")
        .arg(dir.join("run"))
        .arg("--agent-binary")
        .arg(programs.join("tombolo-agent"))
        .args(["--spawner", spawner.name()])
        // What is shown and measured is to be the same on every machine, and no probe of KVM is to precede it.
        .args(["--accel", "tcg"])
        .args(["--device", &format!("{DISK}=nvme:{}", disk_in(dir).display())])
        .args(args);
    if spawner == SpawnerKind::Multikernel {
        daemon.args(stand_in::daemon_arguments()?);
    }
    if let Some(image) = image {
        daemon.arg("--image").arg(image);
    }
    // Of a group of its own: Ctrl-C is for the demo, which then ends the daemon.
    daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    // A program inherits the signals its parent blocks; the daemon must hear them.
    let blocked = SigSet::thread_get_mask()?;
    SigSet::empty().thread_set_mask()?;
    let started = daemon.spawn().context("could not run tombolod");
    blocked.thread_set_mask()?;
    started
}

fn disk_in(dir: &Path) -> PathBuf {
    dir.join("disk")
}

fn last_json(text: &str) -> Result<Value> {
    let line = text.lines().rfind(|line| line.starts_with('{')).context("no JSON was printed")?;
    serde_json::from_str(line).with_context(|| format!("this is not JSON: {line}"))
}

fn shm_files() -> Vec<PathBuf> {
    let all = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with("tombolo-"))
        .map(|entry| entry.path())
        .collect()
}

/// Whether a living process has it mapped: then it is another program's, since none of ours is left.
fn is_mapped(file: &Path) -> bool {
    let name = file.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| fs::read_to_string(entry.path().join("maps")).ok())
        .any(|maps| maps.lines().any(|line| line.ends_with(&name)))
}

fn sockets_in(dir: &Path, left: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sockets_in(&entry.path(), left),
            Ok(kind) if kind.is_socket() => left.push(format!("socket {}", entry.path().display())),
            _ => {}
        }
    }
}

/// The text of a field.
pub(super) fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("no text `{key}` in {value}"))
}

/// The number of a field.
pub(super) fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("no number `{key}` in {value}"))
}

/// SIGKILL to a whole process group.
pub(super) fn kill_group(leader: i32) {
    if let Some(leader) = Pid::from_raw(leader) {
        // A group that is gone is no error here: the story goes on to look for its death.
        let _ = kill_process_group(leader, Signal::KILL);
    }
}
