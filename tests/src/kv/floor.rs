//! What the host itself costs: a cache line there and back between two cores, and a Unix socket between two processes.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use super::timing::{self, RoundTrips};

/// How long each is measured.
const DURATION: Duration = Duration::from_millis(500);

/// Bytes of a message over the socket: as many as travel in one cache line of the rings.
const MESSAGE_BYTES: usize = 56;

/// Two words, each in a line of its own (128 bytes: processors fetch lines in pairs).
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// Measures both.
///
/// # Errors
/// When the second process cannot be started.
pub fn measure() -> Result<Value> {
    let line = cache_line()?;
    let socket = unix_socket()?;
    Ok(json!({
        "floor_rtt_ns": line.p50_ns,
        "floor_rtt_ns_p99": line.p99_ns,
        "uds_rtt_ns_p50": socket.p50_ns,
        "uds_rtt_ns_p99": socket.p99_ns,
    }))
}

fn cache_line() -> Result<RoundTrips> {
    let (there, back, stop) = (Line::default(), Line::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            let mut next = 1;
            while !stop.load(Ordering::Relaxed) {
                if there.0.load(Ordering::Acquire) == next {
                    back.0.store(next, Ordering::Release);
                    next += 1;
                }
                std::hint::spin_loop();
            }
        });
        let leading = scope.spawn(|| {
            pin(0);
            let mut next = 0;
            let measured = timing::measure(DURATION, || {
                next += 1;
                there.0.store(next, Ordering::Release);
                while back.0.load(Ordering::Acquire) != next {
                    std::hint::spin_loop();
                }
                Ok(())
            });
            stop.store(true, Ordering::Relaxed);
            measured
        });
        leading.join().map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
    })
}

/// Puts this thread on the `index`-th processor it may use; on a machine with one processor nothing changes.
fn pin(index: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let Some(cpu) = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).nth(index) else { return };
    let mut one = CpuSet::new();
    one.set(cpu);
    // Only the numbers suffer if this is refused.
    let _ = sched_setaffinity(None, &one);
}

fn unix_socket() -> Result<RoundTrips> {
    let (mut near, far) = UnixStream::pair()?;
    let mut echo = Command::new("/proc/self/exe")
        .arg("floor-echo")
        .stdin(Stdio::from(OwnedFd::from(far)))
        .spawn()
        .context("could not start the second process")?;
    let mut message = [7; MESSAGE_BYTES];
    let measured = timing::measure(DURATION, || {
        near.write_all(&message)?;
        Ok(near.read_exact(&mut message)?)
    });
    drop(near);
    echo.wait()?;
    measured
}

/// The second process: sends back whatever comes on its stdin, which is a socket.
///
/// # Errors
/// When the socket breaks.
pub fn echo() -> Result<()> {
    let mut socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let mut message = [0; MESSAGE_BYTES];
    while socket.read_exact(&mut message).is_ok() {
        socket.write_all(&message)?;
    }
    Ok(())
}
