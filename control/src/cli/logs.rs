//! `tombolo logs`: what kernel, agent and programs of an instance wrote, alive or dead.

use std::process::ExitCode;

use serde_json::json;
use tombolo_agent::api::logs::{LogCursor, LogItem, LogQuery, LogRecord, LogSource};

use super::args::{LogSourceArg, LogsArgs};
use super::error::CliError;
use super::output::timestamp;
use super::{Context, Outcome};
use crate::api::ExitKind;

/// How much of a console log is shown, in bytes.
const CONSOLE_BYTES: u64 = 1 << 20;

pub(super) async fn logs(cx: &Context, args: LogsArgs) -> Outcome {
    let client = cx.client().await?;
    let name = args.name.to_string();
    if args.console {
        let bytes = client.ask(client.fleet.console_log(name, CONSOLE_BYTES)).await?;
        match cx.output.json {
            true => cx.output.document("console", &String::from_utf8_lossy(&bytes.0))?,
            false => cx.output.raw(&bytes.0)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.last_words {
        return last_words(cx, client.ask(client.fleet.inspect(name)).await?);
    }
    let query = LogQuery {
        after: args.cursor.map(|(epoch, seq)| LogCursor { epoch, seq }),
        tail: args.tail,
        sources: args.sources.iter().map(|source| (*source).into()).collect(),
        follow: args.follow,
    };
    let (call, mut items) = client.inside.logs(name, query);
    let call = match args.follow {
        true => call.no_deadline(),
        false => call.deadline(client.timeout()),
    };
    while let Some(item) = items.recv().await? {
        show(cx, item)?;
    }
    let cursor = call.await?;
    if args.show_cursor {
        cx.output.note(format!("{}:{}", cursor.epoch, cursor.seq));
    }
    Ok(ExitCode::SUCCESS)
}

fn last_words(cx: &Context, detail: crate::api::InstanceDetail) -> Outcome {
    if detail.last_words.is_empty() && detail.last_console.is_empty() {
        let message = format!("no kernel of `{}` has died and left last words", detail.view.name);
        return Err(CliError::new(ExitKind::NotFound, message));
    }
    for word in &detail.last_words {
        match cx.output.json {
            true => cx.output.item(&json!({
                "type": "last-word", "wall_ns": word.at_ns, "level": word.level, "text": word.text,
            }))?,
            false => cx.output.line(format!("{} {:<5} {}", timestamp(word.at_ns), word.level, word.text))?,
        }
    }
    if !cx.output.json && !detail.last_console.is_empty() {
        cx.output.line("the end of its console:")?;
    }
    for line in detail.last_console.lines() {
        match cx.output.json {
            true => cx.output.item(&json!({ "type": "last-console", "text": line }))?,
            // Whoever wrote it is not to play with this terminal.
            false => cx.output.line(line.replace(|c: char| c.is_control() && c != '\t', ""))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(cx: &Context, item: LogItem) -> Result<(), CliError> {
    match item {
        LogItem::Record(record) if cx.output.json => cx.output.item(&json!({
            "type": "record",
            "cursor": format!("{}:{}", record.cursor.epoch, record.cursor.seq),
            "wall_ns": record.wall_ns,
            "source": record.source,
            "level": record.level,
            "text": record.text,
        })),
        LogItem::Gap { records } if cx.output.json => {
            cx.output.item(&json!({ "type": "gap", "records": records }))
        }
        LogItem::Record(record) => cx.output.line(line(&record)),
        LogItem::Gap { records: Some(count) } => {
            cx.output.note(format!("[{count} lines were dropped here]"));
            Ok(())
        }
        LogItem::Gap { records: None } => {
            cx.output.note("[the agent has started anew: lines may be missing here]");
            Ok(())
        }
    }
}

fn line(record: &LogRecord) -> String {
    let source = match record.source {
        LogSource::Kernel => "kernel",
        LogSource::Agent => "agent",
        LogSource::Stdout => "out",
        LogSource::Stderr => "err",
    };
    format!("{} {source:<6} {}", timestamp(record.wall_ns), record.text)
}

impl From<LogSourceArg> for LogSource {
    fn from(arg: LogSourceArg) -> Self {
        match arg {
            LogSourceArg::Kernel => Self::Kernel,
            LogSourceArg::Agent => Self::Agent,
            LogSourceArg::Stdout => Self::Stdout,
            LogSourceArg::Stderr => Self::Stderr,
        }
    }
}
