//! `tombolo console`: the console of an instance, as if it were a serial line on this terminal.

use std::process::ExitCode;
use std::time::Duration;

use tombolo_rpc::Blob;

use super::args::ConsoleArgs;
use super::client::Client;
use super::error::CliError;
use super::terminal::{RawMode, typed};
use super::{Context, Outcome};
use crate::core::InstanceName;

/// Ctrl-]: what telnet and virsh detach by.
const DETACH: u8 = 0x1d;

pub(super) async fn console(cx: &Context, args: ConsoleArgs) -> Outcome {
    let client = cx.client().await?;
    if args.lend.is_some() || args.take_back {
        return lend(cx, &client, &args.name, args.lend).await;
    }
    let (call, input, mut out) = client.fleet.console(args.name.to_string());
    let call = call.no_deadline();
    // The first item says that it is attached: only then may the terminal change.
    match out.recv().await? {
        Some(first) => cx.output.raw(&first.0)?,
        None => {
            call.await?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    cx.output.note(format!("attached to the console of {}; Ctrl-] detaches", args.name));
    let raw = RawMode::enter();
    let showing = async {
        while let Ok(Some(bytes)) = out.recv().await {
            cx.output.raw(&bytes.0)?;
        }
        call.await?;
        Ok(())
    };
    let typing = async {
        let mut keys = typed();
        while let Some(bytes) = keys.recv().await {
            let detach = bytes.iter().position(|byte| *byte == DETACH);
            let bytes = bytes[..detach.unwrap_or(bytes.len())].to_vec();
            if input.send(Blob(bytes.into())).await.is_err() || detach.is_some() {
                return;
            }
        }
        // The end of a piped stdin is no wish to leave: what comes is still shown.
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = showing => outcome,
        () = typing => Ok(()),
    };
    drop(raw);
    cx.output.note("detached");
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Lets other programs have the console for `time`, or records it again.
async fn lend(cx: &Context, client: &Client, name: &InstanceName, time: Option<Duration>) -> Outcome {
    let lend_ms = match time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)) {
        Some(0) => return Err(CliError::usage("--lend: a console that is lent for no time is not lent")),
        Some(lend_ms) => lend_ms,
        None => 0,
    };
    client.ask(client.beside.lend_console(name.to_string(), lend_ms)).await?;
    if cx.output.json {
        cx.output.document("console", &serde_json::json!({ "name": name, "lent_ms": lend_ms }))?;
        return Ok(ExitCode::SUCCESS);
    }
    match time {
        Some(time) => cx.output.note(format!(
            "the console of {name} is free for other programs for {time:?}, such as `kerf console {name}`; `tombolo console {name} --take-back` records it again"
        )),
        None => cx.output.note(format!("the console of {name} is recorded")),
    }
    Ok(ExitCode::SUCCESS)
}
