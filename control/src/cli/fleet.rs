//! Instances: create, start, stop, look at, wait for.

use std::process::ExitCode;
use std::time::Duration;

use tombolo_agent::api::health::EntrypointState;

use super::args::{
    ConditionArg, CreateArgs, InspectArgs, NamesArgs, PsArgs, RemoveArgs, StartArgs, StopArgs, WaitArgs,
};
use super::client::Client;
use super::error::CliError;
use super::output::{age, bytes, duration, table, text_of, timestamp};
use super::{Context, Outcome, spec};
use crate::api::{Condition, CreateRequest, ExitKind, InstanceDetail, InstanceView, LinkKind};
use crate::core::health::Verdict;
use crate::core::{InstanceName, InstanceSpec};

pub(super) async fn create(cx: &Context, args: CreateArgs) -> Outcome {
    let client = cx.client().await?;
    let spec = spec::read(&args.spec)?;
    let view = create_one(&client, &args.name, &spec, args.idempotency_key).await?;
    print_view(cx, &view)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn create_one(
    client: &Client,
    name: &InstanceName,
    spec: &InstanceSpec,
    idempotency_key: Option<String>,
) -> Result<InstanceView, CliError> {
    let spec_json =
        serde_json::to_string(spec).map_err(|error| CliError::failed("write the specification", error))?;
    let request = CreateRequest { name: name.to_string(), spec_json, idempotency_key };
    client.ask(client.fleet.create(request)).await
}

pub(super) async fn start(cx: &Context, args: StartArgs) -> Outcome {
    let condition = if args.ready { Condition::Ready } else { Condition::Running };
    each(cx, &args.names, condition, async |client: &Client, name: String| {
        client.ask(client.fleet.start(name)).await
    })
    .await
}

pub(super) async fn stop(cx: &Context, args: StopArgs) -> Outcome {
    let grace_ms = args.grace.map(|grace| grace.as_millis() as u64);
    each(cx, &args.names, Condition::Stopped, async |client: &Client, name: String| {
        client.ask(client.fleet.stop(name, grace_ms)).await
    })
    .await
}

pub(super) async fn restart(cx: &Context, args: StopArgs) -> Outcome {
    let grace_ms = args.grace.map(|grace| grace.as_millis() as u64);
    let client = cx.client().await?;
    let mut boots = std::collections::HashMap::new();
    for view in client.ask(client.fleet.list()).await? {
        boots.insert(view.name, view.boots);
    }
    // It runs already: what is waited for is the next boot.
    let act = async |client: &Client, name: String| {
        let view = client.ask(client.fleet.restart(name.clone(), grace_ms)).await?;
        if !args.names.no_wait {
            let before = boots.get(&name).copied().unwrap_or(0);
            let give_up = tokio::time::Instant::now() + client.timeout();
            loop {
                let now = client.ask(client.fleet.inspect(name.clone())).await?.view;
                if now.boots > before {
                    break;
                }
                if tokio::time::Instant::now() > give_up {
                    let message = format!("`{name}` was not started again in time (it is {})", now.state);
                    return Err(CliError::new(ExitKind::Unknown, message));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(view)
    };
    each(cx, &args.names, Condition::Running, act).await
}

pub(super) async fn kill(cx: &Context, args: NamesArgs) -> Outcome {
    each(cx, &args, Condition::Stopped, async |client: &Client, name: String| {
        client.ask(client.fleet.kill(name)).await
    })
    .await
}

pub(super) async fn remove(cx: &Context, args: RemoveArgs) -> Outcome {
    let client = cx.client().await?;
    let mut tally = Tally::default();
    for name in &args.names {
        let outcome = client.ask(client.fleet.remove(name.to_string(), args.force)).await;
        if outcome.is_ok() {
            match cx.output.json {
                true => cx.output.document("removed", &name.to_string())?,
                false => cx.output.note(format!("{name} removed")),
            }
        }
        tally.count(cx, outcome);
    }
    tally.finish()
}

pub(super) async fn wait(cx: &Context, args: WaitArgs) -> Outcome {
    let client = cx.client().await?;
    let view = wait_for(&client, &args.name, args.condition.into()).await?;
    match args.condition {
        ConditionArg::Gone if !cx.output.json => cx.output.note(format!("{} is gone", args.name)),
        _ => print_view(cx, &view)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn list(cx: &Context, args: PsArgs) -> Outcome {
    let client = cx.client().await?;
    let views = client.ask(client.fleet.list()).await?;
    if cx.output.json {
        cx.output.document("instances", &views)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut header = vec!["name", "cid", "state", "health", "up", "boots", "driver", "pid"];
    if args.wide {
        header.extend([
            "restarts",
            "memory",
            "origin",
            "link",
            "generation",
            "incarnation",
            "kernel",
            "last end",
        ]);
    }
    let mut rows = table(&header);
    for view in &views {
        rows.add_row(row(view, args.wide));
    }
    cx.output.line(text_of(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn row(view: &InstanceView, wide: bool) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![
        view.name.clone(),
        view.cid.to_string(),
        view.state.to_string(),
        part_that_fails(view),
        or_dash(view.up_since_unix_ns.map(age)),
        view.boots.to_string(),
        or_dash(view.spawner.clone()),
        or_dash(view.pid.map(|pid| pid.to_string())),
    ];
    if wide {
        cells.extend([
            view.restarts.to_string(),
            format!("{} MiB", view.memory_mib),
            or_dash(view.taken_over.clone()),
            or_dash(view.link.map(|link| link.to_string())),
            view.generation.to_string(),
            or_dash(view.incarnation.clone()),
            or_dash(view.kernel.clone()),
            or_dash(view.last_end.map(|end| end.to_string())),
        ]);
    }
    cells
}

pub(super) async fn inspect(cx: &Context, args: InspectArgs) -> Outcome {
    let client = cx.client().await?;
    let detail = client.ask(client.fleet.inspect(args.name.to_string())).await?;
    if cx.output.json {
        let spec: serde_json::Value = serde_json::from_str(&detail.spec_json).unwrap_or_default();
        let mut document = serde_json::to_value(&detail).unwrap_or_default();
        if let Some(object) = document.as_object_mut() {
            object.remove("spec_json");
            object.insert("spec".into(), spec);
        }
        cx.output.document("instance", &document)?;
    } else {
        cx.output.line(describe(&detail))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(detail: &InstanceDetail) -> String {
    let view = &detail.view;
    let mut lines = vec![
        format!("{}  cid {}  member {}", view.name, view.cid, view.member),
        format!("  state        {} (wanted: {})", view.state, format!("{:?}", view.desired).to_lowercase()),
        format!("  health       {}", health_of(view)),
    ];
    let mut add = |label: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("  {label:<12} {value}")));
    };
    add("up", view.up_since_unix_ns.map(age));
    add("driver", view.spawner.clone());
    add("origin", view.taken_over.as_ref().map(|it| format!("made by another program ({it}), taken over")));
    add("runs on", detail.runs_on.clone());
    add("process", view.pid.map(|pid| pid.to_string()));
    add("kernel", view.kernel.clone());
    add("boot id", view.boot_id.clone());
    add("incarnation", view.incarnation.clone());
    add("generation", (view.generation > 0).then(|| view.generation.to_string()));
    add("link", link_of(detail));
    add("heartbeat", detail.last_beat_age_ms.map(|ms| format!("{ms} ms ago")));
    add("boots", Some(format!("{} ({} by restart policy)", view.boots, view.restarts)));
    add(
        "last end",
        view.last_end
            .map(|end| format!("{end}, {}", view.last_end_unix_ns.map(timestamp).unwrap_or_default())),
    );
    add("last error", view.last_error.clone());
    if let Some(report) = &detail.report {
        let memory = &report.load.memory;
        add(
            "load",
            Some(format!(
                "{:.2} {:.2} {:.2}",
                report.load.load_average[0], report.load.load_average[1], report.load.load_average[2]
            )),
        );
        add("memory", Some(format!("{} of {} available", bytes(memory.available), bytes(memory.total))));
        add("uptime", Some(duration(Duration::from_millis(report.load.uptime_ms))));
        if let Some(entrypoint) = &report.entrypoint {
            add("program", Some(format!("{} ({})", entrypoint.argv.join(" "), state_of(&entrypoint.state))));
        }
        for probe in &report.probes {
            let (kind, verdict) = (format!("{:?}", probe.kind), format!("{:?}", probe.verdict));
            let (kind, verdict) = (kind.to_lowercase(), verdict.to_lowercase());
            add("probe", Some(format!("{}: {kind} {verdict} {}", probe.name, probe.last_failure)));
        }
    }
    add("folder", Some(detail.runtime_dir.clone()));
    if !detail.last_words.is_empty() {
        lines.push("  last words of the kernel that died:".to_owned());
        let from = detail.last_words.len().saturating_sub(20);
        lines.extend(
            detail.last_words[from..]
                .iter()
                .map(|word| format!("    {} {:<5} {}", timestamp(word.at_ns), word.level, word.text)),
        );
    }
    lines.join("\n")
}

/// What carries everything between here and an instance, and what that means.
fn link_of(detail: &InstanceDetail) -> Option<String> {
    Some(match detail.view.link? {
        LinkKind::Shm => "shm: shared memory".to_owned(),
        LinkKind::Paced => format!(
            "paced, {}: everything goes over one socket, at most 32 KiB under way at a time; no shared memory{}, so no heartbeat and no black box",
            if detail.link_is_up == Some(true) { "up" } else { "down" },
            detail.why_paced.as_ref().map_or_else(String::new, |why| format!(" ({why})"))
        ),
    })
}

/// How an instance is, and of what it ails.
fn part_that_fails(view: &InstanceView) -> String {
    match view.layer {
        Some(layer) if view.health == Verdict::Degraded => format!("{} ({layer})", view.health),
        _ => view.health.to_string(),
    }
}

/// The same, and why it is no better.
fn health_of(view: &InstanceView) -> String {
    let reason = view.health_reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("{}{reason}", part_that_fails(view))
}

/// How the program of an instance is, in words.
fn state_of(state: &EntrypointState) -> String {
    let again = |ms: u64| format!("again in {}", duration(Duration::from_millis(ms)));
    match state {
        EntrypointState::Running { pid, since_ms } => {
            format!("process {pid}, for {}", age(since_ms.saturating_mul(1_000_000)))
        }
        EntrypointState::BackOff { next_in_ms } => format!("ended, {}", again(*next_in_ms)),
        EntrypointState::Ended => "ended".to_owned(),
        EntrypointState::CannotStart { reason, next_in_ms } => {
            let next = next_in_ms.map_or_else(String::new, |ms| format!(", {}", again(ms)));
            format!("cannot be started: {reason}{next}")
        }
        EntrypointState::Stopping => "being stopped".to_owned(),
    }
}

/// Waits until an instance is as wanted.
pub(super) async fn wait_for(
    client: &Client,
    name: &InstanceName,
    condition: Condition,
) -> Result<InstanceView, CliError> {
    let timeout = client.timeout();
    let call = client.fleet.wait(name.to_string(), condition, timeout.as_millis() as u64);
    // The daemon itself ends the wait; ours is for when the daemon does not answer.
    Ok(call.deadline(timeout + Duration::from_secs(5)).await?)
}

/// Tells how an instance is now, in one line.
pub(super) fn print_view(cx: &Context, view: &InstanceView) -> Result<(), CliError> {
    if cx.output.json {
        return cx.output.document("instance", view);
    }
    let health = match view.health {
        Verdict::Absent => String::new(),
        _ => format!(" ({})", health_of(view)),
    };
    let error = view.last_error.as_ref().map_or_else(String::new, |error| format!("; {error}"));
    cx.output.note(format!("{} {}{health}{error}", view.name, view.state));
    Ok(())
}

/// Does something to each instance; then waits, unless told not to, until all are as wanted.
async fn each(
    cx: &Context,
    args: &NamesArgs,
    condition: Condition,
    act: impl AsyncFn(&Client, String) -> Result<InstanceView, CliError>,
) -> Outcome {
    let client = cx.client().await?;
    let (mut tally, mut begun) = (Tally::default(), Vec::new());
    for name in &args.names {
        match act(&client, name.to_string()).await {
            Ok(view) => begun.push((name, view)),
            Err(error) => tally.count::<()>(cx, Err(error)),
        }
    }
    for (name, view) in begun {
        let outcome = match args.no_wait {
            true => Ok(view),
            false => wait_for(&client, name, condition).await,
        };
        if let Ok(view) = &outcome {
            print_view(cx, view)?;
        }
        tally.count(cx, outcome);
    }
    tally.finish()
}

/// Of several things, how many worked.
#[derive(Debug, Default)]
pub(super) struct Tally {
    worked: usize,
    failed: Vec<ExitKind>,
}

impl Tally {
    /// Counts one, telling what went wrong.
    pub(super) fn count<T>(&mut self, cx: &Context, outcome: Result<T, CliError>) {
        match outcome {
            Ok(_) => self.worked += 1,
            Err(error) => {
                let _ = error.report(&cx.output);
                self.failed.push(error.kind());
            }
        }
    }

    /// The exit code of all: that of the failure if nothing worked, else that of a success in part.
    pub(super) fn finish(self) -> Outcome {
        match (self.worked, self.failed.first()) {
            (_, None) => Ok(ExitCode::SUCCESS),
            (0, Some(kind)) => Ok(ExitCode::from(*kind as u8)),
            (worked, Some(_)) => {
                let all = worked + self.failed.len();
                Err(CliError::new(ExitKind::Partial, format!("{worked} of {all} done")))
            }
        }
    }
}

impl From<ConditionArg> for Condition {
    fn from(arg: ConditionArg) -> Self {
        match arg {
            ConditionArg::Running => Self::Running,
            ConditionArg::Ready => Self::Ready,
            ConditionArg::Stopped => Self::Stopped,
            ConditionArg::Hung => Self::Hung,
            ConditionArg::Failed => Self::Failed,
            ConditionArg::Gone => Self::Gone,
        }
    }
}
