//! The daemon and its host: doctor, down, version.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::args::DownArgs;
use super::error::CliError;
use super::{Context, Outcome};
use crate::api::ExitKind;
use crate::api::host::{Diagnosis, Finding, Level};
use crate::daemon::options::{Options, Places};
use crate::doctor;
use crate::spawner::{MultikernelSettings, QemuSpawner};

/// How long the daemon may take to be gone after it was told to end: every grace has passed before.
const GONE_MAX: Duration = Duration::from_secs(320);

pub(super) async fn doctor(cx: &Context) -> Outcome {
    let diagnosis = match cx.client().await {
        Ok(client) => {
            let mut diagnosis = client.ask(client.host.doctor()).await?;
            let status = client.ask(client.host.status()).await?;
            diagnosis.findings.push(Finding {
                subject: "daemon".into(),
                level: Level::Ok,
                detail: format!(
                    "process {}, version {}, {} of {} instances running, your role is {}",
                    status.pid, status.version, status.running, status.instances, status.your_role
                ),
                remedy: String::new(),
            });
            diagnosis
        }
        Err(error) if error.kind() == ExitKind::Unreachable => without_daemon(error.message()).await?,
        Err(error) => return Err(error),
    };
    if cx.output.json {
        let document = json!({ "healthy": diagnosis.is_healthy(), "findings": diagnosis.findings });
        cx.output.document("doctor", &document)?;
    } else {
        let width = diagnosis.findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
        for finding in &diagnosis.findings {
            let level = match finding.level {
                Level::Ok => "ok  ",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            cx.output.line(format!("{level}  {:<width$} {}", finding.subject, finding.detail))?;
            if !finding.remedy.is_empty() {
                cx.output.line(format!("      {:<width$} -> {}", "", finding.remedy))?;
            }
        }
    }
    Ok(if diagnosis.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(ExitKind::Failed as u8) })
}

/// What can be told by looking ourselves.
async fn without_daemon(message: &str) -> Result<Diagnosis, CliError> {
    let options = <Options as clap::Parser>::parse_from(["tombolod"]);
    let places = Places::new(&options).map_err(|error| CliError::failed("find our own program", error))?;
    let keeper = places.keeper_binary.with_file_name("tombolod");
    let settings = options.multikernel.as_deref().map(MultikernelSettings::read).transpose();
    let settings =
        settings.map_err(|reason| CliError::failed("look at this host", reason))?.unwrap_or_default();
    let qemu = QemuSpawner::new(&keeper)
        .with_vsock_device(options.vsock_device.clone())
        .with_accelerator(options.accel, Some(places.state_dir.clone()));
    let mut diagnosis =
        doctor::diagnose(&keeper, &places.agent_binary, options.image.as_deref(), &qemu, &settings).await;
    let (detail, remedy) = message.split_once('\n').unwrap_or((message, ""));
    diagnosis.findings.push(Finding {
        subject: "daemon".into(),
        level: Level::Warn,
        detail: detail.to_owned(),
        remedy: remedy.to_owned(),
    });
    Ok(diagnosis)
}

pub(super) async fn down(cx: &Context, args: DownArgs) -> Outcome {
    let client = cx.client().await?;
    let pid = client.ask(client.host.status()).await?.pid;
    client.ask(client.host.shutdown(!args.keep_kernels)).await?;
    let ended =
        tokio::time::timeout(cx.global.timeout.unwrap_or(GONE_MAX), client.host.link().closed()).await;
    if ended.is_err() {
        let message = format!("the daemon (process {pid}) has not ended yet; it goes on");
        return Err(CliError::new(ExitKind::Unknown, message));
    }
    match cx.output.json {
        true => cx.output.document("ended", &json!({ "pid": pid, "kernels_stopped": !args.keep_kernels }))?,
        false => cx.output.note("the daemon has ended"),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn version(cx: &Context) -> Outcome {
    let here = env!("CARGO_PKG_VERSION");
    let there = match cx.client().await {
        Ok(client) => Some(client.ask(client.host.status()).await?.version),
        Err(_) => None,
    };
    match cx.output.json {
        true => cx.output.document("version", &json!({ "tombolo": here, "tombolod": there }))?,
        false => cx
            .output
            .line(format!("tombolo {here}, tombolod {}", there.as_deref().unwrap_or("not running")))?,
    }
    Ok(ExitCode::SUCCESS)
}
