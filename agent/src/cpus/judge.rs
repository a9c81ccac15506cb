//! Which CPUs run nothing. Pure: the time is an argument.
//!
//! A thread that is bound to a CPU counts whenever it gets to run. A CPU whose count stands still while whoever looks gets to run
//! all the same is *stuck*. Silence is summed up from look to look, and of no gap between two looks does more count than was
//! planned: what keeps the looks waiting (a busy kernel, a frozen one) keeps everybody waiting, and accuses nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How much longer a CPU may run nothing where its thread has no precedence over ordinary programs.
const PATIENCE_WITHOUT_PRECEDENCE: u32 = 4;

/// Judges the CPUs of one kernel.
#[derive(Debug)]
pub struct CpuJudge {
    /// The gap between two looks, as planned.
    gap: Duration,
    /// How long a CPU may run nothing.
    limit: Duration,
    last_look: Option<Instant>,
    cpus: BTreeMap<u32, Track>,
}

/// A CPU that runs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Its number.
    pub cpu: u32,
    /// When its thread was last seen to have run.
    pub since: Instant,
}

#[derive(Debug)]
struct Track {
    count: u64,
    moved_at: Instant,
    /// What counts of the time since then.
    silent: Duration,
    is_stuck: bool,
}

impl CpuJudge {
    /// A judge that looks every `gap`. A CPU may run nothing for `stuck_after`, or for a multiple of it where its thread is one
    /// among many (`has_precedence` is false).
    pub fn new(gap: Duration, stuck_after: Duration, has_precedence: bool) -> Self {
        let patience = if has_precedence { 1 } else { PATIENCE_WITHOUT_PRECEDENCE };
        Self { gap, limit: stuck_after.saturating_mul(patience), last_look: None, cpus: BTreeMap::new() }
    }

    /// Looks at the counts of all CPUs that are to be judged; others are forgotten. `true` if other CPUs are stuck than before.
    pub fn look(&mut self, now: Instant, counts: impl IntoIterator<Item = (u32, u64)>) -> bool {
        let elapsed = self.last_look.replace(now).map_or(Duration::ZERO, |last| now.duration_since(last));
        let counted = elapsed.min(self.gap);
        let stuck_before = self.stuck();
        let mut before = std::mem::take(&mut self.cpus);
        for (cpu, count) in counts {
            let track = match before.remove(&cpu) {
                Some(track) if track.count == count => {
                    let silent = track.silent.saturating_add(counted);
                    Track { silent, is_stuck: track.is_stuck || silent >= self.limit, ..track }
                }
                _ => Track { count, moved_at: now, silent: Duration::ZERO, is_stuck: false },
            };
            self.cpus.insert(cpu, track);
        }
        self.stuck() != stuck_before
    }

    /// The CPUs that are stuck, in order.
    pub fn stuck(&self) -> Vec<Stuck> {
        let stuck = self.cpus.iter().filter(|(_, track)| track.is_stuck);
        stuck.map(|(&cpu, track)| Stuck { cpu, since: track.moved_at }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(150);
    const LIMIT: Duration = Duration::from_millis(700);

    /// Two CPUs under watch, on a clock of its own.
    struct Scene {
        judge: CpuJudge,
        now: Instant,
        counts: BTreeMap<u32, u64>,
    }

    impl Scene {
        fn new(has_precedence: bool) -> Self {
            let judge = CpuJudge::new(GAP, LIMIT, has_precedence);
            Self { judge, now: Instant::now(), counts: BTreeMap::from([(0, 1), (1, 1)]) }
        }

        /// Looks again and again, `gap` apart, while these CPUs run something. How often other CPUs were stuck than before.
        fn run(&mut self, time: Duration, gap: Duration, running: &[u32]) -> u32 {
            let until = self.now + time;
            let mut changes = 0;
            while self.now < until {
                self.now += gap;
                for cpu in running {
                    self.counts.entry(*cpu).and_modify(|count| *count += 1);
                }
                changes += u32::from(self.judge.look(self.now, self.counts.clone()));
            }
            changes
        }

        fn stuck(&self) -> Vec<u32> {
            self.judge.stuck().iter().map(|stuck| stuck.cpu).collect()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_cpu_that_runs_nothing_is_told_once_and_only_it_and_recovers() {
        let mut scene = Scene::new(true);
        assert_eq!(scene.run(SECOND, GAP, &[0, 1]), 0);
        let since = scene.now;
        assert_eq!(scene.run(LIMIT - GAP, GAP, &[0]), 0, "not yet");
        assert_eq!(scene.run(10 * SECOND, GAP, &[0]), 1);
        assert_eq!(scene.judge.stuck(), [Stuck { cpu: 1, since }]);
        assert_eq!(scene.run(GAP, GAP, &[0, 1]), 1);
        assert_eq!(scene.stuck(), [0; 0]);
    }

    #[test]
    fn whoever_looks_late_accuses_nobody() {
        let mut scene = Scene::new(true);
        scene.run(SECOND, GAP, &[0, 1]);
        // Frozen for a minute, twice: nobody ran.
        assert_eq!(scene.run(120 * SECOND, 60 * SECOND, &[]), 0);
        // So busy that each look is a second late: each CPU gets to run now and then.
        for _ in 0..20 {
            scene.run(4 * SECOND, SECOND, &[]);
            scene.run(SECOND, SECOND, &[0, 1]);
        }
        assert_eq!(scene.stuck(), [0; 0]);
    }

    #[test]
    fn more_patience_is_had_where_the_threads_are_some_among_many() {
        let mut scene = Scene::new(false);
        scene.run(SECOND, GAP, &[0, 1]);
        assert_eq!(scene.run(2 * SECOND, GAP, &[0]), 0);
        assert_eq!(scene.run(SECOND, GAP, &[0]), 1);
        assert_eq!(scene.stuck(), [1]);
    }

    #[test]
    fn cpus_come_and_go() {
        let mut scene = Scene::new(true);
        scene.run(SECOND, GAP, &[0, 1]);
        scene.counts.remove(&1);
        assert_eq!(scene.run(10 * SECOND, GAP, &[0]), 0, "one that left is not judged");
        scene.counts.insert(1, 0);
        scene.run(GAP, GAP, &[0]);
        assert_eq!(scene.run(10 * SECOND, GAP, &[0]), 1, "one that came and never runs anything is");
        scene.counts.remove(&1);
        assert_eq!(scene.run(GAP, GAP, &[0]), 1);
        assert_eq!(scene.stuck(), [0; 0], "nor is one that left while it was stuck");
    }
}
