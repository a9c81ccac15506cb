//! CPUs that move by themselves, to where programs wait for one.
//!
//! ```text
//!  agents ──▶ lookout ──▶ gather (pure) ──▶ Balancer (pure, tombolo-handover) ──▶ an ordinary hand-over
//!  ledger ──────────────────┘
//! ```
//!
//! While it is off nobody is asked anything. What the decision remembers (rests, how long who has waited) is of this daemon alone:
//! after a start of the daemon, or with other settings, it begins anew, and the first move comes a hold later at the earliest.

mod gather;
mod look;
mod round;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::MissedTickBehavior;
use tombolo_handover::balance::{Balancer, Member, Policy};
use tombolo_handover::{Coordinator, OpId};

use self::look::{Lookout, candidates};
use self::round::{Round, decision_of, member_of, outcome_of};
use super::handover::LedgerError;
use super::registry::Registry;
use super::shared::Shared;
use crate::api::balance::{BalanceMove, BalanceStatus};
use crate::core::EventKind;
use crate::core::balance::BalanceSettings;
use crate::store::{Batch, Store, StoreError};
use crate::time::monotonic_ns;

/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether CPUs are balanced, how, and what came of it.
#[derive(Debug)]
pub(crate) struct Balance {
    settings: watch::Sender<Option<BalanceSettings>>,
    /// What was seen at the last look; `None` while it is off.
    seen: watch::Sender<Option<BalanceStatus>>,
    /// The last move that was begun. How it ends is in the ledger, unless it was refused.
    last_move: watch::Sender<Option<BalanceMove>>,
    /// Held by whoever changes the settings, and by whoever begins a move by them.
    begins: Mutex<()>,
}

impl Balance {
    /// As it was stored.
    pub(crate) fn new(settings: Option<BalanceSettings>) -> Self {
        Self {
            settings: watch::Sender::new(settings),
            seen: watch::Sender::new(None),
            last_move: watch::Sender::new(None),
            begins: Mutex::default(),
        }
    }

    /// Stores other settings and puts them in force. To turn it off works with a full disk, too.
    async fn set(&self, store: &Store, settings: Option<BalanceSettings>) -> Result<(), StoreError> {
        let _begins = self.begins.lock().await;
        if *self.settings.borrow() == settings {
            return Ok(());
        }
        let changed = EventKind::BalanceChanged { settings: settings.map(|settings| settings.to_string()) };
        let batch = Batch::new().balance(settings.as_ref()).event(None, None, changed);
        store.commit(batch.essential(settings.is_none())).await?;
        self.settings.send_replace(settings);
        self.seen.send_replace(None);
        Ok(())
    }

    fn settings(&self) -> Option<BalanceSettings> {
        *self.settings.borrow()
    }

    /// The right to begin a move by these settings; `None` if they are in force no more.
    async fn may_begin(&self, settings: &BalanceSettings) -> Option<MutexGuard<'_, ()>> {
        let guard = self.begins.lock().await;
        (self.settings().as_ref() == Some(settings)).then_some(guard)
    }

    /// The last move that was begun, with how it ended by now.
    fn last_move(&self, coordinator: &Coordinator) -> Option<BalanceMove> {
        let last = self.last_move.borrow().clone()?;
        let outcome = match last.operation {
            Some(id) => outcome_of(coordinator, OpId(id)),
            None => last.outcome,
        };
        Some(BalanceMove { outcome, ..last })
    }
}

/// Stores other settings and puts them in force.
///
/// # Cancel safety
/// If the future is dropped, that is done all the same: what is stored and what is in force must not differ.
pub(crate) async fn set(shared: Arc<Shared>, settings: Option<BalanceSettings>) -> Result<(), StoreError> {
    let setting = tokio::spawn(async move { shared.balance.set(&shared.store, settings).await });
    setting
        .await
        .unwrap_or_else(|error| Err(StoreError::Refused { reason: format!("it broke off: {error}") }))
}

/// Balances whenever that is on, until the daemon ends.
pub(crate) async fn run(shared: Arc<Shared>, registry: Arc<Registry>) {
    let mut changes = shared.balance.settings.subscribe();
    let mut under_way = None;
    loop {
        let settings = *changes.borrow_and_update();
        let Some(settings) = settings else {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut round = Round::new(settings, under_way.take());
        let mut clock = tokio::time::interval(LOOK_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !changes.has_changed().unwrap_or(true) && !shared.is_ending.load(Ordering::Acquire) {
            clock.tick().await;
            round.look(&shared, &registry).await;
        }
        under_way = round.into_under_way();
        if shared.is_ending.load(Ordering::Acquire) {
            return;
        }
    }
}

/// How it stands.
pub(crate) fn status(shared: &Shared, registry: &Registry) -> Result<BalanceStatus, LedgerError> {
    let settings = shared.balance.settings();
    let coordinator = shared.ledger.coordinator()?;
    let last_move = shared.balance.last_move(&coordinator);
    // What was seen by former settings is history.
    let seen = shared.balance.seen.borrow().clone().filter(|seen| seen.settings == settings);
    if let Some(seen) = seen {
        return Ok(BalanceStatus { last_move, ..seen });
    }
    let candidates = candidates(registry, &coordinator);
    let (nothing, nobody) = (Lookout::default(), Balancer::default());
    Ok(BalanceStatus {
        settings,
        members: candidates.iter().map(|one| member_of(one, &nothing, &nobody, 0)).collect(),
        free_cpus: gather::free_cpus(&coordinator),
        decision: None,
        last_move,
    })
}

/// Looks twice and decides, as if what was seen had been so for long enough and nobody rested. Begins nothing.
pub(crate) async fn rehearse(
    shared: &Shared,
    registry: &Registry,
    settings: Option<BalanceSettings>,
) -> Result<BalanceStatus, LedgerError> {
    let in_force = shared.balance.settings();
    let policy = settings.or(in_force).unwrap_or_default().policy();
    let mut lookout = Lookout::default();
    lookout.look(&candidates(registry, &*shared.ledger.coordinator()?)).await;
    tokio::time::sleep(LOOK_EVERY).await;
    lookout.look(&candidates(registry, &*shared.ledger.coordinator()?)).await;
    let coordinator = shared.ledger.coordinator()?;
    let candidates = candidates(registry, &coordinator);
    let members: Vec<Member> = candidates.iter().filter_map(|one| one.member.ok()).collect();
    let free_cpus = gather::free_cpus(&coordinator);
    let mut balancer = Balancer::new(Policy { hold_ns: 0, ..policy });
    let now_ns = monotonic_ns();
    let verdict = balancer.decide(now_ns, &members, &lookout.readings(), free_cpus);
    // Whoever would move would rest then; here nobody has moved.
    let nobody = Balancer::default();
    Ok(BalanceStatus {
        settings: in_force,
        members: candidates.iter().map(|one| member_of(one, &lookout, &nobody, now_ns)).collect(),
        free_cpus,
        decision: Some(decision_of(&verdict, &candidates)),
        last_move: shared.balance.last_move(&coordinator),
    })
}
