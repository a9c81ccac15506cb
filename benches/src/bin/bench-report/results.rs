//! What a run has found.

use serde::Serialize;
use tombolo_benches::figure::Figure;
use tombolo_benches::probe::{Probe, Reading, Test, Waiting};
use tombolo_benches::series::Series;

use crate::machine::{Beside, Machine};

/// Our way among the readings; whatever else our program measures is a part of it, and no peer.
pub(crate) const OURS: &str = "tombolo";
pub(crate) const BARE: &str = "bare ring";

/// A reading, and in which round it was taken.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Taken {
    pub(crate) round: u32,
    pub(crate) beside: Beside,
    #[serde(flatten)]
    pub(crate) reading: Reading,
}

/// What could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Missing {
    /// A probe, or a task.
    pub(crate) what: String,
    pub(crate) reason: String,
}

/// Everything.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) beside: Beside,
    pub(crate) rounds: u32,
    pub(crate) quick: bool,
    pub(crate) took_s: f64,
    pub(crate) taken: Vec<Taken>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) missing: Vec<Missing>,
}

/// What readings of different ways have in common, so that they may be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) test: Test,
    pub(crate) bytes: usize,
    pub(crate) waiting: Waiting,
}

impl Key {
    pub(crate) fn new(test: Test, bytes: usize, waiting: Waiting) -> Self {
        Self { test, bytes, waiting }
    }

    pub(crate) fn of(probe: &Probe) -> Self {
        Self::new(probe.test, probe.bytes, probe.waiting)
    }
}

/// Whether more is better.
pub(crate) fn is_rate(test: Test) -> bool {
    matches!(test, Test::OneWay | Test::OneWayBatched | Test::Stream | Test::LoanOneWay | Test::CallsInFlight)
}

pub(crate) fn unit(test: Test) -> &'static str {
    match test {
        Test::Stream => "GB/s",
        test if is_rate(test) => "M/s",
        _ => "ns",
    }
}

impl Results {
    /// The readings of one way, by round.
    pub(crate) fn of(&self, key: Key, way: &str) -> Vec<&Taken> {
        self.taken
            .iter()
            .filter(|taken| Key::of(&taken.reading.probe) == key && taken.reading.probe.way == way)
            .collect()
    }

    /// One quantity of the readings of one way.
    pub(crate) fn series(&self, key: Key, way: &str, quantity: impl Fn(&Reading) -> Option<f64>) -> Series {
        self.of(key, way).into_iter().filter_map(|taken| quantity(&taken.reading)).collect()
    }

    /// The ways that were measured so, in the order in which they came.
    pub(crate) fn ways(&self, key: Key) -> Vec<&str> {
        let mut ways = Vec::new();
        for taken in &self.taken {
            let probe = &taken.reading.probe;
            if Key::of(probe) == key && !ways.contains(&probe.way.as_str()) {
                ways.push(&probe.way);
            }
        }
        ways
    }

    /// Of those, the peers.
    pub(crate) fn peers(&self, key: Key) -> Vec<&str> {
        self.ways(key).into_iter().filter(|way| *way != OURS && *way != BARE).collect()
    }

    /// Every key there is a reading of.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self.taken.iter().map(|taken| Key::of(&taken.reading.probe)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Ours divided by a peer's, round by round.
    pub(crate) fn ratio(&self, ours: (Key, &str), theirs: (Key, &str)) -> Series {
        let theirs = self.of(theirs.0, theirs.1);
        let pair = |ours: &Taken| {
            let other = theirs.iter().find(|theirs| theirs.round == ours.round)?;
            Some(ours.reading.value / other.reading.value)
        };
        self.of(ours.0, ours.1).into_iter().filter_map(pair).collect()
    }

    /// The smallest, middle and largest F of the run.
    pub(crate) fn lines(&self) -> Series {
        self.taken.iter().map(|taken| taken.reading.floors.lines_ns[0]).collect()
    }

    /// Whether something else ran meanwhile, or the floor itself moved.
    pub(crate) fn under_load(&self) -> Option<String> {
        let lines = self.lines();
        let mut reasons = Vec::new();
        if self.beside.is_load() {
            reasons.push(format!(
                "other programs had {:.0} % of the processors meanwhile, the hypervisor withheld {:.0} %",
                self.beside.others * 100.0,
                self.beside.stolen * 100.0
            ));
        }
        if lines.max() > 1.5 * lines.min() {
            reasons.push(format!(
                "the floor F moved between {:.0} and {:.0} ns, so the cores were not always the same or not always ours",
                lines.min(),
                lines.max()
            ));
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}
