//! [`Blob`]: bytes that travel as bytes.
//!
//! serde sees a `Vec<u8>` as a sequence of numbers and visits each one. A `Blob` takes the bytes path. A long one is not copied by this crate at
//! all: it goes from where it is to the transport, and a `Blob` decoded from a message is a slice of that message.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use postcard_schema::schema::{DataModelType, NamedType};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Schema;
use crate::encoded::offer;
use crate::scratch::SHARE_AT_LEAST_BYTES;

/// Bytes in an argument, an answer or an item. Cheap to clone.
///
/// A decoded `Blob` may keep the whole message alive that it came in; use [`Bytes::copy_from_slice`] for a small
/// part that is kept for long.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Bytes);

thread_local! {
    /// The message being decoded on this thread, so that a `Blob` in it can be a slice of it.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Runs `decode` with `source` as the message that blobs are sliced from.
pub(crate) fn with_source<R>(source: &Bytes, decode: impl FnOnce(&[u8]) -> R) -> R {
    if source.len() < SHARE_AT_LEAST_BYTES {
        return decode(source);
    }
    // Blobs shorter than this are copied too.
    let outer = SOURCE.replace(Some(source.clone()));
    let result = decode(source);
    SOURCE.set(outer);
    result
}

/// `part` as a slice of the message being decoded, if that is where it lies and if it is worth it.
fn slice_of_source(part: &[u8]) -> Option<Bytes> {
    if part.len() < SHARE_AT_LEAST_BYTES {
        return None;
    }
    SOURCE.with_borrow(|source| {
        let source = source.as_ref()?;
        let whole = source.as_ptr_range();
        let inside = part.as_ptr_range();
        (whole.start <= inside.start && inside.end <= whole.end).then(|| source.slice_ref(part))
    })
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        offer(&self.0, || serializer.serialize_bytes(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlobVisitor;
        impl Visitor<'_> for BlobVisitor {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(slice_of_source(bytes).unwrap_or_else(|| Bytes::copy_from_slice(bytes))))
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(BlobVisitor)
    }
}

impl Schema for Blob {
    const SCHEMA: &'static NamedType = &NamedType { name: "Blob", ty: &DataModelType::ByteArray };
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<String> for Blob {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// Copies.
impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

/// Copies.
impl From<&str> for Blob {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

/// Copies.
impl<const N: usize> From<&[u8; N]> for Blob {
    fn from(bytes: &[u8; N]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl From<Blob> for Bytes {
    fn from(blob: Blob) -> Self {
        blob.0
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 32;
        let shown = self.0.slice(..self.0.len().min(SHOWN));
        write!(f, "{shown:?}")?;
        if self.0.len() > SHOWN { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_is_length_and_bytes_on_the_wire() {
        assert_eq!(postcard::to_allocvec(&Blob::from(vec![7, 8, 9])).unwrap(), [3, 7, 8, 9]);
    }

    #[test]
    fn long_blob_is_a_slice_of_its_message() {
        let message = Bytes::from(postcard::to_allocvec(&Blob::from(vec![5; 4096])).unwrap());
        let blob: Blob = with_source(&message, |bytes| postcard::from_bytes(bytes).unwrap());
        assert_eq!(blob.0, vec![5; 4096]);
        assert!(message.as_ptr_range().contains(&blob.0.as_ptr()));
    }

    #[test]
    fn blob_outside_the_source_is_copied() {
        let other = Bytes::from(vec![0; 4096]);
        let message = postcard::to_allocvec(&Blob::from(vec![5; 4096])).unwrap();
        let blob: Blob = with_source(&other, |_| postcard::from_bytes(&message).unwrap());
        assert_eq!(blob.0, vec![5; 4096]);
    }
}
