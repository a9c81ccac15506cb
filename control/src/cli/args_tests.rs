use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_help_and_every_argument_is_explained() {
    fn check(command: &clap::Command, path: &str) {
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: `{}` is not explained", argument.get_id());
        }
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            assert!(sub.get_about().is_some(), "{path} is not explained");
            check(sub, &path);
        }
    }
    let mut command = Cli::command();
    command.build();
    check(&command, "tombolo");
    assert!(command.render_long_help().to_string().contains("Exit codes"));
}

#[test]
fn ordinary_lines_are_understood() {
    for line in [
        "tombolo ps",
        "tombolo ls --json",
        "tombolo up web --spawner process --restart always -e A=b -- /bin/sleep 5",
        "tombolo up -f fleet.toml",
        "tombolo create db --memory 128 --initrd /srv/base.img --file /etc/hosts:/etc/hosts",
        "tombolo adopt web --force --image /boot/vmlinuz --initrd /srv/base.img --restart never -- /bin/sleep 5",
        "tombolo stop web db --grace 5s",
        "tombolo exec -it web -- /bin/sh -c true",
        "tombolo exec web uname -a",
        "tombolo cp /tmp/x web:/tmp/x",
        "tombolo logs -f web --cursor 1:2",
        "tombolo events -f --since 7 --json",
        "tombolo wait web --for=stopped --timeout 3s",
        "tombolo policy allow web db:6379",
        "tombolo balance",
        "tombolo balance --policy pressure --hold 1s --rest 2s --dry-run",
        "tombolo balance --off",
        "tombolo policy deny * db:kv",
        "tombolo debug freeze web",
        "tombolo move --cpus 2 --from db --to web",
        "tombolo move --device 0000:01:00.0 --from db --to pool --allow-no-reset",
        "tombolo resize web --cpus +1 --memory -128M",
        "tombolo plan -f fleet.toml",
        "tombolo completions bash",
        "tombolo down --keep-kernels",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn lines_that_make_no_sense_are_refused() {
    for line in [
        "tombolo",
        "tombolo stop",
        "tombolo start UPPER",
        "tombolo create host",
        "tombolo adopt",
        "tombolo adopt a/b",
        "tombolo exec web",
        "tombolo exec -d -t web x",
        "tombolo wait web --for=never",
        "tombolo policy allow web db:99999999999",
        "tombolo stop web --grace soon",
        "tombolo balance --policy luck",
        "tombolo balance --policy pressure --off",
        "tombolo balance --hold 1s",
        "tombolo logs --last-words -f web",
    ] {
        assert!(parse(line).is_err(), "{line} was accepted");
    }
}

#[test]
fn times_are_read_with_their_units() {
    use std::time::Duration;
    for (text, expected) in [
        ("500ms", Duration::from_millis(500)),
        ("10", Duration::from_secs(10)),
        ("1.5s", Duration::from_millis(1500)),
        ("2m", Duration::from_secs(120)),
        ("250us", Duration::from_micros(250)),
    ] {
        assert_eq!(parse_duration(text), Ok(expected));
    }
    for text in ["", "s", "1x", "-1s", "1e400"] {
        assert!(parse_duration(text).is_err(), "{text} was accepted");
    }
}
