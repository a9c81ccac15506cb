//! What a hostile peer, kernel or process may give us, as functions of bytes.
//!
//! Each [target](TARGETS) turns its input into a run of ours against that party, and panics where a promise is broken: an access out of
//! bounds, a wait that never ends, books that do not add up. The unit tests run every target on seeded random inputs and on the corpus in
//! `transport/fuzz`; libFuzzer runs them there (`cargo +nightly fuzz run messages`, in `transport/`).

mod input;
mod parsers;
mod pool;
#[cfg(test)]
mod tests;

pub(crate) use input::Input;

/// Runs one input. Panics if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("broker", crate::broker::fuzz_core),
    ("control", crate::broker::fuzz_control),
    ("messages", crate::ring::fuzz::messages),
    ("paced", crate::paced::fuzz_link),
    ("parsers", parsers::parsers),
    ("pool", pool::pool),
    ("stream", crate::ring::fuzz::stream),
];

/// Runs one input of the target of that name.
///
/// # Panics
/// If a promise is broken, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    let (_, run) = target.unwrap_or_else(|| panic!("no target is called `{name}`"));
    run(data);
}
