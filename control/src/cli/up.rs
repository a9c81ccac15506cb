//! `tombolo up`: create what is missing, start it, and wait until it runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::UpArgs;
use super::client::Client;
use super::error::CliError;
use super::fleet::{Tally, create_one, print_view, wait_for};
use super::{Context, Outcome, policy, spec};
use crate::api::Condition;
use crate::core::spec::FleetSpec;
use crate::core::{InstanceName, InstanceSpec};

/// The fleet file that is read when none is named.
const FLEET_FILE: &str = "tombolo.toml";

pub(super) async fn up(cx: &Context, args: UpArgs) -> Outcome {
    let fleet = match &args.name {
        Some(name) => FleetSpec { instance: [(name.clone(), spec::read(&args.spec)?)].into(), allow: vec![] },
        None => read_fleet(args.fleet.as_deref(), "name an instance, or a fleet file with -f")?,
    };
    let client = cx.client().await?;
    bring_up(cx, &client, &fleet, args.no_wait).await
}

/// Creates and starts what is missing of a fleet.
pub(super) async fn bring_up(cx: &Context, client: &Client, fleet: &FleetSpec, no_wait: bool) -> Outcome {
    let rules = fleet.allow.iter().map(|text| policy::parse_allow(text)).collect::<Result<Vec<_>, _>>()?;
    for rule in rules {
        client.ask(client.rules.add(rule)).await?;
    }
    let there: Vec<String> =
        client.ask(client.fleet.list()).await?.into_iter().map(|view| view.name).collect();
    let (mut tally, mut begun) = (Tally::default(), Vec::new());
    for (name, spec) in &fleet.instance {
        match begin(cx, client, &there, name, spec).await {
            Ok(view) => begun.push((name, view)),
            Err(error) => tally.count::<()>(cx, Err(error)),
        }
    }
    for (name, view) in begun {
        let outcome = match no_wait {
            true => Ok(view),
            false => wait_for(client, name, Condition::Running).await,
        };
        if let Ok(view) = &outcome {
            print_view(cx, view)?;
        }
        tally.count(cx, outcome);
    }
    if fleet.instance.is_empty() {
        cx.output.note("the fleet file names no instances");
        return Ok(ExitCode::SUCCESS);
    }
    tally.finish()
}

async fn begin(
    cx: &Context,
    client: &Client,
    there: &[String],
    name: &InstanceName,
    spec: &InstanceSpec,
) -> Result<crate::api::InstanceView, CliError> {
    if there.iter().any(|other| other == name.as_str()) {
        cx.output.note(format!("{name} exists; its specification is left as it is"));
    } else {
        create_one(client, name, spec, None).await?;
    }
    client.ask(client.fleet.start(name.to_string())).await
}

/// Reads a fleet file, or the usual one; `remedy`: what to do if that is not there.
pub(super) fn read_fleet(file: Option<&Path>, remedy: &str) -> Result<FleetSpec, CliError> {
    let path = file.map_or_else(|| PathBuf::from(FLEET_FILE), Path::to_owned);
    let text = std::fs::read_to_string(&path).map_err(|error| match file {
        Some(_) => CliError::usage(format!("{} cannot be read: {error}", path.display())),
        None => CliError::usage(format!("{remedy} ({FLEET_FILE}: {error})")),
    })?;
    let mut fleet: FleetSpec =
        toml::from_str(&text).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?;
    if let Some((device, [first, second])) = fleet.device_wanted_twice() {
        let message = format!("{}: {device} is wanted by both {first} and {second}", path.display());
        return Err(CliError::usage(message));
    }
    // Paths in the file are meant from where the file is; the daemon runs elsewhere.
    let base = std::path::absolute(&path).map_err(|error| CliError::failed("make a path absolute", error))?;
    let base = base.parent().unwrap_or_else(|| Path::new("/"));
    for spec in fleet.instance.values_mut() {
        spec.image = spec.image.take().map(|image| base.join(image));
        spec.initrd = spec.initrd.take().map(|initrd| base.join(initrd));
        for file in &mut spec.files {
            file.source = base.join(&file.source);
        }
    }
    Ok(fleet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_a_fleet_file_are_meant_from_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.toml");
        let text = "[instance.web]\nimage = 'linux'\ninitrd = 'base.img'\nfiles = [{ guest = '/a', source = 'bin/a' }]";
        std::fs::write(&path, text).unwrap();
        let fleet = read_fleet(Some(&path), "").unwrap();
        let web = &fleet.instance[&"web".parse().unwrap()];
        assert_eq!(web.image.as_deref(), Some(dir.path().join("linux").as_path()));
        assert_eq!(web.initrd.as_deref(), Some(dir.path().join("base.img").as_path()));
        assert_eq!(web.files[0].source, dir.path().join("bin/a"));
    }

    #[test]
    fn a_fleet_file_that_is_not_there_is_a_usage_error() {
        let error = read_fleet(Some(Path::new("/nowhere.toml")), "").unwrap_err();
        assert_eq!(error.kind(), crate::api::ExitKind::Usage);
    }
}
