//! The keeper's life: start the kernel, serve requests, reap, record, leave.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, kill_process_group, set_child_subreaper, setsid, wait,
};

use super::backend::Backend;
use super::client::{Client, Next};
use super::console::ConsoleLog;
use super::exec::EXIT_NOT_EXECUTED;
use super::files::Room;
use super::machine::Account;
use super::memory::{Memory, Outcome};
use super::{
    CpuLease, Exit, ExitHow, Job, KernelRecord, Process, Request, Status, cpus, descendants_of, names,
    remove_all, write_atomically,
};
use crate::spawner::{SpawnerKind, multikernel};

/// How long the keeper tries to get rid of a dead kernel's helper processes before it reports the exit all the same.
const SWEEP_MAX: Duration = Duration::from_secs(10);

/// Clients at once; more are turned away. The daemon uses a handful.
const CLIENTS_MAX: usize = 64;

/// Console input that waits for the kernel to read it, in bytes; then its client is no longer read.
const CONSOLE_INPUT_BYTES_MAX: usize = 64 * 1024;

/// Keeps one kernel, from its start to its recorded end. The working folder is its runtime folder.
pub(super) fn keep(dir: &Path) -> ExitCode {
    let mut keeper = match Keeper::start() {
        Ok(keeper) => keeper,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("ready");
    // Whoever started us reads stdout to its end; nothing more will come.
    if let Err(error) = fs::File::create("/dev/null").and_then(|null| Ok(rustix::stdio::dup2_stdout(null)?)) {
        eprintln!("could not close stdout: {error}");
    }
    match keeper.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keeper in {} failed: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
struct Keeper {
    record: KernelRecord,
    main: Pid,
    listener: UnixListener,
    signals: SignalFd,
    doorbell: UnixStream,
    console: Option<UnixStream>,
    console_input: Vec<u8>,
    log: ConsoleLog,
    exit_room: Option<Room>,
    memory: Option<Memory>,
    account: Option<Account>,
    backend: Option<Backend>,
    /// The client that waits for a change of the memory, by its number.
    awaits_memory: Option<u64>,
    cpus: Vec<CpuLease>,
    departures: Vec<u8>,
    clients: Vec<Client>,
    clients_seen: u64,
}

impl Keeper {
    fn start() -> Result<Self, String> {
        let failed = |what: &'static str| move |error: io::Error| format!("could not {what}: {error}");
        // Already a leader (started by hand from a shell) is fine: then it is a group of its own at least.
        let _ = setsid();
        set_child_subreaper(Pid::from_raw(1))
            .map_err(|e| failed("become the reaper of orphans")(e.into()))?;
        let job: Job = fs::read(names::JOB)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .map_err(failed("read job.json"))?;

        let mut mask = SigSet::empty();
        for signal in [NixSignal::SIGCHLD, NixSignal::SIGTERM, NixSignal::SIGINT, NixSignal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().map_err(|e| failed("block signals")(e.into()))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|e| failed("watch signals")(e.into()))?;

        let listener = UnixListener::bind(names::SOCKET).map_err(failed("bind keeper.sock"))?;
        fs::set_permissions(names::SOCKET, fs::Permissions::from_mode(0o600))
            .map_err(failed("protect keeper.sock"))?;
        listener.set_nonblocking(true).map_err(failed("prepare keeper.sock"))?;

        let (doorbell, kernel_doorbell) = UnixStream::pair().map_err(failed("make the doorbell"))?;
        doorbell.set_nonblocking(true).map_err(failed("prepare the doorbell"))?;
        let (console, kernel_console) = UnixStream::pair().map_err(failed("make the console"))?;
        console.set_nonblocking(true).map_err(failed("prepare the console"))?;
        let log =
            ConsoleLog::start(names::CONSOLE.as_ref(), names::CONSOLE_OLD.as_ref(), job.console_bytes_max);

        let (account, machine_events) = match job.kind {
            SpawnerKind::Qemu => {
                let (ours, machines) = UnixStream::pair().map_err(failed("make the monitor for events"))?;
                let account = Account::new(ours).map_err(failed("prepare the monitor for events"))?;
                (Some(account), Some(machines))
            }
            _ => (None, None),
        };
        let (backend, kernel_backend) = job.backend.as_ref().map(Backend::start).transpose()?.unzip();
        let started_at_unix_ns = unix_ns();
        let sockets = KernelSockets {
            doorbell: kernel_doorbell,
            console: kernel_console,
            events: machine_events,
            backend: kernel_backend,
        };
        let pid = start_kernel(sockets).map_err(failed("start the kernel's process"))?;
        let main = Pid::from_raw(pid).ok_or("the kernel's process has no id")?;
        let start_ticks = Process::find(pid).map_or(0, |process| process.start_ticks);
        let (pid, runs_on) = (pid.unsigned_abs(), job.runs_on.clone());
        let record = KernelRecord { kind: job.kind, pid, start_ticks, started_at_unix_ns, runs_on };
        write_atomically(names::KERNEL.as_ref(), &super::wire::line(&record)).map_err(|error| {
            let _ = kill_process(main, Signal::KILL);
            format!("could not write kernel.json: {error}")
        })?;
        let (console_input, clients) = (Vec::new(), Vec::new());
        let exit_room = Some(Room::take(names::EXIT_ROOM.as_ref()));
        Ok(Self {
            record,
            main,
            listener,
            signals,
            doorbell,
            console: Some(console),
            console_input,
            log,
            exit_room,
            memory: job.memory.map(|memory| Memory::new(memory.mconsole, memory.boot_bytes)),
            account,
            backend,
            awaits_memory: None,
            cpus: job.cpus,
            departures: Vec::new(),
            clients,
            clients_seen: 0,
        })
    }

    /// Serves until the kernel has ended and that is recorded.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait_for_something()?;
            if ready.console {
                self.read_console();
            }
            if ready.memory
                && let Some(outcome) = self.memory.as_mut().and_then(Memory::answered)
            {
                self.memory_changed(outcome);
            }
            if ready.account
                && let Some(account) = &mut self.account
            {
                account.read();
            }
            if ready.backend
                && let Some(backend) = &mut self.backend
            {
                backend.record_complaints();
            }
            for index in (0..self.clients.len()).rev() {
                if ready.clients.get(index).copied().unwrap_or(false) {
                    self.serve_client(index);
                }
            }
            if ready.listener {
                self.accept();
            }
            self.write_console();
            if let Some(status) = self.read_signals() {
                if !self.record.kind.makes_processes() && multikernel::may_run(Path::new(".")) {
                    // Whoever killed the warden did not end the kernel. Another keeper will stand for it.
                    return Err(io::Error::other("the warden is gone, and its kernel runs, or may"));
                }
                return self.finish(status);
            }
        }
    }

    fn wait_for_something(&self) -> io::Result<Ready> {
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        for client in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(
                PollFlags::IN,
                client.wants_read() && self.console_input.len() < CONSOLE_INPUT_BYTES_MAX,
            );
            flags.set(PollFlags::OUT, client.wants_write());
            fds.push(PollFd::new(client.stream(), flags));
        }
        if let Some(console) = &self.console {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !self.console_input.is_empty());
            fds.push(PollFd::new(console, flags));
        }
        let memory = self.memory.as_ref().and_then(Memory::socket);
        fds.extend(memory.map(|socket| PollFd::new(socket, PollFlags::IN)));
        let account = self.account.as_ref().and_then(Account::socket);
        fds.extend(account.map(|socket| PollFd::new(socket, PollFlags::IN)));
        let complaints = self.backend.as_ref().and_then(Backend::complaints);
        fds.extend(complaints.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let clients = fired.iter().skip(2).take(self.clients.len()).copied().collect();
        let mut others = fired.iter().skip(2 + self.clients.len()).copied();
        let console = self.console.is_some() && others.next().unwrap_or(false);
        let memory = memory.is_some() && others.next().unwrap_or(false);
        let account = account.is_some() && others.next().unwrap_or(false);
        let backend = complaints.is_some() && others.next().unwrap_or(false);
        let listener = fired.get(1).copied().unwrap_or(false);
        Ok(Ready { listener, console, memory, account, backend, clients })
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if self.clients.len() < CLIENTS_MAX => {
                self.clients_seen += 1;
                match Client::new(stream, self.clients_seen) {
                    Ok(client) => self.clients.push(client),
                    Err(error) => eprintln!("could not serve a client: {error}"),
                }
            }
            Ok(_) => eprintln!("turned a client away: {CLIENTS_MAX} are connected already"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => eprintln!("could not accept a client: {error}"),
        }
    }

    fn serve_client(&mut self, index: usize) {
        match self.clients[index].advance(&mut self.console_input) {
            Next::Stay => {}
            Next::Gone => drop(self.clients.swap_remove(index)),
            Next::Asks(request) => self.answer(index, request),
        }
    }

    fn answer(&mut self, index: usize, request: Request) {
        let status = self.status(None);
        match request {
            Request::Status => self.clients[index].answer(&status, None),
            Request::Doorbell => self.clients[index].answer(&status, Some(self.doorbell.as_fd())),
            Request::Wait => {}           // answered by `finish`
            Request::Kill => self.kill(), // answered by `finish`
            Request::SetMemory { bytes } => self.set_memory(index, bytes),
            Request::Departure { bus, pending } => {
                self.departures.retain(|other| *other != bus);
                self.departures.extend(pending.then_some(bus));
                let status = self.status(None);
                self.clients[index].answer(&status, None);
            }
            Request::LeaseCpu(lease) => match cpus::enter(&mut self.cpus, lease) {
                Ok(()) => {
                    let status = self.status(None);
                    self.clients[index].answer(&status, None);
                }
                Err(reason) => self.refuse(index, &reason),
            },
            Request::Console if self.console.is_none() => self.refuse(index, "the kernel closed its console"),
            Request::Console if self.clients.iter().any(Client::is_console) => {
                self.refuse(index, "another client has the console; it serves one at a time");
            }
            Request::Console => {
                self.clients[index].answer(&status, None);
                self.clients[index].become_console();
            }
        }
    }

    /// Kills the kernel's process group. An error means that it ended already, and that SIGCHLD is on its way.
    fn kill(&self) {
        if !self.record.kind.makes_processes() {
            // The kernel is not its warden: that one ends it, and then itself.
            let _ = kill_process(self.main, Signal::TERM);
            return;
        }
        if kill_process_group(self.main, Signal::KILL).is_err() {
            // Perhaps it has not made its group yet. It is our child and not reaped: the number is its own.
            let _ = kill_process(self.main, Signal::KILL);
        }
    }

    fn set_memory(&mut self, index: usize, bytes: u64) {
        let Some(memory) = &mut self.memory else {
            return self.refuse(index, "the memory of this kernel cannot be changed while it runs");
        };
        if !bytes.is_multiple_of(4096) || bytes == 0 {
            return self.refuse(index, "memory comes in pages of 4096 bytes");
        }
        match memory.set(bytes) {
            None => self.awaits_memory = Some(self.clients[index].number()),
            Some(outcome) => self.tell_memory(index, outcome),
        }
    }

    /// Tells who waits for it that the change of the memory has ended.
    fn memory_changed(&mut self, outcome: Outcome) {
        let Some(number) = self.awaits_memory.take() else { return };
        if let Some(index) = self.clients.iter().position(|client| client.number() == number) {
            self.tell_memory(index, outcome);
        }
    }

    fn tell_memory(&mut self, index: usize, outcome: Outcome) {
        match outcome {
            Ok(()) => {
                let status = self.status(None);
                self.clients[index].answer(&status, None);
            }
            Err(reason) => self.refuse(index, &reason),
        }
    }

    fn refuse(&mut self, index: usize, reason: &str) {
        let mut status = self.status(None);
        status.refused = Some(reason.to_owned());
        self.clients[index].answer(&status, None);
    }

    fn status(&self, exit: Option<Exit>) -> Status {
        let memory = self.memory.as_ref().map(Memory::state);
        let (keeper_pid, kernel) = (std::process::id(), self.record.clone());
        let (cpus, departures) = (self.cpus.clone(), self.departures.clone());
        let backend = self.backend.as_ref().map(Backend::state);
        Status { keeper_pid, kernel, exit, refused: None, memory, cpus, departures, backend }
    }

    /// Records what the console has to say, all of it that is there now.
    fn read_console(&mut self) {
        let mut buffer = [0; 8192];
        while let Some(console) = &mut self.console {
            match console.read(&mut buffer) {
                Ok(0) => self.console = None,
                Ok(n) => {
                    self.log.record(&buffer[..n]);
                    if let Some(client) = self.clients.iter_mut().find(|client| client.is_console()) {
                        client.push_console(&buffer[..n]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    eprintln!("could not read the console: {error}");
                    self.console = None;
                }
            }
        }
    }

    fn write_console(&mut self) {
        let Some(console) = &self.console else { return self.console_input.clear() };
        match rustix::io::write(console, &self.console_input) {
            Ok(n) => drop(self.console_input.drain(..n)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.console_input.clear(),
        }
    }

    /// Reaps, and obeys a request to end. Returns the kernel's exit status if it has ended.
    fn read_signals(&mut self) -> Option<ExitStatus> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo != NixSignal::SIGCHLD as u32 && info.ssi_signo != NixSignal::SIGHUP as u32 {
                eprintln!(
                    "told to end by signal {} from process {}: killing the kernel",
                    info.ssi_signo, info.ssi_pid
                );
                self.kill();
            }
        }
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if status.stopped() || status.continued() {
                continue;
            }
            let status = ExitStatus::from_raw(status.as_raw());
            if pid == self.main {
                ended = Some(status);
            } else if let Some(backend) = &mut self.backend {
                backend.reaped(pid, status);
            }
        }
        ended
    }

    /// The kernel has ended: sweep its helpers, record how, tell those who wait.
    fn finish(&mut self, status: ExitStatus) -> io::Result<()> {
        let at_unix_ns = unix_ns();
        if !self.sweep() {
            eprintln!("some helper processes of the kernel survive SIGKILL");
        }
        self.read_console();
        let how = match (status.code(), fs::read_to_string(names::EXEC_ERROR)) {
            (Some(EXIT_NOT_EXECUTED), Ok(reason)) => ExitHow::NeverRan(reason),
            _ => ExitHow::classify(status.code(), status.signal(), self.log.tail()),
        };
        let how = match how {
            ExitHow::Code(code)
                if !self.record.kind.makes_processes() && code == i32::from(Job::EXIT_UNEXPLAINED) =>
            {
                ExitHow::Unexplained
            }
            how => how,
        };
        let how = match &mut self.account {
            Some(account) => account.how_it_ended(how),
            None => how,
        };
        let exit = Exit { how, at_unix_ns };
        let (path, line) = (Path::new(names::EXIT), super::wire::line(&exit));
        let recorded = match self.exit_room.take() {
            Some(room) => room.use_for(path, &line),
            None => write_atomically(path, &line),
        };
        // No new client may find us between the record and our end.
        remove_all(&[names::SOCKET.into()])?;
        let status = self.status(Some(exit));
        for client in &mut self.clients {
            if !client.is_console() {
                client.answer(&status, None);
            }
        }
        recorded
    }

    /// Kills whatever the kernel left behind, until there is nothing more to reap.
    fn sweep(&mut self) -> bool {
        let deadline = Instant::now() + SWEEP_MAX;
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        loop {
            let _ = kill_process_group(self.main, Signal::KILL);
            loop {
                match wait(WaitOptions::NOHANG) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return true, // no child is left, and as a subreaper we would have inherited any
                }
            }
            for process in descendants_of(own) {
                if let Some(pid) = Pid::from_raw(process.pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What poll(2) found.
struct Ready {
    listener: bool,
    console: bool,
    memory: bool,
    account: bool,
    backend: bool,
    clients: Vec<bool>,
}

/// The kernel's ends.
struct KernelSockets {
    doorbell: UnixStream,
    console: UnixStream,
    /// Of a machine: the monitor for events.
    events: Option<UnixStream>,
    /// Of a machine whose device has one: the connection to the back end.
    backend: Option<UnixStream>,
}

/// Starts the step that becomes the kernel.
fn start_kernel(sockets: KernelSockets) -> io::Result<i32> {
    let _doorbell = inherited_as(Job::DOORBELL_FD, &sockets.doorbell)?;
    let _events = sockets.events.map(|events| inherited_as(Job::EVENTS_FD, &events)).transpose()?;
    let _backend = sockets.backend.map(|backend| inherited_as(Job::BACKEND_FD, &backend)).transpose()?;
    let console = OwnedFd::from(sockets.console);
    let child = Command::new("/proc/self/exe")
        .args(["keeper", "--dir", ".", "--exec-for", &std::process::id().to_string()])
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// A copy of a socket with this number, which the kernel inherits: nothing else is started by this single-threaded process.
fn inherited_as(number: i32, socket: &UnixStream) -> io::Result<OwnedFd> {
    let inherited = fcntl_dupfd_cloexec(socket, number)?;
    if inherited.as_raw_fd() != number {
        return Err(io::Error::other(format!("descriptor {number} is taken")));
    }
    fcntl_setfd(&inherited, FdFlags::empty())?;
    Ok(inherited)
}

fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
