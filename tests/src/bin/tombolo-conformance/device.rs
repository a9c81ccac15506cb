//! The hybrid backend against a vsock device that is not ours, and AF_VSOCK from the host to a real kernel and back.
//!
//! ```text
//! suite ── Unix socket, CONNECT ──▶ vhost-device-vsock ◀── vhost-user ── relay ◀── vhost-user ── kernel: peer on AF_VSOCK
//! ```
//!
//! A machine's kernel needs no relay: its emulator and the device understand each other.
//!
//! What this device gets wrong cannot be put to the test through it: [`FAULTS`] names each such behaviour and the fault. The hybrid
//! backend and AF_VSOCK each have all of them without it in between.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::process::{Child, Command};
use tombolo_transport::conformance::Direction::{self, Backward, Forward};
use tombolo_transport::conformance::backends::Between;
use tombolo_transport::conformance::{Backend, Failure, Limits, Pair};
use tombolo_transport::hybrid::HybridConfig;
use tombolo_transport::{Cid, Endpoint};

use crate::relay;

const GUEST: Cid = Cid(3);
/// AF_VSOCK over virtio, in load order.
const MODULES: [&str; 3] = ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
/// The virtio device id of a socket device.
const VIRTIO_ID_VSOCK: u32 = 19;
/// How long the device may take to listen.
const DEVICE_MAX: Duration = Duration::from_secs(20);

const NO_REFUSAL: &str = "the device does not tell the guest that the host refused";
const BLOCKS: &str = "the device waits for a host whose backlog is full, and serves nobody meanwhile";
const HANG_UP: &str = "the device stops serving after a caller hung up just as it was answered";
const GUEST_ENDS: &str = "the device does not tell the host that the guest will send no more";
const HOST_GONE: &str = "the device does not tell a guest that the host has gone with data unread";
const HALF_CLOSE: &str = "the device takes the end of one direction for the end of both";

/// What vhost-device-vsock 0.3.0 gets wrong, with a kernel of either kind. Forward: the host calls. [`HANG_UP`] is a race, which the
/// device loses now and then.
const FAULTS: &[(&str, &[Direction], &str)] = &[
    ("port_without_listener_refuses", &[Backward], NO_REFUSAL),
    ("closed_listener_refuses_later_callers", &[Backward], NO_REFUSAL),
    ("callers_waiting_at_a_closed_listener_are_ended", &[Backward], NO_REFUSAL),
    ("full_backlog_refuses_and_recovers", &[Backward], BLOCKS),
    ("connect_answers_within_its_deadline", &[Forward, Backward], HANG_UP),
    ("dropped_connect_leaves_the_listener_sound", &[Forward, Backward], HANG_UP),
    ("dropped_accept_loses_no_caller", &[Forward, Backward], HANG_UP),
    ("dropped_peer_ends_a_writer", &[Backward], HOST_GONE),
    ("unread_data_dropped_with_the_peer_is_no_silence", &[Backward], HOST_GONE),
    ("dropped_message_peer_ends_a_sender", &[Backward], HOST_GONE),
    ("writer_of_a_peer_that_never_reads_waits_then_resumes", &[Backward], GUEST_ENDS),
    ("dropped_read_loses_nothing", &[Backward], GUEST_ENDS),
    ("shutdown_ends_with_none_after_the_last_message", &[Backward], GUEST_ENDS),
    ("sender_of_a_peer_that_never_receives_waits_then_resumes", &[Backward], GUEST_ENDS),
    ("dropped_send_is_whole_or_nothing", &[Backward], GUEST_ENDS),
    ("many_message_connections_keep_their_messages_apart", &[Backward], GUEST_ENDS),
    ("many_connections_keep_their_bytes_apart", &[Forward], HALF_CLOSE),
    ("short_connections_in_quick_succession", &[Forward, Backward], HALF_CLOSE),
];

/// A [`Between`] with the device in between.
struct ThroughDevice(Between);

impl Backend for ThroughDevice {
    async fn pair(&self) -> Result<Pair, Failure> {
        self.0.pair().await
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn skips(&self, behaviour: &str, direction: Direction) -> Option<&'static str> {
        let fault =
            FAULTS.iter().find(|(name, directions, _)| *name == behaviour && directions.contains(&direction));
        fault.map(|(.., reason)| *reason).or_else(|| self.0.skips(behaviour, direction))
    }
}

pub(crate) async fn run(program: &Path, filter: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [back, front, hybrid] = ["back.sock", "front.sock", "vm.vsock"].map(|name| dir.path().join(name));

    let vm = format!("guest-cid={GUEST},socket={},uds-path={}", back.display(), hybrid.display());
    let mut device = Command::new(program);
    let _device = spawn(device.arg("--vm").arg(vm))?;
    wait_for(&back).await?;
    let relaying = relay::start(&front, &back)?;

    let mut boot = boot()?;
    for module in MODULES {
        boot.args(["--module", module]);
    }
    boot.arg("--arg").arg(format!("virtio_uml.device={}:{VIRTIO_ID_VSOCK}", front.display()));
    let result = drive(boot_peer(&mut boot)?, &hybrid, filter).await;
    relaying.join().map_err(|_| anyhow::anyhow!("the relay panicked"))?.context("relaying vhost-user")?;
    result
}

/// The same in an emulated machine, whose keeper runs the device.
pub(crate) async fn run_with_machine(program: &Path, filter: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("m");
    let mut boot = boot()?;
    boot.arg("--machine").arg(std::path::absolute(program)?).arg("--dir").arg(&folder);
    drive(boot_peer(&mut boot)?, &folder.join("vsock.sock"), filter).await
}

/// Boots a kernel whose only program is this one.
fn boot() -> Result<Command> {
    let this = std::env::current_exe()?;
    let mut boot = Command::new(this.with_file_name("tombolo-boot"));
    boot.arg("--init").arg(&this);
    Ok(boot)
}

fn boot_peer(boot: &mut Command) -> Result<Child> {
    spawn(boot.args(["--arg", "--", "--arg", "peer", "--arg", "vsock"]))
}

/// Runs the suite against the peer in a kernel that boots, and ends that.
async fn drive(mut kernel: Child, hybrid: &Path, filter: &str) -> Result<()> {
    let host = Endpoint::hybrid(HybridConfig::host(hybrid, GUEST))?;
    let result = tokio::select! {
        ready = super::wait_for_peer(&host, GUEST) => ready,
        ended = kernel.wait() => Err(anyhow::anyhow!("the kernel ended ({})", ended?)),
    };
    let result = match result {
        Ok(()) => super::suite(ThroughDevice(Between::hybrid_host(hybrid, GUEST)), filter).await,
        Err(error) => Err(error),
    };
    // It ends its kernel.
    if let Some(pid) = kernel.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        tokio::time::timeout(DEVICE_MAX, kernel.wait()).await.context("the kernel does not end")??;
    }
    result
}

/// It ends with this program, whose output it shares.
fn spawn(command: &mut Command) -> Result<Child> {
    let name = command.as_std().get_program().to_owned();
    let child = command.stdin(Stdio::null()).stdout(std::io::stderr()).kill_on_drop(true).spawn();
    child.with_context(|| format!("could not run {}", name.display()))
}

async fn wait_for(socket: &Path) -> Result<()> {
    let start = Instant::now();
    while !socket.exists() {
        ensure!(start.elapsed() < DEVICE_MAX, "{} does not appear", socket.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
