//! How a task waits for a ring: first by looking again at once, then by asking again and again, letting other tasks run in
//! between, then asleep.
//!
//! Looking costs some nanoseconds, so it is worth trying about as long as letting others run would take. Asking costs half
//! a microsecond a time and no system call; sleeping costs a bell and a wake-up, tens of microseconds. So the
//! [budget](super::budget) for asking is about the price of a wake-up. It adapts: a connection on which asking keeps failing stops
//! asking, and starts again when it is woken soon after it fell asleep.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use crate::mem::ticks;
use crate::ring::Arm;
use crate::shm::conn::{Conn, Direction};

/// How often to look before letting others run: under a microsecond in all.
const LOOKS: u32 = 32;

/// Whoever is woken within so many budgets has woken from a nap that asking might have saved: the bell alone takes several
/// wake-ups (of the peer's broker, of ours, of this process), more on a busy machine. Then asking is worth at most 1/20 of a CPU.
const QUICK_WAKE: u64 = 20;

/// One direction's waiting. Times are in [`ticks`].
#[derive(Debug)]
pub(super) struct Waiter {
    looks_left: u32,
    direction: Direction,
    budget: u64,
    state: WaitState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitState {
    Awake,
    Asking { since: u64 },
    Parked { since: u64 },
}

impl Waiter {
    pub(super) fn new(conn: &Conn, direction: Direction) -> Self {
        Self { looks_left: LOOKS, direction, budget: conn.budget_ticks(), state: WaitState::Awake }
    }

    /// Call when there is nothing to do. `Ready`: try again at once. `Pending`: the task will be woken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, conn: &Conn, arm: impl FnOnce() -> Arm) -> Poll<()> {
        if !matches!(self.state, WaitState::Parked { .. }) && self.budget != 0 {
            if self.looks_left != 0 {
                self.looks_left -= 1;
                std::hint::spin_loop();
                return Poll::Ready(());
            }
            let now = ticks();
            let since = match self.state {
                WaitState::Asking { since } => since,
                _ => now,
            };
            if now.saturating_sub(since) < self.budget {
                self.state = WaitState::Asking { since };
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        // The waker before the ticket: whoever sees the ticket may ring at once.
        conn.waker(self.direction).register(cx.waker());
        if !matches!(self.state, WaitState::Parked { .. }) {
            conn.parked(self.direction).store(true, Ordering::SeqCst);
            conn.client.parked();
            self.state = WaitState::Parked { since: ticks() };
        }
        match arm() {
            Arm::Sleep => Poll::Pending,
            Arm::Ready => {
                self.done(conn);
                Poll::Ready(())
            }
        }
    }

    /// Call when something was done, or failed for good.
    #[inline]
    pub(super) fn done(&mut self, conn: &Conn) {
        self.looks_left = LOOKS;
        if self.state != WaitState::Awake {
            self.awake(conn);
        }
    }

    #[cold]
    fn awake(&mut self, conn: &Conn) {
        let budget_max = conn.budget_ticks();
        match self.state {
            WaitState::Awake => {}
            WaitState::Asking { .. } => self.budget = budget_max,
            WaitState::Parked { since } => {
                conn.parked(self.direction).store(false, Ordering::SeqCst);
                conn.client.unparked();
                let slept = ticks().saturating_sub(since);
                self.budget = if slept < QUICK_WAKE * budget_max {
                    budget_max
                } else if self.budget > budget_max / 8 {
                    self.budget / 2
                } else {
                    0
                };
            }
        }
        self.state = WaitState::Awake;
    }
}
