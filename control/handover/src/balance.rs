//! When to move a CPU from one kernel to another, by how much their tasks wait for one.
//!
//! Pressure stall information says what share of time at least one task waited for a CPU (`some avg10` of /proc/pressure/cpu). It is
//! the right thing to go by because it says that work *waits*, not that a CPU is busy. One CPU is proposed at a time, from a
//! kernel that could do without it to one that has been waiting for a while.
//!
//! Three things keep it from swinging: the threshold to take is far above the threshold to give; a condition must hold for a time
//! before it counts; and after a move both kernels rest, for twice as long each time a move undoes an earlier one.
//!
//! The decision is a function of the readings, the clock that is passed in, and what [`Balancer`] remembers.

use std::collections::BTreeMap;

use crate::kernel::InstanceId;
use crate::ledger::Bounds;

/// A share of time in hundredths of a percent: 0 to 10 000, as PSI prints it with the point left out.
pub type BasisPoints = u32;

/// What a balancer goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A kernel waits if its stall is at least this. Default 20 %.
    pub wants_at: BasisPoints,
    /// A kernel can give if its stall is at most this. Default 2 %.
    pub gives_at: BasisPoints,
    /// Nor does a kernel give if its other CPUs would then be busier than this. Default 75 %.
    pub busy_after_max: BasisPoints,
    /// How long either must have been so, in ns. Default 5 s.
    pub hold_ns: u64,
    /// How long both kernels rest after a move, in ns. Default 15 s, so that avg10 shows what came of it.
    pub rest_ns: u64,
    /// The longest rest, in ns. Default 10 min.
    pub rest_max_ns: u64,
    /// A reading older than this counts for nothing, in ns. Default 3 s.
    pub stale_ns: u64,
}

/// What an agent has measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Of which instance.
    pub instance: InstanceId,
    /// When it was measured, on the clock of the decision.
    pub at_ns: u64,
    /// Share of the last 10 s in which a task waited for a CPU.
    pub stall: BasisPoints,
    /// Share of its CPU time that was not idle, over all of its CPUs.
    pub busy: BasisPoints,
}

/// An instance that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub instance: InstanceId,
    /// CPUs it has.
    pub cpus: u64,
    /// Its bounds.
    pub bounds: Bounds,
    /// Whether an operation is under way at it.
    pub is_moving: bool,
}

/// Where a CPU is to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A free one.
    Pool,
    /// An instance that can do without.
    Instance(InstanceId),
}

/// One CPU to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// From whom.
    pub from: From,
    /// To whom.
    pub to: InstanceId,
    /// What the receiver measured.
    pub need: Reading,
    /// What the instance measured that gives.
    pub leisure: Option<Reading>,
}

/// What came of a look at the readings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Move this one.
    Move(Proposal),
    /// Leave all as it is.
    Stay(Stay),
}

/// Why nothing is to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// Nobody has waited for long enough.
    NobodyWaits,
    /// Somebody waits, and nobody can give.
    NobodyGives,
}

/// How a member stands with a [`Balancer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How long it neither gives nor gets yet, in ns; 0 if it does not rest.
    pub rests_ns: u64,
    /// How long it has been waiting for a CPU, in ns.
    pub wants_ns: Option<u64>,
    /// How long it could have been without one, in ns.
    pub gives_ns: Option<u64>,
}

/// Remembers how long each kernel has been waiting or at leisure, and what was moved last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancer {
    policy: Policy,
    kernels: BTreeMap<InstanceId, Memory>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory {
    wants_since_ns: Option<u64>,
    gives_since_ns: Option<u64>,
    rests_until_ns: u64,
    /// The last move: whether it gave, and how long it then rested.
    last: Option<(Direction, u64)>,
    /// How often in a row nothing came of a move for which it was to answer.
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Gave,
    Got,
}

impl Default for Policy {
    fn default() -> Self {
        const S: u64 = 1_000_000_000;
        Self {
            wants_at: 2_000,
            gives_at: 200,
            busy_after_max: 7_500,
            hold_ns: 5 * S,
            rest_ns: 15 * S,
            rest_max_ns: 600 * S,
            stale_ns: 3 * S,
        }
    }
}

impl Balancer {
    /// Goes by this policy, and has seen nothing.
    pub fn new(policy: Policy) -> Self {
        Self { policy, kernels: BTreeMap::new() }
    }

    /// What to do now. Call it about once a second, with the last reading of each member; one without a fresh reading neither
    /// gives nor gets.
    pub fn decide(
        &mut self,
        now_ns: u64,
        members: &[Member],
        readings: &[Reading],
        pool_cpus: u64,
    ) -> Verdict {
        self.kernels.retain(|id, _| members.iter().any(|member| member.instance == *id));
        let fresh = |id: InstanceId| {
            readings.iter().find(|reading| {
                reading.instance == id && now_ns.saturating_sub(reading.at_ns) <= self.policy.stale_ns
            })
        };
        let seen: Vec<(&Member, Option<&Reading>)> =
            members.iter().map(|member| (member, fresh(member.instance))).collect();
        for (member, reading) in &seen {
            self.observe(now_ns, member, *reading);
        }
        let ready = |since: Option<u64>| {
            since.is_some_and(|since| now_ns.saturating_sub(since) >= self.policy.hold_ns)
        };
        let may_take_part = |member: &Member| {
            let rests =
                self.kernels.get(&member.instance).is_some_and(|memory| now_ns < memory.rests_until_ns);
            !rests && !member.is_moving
        };
        let readings = seen.into_iter().filter_map(|(member, reading)| Some((member, reading?)));
        let taking_part: Vec<(&Member, &Reading)> =
            readings.filter(|(member, _)| may_take_part(member)).collect();
        let neediest = taking_part
            .iter()
            .filter(|(member, _)| member.cpus < member.bounds.max)
            .filter(|(member, _)| ready(self.kernels.get(&member.instance).and_then(|m| m.wants_since_ns)))
            .max_by_key(|(member, reading)| (reading.stall, std::cmp::Reverse(member.instance)));
        let Some((to, need)) = neediest else { return Verdict::Stay(Stay::NobodyWaits) };
        let giver = taking_part
            .iter()
            .filter(|(member, _)| member.instance != to.instance)
            .filter(|(member, _)| ready(self.kernels.get(&member.instance).and_then(|m| m.gives_since_ns)))
            // Whoever has most above what it is meant to have, then whoever is idlest.
            .min_by_key(|(member, reading)| {
                let surplus = i128::from(member.cpus) - i128::from(member.bounds.desired);
                (-surplus, reading.busy, member.instance)
            });
        let (from, leisure) = match giver {
            _ if pool_cpus > 0 => (From::Pool, None),
            Some((member, reading)) => (From::Instance(member.instance), Some(**reading)),
            None => return Verdict::Stay(Stay::NobodyGives),
        };
        let proposal = Proposal { from, to: to.instance, need: **need, leisure };
        if let From::Instance(from) = from {
            self.rest(now_ns, from, Direction::Gave);
        }
        self.rest(now_ns, proposal.to, Direction::Got);
        Verdict::Move(proposal)
    }

    /// Says what became of a proposal. If nothing was moved, what stood in its way most likely still does: whoever was to give rests
    /// twice as long each time (the receiver, if it was a free CPU), so that others are asked in the meantime.
    pub fn ended(&mut self, now_ns: u64, proposal: &Proposal, moved: bool) {
        let answerable = match proposal.from {
            From::Pool => proposal.to,
            From::Instance(from) => from,
        };
        let Some(memory) = self.kernels.get_mut(&answerable) else { return };
        memory.failures = if moved { 0 } else { memory.failures.saturating_add(1) };
        if !moved {
            let rested_ns = memory.last.map_or(self.policy.rest_ns, |(_, rested_ns)| rested_ns);
            let longer = 1_u64.checked_shl(memory.failures).unwrap_or(u64::MAX);
            let rest_ns = rested_ns.saturating_mul(longer).min(self.policy.rest_max_ns);
            memory.rests_until_ns = memory.rests_until_ns.max(now_ns.saturating_add(rest_ns));
        }
    }

    /// How a member stands, as of the last decision.
    pub fn standing(&self, now_ns: u64, instance: InstanceId) -> Standing {
        let Some(memory) = self.kernels.get(&instance) else { return Standing::default() };
        let since = |since_ns: Option<u64>| since_ns.map(|since_ns| now_ns.saturating_sub(since_ns));
        Standing {
            rests_ns: memory.rests_until_ns.saturating_sub(now_ns),
            wants_ns: since(memory.wants_since_ns),
            gives_ns: since(memory.gives_since_ns),
        }
    }

    fn observe(&mut self, now_ns: u64, member: &Member, reading: Option<&Reading>) {
        let policy = self.policy;
        let memory = self.kernels.entry(member.instance).or_default();
        let wants = reading.is_some_and(|reading| reading.stall >= policy.wants_at);
        let gives = reading.is_some_and(|reading| {
            let keeps = member.cpus.saturating_sub(1);
            // What it does now, on one CPU less.
            let busy_after = u64::from(reading.busy) * member.cpus / keeps.max(1);
            reading.stall <= policy.gives_at
                && keeps >= member.bounds.min.max(1)
                && busy_after <= u64::from(policy.busy_after_max)
        });
        memory.wants_since_ns = wants.then(|| memory.wants_since_ns.unwrap_or(now_ns));
        memory.gives_since_ns = gives.then(|| memory.gives_since_ns.unwrap_or(now_ns));
    }

    fn rest(&mut self, now_ns: u64, instance: InstanceId, direction: Direction) {
        let policy = self.policy;
        let memory = self.kernels.entry(instance).or_default();
        // A move that undoes the last one shows that one of them was a mistake, or that the load swings: go slower.
        let rest_ns = match memory.last {
            Some((last, rested_ns)) if last != direction => {
                rested_ns.saturating_mul(2).min(policy.rest_max_ns)
            }
            _ => policy.rest_ns,
        };
        memory.rests_until_ns = now_ns.saturating_add(rest_ns);
        memory.last = Some((direction, rest_ns));
        // What was true before the move says nothing about what is true after it.
        memory.wants_since_ns = None;
        memory.gives_since_ns = None;
    }
}

impl Proposal {
    /// Why, for people who know instances by these names.
    pub fn why(&self, name: impl Fn(InstanceId) -> String) -> String {
        let waits = format!("{} waits for a CPU {} of the time", name(self.to), percent(self.need.stall));
        match self.leisure {
            None => format!("{waits}; one is free"),
            Some(leisure) => format!(
                "{waits}; {} waits {} and is busy {}",
                name(leisure.instance),
                percent(leisure.stall),
                percent(leisure.busy)
            ),
        }
    }
}

fn percent(share: BasisPoints) -> String {
    format!("{}.{:02} %", share / 100, share % 100)
}

#[cfg(test)]
mod tests;
