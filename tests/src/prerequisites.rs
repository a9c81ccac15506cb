//! What tests on real kernels need besides the crates: a kernel image and statically linked programs.
//!
//! `cargo xtask test` prepares them and says where they are. A test that finds them missing says so loudly and does nothing;
//! where [`REQUIRE`] is set (by `cargo xtask test`) it fails instead, so that nothing is skipped unseen.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use tombolo_control::paths;
use tombolo_control::spawner::{Availability, QemuSpawner, Spawner, UmlSpawner};

/// Environment variable: set to make missing prerequisites a failure.
pub const REQUIRE: &str = "TOMBOLO_REQUIRE_KERNELS";
/// Environment variable: the same for QEMU, which not every host can have.
pub const REQUIRE_QEMU: &str = "TOMBOLO_REQUIRE_QEMU";
/// Environment variable: the same for the stand-in for Multikernel Linux, which needs root.
pub const REQUIRE_STANDIN: &str = "TOMBOLO_REQUIRE_STANDIN";
/// Environment variable: the program vhost-device-vsock, which then must be there; without it, one on `$PATH`.
pub const VSOCK_DEVICE: &str = "TOMBOLO_TEST_VSOCK_DEVICE";
/// Environment variable: set to make a missing kerf a failure.
pub const REQUIRE_KERF: &str = "TOMBOLO_REQUIRE_KERF";
/// Environment variable: the folder that `cargo xtask fetch-kerf` keeps kerf in.
pub const KERF: &str = "TOMBOLO_TEST_KERF";
/// Environment variable: the folder of the statically linked programs.
pub const STATIC_BIN: &str = "TOMBOLO_STATIC_BIN";

/// The statically linked program `name`, if it was built.
///
/// # Panics
/// When it is missing and [`REQUIRE`] is set.
pub fn static_program(name: &str) -> Option<PathBuf> {
    let Some(dir) = std::env::var_os(STATIC_BIN) else {
        return missing(&format!(
            "{STATIC_BIN} is not set: run `cargo xtask test`, which builds `{name}` statically"
        ));
    };
    let path = PathBuf::from(dir).join(name);
    if path.is_file() { Some(path) } else { missing(&format!("{} does not exist", path.display())) }
}

/// A folder with all programs: the static ones, or those cargo built beside this test.
///
/// # Panics
/// When there are none and [`REQUIRE`] is set.
pub fn programs() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(STATIC_BIN) {
        return Some(PathBuf::from(dir));
    }
    // target/debug/deps/TEST: the programs are one folder up.
    let beside = std::env::current_exe().ok()?.parent()?.parent()?.to_owned();
    let all = ["tombolod", "tombolo", "tombolo-agent"].iter().all(|name| beside.join(name).is_file());
    if all {
        Some(beside)
    } else {
        missing("the programs are not built: run `cargo build --workspace --bins`")
    }
}

/// Whether there is a kernel image.
///
/// # Panics
/// When there is none and [`REQUIRE`] is set.
pub fn kernel_image() -> Option<()> {
    is_available(&UmlSpawner::new("/nonexistent"), REQUIRE)
}

/// Where the kernel image is.
///
/// # Panics
/// When there is none and [`REQUIRE`] is set.
pub fn kernel_path() -> Option<PathBuf> {
    match std::env::var_os("TOMBOLO_UML_KERNEL") {
        Some(path) => Some(path.into()),
        None => missing("TOMBOLO_UML_KERNEL is not set: run `cargo xtask test`, which fetches a kernel"),
    }
}

/// The stand-in for Multikernel Linux, where it can run: it mounts a file system and filters system calls.
///
/// # Panics
/// When it cannot and [`REQUIRE_STANDIN`] is set.
pub fn stand_in() -> Option<PathBuf> {
    let program = static_program("tombolo-mksim")?;
    let output = Command::new(&program).args(["run", "--", "true"]).stdin(Stdio::null()).output();
    let problem = match output {
        Ok(output) if output.status.success() => return Some(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    skipped(REQUIRE_STANDIN, &format!("the stand-in for Multikernel Linux does not run here: {problem}"))
}

/// The folder of kerf.
///
/// # Panics
/// When it is missing and [`REQUIRE_KERF`] is set.
pub fn kerf() -> Option<PathBuf> {
    let folder = std::env::var_os(KERF).map(PathBuf::from).filter(|folder| folder.join("bin/kerf").is_file());
    let what = format!("{KERF} names no folder of kerf: run `cargo xtask test`, which fetches it");
    folder.or_else(|| skipped(REQUIRE_KERF, &what))
}

/// Whether there is QEMU and a kernel for it.
///
/// # Panics
/// When there is none and [`REQUIRE_QEMU`] is set.
pub fn qemu() -> Option<()> {
    is_available(&QemuSpawner::new("/nonexistent"), REQUIRE_QEMU)
}

/// The program vhost-device-vsock.
///
/// # Panics
/// When [`VSOCK_DEVICE`] names what is not there.
pub fn vsock_device() -> Option<PathBuf> {
    let asked = std::env::var_os(VSOCK_DEVICE).unwrap_or_else(|| "vhost-device-vsock".into());
    let found = paths::program(Path::new(&asked));
    let what = "there is no vhost-device-vsock: run `cargo xtask test`, which builds it";
    found.or_else(|| skipped(VSOCK_DEVICE, what))
}

fn is_available(spawner: &(impl Spawner + Sync), unless: &str) -> Option<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // In a thread of its own: the caller's may be one of Tokio's already.
    let asked = thread::scope(|scope| scope.spawn(|| runtime().block_on(spawner.availability())).join());
    match asked.unwrap() {
        Availability::Ready { .. } => Some(()),
        Availability::Missing { what, remedy } => skipped(unless, &format!("{what}; {remedy}")),
    }
}

fn missing<T>(what: &str) -> Option<T> {
    skipped(REQUIRE, what)
}

fn skipped<T>(unless: &str, what: &str) -> Option<T> {
    assert!(std::env::var_os(unless).is_none(), "a prerequisite is missing: {what}");
    let test = thread::current().name().unwrap_or("test").to_owned();
    // Not `eprintln!`: the test harness would swallow it.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {what}");
    None
}
