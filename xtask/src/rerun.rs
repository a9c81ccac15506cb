//! Tests that failed are run once more, each by itself, so that a rare misfortune of the machine is told from a failure.
//!
//! Dozens of kernels boot in one run, some of them emulated, on machines that do other things as well. Whoever reads the output finds which tests did not
//! pass at first, and what they said.

use std::io::{BufRead as _, BufReader};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command;

/// More than so many at once are no misfortune.
const RERUN_MAX: usize = 3;

/// A test as `cargo test` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failed {
    /// The file of its test program, without `.rs`.
    program: String,
    test: String,
}

/// Runs `tests`, a `cargo test` without arguments after `--`. Those that fail are run again by what `again` makes, and have to pass then.
pub(crate) fn forgiving(mut tests: Command, again: impl Fn() -> Command) -> Result<()> {
    let name = command::name_of(&tests);
    // One pipe for both, so that lines stay in order: cargo says on standard error which program it starts, and each says on standard
    // output what became of its tests.
    let (output, input) = std::io::pipe().context("making a pipe")?;
    tests.stdout(input.try_clone().context("copying a pipe")?).stderr(input);
    let mut child = tests.spawn().with_context(|| format!("could not run {name}"))?;
    drop(tests);
    let mut seen = Seen::default();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        println!("{line}");
        seen.line(&line);
    }
    let status = child.wait().with_context(|| format!("could not wait for {name}"))?;
    if status.success() {
        return Ok(());
    }
    let failed = seen.failed;
    ensure!(!failed.is_empty(), "{name} ended with {status}");
    ensure!(failed.len() <= RERUN_MAX, "{} tests failed", failed.len());
    for Failed { program, test } in &failed {
        println!("\n--- once more: {program}, {test}");
        let status = again()
            .args(["--test", program, "--", "--exact", test])
            .status()
            .with_context(|| format!("could not run {test} again"))?;
        if !status.success() {
            bail!("{test} failed twice");
        }
    }
    for Failed { test, .. } in &failed {
        println!("NOT AT FIRST: {test} failed, and passed when it was run again; what it said is above");
    }
    Ok(())
}

/// What the output has told so far.
#[derive(Debug, Default)]
struct Seen {
    program: Option<String>,
    failed: Vec<Failed>,
}

impl Seen {
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.trim_start().strip_prefix("Running ") {
            // `Running tests/hand_over/main.rs (target/debug/deps/hand_over-0123456789abcdef)`
            let program =
                rest.rsplit_once('(').and_then(|(_, path)| path.rsplit('/').next()?.rsplit_once('-'));
            self.program = program.map(|(name, _)| name.to_owned());
        } else if let Some(test) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed
                .push(Failed { program: self.program.clone().unwrap_or_default(), test: test.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_found_with_their_programs() {
        let mut seen = Seen::default();
        let output = "     Running tests/hand_over/main.rs (target/debug/deps/hand_over-a24e7ca5da541895)
test quarantine::unit_is_found ... FAILED
test units::cpus_move ... ok
     Running tests/on_real_kernels.rs (target/debug/deps/on_real_kernels-9e5812968727f0b4)
test frozen ... FAILED";
        output.lines().for_each(|line| seen.line(line));
        let failed = |program: &str, test: &str| Failed { program: program.into(), test: test.into() };
        let expected =
            [failed("hand_over", "quarantine::unit_is_found"), failed("on_real_kernels", "frozen")];
        assert_eq!(seen.failed, expected);
    }

    fn shell(script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]);
        shell
    }

    #[test]
    fn what_passes_the_second_time_is_forgiven_and_what_does_not_is_not() {
        let first = || shell("echo ' Running tests/a.rs (target/a-0)' >&2; echo 'test b ... FAILED'; exit 1");
        forgiving(first(), || shell("test \"$*\" = '--test a -- --exact b'")).unwrap();
        assert!(forgiving(first(), || shell("exit 1")).unwrap_err().to_string().contains("b failed twice"));
        assert!(forgiving(shell("exit 1"), || shell("exit 0")).is_err(), "it does not say which test failed");
        let many = "for n in 1 2 3 4; do echo \"test $n ... FAILED\"; done; exit 1";
        assert!(forgiving(shell(many), || shell("exit 0")).is_err());
    }
}
