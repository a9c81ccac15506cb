//! Who hears the console of a kernel: Tombolo, which records it, or kerf, to which it is lent.

use tombolo_tests::attached::Attached;
use tombolo_tests::bed::{eventually, send_signal};
use tombolo_tests::kerf::Kerf;

use super::Beside;
use super::life::keeper_of_web;
use super::with_kerf::{shown, with_pool};

/// A kernel that runs, on a stand-in whose console goes to whoever opened it last or first.
fn running(to_latest: bool) -> Option<(Beside, Kerf)> {
    let (beside, kerf) = with_pool()?;
    let switch = if to_latest { "on" } else { "off" };
    beside.stand_in.control(&["quirk", switch, "console-of-latest"]);
    beside.boot(&[]);
    Some((beside, kerf))
}

impl Beside {
    fn say(&self, text: &str) {
        self.bed.must(&["exec", "web", "--", "/bin/app", "say-on-console", text]);
    }

    fn recorded(&self) -> String {
        self.bed.must(&["logs", "--console", "web"]).stdout
    }
}

pub(super) fn console_that_is_lent_is_heard_by_kerf_alone_whoever_opened_it_first() {
    let Some((beside, kerf)) = running(false) else { return };
    let theirs = kerf.console("web");
    eventually("kerf is there", || theirs.shown().contains("to detach"));
    beside.say("the first");
    eventually("the record has it", || beside.recorded().contains("the first"));

    beside.bed.must(&["console", "web", "--lend", "1h"]);
    beside.say("the second");
    eventually("kerf shows it", || theirs.shown().contains("the second"));
    let left_ms = shown(&beside, "web")["console_lent_ms"].as_u64().unwrap();
    assert!((1..=3_600_000).contains(&left_ms), "{left_ms}");
    let said = beside.bed.must(&["multikernel", "show"]).stdout;
    assert!(said.contains("its console is lent"), "{said}");
    let mut ours = Attached::run(beside.bed.tombolo_command(&["console", "web"]));
    ours.line("a word of the lease", |line| line.contains("is lent to other programs"));
    drop(ours);

    // Whoever stands for the kernel after its keeper died lends it as well.
    let pid = beside.bed.pid("web");
    let keeper = keeper_of_web(&beside);
    send_signal(keeper, "KILL");
    eventually("another stands for it", || beside.bed.pid("web") != pid);
    beside.say("the third");
    eventually("kerf shows it", || theirs.shown().contains("the third"));
    theirs.detach();

    beside.bed.must(&["console", "web", "--take-back"]);
    assert!(shown(&beside, "web")["console_lent_ms"].is_null());
    beside.say("the fourth");
    eventually("the record has it", || beside.recorded().contains("the fourth"));
    let recorded = beside.recorded();
    assert!(!recorded.contains("the second") && !recorded.contains("the third"), "{recorded}");
    for told in ["the console is lent", "the console is recorded here again"] {
        assert!(recorded.contains(told), "{told}: {recorded}");
    }
    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn lease_of_the_console_ends_at_its_time_and_with_its_kernel() {
    let Some((beside, _)) = running(true) else { return };
    beside.bed.must(&["console", "web", "--lend", "100ms"]);
    eventually("it is over", || beside.recorded().contains("the console is recorded here again"));
    beside.say("after it");
    eventually("the record has it", || beside.recorded().contains("after it"));

    beside.bed.must(&["console", "web", "--lend", "1h"]);
    beside.bed.must(&["stop", "web"]);
    beside.bed.must(&["start", "web"]);
    assert!(shown(&beside, "web")["console_lent_ms"].is_null());
    beside.say("of the next");
    eventually("the record has it", || beside.recorded().contains("of the next"));

    let refused = |args: &[&str], reason: &str| {
        let said = beside.bed.tombolo(args);
        assert!(said.code != 0 && said.stderr.contains(reason), "{args:?}: {said:?}");
    };
    refused(&["console", "web", "--lend", "25h"], "a day at most");
    refused(&["console", "web", "--lend", "0s"], "no time");
    refused(&["console", "web", "--lend", "1h", "--take-back"], "cannot be used with");
    refused(&["console", "nobody", "--lend", "1h"], "no instance named `nobody`");
    beside.bed.must(&["stop", "web"]);
    refused(&["console", "web", "--lend", "1h"], "no kernel");
    beside.nothing_is_left_but(&[]);
}
