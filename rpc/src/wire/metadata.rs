//! [`Metadata`]: names and values that travel with a call.
//!
//! On the wire: for each entry the length of its name (u8), the name, the length of its value (u16), the value.

use std::fmt;

use super::trace::TraceContext;

/// The W3C trace context's header, by its own name.
pub const TRACEPARENT: &str = "traceparent";

/// What a call that is sent again has in common with the one before, so that it runs once: 1 to 128 bytes, best random.
/// Servers honour it where [`Router::replay`](crate::Router::replay) says so.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Names and values that travel with a call, such as the W3C trace context or an idempotency key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    entries: Vec<(String, Vec<u8>)>,
}

/// Metadata that cannot travel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// A name must be 1 to 255 bytes of printable ASCII without spaces.
    #[error("`{0}` is not a name for metadata: 1 to 255 printable ASCII characters, no spaces")]
    BadName(String),
    /// A value may have at most 65535 bytes.
    #[error("the value of `{0}` is too long: at most 65535 bytes")]
    LongValue(String),
}

impl Metadata {
    /// No metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `name` to `value`, instead of what it was.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) -> Result<(), MetadataError> {
        let value = value.into();
        if !valid_name(name.as_bytes()) {
            return Err(MetadataError::BadName(name.to_owned()));
        }
        if value.len() > usize::from(u16::MAX) {
            return Err(MetadataError::LongValue(name.to_owned()));
        }
        self.entries.retain(|(known, _)| known != name);
        self.entries.push((name.to_owned(), value));
        Ok(())
    }

    /// The value of `name`, if it is set.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.entries.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..])
    }

    /// The value of `name`, if it is set and is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.value(name)?).ok()
    }

    /// The W3C trace context of the call, if it carries a valid one.
    pub fn trace(&self) -> Option<TraceContext> {
        self.text(TRACEPARENT)?.parse().ok()
    }

    /// Makes the call part of a trace.
    pub fn set_trace(&mut self, trace: TraceContext) {
        self.entries.retain(|(known, _)| known != TRACEPARENT);
        self.entries.push((TRACEPARENT.to_owned(), trace.to_string().into_bytes()));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All names and values, in the order they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in &self.entries {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&(value.len() as u16).to_le_bytes());
            out.extend_from_slice(value);
        }
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, String> {
        let mut metadata = Self::new();
        while let Some((len, rest)) = bytes.split_first() {
            let (name, rest) = rest.split_at_checked(usize::from(*len)).ok_or("metadata is cut short")?;
            let (len, rest) = rest.split_first_chunk().ok_or("metadata is cut short")?;
            let len = usize::from(u16::from_le_bytes(*len));
            let (value, rest) = rest.split_at_checked(len).ok_or("metadata is cut short")?;
            if !valid_name(name) {
                return Err(format!("metadata with the name {:?}", String::from_utf8_lossy(name)));
            }
            let name = String::from_utf8_lossy(name).into_owned();
            metadata.entries.push((name, value.to_vec()));
            bytes = rest;
        }
        Ok(metadata)
    }
}

fn valid_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic)
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, value)| (name, String::from_utf8_lossy(value))))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_survives_the_wire() {
        let mut metadata = Metadata::new();
        metadata.set(TRACEPARENT, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        metadata.set("key", vec![0, 255]).unwrap();
        metadata.set("key", vec![1]).unwrap();
        assert_eq!(Metadata::decode(&metadata.encode()), Ok(metadata.clone()));
        assert_eq!(metadata.value("key"), Some(&[1][..]));
    }

    #[test]
    fn bad_names_and_cut_bytes_are_refused() {
        let mut metadata = Metadata::new();
        assert!(metadata.set("a b", "x").is_err() && metadata.set("", "x").is_err());
        metadata.set("name", "value").unwrap();
        let bytes = metadata.encode();
        for end in 1..bytes.len() {
            assert!(Metadata::decode(&bytes[..end]).is_err(), "{end} bytes were accepted");
        }
    }
}
