//! On what, and beside what else, was measured.

use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// Of the virtual machine that this is; `none` on bare metal.
    pub(crate) hypervisor: String,
    /// Runnable tasks, on average over the minute before: what was measured may have been built in it.
    pub(crate) load_before: f64,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let is_guest = cpuinfo.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
        let maker = read("/sys/class/dmi/id/sys_vendor").or_else(|_| read("/sys/hypervisor/type"));
        Self {
            cpu: cpu_model(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            hypervisor: match is_guest {
                true => maker.unwrap_or_else(|_| "one that does not say its name".into()),
                false => "none".into(),
            },
            load_before: load_average(),
        }
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let line =
            cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    // Virtual processors often have no name of their own; family and model tell.
    format!(
        "{} (family {}, model {})",
        field("model name").unwrap_or_else(unknown),
        field("cpu family").unwrap_or_else(unknown),
        field("model").unwrap_or_else(unknown)
    )
}

pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// What else the processors did in a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Beside {
    /// Share of all processors that other programs had.
    pub(crate) others: f64,
    /// Share that the hypervisor gave to somebody else.
    pub(crate) stolen: f64,
}

/// Shares above which figures are marked.
const OTHERS_MAX: f64 = 0.05;
const STOLEN_MAX: f64 = 0.02;

impl Beside {
    pub(crate) fn is_load(self) -> bool {
        self.others > OTHERS_MAX || self.stolen > STOLEN_MAX
    }
}

/// Times of all processors together, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    total: u64,
    busy: u64,
    stolen: u64,
    /// Of this process and those it has waited for.
    own: u64,
}

/// Measures [`Beside`] from its making on.
#[derive(Debug)]
pub(crate) struct Watch {
    began: Times,
    at: Instant,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self { began: times(), at: Instant::now() }
    }

    /// Programs that were started since must have been waited for.
    pub(crate) fn beside(&self) -> Beside {
        beside(self.began, times())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

fn beside(began: Times, ended: Times) -> Beside {
    let total = ended.total.saturating_sub(began.total).max(1) as f64;
    let busy = ended.busy.saturating_sub(began.busy);
    let own = ended.own.saturating_sub(began.own);
    let stolen = ended.stolen.saturating_sub(began.stolen);
    Beside { others: busy.saturating_sub(own) as f64 / total, stolen: stolen as f64 / total }
}

fn times() -> Times {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    parse(&stat, &own)
}

/// proc_stat(5): user nice system idle iowait irq softirq steal. proc_pid_stat(5): utime, stime, cutime and cstime are fields 14 to 17.
fn parse(stat: &str, own: &str) -> Times {
    let all = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = all.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
    let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
    let after_name = own.rsplit_once(')').map_or("", |(_, rest)| rest);
    // After the name comes field 3.
    let own = after_name.split_whitespace().skip(11).take(4).map(|word| word.parse().unwrap_or(0));
    Times {
        total: ticks.iter().take(8).sum(),
        busy: at(0) + at(1) + at(2) + at(5) + at(6),
        stolen: at(7),
        own: own.sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "7 (a (strange) name) R 1 1 1 0 -1 4194304 99 0 0 0 10 20 30 40 20 0 1";

    #[test]
    fn what_others_did_is_all_that_was_done_less_our_own() {
        let before = parse("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1 1", "");
        let after = parse("cpu  100 50 50 790 5 0 0 5 0 0\n", OWN);
        assert_eq!(after.own, 100);
        let found = beside(before, after);
        assert_eq!(found, Beside { others: 0.1, stolen: 0.005 });
        assert!(found.is_load());
        assert!(!Beside { others: 0.01, stolen: 0.0 }.is_load());
    }

    #[test]
    fn a_processor_without_a_name_has_its_family_and_model() {
        let found = cpu_model("processor\t: 0\nmodel name\t: Xeon\ncpu family\t: 6\nmodel\t\t: 167\n");
        assert_eq!(found, "Xeon (family 6, model 167)");
        assert_eq!(cpu_model(""), "unknown (family unknown, model unknown)");
    }
}
