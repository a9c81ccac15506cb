//! The keeper's requests and answers: one line of JSON each way, over a Unix stream socket.

use serde::{Deserialize, Serialize};

use super::{CpuLease, Exit, KernelRecord};

/// What one can ask a keeper. One line of JSON, such as `{"op":"status"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// How things are.
    Status,
    /// A duplicate of the host's end of the doorbell: a descriptor rides with the answer.
    Doorbell,
    /// After the answer, this connection is the console: raw bytes both ways. Refused while another has it.
    Console,
    /// Kill the kernel and all its helpers. Answered when none is left.
    Kill,
    /// Answered when the kernel has ended.
    Wait,
    /// Make the kernel's memory so much. Answered when it is, or refused when it is back where it was. Refused where memory
    /// cannot be changed. If nobody waits for the answer any more, it goes on all the same.
    SetMemory {
        /// In bytes, a multiple of 4096.
        bytes: u64,
    },
    /// Remember that a CPU of the machine is lent to its kernel, or is no longer. Refused if another lease contradicts it.
    LeaseCpu(CpuLease),
    /// Remember that the machine was told to let a device go, or that it has. Nothing else tells: its kernel may do it much later.
    Departure {
        /// The bus that the device is on.
        bus: u8,
        /// Whether it may still go.
        pending: bool,
    },
}

/// Every answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The keeper's process id.
    pub keeper_pid: u32,
    /// The kernel's process.
    pub kernel: KernelRecord,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// Why the request was refused, if it was.
    pub refused: Option<String>,
    /// How much memory the kernel has, where that can be changed.
    #[serde(default)]
    pub memory: Option<MemoryState>,
    /// Which CPUs of the machine are or were lent to its kernel.
    #[serde(default)]
    pub cpus: Vec<CpuLease>,
    /// The buses of devices that the machine was told to let go and has not been seen to.
    #[serde(default)]
    pub departures: Vec<u8>,
    /// How the back end of the machine's device is, if that is a program of its own.
    #[serde(default)]
    pub backend: Option<BackendState>,
}

/// How the back end of a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendState {
    /// Its process. After its end the number may be another's.
    pub pid: u32,
    /// How it ended, for people, if it has while its kernel ran.
    pub ended: Option<String>,
}

/// How much memory a kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    /// What it has, in bytes. While `pending`: what it had before the piece that is under way. Unless `certain`: what it had before
    /// an answer of its kernel was lost.
    pub present_bytes: u64,
    /// The most it can have, in bytes.
    pub max_bytes: u64,
    /// Whether a change is under way.
    pub pending: bool,
    /// Whether it is known what it has. Once it is not, the next change begins with finding out.
    pub certain: bool,
}

/// The longest line either side accepts, in bytes: more than any [`Status`] needs.
pub(crate) const LINE_BYTES_MAX: usize = 8192;

/// One line, ready to send.
pub(crate) fn line(message: &impl Serialize) -> Vec<u8> {
    // These types hold numbers, strings and options only: they always have a JSON form.
    let mut line = serde_json::to_vec(message).unwrap_or_else(|_| b"{}".to_vec());
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_one_short_line() {
        assert_eq!(line(&Request::Kill), b"{\"op\":\"kill\"}\n");
        assert!(serde_json::from_str::<Request>("{\"op\":\"dance\"}").is_err());
    }
}
