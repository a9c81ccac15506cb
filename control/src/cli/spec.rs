//! From options to a specification.

use super::args::{OnHangWhat, RestartWhen, SpecArgs};
use super::error::CliError;
use crate::core::InstanceSpec;
use crate::core::backoff::RestartPolicy;
use crate::core::lifecycle::OnHang;
use crate::core::spec::FileSpec;

use tombolo_agent::config::{Entrypoint, RestartPolicy as ProgramRestart};

/// The specification that a file (if one is named) and the options make together.
pub(super) fn read(args: &SpecArgs) -> Result<InstanceSpec, CliError> {
    let mut spec = match &args.spec {
        None => InstanceSpec::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| CliError::usage(format!("{} cannot be read: {error}", path.display())))?;
            toml::from_str(&text).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?
        }
    };
    spec.spawner = args.spawner.or(spec.spawner);
    spec.memory_mib = args.memory.unwrap_or(spec.memory_mib);
    spec.memory_min_mib = args.memory_min.or(spec.memory_min_mib);
    spec.memory_max_mib = args.memory_max.or(spec.memory_max_mib);
    spec.cpus = args.cpus.unwrap_or(spec.cpus);
    spec.cpus_min = args.cpus_min.or(spec.cpus_min);
    spec.cpus_max = args.cpus_max.or(spec.cpus_max);
    spec.balance |= args.balance;
    if !args.devices.is_empty() {
        spec.devices.get_or_insert_default().extend(&args.devices);
    }
    spec.image = args.image.as_ref().map(std::path::absolute).transpose().map_err(absolute)?.or(spec.image);
    spec.initrd =
        args.initrd.as_ref().map(std::path::absolute).transpose().map_err(absolute)?.or(spec.initrd);
    for (source, guest) in &args.files {
        let source = std::path::absolute(source).map_err(absolute)?;
        spec.files.push(FileSpec { guest: guest.clone(), mode: mode_of(&source), source });
    }
    spec.modules.extend(args.modules.iter().cloned());
    spec.extra_args.extend(args.kernel_args.iter().cloned());
    if let Some(when) = args.restart {
        spec.restart = match when {
            RestartWhen::Never => RestartPolicy::Never,
            RestartWhen::OnFailure => RestartPolicy::OnFailure,
            RestartWhen::Always => RestartPolicy::Always,
        };
    }
    if let Some(what) = args.on_hang {
        spec.on_hang = match what {
            OnHangWhat::Report => OnHang::Report,
            OnHangWhat::Restart => OnHang::Restart,
        };
    }
    add_program(&mut spec, args)?;
    Ok(spec)
}

fn add_program(spec: &mut InstanceSpec, args: &SpecArgs) -> Result<(), CliError> {
    if !args.argv.is_empty() {
        let before = spec.entrypoint.take();
        spec.entrypoint = Some(Entrypoint {
            argv: args.argv.clone(),
            env: before.as_ref().map(|entry| entry.env.clone()).unwrap_or_default(),
            cwd: before.as_ref().map_or_else(|| "/".into(), |entry| entry.cwd.clone()),
            user: before.as_ref().and_then(|entry| entry.user.clone()),
            restart: before.map(|entry| entry.restart).unwrap_or_default(),
        });
    }
    let options_given = !args.env.is_empty() || args.user.is_some() || args.program_restart.is_some();
    let Some(entrypoint) = &mut spec.entrypoint else {
        return match options_given {
            true => Err(CliError::usage("--env, --user and --program-restart need a program: add `-- ARGV`")),
            false => Ok(()),
        };
    };
    entrypoint.env.extend(args.env.iter().cloned());
    entrypoint.user = args.user.clone().or_else(|| entrypoint.user.take());
    if let Some(when) = args.program_restart {
        entrypoint.restart = match when {
            RestartWhen::Never => ProgramRestart::Never,
            RestartWhen::OnFailure => ProgramRestart::OnFailure,
            RestartWhen::Always => ProgramRestart::Always,
        };
    }
    Ok(())
}

/// What may be executed here may be executed inside.
fn mode_of(path: &std::path::Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o777)
}

fn absolute(error: std::io::Error) -> CliError {
    CliError::failed("make a path absolute", error)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn spec_of(line: &str) -> Result<InstanceSpec, CliError> {
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Create(args) => read(&args.spec),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_a_specification() {
        let spec = spec_of(
            "tombolo create web --memory 128 --restart always --on-hang restart -e A=1 --initrd base.img --file /etc/passwd:/p -- /bin/app x",
        )
        .unwrap();
        assert_eq!(
            (spec.memory_mib, spec.restart, spec.on_hang),
            (128, RestartPolicy::Always, OnHang::Restart)
        );
        let entrypoint = spec.entrypoint.unwrap();
        assert_eq!(entrypoint.argv, ["/bin/app", "x"]);
        assert_eq!(entrypoint.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(spec.files[0].mode, 0o644);
        assert_eq!(spec.initrd, Some(std::path::absolute("base.img").unwrap()), "the daemon runs elsewhere");
    }

    #[test]
    fn options_are_laid_over_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.toml");
        std::fs::write(
            &path,
            "memory_mib = 96\nlog_level = 'debug'\nentrypoint = { argv = ['/a'], cwd = '/tmp' }",
        )
        .unwrap();
        let spec =
            spec_of(&format!("tombolo create web --spec {} --memory 100 -- /b", path.display())).unwrap();
        assert_eq!((spec.memory_mib, spec.log_level.as_str()), (100, "debug"));
        let entrypoint = spec.entrypoint.unwrap();
        assert_eq!((entrypoint.argv[0].as_str(), entrypoint.cwd.to_str()), ("/b", Some("/tmp")));
    }

    #[test]
    fn variables_without_a_program_are_refused() {
        assert!(spec_of("tombolo create web -e A=1").is_err());
    }
}
