//! Goals, and whether what was measured meets them.

use serde::Serialize;
use tombolo_benches::probe::Reading;
use tombolo_benches::series::Series;

use crate::results::{Key, OURS, Results, is_rate, unit};

/// How far a quantity may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    LessThan(f64),
    MoreThan(f64),
}

impl Limit {
    fn allows(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::LessThan(limit) => value < limit,
            Self::MoreThan(limit) => value > limit,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
            Self::LessThan(limit) => write!(f, "< {limit}"),
            Self::MoreThan(limit) => write!(f, "> {limit}"),
        }
    }
}

/// One thing that a line demands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Condition {
    /// What is compared.
    pub(crate) what: String,
    /// The middle of all rounds.
    pub(crate) value: Option<f64>,
    pub(crate) goal: String,
    /// `None`: not known, and why is in `reason`.
    pub(crate) holds: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Condition {
    /// That the middle of `series` keeps to `limit`; `missing` says why there may be none.
    pub(crate) fn new(what: impl Into<String>, series: &Series, limit: Limit, missing: &str) -> Self {
        let value = (!series.is_empty()).then(|| series.median());
        Self {
            what: what.into(),
            value,
            goal: limit.to_string(),
            holds: value.map(|value| limit.allows(value)),
            reason: value.is_none().then(|| missing.to_owned()),
        }
    }
}

/// A peer's figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PeerFigure {
    pub(crate) way: String,
    pub(crate) value: f64,
    /// Ours divided by it, if there is one of ours of the same waiting.
    pub(crate) ratio: Option<f64>,
}

/// One row of the table of goals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// What it is about.
    pub(crate) what: String,
    /// The middle of all rounds.
    pub(crate) value: Option<f64>,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    pub(crate) unit: String,
    /// In the unit of the value.
    pub(crate) floor: Option<f64>,
    /// Of what the floor is the cost.
    pub(crate) floor_of: Option<String>,
    pub(crate) best_peer: Option<PeerFigure>,
    /// Value divided by floor, within each reading.
    pub(crate) ratio: Option<f64>,
    pub(crate) goal: String,
    /// Whether all conditions do; `None` if one is not known and none fails.
    pub(crate) holds: Option<bool>,
    pub(crate) conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Line {
    pub(crate) fn new(name: &str, what: &str, goal: &str) -> Self {
        Self {
            name: name.into(),
            what: what.into(),
            value: None,
            min: None,
            max: None,
            unit: String::new(),
            floor: None,
            floor_of: None,
            best_peer: None,
            ratio: None,
            goal: goal.into(),
            holds: None,
            conditions: Vec::new(),
            reason: None,
        }
    }

    /// Fills in what was measured of ours, its floor and the best peer.
    pub(crate) fn measured(mut self, results: &Results, key: Key, floor: Floor) -> Self {
        let values = results.series(key, OURS, |reading| Some(reading.value));
        self.unit = unit(key.test).into();
        if !values.is_empty() {
            (self.value, self.min, self.max) =
                (Some(values.median()), Some(values.min()), Some(values.max()));
            let floors = results.series(key, OURS, |reading| floor.of(reading));
            let ratios = results.series(key, OURS, |reading| Some(reading.value / floor.of(reading)?));
            self.floor = (!floors.is_empty()).then(|| floors.median());
            self.floor_of = self.floor.map(|_| floor.name().to_owned());
            self.ratio = (!ratios.is_empty()).then(|| ratios.median());
        }
        self.best_peer = best_peer(results, key);
        self
    }

    /// Fills in a figure that was measured once.
    pub(crate) fn figure(mut self, results: &Results, name: &str) -> Self {
        let figures: Vec<_> = results.figures.iter().filter(|figure| figure.name == name).collect();
        // Of several sizes the largest is meant.
        if let Some(figure) = figures.iter().max_by_key(|figure| figure.of) {
            self.value = Some(figure.value);
            self.unit = figure.unit.clone();
        }
        self
    }

    /// Fills in what that figure is compared with, which is of the same kind.
    pub(crate) fn floor_figure(mut self, results: &Results, name: &str, of: &str) -> Self {
        self.floor = results.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value);
        self.floor_of = self.floor.map(|_| of.to_owned());
        self.ratio = self.value.zip(self.floor).map(|(value, floor)| value / floor);
        self
    }

    /// Adds what is demanded, and judges.
    pub(crate) fn demand(mut self, conditions: Vec<Condition>) -> Self {
        self.conditions.extend(conditions);
        self.holds = verdict(&self.conditions);
        let reasons: Vec<_> = self
            .conditions
            .iter()
            .filter_map(|c| Some(format!("{}: {}", c.what, c.reason.as_ref()?)))
            .collect();
        self.reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        self
    }
}

fn verdict(conditions: &[Condition]) -> Option<bool> {
    if conditions.iter().any(|condition| condition.holds == Some(false)) {
        return Some(false);
    }
    (!conditions.is_empty() && conditions.iter().all(|condition| condition.holds == Some(true)))
        .then_some(true)
}

/// What a value is compared with, of the same reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Floor {
    /// The two lines, there and back.
    Lines,
    /// So many copies of the message by one thread: nanoseconds, or the rate of one copy for rates.
    Memcpy(u32),
    /// The wake of an eventfd.
    Eventfd,
}

impl Floor {
    pub(crate) fn of(self, reading: &Reading) -> Option<f64> {
        let floors = &reading.floors;
        match self {
            Self::Lines if is_rate(reading.probe.test) => None,
            Self::Lines => Some(floors.lines_ns[0]),
            Self::Memcpy(_) if is_rate(reading.probe.test) => {
                Some(reading.probe.bytes as f64 / floors.memcpy_ns)
            }
            Self::Memcpy(copies) => Some(floors.memcpy_ns * f64::from(copies)),
            Self::Eventfd => floors.eventfd_ns,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lines => "two lines (F)",
            Self::Memcpy(1) => "memcpy (M)",
            Self::Memcpy(_) => "the memcpys it must do",
            Self::Eventfd => "eventfd wake",
        }
    }
}

/// The peer with the best figure, and what ours is to it.
pub(crate) fn best_peer(results: &Results, key: Key) -> Option<PeerFigure> {
    let figures = results.peers(key).into_iter().map(|way| {
        let ratios = results.ratio((key, OURS), (key, way));
        PeerFigure {
            way: way.to_owned(),
            value: results.series(key, way, |reading| Some(reading.value)).median(),
            ratio: (!ratios.is_empty()).then(|| ratios.median()),
        }
    });
    match is_rate(key.test) {
        true => figures.max_by(|a, b| a.value.total_cmp(&b.value)),
        false => figures.min_by(|a, b| a.value.total_cmp(&b.value)),
    }
}

/// Makes conditions out of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge<'a>(pub(crate) &'a Results);

impl Judge<'_> {
    /// Our value, in its unit.
    pub(crate) fn value(self, what: &str, key: Key, limit: Limit) -> Condition {
        let values = self.0.series(key, OURS, |reading| Some(reading.value));
        Condition::new(what, &values, limit, &self.missing(key, OURS))
    }

    /// Our value by its floor.
    pub(crate) fn to_floor(self, what: &str, key: Key, floor: Floor, limit: Limit) -> Condition {
        let ratios = self.0.series(key, OURS, |reading| Some(reading.value / floor.of(reading)?));
        Condition::new(what, &ratios, limit, &self.missing(key, OURS))
    }

    /// A percentile of ours by F.
    pub(crate) fn percentile_to_lines(self, what: &str, key: Key, percent: f64, limit: Limit) -> Condition {
        let ratios = self.0.series(key, OURS, |reading| {
            let (_, ns) = reading.percentiles.iter().find(|(found, _)| *found == percent)?;
            Some(ns / reading.floors.lines_ns[0])
        });
        Condition::new(what, &ratios, limit, &self.missing(key, OURS))
    }

    /// Ours by a peer's, round by round.
    pub(crate) fn to_peer(self, what: &str, key: Key, peer: &str, limit: Limit) -> Condition {
        let way = self.0.peers(key).into_iter().find(|way| *way == peer);
        let ratios = way.map(|way| self.0.ratio((key, OURS), (key, way))).unwrap_or_default();
        let missing = match self.0.of(key, OURS).is_empty() {
            true => self.missing(key, OURS),
            false => self.missing(key, peer),
        };
        Condition::new(what, &ratios, limit, &missing)
    }

    /// Ours by that of each peer: the one that comes closest counts.
    pub(crate) fn ahead_of_every_peer(self, key: Key) -> Condition {
        let limit = if is_rate(key.test) { Limit::MoreThan(1.0) } else { Limit::LessThan(1.0) };
        let ratio = best_peer(self.0, key);
        let what = ratio
            .as_ref()
            .map_or_else(|| "ahead of every peer".into(), |peer| format!("by the best peer, {}", peer.way));
        let series: Series = ratio.and_then(|peer| peer.ratio).into_iter().collect();
        Condition::new(what, &series, limit, "not measured: no peer, or not ours")
    }

    /// One of ours by another of ours, round by round.
    pub(crate) fn to_ours(self, what: &str, key: Key, other: Key, limit: Limit) -> Condition {
        let ratios = self.0.ratio((key, OURS), (other, OURS));
        Condition::new(what, &ratios, limit, &self.missing(key, OURS))
    }

    /// A figure that was measured once, of the largest size.
    pub(crate) fn figure(self, what: &str, name: &str, limit: Limit) -> Condition {
        let of = self.0.figures.iter().filter(|figure| figure.name == name).map(|figure| figure.of).max();
        let values: Series = self
            .0
            .figures
            .iter()
            .filter(|figure| figure.name == name && Some(figure.of) == of)
            .map(|figure| figure.value)
            .collect();
        let task = name.split('/').next().unwrap_or(name);
        Condition::new(what, &values, limit, &self.reason(|what| what == task))
    }

    fn missing(self, key: Key, way: &str) -> String {
        let probe = crate::text::key(key);
        self.reason(|what| {
            what == format!("{probe}, {way}") || (way != OURS && (what == "peers" || what == way))
        })
    }

    fn reason(self, is_about: impl Fn(&str) -> bool) -> String {
        let missing = self.0.missing.iter().find(|missing| is_about(&missing.what));
        missing.map_or_else(
            || "not measured in this run".into(),
            |missing| format!("not measured: {}", missing.reason),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tombolo_benches::probe::{Floors, Probe, Test, Waiting};

    use super::*;
    use crate::machine::{Beside, Machine};
    use crate::results::{Missing, Taken};

    pub(crate) const SMALL: Key = Key { test: Test::RoundTrip, bytes: 56, waiting: Waiting::Busy };

    pub(crate) fn nothing() -> Results {
        Results {
            machine: Machine {
                cpu: "a processor".into(),
                cores: 2,
                kernel: "6.1".into(),
                hypervisor: "none".into(),
                load_before: 0.0,
            },
            beside: Beside::default(),
            rounds: 1,
            quick: false,
            took_s: 1.0,
            taken: Vec::new(),
            figures: Vec::new(),
            missing: Vec::new(),
        }
    }

    pub(crate) fn taken(round: u32, key: Key, way: &str, value: f64, floor: f64) -> Taken {
        let probe = Probe { test: key.test, way: way.into(), bytes: key.bytes, waiting: key.waiting };
        let percentiles =
            if is_rate(key.test) { Vec::new() } else { vec![(50.0, value), (99.0, 2.0 * value)] };
        let floors = Floors { lines_ns: [floor, 2.0 * floor], memcpy_ns: 10.0, eventfd_ns: None };
        Taken {
            round,
            beside: Beside::default(),
            reading: Reading { probe, value, percentiles, floors, note: None },
        }
    }

    #[test]
    fn ratio_to_the_floor_is_taken_within_each_reading() {
        let mut results = nothing();
        // The cores moved apart in the second round: floor and value double, the ratio stays.
        results.taken = vec![
            taken(1, SMALL, OURS, 120.0, 100.0),
            taken(2, SMALL, OURS, 240.0, 200.0),
            taken(3, SMALL, OURS, 120.0, 100.0),
        ];
        let condition = Judge(&results).to_floor("of F", SMALL, Floor::Lines, Limit::AtMost(1.3));
        assert_eq!((condition.value, condition.holds), (Some(1.2), Some(true)));
        let condition = Judge(&results).percentile_to_lines("p99", SMALL, 99.0, Limit::AtMost(2.3));
        assert_eq!((condition.value, condition.holds), (Some(2.4), Some(false)));
    }

    #[test]
    fn ratio_to_a_peer_is_taken_within_each_round() {
        let mut results = nothing();
        results.taken = vec![
            taken(1, SMALL, OURS, 100.0, 100.0),
            taken(1, SMALL, "aeron", 200.0, 100.0),
            taken(2, SMALL, OURS, 300.0, 300.0),
            taken(2, SMALL, "aeron", 600.0, 300.0),
            // Ours is missing in this round.
            taken(3, SMALL, "aeron", 1.0, 100.0),
        ];
        let condition = Judge(&results).to_peer("by Aeron's", SMALL, "aeron", Limit::AtMost(0.6));
        assert_eq!((condition.value, condition.holds), (Some(0.5), Some(true)));
    }

    #[test]
    fn a_missing_peer_leaves_the_line_open_and_says_why() {
        let mut results = nothing();
        results.taken = vec![taken(1, SMALL, OURS, 100.0, 100.0)];
        results.missing =
            vec![Missing { what: "round trip 56 B, busy, aeron".into(), reason: "no cmake".into() }];
        let judge = Judge(&results);
        let line = Line::new("name", "what", "goal").measured(&results, SMALL, Floor::Lines).demand(vec![
            judge.to_floor("of F", SMALL, Floor::Lines, Limit::AtMost(1.3)),
            judge.to_peer("by Aeron's", SMALL, "aeron", Limit::AtMost(1.0)),
        ]);
        assert_eq!((line.value, line.holds, line.best_peer), (Some(100.0), None, None));
        assert_eq!(line.reason.as_deref(), Some("by Aeron's: not measured: no cmake"));
    }

    #[test]
    fn one_condition_that_fails_fails_the_line_whatever_is_missing() {
        let mut results = nothing();
        results.taken = vec![taken(1, SMALL, OURS, 200.0, 100.0)];
        let judge = Judge(&results);
        let line = Line::new("name", "what", "goal").demand(vec![
            judge.to_floor("of F", SMALL, Floor::Lines, Limit::AtMost(1.3)),
            judge.ahead_of_every_peer(SMALL),
        ]);
        assert_eq!(line.holds, Some(false));
    }

    #[test]
    fn ahead_of_every_peer_is_judged_by_the_best_one() {
        let mut results = nothing();
        results.taken = vec![
            taken(1, SMALL, OURS, 100.0, 100.0),
            taken(1, SMALL, "slow", 900.0, 100.0),
            taken(1, SMALL, "fast", 90.0, 100.0),
            // A part of ours is no peer.
            taken(1, SMALL, crate::results::BARE, 1.0, 100.0),
        ];
        let condition = Judge(&results).ahead_of_every_peer(SMALL);
        assert_eq!((condition.what.as_str(), condition.holds), ("by the best peer, fast", Some(false)));
        let rate = Key { test: Test::OneWay, ..SMALL };
        results.taken = vec![taken(1, rate, OURS, 50.0, 1.0), taken(1, rate, "slow", 40.0, 1.0)];
        assert_eq!(Judge(&results).ahead_of_every_peer(rate).holds, Some(true));
    }

    #[test]
    fn a_stream_is_compared_with_the_rate_of_a_copy() {
        let key = Key { test: Test::Stream, bytes: 1000, waiting: Waiting::Busy };
        let mut results = nothing();
        results.taken = vec![taken(1, key, OURS, 80.0, 100.0)];
        // 1000 bytes in 10 ns.
        let line = Line::new("name", "what", "goal").measured(&results, key, Floor::Memcpy(1));
        assert_eq!((line.floor, line.ratio), (Some(100.0), Some(0.8)));
    }

    #[test]
    fn nothing_measured_holds_nothing() {
        let line = Line::new("name", "what", "goal").demand(Vec::new());
        assert_eq!((line.holds, line.value), (None, None));
        assert_eq!(verdict(&[]), None);
    }
}
