//! Time, and what happens to the spawned kernels.

use super::Errno;
use super::guest::{Message, MessageOp};
use super::instance::State;
use super::machine::{Effect, Machine};
use super::quirk::Quirk;

impl Machine {
    /// When [`advance`](Self::advance) has something to do next.
    pub fn poll_timeout(&self) -> Option<u64> {
        let guests = self.instances.values().filter_map(|instance| instance.guest.as_ref()?.due_ns());
        let item = self.work.iter().filter_map(|work| Some(work.waiting.as_ref()?.deadline_ns));
        let halts = self.halts.iter().map(|halt| halt.deadline_ns);
        guests.chain(item).chain(halts).filter(|due_ns| *due_ns != u64::MAX).min()
    }

    /// Does what is due by now, in the order it is due.
    pub fn advance(&mut self, now_ns: u64) {
        while let Some(due_ns) = self.poll_timeout().filter(|due_ns| *due_ns <= now_ns) {
            let due_guest = self.instances.values_mut().find_map(|instance| {
                let guest = instance.guest.as_mut().filter(|guest| guest.due_ns() == Some(due_ns))?;
                let (_, message) = guest.inbox.pop_front()?;
                Some((instance.id, message))
            });
            match due_guest {
                Some((id, message)) => self.guest_acts(id, message, due_ns),
                None => self.time_out(due_ns),
            }
        }
    }

    fn guest_acts(&mut self, id: u32, message: Message, now_ns: u64) {
        if message.op == MessageOp::Shutdown {
            self.log(format!("instance {id}: halted"));
            self.effect(Effect::Kill { id });
            return self.stopped(id, State::Loaded);
        }
        let quirks = self.config.quirks.clone();
        let Some(guest) = self.instance_by_id_mut(id).and_then(|instance| instance.guest.as_mut()) else {
            return;
        };
        let outcome = guest.carry_out(&message, &quirks);
        if outcome.is_ok() {
            let resource = message.resource.clone();
            let added = matches!(message.op, MessageOp::CpuAdd | MessageOp::MemoryAdd | MessageOp::DeviceAdd);
            self.effect(match added {
                true => Effect::HotAdd { id, resource },
                false => Effect::HotRemove { id, resource },
            });
        }
        let is_lost = match message.op {
            MessageOp::CpuAdd => self.has(Quirk::CpuAddAckLost),
            MessageOp::MemoryAdd | MessageOp::MemoryRemove => self.has(Quirk::MemoryAckLost),
            MessageOp::DeviceAdd | MessageOp::DeviceRemove => self.has(Quirk::DeviceAckLost),
            _ => false,
        };
        if is_lost {
            return self.log(format!("instance {id}: the acknowledgement of {message:?} is lost"));
        }
        self.acked(id, &message, outcome, now_ns);
    }

    /// An acknowledgement reached the host. The shell has no need to call this: guests are modelled.
    pub fn acked(&mut self, id: u32, message: &Message, outcome: Result<(), Errno>, now_ns: u64) {
        let any = self.has(Quirk::LateAckCompletesNext);
        let waiting = self.work.as_mut().and_then(|work| {
            work.waiting.take_if(|waiting| {
                let same = any || waiting.message.sequence == message.sequence;
                waiting.id == id && same && waiting.message.is_like(message)
            })
        });
        let Some(waiting) = waiting else {
            return self.log(format!("instance {id}: nobody waits for the acknowledgement of {message:?}"));
        };
        match self.settle(&waiting.step, outcome) {
            Ok(()) => self.ran(waiting.step),
            Err(errno) => self.failed(&waiting.step, errno),
        }
        self.run(now_ns);
    }

    fn time_out(&mut self, now_ns: u64) {
        let item =
            self.work.as_mut().and_then(|work| work.waiting.take_if(|item| item.deadline_ns <= now_ns));
        if let Some(waiting) = item {
            let outcome = self.settle(&waiting.step, Err(Errno::TIMEDOUT));
            self.failed(&waiting.step, outcome.err().unwrap_or(Errno::TIMEDOUT));
            return self.run(now_ns);
        }
        let (over, wait): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.halts).into_iter().partition(|halt| halt.deadline_ns <= now_ns);
        self.halts = wait;
        for halt in over {
            // The instance stays active: the message is still on its way.
            self.effect(Effect::Completed { ticket: halt.ticket, result: Err(Errno::TIMEDOUT) });
        }
    }

    /// A kernel ended by itself: power off, halt and restart are all the same.
    pub fn halted(&mut self, id: u32) {
        if self.instance_by_id(id).is_some_and(|instance| instance.guest.is_some()) {
            self.log(format!("instance {id}: halted"));
            self.stopped(id, State::Loaded);
        }
    }

    /// A kernel panicked: it sends the same notice.
    pub fn panicked(&mut self, id: u32) {
        if self.instance_by_id(id).is_some_and(|instance| instance.guest.is_some()) {
            let alike = self.has(Quirk::PanicLooksLikeHalt);
            self.log(format!("instance {id}: halted"));
            self.stopped(id, if alike { State::Loaded } else { State::Failed });
        }
    }

    /// A kernel hangs: it reads no more messages.
    pub fn frozen(&mut self, id: u32) {
        let stays = self.has(Quirk::HangStaysActive);
        if let Some(instance) = self.instance_by_id_mut(id)
            && let Some(guest) = &mut instance.guest
        {
            guest.is_frozen = true;
            if !stays {
                instance.state = State::Failed;
            }
        }
    }

    /// Pages of what was added to the memory of a kernel are pinned, or no longer.
    pub fn pinned(&mut self, id: u32, is_pinned: bool) {
        if let Some(guest) = self.instance_by_id_mut(id).and_then(|instance| instance.guest.as_mut()) {
            guest.is_pinned = is_pinned;
        }
    }

    /// A kernel that hung goes on: what it was asked meanwhile it does now.
    pub fn thawed(&mut self, id: u32, now_ns: u64) {
        if let Some(guest) = self.instance_by_id_mut(id).and_then(|instance| instance.guest.as_mut()) {
            guest.is_frozen = false;
        }
        self.advance(now_ns);
    }
}
