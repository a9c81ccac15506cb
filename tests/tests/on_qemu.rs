//! The control plane over kernels in emulated machines.

use serde_json::Value;
use tombolo_tests::bed::{Bed, eventually, send_signal};
use tombolo_tests::prerequisites;

/// A bed with one kernel `web` that has the demo's application, which also serves as its shell.
fn bed_with_web(restart: &str) -> Option<Bed> {
    let app = prerequisites::static_program("tombolo-demo-kv")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(prerequisites::qemu())?;
    let bed = Bed::start("qemu")?;
    let file = format!("{}:/bin/app", app.display());
    bed.must(&["up", "web", "--memory", "160", "--restart", restart, "--file", &file]);
    Some(bed)
}

fn where_am_i(bed: &Bed) -> Value {
    serde_json::from_str(&bed.must(&["exec", "web", "--", "/bin/app", "where-am-i"]).stdout).unwrap()
}

#[test]
fn kernel_under_qemu_boots_apart_from_the_host_and_powers_off() {
    let Some(bed) = bed_with_web("never") else { return };
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let inside = where_am_i(&bed);
    assert_ne!(inside["boot_id"], host.trim());
    assert_eq!(inside["boot_id"], bed.view("web")["boot_id"]);
    bed.must(&["stop", "web"]);
    assert_eq!(bed.view("web")["last_end"], "powered-off");
    bed.nothing_is_left();
}

#[test]
fn kernel_under_qemu_that_panics_is_told_from_a_killed_one_and_restarted() {
    let Some(bed) = bed_with_web("on-failure") else { return };
    let first = bed.view("web");
    // The answer may or may not get out before the end.
    bed.tombolo(&["exec", "web", "--", "/bin/app", "panic"]);
    let again = |before: &Value| {
        let boots = before["boots"].clone();
        bed.until("web", "booted again", move |view| view["state"] == "running" && view["boots"] != boots)
    };
    let second = again(&first);
    assert_eq!(second["last_end"], "panicked", "{second}");
    send_signal(bed.pid("web"), "KILL");
    let third = again(&second);
    assert_eq!(third["last_end"], serde_json::json!({ "signaled": 9 }), "{third}");
    assert_ne!(first["boot_id"], third["boot_id"]);
    bed.nothing_is_left();
}

#[test]
fn kernel_under_qemu_outlives_its_daemon() {
    let Some(mut bed) = bed_with_web("never") else { return };
    let before = where_am_i(&bed);
    bed.end_daemon("KILL");
    bed.start_daemon();
    bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!(where_am_i(&bed)["boot_id"], before["boot_id"]);
    bed.nothing_is_left();
}

#[test]
fn kernel_under_qemu_is_told_hung_from_dead_inside() {
    let Some(bed) = bed_with_web("never") else { return };
    bed.must(&["debug", "freeze", "web"]);
    let view = bed.until("web", "hung", |view| view["state"] == "hung");
    assert_eq!(view["health"], "hung", "{view}");
    bed.must(&["debug", "thaw", "web"]);
    bed.must(&["wait", "web", "--for", "running"]);

    // The agent may be frozen before it has answered, so nothing waits for the answer until it is thawed.
    let freeze = bed.attach(&["exec", "-d", "web", "--", "/bin/app", "freeze-user-space", "10000"]);
    let view = bed.until("web", "hung", |view| view["state"] == "hung");
    assert_eq!(view["health"], "user-space-dead", "{view}");
    bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!(freeze.finish().code, 0);
    bed.nothing_is_left();
}

#[test]
fn kernel_under_qemu_and_user_mode_kernel_share_one_pool() {
    let Some(bed) = bed_with_web("never") else { return };
    let app = prerequisites::static_program("tombolo-demo-kv").unwrap();
    let file = format!("{}:/bin/app", app.display());
    bed.must(&[
        "up",
        "db",
        "--spawner",
        "uml",
        "--memory",
        "128",
        "--file",
        &file,
        "--",
        "/bin/app",
        "serve",
    ]);
    bed.must(&["policy", "allow", "web", "db"]);
    eventually("a call from one kernel to the other", || {
        bed.tombolo(&["exec", "web", "--", "/bin/app", "try", "db/kv"]).code == 0
    });
    let measured = bed.must(&["exec", "web", "--", "/bin/app", "measure", "db/kv"]);
    let measured: Value = serde_json::from_str(&measured.stdout).unwrap();
    assert!(measured.is_object(), "{measured}");
    bed.nothing_is_left();
}
