//! A private control plane for a test: a daemon with folders of its own, reached through the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::attached::Attached;
use crate::prerequisites;
use crate::standin::StandIn;
use crate::wait::LONG;

/// Lines of a console that a failure shows.
const CONSOLE_LINES: usize = 40;

/// A daemon and its folders. Dropping it kills every process it has made and removes its files.
#[derive(Debug)]
pub struct Bed {
    programs: PathBuf,
    spawner: &'static str,
    daemon_args: Vec<String>,
    dir: TempDir,
    daemon: Option<std::process::Child>,
}

/// What a command said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Said {
    pub(crate) fn from(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// The JSON document on its standard output.
    ///
    /// # Panics
    /// When there is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Bed {
    /// Folders and programs, without a daemon yet; `None` (said loudly) where the programs were not built, or there is no QEMU.
    pub fn prepare(spawner: &'static str) -> Option<Self> {
        if spawner == "qemu" {
            prerequisites::qemu()?;
        }
        let programs = match spawner {
            "uml" | "qemu" | "multikernel" => prerequisites::static_program("tombolod")?.parent()?.to_owned(),
            _ => prerequisites::programs()?,
        };
        let dir = tempfile::Builder::new().prefix("tombolo-e2e-").tempdir().ok()?;
        Some(Self { programs, spawner, daemon_args: Vec::new(), dir, daemon: None })
    }

    /// The same for kernels beside this one, in a process that runs under the stand-in for Multikernel Linux.
    ///
    /// # Panics
    /// When the stand-in's folder cannot be written.
    pub fn prepare_beside(stand_in: &StandIn) -> Option<Self> {
        stand_in.cover_host();
        let mut bed = Self::prepare("multikernel")?;
        let settings = bed.dir().join("multikernel.toml");
        fs::write(&settings, stand_in.settings_text_with_lock_of_kerf()).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        bed.add_daemon_args(["--pool", &text(&stand_in.pool()), "--multikernel", &text(&settings)]);
        Some(bed)
    }

    /// The same with a daemon that answers.
    pub fn start(spawner: &'static str) -> Option<Self> {
        let mut bed = Self::prepare(spawner)?;
        bed.start_daemon();
        Some(bed)
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of the daemon's records.
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// The folder of an instance.
    pub fn instance_dir(&self, name: &str) -> PathBuf {
        self.state_dir().join("instances").join(name)
    }

    /// `tombolod` with this bed's folders, not yet run.
    pub fn daemon_command(&self) -> Command {
        let mut daemon = Command::new(self.programs.join("tombolod"));
        daemon.arg("--state-dir").arg(self.state_dir()).arg("--runtime-dir").arg(self.dir().join("run"));
        daemon.args(["--spawner", self.spawner]).args(&self.daemon_args).stdin(Stdio::null());
        // A probe of KVM would precede the first machine of every bed. A test of it says `--accel`, which counts more than this.
        daemon.env("TOMBOLO_ACCEL", "tcg");
        if self.spawner == "multikernel" {
            // It is what the `uml` spawner boots; here the settings name what is booted.
            daemon.env_remove("TOMBOLO_UML_KERNEL");
        }
        daemon
    }

    /// Gives every later daemon these arguments, too.
    pub fn add_daemon_args<const N: usize>(&mut self, args: [&str; N]) {
        self.daemon_args.extend(args.map(str::to_owned));
    }

    /// What every later daemon is given.
    pub fn daemon_args(&self) -> Vec<String> {
        self.daemon_args.clone()
    }

    /// Gives every later daemon these arguments instead of those it was given so far.
    pub fn replace_daemon_args(&mut self, args: Vec<String>) {
        self.daemon_args = args;
    }

    /// One of our programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_daemon(&mut self) {
        self.spawn_daemon();
        let start = Instant::now();
        while self.tombolo(&["ps"]).code != 0 {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
            assert!(ended.is_none(), "tombolod ended ({ended:?}): {}", self.daemon_log());
            assert!(start.elapsed() < LONG, "tombolod does not answer: {}", self.daemon_log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the daemon and does not wait.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn spawn_daemon(&mut self) {
        let log =
            fs::File::options().create(true).append(true).open(self.dir().join("tombolod.log")).unwrap();
        let mut command = self.daemon_command();
        self.daemon = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// Sends the daemon a signal by name, waits for its end and returns its exit code (-1 for a signal).
    ///
    /// # Panics
    /// When it does not end.
    pub fn end_daemon(&mut self, signal: &str) -> i32 {
        let mut daemon = self.daemon.take().expect("no daemon runs");
        send_signal(daemon.id(), signal);
        let start = Instant::now();
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < LONG, "tombolod does not end on SIG{signal}: {}", self.daemon_log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the daemon has died by itself.
    ///
    /// # Panics
    /// When it does not.
    pub fn daemon_dies(&mut self) {
        let mut daemon = self.daemon.take().expect("no daemon runs");
        eventually("the death of the daemon", || daemon.try_wait().unwrap().is_some());
    }

    /// The daemon's process.
    ///
    /// # Panics
    /// When none runs.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("no daemon runs").id()
    }

    /// What the daemon logged.
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.dir().join("tombolod.log")).unwrap_or_default()
    }

    /// Runs `tombolo ARGS` to its end.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn tombolo(&self, args: &[&str]) -> Said {
        Said::from(&self.tombolo_command(args).output().unwrap())
    }

    /// `tombolo ARGS`, not yet run.
    pub fn tombolo_command(&self, args: &[&str]) -> Command {
        let mut tombolo = Command::new(self.program("tombolo"));
        tombolo.arg("--runtime-dir").arg(self.dir().join("run")).args(args).stdin(Stdio::null());
        tombolo
    }

    /// `tombolo ARGS`, running.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn attach(&self, args: &[&str]) -> Attached {
        Attached::run(self.tombolo_command(args))
    }

    /// Runs `tombolo ARGS`, which must succeed.
    ///
    /// # Panics
    /// When it fails, with what it said and what the daemon logged.
    pub fn must(&self, args: &[&str]) -> Said {
        let said = self.tombolo(args);
        assert_eq!(
            said.code,
            0,
            "`tombolo {}` said {said:?}; the daemon logged:\n{}\n{}",
            args.join(" "),
            self.daemon_log(),
            self.consoles()
        );
        said
    }

    /// The end of what each kernel's console said.
    fn consoles(&self) -> String {
        let listed = self.tombolo(&["--json", "ps"]);
        let Ok(listed) = serde_json::from_str::<Value>(&listed.stdout) else { return String::new() };
        let names =
            listed["instances"].as_array().into_iter().flatten().filter_map(|row| row["name"].as_str());
        names
            .map(|name| {
                let said = self.tombolo(&["logs", "--console", name]);
                let lines: Vec<&str> = said.stdout.lines().collect();
                let end = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
                format!("the console of {name}:\n{end}\n{}", said.stderr)
            })
            .collect()
    }

    /// What the daemon knows of an instance at a glance.
    ///
    /// # Panics
    /// When it knows none.
    pub fn view(&self, name: &str) -> Value {
        self.must(&["--json", "inspect", name]).json()["instance"]["view"].take()
    }

    /// The number of the newest event.
    ///
    /// # Panics
    /// When the daemon does not tell.
    pub fn last_event(&self) -> u64 {
        self.events_since(0).last().and_then(|event| event["seq"].as_u64()).unwrap_or(0)
    }

    /// The events after this number.
    ///
    /// # Panics
    /// When the daemon does not tell.
    pub fn events_since(&self, seq: u64) -> Vec<Value> {
        let said = self.must(&["--json", "events", "--since", &seq.to_string()]);
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The process of an instance's kernel.
    ///
    /// # Panics
    /// When it has none.
    pub fn pid(&self, name: &str) -> u32 {
        let view = self.view(name);
        u32::try_from(view["pid"].as_u64().unwrap_or_else(|| panic!("no process: {view}"))).unwrap()
    }

    /// Waits until the view of an instance is as wanted.
    ///
    /// # Panics
    /// When it does not become so.
    pub fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let view = self.view(name);
            if wanted(&view) {
                return view;
            }
            assert!(start.elapsed() < LONG, "{name} did not become {what}: {view}\n{}", self.daemon_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Every living process that has anything to do with this bed.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let dir = self.dir().display().to_string();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter_map(|pid| {
                let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                (command.contains(&dir) || cwd.starts_with(self.dir())).then_some((pid, command))
            })
            .collect()
    }

    /// Ends the daemon and fails if any process or bound socket is left.
    ///
    /// # Panics
    /// When anything is.
    pub fn nothing_is_left(mut self) {
        self.must(&["down"]);
        let mut daemon = self.daemon.take().expect("no daemon runs");
        assert!(daemon.wait().unwrap().success(), "{}", self.daemon_log());
        let start = Instant::now();
        while !self.processes().is_empty() {
            assert!(start.elapsed() < LONG, "left: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(10));
        }
        let bound = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let dir = self.dir().display().to_string();
        assert!(!bound.contains(&dir), "sockets are left: {bound}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // Keepers first: each takes its kernel along.
        for (pid, _) in self.processes() {
            send_signal(pid, "TERM");
        }
        let start = Instant::now();
        while !self.processes().is_empty() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        for (pid, _) in self.processes() {
            send_signal(pid, "KILL");
        }
        remove_pool_of(&self.state_dir());
    }
}

/// The pool's name follows from the state folder.
fn remove_pool_of(state_dir: &Path) {
    let _ = fs::remove_file(tombolo_control::paths::pool(state_dir));
}

/// Waits until a condition holds.
///
/// # Panics
/// When it does not come to hold, naming `what` was awaited.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "waited {LONG:?} for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether any process of this host has this in its command line.
pub fn runs(text: &str) -> bool {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .any(|command| String::from_utf8_lossy(&command).replace('\0', " ").contains(text))
}

/// Sends a signal by name, such as `KILL`. A process that is gone is no error.
pub fn send_signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
}
