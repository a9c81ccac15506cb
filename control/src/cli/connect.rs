//! `tombolo connect`: stdin and stdout, connected.

use std::process::ExitCode;

use super::args::ConnectArgs;
use super::target::Target;
use super::{Context, Outcome};

pub(super) async fn connect(cx: &Context, args: ConnectArgs) -> Outcome {
    let route = args.target.parse::<Target>()?.route(cx).await?;
    route.carry(tokio::io::stdin(), tokio::io::stdout()).await?;
    Ok(ExitCode::SUCCESS)
}
