//! CPUs move by themselves to the kernel whose programs wait for one, while that is turned on.

use serde_json::Value;
use tombolo_tests::bed::{Bed, eventually};
use tombolo_tests::prerequisites;

use super::{books_add_up, cpus, emulated_bed, inside};

/// Quicker than the defaults, for a test. Emulated CPUs are slow: a kernel with little to do waits for one at times.
const ON: [&str; 9] = ["balance", "--policy", "pressure", "--hold", "1s", "--rest", "2s", "--give-at", "10"];

fn balance(bed: &Bed, options: &[&str]) -> Value {
    bed.must(&[&["--json", "balance"][..], options].concat()).json()["balance"].take()
}

/// What would be moved now by the settings of [`ON`]: from whom, to whom.
fn would_move(bed: &Bed) -> [Value; 2] {
    let status = bed.must(&[&["--json"][..], &ON, &["--dry-run"]].concat()).json();
    let decision = &status["balance"]["decision"]["move"];
    ["from", "to"].map(|end| decision[end].clone())
}

fn operations(bed: &Bed) -> usize {
    bed.must(&["--json", "op", "ls"]).json()["operations"].as_array().map_or(0, Vec::len)
}

/// The moves that balancing began or failed at: from whom, to whom, why.
fn told(bed: &Bed, kind: &str) -> Vec<[String; 3]> {
    let events = bed.events_since(0).into_iter().filter(|event| event["type"] == kind);
    let field = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let why = if kind == "balance-failed" { "reason" } else { "why" };
    events.map(|event| [field(&event, "from"), field(&event, "to"), field(&event, why)]).collect()
}

#[test]
fn cpus_go_by_themselves_to_whom_they_are_short_and_nowhere_while_that_is_off() {
    let Some(mut bed) = emulated_bed("4", &["--balance"]) else { return };
    let mut busy = bed.attach(&["exec", "web", "--", "/bin/app", "spin", "4"]);
    busy.line("the busy program", |line| line.contains("spinning"));

    let off = balance(&bed, &[]);
    assert!(off["settings"].is_null() && off["decision"].is_null(), "{off}");
    assert_eq!(off["members"].as_array().map(Vec::len), Some(2), "{off}");
    eventually("web to be short of CPUs", || would_move(&bed) == ["pool", "web"]);
    assert_eq!((cpus(&bed, "web"), cpus(&bed, "db"), operations(&bed)), (1, 2, 0), "it is off");

    bed.must(&ON);
    eventually("web to have what is free, and what db can be without", || cpus(&bed, "web") == 3);
    assert_eq!((cpus(&bed, "db"), cpus(&bed, "pool")), (1, 0));
    eventually("both to be told as done", || balance(&bed, &[])["last_move"]["outcome"] == "moved");
    assert_eq!((inside(&bed, "web", "cpus_online"), inside(&bed, "db", "cpus_online")), (3, 1));
    let moves = told(&bed, "balance-proposed");
    let ways: Vec<[&str; 2]> = moves.iter().map(|[from, to, _]| [from.as_str(), to.as_str()]).collect();
    assert_eq!(ways, [["pool", "web"], ["db", "web"]], "{moves:?}");
    assert!(moves.iter().all(|[_, _, why]| why.starts_with("web waits for a CPU ")), "{moves:?}");
    assert!(moves[1][2].contains("; db waits "), "{moves:?}");

    // It does not fight with a fleet file: what that says is where CPUs begin.
    let fleet = bed.dir().join("fleet.toml");
    let instance = |name: &str, memory: u32, cpus: u32| {
        format!("[instance.{name}]\nmemory_mib = {memory}\ncpus = {cpus}\ncpus_max = 4\nbalance = true\n")
    };
    std::fs::write(&fleet, instance("web", 160, 1) + &instance("db", 256, 2)).unwrap();
    let diff = ["diff", "-f", fleet.to_str().unwrap()];
    bed.must(&diff);

    // It is on after a start of the daemon, too; db keeps its last CPU.
    bed.end_daemon("TERM");
    bed.start_daemon();
    eventually("it to find that nobody gives", || balance(&bed, &[])["decision"] == "nobody-gives");
    assert_eq!(balance(&bed, &[])["settings"]["hold_ms"], 1_000);

    bed.must(&["balance", "--off"]);
    let said = bed.tombolo(&diff);
    assert!(said.code == 1 && said.stdout.contains("web: CPUs 3 -> 1"), "{said:?}");
    bed.must(&["move", "--cpus", "1", "--from", "web", "--to", "db"]);
    let before = operations(&bed);
    eventually("web to be short of CPUs again", || would_move(&bed) == ["db", "web"]);
    assert_eq!((cpus(&bed, "web"), cpus(&bed, "db"), operations(&bed)), (2, 2, before), "it is off again");

    says_no(&bed);
    busy.signal("INT");
    busy.finish();
    books_add_up(&bed);
    bed.nothing_is_left();
}

/// A program in db that does not want to give is heard, and told of.
fn says_no(bed: &Bed) {
    let app = prerequisites::static_program("tombolo-demo-kv").expect("it was there at the start");
    // Asked `check donor`, it does not know that command, and says so.
    bed.must(&["cp", app.to_str().unwrap(), "db:/etc/tombolo/hooks.d/10-app"]);
    bed.must(&ON);
    eventually("the refusal to be told", || !told(bed, "balance-failed").is_empty());
    let refusals = told(bed, "balance-failed");
    let [from, to, reason] = &refusals[0];
    assert_eq!((from.as_str(), to.as_str()), ("db", "web"));
    assert!(reason.contains("hook `10-app` (check)"), "{reason}");
    assert_eq!((cpus(bed, "web"), cpus(bed, "db")), (2, 2));
    let shown = balance(bed, &[]);
    let is_resting =
        |member: &Value| member["name"] == "db" && member["rests_ms"].as_u64().is_some_and(|ms| ms > 0);
    assert!(shown["members"].as_array().is_some_and(|members| members.iter().any(is_resting)), "{shown}");
    bed.must(&["balance", "--off"]);
}

#[test]
fn settings_that_make_no_sense_are_refused_and_change_nothing() {
    let Some(bed) = Bed::start("process") else { return };
    for (args, reason) in [
        (&["--policy", "pressure", "--take-at", "2"][..], "give at less than it gets at"),
        (&["--policy", "luck"], "pressure"),
        (&["--hold", "1s"], "--policy"),
    ] {
        let said = bed.tombolo(&[&["balance"][..], args].concat());
        assert!(said.code == 2 && said.stderr.contains(reason), "{args:?}: {said:?}");
    }
    assert!(balance(&bed, &[])["settings"].is_null());
    bed.must(&["create", "calm", "--balance"]);
    let said = bed.must(&["balance", "--policy", "pressure"]);
    assert!(said.stderr.contains("balancing is on, by pressure: gets at 20 % waiting"), "{said:?}");
    eventually("the instance to be told as one that does not run", || {
        balance(&bed, &[])["members"][0]["problem"] == "it does not run"
    });
    let said = bed.must(&["balance"]).stdout;
    assert!(
        said.contains("nobody who does not rest has waited") && said.contains("it does not run"),
        "{said}"
    );
    bed.must(&["balance", "--off"]);
    bed.nothing_is_left();
}
