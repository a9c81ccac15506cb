//! The process that holds a buffer of the heap: it lives longer than a daemon, and as long as kernels may use that.
//!
//! A buffer is there as long as somebody has it open or mapped, and cannot be opened by a name. So one process has it as its standard input, and
//! hands it to whoever may connect to its socket: the next daemon.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, setsid};

use super::made::Holder;
use crate::keeper::{Process, remove_all, unix_address};

/// The socket, in the state folder.
const SOCKET: &str = "shared-memory.sock";
/// How long it may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The program: `tombolod pool-holder DIR`, with the memory as its standard input and a socket as its standard output. There it says by one byte that
/// it can be asked, and is told by one that what it holds is noted. If it is not, nobody knows of it, and it ends.
pub fn run(mut args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let Some(dir) = args.next().map(PathBuf::from) else { return ExitCode::from(2) };
    // It may lead a session already.
    let _ = setsid();
    let Ok(listener) = listen(&dir) else { return ExitCode::FAILURE };
    let mut word = [0];
    let daemon = rustix::stdio::stdout();
    if rustix::io::write(daemon, b"l") != Ok(1) || rustix::io::read(daemon, &mut word) != Ok(1) {
        return ExitCode::FAILURE;
    }
    loop {
        match listener.accept() {
            Ok((stream, _)) => drop(hand_over(&stream, rustix::stdio::stdin())),
            // Out of descriptors: it may pass.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Whoever may enter the folder and is our own user may connect.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    let path = dir.join(SOCKET);
    remove_all(std::slice::from_ref(&path))?;
    let (address, _folder) = unix_address(dir, SOCKET)?;
    let listener = UnixListener::bind(address)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn hand_over(stream: &UnixStream, memory: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [memory];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(stream, &[IoSlice::new(b"m")], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Has a process hold `memory`, which ends unless `note` is done. It can be asked by then.
pub(super) fn start(
    program: &Path,
    dir: &Path,
    memory: OwnedFd,
    note: impl FnOnce(Holder) -> io::Result<()>,
) -> io::Result<()> {
    let mut holder = Command::new(program);
    holder.arg("pool-holder").arg(dir);
    start_as(holder, memory, note)
}

fn start_as(
    mut holder: Command,
    memory: OwnedFd,
    note: impl FnOnce(Holder) -> io::Result<()>,
) -> io::Result<()> {
    let (mut word, theirs) = UnixStream::pair()?;
    word.set_read_timeout(Some(ANSWER_MAX))?;
    let mut child = holder
        .stdin(Stdio::from(memory))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()?;
    // It has our copy of its end of the socket, which would keep that from ending with it.
    drop(holder);
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let noted = listens(&mut word)
        .and_then(|()| Process::find(pid).ok_or_else(|| io::Error::other("it ended at once")))
        .and_then(|process| note(Holder { pid, start_ticks: process.start_ticks }))
        .and_then(|()| word.write_all(b"n"));
    // Without that byte it ends by itself, once this end is closed.
    drop(word);
    // It is our child as long as we live: it is reaped when it ends.
    let reaper = std::thread::Builder::new().name("pool-holder".into());
    let _ = reaper.spawn(move || child.wait());
    noted
}

/// Waits until it can be asked.
fn listens(word: &mut UnixStream) -> io::Result<()> {
    word.read_exact(&mut [0]).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("it ended before it could be asked"),
        io::ErrorKind::WouldBlock => io::Error::other(format!("it could not be asked after {ANSWER_MAX:?}")),
        _ => error,
    })
}

/// A descriptor of what it holds.
pub(super) fn ask(dir: &Path, holder: Holder) -> io::Result<OwnedFd> {
    if !lives(holder) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("process {} that held it has ended", holder.pid),
        ));
    }
    let (address, _folder) = unix_address(dir, SOCKET)?;
    let stream = UnixStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let credentials = rustix::net::sockopt::socket_peercred(&stream)?;
    if credentials.pid.as_raw_nonzero().get() != holder.pid {
        return Err(io::Error::other(format!("process {} answers for it", credentials.pid.as_raw_nonzero())));
    }
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    passed.ok_or_else(|| io::Error::other(format!("process {} did not pass it", holder.pid)))
}

/// Ends it, and waits until it is gone.
pub(super) fn end(dir: &Path, holder: Holder) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(holder.pid) else { return Ok(()) };
    // First opened, then looked at: so it is that process which is ended, whoever gets its number next.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    if lives(holder) {
        pidfd_send_signal(&process, Signal::KILL)?;
        let mut ended = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        rustix::event::poll(&mut ended, Some(&limit))?;
    }
    remove_all(&[dir.join(SOCKET)])
}

fn lives(holder: Holder) -> bool {
    Process::find(holder.pid)
        .is_some_and(|process| process.start_ticks == holder.start_ticks && !process.is_zombie())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn memory_is_handed_to_who_connects() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen(dir.path()).unwrap();
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(4096).unwrap();
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            hand_over(&stream, memory.as_fd()).unwrap();
        });
        let own = Process::find(i32::try_from(std::process::id()).unwrap()).unwrap();
        let holder = Holder { pid: own.pid, start_ticks: own.start_ticks };
        let got = ask(dir.path(), holder).unwrap();
        assert_eq!(std::fs::File::from(got).metadata().unwrap().len(), 4096);
        serving.join().unwrap();
    }

    #[test]
    fn process_that_got_the_number_of_one_that_ended_is_neither_asked_nor_ended() {
        let dir = tempfile::tempdir().unwrap();
        let own = Process::find(i32::try_from(std::process::id()).unwrap()).unwrap();
        let other = Holder { pid: own.pid, start_ticks: own.start_ticks + 1 };
        assert_eq!(ask(dir.path(), other).unwrap_err().kind(), io::ErrorKind::NotFound);
        end(dir.path(), other).unwrap();
    }

    #[test]
    fn holder_of_which_nothing_was_noted_ends_by_itself() {
        let mut started = None;
        // What the program does with its socket, in as few words.
        let failed = started_as("printf l; exec head -c 1 <&1 >/dev/null", |holder| {
            started = Some(holder);
            Err(io::Error::other("no room"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no room");
        let started = started.unwrap();
        while lives(started) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn holder_that_cannot_be_asked_is_not_noted() {
        let failed = started_as("exit 1", |_| panic!("it was noted"));
        assert_eq!(failed.unwrap_err().to_string(), "it ended before it could be asked");
    }

    /// Has a shell hold something that does `commands`.
    fn started_as(commands: &str, note: impl FnOnce(Holder) -> io::Result<()>) -> io::Result<()> {
        let mut shell = Command::new("sh");
        shell.args(["-c", commands]);
        start_as(shell, tempfile::tempfile().unwrap().into(), note)
    }
}
