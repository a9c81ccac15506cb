//! [`Fault`]: why the serving side refuses or ends a call, as an ERROR frame carries it.
//!
//! aux = code; body = outcome (u8: 0 not started, 1 unknown), detail (u64), text (UTF-8, the rest).

use std::time::Duration;

use crate::error::{Failure, REQUEST};
use crate::schema::MethodInfo;

/// What went wrong, on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Code {
    Refused = 1,
    UnknownService = 2,
    UnknownMethod = 3,
    /// detail: the server's fingerprint.
    SchemaMismatch = 4,
    /// detail: retry after, in microseconds.
    Overloaded = 5,
    DeadlineExceeded = 6,
    Cancelled = 7,
    Draining = 8,
    /// detail: the most there may be, in bytes; text: how long it is, in decimal.
    TooLarge = 9,
    Malformed = 10,
    HandlerPanicked = 11,
}

/// Why a call is refused or ended by the side that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: u16,
    pub(crate) started: bool,
    pub(crate) detail: u64,
    pub(crate) text: String,
}

/// The longest text an ERROR, GOAWAY or CLOSE carries, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 512;

impl Fault {
    pub(crate) fn new(code: Code, started: bool, detail: u64, text: impl Into<String>) -> Self {
        Self { code: code as u16, started, detail, text: text.into() }
    }

    /// Appends the body of an ERROR frame.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.started));
        out.extend_from_slice(&self.detail.to_le_bytes());
        out.extend_from_slice(clip(&self.text).as_bytes());
    }

    pub(crate) fn parse(code: u16, body: &[u8]) -> Result<Self, String> {
        let short = || format!("ERROR with a body of {} bytes", body.len());
        let (started, rest) = body.split_first().ok_or_else(short)?;
        let (detail, text) = rest.split_first_chunk().ok_or_else(short)?;
        if *started > 1 {
            return Err(format!("ERROR with outcome {started}"));
        }
        Ok(Self {
            code,
            started: *started == 1,
            detail: u64::from_le_bytes(*detail),
            text: clip(&String::from_utf8_lossy(text)).to_owned(),
        })
    }

    /// What the caller of `method` is told.
    pub(crate) fn into_failure(self, method: &MethodInfo) -> Failure {
        const fn is(code: u16, known: Code) -> bool {
            code == known as u16
        }
        let Self { code, started, detail, text } = self;
        match code {
            c if is(c, Code::Refused) => Failure::Refused(text),
            c if is(c, Code::UnknownService) => {
                Failure::UnknownService { service: method.service.to_owned() }
            }
            c if is(c, Code::UnknownMethod) => {
                Failure::UnknownMethod { service: method.service.to_owned(), method: method.name.to_owned() }
            }
            c if is(c, Code::SchemaMismatch) => Failure::SchemaMismatch {
                method: format!("{}/{}", method.service, method.name),
                ours: method.fingerprint,
                theirs: detail,
            },
            c if is(c, Code::Overloaded) => {
                Failure::Overloaded { retry_after: Duration::from_micros(detail) }
            }
            c if is(c, Code::DeadlineExceeded) => Failure::DeadlineExceeded { started },
            c if is(c, Code::Cancelled) => Failure::Cancelled { started },
            c if is(c, Code::Draining) => Failure::Draining(text),
            c if is(c, Code::TooLarge) => Failure::TooLarge {
                what: if started { "an answer or item".to_owned() } else { REQUEST.to_owned() },
                len: text.parse().unwrap_or_else(|_| detail.saturating_add(1)),
                max: detail,
            },
            c if is(c, Code::HandlerPanicked) => Failure::HandlerPanicked(text),
            c if is(c, Code::Malformed) => Failure::Malformed(text),
            _ => Failure::Malformed(format!("the peer failed the call with unknown code {code}: {text}")),
        }
    }
}

/// At most [`TEXT_BYTES_MAX`] bytes of `text`, cut at a character.
pub(crate) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_survives_the_wire() {
        let fault = Fault::new(Code::Overloaded, false, 1500, "busy");
        let mut body = Vec::new();
        fault.put(&mut body);
        assert_eq!(Fault::parse(Code::Overloaded as u16, &body), Ok(fault));
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let text = "ü".repeat(TEXT_BYTES_MAX);
        assert_eq!(clip(&text).len(), TEXT_BYTES_MAX);
        assert_eq!(clip(&format!("x{text}")).len(), TEXT_BYTES_MAX - 1);
    }
}
