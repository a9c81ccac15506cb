//! This kernel's side of hand-overs: the service [`Handover`].
//!
//! [`book`] remembers what was promised and what it was told last, without I/O; [`memory`] and [`hooks`] do things.

mod book;
mod hooks;
mod memory;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tombolo_handover::observe::Inside;
use tombolo_handover::operation::{End, Question, Veto};
use tombolo_handover::unit::Kind;
use tombolo_rpc::Ctx;

use self::book::{Book, Piece, Promise};
use crate::api::handover::{Action, Asked, Handover, HandoverError, Order, Seen};
use crate::exec::ExecEngine;

/// Where applications put their hooks.
pub const HOOKS_DIR: &str = "/etc/tombolo/hooks.d";

/// Serves [`Handover`].
#[derive(Clone, Debug)]
pub struct HandoverService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    exec: ExecEngine,
    hooks_dir: PathBuf,
    book: Mutex<Book>,
    /// Draining and proving look at how much memory is free: one at a time.
    memory: tokio::sync::Mutex<()>,
}

impl HandoverService {
    /// Runs hooks with `exec`, from `hooks_dir`.
    pub fn new(exec: ExecEngine, hooks_dir: impl Into<PathBuf>) -> Self {
        let (book, memory) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { exec, hooks_dir: hooks_dir.into(), book, memory }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Each change to it is whole before anything can panic.
        let mut book = self.0.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.lapse(Instant::now());
        book
    }

    async fn act(&self, order: &Order, action: Action) -> Option<Veto> {
        let unit = order.unit.id;
        if unit.kind() != Kind::Memory {
            return Some(unsupported(&unit.to_string()));
        }
        let _one_at_a_time = self.0.memory.lock().await;
        let bytes = order.bytes;
        match action {
            Action::Drain => {
                let kept = self.book().drained_bytes(order.operation, unit);
                let drained = blocking(move || memory::make_free(kept.saturating_add(bytes))).await;
                drained.err()
            }
            Action::Undrain => None,
            Action::Online => blocking(move || memory::prove(bytes)).await.err(),
        }
    }
}

impl Handover for HandoverService {
    async fn ask(&self, _cx: &Ctx, asked: Asked) -> Result<Option<Veto>, HandoverError> {
        let hook = match asked.question {
            Question::Vote => return Ok(vote(&asked)),
            Question::Reserve | Question::Confirm => {
                let until = Instant::now() + Duration::from_millis(asked.lease_ms);
                let mut book = self.book();
                for piece in &asked.pieces {
                    book.note(asked.operation, piece.unit, piece.epoch, until);
                }
                return Ok(None);
            }
            Question::CheckHooks => "check",
            Question::PreHooks => "pre",
            Question::PostHooks => "post",
            Question::UndoHooks => "undo",
        };
        Ok(hooks::run(&self.0.exec, &self.0.hooks_dir, hook, &asked).await)
    }

    async fn order(&self, _cx: &Ctx, order: Order) -> Result<Seen, HandoverError> {
        let unit = order.unit.id;
        let until = Instant::now() + Duration::from_millis(order.lease_ms);
        let mut refused = None;
        if let Some(action) = order.action {
            refused = self.book().admit(unit, order.epoch).err();
            if refused.is_none() {
                refused = self.act(&order, action).await;
            }
            if refused.is_none() {
                let promise = match action {
                    Action::Drain => Promise::Drained,
                    Action::Undrain => Promise::Nothing,
                    Action::Online => Promise::Online,
                };
                let piece = Piece { operation: order.operation, bytes: order.bytes, promise, until };
                self.book().put(unit, order.epoch, piece);
            }
        }
        let mut book = self.book();
        book.note(order.operation, unit, order.epoch, until);
        let inside = match (book.promise(unit), order.end) {
            (Promise::Drained, _) => Inside::Offline,
            (Promise::Online, _) | (Promise::Nothing, End::Donor) => Inside::Online,
            (Promise::Nothing, End::Receiver) => Inside::Absent,
        };
        Ok(Seen { refused, inside })
    }
}

/// Whether this kernel can do it.
fn vote(asked: &Asked) -> Option<Veto> {
    if let Some(piece) = asked.pieces.iter().find(|piece| piece.unit.kind() != Kind::Memory) {
        return Some(unsupported(&piece.unit.to_string()));
    }
    match asked.end {
        End::Donor => {
            memory::can_spare(asked.pieces.iter().map(|piece| piece.bytes).fold(0, u64::saturating_add))
        }
        // More memory is always welcome.
        End::Receiver => None,
    }
}

/// Runs what makes system calls that take their time.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Veto> + Send + 'static,
) -> Result<T, Veto> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Veto { reason: format!("it broke off: {error}"), retry_after_ms: None }))
}

fn unsupported(unit: &str) -> Veto {
    Veto { reason: format!("this agent cannot hand over {unit}: it knows memory only"), retry_after_ms: None }
}
