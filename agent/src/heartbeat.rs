//! The heartbeat: proof that this kernel's user space gets to run.
//!
//! A thread of its own, because it must go on beating while the runtime is busy and must stop when nothing runs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tombolo_transport::Incarnation;
use tombolo_transport::pool::{HeartbeatWriter, Phase};

/// The heartbeat. When the last clone is dropped, it stops.
#[derive(Clone, Debug)]
pub struct Heartbeat(Arc<Mutex<HeartbeatWriter>>);

impl Heartbeat {
    /// Starts to beat every `interval`, in phase [`Phase::Booting`].
    ///
    /// # Errors
    /// If no thread can be made.
    pub fn start(
        mut writer: HeartbeatWriter,
        incarnation: Incarnation,
        interval: Duration,
    ) -> io::Result<Self> {
        writer.set_incarnation(incarnation);
        writer.set_phase(Phase::Booting);
        writer.beat();
        let writer = Arc::new(Mutex::new(writer));
        let beating = Arc::downgrade(&writer);
        std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || beat(&beating, interval))?;
        Ok(Self(writer))
    }

    /// Says what the kernel is doing, with a beat at once.
    pub fn set_phase(&self, phase: Phase) {
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.set_phase(phase);
        writer.beat();
    }
}

/// Sleeps and beats, nothing else: under user-mode Linux each further system call, a look at the clock included, would cost
/// as much again.
fn beat(writer: &Weak<Mutex<HeartbeatWriter>>, interval: Duration) {
    loop {
        std::thread::sleep(interval);
        let Some(writer) = writer.upgrade() else { return };
        writer.lock().unwrap_or_else(PoisonError::into_inner).beat();
    }
}
