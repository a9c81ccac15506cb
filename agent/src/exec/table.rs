//! The jobs there are, and for how long those that ended are remembered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::job::Job;
use crate::api::exec::ExecError;

/// Jobs that may run at the same time: each holds up to 4 descriptors and 256 KiB, and a small kernel has 64 MiB.
const RUNNING_MAX: u32 = 128;
/// Ended detached jobs that are remembered; the oldest is forgotten first.
const ENDED_MAX: usize = 32;

#[derive(Debug, Default)]
pub(super) struct JobTable {
    jobs: BTreeMap<u64, Arc<Job>>,
    last_id: u64,
}

impl JobTable {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn by_id(&self, id: u64) -> Option<Arc<Job>> {
        self.jobs.get(&id).cloned()
    }

    /// The detached job that was started with `key`: an attached one belongs to its call.
    pub(super) fn by_key(&self, key: &str) -> Option<Arc<Job>> {
        let mut detached = self.jobs.values().filter(|job| job.facts.detached);
        detached.find(|job| job.facts.spec.key.as_deref() == Some(key)).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Job>> {
        self.jobs.values().cloned().collect()
    }

    pub(super) fn running(&self) -> u32 {
        self.jobs.values().filter(|job| job.exit().is_none()).count() as u32
    }

    pub(super) fn check_room(&self) -> Result<(), ExecError> {
        match self.running() {
            running @ RUNNING_MAX.. => Err(ExecError::TooMany { running, limit: RUNNING_MAX }),
            _ => Ok(()),
        }
    }

    pub(super) fn insert(&mut self, job: Arc<Job>) {
        self.jobs.insert(job.facts.id, job);
        let ended: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| job.exit().is_some()).map(|(id, _)| *id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            self.jobs.remove(id);
        }
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.jobs.remove(&id);
    }
}
