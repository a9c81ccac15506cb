//! What `--json` prints last: one object.

use serde::Serialize;

use super::progress::Step;

/// The outcome of the demo. Durations carry their unit in the name; what was not reached is null.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Version of this object's shape.
    pub(super) schema_version: u32,
    /// `uml`, `qemu` (real kernels) or `process` (not kernels).
    pub(super) spawner: String,
    /// Whether the instances were kernels of their own.
    pub(super) spawner_makes_kernels: bool,
    /// How many instances ran.
    pub(super) kernels: u32,
    /// Each of them.
    pub(super) instances: Vec<Instance>,
    /// Different boot ids among the instances and the host.
    pub(super) distinct_boot_ids: usize,
    /// Round trip of one cache line between two threads of the host, busy-polled: what memory itself costs.
    pub(super) floor_rtt_ns: Option<u64>,
    /// Round trip of a 56-byte message between the applications in `web` and `db`, busy-polled.
    pub(super) message_rtt_ns_p50: Option<u64>,
    /// Round trip of a typed call between them, busy-polled.
    pub(super) app_rtt_ns_p50: Option<u64>,
    /// The same, 99th percentile.
    pub(super) app_rtt_ns_p99: Option<u64>,
    /// The same, on Tokio.
    pub(super) tokio_rtt_ns_p50: Option<u64>,
    /// Checked calls per second, many at a time on one connection, on Tokio.
    pub(super) rpc_calls_per_s: Option<f64>,
    /// Bytes from `db` to `web` through one stream, 10^9 per second.
    pub(super) stream_gb_per_s: Option<f64>,
    /// Round trip of 56 bytes over a Unix socket between two processes of the host.
    pub(super) uds_rtt_ns_p50: Option<u64>,
    /// What daemon, keepers and both kernels take of one processor while nobody wants anything of them, in percent.
    pub(super) idle_cpu_percent: Option<f64>,
    /// From the SIGKILL of `db` to the typed error in the client.
    pub(super) client_notice_ms: Option<f64>,
    /// How that was measured.
    pub(super) client_notice_how: &'static str,
    /// What the client was told.
    pub(super) client_error: Option<String>,
    /// From the SIGKILL of `db` to the control plane's record of its death.
    pub(super) control_notice_ms: Option<f64>,
    /// How that was measured.
    pub(super) control_notice_how: &'static str,
    /// From the SIGKILL until the client's calls succeeded again.
    pub(super) traffic_resumed_ms: Option<f64>,
    /// From the freeze of `web` to its report as hung.
    pub(super) hung_notice_ms: Option<f64>,
    /// The last line of the dead kernel's black box.
    pub(super) last_words: Option<String>,
    /// Whether the restart policy booted `db` again, in a new incarnation, and traffic resumed.
    pub(super) restarted: bool,
    /// Whether a new daemon adopted the running kernels, with unchanged boot ids.
    pub(super) adopted: bool,
    /// What the story of hand-overs showed.
    #[serde(flatten)]
    pub(super) handover: Option<Handover>,
    /// Processes, sockets and shared-memory files left at the end.
    pub(super) leftovers: Option<usize>,
    /// Every step with the time it took.
    pub(super) steps: Vec<Step>,
    /// What went wrong.
    pub(super) error: Option<String>,
    /// Whether every step held.
    pub(super) ok: bool,
}

/// The outcome of the story of hand-overs. Units are granules of memory (2 MiB), CPUs and devices; medians are null where nothing
/// of the kind was moved, as the spawner cannot.
#[derive(Debug, Default, Serialize)]
pub(super) struct Handover {
    /// Hand-overs that were asked for.
    pub(super) moves: u32,
    /// How often the daemon or a kernel was killed in the middle of one.
    pub(super) crashes_injected: u32,
    /// Units that neither the host, the pool nor a kernel has, at the end of all.
    pub(super) units_lost: u64,
    /// Units that kernels have, as their machines tell, beyond what the ledger gives them.
    pub(super) units_doubly_owned: u64,
    /// Units in quarantine.
    pub(super) quarantined: usize,
    /// Memory in MiB that each move was about.
    pub(super) memory_move_mib: u64,
    /// From the command to its end.
    pub(super) memory_move_ms_p50: Option<f64>,
    /// The same memory taken from one kernel and given back by hand, without asking anybody.
    pub(super) raw_memory_ms_p50: Option<f64>,
    /// The same of one CPU.
    pub(super) cpu_move_ms_p50: Option<f64>,
    /// A CPU taken offline and online again by hand, in one kernel.
    pub(super) raw_cpu_ms_p50: Option<f64>,
    /// The same of an NVMe disk.
    pub(super) device_move_ms_p50: Option<f64>,
    /// The disk unplugged from one machine and plugged in again by hand, until its driver has it.
    pub(super) raw_device_ms_p50: Option<f64>,
    /// From the start of a new daemon to the end of the move that its predecessor died in.
    pub(super) recovery_ms_p50: Option<f64>,
    /// Calls between the two kernels that failed while things moved.
    pub(super) calls_failed: usize,
}

/// What an instance said about itself, from inside.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) uname: String,
    pub(super) boot_id: String,
    pub(super) memory_kib: u64,
}
