//! What an end takes of the other: told in HELLO, and the smaller of both sides holds.

use super::frame::HEADER_BYTES;

/// What one end can take of the other's, in bytes with headers but for `stream_bytes`, which counts what a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The longest frame.
    pub(crate) frame_bytes: usize,
    /// Sent and not acknowledged at most, all streams together.
    pub(crate) window_bytes: usize,
    /// The same, in frames.
    pub(crate) window_frames: usize,
    /// Sent of one stream and not read at most.
    pub(crate) stream_bytes: usize,
}

impl Limits {
    /// Of a packet of Multikernel's ring, of which there are 64 for everybody: a frame is the payload of one packet (4096 less its own header of
    /// 24 and the vsock header of 44), and half of what 16 of them hold is under way, which leaves room for the console, for notices of the
    /// kernel and for other kernels. Also what an end means whose HELLO tells no limits.
    pub(crate) const PACKETS: Self = Self {
        frame_bytes: 4096 - 24 - 44,
        window_bytes: 32 * 1024,
        window_frames: 16,
        stream_bytes: 64 * 1024,
    };
    /// Of a socket that holds up its writer when it is full.
    pub(crate) const SOUND: Self =
        Self { frame_bytes: 32 * 1024, window_bytes: 4 << 20, window_frames: 512, stream_bytes: 2 << 20 };
    /// With less a link does not work: two frames that carry something.
    pub(crate) const LEAST: Self =
        Self { frame_bytes: 512, window_bytes: 1024, window_frames: 2, stream_bytes: 64 * 1024 };

    /// The same with so many bytes under way, and with frames of which two have room in that.
    pub(crate) fn with_window(self, window_bytes: usize) -> Self {
        Self { window_bytes, frame_bytes: self.frame_bytes.min(window_bytes / 2), ..self }
    }

    /// The longest payload.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.frame_bytes - HEADER_BYTES
    }

    /// What holds between two ends.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            frame_bytes: self.frame_bytes.min(other.frame_bytes),
            window_bytes: self.window_bytes.min(other.window_bytes),
            window_frames: self.window_frames.min(other.window_frames),
            stream_bytes: self.stream_bytes.min(other.stream_bytes),
        }
    }

    /// Whether a link works with them.
    pub(crate) fn suffice(&self) -> bool {
        self.and(Self::LEAST) == Self::LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_the_longest_frames_and_no_more_have_room_in_a_small_window() {
        let limits = Limits::PACKETS.with_window(3584);
        assert_eq!(limits.frame_bytes, 1792);
        assert_eq!(Limits::PACKETS.with_window(32 * 1024), Limits::PACKETS);
    }

    #[test]
    fn smaller_of_both_holds_field_by_field() {
        let odd = Limits { frame_bytes: 600, window_frames: 1000, ..Limits::SOUND };
        assert_eq!(odd.and(Limits::PACKETS), Limits { frame_bytes: 600, ..Limits::PACKETS });
        assert!(Limits::LEAST.suffice() && Limits::PACKETS.suffice() && Limits::SOUND.suffice());
        assert!(!Limits { window_frames: 1, ..Limits::SOUND }.suffice());
    }
}
