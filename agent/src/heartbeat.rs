//! The heartbeat: proof that this kernel's user space gets to run.
//!
//! A thread of its own, because it must go on beating while the runtime is busy and must stop when nothing runs.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use tombolo_transport::Incarnation;
use tombolo_transport::pool::{HeartbeatWriter, Phase};

/// Speaks to the heartbeat thread. Dropped, the thread ends.
#[derive(Clone, Debug)]
pub struct Heartbeat(mpsc::Sender<Phase>);

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
        let (sender, phases) = mpsc::channel();
        writer.set_incarnation(incarnation);
        writer.set_phase(Phase::Booting);
        writer.beat();
        std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || beat(writer, &phases, interval))?;
        Ok(Self(sender))
    }

    /// Says what the kernel is doing, with a beat at once.
    pub fn set_phase(&self, phase: Phase) {
        // The thread lives as long as this sender.
        let _ = self.0.send(phase);
    }
}

fn beat(mut writer: HeartbeatWriter, phases: &mpsc::Receiver<Phase>, interval: Duration) {
    loop {
        match phases.recv_timeout(interval) {
            Ok(phase) => writer.set_phase(phase),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        writer.beat();
    }
}
