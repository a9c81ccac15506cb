//! One look at everybody who is to take part: the ledger is read, the agents are asked, all at once.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tombolo_agent::api::health::{HealthClient, SystemLoad};
use tombolo_handover::balance::{Member, Reading};
use tombolo_handover::{Coordinator, InstanceId};
use tombolo_rpc::Link;
use tombolo_transport::Cid;

use super::gather::{self, NoReading, NotAMember, Sample};
use crate::core::{InstanceName, State};
use crate::daemon::handover::instance_of;
use crate::daemon::registry::Registry;
use crate::time::monotonic_ns;

/// How long an agent may take to answer. A kernel that is short of CPUs takes its time; the next look is a second away.
const ANSWER_MAX: Duration = Duration::from_millis(900);

/// An instance that is to take part, and whether it does.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: InstanceId,
    pub(super) name: InstanceName,
    pub(super) member: Result<Member, NotAMember>,
    link: Option<Link>,
}

/// Remembers what was seen last.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    samples: BTreeMap<InstanceId, Sample>,
    readings: BTreeMap<InstanceId, Result<Reading, NoReading>>,
}

/// Everybody who is to take part, by name, as the ledger has it now.
pub(super) fn candidates(registry: &Registry, coordinator: &Coordinator) -> Vec<Candidate> {
    let candidate = |handle: crate::daemon::instance::Handle| {
        let face = handle.face.borrow().clone();
        let id = instance_of(Cid(face.view.cid));
        let runs = face.view.state == State::Running;
        let member = gather::member(coordinator, id, runs);
        face.balances.then(|| Candidate { id, name: handle.name.clone(), member, link: face.link })
    };
    registry.all().into_iter().filter_map(candidate).collect()
}

#[cfg(test)]
impl Candidate {
    pub(super) fn without_agent(id: InstanceId, name: &str, member: Result<Member, NotAMember>) -> Self {
        Self { id, name: name.parse().unwrap(), member, link: None }
    }
}

impl Lookout {
    /// Asks every member how it is. Of one that does not answer the last reading stays, and grows old.
    pub(super) async fn look(&mut self, candidates: &[Candidate]) {
        let of_a_member = |id: InstanceId| {
            candidates.iter().any(|candidate| candidate.id == id && candidate.member.is_ok())
        };
        self.samples.retain(|id, _| of_a_member(*id));
        self.readings.retain(|id, _| of_a_member(*id));
        let mut answers = JoinSet::new();
        for candidate in candidates.iter().filter(|candidate| candidate.member.is_ok()) {
            let Some(link) = candidate.link.clone() else { continue };
            let id = candidate.id;
            answers.spawn(async move { Some((id, ask(link).await?)) });
        }
        while let Some(answer) = answers.join_next().await {
            let Ok(Some((id, sample))) = answer else { continue };
            let reading = gather::reading(id, self.samples.get(&id), &sample);
            self.samples.insert(id, sample);
            self.readings.insert(id, reading);
        }
    }

    /// The last reading of each member of which there is one.
    pub(super) fn readings(&self) -> Vec<Reading> {
        self.readings.values().filter_map(|reading| reading.as_ref().ok()).copied().collect()
    }

    /// The last reading of this one; `None` if it has not answered yet.
    pub(super) fn reading(&self, id: InstanceId) -> Option<Result<Reading, NoReading>> {
        self.readings.get(&id).copied()
    }
}

async fn ask(link: Link) -> Option<Sample> {
    // Before it measures: a reading must not seem newer than it is.
    let at_ns = monotonic_ns();
    let report = HealthClient::new(link).status().deadline(ANSWER_MAX).await;
    let load: SystemLoad = report.ok()?.load;
    Some(Sample { at_ns, load })
}
