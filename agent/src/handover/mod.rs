//! This kernel's side of hand-overs: the service [`Handover`].
//!
//! [`book`] remembers what was promised and what it was told last, without I/O; [`act`] does what is ordered and undoes what lapses, through
//! [`kernel`]: [`memory`], [`cpu`] and [`device`]. [`record`] keeps the book for an agent that is started again. [`hooks`] asks applications.
//!
//! Of memory the kernel has an amount, and the book alone knows how much of it is spoken for. CPUs and devices are looked at.

mod act;
mod book;
mod boot;
mod cpu;
mod device;
mod hooks;
mod kernel;
mod memory;
mod programs;
mod record;
mod veto;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tombolo_handover::observe::Inside;
use tombolo_handover::operation::{End, Question, Veto};
use tombolo_handover::{OpId, UnitId};
use tombolo_rpc::Ctx;

use self::act::{Turns, blocking};
use self::book::{Book, Promise};
use self::kernel::Kernel;
use self::record::Record;
use crate::api::handover::{Answer, Asked, Handover, HandoverError, Here, Order, Seen};
use crate::exec::ExecEngine;

/// Where applications put their hooks.
pub const HOOKS_DIR: &str = "/etc/tombolo/hooks.d";

/// When a move that was not confirmed may be tried again, in ms.
const CONFIRM_AGAIN_MS: u64 = 1_000;

/// Serves [`Handover`].
#[derive(Clone, Debug)]
pub struct HandoverService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    exec: ExecEngine,
    hooks_dir: PathBuf,
    kernel: Kernel,
    book: Mutex<Book>,
    /// Locked before the book, so that what is written last is the newest.
    record: Option<Mutex<Record>>,
    turns: Turns,
}

impl HandoverService {
    /// Runs hooks with `exec`, from `hooks_dir`. What an agent must know when it is started again while its kernel goes on is in the file
    /// `record`; with that, it goes on here. To be called within a Tokio runtime.
    pub fn new(exec: ExecEngine, hooks_dir: impl Into<PathBuf>, record: Option<PathBuf>) -> Self {
        Self::of(exec, hooks_dir.into(), Kernel::default(), record.and_then(Record::at))
    }

    fn of(exec: ExecEngine, hooks_dir: PathBuf, kernel: Kernel, record: Option<Record>) -> Self {
        let book = Mutex::new(record.as_ref().map(Record::read).unwrap_or_default());
        let (record, turns) = (record.map(Mutex::new), Turns::default());
        let service = Self(Arc::new(Inner { exec, hooks_dir, kernel, book, record, turns }));
        service.resume();
        service
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Each change to it is whole before anything can panic.
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with what the book says was begun or promised before this process.
    fn resume(&self) {
        let unfinished = self.book().unfinished();
        for (unit, begun) in unfinished {
            let inside = self.0.kernel.look(begun.here);
            tracing::warn!(%unit, operation = %begun.operation, action = ?begun.action, ?inside, "it was broken off when the agent ended");
            self.book().settle(unit, inside == Inside::Offline);
        }
        let leases = self.book().leases();
        for (operation, unit) in leases {
            tracing::info!(%unit, %operation, "it is kept for a move, from before the agent was started again");
            self.watch_lease(operation, unit);
        }
    }

    /// Has the record say what the book says.
    async fn save(&self) {
        // Another thread has a heap of its own: in a small kernel, one too many.
        if self.0.record.is_none() {
            return;
        }
        let service = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || service.save_now()).await {
            tracing::error!(%error, "what was promised is not recorded");
        }
    }

    /// The same on this thread.
    fn save_now(&self) {
        let Some(record) = &self.0.record else { return };
        let record = record.lock().unwrap_or_else(PoisonError::into_inner);
        let page = record.page(&self.book());
        if let Err(error) = page.map_err(io::Error::other).and_then(|page| record.write(&page)) {
            tracing::warn!(%error, "what was promised is not recorded: an agent that is started again does not know of it");
        }
    }

    /// What goes on with a unit inside, now.
    async fn inside(&self, operation: OpId, unit: UnitId, here: Option<Here>, end: End) -> Inside {
        match here {
            None => Inside::Absent,
            Some(Here::Memory { .. }) => match (self.book().promise(operation, unit), end) {
                (Promise::Drained, _) => Inside::Offline,
                (Promise::Online, _) | (Promise::Nothing, End::Donor) => Inside::Online,
                (Promise::Nothing, End::Receiver) => Inside::Absent,
            },
            Some(here) => {
                let is_drained = self.book().promise(operation, unit) == Promise::Drained;
                let service = self.clone();
                let look = move || {
                    let kernel = &service.0.kernel;
                    Ok(match kernel.look(here) {
                        Inside::Online if is_drained && kernel.is_empty(here) => Inside::Emptied,
                        inside => inside,
                    })
                };
                blocking(look).await.unwrap_or(Inside::Unknown)
            }
        }
    }
}

impl Handover for HandoverService {
    async fn ask(&self, _cx: &Ctx, asked: Asked) -> Result<Answer, HandoverError> {
        let has_hooks = hooks::are_in(&self.0.hooks_dir);
        Ok(Answer { veto: self.answer(asked).await, has_hooks })
    }

    async fn order(&self, _cx: &Ctx, order: Order) -> Result<Seen, HandoverError> {
        Ok(self.follow(&order).await)
    }
}

impl HandoverService {
    /// Answers a question: nothing, or why not.
    async fn answer(&self, asked: Asked) -> Option<Veto> {
        let hook = match asked.question {
            Question::Vote => {
                let service = self.clone();
                let vote = move || Ok(service.0.kernel.vote(&asked));
                return blocking(vote).await.unwrap_or_else(Some);
            }
            Question::Reserve => {
                self.take_note(&asked).await;
                return None;
            }
            Question::Confirm => return self.confirm(&asked).await,
            Question::CheckHooks => "check",
            Question::PreHooks => "pre",
            Question::PostHooks => "post",
            Question::UndoHooks => "undo",
        };
        hooks::run(&self.0.exec, &self.0.hooks_dir, hook, &asked).await
    }

    /// Carries out an order, if there is one, and looks.
    async fn follow(&self, order: &Order) -> Seen {
        let (unit, operation) = (order.unit.id, order.operation);
        let until = lapse_after(order.lease_ms);
        let refused = match order.action {
            Some(action) => self.carry_out(order, action, until).await,
            None => None,
        };
        // Whatever was asked before either shows in this look or never happens: what waits for its turn is outdated, and what has
        // been begun is awaited.
        let (is_renewed, is_under_way) = {
            let mut book = self.book();
            (book.look(operation, unit, order.epoch, until), book.is_under_way(unit))
        };
        if is_renewed {
            self.save().await;
        }
        let _turn = match order.here {
            Some(here) if is_under_way => Some(self.0.turns.of(here).await),
            _ => None,
        };
        let inside = self.inside(operation, unit, order.here, order.end).await;
        Seen { refused, inside }
    }

    /// Takes note of what an operation is about, so that nothing older is believed any more and nothing promised lapses.
    async fn take_note(&self, asked: &Asked) {
        let until = lapse_after(asked.lease_ms);
        let mut is_renewed = false;
        for piece in &asked.pieces {
            is_renewed |= self.book().note(asked.operation, piece.unit, piece.epoch, until);
        }
        if is_renewed {
            self.save().await;
        }
    }

    /// Whether all that was drained still is. From then on the control plane may take it at any time, so nothing of it lapses.
    async fn confirm(&self, asked: &Asked) -> Option<Veto> {
        self.take_note(asked).await;
        if asked.end == End::Receiver {
            return None;
        }
        // No lease may run out between the look and the promise.
        let heres: Vec<Here> = asked.pieces.iter().filter_map(|piece| piece.here).collect();
        let _turns = self.0.turns.of_all(&heres).await;
        let mut drained = Vec::new();
        for piece in &asked.pieces {
            let inside = self.inside(asked.operation, piece.unit, piece.here, asked.end).await;
            match piece.here {
                Some(here) if matches!(inside, Inside::Offline | Inside::Emptied) => {
                    drained.push((piece.unit, here));
                }
                _ => {
                    let reason =
                        format!("{} is in use again: nothing had been heard of the move", piece.unit);
                    return Some(veto::later(reason, CONFIRM_AGAIN_MS));
                }
            }
        }
        let until = lapse_after(asked.lease_ms);
        for (unit, here) in drained {
            self.book().confirm(asked.operation, unit, here, until);
        }
        self.save().await;
        None
    }
}

/// When something lapses of which nothing is heard any more.
fn lapse_after(lease_ms: u64) -> Duration {
    boot::elapsed().saturating_add(Duration::from_millis(lease_ms))
}

#[cfg(test)]
mod tests;
