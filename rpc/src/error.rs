//! Why a call failed, and whether it may have run.

use std::fmt;
use std::time::Duration;

/// Whether the other side may have run a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its handler was never started: safe to send again.
    NotStarted,
    /// Its handler may have run, in part or whole: send again only what is idempotent.
    Unknown,
    /// Its handler ran to its end and this is its answer.
    Done,
}

/// Why a call gave no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError<E> {
    /// The handler ran and answered with the application's own error.
    #[error("{0}")]
    App(E),
    /// The call failed on its way.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl<E> CallError<E> {
    /// Whether the handler may have run.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::App(_) => Outcome::Done,
            Self::Failed(failure) => failure.outcome(),
        }
    }

    /// Whether the same call, made again (on a new link if this one is lost), may well succeed *and* surely has not run.
    ///
    /// A caller whose call is idempotent may also retry where [`CallError::outcome`] is [`Outcome::Unknown`].
    pub fn retryable(&self) -> bool {
        match self {
            Self::App(_) => false,
            Self::Failed(failure) => failure.retryable(),
        }
    }

    /// The application's error, if it is one.
    pub fn app(&self) -> Option<&E> {
        match self {
            Self::App(error) => Some(error),
            Self::Failed(_) => None,
        }
    }

    /// The failure on the way, if it is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::App(_) => None,
            Self::Failed(failure) => Some(failure),
        }
    }
}

/// Why a call or a stream failed on its way, apart from what the application itself answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The other side's policy refuses this call from us.
    #[error("refused: {0}")]
    Refused(String),
    /// The other side serves no such service.
    #[error("the peer does not serve `{service}`")]
    UnknownService {
        /// What was asked for.
        service: String,
    },
    /// The other side serves the service but not this method: it is older, or newer, than we are.
    #[error("the peer serves `{service}` but not its method `{method}`: it is of another version")]
    UnknownMethod {
        /// The service.
        service: String,
        /// What was asked for.
        method: String,
    },
    /// Both know the method, but the types that it carries differ.
    #[error(
        "`{method}` has another shape at the peer: fingerprint {ours:016x} here, {theirs:016x} there; \
         a changed method needs a new name"
    )]
    SchemaMismatch {
        /// `service/method`.
        method: String,
        /// The fingerprint on this side.
        ours: u64,
        /// The fingerprint on the other side.
        theirs: u64,
    },
    /// Too many calls are under way.
    #[error("overloaded: too many calls under way; try again in {} ms", retry_after.as_millis())]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// No answer in time.
    #[error("no answer within the deadline; the call {}", ran(*started))]
    DeadlineExceeded {
        /// Whether the request may have reached the other side.
        started: bool,
    },
    /// The call was cancelled, by us or by the other side.
    #[error("cancelled; the call {}", ran(*started))]
    Cancelled {
        /// Whether the request may have reached the other side.
        started: bool,
    },
    /// The link went away with the call under way.
    #[error("link lost: {reason}; the call {}", ran(*started))]
    LinkLost {
        /// What became of the link.
        reason: String,
        /// Whether the request may have reached the other side.
        started: bool,
    },
    /// The other side takes no new calls because it is about to go.
    #[error("the peer is draining: {0}")]
    Draining(String),
    /// An argument, item or answer is longer than the other side takes.
    #[error("{what} of {len} bytes is too long: at most {max} bytes")]
    TooLarge {
        /// What is too long.
        what: String,
        /// Its length, in bytes.
        len: u64,
        /// The most there may be, in bytes.
        max: u64,
    },
    /// Bytes that do not decode as what they should be, though the fingerprints agree.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The handler panicked.
    #[error("the handler panicked: {0}")]
    HandlerPanicked(String),
    /// The receiving side of this stream wants no more items (or the call is over).
    #[error("the receiver of the stream is gone")]
    StreamClosed,
}

impl Failure {
    /// Whether the handler may have run.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_)
            | Self::UnknownService { .. }
            | Self::UnknownMethod { .. }
            | Self::SchemaMismatch { .. }
            | Self::Overloaded { .. }
            | Self::Draining(_) => Outcome::NotStarted,
            Self::DeadlineExceeded { started }
            | Self::Cancelled { started }
            | Self::LinkLost { started, .. } => {
                if *started {
                    Outcome::Unknown
                } else {
                    Outcome::NotStarted
                }
            }
            Self::TooLarge { what, .. } if what == REQUEST => Outcome::NotStarted,
            Self::TooLarge { .. } | Self::Malformed(_) | Self::HandlerPanicked(_) | Self::StreamClosed => {
                Outcome::Unknown
            }
        }
    }

    /// Whether the same call, made again, may well succeed and surely has not run.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Overloaded { .. } | Self::Draining(_) => true,
            Self::DeadlineExceeded { started }
            | Self::Cancelled { started }
            | Self::LinkLost { started, .. } => !started,
            _ => false,
        }
    }
}

/// What [`Failure::TooLarge`] calls the arguments of a call: these are refused before the handler starts.
pub(crate) const REQUEST: &str = "a request";

fn ran(started: bool) -> &'static str {
    if started { "may have run" } else { "has not run" }
}

/// Why a link could not be made, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Both sides agreed to end it.
    #[error("the link was closed")]
    Closed,
    /// The other side ended it and said why.
    #[error("the peer closed the link: {0}")]
    ClosedByPeer(String),
    /// The other side is not who it must be, or does not believe who we are.
    #[error("not authenticated: {0}")]
    NotAuthenticated(String),
    /// The two sides have no protocol version or feature set in common.
    #[error("no common protocol: {0}")]
    Incompatible(String),
    /// The other side broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Violation(String),
    /// The connection under the link went away.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The other side gave no sign of life.
    #[error("no sign of life from the peer for {} ms", silent.as_millis())]
    Silent {
        /// For how long.
        silent: Duration,
    },
    /// This side ended it.
    #[error("closed here: {0}")]
    ClosedHere(String),
}

/// A code with which one side tells the other why it closes the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum CloseCode {
    Normal = 0,
    Violation = 1,
    NotAuthenticated = 2,
    Incompatible = 3,
    Silent = 4,
    Local = 5,
}

impl LinkError {
    pub(crate) fn close_code(&self) -> CloseCode {
        match self {
            Self::Closed => CloseCode::Normal,
            Self::Violation(_) => CloseCode::Violation,
            Self::NotAuthenticated(_) => CloseCode::NotAuthenticated,
            Self::Incompatible(_) => CloseCode::Incompatible,
            Self::Silent { .. } => CloseCode::Silent,
            Self::ClosedByPeer(_) | Self::Lost(_) | Self::ClosedHere(_) => CloseCode::Local,
        }
    }

    /// What the other side's CLOSE means to us.
    pub(crate) fn from_close(code: u16, text: &str) -> Self {
        const NOT_AUTHENTICATED: u16 = CloseCode::NotAuthenticated as u16;
        const INCOMPATIBLE: u16 = CloseCode::Incompatible as u16;
        match code {
            0 => Self::Closed,
            NOT_AUTHENTICATED => Self::NotAuthenticated(format!("the peer says: {text}")),
            INCOMPATIBLE => Self::Incompatible(format!("the peer says: {text}")),
            _ => Self::ClosedByPeer(text.to_owned()),
        }
    }
}

/// The error type of methods that never fail on their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, crate::Schema)]
pub enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for Never {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_tells_started_from_not_started() {
        assert_eq!(Failure::DeadlineExceeded { started: false }.outcome(), Outcome::NotStarted);
        assert_eq!(Failure::DeadlineExceeded { started: true }.outcome(), Outcome::Unknown);
        assert_eq!(Failure::Overloaded { retry_after: Duration::ZERO }.outcome(), Outcome::NotStarted);
        assert_eq!(CallError::App(()).outcome(), Outcome::Done);
    }

    #[test]
    fn only_calls_that_surely_have_not_run_are_retryable() {
        let lost = |started| Failure::LinkLost { reason: "x".into(), started };
        assert!(lost(false).retryable() && !lost(true).retryable());
        assert!(!Failure::UnknownService { service: "x".into() }.retryable());
    }
}
