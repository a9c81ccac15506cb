//! How much memory a user-mode kernel has: taken from it and given back through its management console, and counted here.
//!
//! The console's `config mem=-N` takes pages off the kernel's free lists and drops them, `config mem=+N` puts such pages back
//! (`mem_config` in arch/um/drivers/mconsole_kern.c). It answers "done" even if it found fewer free pages than it was to
//! take, and nothing tells how many it has taken in all. So the count is kept by the one process that lives exactly as long as the kernel, which has
//! one request at a time under way, takes only what is free with a margin, and looks before and after.
//! Where a look leaves a doubt, everything is put back, which is exact, and the former amount is taken again.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with,
};

use super::wire::MemoryState;
use crate::meminfo;
use crate::spawner::mconsole;

/// Most that is taken or given by one request, in bytes: a kernel does it in some 10 ms, and runs nothing else meanwhile.
const PIECE_BYTES: u64 = 16 << 20;
/// What must be free beyond what is taken, in bytes.
const MARGIN_BYTES: u64 = 8 << 20;
/// With less than this free afterwards the kernel may have run out under way, in bytes.
const DOUBT_BYTES: u64 = 4 << 20;
/// Longest answer that is read, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// The memory of one kernel.
#[derive(Debug)]
pub(super) struct Memory {
    console: String,
    /// What it booted with, in bytes: the most it can have.
    max_bytes: u64,
    present_bytes: u64,
    /// An answer was lost: how much it has is not known until everything has been put back.
    is_doubtful: bool,
    work: Option<Work>,
}

/// A change that is under way.
#[derive(Debug)]
struct Work {
    /// Unnamed; the kernel answers there, however late.
    socket: OwnedFd,
    asked: Asked,
    /// What has come of the answer.
    text: Vec<u8>,
    target_bytes: u64,
    /// Where it began: gone back to if the target cannot be reached.
    from_bytes: u64,
    failure: Option<String>,
}

/// What the kernel is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// How much is free, before this much is taken.
    FreeBefore { piece: u64 },
    /// That this much was taken.
    Take { piece: u64 },
    /// How much is free, after this much was taken.
    FreeAfter { piece: u64 },
    /// That this much was given.
    Give { piece: u64 },
    /// That everything was given.
    GiveAll,
}

/// How a change ended.
pub(super) type Outcome = Result<(), String>;

impl Memory {
    /// Of a kernel that boots with `boot_bytes` and will have its management console there.
    pub(super) fn new(console: String, boot_bytes: u64) -> Self {
        Self { console, max_bytes: boot_bytes, present_bytes: boot_bytes, is_doubtful: false, work: None }
    }

    pub(super) fn state(&self) -> MemoryState {
        MemoryState {
            present_bytes: self.present_bytes,
            max_bytes: self.max_bytes,
            pending: self.work.is_some(),
            certain: !self.is_doubtful,
        }
    }

    /// What to wait on for the kernel's answer.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.work.as_ref().map(|work| &work.socket)
    }

    /// Begins to make it so much. `Some`: it has ended at once.
    pub(super) fn set(&mut self, bytes: u64) -> Option<Outcome> {
        if self.work.is_some() {
            return Some(Err("an earlier change of its memory has not ended yet".into()));
        }
        if bytes > self.max_bytes {
            let (wanted, max) = (bytes >> 20, self.max_bytes >> 20);
            return Some(Err(format!("it booted with room for {max} MiB and cannot have {wanted}")));
        }
        if bytes == self.present_bytes && !self.is_doubtful {
            return Some(Ok(()));
        }
        let socket = match open(&self.console) {
            Ok(socket) => socket,
            Err(error) => return Some(Err(format!("its management console cannot be reached: {error}"))),
        };
        self.work = Some(Work {
            socket,
            asked: Asked::GiveAll,
            text: Vec::new(),
            target_bytes: bytes,
            from_bytes: self.present_bytes,
            failure: None,
        });
        if self.is_doubtful { self.ask(Asked::GiveAll) } else { self.go_on() }
    }

    /// Takes the kernel's answer, which poll(2) said is there.
    pub(super) fn answered(&mut self) -> Option<Outcome> {
        let work = self.work.as_mut()?;
        let mut datagram = [0; mconsole::DATAGRAM_BYTES];
        let len = match recv(&work.socket, datagram.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((len, _)) => len,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return None,
            Err(error) => return self.lose(format!("its management console failed: {error}")),
        };
        let part = match mconsole::decode(datagram.get(..len).unwrap_or_default()) {
            Ok(part) => part,
            Err(error) => return self.lose(error.to_string()),
        };
        work.text.extend_from_slice(part.text);
        if work.text.len() > TEXT_BYTES_MAX {
            return self.lose("its management console does not come to an end".into());
        }
        if part.more {
            return None;
        }
        if part.failed {
            let said = String::from_utf8_lossy(&work.text).trim().to_owned();
            return self.lose(format!("its kernel refused: {said}"));
        }
        match work.asked {
            Asked::FreeBefore { piece } => match free_bytes(&work.text) {
                None => return self.go_back("its kernel does not say how much memory is free".into()),
                Some(free) if free < piece + MARGIN_BYTES => {
                    let missing = (piece + MARGIN_BYTES - free).div_ceil(1 << 20);
                    return self.go_back(format!(
                        "its kernel has {} MiB free, and {} MiB more are needed to go on",
                        free >> 20,
                        missing
                    ));
                }
                Some(_) => return self.ask(Asked::Take { piece }),
            },
            Asked::Take { piece } => return self.ask(Asked::FreeAfter { piece }),
            Asked::FreeAfter { piece } => match free_bytes(&work.text) {
                Some(free) if free >= DOUBT_BYTES => self.present_bytes -= piece,
                _ => {
                    let reason = "its programs took the memory that was to be taken away";
                    work.failure.get_or_insert_with(|| reason.to_owned());
                    return self.ask(Asked::GiveAll);
                }
            },
            Asked::Give { piece } => self.present_bytes += piece,
            Asked::GiveAll => {
                self.present_bytes = self.max_bytes;
                self.is_doubtful = false;
                if work.failure.is_some() {
                    work.target_bytes = work.from_bytes;
                }
            }
        }
        self.go_on()
    }

    /// Asks for the next piece, if there is one.
    fn go_on(&mut self) -> Option<Outcome> {
        let present = self.present_bytes;
        let target = self.work.as_ref()?.target_bytes;
        if target == present {
            return self.end(None);
        }
        let piece = target.abs_diff(present).min(PIECE_BYTES);
        self.ask(if target < present { Asked::FreeBefore { piece } } else { Asked::Give { piece } })
    }

    /// The target cannot be reached: what was taken so far is given back.
    fn go_back(&mut self, reason: String) -> Option<Outcome> {
        let work = self.work.as_mut()?;
        if work.failure.is_some() {
            // On the way back already: it keeps what it has.
            return self.end(Some(reason));
        }
        work.failure = Some(reason);
        work.target_bytes = work.from_bytes;
        self.go_on()
    }

    /// An answer cannot be had, or says that something went wrong half way.
    fn lose(&mut self, reason: String) -> Option<Outcome> {
        let changes = !matches!(self.work.as_ref()?.asked, Asked::FreeBefore { .. });
        self.is_doubtful |= changes;
        self.end(Some(reason))
    }

    fn ask(&mut self, asked: Asked) -> Option<Outcome> {
        let work = self.work.as_mut()?;
        work.asked = asked;
        work.text.clear();
        let command = match asked {
            Asked::FreeBefore { .. } | Asked::FreeAfter { .. } => "proc meminfo".to_owned(),
            Asked::Take { piece } => format!("config mem=-{}K", piece >> 10),
            Asked::Give { piece } => format!("config mem=+{}K", piece >> 10),
            Asked::GiveAll => format!("config mem=+{}K", self.max_bytes >> 10),
        };
        let sent = mconsole::encode(&command)
            .and_then(|request| Ok(send(&work.socket, &request, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?));
        match sent {
            Ok(_) => None,
            Err(error) => {
                // What was asked before may have taken something that is not counted yet.
                self.is_doubtful |= matches!(asked, Asked::FreeAfter { .. } | Asked::GiveAll);
                self.end(Some(format!("its management console does not take orders: {error}")))
            }
        }
    }

    fn end(&mut self, failed: Option<String>) -> Option<Outcome> {
        let work = self.work.take()?;
        Some(match work.failure.or(failed) {
            Some(reason) => Err(reason),
            None => Ok(()),
        })
    }
}

fn open(console: &str) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    // An address of the system's own choosing, that goes with the socket.
    bind(&socket, &SocketAddrUnix::new_unnamed())?;
    connect(&socket, &SocketAddrUnix::new(console)?)?;
    Ok(socket)
}

fn free_bytes(meminfo: &[u8]) -> Option<u64> {
    meminfo::bytes_of("MemFree", &String::from_utf8_lossy(meminfo))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Stands in for a kernel's management console, and for what its kernel does. The real one is met in the spawner suite.
    struct Console {
        socket: UnixDatagram,
        free: u64,
        taken: u64,
        /// Programs take so much between the look and the order.
        grabbed: u64,
        /// It answers rubbish from now on.
        is_broken: bool,
        _dir: tempfile::TempDir,
    }

    /// A kernel that booted with 128 MiB, of which 100 are free.
    fn kernel() -> (Memory, Console) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mconsole");
        let socket = UnixDatagram::bind(&path).unwrap();
        let memory = Memory::new(path.display().to_string(), 128 * MIB);
        (memory, Console { socket, free: 100 * MIB, taken: 0, grabbed: 0, is_broken: false, _dir: dir })
    }

    impl Console {
        /// Does what it is told, as far as that goes, and says that it is done.
        fn answer(&mut self) {
            let mut request = [0; 12 + 512];
            let (len, from) = self.socket.recv_from(&mut request).unwrap();
            let text = String::from_utf8_lossy(&request[12..len]).trim_end_matches('\0').to_owned();
            let amount = || {
                text.get(12..).and_then(|kib| kib.strip_suffix('K')?.parse::<u64>().ok()).unwrap_or(0) << 10
            };
            if text == "proc meminfo" {
                let meminfo = format!("MemTotal: 9 kB\nMemFree:  {} kB\n", self.free >> 10);
                let (first, rest) = meminfo.split_at(20);
                self.say(&from, first, true);
                self.say(&from, rest, false);
                self.free -= self.grabbed.min(self.free);
                return;
            }
            if text.starts_with("config mem=-") {
                let taken = amount().min(self.free);
                (self.free, self.taken) = (self.free - taken, self.taken + taken);
            } else if text.starts_with("config mem=+") {
                let given = amount().min(self.taken);
                (self.free, self.taken) = (self.free + given, self.taken - given);
            }
            self.say(&from, "", false);
        }

        fn say(&self, to: &SocketAddr, text: &str, more: bool) {
            let mut answer = [0, u32::from(more), text.len() as u32].map(u32::to_ne_bytes).concat();
            answer.extend_from_slice(text.as_bytes());
            answer.truncate(if self.is_broken { 3 } else { answer.len() });
            self.socket.send_to_addr(&answer, to).unwrap();
        }
    }

    /// Makes it so much, to the end.
    fn set(memory: &mut Memory, console: &mut Console, bytes: u64) -> Outcome {
        let mut outcome = memory.set(bytes);
        while outcome.is_none() {
            console.answer();
            outcome = memory.answered().or_else(|| memory.answered());
        }
        outcome.unwrap()
    }

    #[test]
    fn memory_is_taken_and_given_in_pieces_and_counted() {
        let (mut memory, mut console) = kernel();
        for present in [80, 81, 128, 60] {
            set(&mut memory, &mut console, present * MIB).unwrap();
            assert_eq!((memory.state().present_bytes, console.taken), (present * MIB, (128 - present) * MIB));
        }
        assert!(memory.state().certain && !memory.state().pending);
        assert!(set(&mut memory, &mut console, 129 * MIB).unwrap_err().contains("128 MiB"));
    }

    #[test]
    fn what_cannot_be_taken_whole_is_given_back() {
        let (mut memory, mut console) = kernel();
        set(&mut memory, &mut console, 120 * MIB).unwrap();
        let reason = set(&mut memory, &mut console, 20 * MIB).unwrap_err();
        assert!(reason.contains("MiB free"), "{reason}");
        assert_eq!((memory.state().present_bytes, console.taken), (120 * MIB, 8 * MIB));
    }

    #[test]
    fn a_kernel_that_took_less_than_it_was_told_is_counted_right_in_the_end() {
        let (mut memory, mut console) = kernel();
        set(&mut memory, &mut console, 120 * MIB).unwrap();
        console.grabbed = 80 * MIB;
        let reason = set(&mut memory, &mut console, 100 * MIB).unwrap_err();
        assert!(reason.contains("programs took"), "{reason}");
        assert_eq!(console.taken, 128 * MIB - memory.state().present_bytes);
    }

    #[test]
    fn a_lost_answer_leaves_it_uncertain_until_the_next_change() {
        let (mut memory, mut console) = kernel();
        assert!(memory.set(112 * MIB).is_none());
        console.answer();
        assert!(memory.answered().is_none() && memory.answered().is_none());
        console.is_broken = true;
        console.answer();
        assert!(memory.answered().unwrap().is_err());
        assert!(!memory.state().certain);
        console.is_broken = false;
        set(&mut memory, &mut console, 96 * MIB).unwrap();
        assert!(memory.state().certain);
        assert_eq!((memory.state().present_bytes, console.taken), (96 * MIB, 32 * MIB));
    }
}
