//! Agents that are not the ones that were started: another secret, the boot before.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tombolo_tests::bed::{Bed, eventually};

/// A bed whose agents are run by a script. `$AGENT` is the agent, `$CONFIG` what it was told to read, `$DIR` a folder.
fn bed_with_agents_run_by(script: &str) -> Option<Bed> {
    let mut bed = Bed::prepare("process")?;
    let path = bed.dir().join("agent.sh");
    let (agent, dir) = (bed.program("tombolo-agent"), bed.dir().display().to_string());
    let text = format!("#!/bin/sh\nAGENT={}\nDIR={dir}\nCONFIG=$2\n{script}\n", agent.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    bed.add_daemon_args(["--agent-binary", &path.display().to_string()]);
    bed.start_daemon();
    fs::write(bed.dir().join("hasty.toml"), "boot_timeout_ms = 3000\nrestart = 'never'\n").unwrap();
    Some(bed)
}

fn hasty(bed: &Bed) -> String {
    bed.dir().join("hasty.toml").display().to_string()
}

/// What was said of agents that were turned away.
fn refusals(bed: &Bed) -> Vec<String> {
    let events = bed.events_since(0);
    let refused =
        events.iter().filter(|event| event["type"] == "agent-refused" && event["instance"] == "web");
    refused.filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect()
}

#[test]
fn agent_with_another_secret_is_refused() {
    let forge = r#"
        sed 's/\("secret": *"\)[0-9a-f]\{8\}/\100000000/' "$CONFIG" > "$DIR/forged.json"
        cmp -s "$CONFIG" "$DIR/forged.json" && { echo "nothing was forged" >&2; exit 9; }
        exec "$AGENT" --config "$DIR/forged.json""#;
    let bed = bed!(bed_with_agents_run_by(forge));
    let said = bed.tombolo(&["up", "web", "--spec", &hasty(&bed)]);
    assert!(said.code == 1 && said.stderr.contains("did not report within 3000 ms"), "{said:?}");
    assert_eq!(bed.view("web")["state"], "failed");
    let told = refusals(&bed);
    assert!(!told.is_empty() && told[0].contains("secret"), "{told:?}");
    bed.nothing_is_left();
}

#[test]
fn agent_of_the_boot_before_is_refused() {
    let replay = r#"
        [ -e "$DIR/first.json" ] || cp "$CONFIG" "$DIR/first.json"
        exec "$AGENT" --config "$DIR/first.json""#;
    let bed = bed!(bed_with_agents_run_by(replay));
    bed.must(&["up", "web", "--spec", &hasty(&bed)]);
    bed.must(&["stop", "web"]);
    let said = bed.tombolo(&["start", "web"]);
    assert!(said.code == 1, "{said:?}");
    eventually("a stale agent that gives up", || bed.view("web")["state"] == "failed");
    let told = refusals(&bed);
    assert!(!told.is_empty() && told[0].contains("stale"), "{told:?}\n{}", bed.daemon_log());
    bed.nothing_is_left();
}
