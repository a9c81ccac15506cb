//! How a kernel ended. Its status does not tell: `loaded` is one that halted in good order, one that panicked and one that was ended by force.

/// What the console of a kernel that ended in good order says last, whichever way it ended.
const FAREWELLS: [&[u8]; 3] = [b"reboot: Power down", b"reboot: System halted", b"reboot: Restarting system"];
/// What every panic says.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// How a kernel ended, by what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It said so. A panic that ends in a restart is one.
    Panicked,
    /// It took leave.
    InOrder,
    /// Its CPUs were taken from it, and it had said nothing before.
    Forced,
    /// It said nothing: nobody knows.
    Unexplained,
}

/// How a kernel ended whose console said this last.
pub(super) fn ending(tail: &Tail, was_forced: bool) -> Ending {
    if tail.has(PANIC) {
        Ending::Panicked
    } else if FAREWELLS.iter().any(|farewell| tail.has(farewell)) {
        Ending::InOrder
    } else if was_forced {
        Ending::Forced
    } else {
        Ending::Unexplained
    }
}

/// The last that a console said.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    /// How many it has said in all.
    pub(super) total: u64,
}

impl Tail {
    const BYTES: usize = 16 * 1024;

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(Self::BYTES);
        self.bytes.drain(..excess);
    }

    /// Whether it has said what kernels say that end.
    pub(super) fn ends(&self) -> bool {
        !matches!(ending(self, false), Ending::Unexplained)
    }

    fn has(&self, text: &[u8]) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(parts: &[&str], was_forced: bool) -> Ending {
        let mut tail = Tail::default();
        parts.iter().for_each(|part| tail.push(part.as_bytes()));
        ending(&tail, was_forced)
    }

    #[test]
    fn panic_is_told_from_a_halt_by_what_the_console_said() {
        assert_eq!(
            after(&["[ 1.0] Kernel pan", "ic - not syncing: sysrq triggered crash\r\n"], false),
            Ending::Panicked
        );
        let restarts = ["Kernel panic - not syncing: x\r\n", "reboot: Restarting system\r\n"];
        assert_eq!(after(&restarts, true), Ending::Panicked);
        for farewell in ["reboot: Power down", "reboot: System halted", "reboot: Restarting system"] {
            assert_eq!(after(&["[ 9.1] ", farewell, "\r\n"], false), Ending::InOrder, "{farewell}");
        }
    }

    #[test]
    fn kernel_that_said_nothing_did_not_end_in_good_order() {
        assert_eq!(after(&[], false), Ending::Unexplained);
        assert_eq!(after(&["Linux version 7.0"], false), Ending::Unexplained);
        assert_eq!(after(&["Linux version 7.0"], true), Ending::Forced);
    }

    #[test]
    fn farewell_of_long_ago_is_none() {
        let chatter = "x".repeat(Tail::BYTES);
        assert_eq!(after(&["reboot: Power down", &chatter], false), Ending::Unexplained);
    }
}
