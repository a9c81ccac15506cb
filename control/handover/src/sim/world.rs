//! Kernels, agents and a spawner, as an operation meets them.
//!
//! The world is *permissive*: it attaches a unit to a second kernel if it is told to, so that a mistake of the coordinator shows as
//! two owners instead of being caught by a kernel that happens to check. It is *fenced* as the protocol demands: a witness refuses
//! whatever is not newer than the newest it has answered.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use crate::kernel::{Incarnation, InstanceId, Kernel, Party};
use crate::ledger::Ledger;
use crate::observe::{Command, Inside, Sighting};
use crate::operation::{Act, DrainRule, Veto};
use crate::owner::Owner;
use crate::unit::UnitId;

/// What kind of spawner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spawner {
    /// What it has reported as failed never happens (QEMU, user-mode Linux). What a dead kernel had is detached.
    Certain,
    /// What it has reported as timed out may happen later, until the kernel in question is dead (Multikernel Linux). What a dead kernel
    /// had stays granted to its instance.
    MayFinishLate,
}

/// How a command turns out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Luck {
    /// It does what it should.
    Works,
    /// It is refused; trying again may help.
    Refused,
    /// It is refused for good.
    RefusedForGood,
    /// It times out; a spawner that may finish late may finish it late.
    TimesOut,
    /// It works, and the spawner cannot say where the unit is.
    Unseen,
    /// It is not done, and the agent of whichever kernel does *not* have the unit claims to be using it.
    Lied,
}

/// Everything outside the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    spawner: Spawner,
    drain: DrainRule,
    kernels: BTreeMap<InstanceId, KernelState>,
    units: BTreeMap<UnitId, Truth>,
    /// Commands that were reported as timed out and may yet happen.
    unfinished: BTreeSet<(UnitId, UnfinishedCommand)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct KernelState {
    incarnation: Incarnation,
    running: bool,
    agent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum UnfinishedCommand {
    Revoke(Party),
    Grant(Party),
}

/// Where a unit really is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Truth {
    /// To whom it is attached: at most one, unless something is wrong.
    attached: BTreeMap<Holder, Inside>,
    /// The newest epoch the spawner has answered.
    spawner_seen: u64,
    /// The newest epoch each agent has answered.
    agents_seen: BTreeMap<Holder, u64>,
}

/// A kernel as a place: `None` is the host.
type Holder = Option<InstanceId>;

/// Ledger and world do not agree, or the world has a unit twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Disagreement {
    /// Two kernels have one unit.
    #[error("{unit} is attached to two kernels: {holders}")]
    TwoOwners {
        /// Which.
        unit: UnitId,
        /// By whom.
        holders: String,
    },
    /// The ledger says somebody has a unit who has not.
    #[error("the ledger gives {unit} to {owner}, and it is with {holders}")]
    NotThere {
        /// Which.
        unit: UnitId,
        /// Who has it by the ledger.
        owner: Owner,
        /// Who has it.
        holders: String,
    },
}

impl World {
    /// A world in which everything is where the ledger says.
    pub fn new(spawner: Spawner, drain: DrainRule, ledger: &Ledger) -> Self {
        let kernels = ledger.instances().map(|row| {
            (row.id, KernelState { incarnation: row.incarnation, running: row.running, agent: row.running })
        });
        let mut world = Self {
            spawner,
            drain,
            kernels: kernels.collect(),
            units: BTreeMap::new(),
            unfinished: BTreeSet::new(),
        };
        world.follow(ledger, |_| None);
        world
    }

    /// Takes note of memory that was cut or joined in the ledger. `donor` names who has what an operation has in transit.
    pub fn follow(&mut self, ledger: &Ledger, donor: impl Fn(&Owner) -> Option<Party>) {
        self.units.retain(|unit, _| ledger.entry(*unit).is_some());
        for entry in ledger.entries() {
            if self.units.contains_key(&entry.unit.id) {
                continue;
            }
            let mut truth = Truth::default();
            if let Some(party) = entry.owner.party().or_else(|| donor(&entry.owner))
                && let Some(holder) = holder(party)
                && (holder.is_none_or(|id| self.runs(id)) || self.spawner == Spawner::MayFinishLate)
            {
                truth.attached.insert(holder, Inside::Online);
            }
            self.units.insert(entry.unit.id, truth);
        }
    }

    /// The running kernels.
    pub fn running(&self) -> Vec<Kernel> {
        self.all_kernels(|state| state.running)
    }

    /// The kernels that do not run, in their last boot.
    pub fn stopped(&self) -> Vec<Kernel> {
        self.all_kernels(|state| !state.running)
    }

    /// Whether any command that was reported as timed out may yet happen.
    pub fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Whether that is so for this unit.
    pub fn is_unfinished(&self, unit: UnitId) -> bool {
        self.unfinished.iter().any(|(of, _)| *of == unit)
    }

    /// Carries out a command, or not, and looks.
    pub fn act(&mut self, act: &Act, luck: Luck) -> (Option<Veto>, Sighting) {
        let refused = act.command.and_then(|command| self.command(act, command, luck));
        (refused, self.look(act, luck))
    }

    fn command(&mut self, act: &Act, command: Command, luck: Luck) -> Option<Veto> {
        let unit = act.unit.id;
        let agent = match command {
            Command::Drain | Command::Undrain => Some(act.donor),
            Command::Online => Some(act.receiver),
            Command::Revoke(_) | Command::Grant(_) => None,
        };
        if let Some(party) = agent
            && !self.answers(party)
        {
            return Some(veto("no agent answers", Some(100)));
        }
        let truth = self.units.entry(unit).or_default();
        let seen = match agent.and_then(holder) {
            Some(of) => truth.agents_seen.entry(of).or_default(),
            None => &mut truth.spawner_seen,
        };
        if act.epoch <= *seen {
            return Some(veto("stale epoch", None));
        }
        *seen = act.epoch;
        match luck {
            Luck::Refused => return Some(veto("busy", Some(50))),
            Luck::RefusedForGood => return Some(veto("cannot", None)),
            Luck::Lied => return None,
            Luck::TimesOut => {
                if self.spawner == Spawner::MayFinishLate {
                    let late = match command {
                        Command::Revoke(from) => Some(UnfinishedCommand::Revoke(from)),
                        Command::Grant(to) => Some(UnfinishedCommand::Grant(to)),
                        Command::Drain | Command::Undrain | Command::Online => None,
                    };
                    self.unfinished.extend(late.map(|late| (unit, late)));
                }
                return None;
            }
            Luck::Works | Luck::Unseen => {}
        }
        self.carry_out(unit, command, act.donor, act.receiver)
    }

    fn carry_out(&mut self, unit: UnitId, command: Command, donor: Party, receiver: Party) -> Option<Veto> {
        let drained = if self.drain == DrainRule::Offline { Inside::Offline } else { Inside::Emptied };
        let is_present = |party: Party| {
            party.kernel().is_none_or(|kernel| {
                self.kernels
                    .get(&kernel.instance)
                    .is_some_and(|state| state.incarnation == kernel.incarnation)
            })
        };
        let runs = |party: Party| {
            party.kernel().is_none_or(|k| self.kernels.get(&k.instance).is_some_and(|state| state.running))
        };
        let (party, inside) = match command {
            Command::Drain => (donor, Some(drained)),
            Command::Undrain => (donor, Some(Inside::Online)),
            Command::Online => (receiver, Some(Inside::Online)),
            Command::Revoke(from) if is_present(from) => (from, None),
            Command::Grant(to) if is_present(to) && runs(to) => (to, Some(Inside::Offline)),
            Command::Revoke(_) | Command::Grant(_) => return Some(veto("another boot", None)),
        };
        let holder = holder(party)?;
        let truth = self.units.entry(unit).or_default();
        match (command, inside) {
            (Command::Grant(_), Some(inside)) => {
                truth.attached.entry(holder).or_insert(inside);
            }
            (_, Some(inside)) => {
                if let Some(present) = truth.attached.get_mut(&holder) {
                    *present = inside;
                }
            }
            (_, None) => drop(truth.attached.remove(&holder)),
        }
        None
    }

    fn look(&mut self, act: &Act, luck: Luck) -> Sighting {
        let pending = self.is_unfinished(act.unit.id);
        let answers = [act.donor, act.receiver].map(|party| self.answers(party));
        let truth = self.units.entry(act.unit.id).or_default();
        // An answer to this epoch is a promise about all older ones.
        truth.spawner_seen = truth.spawner_seen.max(act.epoch);
        let inside = [act.donor, act.receiver].into_iter().zip(answers).map(|(party, answers)| {
            let Some(holder) = holder(party) else { return Inside::Absent };
            if !answers {
                return Inside::Unknown;
            }
            let seen = truth.agents_seen.entry(holder).or_default();
            *seen = (*seen).max(act.epoch);
            match truth.attached.get(&holder) {
                Some(inside) => *inside,
                None if luck == Luck::Lied => Inside::Online,
                None => Inside::Absent,
            }
        });
        let inside: Vec<Inside> = inside.collect();
        let attached = match truth.attached.keys().next().copied() {
            None => Party::Pool,
            Some(None) => Party::Host,
            Some(Some(id)) => Party::Instance(self.kernel(id)),
        };
        Sighting {
            attached: (luck != Luck::Unseen).then_some(attached),
            donor: inside.first().copied().unwrap_or(Inside::Unknown),
            receiver: inside.get(1).copied().unwrap_or(Inside::Unknown),
            pending,
        }
    }

    /// One command that was reported as timed out happens after all, or never will. `which` counts from 0.
    pub fn finish_late(&mut self, which: usize, happens: bool) {
        let Some(&(unit, late)) = self.unfinished.iter().nth(which) else { return };
        self.unfinished.remove(&(unit, late));
        if happens {
            let (command, party) = match late {
                UnfinishedCommand::Revoke(from) => (Command::Revoke(from), from),
                UnfinishedCommand::Grant(to) => (Command::Grant(to), to),
            };
            self.carry_out(unit, command, party, party);
        }
    }

    /// Leases run out in a kernel: what it was told to drain goes back into use.
    pub fn leases_lapse(&mut self, id: InstanceId) {
        if !self.runs(id) {
            return;
        }
        for truth in self.units.values_mut() {
            if let Some(inside) = truth.attached.get_mut(&Some(id)) {
                *inside = Inside::Online;
            }
        }
    }

    /// A kernel dies, and is fenced: nothing asked of it happens any more.
    pub fn kernel_dies(&mut self, id: InstanceId) {
        if let Some(state) = self.kernels.get_mut(&id) {
            state.running = false;
            state.agent = false;
        }
        self.unfinished.retain(|(_, late)| {
            let (UnfinishedCommand::Revoke(party) | UnfinishedCommand::Grant(party)) = late;
            party.instance() != Some(id)
        });
        for truth in self.units.values_mut() {
            truth.agents_seen.remove(&Some(id));
            match self.spawner {
                Spawner::Certain => drop(truth.attached.remove(&Some(id))),
                Spawner::MayFinishLate => {
                    if let Some(inside) = truth.attached.get_mut(&Some(id)) {
                        *inside = Inside::Offline;
                    }
                }
            }
        }
    }

    /// All that is granted to a dead kernel is detached.
    pub fn release(&mut self, id: InstanceId) {
        for truth in self.units.values_mut() {
            truth.attached.remove(&Some(id));
        }
    }

    /// An instance boots anew with what the ledger grants it.
    pub fn kernel_boots(&mut self, kernel: Kernel, ledger: &Ledger) {
        let id = kernel.instance;
        let state = KernelState { incarnation: kernel.incarnation, running: true, agent: true };
        self.kernels.insert(id, state);
        for (unit, truth) in &mut self.units {
            let granted = ledger.entry(*unit).and_then(|entry| entry.owner.party());
            if granted.and_then(Party::instance) == Some(id) {
                truth.attached.insert(Some(id), Inside::Online);
            } else if let Some(inside) = truth.attached.get_mut(&Some(id)) {
                *inside = Inside::Online;
            }
        }
    }

    /// The agent of a kernel stops, or starts again without what it knew.
    pub fn agent(&mut self, id: InstanceId, up: bool) {
        let running = self.runs(id);
        if let Some(state) = self.kernels.get_mut(&id) {
            state.agent = up && running;
        }
        for truth in self.units.values_mut() {
            truth.agents_seen.remove(&Some(id));
        }
    }

    /// Whether a command would be refused because its target has answered an epoch as new.
    pub fn is_fenced(&self, act: &Act) -> bool {
        let Some(truth) = self.units.get(&act.unit.id) else { return false };
        let agent = match act.command {
            Some(Command::Drain | Command::Undrain) => holder(act.donor),
            Some(Command::Online) => holder(act.receiver),
            Some(Command::Revoke(_) | Command::Grant(_)) | None => None,
        };
        let seen = match agent {
            Some(of) => truth.agents_seen.get(&of).copied().unwrap_or(0),
            None => truth.spawner_seen,
        };
        act.epoch <= seen
    }

    /// The epochs that witnesses have answered for a unit.
    pub fn fences(&self, unit: UnitId) -> impl Iterator<Item = u64> + '_ {
        let truth = self.units.get(&unit);
        truth
            .into_iter()
            .flat_map(|truth| std::iter::once(truth.spawner_seen).chain(truth.agents_seen.values().copied()))
    }

    /// Hashes what can be told apart from inside: of epochs, only how they compare, as `rank` says.
    pub fn hash_shape<H: Hasher>(&self, rank: impl Fn(UnitId, u64) -> usize, into: &mut H) {
        self.kernels.hash(into);
        self.unfinished.hash(into);
        for (unit, truth) in &self.units {
            (unit, &truth.attached, rank(*unit, truth.spawner_seen)).hash(into);
            for (holder, seen) in &truth.agents_seen {
                (holder, rank(*unit, *seen)).hash(into);
            }
        }
    }

    /// Where a unit really is, if it is in one place and nothing can change that.
    pub fn place(&self, unit: UnitId) -> Option<Party> {
        if self.is_unfinished(unit) {
            return None;
        }
        let mut holders = self.units.get(&unit)?.attached.keys();
        match (holders.next(), holders.next()) {
            (None, _) => Some(Party::Pool),
            (Some(None), None) => Some(Party::Host),
            (Some(Some(id)), None) => Some(Party::Instance(self.kernel(*id))),
            (Some(_), Some(_)) => None,
        }
    }

    /// Whether the world has each unit at most once, and every unit at rest in the ledger where the ledger says.
    ///
    /// # Errors
    /// The first [`Disagreement`].
    pub fn agrees(&self, ledger: &Ledger) -> Result<(), Disagreement> {
        for (&unit, truth) in &self.units {
            let holders = || truth.names();
            if truth.attached.len() > 1 {
                return Err(Disagreement::TwoOwners { unit, holders: holders() });
            }
            let Some(entry) = ledger.entry(unit) else { continue };
            let has = truth.attached.keys().next().copied();
            let agrees = match &entry.owner {
                Owner::InTransit(_) | Owner::Quarantined(_) => true,
                Owner::Pool => has.is_none(),
                Owner::Host => has == Some(None),
                Owner::Instance(kernel) if self.runs(kernel.instance) => has == Some(Some(kernel.instance)),
                // What a dead kernel had may have been detached with it.
                Owner::Instance(kernel) => has.is_none() || has == Some(Some(kernel.instance)),
            };
            if !agrees {
                return Err(Disagreement::NotThere { unit, owner: entry.owner.clone(), holders: holders() });
            }
        }
        Ok(())
    }

    fn all_kernels(&self, which: impl Fn(&KernelState) -> bool) -> Vec<Kernel> {
        let chosen = self.kernels.iter().filter(|(_, state)| which(state));
        chosen.map(|(id, state)| Kernel { instance: *id, incarnation: state.incarnation }).collect()
    }

    fn kernel(&self, id: InstanceId) -> Kernel {
        let incarnation = self.kernels.get(&id).map_or(Incarnation([0; 16]), |state| state.incarnation);
        Kernel { instance: id, incarnation }
    }

    fn runs(&self, id: InstanceId) -> bool {
        self.kernels.get(&id).is_some_and(|state| state.running)
    }

    fn answers(&self, party: Party) -> bool {
        match party {
            Party::Host => true,
            Party::Pool => false,
            Party::Instance(kernel) => self.kernels.get(&kernel.instance).is_some_and(|state| state.agent),
        }
    }
}

impl Truth {
    fn names(&self) -> String {
        let names = self.attached.iter().map(|(holder, inside)| match holder {
            None => format!("the host ({inside:?})"),
            Some(id) => format!("{id} ({inside:?})"),
        });
        let names: Vec<String> = names.collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(" and ") }
    }
}

fn holder(party: Party) -> Option<Holder> {
    match party {
        Party::Host => Some(None),
        Party::Pool => None,
        Party::Instance(kernel) => Some(Some(kernel.instance)),
    }
}

fn veto(reason: &str, retry_after_ms: Option<u64>) -> Veto {
    Veto { reason: reason.to_owned(), retry_after_ms }
}
