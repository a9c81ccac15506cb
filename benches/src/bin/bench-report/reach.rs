//! The goals: a line each, and what each needs.

use tombolo_benches::calls::RECORD_BYTES;
use tombolo_benches::probe::{Test, Waiting};

use crate::judge::{Floor, Judge, Limit, Line};
use crate::results::{Key, Results};

const fn key(test: Test, bytes: usize, waiting: Waiting) -> Key {
    Key { test, bytes, waiting }
}

const ROUND_TRIP_56: Key = key(Test::RoundTrip, 56, Waiting::Busy);
const ROUND_TRIP_4096: Key = key(Test::RoundTrip, 4096, Waiting::Busy);
const ONE_WAY: Key = key(Test::OneWay, 64, Waiting::Busy);
const ONE_WAY_BATCHED: Key = key(Test::OneWayBatched, 64, Waiting::Busy);
const STREAM_64K: Key = key(Test::Stream, 64 << 10, Waiting::Busy);
const STREAM_1M: Key = key(Test::Stream, 1 << 20, Waiting::Busy);
const LOAN_ROUND_TRIP: Key = key(Test::LoanRoundTrip, 1 << 20, Waiting::Busy);
const LOAN_ONE_WAY: Key = key(Test::LoanOneWay, 1 << 20, Waiting::Busy);
const CALL_BUSY: Key = key(Test::Call, RECORD_BYTES, Waiting::Busy);
const CALL_TOKIO: Key = key(Test::Call, RECORD_BYTES, Waiting::Tokio);
const IN_FLIGHT: Key = key(Test::CallsInFlight, RECORD_BYTES, Waiting::Tokio);
const CALL_BYTES: Key = key(Test::CallWithBytes, 64 << 10, Waiting::Busy);
const CALL_BYTES_TOKIO: Key = key(Test::CallWithBytes, 64 << 10, Waiting::Tokio);
const WAKE: Key = key(Test::Wake, 56, Waiting::Asleep);

/// Peers that goals name, as their program calls them.
const AERON: &str = "aeron";
const ICEORYX2: &str = "iceoryx2 copying";

/// Tasks of the program that measures how cost grows; also names of lines.
pub(crate) const CONNECT: &str = "connect";
pub(crate) const IDLE: &str = "idle";
pub(crate) const HEARTBEATS: &str = "heartbeats";
pub(crate) const CONTROL_PLANE: &str = "control-plane";
/// Tasks of the program that boots kernels; also names of lines.
pub(crate) const UML: &str = "uml-56";
pub(crate) const PACED: &str = "paced-vsock";

/// The names of all lines, in their order.
pub(crate) const NAMES: [&str; 16] = [
    "round-trip-56",
    "round-trip-4096",
    "one-way-64",
    "stream",
    "loan-1m",
    "call-busy",
    "call-tokio",
    "calls-in-flight",
    "call-64k",
    "wake",
    UML,
    PACED,
    IDLE,
    CONNECT,
    HEARTBEATS,
    CONTROL_PLANE,
];

/// Whether `--only` asks for the line of this name.
pub(crate) fn is_wanted(name: &str, only: Option<&str>) -> bool {
    only.is_none_or(|only| name.contains(only))
}

/// What must be measured for the wanted lines.
pub(crate) fn keys(only: Option<&str>) -> Vec<Key> {
    let needs: [(&str, &[Key]); 10] = [
        (NAMES[0], &[ROUND_TRIP_56]),
        (NAMES[1], &[ROUND_TRIP_4096]),
        (NAMES[2], &[ONE_WAY, ONE_WAY_BATCHED]),
        (NAMES[3], &[STREAM_64K, STREAM_1M]),
        (NAMES[4], &[LOAN_ROUND_TRIP, ROUND_TRIP_56, LOAN_ONE_WAY]),
        (NAMES[5], &[CALL_BUSY]),
        (NAMES[6], &[CALL_TOKIO]),
        (NAMES[7], &[IN_FLIGHT]),
        (NAMES[8], &[CALL_BYTES, CALL_BYTES_TOKIO]),
        (NAMES[9], &[WAKE]),
    ];
    let wanted = needs.into_iter().filter(|(name, _)| is_wanted(name, only));
    let mut keys: Vec<_> = wanted.flat_map(|(_, keys)| keys.iter().copied()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Judges all lines.
pub(crate) fn lines(results: &Results) -> Vec<Line> {
    messages(results).into_iter().chain(calls(results)).chain(scale(results)).collect()
}

fn messages(results: &Results) -> Vec<Line> {
    let judge = Judge(results);
    vec![
        Line::new(
            NAMES[0],
            "56 B message there and back, busy",
            "<= 1.3 F, p99 <= 2.5 F, ahead of every peer",
        )
        .measured(results, ROUND_TRIP_56, Floor::Lines)
        .demand(vec![
            judge.to_floor("by F", ROUND_TRIP_56, Floor::Lines, Limit::AtMost(1.3)),
            judge.percentile_to_lines("p99 by F", ROUND_TRIP_56, 99.0, Limit::AtMost(2.5)),
            judge.ahead_of_every_peer(ROUND_TRIP_56),
        ]),
        Line::new(
            NAMES[1],
            "4 KiB message there and back, every byte touched",
            "<= 0.6 x Aeron, <= 0.45 x iceoryx2 copying",
        )
        .measured(results, ROUND_TRIP_4096, Floor::Lines)
        .demand(vec![
            judge.to_peer("by Aeron's", ROUND_TRIP_4096, AERON, Limit::AtMost(0.6)),
            judge.to_peer("by iceoryx2's", ROUND_TRIP_4096, ICEORYX2, Limit::AtMost(0.45)),
        ]),
        Line::new(
            NAMES[2],
            "one way, 64 B, every byte touched",
            ">= 1.2 x Aeron singly, >= 2 x Aeron batched (both by Aeron's of the same kind)",
        )
        .measured(results, ONE_WAY, Floor::Lines)
        .demand(vec![
            judge.to_peer("singly, by Aeron's", ONE_WAY, AERON, Limit::AtLeast(1.2)),
            judge.to_peer("batched, by Aeron's", ONE_WAY_BATCHED, AERON, Limit::AtLeast(2.0)),
        ]),
        Line::new(
            NAMES[3],
            "byte stream (the value is that of 1 MiB)",
            ">= 0.75 M at 64 KiB and at 1 MiB, >= 1.5 x iceoryx2 copying at 1 MiB",
        )
        .measured(results, STREAM_1M, Floor::Memcpy(1))
        .demand(vec![
            judge.to_floor("64 KiB by M", STREAM_64K, Floor::Memcpy(1), Limit::AtLeast(0.75)),
            judge.to_floor("1 MiB by M", STREAM_1M, Floor::Memcpy(1), Limit::AtLeast(0.75)),
            judge.to_peer("1 MiB by iceoryx2's", STREAM_1M, ICEORYX2, Limit::AtLeast(1.5)),
        ]),
        Line::new(
            NAMES[4],
            "loaned 1 MiB message, untouched, there and back",
            "<= 1.5 x the 56 B one; >= 10 M hand-overs/s",
        )
        .measured(results, LOAN_ROUND_TRIP, Floor::Lines)
        .demand(vec![
            judge.to_ours("by the 56 B one", LOAN_ROUND_TRIP, ROUND_TRIP_56, Limit::AtMost(1.5)),
            judge.value("M hand-overs/s", LOAN_ONE_WAY, Limit::AtLeast(10.0)),
        ]),
    ]
}

/// A call with bytes copies them into the shared memory and out of it.
const COPIES_OF_A_CALL: u32 = 2;

fn calls(results: &Results) -> Vec<Line> {
    let judge = Judge(results);
    vec![
        Line::new(NAMES[5], "typed call, client and server busy", "<= 3 F")
            .measured(results, CALL_BUSY, Floor::Lines)
            .demand(vec![judge.to_floor("by F", CALL_BUSY, Floor::Lines, Limit::AtMost(3.0))]),
        Line::new(NAMES[6], "typed call, Tokio at both ends", "<= 1500 ns")
            .measured(results, CALL_TOKIO, Floor::Lines)
            .demand(vec![judge.value("ns", CALL_TOKIO, Limit::AtMost(1500.0))]),
        Line::new(NAMES[7], "typed calls, Tokio, 64 in flight", ">= 3 M calls/s")
            .measured(results, IN_FLIGHT, Floor::Lines)
            .demand(vec![judge.value("M calls/s", IN_FLIGHT, Limit::AtLeast(3.0))]),
        Line::new(NAMES[8], "call with 64 KiB of bytes, busy", "<= 2 x the two memcpys it must do")
            .measured(results, CALL_BYTES, Floor::Memcpy(COPIES_OF_A_CALL))
            .peers_of(results, CALL_BYTES_TOKIO)
            .demand(vec![judge.to_floor(
                "by two memcpys",
                CALL_BYTES,
                Floor::Memcpy(COPIES_OF_A_CALL),
                Limit::AtMost(2.0),
            )]),
        Line::new(NAMES[9], "wake of a parked receiver", "<= 1.3 x the wake of an eventfd")
            .measured(results, WAKE, Floor::Eventfd)
            .demand(vec![judge.to_floor("by an eventfd's", WAKE, Floor::Eventfd, Limit::AtMost(1.3))]),
    ]
}

fn scale(results: &Results) -> Vec<Line> {
    let judge = Judge(results);
    let figure = |what: &str, name: &str, limit| judge.figure(what, name, limit);
    vec![
        Line::new(UML, "56 B between two user-mode kernels, busy", "<= 1.5 x the same between two processes")
            .figure(results, "uml-56/kernels")
            .floor_figure(results, "uml-56/processes", "the same program, twice, in one kernel")
            .demand(vec![figure("by two processes'", "uml-56/ratio", Limit::AtMost(1.5))]),
        Line::new(
            PACED,
            "paced link over AF_VSOCK",
            ">= 0.9 of raw AF_VSOCK loopback on the same kernel, never a lost byte",
        )
        .figure(results, "paced-vsock/link")
        .floor_figure(results, "paced-vsock/raw", "AF_VSOCK alone, in the same kernel")
        .demand(vec![figure("by AF_VSOCK alone", "paced-vsock/ratio", Limit::AtLeast(0.9))]),
        Line::new(IDLE, "10 000 parked connections", "< 1 % of a CPU, <= ring + 2 KiB each")
            .figure(results, "idle/cpu")
            .demand(vec![
                figure("% of a CPU", "idle/cpu", Limit::LessThan(1.0)),
                figure("connections", "idle/connections", Limit::AtLeast(10_000.0)),
                figure("bytes each beside the ring", "idle/bytes", Limit::AtMost(2048.0)),
            ]),
        Line::new(CONNECT, "connect, accept and close", ">= 100 000/s in one process pair; no leak")
            .figure(results, "connect/rate")
            .demand(vec![
                figure("per second", "connect/rate", Limit::AtLeast(100_000.0)),
                figure("halves left over", "connect/halves", Limit::AtMost(0.0)),
                figure("descriptors and maps left over", "connect/left", Limit::AtMost(0.0)),
            ]),
        Line::new(HEARTBEATS, "heartbeats of 511 kernels, looked at every 5 ms", "< 1 % of a CPU")
            .figure(results, "heartbeats/cpu")
            .demand(vec![
                figure("% of a CPU", "heartbeats/cpu", Limit::LessThan(1.0)),
                figure("kernels", "heartbeats/kernels", Limit::AtLeast(511.0)),
            ]),
        Line::new(
            CONTROL_PLANE,
            "200 `process` kernels created, running and healthy",
            "< 20 s; `ps` p99 < 20 ms then; < 1 MiB of the daemon's memory each",
        )
        .figure(results, "control-plane/healthy")
        .demand(vec![
            figure("s until all are healthy", "control-plane/healthy", Limit::LessThan(20.0)),
            figure("kernels", "control-plane/kernels", Limit::AtLeast(200.0)),
            figure("ms of `ps`, p99", "control-plane/ps", Limit::LessThan(20.0)),
            figure("KiB of the daemon each", "control-plane/memory", Limit::LessThan(1024.0)),
        ]),
    ]
}

impl Line {
    /// Where peers have no reading of the same waiting, those of another are shown.
    fn peers_of(mut self, results: &Results, key: Key) -> Self {
        if self.best_peer.is_none() {
            self.best_peer = crate::judge::best_peer(results, key);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_benches::figure::Figure;

    use crate::judge::tests::{nothing, taken};
    use crate::results::Missing;

    #[test]
    fn every_line_has_a_name_of_its_own_and_is_there_though_nothing_was_measured() {
        let lines = lines(&nothing());
        let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, NAMES);
        assert!(lines.iter().all(|line| line.holds.is_none() && line.reason.is_some()));
    }

    #[test]
    fn a_line_by_name_needs_only_its_own_readings() {
        assert_eq!(keys(Some("wake")), [WAKE]);
        assert_eq!(keys(Some("heartbeats")), []);
        assert!(keys(None).len() > 10);
    }

    #[test]
    fn what_needs_kernels_is_open_with_the_reason_where_there_are_none_and_judged_where_there_are() {
        let mut results = nothing();
        results.missing.push(Missing { what: UML.into(), reason: "no kernel could be had".into() });
        let figure = |name: &str, value| Figure {
            name: name.into(),
            of: None,
            value,
            unit: "MB/s".into(),
            note: None,
        };
        let figures = [("paced-vsock/link", 95.0), ("paced-vsock/raw", 100.0), ("paced-vsock/ratio", 0.95)];
        results.figures = figures.into_iter().map(|(name, value)| figure(name, value)).collect();
        let lines = lines(&results);
        let line = |name: &str| lines.iter().find(|line| line.name == name).unwrap();
        assert_eq!(line(UML).holds, None);
        assert!(line(UML).reason.as_ref().unwrap().contains("no kernel could be had"));
        let paced = line(PACED);
        assert_eq!(
            (paced.holds, paced.value, paced.floor, paced.ratio),
            (Some(true), Some(95.0), Some(100.0), Some(0.95))
        );
    }

    #[test]
    fn a_loan_is_compared_with_the_small_message_of_the_same_round() {
        let mut results = nothing();
        results.taken = vec![
            taken(1, ROUND_TRIP_56, "tombolo", 100.0, 100.0),
            taken(1, LOAN_ROUND_TRIP, "tombolo", 140.0, 100.0),
            taken(1, LOAN_ONE_WAY, "tombolo", 11.0, 100.0),
        ];
        let lines = lines(&results);
        assert_eq!((lines[4].holds, lines[4].value), (Some(true), Some(140.0)));
    }
}
