//! What `/dev/mktty` does: terminals that were opened, and the instance each selected.
//!
//! The first write of a terminal is a decimal id. Bytes of an instance go to one of the terminals that selected it, the one that was opened
//! last (drivers/tty/mktty.c), into a ring of 16 KiB that drops what does not fit. There is no history, and no end when the instance stops.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::{PollNotifier, ReplyData};

use crate::model::Errno;

/// Bytes that a terminal holds for its reader.
const RING_BYTES: usize = 16 << 10;

/// All terminals.
#[derive(Default)]
pub(crate) struct Terminals {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By handle; handles ascend in the order of opening.
    open: BTreeMap<u64, Terminal>,
    last_handle: u64,
}

#[derive(Default)]
struct Terminal {
    instance: Option<u32>,
    ring: VecDeque<u8>,
    readers: VecDeque<Reader>,
    pollers: Vec<PollNotifier>,
}

struct Reader {
    reply: ReplyData,
    len: usize,
    pid: u32,
}

impl Terminals {
    pub(crate) fn open(&self) -> u64 {
        let mut state = self.lock();
        state.last_handle += 1;
        let handle = state.last_handle;
        state.open.insert(handle, Terminal::default());
        handle
    }

    pub(crate) fn close(&self, handle: u64) {
        self.lock().open.remove(&handle);
    }

    /// The instance a terminal selected.
    pub(crate) fn instance(&self, handle: u64) -> Option<u32> {
        self.lock().open.get(&handle)?.instance
    }

    /// Selects an instance for good.
    pub(crate) fn select(&self, handle: u64, id: u32) {
        if let Some(terminal) = self.lock().open.get_mut(&handle) {
            terminal.instance = Some(id);
        }
    }

    /// Answers a read: at once if there is something, if nothing can come, or if it is not to wait.
    pub(crate) fn read(&self, handle: u64, len: usize, pid: u32, waits: bool, reply: ReplyData) {
        let mut state = self.lock();
        let Some(terminal) = state.open.get_mut(&handle) else { return reply.error(errno(Errno::BADF)) };
        if terminal.instance.is_none() {
            reply.error(errno(Errno::NOTCONN));
        } else if !terminal.ring.is_empty() {
            reply.data(&take(&mut terminal.ring, len));
        } else if !waits {
            reply.error(errno(Errno::AGAIN));
        } else {
            terminal.readers.push_back(Reader { reply, len, pid });
        }
    }

    /// Whether there is something to read; if not, `notifier` is told when there is.
    pub(crate) fn is_readable(&self, handle: u64, notifier: Option<PollNotifier>) -> bool {
        let mut state = self.lock();
        let Some(terminal) = state.open.get_mut(&handle) else { return true };
        let readable = !terminal.ring.is_empty();
        if !readable && let Some(notifier) = notifier {
            terminal.pollers.retain(|known| known.handle().0 != notifier.handle().0);
            terminal.pollers.push(notifier);
        }
        readable
    }

    /// Bytes that an instance wrote: for the terminal of it that was opened last, or first.
    pub(crate) fn deliver(&self, id: u32, bytes: &[u8], to_latest: bool) {
        let pollers = {
            let mut state = self.lock();
            let mut terminals = state.open.values_mut().filter(|terminal| terminal.instance == Some(id));
            let hears = if to_latest { terminals.next_back() } else { terminals.next() };
            let Some(terminal) = hears else { return };
            let room = RING_BYTES - terminal.ring.len().min(RING_BYTES);
            terminal.ring.extend(bytes.iter().take(room));
            while let (false, Some(reader)) = (terminal.ring.is_empty(), terminal.readers.pop_front()) {
                reader.reply.data(&take(&mut terminal.ring, reader.len));
            }
            std::mem::take(&mut terminal.pollers)
        };
        for poller in pollers {
            // Whoever polled may be gone.
            let _ = poller.notify();
        }
    }

    /// Lets readers go that have a signal to deal with: FUSE keeps them in the kernel until they are answered.
    pub(crate) fn interrupt_signalled(&self) {
        let mut state = self.lock();
        for terminal in state.open.values_mut() {
            for reader in std::mem::take(&mut terminal.readers) {
                match has_signal(reader.pid) {
                    true => reader.reply.error(errno(Errno::INTR)),
                    false => terminal.readers.push_back(reader),
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(ring: &mut VecDeque<u8>, len: usize) -> Vec<u8> {
    let len = len.min(ring.len());
    ring.drain(..len).collect()
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

/// Whether a thread has a signal that it would deal with, or is gone.
fn has_signal(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let pending = mask("SigPnd:").unwrap_or(0) | mask("ShdPnd:").unwrap_or(0);
    pending & !mask("SigBlk:").unwrap_or(0) & !mask("SigIgn:").unwrap_or(0) != 0
}
