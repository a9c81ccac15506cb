//! `cargo xtask test`: everything that must hold, in one command. What CI runs is exactly this.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;

use crate::demo::stand_in;
use crate::{build, command, device, dtc, image, kerf, process, qemu, rerun};

/// Options of the tests.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Args {
    /// The developer's inner loop: no optimized builds, no kernels, no model checking, no demo
    #[arg(long)]
    quick: bool,
}

/// How long the demo may take before it counts as hung.
const DEMO_MAX: Duration = Duration::from_secs(900);
/// How long a run of the conformance suite that boots kernels may take before it counts as hung.
const SUITE_MAX: Duration = Duration::from_secs(1200);

/// Kernel modules for AF_VSOCK within one kernel, in load order.
const VSOCK_MODULES: [&str; 3] = ["vsock", "vmw_vsock_virtio_transport_common", "vsock_loopback"];

/// Runs the tests; goes on after a failure, so that one run shows all of them.
pub(crate) fn run(args: &Args) -> Result<()> {
    // Whatever a failing test leaves running ends with us.
    process::adopt_orphans()?;
    let result = check_all(args);
    for process in process::kill_descendants() {
        println!("could not end process {}: {}", process.pid, process.command);
    }
    result
}

fn check_all(args: &Args) -> Result<()> {
    let mut checks = Checks::default();
    checks.check("format", || cargo(&["fmt", "--all", "--check"]));
    checks.check("lints (clippy, warnings are errors)", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
    });
    // The inner loop fetches nothing: it makes do with what is there.
    let dtc = if args.quick { None } else { checks.find("find or fetch dtc", dtc::find_or_fetch) };
    checks.check("unit, conformance and doc tests", || {
        let mut tests = build::cargo();
        tests.args(["test", "--workspace", "--exclude", "tombolo-tests", "--no-fail-fast"]);
        if let Some(dtc) = &dtc {
            tests.env("TOMBOLO_DTC", dtc).env("TOMBOLO_REQUIRE_DTC", "1");
        }
        succeed(&mut tests)
    });
    if args.quick {
        checks.check("end-to-end tests on processes", || {
            cargo(&["test", "--package", "tombolo-tests", "--no-fail-fast"])
        });
        checks.skip_where(true, "all that boots kernels (--quick)");
        return checks.finish();
    }
    checks.check("model checking of the rings (loom)", model_checking);
    checks.check("a link among tasks, in many orders (shuttle)", || succeed(&mut shuffled()));
    let kernel = checks.check("find or fetch a kernel", image::find_or_fetch);
    let programs = checks.check("build the programs statically", build::static_programs);
    let (Some(kernel), Some(programs)) = (kernel, programs) else {
        return checks.finish();
    };
    checks.check("shm conformance between kernels", || shm_between_kernels(&kernel, &programs));
    checks.check("AF_VSOCK conformance inside a kernel", || vsock_in_a_kernel(&kernel, &programs));
    let device = checks.check("find or build a vsock device", device::find_or_build);
    if let Some(device) = &device {
        checks.check("hybrid conformance to AF_VSOCK in a kernel", || {
            hybrid_to_a_kernel(&kernel, &programs, device)
        });
    }
    let has_qemu = checks.find("find or fetch QEMU", qemu::find_or_fetch).is_some();
    let has_stand_in =
        checks.find("the stand-in runs on this machine", || stand_in::can_run(&programs)).is_some();
    let kerf = checks.find_where(has_stand_in, "find or fetch kerf", kerf::find_or_fetch);
    checks.check_where(has_stand_in, "the stand-in for Multikernel Linux", || stand_in_on_kernels(&kernel));
    checks.check("end-to-end tests on real kernels", || {
        let tests = || {
            let mut tests = tests_on_kernels(&kernel, &programs, has_qemu);
            tests.envs(device.as_ref().map(|device| ("TOMBOLO_TEST_VSOCK_DEVICE", device)));
            tests.envs(has_stand_in.then_some(("TOMBOLO_REQUIRE_STANDIN", "1")));
            if let Some(kerf) = &kerf {
                tests.env("TOMBOLO_TEST_KERF", kerf).env("TOMBOLO_REQUIRE_KERF", "1");
            }
            tests
        };
        rerun::forgiving(tests(), tests)
    });
    checks.skip_where(!has_stand_in, "end-to-end tests on the stand-in");
    checks.skip_where(kerf.is_none(), "end-to-end tests beside kerf");
    checks.skip_where(!has_qemu, "end-to-end tests on emulated machines");
    checks.check("the demo on real kernels", || demo(&programs, "uml"));
    checks.check_where(has_stand_in, "the demo on the stand-in for Multikernel Linux", || {
        demo(&programs, "multikernel")
    });
    checks.check("the demo of hand-overs on user-mode kernels", || demo_of_handovers(&programs, "uml"));
    checks.check_where(has_qemu, "the demo of hand-overs on emulated machines", || {
        demo_of_handovers(&programs, "qemu")
    });
    checks.check_where(has_qemu, "shm conformance between emulated machines", || {
        shm_between_machines(&programs)
    });
    if let Some(device) = &device {
        checks.check_where(has_qemu, "hybrid conformance to AF_VSOCK in a machine", || {
            hybrid_to_a_machine(&programs, device)
        });
    }
    checks.finish()
}

/// Checks that were made.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    done: Vec<(&'static str, Duration, Verdict)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// What would have been checked cannot be had on this machine.
    Skipped,
}

impl Checks {
    pub(crate) fn check<T>(&mut self, name: &'static str, run: impl FnOnce() -> Result<T>) -> Option<T> {
        self.make(name, run, Verdict::Failed, "FAILED")
    }

    /// Looks for something that some machines cannot have: without it what needs it is skipped, and that is said.
    pub(crate) fn find<T>(&mut self, name: &'static str, run: impl FnOnce() -> Result<T>) -> Option<T> {
        self.make(name, run, Verdict::Skipped, "SKIPPED, with all that needs it")
    }

    /// The same where `there` is what it takes; skipped elsewhere.
    fn find_where<T>(
        &mut self,
        there: bool,
        name: &'static str,
        run: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        self.skip_where(!there, name);
        if there { self.find(name, run) } else { None }
    }

    /// Checks where `there` is what it takes; skipped elsewhere.
    fn check_where(&mut self, there: bool, name: &'static str, run: impl FnOnce() -> Result<()>) {
        self.skip_where(!there, name);
        if there {
            self.check(name, run);
        }
    }

    /// Notes that something is not checked, for want of what was looked for.
    fn skip_where(&mut self, lacking: bool, name: &'static str) {
        if lacking {
            self.done.push((name, Duration::ZERO, Verdict::Skipped));
        }
    }

    fn make<T>(
        &mut self,
        name: &'static str,
        run: impl FnOnce() -> Result<T>,
        otherwise: Verdict,
        said: &str,
    ) -> Option<T> {
        println!("\n=== {name}");
        let started = Instant::now();
        let result = run();
        let verdict = match &result {
            Ok(_) => Verdict::Passed,
            Err(error) => {
                println!("{said}: {error:#}");
                otherwise
            }
        };
        self.done.push((name, started.elapsed(), verdict));
        result.ok()
    }

    pub(crate) fn finish(&self) -> Result<()> {
        println!("\n=== summary");
        for (name, took, verdict) in &self.done {
            let verdict = match verdict {
                Verdict::Passed => "ok",
                Verdict::Failed => "FAILED",
                Verdict::Skipped => "SKIPPED",
            };
            println!("{name:<44}{:>8.1} s  {verdict}", took.as_secs_f64());
        }
        println!("{}", self.outcome()?);
        Ok(())
    }

    /// The last line: what was checked, and what was not.
    fn outcome(&self) -> Result<String> {
        let all = self.done.len();
        let those = |wanted: Verdict| {
            let is_wanted = |(_, _, verdict): &&(_, _, Verdict)| *verdict == wanted;
            self.done.iter().filter(is_wanted).map(|(name, ..)| *name).collect::<Vec<_>>()
        };
        let (failed, skipped) = (those(Verdict::Failed), those(Verdict::Skipped));
        let also = match skipped.as_slice() {
            [] => String::new(),
            names => format!("; {} SKIPPED: {}", names.len(), names.join(", ")),
        };
        ensure!(failed.is_empty(), "{} of {all} checks failed: {}{also}", failed.len(), failed.join(", "));
        Ok(match skipped.len() {
            0 => format!("all {all} checks passed"),
            count => format!("{} of {all} checks passed{also}", all - count),
        })
    }
}

fn cargo(args: &[&str]) -> Result<()> {
    let mut cargo = build::cargo();
    succeed(cargo.args(args))
}

/// Runs a program whose output everybody may see.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not run {}", command::name_of(command)))?;
    ensure!(status.success(), "{} ended with {status}", command::name_of(command));
    Ok(())
}

/// A wider search than the one among the unit tests, which is bounded to be quick.
fn model_checking() -> Result<()> {
    let mut cargo = build::cargo();
    cargo.args(["test", "--release", "--package", "tombolo-transport", "--lib", "loom_"]);
    succeed(cargo.env("LOOM_MAX_PREEMPTIONS", "3"))
}

/// The RPC layer's links, with a scheduler of their own that chooses who goes on: a lost wake-up is a deadlock there. Built apart, for its `--cfg`.
pub(crate) fn shuffled() -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--package", "tombolo-rpc", "--target-dir", "target/shuttle", "--lib", "shuttle_"]);
    cargo.env("RUSTFLAGS", "--cfg shuttle");
    cargo
}

/// The test double itself, with kernels: what runs on it later shows nothing where it is wrong.
fn stand_in_on_kernels(kernel: &Path) -> Result<()> {
    let tests = || {
        let mut tests = build::cargo();
        tests.args(["test", "--package", "tombolo-mksim", "--no-fail-fast"]);
        tests.env("TOMBOLO_UML_KERNEL", kernel).env("TOMBOLO_REQUIRE_KERNELS", "1");
        tests
    };
    rerun::forgiving(tests(), tests)
}

/// Tests that boot real kernels: none of them may be skipped for want of one.
pub(crate) fn tests_on_kernels(kernel: &Path, programs: &Path, has_qemu: bool) -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--package", "tombolo-tests", "--no-fail-fast"]);
    cargo
        .env("TOMBOLO_UML_KERNEL", kernel)
        .env("TOMBOLO_STATIC_BIN", programs)
        .env("TOMBOLO_REQUIRE_KERNELS", "1");
    if has_qemu {
        cargo.env("TOMBOLO_REQUIRE_QEMU", "1");
    }
    cargo
}

/// Boots a kernel whose only program is the conformance suite, on AF_VSOCK over its loopback and on paced links of both kinds over that.
fn vsock_in_a_kernel(kernel: &Path, programs: &Path) -> Result<()> {
    let mut boot = Command::new(programs.join("tombolo-boot"));
    boot.arg("--image").arg(kernel).arg("--init").arg(programs.join("tombolo-conformance"));
    for module in VSOCK_MODULES {
        boot.args(["--module", module]);
    }
    passes(&mut boot, 3)
}

/// Shared memory between two real kernels, and between one of them and this one.
fn shm_between_kernels(kernel: &Path, programs: &Path) -> Result<()> {
    let mut suite = Command::new(programs.join("tombolo-conformance"));
    suite.env("TOMBOLO_UML_KERNEL", kernel).env("TOMBOLO_STATIC_BIN", programs);
    passes(suite.env("TOMBOLO_REQUIRE_KERNELS", "1").arg("kernels"), 2)
}

/// The same between two emulated machines, and between one of them and this one.
fn shm_between_machines(programs: &Path) -> Result<()> {
    let mut suite = Command::new(programs.join("tombolo-conformance"));
    passes(suite.env("TOMBOLO_STATIC_BIN", programs).args(["kernels", "qemu"]), 2)
}

/// The hybrid backend here against AF_VSOCK in a real kernel, through a device that is not ours.
fn hybrid_to_a_kernel(kernel: &Path, programs: &Path, device: &Path) -> Result<()> {
    let mut suite = Command::new(programs.join("tombolo-conformance"));
    passes(suite.env("TOMBOLO_UML_KERNEL", kernel).arg("device").arg(device), 1)
}

/// The same against AF_VSOCK in an emulated machine.
fn hybrid_to_a_machine(programs: &Path, device: &Path) -> Result<()> {
    let mut suite = Command::new(programs.join("tombolo-conformance"));
    passes(suite.arg("device").arg(device).arg("qemu"), 1)
}

/// Runs a program that runs the conformance suite so many times: each must pass. Shows all lines but those of behaviours that did.
fn passes(suite: &mut Command, times: usize) -> Result<()> {
    let output = command::run_for(suite, SUITE_MAX)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let shown = |line: &&str| ["skipped ", "FAILED "].iter().any(|word| line.starts_with(word));
    let counts = |line: &&str| line.contains(" passed, ");
    text.lines()
        .filter(|line| shown(line) || counts(line) || line.starts_with("shm, "))
        .for_each(|line| println!("{line}"));
    let passed = |line: &&str| line.contains(" 0 failed") && !line.starts_with("0 passed");
    let runs: Vec<_> = text.lines().filter(counts).collect();
    ensure!(
        output.status.success() && runs.len() == times && runs.iter().all(passed),
        "the suite did not pass; it said:\n{text}\n{}",
        command::last_lines(&output.stderr)
    );
    Ok(())
}

/// Tells one story of the demo; returns its report, and whether it ended well.
fn tell(programs: &Path, story: &str, spawner: &str) -> Result<(serde_json::Value, bool)> {
    let mut demo = Command::new(std::env::current_exe()?);
    demo.args(["demo", "--json", "--spawner", spawner, "--story", story, "--programs"]).arg(programs);
    demo.args((spawner == "multikernel").then_some("--sim"));
    let output = command::run_for(&mut demo, DEMO_MAX)?;
    print!("{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("the demo printed nothing")?;
    println!("{line}");
    let report: serde_json::Value = serde_json::from_str(line).context("the demo's last line is not JSON")?;
    let ended_well = report["ok"] == true && output.status.success();
    Ok((report, ended_well))
}

/// Runs the demo of hand-overs as a user would, and checks what it reports.
fn demo_of_handovers(programs: &Path, spawner: &str) -> Result<()> {
    let (report, ended_well) = tell(programs, "handover", spawner)?;
    ensure!(ended_well, "the demo of hand-overs failed: {}", report["error"]);
    for key in ["units_lost", "units_doubly_owned", "quarantined", "calls_failed", "leftovers"] {
        ensure!(report[key] == 0, "{key} is {}", report[key]);
    }
    let always = ["moves", "crashes_injected", "memory_move_ms_p50", "raw_memory_ms_p50", "recovery_ms_p50"];
    let emulated = ["cpu_move_ms_p50", "raw_cpu_ms_p50", "device_move_ms_p50", "raw_device_ms_p50"];
    let wanted = always.iter().chain(emulated.iter().filter(|_| spawner == "qemu"));
    for &key in wanted {
        ensure!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key} is {}", report[key]);
    }
    Ok(())
}

/// Runs the demo as a user would, and checks what it reports.
fn demo(programs: &Path, spawner: &str) -> Result<()> {
    let (report, ended_well) = tell(programs, "basics", spawner)?;
    let mut wrong = Vec::new();
    let mut must = |what: &str, holds: bool| {
        if !holds {
            wrong.push(format!("{what} is {}", report[what]));
        }
    };
    let at_most = |key: &str, limit: f64| report[key].as_f64().is_some_and(|value| value <= limit);
    must("ok", ended_well);
    must("spawner", report["spawner"] == spawner);
    must("distinct_boot_ids", report["distinct_boot_ids"] == 3);
    must("leftovers", report["leftovers"] == 0);
    must("restarted", report["restarted"] == true);
    must("adopted", report["adopted"] == true);
    must("client_notice_ms", at_most("client_notice_ms", 200.0));
    must("control_notice_ms", at_most("control_notice_ms", 1000.0));
    for key in [
        "floor_rtt_ns",
        "app_rtt_ns_p50",
        "app_rtt_ns_p99",
        "rpc_calls_per_s",
        "stream_gb_per_s",
        "uds_rtt_ns_p50",
    ] {
        must(key, report[key].as_f64().is_some_and(|value| value > 0.0));
    }
    if wrong.is_empty() { Ok(()) } else { bail!("the demo does not hold: {}", wrong.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_names_what_was_not_checked() {
        let mut checks = Checks::default();
        checks.check("one", || Ok(()));
        assert_eq!(checks.outcome().unwrap(), "all 1 checks passed");
        let found: Option<()> = checks.find("kerf", || bail!("there is none"));
        checks.check_where(found.is_some(), "beside kerf", || bail!("it is not run"));
        checks.skip_where(false, "what is there");
        assert_eq!(checks.outcome().unwrap(), "1 of 3 checks passed; 2 SKIPPED: kerf, beside kerf");
        checks.check("two", || -> Result<()> { bail!("it does not hold") });
        let error = checks.outcome().unwrap_err().to_string();
        assert_eq!(error, "1 of 4 checks failed: two; 2 SKIPPED: kerf, beside kerf");
    }
}
