//! `tombolo debug`: trouble on purpose.

use std::process::ExitCode;

use super::args::DebugCommand;
use super::fleet::print_view;
use super::{Context, Outcome};

pub(super) async fn debug(cx: &Context, command: DebugCommand) -> Outcome {
    let client = cx.client().await?;
    let call = match command {
        DebugCommand::Freeze { name } => client.fleet.freeze(name.to_string(), true),
        DebugCommand::Thaw { name } => client.fleet.freeze(name.to_string(), false),
        DebugCommand::Crash { name } => client.fleet.crash(name.to_string()),
    };
    let view = client.ask(call).await?;
    print_view(cx, &view)?;
    Ok(ExitCode::SUCCESS)
}
