//! The spawner on a model of the kernel (`tombolo-mksim`), traps included: no call of it is real, and no time passes.

mod bad_input;
mod bench;
mod crashes;
mod deeds;
mod device_histories;
mod devices;
mod doubts;
mod endings;
mod ledger;
mod live;
mod lock;
mod memory;
mod owners;
mod taken_over;
mod traps;
mod world;

/// Every test that the table of traps names is there.
#[test]
fn documented_traps_are_replayed() {
    let document = include_str!("../../../../../docs/multikernel-traps.md");
    let sources = [
        ("model_tests::traps", include_str!("traps.rs")),
        ("model_tests::owners", include_str!("owners.rs")),
        ("model_tests::endings", include_str!("endings.rs")),
        ("model_tests::lock", include_str!("lock.rs")),
        ("model_tests::taken_over", include_str!("taken_over.rs")),
        ("model_tests::crashes", include_str!("crashes.rs")),
        ("model_tests::ledger", include_str!("ledger/mod.rs")),
        ("model_tests::live", include_str!("live.rs")),
        ("model_tests::memory", include_str!("memory.rs")),
        ("model_tests::devices", include_str!("devices.rs")),
        ("model_tests::doubts", include_str!("doubts.rs")),
        ("model_tests::device_histories", include_str!("device_histories.rs")),
        ("functions::tests", include_str!("../functions.rs")),
        ("host_pci::tests", include_str!("../host_pci_tests.rs")),
        ("regions::tests", include_str!("../regions.rs")),
        ("model_tests::bad_input", include_str!("bad_input.rs")),
        ("ending::tests", include_str!("../ending.rs")),
        ("ids::tests", include_str!("../ids.rs")),
        ("look::tests", include_str!("../look.rs")),
        ("may_load::tests", include_str!("../may_load.rs")),
        ("mount::tests", include_str!("../mount.rs")),
        ("console::tests", include_str!("../console.rs")),
        ("settings::tests", include_str!("../settings.rs")),
        ("shared::tests", include_str!("../shared/tests.rs")),
        ("shared::iomem::tests", include_str!("../shared/iomem.rs")),
        ("shared::holder::tests", include_str!("../shared/holder.rs")),
        ("shared::mounts::tests", include_str!("../shared/mounts.rs")),
        ("relay::tests", include_str!("../../../../../transport/src/relay/tests.rs")),
        ("pool::tests", include_str!("../../../../../transport/src/pool/tests.rs")),
        (
            "broker::shell::pool_fd::tests",
            include_str!("../../../../../transport/src/broker/shell/pool_fd.rs"),
        ),
        ("daxfs::tests", include_str!("../../../../../agent/src/daxfs.rs")),
        ("tree::tests", include_str!("../tree_tests.rs")),
        ("spawner::user_archive::tests", include_str!("../../user_archive.rs")),
        ("spawner::initrd::tests", include_str!("../../initrd.rs")),
        ("image::tests", include_str!("../image/tests/mod.rs")),
        ("image::tests::hostile", include_str!("../image/tests/hostile.rs")),
        ("core::spec::tests", include_str!("../../../core/spec.rs")),
        ("daemon::handover::movable::tests", include_str!("../../../daemon/handover/movable.rs")),
        ("doctor::multikernel::tests", include_str!("../../../doctor/multikernel.rs")),
        ("core::health::tests", include_str!("../../../core/health_tests.rs")),
        ("daemon::paced::tests", include_str!("../../../daemon/paced.rs")),
    ];
    let names = document.split('`').filter_map(|word| word.rsplit_once("::"));
    let mut found = 0;
    for (module, name) in names.filter(|(module, _)| module.contains("tests")) {
        let source = sources.iter().find(|(of, _)| *of == module).map(|(_, source)| *source);
        let source = source.unwrap_or_else(|| panic!("there is no module {module}"));
        assert!(source.contains(&format!("fn {name}(")), "there is no test {module}::{name}");
        found += 1;
    }
    assert!(found > 30, "{found} are named");
}

/// The workspace's folder.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Where the files are that the table names without a folder.
const BESIDE: &str = "tests/tests/beside";

/// The same for those that it names by their file: `` `file.rs`: `name`, `name` ``.
#[test]
fn documented_traps_are_replayed_by_tests_of_other_files() {
    let document = include_str!("../../../../../docs/multikernel-traps.md");
    let mut found = 0;
    for line in document.lines() {
        // Texts and words of code take turns; a name is of the file before, as long as only names come.
        let pieces: Vec<&str> = line.split('`').collect();
        let mut file: Option<(&str, String)> = None;
        for (before, word) in pieces.iter().zip(&pieces[1..]).step_by(2) {
            if word.ends_with(".rs") {
                file = Some((word, source_of(word)));
                continue;
            }
            let follows = matches!(*before, ": " | ", ");
            let is_name = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            file = file.filter(|_| follows && is_name);
            if let Some((file, source)) = &file {
                assert!(source.contains(&format!("fn {word}(")), "there is no test {word} in {file}");
                found += 1;
            }
        }
    }
    assert!(found > 10, "{found} are named");
}

/// The text of a file that the table names; one that it does not give the folder of is one of [`BESIDE`].
fn source_of(file: &str) -> String {
    let path = if file.contains('/') { file.to_owned() } else { format!("{BESIDE}/{file}") };
    let path = std::path::Path::new(WORKSPACE).join(path);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{file} is named: {}: {error}", path.display()))
}
