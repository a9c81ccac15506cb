//! `tombolo bench`: how fast the link to an instance is, beside what the host itself needs, and whether that is as it should be.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use super::args::BenchArgs;
use super::error::CliError;
use super::output::{bytes, latency, table, text_of};
use super::{Context, Outcome};
use crate::api::measure::{LinkFigures, RoundTrips};

/// How often the floor a link that is as it should be takes, and one that is still fair: two wake-ups of one thread by another for a call whose ends sleep;
/// a copy on one thread for bytes. An agent's link passes two processes, frames, and on its way a broker.
const CALL: Bounds = Bounds { good: 4.0, fair: 12.0 };
const BYTES: Bounds = Bounds { good: 8.0, fair: 40.0 };

#[derive(Clone, Copy, Debug)]
struct Bounds {
    good: f64,
    fair: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Fair,
    Slow,
}

impl Verdict {
    fn of(ratio: f64, bounds: Bounds) -> Self {
        match ratio {
            ratio if ratio <= bounds.good => Self::Good,
            ratio if ratio <= bounds.fair => Self::Fair,
            _ => Self::Slow,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Fair => "fair",
            Self::Slow => "slow",
        }
    }
}

/// One figure beside its floor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Judged {
    what: &'static str,
    /// How often its floor it takes; 1 is the floor.
    by_floor: f64,
    verdict: Verdict,
}

fn judge(figures: &LinkFigures) -> [Judged; 3] {
    let floor = figures.floor;
    let judged =
        |what, by_floor: f64, bounds| Judged { what, by_floor, verdict: Verdict::of(by_floor, bounds) };
    let ratio = |above: u64, below: u64| above as f64 / below.max(1) as f64;
    [
        judged("a call, both ends asleep", ratio(figures.asleep.p50_ns, 2 * floor.wake_ns), CALL),
        judged("bytes to it", ratio(floor.copy_bytes_per_s, figures.to_instance_bytes_per_s), BYTES),
        judged("bytes from it", ratio(floor.copy_bytes_per_s, figures.from_instance_bytes_per_s), BYTES),
    ]
}

pub(super) async fn bench(cx: &Context, args: BenchArgs) -> Outcome {
    let client = cx.client().await?;
    let name = args.name.to_string();
    let for_ms = u32::try_from(args.time.as_millis()).unwrap_or(u32::MAX);
    cx.output.note(format!("measuring the link to {name} for {:.1} s", args.time.as_secs_f64()));
    let figures = client.ask(client.inside.measure(name.clone(), for_ms)).await?;
    let judged = judge(&figures);
    if cx.output.json {
        let mut document =
            serde_json::to_value(figures).map_err(|error| CliError::failed("write JSON", error))?;
        if let Value::Object(fields) = &mut document {
            fields.insert("instance".into(), json!(name));
            fields.insert("verdicts".into(), json!(judged));
        }
        cx.output.document("bench", &document)?;
        return Ok(ExitCode::SUCCESS);
    }
    cx.output.line(text_of(&rows(&figures)))?;
    let floor = figures.floor;
    cx.output.line(format!(
        "floor: a wake-up takes {}, one thread copies {}/s",
        latency(floor.wake_ns),
        bytes(floor.copy_bytes_per_s)
    ))?;
    for Judged { what, by_floor, verdict } in judged {
        cx.output.line(format!("{:<5} {what}: {by_floor:.1} times its floor", verdict.name()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(figures: &LinkFigures) -> comfy_table::Table {
    let mut rows = table(&["what", "count", "min", "p50", "p90", "p99", "max"]);
    let mut calls = |what: &str, trips: RoundTrips| {
        let RoundTrips { count, min_ns, p50_ns, p90_ns, p99_ns, max_ns } = trips;
        let times = [min_ns, p50_ns, p90_ns, p99_ns, max_ns].map(latency);
        rows.add_row([what.to_owned(), count.to_string()].into_iter().chain(times));
    };
    calls("calls in turn", figures.in_turn);
    calls("calls asleep", figures.asleep);
    for (what, per_second) in [
        ("bytes to it", figures.to_instance_bytes_per_s),
        ("bytes from it", figures.from_instance_bytes_per_s),
    ] {
        rows.add_row([what.to_owned(), "-".into(), "-".into(), format!("{}/s", bytes(per_second))]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::measure::LinkFloor;

    #[test]
    fn a_link_is_judged_by_its_floor_and_not_by_its_times() {
        let trips = |p50_ns| RoundTrips { count: 9, min_ns: 1, p50_ns, p90_ns: 2, p99_ns: 3, max_ns: 4 };
        let mut figures = LinkFigures {
            in_turn: trips(1000),
            asleep: trips(150_000),
            to_instance_bytes_per_s: 4 << 30,
            from_instance_bytes_per_s: 1 << 30,
            floor: LinkFloor { wake_ns: 25_000, copy_bytes_per_s: 16 << 30 },
        };
        let verdicts = |figures: &LinkFigures| judge(figures).map(|judged| (judged.by_floor, judged.verdict));
        assert_eq!(verdicts(&figures), [(3.0, Verdict::Good), (4.0, Verdict::Good), (16.0, Verdict::Fair)]);
        figures.floor.wake_ns = 2_500;
        figures.from_instance_bytes_per_s = 0;
        let [call, _, back] = judge(&figures);
        assert_eq!((call.by_floor, call.verdict, back.verdict), (30.0, Verdict::Slow, Verdict::Slow));
    }
}
