//! Asking the kernel itself whether it runs, when its user space does not say: the witness that tells a dead user space from
//! a hung kernel.

use tombolo_transport::Incarnation;

use super::Instance;
use super::message::Message;

/// From one question to the next while nobody knows what is wrong.
const ASK_EVERY_NS: u64 = 250_000_000;
/// The same once that is known: a hang may last for days.
const ASK_AGAIN_NS: u64 = 1_000_000_000;

/// When the kernel was asked, and what it said last.
#[derive(Debug, Default)]
pub(super) struct KernelProbe {
    asked_ns: Option<u64>,
    in_flight: bool,
    answers: Option<bool>,
}

impl KernelProbe {
    fn is_due(&self, now_ns: u64, is_known: bool) -> bool {
        let period_ns = if is_known { ASK_AGAIN_NS } else { ASK_EVERY_NS };
        !self.in_flight && self.asked_ns.is_none_or(|asked| now_ns.saturating_sub(asked) >= period_ns)
    }

    /// What it said, for people; empty if it was not asked.
    pub(super) fn last_word(&self) -> &'static str {
        match self.answers {
            Some(true) => ", the kernel itself answers",
            Some(false) => ", the kernel itself does not answer",
            None => "",
        }
    }
}

impl Instance {
    /// Asks the kernel itself, if something is suspicious and it is time to.
    pub(super) fn ask_kernel(&mut self, now_ns: u64) {
        let (Some(kernel), Some(incarnation)) = (&self.kernel, self.record.incarnation) else { return };
        if !self.monitor.wants_kernel_probe(now_ns) {
            self.kernel_probe.answers = None;
            return;
        }
        if !self.kernel_probe.is_due(now_ns, self.verdict.is_silent()) {
            return;
        }
        (self.kernel_probe.asked_ns, self.kernel_probe.in_flight) = (Some(now_ns), true);
        let (kernel, mailbox) = (kernel.clone(), self.mailbox.clone());
        let limit = self.monitor.kernel_answer_max();
        tokio::spawn(async move {
            let answers = kernel.answers(limit).await;
            mailbox.send(Message::KernelProbed { incarnation, answers }).await;
        });
    }

    pub(super) async fn kernel_probed(&mut self, incarnation: Incarnation, answers: Option<bool>) {
        if Some(incarnation) != self.record.incarnation || self.kernel.is_none() {
            return;
        }
        (self.kernel_probe.in_flight, self.kernel_probe.answers) = (false, answers);
        self.monitor.kernel_probed(answers);
        self.judge(self.now_ns()).await;
    }
}
