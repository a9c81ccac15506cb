//! Balancing while it is on: what it remembers from look to look, and what it begins.

use std::sync::Arc;

use tombolo_handover::balance::{Balancer, From, Member, Proposal, Stay, Verdict};
use tombolo_handover::{Coordinator, InstanceId, OpId, Operation, Phase, Request, Side, What};

use super::gather::{self, percent};
use super::look::{Candidate, Lookout, candidates};
use crate::api::balance::{BalanceMember, BalanceMove, BalanceStatus, Decision, MoveOutcome};
use crate::core::balance::BalanceSettings;
use crate::core::{EventKind, InstanceName};
use crate::daemon::registry::Registry;
use crate::daemon::shared::Shared;
use crate::time::{monotonic_ns, unix_ns};

/// Balancing by one set of settings.
#[derive(Debug)]
pub(super) struct Round {
    settings: BalanceSettings,
    balancer: Balancer,
    lookout: Lookout,
    under_way: Option<UnderWay>,
}

/// What the idempotency keys of its moves begin with.
const KEY: &str = "balance-";

/// A move that was begun and has not ended.
#[derive(Debug)]
pub(super) struct UnderWay {
    id: OpId,
    proposal: Proposal,
    ends: Ends,
}

/// Between whom something moves, by name.
#[derive(Clone, Debug)]
struct Ends {
    from: Side,
    to: InstanceName,
}

impl Round {
    /// With a move that was begun by other settings, if it has not ended.
    pub(super) fn new(settings: BalanceSettings, under_way: Option<UnderWay>) -> Self {
        let balancer = Balancer::new(settings.policy());
        Self { settings, balancer, lookout: Lookout::default(), under_way }
    }

    pub(super) fn into_under_way(self) -> Option<UnderWay> {
        self.under_way
    }

    /// Looks at everybody, decides, begins what was decided, and shows what was seen.
    pub(super) async fn look(&mut self, shared: &Arc<Shared>, registry: &Registry) {
        // Without a ledger nothing moves; the daemon has told about that when it started.
        let Ok(coordinator) = shared.ledger.coordinator() else { return };
        self.lookout.look(&candidates(registry, &coordinator)).await;
        // The answers may have taken a while: the decision is made on the books as they are now.
        let Ok(coordinator) = shared.ledger.coordinator() else { return };
        self.follow_up(shared, &coordinator).await;
        let candidates = candidates(registry, &coordinator);
        let waits_for = under_way(&coordinator);
        let members: Vec<Member> = candidates
            .iter()
            .filter_map(|candidate| candidate.member.ok())
            .map(|member| Member { is_moving: member.is_moving || waits_for.is_some(), ..member })
            .collect();
        let free_cpus = gather::free_cpus(&coordinator);
        let verdict = self.balancer.decide(monotonic_ns(), &members, &self.lookout.readings(), free_cpus);
        let decision = match waits_for {
            Some(id) => Decision::Waits { operation: id.0 },
            None => decision_of(&verdict, &candidates),
        };
        if let Verdict::Move(proposal) = verdict {
            self.begin(shared, &candidates, proposal).await;
        }
        let now_ns = monotonic_ns();
        let member = |one: &Candidate| member_of(one, &self.lookout, &self.balancer, now_ns);
        let status = BalanceStatus {
            settings: Some(self.settings),
            members: candidates.iter().map(member).collect(),
            free_cpus,
            decision: Some(decision),
            last_move: None,
        };
        shared.balance.seen.send_replace(Some(status));
    }

    /// Submits what was decided, unless that was turned off in the meantime.
    async fn begin(&mut self, shared: &Arc<Shared>, candidates: &[Candidate], proposal: Proposal) {
        let Some(ends) = Ends::of(&proposal, candidates) else { return };
        let Some(_begins) = shared.balance.may_begin(&self.settings).await else { return };
        let why = proposal.why(|id| name_of(id, candidates));
        let at_unix_ns = unix_ns();
        // Not bound to a version of the ledger: whatever else moves raises it, and the plan is checked against limits and owners as
        // they are then.
        let request = Request::new(
            format!("{KEY}{at_unix_ns}"),
            ends.from.clone(),
            Side::Instance(ends.to.to_string()),
            What::CpuCount(1),
        );
        let submitted = shared.ledger.submit(request).await;
        let id = submitted.as_ref().ok().map(|operation| operation.id);
        let refusal = submitted.as_ref().err().map(|error| MoveOutcome::NotMoved(error.to_string()));
        shared.balance.last_move.send_replace(Some(BalanceMove {
            at_unix_ns,
            from: ends.from.to_string(),
            to: ends.to.to_string(),
            why: why.clone(),
            operation: id.map(|id| id.0),
            outcome: refusal,
        }));
        match submitted {
            Ok(operation) => {
                tracing::info!(id = %operation.id, from = %ends.from, to = %ends.to, why, "a CPU is to move");
                let (from, to) = (ends.from.to_string(), ends.to.to_string());
                let proposed = EventKind::BalanceProposed { operation: operation.id.0, from, to, why };
                shared.note(Some(&ends.to), proposed).await;
                self.under_way = Some(UnderWay { id: operation.id, proposal, ends });
            }
            Err(error) => {
                let refused = MoveOutcome::NotMoved(error.to_string());
                self.settle(shared, &proposal, &ends, None, refused).await;
            }
        }
    }

    /// Takes note of how the move ended that was begun last, if it has.
    async fn follow_up(&mut self, shared: &Shared, coordinator: &Coordinator) {
        let Some(under_way) = self.under_way.take() else { return };
        let Some(outcome) = outcome_of(coordinator, under_way.id) else {
            self.under_way = Some(under_way);
            return;
        };
        let UnderWay { id, proposal, ends } = under_way;
        self.settle(shared, &proposal, &ends, Some(id), outcome).await;
    }

    async fn settle(
        &mut self,
        shared: &Shared,
        proposal: &Proposal,
        ends: &Ends,
        id: Option<OpId>,
        outcome: MoveOutcome,
    ) {
        self.balancer.ended(monotonic_ns(), proposal, outcome == MoveOutcome::Moved);
        if let MoveOutcome::NotMoved(reason) = outcome {
            tracing::warn!(from = %ends.from, to = %ends.to, reason, "no CPU moved");
            let (from, to) = (ends.from.to_string(), ends.to.to_string());
            let failed = EventKind::BalanceFailed { operation: id.map(|id| id.0), from, to, reason };
            shared.note(Some(&ends.to), failed).await;
        }
    }
}

impl Ends {
    fn of(proposal: &Proposal, candidates: &[Candidate]) -> Option<Self> {
        let named = |id: InstanceId| candidates.iter().find(|candidate| candidate.id == id);
        let from = match proposal.from {
            From::Pool => Side::Pool,
            From::Instance(id) => Side::Instance(named(id)?.name.to_string()),
        };
        Some(Self { from, to: named(proposal.to)?.name.clone() })
    }
}

/// The move of a balancer that has not ended, be it of an earlier daemon.
fn under_way(coordinator: &Coordinator) -> Option<OpId> {
    let is_open =
        |operation: &&Operation| !operation.phase.is_terminal() && operation.request.key.starts_with(KEY);
    coordinator.operations().find(is_open).map(|operation| operation.id)
}

/// How a move ended; `None` while it is under way.
pub(super) fn outcome_of(coordinator: &Coordinator, id: OpId) -> Option<MoveOutcome> {
    let Some(operation) = coordinator.operation(id) else {
        return Some(MoveOutcome::NotMoved("it is not remembered any more how it ended".to_owned()));
    };
    operation.phase.is_terminal().then(|| match (operation.phase, &operation.cause) {
        (Phase::Committed, _) => MoveOutcome::Moved,
        (_, Some(cause)) => MoveOutcome::NotMoved(cause.to_string()),
        (phase, None) => MoveOutcome::NotMoved(format!("it ended as {phase}")),
    })
}

/// A verdict in words for people and programs.
pub(super) fn decision_of(verdict: &Verdict, candidates: &[Candidate]) -> Decision {
    match verdict {
        Verdict::Stay(Stay::NobodyWaits) => Decision::NobodyWaits,
        Verdict::Stay(Stay::NobodyGives) => Decision::NobodyGives,
        Verdict::Move(proposal) => Decision::Move {
            from: match proposal.from {
                From::Pool => Side::Pool.to_string(),
                From::Instance(from) => name_of(from, candidates),
            },
            to: name_of(proposal.to, candidates),
            why: proposal.why(|id| name_of(id, candidates)),
        },
    }
}

fn name_of(id: InstanceId, candidates: &[Candidate]) -> String {
    let named = candidates.iter().find(|candidate| candidate.id == id);
    named.map_or_else(|| id.to_string(), |candidate| candidate.name.to_string())
}

/// What is to be shown of one that is to take part.
pub(super) fn member_of(
    candidate: &Candidate,
    lookout: &Lookout,
    balancer: &Balancer,
    now_ns: u64,
) -> BalanceMember {
    let reading = lookout.reading(candidate.id);
    let measured = reading.and_then(Result::ok);
    let problem = match (candidate.member, reading) {
        (Err(reason), _) => Some(reason.to_string()),
        (Ok(_), Some(Err(reason))) => Some(reason.to_string()),
        _ => None,
    };
    let member = candidate.member.ok();
    let standing = balancer.standing(now_ns, candidate.id);
    BalanceMember {
        name: candidate.name.to_string(),
        cpus: member.map_or(0, |member| member.cpus),
        limits: member.map(|member| member.bounds),
        stall_percent: measured.map(|reading| percent(reading.stall)),
        busy_percent: measured.map(|reading| percent(reading.busy)),
        rests_ms: standing.rests_ns / 1_000_000,
        wants_ms: standing.wants_ns.map(|ns| ns / 1_000_000),
        gives_ms: standing.gives_ns.map(|ns| ns / 1_000_000),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use tombolo_handover::Bounds;
    use tombolo_handover::balance::Reading;

    use super::super::gather::NotAMember;
    use super::*;

    const WEB: InstanceId = InstanceId(3);
    const DB: InstanceId = InstanceId(4);

    fn candidates() -> [Candidate; 2] {
        let bounds = Bounds { min: 1, desired: 1, max: 4 };
        let web = Member { instance: WEB, cpus: 1, bounds, is_moving: false };
        [
            Candidate::without_agent(WEB, "web", Ok(web)),
            Candidate::without_agent(DB, "db", Err(NotAMember::NotRunning)),
        ]
    }

    #[test]
    fn a_decision_speaks_of_instances_by_name() {
        let reading = |instance, stall| Reading { instance, at_ns: 0, stall, busy: 100 };
        let proposal = Proposal {
            from: From::Instance(DB),
            to: WEB,
            need: reading(WEB, 5_000),
            leisure: Some(reading(DB, 0)),
        };
        let why = "web waits for a CPU 50.00 % of the time; db waits 0.00 % and is busy 1.00 %".to_owned();
        let expected = Decision::Move { from: "db".into(), to: "web".into(), why };
        assert_eq!(decision_of(&Verdict::Move(proposal), &candidates()), expected);
        let ends = Ends::of(&proposal, &candidates()).unwrap();
        assert_eq!((ends.from, ends.to.as_str()), (Side::Instance("db".into()), "web"));
        let to_a_stranger = Proposal { to: InstanceId(9), ..proposal };
        assert!(Ends::of(&to_a_stranger, &candidates()).is_none());
    }

    #[test]
    fn whoever_takes_no_part_is_shown_with_the_reason_and_without_limits() {
        let [web, db] =
            candidates().map(|candidate| member_of(&candidate, &Lookout::default(), &Balancer::default(), 0));
        assert_eq!((web.cpus, web.limits.map(|limits| limits.max), web.problem), (1, Some(4), None));
        assert_eq!((db.cpus, db.limits, db.problem.as_deref()), (0, None, Some("it does not run")));
    }
}
