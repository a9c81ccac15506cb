//! `tombolo policy`: who may connect to whom.

use std::process::ExitCode;

use super::args::{PolicyCommand, RuleArgs};
use super::error::CliError;
use super::output::{table, text_of};
use super::{Context, Outcome};
use crate::core::policy::{Action, Rule};

pub(super) async fn policy(cx: &Context, command: PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Allow(args) => add(cx, Action::Allow, &args).await,
        PolicyCommand::Deny(args) => add(cx, Action::Deny, &args).await,
        PolicyCommand::Rm { rule, deny } => {
            let rule = rule_of(if deny { Action::Deny } else { Action::Allow }, &rule)?;
            let client = cx.client().await?;
            client.ask(client.rules.remove(rule.clone())).await?;
            told(cx, &rule, "removed")
        }
        PolicyCommand::Ls => list(cx).await,
    }
}

async fn add(cx: &Context, action: Action, args: &RuleArgs) -> Outcome {
    let rule = rule_of(action, args)?;
    let client = cx.client().await?;
    client.ask(client.rules.add(rule.clone())).await?;
    told(cx, &rule, "in force")
}

fn told(cx: &Context, rule: &Rule, what: &str) -> Outcome {
    match cx.output.json {
        true => cx.output.document("rule", rule)?,
        false => cx.output.note(format!("{rule}: {what}")),
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(cx: &Context) -> Outcome {
    let client = cx.client().await?;
    let rules = client.ask(client.rules.list()).await?;
    if cx.output.json {
        cx.output.document("rules", &rules)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["action", "from", "to", "port"]);
    for rule in &rules {
        rows.add_row([rule.action.to_string(), rule.from.clone(), rule.to.clone(), rule.port.clone()]);
    }
    cx.output.line(text_of(&rows))?;
    cx.output.note("(what no rule allows between instances is refused; the host may connect to all)");
    Ok(ExitCode::SUCCESS)
}

fn rule_of(action: Action, args: &RuleArgs) -> Result<Rule, CliError> {
    Rule::new(action, &args.from, &args.target).map_err(|error| CliError::usage(error.to_string()))
}

/// `FROM TARGET`, as fleet files have it.
pub(super) fn parse_allow(text: &str) -> Result<Rule, CliError> {
    let wrong = |reason: String| CliError::usage(format!("allow: `{text}`: {reason}"));
    let (from, target) =
        text.split_once(char::is_whitespace).ok_or_else(|| wrong("expected FROM TARGET".into()))?;
    let target = target.trim().parse().map_err(|error| wrong(format!("{error}")))?;
    Rule::new(Action::Allow, from, &target).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_a_fleet_file_are_written_as_on_the_command_line() {
        assert_eq!(parse_allow("web db:6379").unwrap().to_string(), "allow web db:6379");
        assert_eq!(parse_allow("*   db/kv").unwrap().to_string(), "allow * db:kv");
        for text in ["web", "web db:", "WEB db:1", ""] {
            assert!(parse_allow(text).is_err(), "{text} was accepted");
        }
    }
}
