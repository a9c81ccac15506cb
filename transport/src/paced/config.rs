//! [`PacedConfig`]: how long a link waits for what, and how much it has under way.

use std::time::Duration;

use super::blocks::Blocks;
use super::core::{BackOffRange, Limits, Pace};
use crate::error::{Error, Result};

/// Blocks of a sound socket with bytes that nobody has read, at most; what comes then is copied.
const BLOCKS_MAX: usize = 16;
/// Bytes of each.
const BLOCK_BYTES: usize = 320 * 1024;

/// What a link's sockets are, and so how much may be under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketKind {
    /// AF_VSOCK of Multikernel Linux: no flow control, and a ring of 64 packets for everybody. A frame of at most 4028 bytes a write, at most 32 KiB
    /// and 16 frames under way. Right for every socket, if slow.
    #[default]
    Multikernel,
    /// A socket that holds its writer up while it is full and loses nothing while it lives: AF_VSOCK of other transports, Unix sockets, TCP. Frames of
    /// up to 32 KiB, several in one write, up to 4 MiB and 512 frames under way.
    Sound,
}

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
    /// What the sockets of the link are. Where the ends differ, or one is of a version that does not tell, the smaller of both sides' limits holds.
    /// Default [`SocketKind::Multikernel`].
    pub sockets: SocketKind,
    /// Sent and not acknowledged at most, in bytes, headers included, all streams together: less than the kind of socket allows, where what the
    /// bytes travel through holds less; 1 KiB at least. Default `None`: what the kind allows.
    pub window_bytes: Option<usize>,
    /// Whether the socket is a line such as a terminal's, at which an end need not see that the other has gone and come again: then either end may begin
    /// anew on it at any time. Default false. Both ends must have the same; not with [`SocketKind::Sound`].
    pub is_line: bool,
}

impl SocketKind {
    fn limits(self) -> Limits {
        match self {
            Self::Multikernel => Limits::PACKETS,
            Self::Sound => Limits::SOUND,
        }
    }

    /// What sockets are read into: what AF_VSOCK holds by default, and more, at one time.
    pub(super) fn blocks(self) -> Blocks {
        match self {
            Self::Multikernel => Blocks::new(16 * 1024, 1),
            Self::Sound => Blocks::new(BLOCK_BYTES, BLOCKS_MAX),
        }
    }
}

impl Default for PacedConfig {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(1),
            silence: Duration::from_secs(4),
            give_up: Duration::from_secs(10),
            redial_first: Duration::from_millis(10),
            redial_max: Duration::from_secs(1),
            sockets: SocketKind::Multikernel,
            window_bytes: None,
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
        let possible = Limits::LEAST.window_bytes..=self.sockets.limits().window_bytes;
        if let Some(window_bytes) = self.window_bytes
            && !possible.contains(&window_bytes)
        {
            return Err(Error::Invalid(format!(
                "a paced link with {window_bytes} bytes under way cannot work: {} to {} can be",
                possible.start(),
                possible.end()
            )));
        }
        if self.is_line && self.sockets == SocketKind::Sound {
            return Err(Error::Invalid("a line is no sound socket: either end may begin anew on it".into()));
        }
        Ok(())
    }

    pub(super) fn pace(&self) -> Pace {
        let pace = Pace::DEFAULT;
        let limits = self.sockets.limits();
        Pace {
            keepalive: nanos(self.keepalive),
            silence: nanos(self.silence),
            give_up: nanos(self.give_up),
            limits: self.window_bytes.map_or(limits, |window_bytes| limits.with_window(window_bytes)),
            is_sound: self.sockets == SocketKind::Sound,
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
