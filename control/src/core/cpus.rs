//! Which CPUs of a kernel run nothing, as its agent reports it: what that changes, and how it is said.

use std::collections::BTreeMap;

use tombolo_agent::api::health::StuckCpu;

use super::EventKind;

/// More CPUs than this are not told of one by one. No kernel is given more.
const CPUS_MAX: usize = 64;

/// The CPUs of one boot of a kernel that run nothing, and since when, in ns on a monotonic clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StuckCpus(BTreeMap<u32, u64>);

impl StuckCpus {
    /// Notes what the agent reports now. What has changed.
    pub fn report(&mut self, now_ns: u64, reported: &[StuckCpu]) -> Vec<EventKind> {
        let since_ns = |stuck: &StuckCpu| now_ns.saturating_sub(stuck.silent_ms.saturating_mul(1_000_000));
        let mut events = Vec::new();
        let mut now = BTreeMap::new();
        for stuck in reported.iter().take(CPUS_MAX) {
            let known_ns = self.0.remove(&stuck.cpu);
            if known_ns.is_none() && !now.contains_key(&stuck.cpu) {
                events.push(EventKind::CpuStuck { cpu: stuck.cpu, silent_ms: stuck.silent_ms });
            }
            now.entry(stuck.cpu).or_insert_with(|| known_ns.unwrap_or_else(|| since_ns(stuck)));
        }
        for (cpu, since_ns) in std::mem::replace(&mut self.0, now) {
            let after_ms = now_ns.saturating_sub(since_ns) / 1_000_000;
            events.push(EventKind::CpuRecovered { cpu, after_ms });
        }
        events
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their numbers.
    pub fn numbers(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }

    /// Such as `CPU 1 has run nothing for 1.2 s`; `None` if there are none.
    pub fn reason(&self, now_ns: u64) -> Option<String> {
        let silent_ns = now_ns.saturating_sub(*self.0.values().min()?);
        let silent_s = silent_ns as f64 / 1e9;
        let numbers: Vec<String> = self.0.keys().map(u32::to_string).collect();
        let (plural, have) = if numbers.len() > 1 { ("s", "have") } else { ("", "has") };
        Some(format!("CPU{plural} {} {have} run nothing for {silent_s:.1} s", numbers.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn stuck(cpu: u32, silent_ms: u64) -> StuckCpu {
        StuckCpu { cpu, silent_ms }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut cpus = StuckCpus::default();
        assert_eq!(cpus.report(10 * S, &[stuck(1, 700)]), [EventKind::CpuStuck { cpu: 1, silent_ms: 700 }]);
        assert_eq!(cpus.report(11 * S, &[stuck(1, 1_700)]), []);
        assert_eq!(cpus.reason(11 * S).unwrap(), "CPU 1 has run nothing for 1.7 s");
        let events = cpus.report(12 * S, &[stuck(0, 800)]);
        let expected = [
            EventKind::CpuStuck { cpu: 0, silent_ms: 800 },
            EventKind::CpuRecovered { cpu: 1, after_ms: 2_700 },
        ];
        assert_eq!(events, expected);
        assert_eq!(cpus.numbers(), [0]);
        cpus.report(13 * S, &[]);
        assert_eq!((cpus.is_empty(), cpus.reason(13 * S)), (true, None));
    }

    #[test]
    fn several_are_told_in_one_line() {
        let mut cpus = StuckCpus::default();
        cpus.report(10 * S, &[stuck(3, 700), stuck(1, 2_000)]);
        assert_eq!(cpus.reason(10 * S).unwrap(), "CPUs 1, 3 have run nothing for 2.0 s");
    }

    #[test]
    fn nonsense_of_an_agent_is_bounded() {
        let mut cpus = StuckCpus::default();
        let many: Vec<StuckCpu> = (0..100_000).map(|cpu| stuck(cpu % 1_000, u64::MAX)).collect();
        assert_eq!(cpus.report(1, &many).len(), CPUS_MAX);
        assert_eq!(cpus.report(1, &[stuck(0, 1), stuck(0, 2)]).len(), CPUS_MAX - 1);
    }
}
