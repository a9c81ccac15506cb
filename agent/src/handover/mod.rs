//! This kernel's side of hand-overs: the service [`Handover`].
//!
//! [`book`] remembers what was promised and what it was told last, without I/O; [`memory`], [`cpu`], [`device`] and [`hooks`] do things.
//!
//! Of memory the kernel has an amount, and the book alone knows how much of it is spoken for. CPUs and devices are looked at.

mod book;
mod cpu;
mod device;
mod hooks;
mod memory;
mod programs;
mod veto;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tombolo_handover::observe::Inside;
use tombolo_handover::operation::{End, Question, Veto};
use tombolo_handover::{OpId, UnitId};
use tombolo_rpc::Ctx;

use self::book::{Book, Piece, Promise};
use crate::api::handover::{Action, Asked, Handover, HandoverError, Here, Order, Seen};
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
    book: Mutex<Book>,
    /// Draining and proving change what others of their kind look at: one at a time.
    acting: tokio::sync::Mutex<()>,
}

impl HandoverService {
    /// Runs hooks with `exec`, from `hooks_dir`.
    pub fn new(exec: ExecEngine, hooks_dir: impl Into<PathBuf>) -> Self {
        let (book, acting) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { exec, hooks_dir: hooks_dir.into(), book, acting }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Each change to it is whole before anything can panic.
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn act(&self, order: &Order, action: Action) -> Option<Veto> {
        let Some(here) = order.here else {
            return Some(veto::never(format!("{} is not in this kernel", order.unit.id)));
        };
        let _one_at_a_time = self.0.acting.lock().await;
        // With what is kept free already for the same operation.
        let kept = self.book().drained_bytes(order.operation, order.unit.id);
        let acted = blocking(move || match (here, action) {
            (Here::Memory { bytes }, Action::Drain) => memory::make_free(kept.saturating_add(bytes)),
            (Here::Memory { .. }, Action::Undrain) => Ok(()),
            (Here::Memory { bytes }, Action::Online) => memory::prove(bytes),
            (Here::Cpu { index }, Action::Drain) => cpu::Files::of_this_kernel().take_offline(index),
            (Here::Cpu { index }, Action::Undrain) => cpu::Files::of_this_kernel().take_online(index),
            (Here::Cpu { index }, Action::Online) => {
                cpu::Files::of_this_kernel().take_online(index).and_then(|()| cpu::prove(index))
            }
            (Here::Device { address }, Action::Drain) => device::Files::of_this_kernel().unbind(address),
            (Here::Device { address }, Action::Undrain | Action::Online) => {
                device::Files::of_this_kernel().bind(address)
            }
        });
        acted.await.err()
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
            Some(Here::Cpu { index }) => blocking(move || Ok(cpu::Files::of_this_kernel().look(index)))
                .await
                .unwrap_or(Inside::Unknown),
            Some(Here::Device { address }) => {
                let look = move || Ok(device::Files::of_this_kernel().look(address));
                blocking(look).await.unwrap_or(Inside::Unknown)
            }
        }
    }

    /// Uses again what was drained when nothing has been heard of its operation for so long: a CPU goes online, a device gets its driver
    /// back, memory just is not kept free any longer. What was confirmed is left alone.
    fn watch_lease(&self, operation: OpId, unit: UnitId, here: Here) {
        let service = self.clone();
        tokio::spawn(async move {
            loop {
                let Some(until) = service.book().lapses_at(operation, unit) else { return };
                tokio::time::sleep_until(until.into()).await;
                let _one_at_a_time = service.0.acting.lock().await;
                if service.book().lapse(operation, unit, Instant::now()) {
                    tracing::warn!(%operation, %unit, %here, "nothing was heard of the move any more: it is used again");
                    let undone = blocking(move || match here {
                        Here::Cpu { index } => cpu::Files::of_this_kernel().take_online(index),
                        Here::Device { address } => device::Files::of_this_kernel().bind(address),
                        Here::Memory { .. } => Ok(()),
                    });
                    if let Err(veto) = undone.await {
                        tracing::error!(%operation, %unit, %here, reason = veto.reason, "it cannot be used again");
                    }
                    return;
                }
            }
        });
    }
}

impl Handover for HandoverService {
    async fn ask(&self, _cx: &Ctx, asked: Asked) -> Result<Option<Veto>, HandoverError> {
        let hook = match asked.question {
            Question::Vote => return Ok(blocking(move || Ok(vote(&asked))).await.unwrap_or_else(Some)),
            Question::Reserve => {
                self.take_note(&asked);
                return Ok(None);
            }
            Question::Confirm => return Ok(self.confirm(&asked).await),
            Question::CheckHooks => "check",
            Question::PreHooks => "pre",
            Question::PostHooks => "post",
            Question::UndoHooks => "undo",
        };
        Ok(hooks::run(&self.0.exec, &self.0.hooks_dir, hook, &asked).await)
    }

    async fn order(&self, _cx: &Ctx, order: Order) -> Result<Seen, HandoverError> {
        let (unit, operation) = (order.unit.id, order.operation);
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
                let bytes = order.here.map_or(0, Here::bytes);
                let piece = Piece { operation, bytes, promise, until, confirmed: false };
                self.book().put(unit, order.epoch, piece);
                if let (Action::Drain, Some(here)) = (action, order.here) {
                    self.watch_lease(operation, unit, here);
                }
            }
        }
        self.book().note(operation, unit, order.epoch, until);
        let inside = self.inside(operation, unit, order.here, order.end).await;
        Ok(Seen { refused, inside })
    }
}

impl HandoverService {
    /// Takes note of what an operation is about, so that nothing older is believed any more and nothing promised lapses.
    fn take_note(&self, asked: &Asked) {
        let until = Instant::now() + Duration::from_millis(asked.lease_ms);
        let mut book = self.book();
        for piece in &asked.pieces {
            book.note(asked.operation, piece.unit, piece.epoch, until);
        }
    }

    /// Whether all that was drained still is. From then on the control plane may take it at any time, so nothing of it lapses.
    async fn confirm(&self, asked: &Asked) -> Option<Veto> {
        self.take_note(asked);
        if asked.end == End::Receiver {
            return None;
        }
        // No lease may run out between the look and the promise.
        let _one_at_a_time = self.0.acting.lock().await;
        for piece in &asked.pieces {
            if self.inside(asked.operation, piece.unit, piece.here, asked.end).await != Inside::Offline {
                let reason = format!("{} is in use again: nothing had been heard of the move", piece.unit);
                return Some(veto::later(reason, CONFIRM_AGAIN_MS));
            }
            self.book().confirm(asked.operation, piece.unit);
        }
        None
    }
}

/// Whether this kernel can do it.
fn vote(asked: &Asked) -> Option<Veto> {
    if asked.end == End::Receiver {
        // More is always welcome. Whether there is room for it is its spawner's to say.
        return None;
    }
    if let Some(piece) = asked.pieces.iter().find(|piece| piece.here.is_none()) {
        return Some(veto::never(format!("{} is not in this kernel", piece.unit)));
    }
    let here = || asked.pieces.iter().filter_map(|piece| piece.here);
    let bytes = here().map(Here::bytes).fold(0, u64::saturating_add);
    let cpus: Vec<u32> = here()
        .filter_map(|here| match here {
            Here::Cpu { index } => Some(index),
            Here::Memory { .. } | Here::Device { .. } => None,
        })
        .collect();
    let mut devices = here().filter_map(|here| match here {
        Here::Device { address } => Some(address),
        Here::Memory { .. } | Here::Cpu { .. } => None,
    });
    if bytes > 0
        && let Some(veto) = memory::can_spare(bytes)
    {
        return Some(veto);
    }
    if !cpus.is_empty()
        && let Some(veto) = cpu::Files::of_this_kernel().can_spare(&cpus)
    {
        return Some(veto);
    }
    devices.find_map(|address| device::Files::of_this_kernel().can_spare(address))
}

/// Runs what makes system calls that take their time.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Veto> + Send + 'static,
) -> Result<T, Veto> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(veto::never(format!("it broke off: {error}"))))
}
