//! `tombolo exec`: a program inside an instance, with our stdin, stdout, stderr and terminal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tombolo_agent::api::exec::{ExecIn, ExecOut, ExecSpec, ExitStatus};
use tombolo_rpc::{Blob, Call, Receiver, Sender};

use super::args::ExecArgs;
use super::error::CliError;
use super::output::Output;
use super::terminal::{RawMode, typed, window_size};
use super::{Context, Outcome};
use crate::api::ControlError;
use crate::api::error::Refusal;

pub(super) async fn exec(cx: &Context, args: ExecArgs) -> Outcome {
    let client = cx.client().await?;
    let spec = ExecSpec {
        argv: args.argv,
        env: args.env.into_iter().collect(),
        cwd: args.cwd,
        user: args.user,
        tty: args.tty.then(window_size),
        stdin: args.interactive,
        timeout_ms: cx.global.timeout.map(|timeout| timeout.as_millis() as u64),
        key: None,
    };
    let name = args.name.to_string();
    if args.detach {
        let job = client.ask(client.inside.start_job(name, spec)).await?;
        match cx.output.json {
            true => cx.output.document("job", &job)?,
            false => cx.output.line(job.job.to_string())?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.tty && !std::io::stdin().is_terminal() && args.interactive {
        cx.output.note("stdin is not a terminal: the program gets one all the same");
    }
    let raw = (args.tty && args.interactive).then(RawMode::enter).flatten();
    let (call, input, out) = client.inside.run(name, spec);
    let outcome = carry(&cx.output, (call.no_deadline(), input, out), args.interactive, args.tty).await;
    drop(raw);
    finish(cx, outcome.map_err(as_a_shell_says))
}

/// Carries stdin there and output here until the program ends.
pub(super) async fn carry(
    output: &Output,
    (call, input, mut out): (Call<ExitStatus, ControlError>, Sender<ExecIn>, Receiver<ExecOut>),
    interactive: bool,
    tty: bool,
) -> Result<ExitStatus, CliError> {
    let showing = async {
        while let Ok(Some(item)) = out.recv().await {
            show(output, item)?;
        }
        Ok(call.await?)
    };
    let feeding = async {
        feed(input, interactive, tty).await;
        std::future::pending().await
    };
    tokio::select! {
        outcome = showing => outcome,
        never = feeding => never,
    }
}

/// Sends what is typed, and how large the terminal is.
async fn feed(input: Sender<ExecIn>, interactive: bool, tty: bool) {
    if !interactive {
        let _ = input.send(ExecIn::Eof).await;
        if !tty {
            return;
        }
    }
    let mut keys = interactive.then(typed);
    let mut resized = if tty { signal(SignalKind::window_change()).ok() } else { None };
    loop {
        let item = tokio::select! {
            key = next(&mut keys) => match key {
                Some(bytes) => ExecIn::Stdin(Blob(bytes.into())),
                None => {
                    keys = None;
                    ExecIn::Eof
                }
            },
            () = changed(&mut resized) => ExecIn::Resize(window_size()),
        };
        if input.send(item).await.is_err() {
            return;
        }
    }
}

async fn next(keys: &mut Option<tokio::sync::mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(resized: &mut Option<tokio::signal::unix::Signal>) {
    match resized {
        Some(resized) => drop(resized.recv().await),
        None => std::future::pending().await,
    }
}

fn show(output: &Output, item: ExecOut) -> Result<(), CliError> {
    if output.json {
        let text = |data: &Blob| String::from_utf8_lossy(&data.0).into_owned();
        return output.item(&match &item {
            ExecOut::Started { job, pid } => json!({ "type": "started", "job": job, "pid": pid }),
            ExecOut::Stdout { offset, data } => {
                json!({ "type": "stdout", "offset": offset, "text": text(data) })
            }
            ExecOut::Stderr { offset, data } => {
                json!({ "type": "stderr", "offset": offset, "text": text(data) })
            }
            ExecOut::Gap { bytes } => json!({ "type": "gap", "bytes": bytes }),
        });
    }
    match item {
        ExecOut::Started { .. } => Ok(()),
        ExecOut::Stdout { data, .. } => output.raw(&data.0),
        ExecOut::Stderr { data, .. } => std::io::stderr().write_all(&data.0).map_err(CliError::written),
        ExecOut::Gap { bytes } => {
            output.note(format!("[{bytes} bytes of output were dropped: nobody read them in time]"));
            Ok(())
        }
    }
}

/// The program's exit code becomes ours.
pub(super) fn finish(cx: &Context, outcome: Result<ExitStatus, CliError>) -> Outcome {
    let status = outcome?;
    let code = status.shell_code();
    if cx.output.json {
        cx.output.item(&json!({ "type": "exit", "status": status, "code": code }))?;
    } else {
        match status {
            ExitStatus::Code(_) => {}
            ExitStatus::Signal { signal, .. } => {
                cx.output.note(format!("the program was killed by signal {signal}"));
            }
            ExitStatus::TimedOut => cx.output.note("the program ran longer than --timeout and was killed"),
        }
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)))
}

/// A program that cannot be run ends with the code a shell would give.
fn as_a_shell_says(error: CliError) -> CliError {
    match error.refusal() {
        Some(Refusal::NotFound) => error.with_code(127),
        Some(Refusal::NotExecutable) => error.with_code(126),
        _ => error,
    }
}
