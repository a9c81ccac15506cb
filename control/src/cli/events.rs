//! `tombolo events`: what happened, and what happens.

use std::process::ExitCode;

use super::args::EventsArgs;
use super::output::timestamp;
use super::{Context, Outcome};

pub(super) async fn events(cx: &Context, args: EventsArgs) -> Outcome {
    let client = cx.client().await?;
    let (call, mut events) = client.journal.read(args.since, args.follow);
    let call = match args.follow {
        true => call.no_deadline(),
        false => call.deadline(client.timeout()),
    };
    let wanted = args.instance.map(|name| name.to_string());
    while let Some(event) = events.recv().await? {
        if wanted.is_some() && event.instance != wanted {
            continue;
        }
        match cx.output.json {
            true => cx.output.item(&event.to_json())?,
            false => cx.output.line(format!(
                "{:>6} {} {}",
                event.seq,
                timestamp(event.at_unix_ns),
                event.to_line()
            ))?,
        }
    }
    call.await?;
    Ok(ExitCode::SUCCESS)
}
