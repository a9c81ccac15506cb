//! [`TraceContext`]: the W3C trace context of a call (<https://www.w3.org/TR/trace-context/>).

use std::fmt;
use std::str::FromStr;

/// Which trace a call belongs to, and which span of it made the call. Travels as `traceparent` in the call's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace: 16 bytes, not all zero.
    pub trace_id: [u8; 16],
    /// The span that makes the call: 8 bytes, not all zero.
    pub parent_id: [u8; 8],
    /// Bit 0: the caller records this trace. The other bits are handed on.
    pub flags: u8,
}

/// A `traceparent` that breaks the rules of W3C Trace Context, section 2.2. Its receiver is to start a trace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a traceparent: expected `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, lower case, ids not zero"
)]
pub struct BadTraceparent;

/// Bytes of a `traceparent` of version 00, and of the part that later versions share with it.
const LEN: usize = 55;

impl TraceContext {
    /// The context for what is done in span `span_id` of the same trace.
    pub fn child(self, span_id: [u8; 8]) -> Self {
        Self { parent_id: span_id, ..self }
    }

    /// Whether the caller records this trace.
    pub fn sampled(self) -> bool {
        self.flags & 1 != 0
    }
}

impl FromStr for TraceContext {
    type Err = BadTraceparent;

    fn from_str(text: &str) -> Result<Self, BadTraceparent> {
        let bytes = text.as_bytes();
        let (head, rest) = bytes.split_at_checked(LEN).ok_or(BadTraceparent)?;
        let [version] = hex(&head[..2])?;
        // A later version may go on after a dash; this one is read as far as it is known.
        let ends = if version == 0 { rest.is_empty() } else { matches!(rest.first(), None | Some(b'-')) };
        let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
        if version == 0xff || !ends || !dashes {
            return Err(BadTraceparent);
        }
        let [flags] = hex(&head[53..55])?;
        let context = Self { trace_id: hex(&head[3..35])?, parent_id: hex(&head[36..52])?, flags };
        if context.trace_id == [0; 16] || context.parent_id == [0; 8] {
            return Err(BadTraceparent);
        }
        Ok(context)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace_id = u128::from_be_bytes(self.trace_id);
        let parent_id = u64::from_be_bytes(self.parent_id);
        write!(f, "00-{trace_id:032x}-{parent_id:016x}-{:02x}", self.flags)
    }
}

fn hex<const N: usize>(digits: &[u8]) -> Result<[u8; N], BadTraceparent> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(BadTraceparent),
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn example_of_the_standard_survives() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert!(context.sampled() && context.trace_id[0] == 0x4b && context.parent_id[7] == 0xb7);
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(
            context.child([1; 8]).to_string(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0101010101010101-01"
        );
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        assert!(EXAMPLE.replacen("00", "cc", 1).parse::<TraceContext>().is_ok());
        assert!((EXAMPLE.replacen("00", "cc", 1) + "-what").parse::<TraceContext>().is_ok());
        assert!((EXAMPLE.replacen("00", "cc", 1) + ".what").parse::<TraceContext>().is_err());
        assert!(EXAMPLE.replacen("00", "ff", 1).parse::<TraceContext>().is_err());
    }

    #[test]
    fn broken_ones_are_refused() {
        let all_zero = EXAMPLE.replace("00f067aa0ba902b7", "0000000000000000");
        let upper = EXAMPLE.to_uppercase();
        for text in ["", "00", &EXAMPLE[1..], &EXAMPLE[..54], &(EXAMPLE.to_owned() + "-"), &all_zero, &upper]
        {
            assert_eq!(text.parse::<TraceContext>(), Err(BadTraceparent), "{text}");
        }
        for at in 0..EXAMPLE.len() {
            let mut text = EXAMPLE.to_owned();
            text.replace_range(at..=at, "g");
            assert_eq!(text.parse::<TraceContext>(), Err(BadTraceparent), "{text}");
        }
    }
}
