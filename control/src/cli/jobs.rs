//! `tombolo jobs`: programs that were started with `exec -d`.

use std::process::ExitCode;

use tombolo_agent::api::exec::{Attach, Signal};

use super::args::JobsArgs;
use super::output::{age, bytes, table, text_of};
use super::{Context, Outcome, exec};

pub(super) async fn jobs(cx: &Context, args: JobsArgs) -> Outcome {
    let client = cx.client().await?;
    let name = args.name.to_string();
    if let Some(job) = args.attach {
        let (call, input, out) = client.inside.attach(name, Attach { job, from_offset: 0 });
        let outcome = exec::carry(&cx.output, (call.no_deadline(), input, out), false, false).await;
        return exec::finish(cx, outcome);
    }
    if let Some(job) = args.kill {
        let signal = match args.signal.parse() {
            Ok(number) => Signal::Number(number),
            Err(_) => Signal::Name(args.signal),
        };
        client.ask(client.inside.signal_job(name, job, signal)).await?;
        return told(cx, "signalled", job);
    }
    if let Some(job) = args.forget {
        client.ask(client.inside.forget_job(name, job)).await?;
        return told(cx, "forgotten", job);
    }
    let jobs = client.ask(client.inside.jobs(name)).await?;
    if cx.output.json {
        cx.output.document("jobs", &jobs)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["job", "pid", "state", "started", "output", "program"]);
    for job in &jobs {
        rows.add_row([
            job.job.to_string(),
            job.pid.to_string(),
            job.exit.map_or_else(|| "running".to_owned(), |exit| format!("ended ({})", exit.shell_code())),
            format!("{} ago", age(job.started_at_ms * 1_000_000)),
            bytes(job.output_to),
            job.argv.join(" "),
        ]);
    }
    cx.output.line(text_of(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn told(cx: &Context, what: &str, job: u64) -> Outcome {
    match cx.output.json {
        true => cx.output.document(what, &job)?,
        false => cx.output.note(format!("job {job} {what}")),
    }
    Ok(ExitCode::SUCCESS)
}
