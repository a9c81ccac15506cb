//! `tombolo ping`: how long a call to an instance's agent takes, as a histogram.

use std::process::ExitCode;

use hdrhistogram::Histogram;
use serde_json::json;

use super::args::PingArgs;
use super::error::CliError;
use super::output::latency;
use super::{Context, Outcome};

/// Longest round trip that is told apart, in ns: a minute.
const LONGEST_NS: u64 = 60_000_000_000;
/// Width of the longest bar, in characters.
const BAR: u64 = 40;

pub(super) async fn ping(cx: &Context, args: PingArgs) -> Outcome {
    let client = cx.client().await?;
    let name = args.name.to_string();
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)
        .map_err(|error| CliError::failed("make a histogram", error))?;
    for sent in 0..args.count {
        if sent > 0 {
            tokio::time::sleep(args.interval).await;
        }
        let answer = client.ask(client.inside.ping(name.clone())).await?;
        histogram.saturating_record(answer.round_trip_ns);
    }
    let at = |quantile| histogram.value_at_quantile(quantile);
    if cx.output.json {
        cx.output.document(
            "ping",
            &json!({
                "instance": name, "count": histogram.len(), "min_ns": histogram.min(), "p50_ns": at(0.5),
                "p90_ns": at(0.9), "p99_ns": at(0.99), "p999_ns": at(0.999), "max_ns": histogram.max(),
                "mean_ns": histogram.mean(),
            }),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    cx.output.line(format!("{} calls to the agent of {name}, daemon to agent and back:", histogram.len()))?;
    cx.output.line(format!(
        "min {}  p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        latency(histogram.min()),
        latency(at(0.5)),
        latency(at(0.9)),
        latency(at(0.99)),
        latency(at(0.999)),
        latency(histogram.max()),
    ))?;
    // Powers of two: a tail of a hundred times the median still fits on a screen.
    let buckets: Vec<(u64, u64)> = histogram
        .iter_log(1, 2.0)
        .map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration()))
        .skip_while(|(_, count)| *count == 0)
        .collect();
    let most = buckets.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    for (to_ns, count) in buckets {
        let bar = "#".repeat((count * BAR).div_ceil(most) as usize);
        cx.output.line(format!("{:>10}  {count:>7}  {bar}", format!("< {}", latency(to_ns + 1))))?;
    }
    Ok(ExitCode::SUCCESS)
}
