//! The smallest part that fails is named, and it alone is started again.

use std::fs;

use serde_json::Value;
use tombolo_tests::bed::{Bed, eventually};

/// A bed whose `web` makes a file when it starts, without which it counts as dead.
fn bed_with_a_sign_of_life() -> Option<Bed> {
    let bed = Bed::start("process")?;
    let alive = bed.dir().join("alive");
    let spec = format!(
        r#"
        entrypoint = {{ argv = ["/bin/sh", "-c", "touch {0}; exec sleep 1000"], restart = "always" }}
        [[probes]]
        name = "alive"
        kind = "liveness"
        period_ms = 50
        failure_threshold = 2
        file_age = {{ path = "{0}", max_age_ms = 3600000 }}
        "#,
        alive.display()
    );
    fs::write(bed.dir().join("web.toml"), spec).unwrap();
    bed.must(&["up", "web", "--spec", &bed.dir().join("web.toml").display().to_string()]);
    bed.must(&["wait", "web", "--for", "ready"]);
    Some(bed)
}

/// What was told of the health of `web`.
fn of_health(bed: &Bed, since: u64) -> Vec<Value> {
    bed.events_since(since).into_iter().filter(|event| event["type"] == "health").collect()
}

fn restarts_of_the_program(bed: &Bed) -> Option<u64> {
    bed.must(&["--json", "inspect", "web"]).json()["instance"]["report"]["entrypoint"]["restarts"].as_u64()
}

#[test]
fn program_that_is_not_live_is_started_again_and_nothing_else_is() {
    let bed = bed!(bed_with_a_sign_of_life());
    let (before, seen) = (bed.view("web"), bed.last_event());
    assert_eq!(before["layer"], Value::Null);
    fs::remove_file(bed.dir().join("alive")).unwrap();
    eventually("the program to be started again", || restarts_of_the_program(&bed) == Some(1));
    bed.must(&["wait", "web", "--for", "ready"]);
    let told = of_health(&bed, seen);
    let first = told.first().unwrap();
    assert_eq!((&first["to"], &first["layer"]), (&"degraded".into(), &"application".into()), "{told:?}");
    assert!(first["why"].as_str().unwrap().contains("probe `alive` fails"), "{first}");
    assert_eq!(told.last().unwrap()["layer"], Value::Null, "{told:?}");
    let after = bed.view("web");
    for same in ["boots", "restarts", "pid", "incarnation"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    bed.nothing_is_left();
}

#[test]
fn program_that_has_died_is_told_from_a_kernel_that_has() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web", "--restart", "never", "--", "/bin/sh", "-c", "exit 3"]);
    let view = bed.until("web", "degraded", |view| view["layer"] == "application");
    assert_eq!((&view["health"], &view["state"]), (&"degraded".into(), &"running".into()), "{view}");
    assert_eq!(view["health_reason"], "the program has ended: exit status 3");
    assert!(bed.must(&["ps"]).stdout.contains("degraded (application)"));
    bed.nothing_is_left();
}
