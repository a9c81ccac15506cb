//! How a task waits for a ring: first by asking again and again, letting other tasks run in between, then asleep.
//!
//! Asking costs half a microsecond a time and no system call; sleeping costs a bell and a wake-up, tens of microseconds. So the
//! budget for asking is about the price of a wake-up. It adapts: a connection on which asking keeps failing stops asking, and starts again
//! when it is woken soon after it fell asleep.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::ring::Arm;
use crate::shm::client::Client;
use crate::shm::conn::Parking;

/// One direction's waiting.
#[derive(Debug)]
pub(super) struct Waiter {
    budget: Duration,
    budget_max: Duration,
    state: WaitState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitState {
    Awake,
    Asking { since: Instant },
    Parked { since: Instant },
}

impl Waiter {
    pub(super) fn new(budget_max: Duration) -> Self {
        Self { budget: budget_max, budget_max, state: WaitState::Awake }
    }

    /// Call when there is nothing to do. `Ready`: try again at once. `Pending`: the task will be woken.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &Client,
        parking: &Parking,
        arm: impl FnOnce() -> Arm,
    ) -> Poll<()> {
        if !matches!(self.state, WaitState::Parked { .. }) && !self.budget.is_zero() {
            let now = Instant::now();
            let since = match self.state {
                WaitState::Asking { since } => since,
                _ => now,
            };
            if now.duration_since(since) < self.budget {
                self.state = WaitState::Asking { since };
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        // The waker before the ticket: whoever sees the ticket may ring at once.
        parking.waker.register(cx.waker());
        if !matches!(self.state, WaitState::Parked { .. }) {
            parking.parked.store(true, Ordering::SeqCst);
            client.parked();
            self.state = WaitState::Parked { since: Instant::now() };
        }
        match arm() {
            Arm::Sleep => Poll::Pending,
            Arm::Ready => {
                self.done(client, parking);
                Poll::Ready(())
            }
        }
    }

    /// Call when something was done, or failed for good.
    #[inline]
    pub(super) fn done(&mut self, client: &Client, parking: &Parking) {
        if self.state != WaitState::Awake {
            self.awake(client, parking);
        }
    }

    #[cold]
    fn awake(&mut self, client: &Client, parking: &Parking) {
        match self.state {
            WaitState::Awake => {}
            WaitState::Asking { .. } => self.budget = self.budget_max,
            WaitState::Parked { since } => {
                parking.parked.store(false, Ordering::SeqCst);
                client.unparked();
                self.budget = if since.elapsed() < 4 * self.budget_max {
                    self.budget_max
                } else if self.budget > self.budget_max / 8 {
                    self.budget / 2
                } else {
                    Duration::ZERO
                };
            }
        }
        self.state = WaitState::Awake;
    }
}
