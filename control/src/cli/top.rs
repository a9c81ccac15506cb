//! `tombolo top`: load and health of all instances, again and again.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;

use serde_json::json;
use tombolo_agent::api::health::{CpuTimes, HealthReport};

use super::args::TopArgs;
use super::client::Client;
use super::error::CliError;
use super::output::{age, bytes, table, text_of};
use super::{Context, Outcome};
use crate::api::InstanceView;
use crate::core::State;
use crate::time::unix_ns;

/// What the CPUs of an instance had done at the last look.
type Before = HashMap<String, (u64, u64)>;

pub(super) async fn top(cx: &Context, args: TopArgs) -> Outcome {
    let client = cx.client().await?;
    let mut before = Before::new();
    let mut looks = 0;
    loop {
        let mut rows = Vec::new();
        for view in client.ask(client.fleet.list()).await? {
            // One that hangs must not stop the show.
            let report = match view.state {
                State::Running => report(&client, &view.name).await,
                _ => None,
            };
            let busy =
                report.as_ref().and_then(|report| busy_percent(&mut before, &view.name, &report.load.cpus));
            rows.push((view, report, busy));
        }
        show(cx, &rows)?;
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(args.interval).await;
    }
}

async fn report(client: &Client, name: &str) -> Option<HealthReport> {
    let call = client.inside.report(name.to_owned()).deadline(std::time::Duration::from_millis(500));
    call.await.ok()
}

/// How busy the CPUs were since the last look; since they came online at the first.
fn busy_percent(before: &mut Before, name: &str, cpus: &[CpuTimes]) -> Option<f64> {
    let busy: u64 = cpus.iter().map(|cpu| cpu.user_ms + cpu.system_ms).sum();
    let all: u64 = busy + cpus.iter().map(|cpu| cpu.idle_ms + cpu.steal_ms).sum::<u64>();
    let (busy_before, all_before) = before.insert(name.to_owned(), (busy, all)).unwrap_or_default();
    let all_since = all.checked_sub(all_before).filter(|ms| *ms > 0)?;
    Some(100.0 * busy.saturating_sub(busy_before) as f64 / all_since as f64)
}

fn show(cx: &Context, rows: &[(InstanceView, Option<HealthReport>, Option<f64>)]) -> Result<(), CliError> {
    if cx.output.json {
        let instances: Vec<_> = rows
            .iter()
            .map(|(view, report, busy)| {
                json!({
                    "name": view.name, "state": view.state, "health": view.health, "cpu_percent": busy,
                    "load": report.as_ref().map(|report| &report.load), "restarts": view.restarts,
                })
            })
            .collect();
        return cx.output.item(&json!({ "at_unix_ns": unix_ns(), "instances": instances }));
    }
    let mut lines = table(&["name", "state", "health", "up", "cpu", "load", "memory", "procs", "boots"]);
    for (view, report, busy) in rows {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let load = report.as_ref().map(|report| &report.load);
        lines.add_row([
            view.name.clone(),
            view.state.to_string(),
            view.health.to_string(),
            or_dash(view.up_since_unix_ns.map(age)),
            or_dash(busy.map(|percent| format!("{percent:.1}%"))),
            or_dash(load.map(|load| format!("{:.2}", load.load_average[0]))),
            or_dash(load.map(|load| {
                let used = load.memory.total.saturating_sub(load.memory.available);
                format!("{} / {}", bytes(used), bytes(load.memory.total))
            })),
            or_dash(load.map(|load| load.processes.to_string())),
            view.boots.to_string(),
        ]);
    }
    if std::io::stdout().is_terminal() {
        cx.output.raw(b"\x1b[H\x1b[2J")?;
    }
    cx.output.line(text_of(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_measured_between_looks() {
        let cpu = |user_ms, idle_ms| [CpuTimes { user_ms, idle_ms, ..CpuTimes::default() }];
        let mut before = Before::new();
        assert_eq!(busy_percent(&mut before, "a", &cpu(50, 50)), Some(50.0));
        assert_eq!(busy_percent(&mut before, "a", &cpu(75, 125)), Some(25.0));
        assert_eq!(busy_percent(&mut before, "a", &cpu(75, 125)), None);
        // It has restarted: its counters begin anew.
        assert_eq!(busy_percent(&mut before, "a", &cpu(1, 1)), None);
    }
}
