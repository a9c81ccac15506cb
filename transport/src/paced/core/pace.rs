//! Times: how long to wait for what, and how long to back off.

use super::limits::Limits;

/// A point in time, in nanoseconds since some start that the caller chose.
pub(crate) type Nanos = u64;

const MS: u64 = 1_000_000;

/// The waits of one end of a link, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// We say something at least so often.
    pub(crate) keepalive: u64,
    /// A socket on which the peer said nothing for so long is given up for a new one.
    pub(crate) silence: u64,
    /// A peer that said nothing for so long, on any socket, is gone: every stream ends.
    pub(crate) give_up: u64,
    /// What is not acknowledged after so long is asked after.
    pub(crate) ask: u64,
    /// Few received frames are acknowledged after so long; more at once.
    pub(crate) ack_delay: u64,
    /// Pauses after a write that found the peer's ring full.
    pub(crate) refused: BackOffRange,
    /// What this end takes, and sends at most.
    pub(crate) limits: Limits,
    /// The socket has a flow control of its own: many frames may go in one write.
    pub(crate) is_sound: bool,
    /// Neither end need see that the other has opened the socket anew.
    pub(crate) is_line: bool,
}

/// The first pause of a row and the longest, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackOffRange {
    pub(crate) first: u64,
    pub(crate) max: u64,
}

/// Pauses that double up to a longest one, each cut by up to half at random so that many do not come back at once.
#[derive(Clone, Debug)]
pub(crate) struct BackOff {
    range: BackOffRange,
    pauses: u32,
}

impl Pace {
    pub(crate) const DEFAULT: Self = Self {
        keepalive: 1000 * MS,
        silence: 4000 * MS,
        give_up: 10_000 * MS,
        ask: 200 * MS,
        ack_delay: 5 * MS,
        refused: BackOffRange { first: MS / 4, max: 20 * MS },
        limits: Limits::PACKETS,
        is_sound: false,
        is_line: false,
    };
}

impl BackOff {
    pub(crate) fn new(range: BackOffRange) -> Self {
        Self { range, pauses: 0 }
    }

    /// The next pause; `jitter` is any random number.
    pub(crate) fn pause(&mut self, jitter: u64) -> u64 {
        let longest = self.range.first.saturating_mul(1 << self.pauses.min(30)).min(self.range.max);
        self.pauses = self.pauses.saturating_add(1);
        let half = longest / 2;
        longest - jitter % (half + 1)
    }

    /// It went well: the next row begins with the first pause.
    pub(crate) fn reset(&mut self) {
        self.pauses = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_never_nothing() {
        let mut back_off = BackOff::new(BackOffRange { first: 100, max: 1000 });
        let pauses: Vec<u64> = (0..6).map(|_| back_off.pause(0)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert!((0..2000).all(|jitter| (500..=1000).contains(&back_off.pause(jitter))));
        back_off.reset();
        assert_eq!(back_off.pause(50), 50);
    }
}
