//! What is known of goals that are missed: what a profile shows, and what was tried. docs/how-it-gets-there.md has the rest.

/// Why the line of this name is missed where it is, as far as that is known.
pub(crate) fn of(name: &str) -> Option<&'static str> {
    CAUSES.iter().find(|(line, _)| *line == name).map(|(_, cause)| *cause)
}

/// For two virtual cores far from each other, the only kind on which goals were missed.
const CAUSES: [(&str, &str); 5] = [
    (
        "round-trip-56",
        "Two lines' ways are F; what is over it is our own code on both sides. By the run it is on either side of the goal, as F itself moves by half.",
    ),
    (
        "one-way-64",
        "By Aeron, which moves by five times from run to run (its driver takes turns with its ends on two cores); ours moves by a quarter. \
         A message of 64 bytes takes two lines. Tried: 56 of its bytes in the slot (slower: both sides are then at one line of the ring).",
    ),
    (
        "stream",
        "Three quarters of the processor samples of both sides are in the copies, the rest in looking for the other side. A memcpy of 64 KiB stays in one core's second-level cache; here each line has to \
         come from another core. A bare ring in C ends at 17 to 19 GB/s as well. Kept: copies over four pages in turns (13 to 18-19 GB/s), a \
         ring of 256 KiB, parts of 16 KiB. Tried: non-temporal stores, cldemote, vectors of 64 bytes, parts of 32 and 64 KiB.",
    ),
    (
        "calls-in-flight",
        "The profile is flat: a fifth of the samples look for frames that are under way, and no other function of a call's 470 ns has a twentieth. Calls under way \
         share messages and slots already. Tried: other orders of driver and callers, ids that say where a record is (kept, 1.06 times).",
    ),
    (
        "heartbeats",
        "A thread that wakes 200 times a second takes half a percent of a CPU by itself; a look at 511 kernels added 0 to 0.5, by the run. Tried: asking \
         ahead, pages mapped side by side, two passes (none of them faster).",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reach::NAMES;

    #[test]
    fn causes_are_of_lines_that_there_are() {
        assert!(CAUSES.iter().all(|(line, _)| NAMES.contains(line)));
        assert!(of("stream").is_some() && of("wake").is_none());
    }
}
