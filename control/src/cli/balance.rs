//! `tombolo balance`: CPUs that move by themselves, to where programs wait for one.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{BalanceArgs, BalancePolicyArg};
use super::error::CliError;
use super::output::{age, duration, table, text_of};
use super::{Context, Outcome};
use crate::api::balance::{BalanceMember, BalanceMove, BalanceStatus, Decision, MoveOutcome};
use crate::core::balance::{BalancePolicy, BalanceSettings};

pub(super) async fn balance(cx: &Context, args: BalanceArgs) -> Outcome {
    let settings = settings(&args)?;
    let client = cx.client().await?;
    if args.dry_run {
        let status = client.ask(client.balance.rehearse(settings)).await?;
        return show(cx, &status, "if it stayed so");
    }
    if settings.is_some() || args.off {
        client.ask(client.balance.set(settings)).await?;
        let status = client.ask(client.balance.status()).await?;
        match cx.output.json {
            true => cx.output.document("balance", &status)?,
            false => cx.output.note(headline(&status)),
        }
        return Ok(ExitCode::SUCCESS);
    }
    show(cx, &client.ask(client.balance.status()).await?, "last look")
}

/// What is to be turned on, if anything is.
fn settings(args: &BalanceArgs) -> Result<Option<BalanceSettings>, CliError> {
    let Some(policy) = args.policy else { return Ok(None) };
    let default = BalanceSettings::default();
    let ms = |time: Option<Duration>, default: u64| {
        time.map_or(default, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    };
    let settings = BalanceSettings {
        policy: match policy {
            BalancePolicyArg::Pressure => BalancePolicy::Pressure,
        },
        take_at_percent: args.take_at.unwrap_or(default.take_at_percent),
        give_at_percent: args.give_at.unwrap_or(default.give_at_percent),
        busy_max_percent: args.busy_max.unwrap_or(default.busy_max_percent),
        hold_ms: ms(args.hold, default.hold_ms),
        rest_ms: ms(args.rest, default.rest_ms),
    };
    settings.validate().map_err(|error| CliError::usage(error.to_string()))?;
    Ok(Some(settings))
}

fn show(cx: &Context, status: &BalanceStatus, when: &str) -> Outcome {
    if cx.output.json {
        cx.output.document("balance", status)?;
        return Ok(ExitCode::SUCCESS);
    }
    cx.output.line(headline(status))?;
    let mut rows = table(&["name", "cpus", "min..max", "waits", "busy", "state"]);
    for member in &status.members {
        rows.add_row([
            member.name.clone(),
            member.limits.map_or_else(dash, |_| member.cpus.to_string()),
            member.limits.map_or_else(dash, |limits| format!("{}..{}", limits.min, limits.max)),
            percent(member.stall_percent),
            percent(member.busy_percent),
            state(member),
        ]);
    }
    rows.add_row(["(free)".to_owned(), status.free_cpus.to_string()]);
    cx.output.line(text_of(&rows))?;
    if let Some(decision) = &status.decision {
        cx.output.line(format!("{when}: {}", decided(decision)))?;
    }
    if let Some(last) = &status.last_move {
        cx.output.line(format!("last move, {} ago: {}", age(last.at_unix_ns), moved(last)))?;
    }
    if status.members.is_empty() {
        cx.output.note("(no instance takes part: create some with --balance and room for CPUs, --cpus-max)");
    }
    Ok(ExitCode::SUCCESS)
}

fn headline(status: &BalanceStatus) -> String {
    match &status.settings {
        Some(settings) => format!("balancing is on, {settings}"),
        None => "balancing is off".to_owned(),
    }
}

fn dash() -> String {
    "-".to_owned()
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(dash, |share| format!("{share:.1}%"))
}

/// What a member is at, in a few words.
fn state(member: &BalanceMember) -> String {
    if let Some(problem) = &member.problem {
        return problem.clone();
    }
    let time = |ms: u64| duration(Duration::from_millis(ms));
    let rests = (member.rests_ms > 0).then(|| format!("rests for {} more", time(member.rests_ms)));
    let wants = member.wants_ms.map(|ms| format!("has waited for {}", time(ms)));
    let gives = member.gives_ms.map(|ms| format!("could have given for {}", time(ms)));
    let words: Vec<String> = [rests, wants, gives].into_iter().flatten().collect();
    if words.is_empty() { dash() } else { words.join(", ") }
}

fn decided(decision: &Decision) -> String {
    match decision {
        Decision::NobodyWaits => "nobody who does not rest has waited for a CPU for long enough".to_owned(),
        Decision::NobodyGives => "somebody waits for a CPU, and nobody can give one".to_owned(),
        Decision::Waits { operation } => format!("operation {operation} is under way"),
        Decision::Move { from, to, why } => format!("one CPU from {from} to {to}: {why}"),
    }
}

fn moved(last: &BalanceMove) -> String {
    let BalanceMove { from, to, why, operation, outcome, .. } = last;
    let operation = operation.map(|id| format!(" (operation {id})")).unwrap_or_default();
    let outcome = match outcome {
        None => "is under way".to_owned(),
        Some(MoveOutcome::Moved) => "done".to_owned(),
        Some(MoveOutcome::NotMoved(reason)) => format!("not moved, {reason}"),
    };
    format!("one CPU from {from} to {to}: {why}: {outcome}{operation}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tombolo_handover::Bounds;

    use super::super::args::{Cli, Command};
    use super::*;

    fn settings_of(line: &str) -> Result<Option<BalanceSettings>, CliError> {
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Balance(args) => settings(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_settings_and_none_leaves_all_as_it_is() {
        assert_eq!(settings_of("tombolo balance").unwrap(), None);
        assert_eq!(
            settings_of("tombolo balance --policy pressure").unwrap(),
            Some(BalanceSettings::default())
        );
        let found = settings_of(
            "tombolo balance --policy pressure --hold 1s --rest 500ms --take-at 30 --give-at 5 --busy-max 50",
        );
        let expected = BalanceSettings {
            policy: BalancePolicy::Pressure,
            take_at_percent: 30,
            give_at_percent: 5,
            busy_max_percent: 50,
            hold_ms: 1_000,
            rest_ms: 500,
        };
        assert_eq!(found.unwrap(), Some(expected));
        assert!(settings_of("tombolo balance --policy pressure --take-at 2").is_err());
    }

    #[test]
    fn a_member_says_what_it_is_at_or_why_it_takes_no_part() {
        let member = BalanceMember {
            name: "web".into(),
            cpus: 1,
            limits: Some(Bounds { min: 1, desired: 1, max: 4 }),
            stall_percent: Some(50.0),
            busy_percent: Some(99.0),
            rests_ms: 12_000,
            wants_ms: Some(3_000),
            gives_ms: None,
            problem: None,
        };
        assert_eq!(state(&member), "rests for 12s more, has waited for 3s");
        let calm = BalanceMember { rests_ms: 0, wants_ms: None, ..member.clone() };
        assert_eq!(state(&calm), "-");
        let stopped = BalanceMember { problem: Some("it does not run".into()), ..member };
        assert_eq!(state(&stopped), "it does not run");
    }
}
