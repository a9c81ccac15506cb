//! [`PacedConfig`]: how long a link waits for what.

use std::time::Duration;

use super::core::{BackOffRange, Pace, WINDOW_BYTES};
use crate::error::{Error, Result};

/// Room for two frames with something in them.
const WINDOW_BYTES_MIN: usize = 1024;

/// The waits of a link. Both ends should have the same: each has to speak more often than the other takes for silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacedConfig {
    /// An idle end says something so often: one packet each way. Default 1 s.
    pub keepalive: Duration,
    /// A socket on which the peer said nothing for so long is replaced; streams do not notice. Longer than
    /// [`PacedConfig::keepalive`]. Default 4 s.
    pub silence: Duration,
    /// A peer that said nothing for so long, on any socket, is gone: every stream ends with [`Error::Reset`]. Not shorter than
    /// [`PacedConfig::silence`]. Default 10 s.
    pub give_up: Duration,
    /// The first pause before dialling again; it doubles up to [`PacedConfig::redial_max`] and starts anew once a link was up.
    /// Default 10 ms.
    pub redial_first: Duration,
    /// The longest pause before dialling again, and how long one attempt may take. Default 1 s.
    pub redial_max: Duration,
    /// Sent and not acknowledged at most, in bytes, headers included, all streams together: 1 KiB to 32 KiB, which is the default. Less where
    /// what the bytes travel through holds less than that.
    pub window_bytes: usize,
    /// Whether the socket is a line such as a terminal's, at which an end need not see that the other has gone and come again: then either end may begin
    /// anew on it at any time. Default false. Both ends must have the same.
    pub is_line: bool,
}

impl Default for PacedConfig {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(1),
            silence: Duration::from_secs(4),
            give_up: Duration::from_secs(10),
            redial_first: Duration::from_millis(10),
            redial_max: Duration::from_secs(1),
            window_bytes: WINDOW_BYTES,
            is_line: false,
        }
    }
}

impl PacedConfig {
    pub(super) fn check(&self) -> Result<()> {
        let Self { keepalive, silence, give_up, .. } = *self;
        if keepalive < Duration::from_millis(1) || silence <= keepalive || give_up < silence {
            return Err(Error::Invalid(format!(
                "a paced link with keepalive {keepalive:?}, silence {silence:?}, give_up {give_up:?} cannot work: the first must be 1 ms \
                 or more, the second longer, the third not shorter than the second"
            )));
        }
        if !(WINDOW_BYTES_MIN..=WINDOW_BYTES).contains(&self.window_bytes) {
            return Err(Error::Invalid(format!(
                "a paced link with {} bytes under way cannot work: {WINDOW_BYTES_MIN} to {WINDOW_BYTES} can be",
                self.window_bytes
            )));
        }
        Ok(())
    }

    pub(super) fn pace(&self) -> Pace {
        let pace = Pace::default();
        Pace {
            keepalive: nanos(self.keepalive),
            silence: nanos(self.silence),
            give_up: nanos(self.give_up),
            window_bytes: self.window_bytes,
            is_line: self.is_line,
            ask: pace.ask.min(nanos(self.keepalive)),
            ..pace
        }
    }

    pub(super) fn redial(&self) -> BackOffRange {
        BackOffRange { first: nanos(self.redial_first), max: nanos(self.redial_max.max(self.redial_first)) }
    }
}

/// At most some 146 years, so that sums of two do not overflow.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}
