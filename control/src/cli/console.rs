//! `tombolo console`: the console of an instance, as if it were a serial line on this terminal.

use std::process::ExitCode;

use tombolo_rpc::Blob;

use super::args::ConsoleArgs;
use super::terminal::{RawMode, typed};
use super::{Context, Outcome};

/// Ctrl-]: what telnet and virsh detach by.
const DETACH: u8 = 0x1d;

pub(super) async fn console(cx: &Context, args: ConsoleArgs) -> Outcome {
    let client = cx.client().await?;
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
