//! Why one try of a probe failed.

use std::fmt;

use crate::api::health::ProbeFailureKind as Kind;

/// Longest text of a failure, in bytes: it may quote a peer.
const TEXT_BYTES_MAX: usize = 400;

/// Why one try of a probe failed: for programs, and in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    /// What a program may act upon.
    pub kind: Kind,
    /// The same for people.
    pub text: String,
}

impl ProbeFailure {
    /// A failure in words that may come from outside: they are cut, and cannot move a terminal's cursor.
    pub fn new(kind: Kind, text: impl fmt::Display) -> Self {
        let mut text: String = text.to_string().chars().filter(|c| !c.is_control()).collect();
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        Self { kind, text }
    }

    /// What an error of the system means.
    pub(super) fn io(attempt: impl fmt::Display, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::ConnectionRefused => Kind::Refused,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            std::io::ErrorKind::TimedOut => Kind::TimedOut,
            _ => Kind::Lost,
        };
        Self::new(kind, format_args!("{attempt}: {error}"))
    }

    /// What an error of the fabric means.
    pub(super) fn fabric(error: &tombolo_transport::Error) -> Self {
        use tombolo_transport::Error as E;
        let kind = match error {
            E::Refused { .. } => Kind::Refused,
            E::Denied { .. } => Kind::Denied,
            E::NotFound { .. } => Kind::NotFound,
            E::TimedOut { .. } => Kind::TimedOut,
            E::NoMemory { .. } => Kind::CannotTry,
            _ => Kind::Lost,
        };
        Self::new(kind, error)
    }
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_from_outside_are_cut_and_cleaned() {
        let failure = ProbeFailure::new(Kind::NotServing, format!("\x1b[2Jno\n{}", "ü".repeat(1000)));
        assert!(failure.text.starts_with("[2Jnoü") && failure.text.len() <= TEXT_BYTES_MAX, "{failure}");
    }
}
