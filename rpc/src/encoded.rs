//! [`Encoded`]: a value as postcard writes it, without a copy of its long [`Blob`](crate::Blob)s.
//!
//! postcard hands bytes to its output as a slice. A `Blob` that is being encoded first offers the memory it shares ([`offer`]), and the output, when it
//! is handed just that slice, takes the offer in place of a copy. Any other serializer, and whoever finds no offer, copies as ever.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use serde::Serialize;

use crate::error::Failure;

/// Blobs shorter than this, in bytes, are copied: up to here a message travels in one small frame.
const SHARE_AT_LEAST_BYTES: usize = crate::connection::SMALL_BYTES + 1;

thread_local! {
    /// Whether a value is being encoded on this thread into something that can share.
    static SHARES: Cell<bool> = const { Cell::new(false) };
    /// The blob that is encoded next.
    static OFFER: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// An encoded value: `head`, and what follows it, in order, of which the long parts are shared with the value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) head: Vec<u8>,
    /// Empty unless the value has long blobs.
    pub(crate) tail: Vec<Bytes>,
}

impl Encoded {
    /// Length in bytes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.tail.iter().map(Bytes::len).sum::<usize>()
    }

    /// All of it in one piece.
    pub(crate) fn into_vec(self) -> Vec<u8> {
        let Self { mut head, tail } = self;
        for part in tail {
            head.extend_from_slice(&part);
        }
        head
    }
}

impl From<Vec<u8>> for Encoded {
    fn from(head: Vec<u8>) -> Self {
        Self { head, tail: Vec::new() }
    }
}

impl From<Bytes> for Encoded {
    fn from(part: Bytes) -> Self {
        if part.len() < SHARE_AT_LEAST_BYTES {
            return part.to_vec().into();
        }
        Self { head: Vec::new(), tail: vec![part] }
    }
}

/// Encodes `value` into `buffer`, whose former content is dropped.
pub(crate) fn encode_into<T: Serialize + ?Sized>(value: &T, mut buffer: Vec<u8>) -> Result<Encoded, Failure> {
    buffer.clear();
    let outer = SHARES.replace(true);
    let output = Output { encoded: buffer.into(), rest: Vec::new() };
    let encoded = postcard::serialize_with_flavor(value, output);
    SHARES.set(outer);
    encoded.map_err(|error| Failure::Malformed(format!("cannot be encoded: {error}")))
}

/// Runs `serialize`, which hands `blob` to its output, with an offer of it.
pub(crate) fn offer<R>(blob: &Bytes, serialize: impl FnOnce() -> R) -> R {
    if blob.len() < SHARE_AT_LEAST_BYTES || !SHARES.get() {
        return serialize();
    }
    OFFER.set(Some(blob.clone()));
    let result = serialize();
    OFFER.set(None);
    result
}

/// What was offered, if it is `bytes`.
fn offered(bytes: &[u8]) -> Option<Bytes> {
    let is_it = |offer: &Bytes| std::ptr::eq(&**offer, bytes);
    OFFER.with_borrow_mut(|offer| offer.take_if(|offer| is_it(offer)))
}

struct Output {
    encoded: Encoded,
    /// What has been written since the last shared part.
    rest: Vec<u8>,
}

impl Output {
    fn end(&mut self) -> &mut Vec<u8> {
        if self.encoded.tail.is_empty() { &mut self.encoded.head } else { &mut self.rest }
    }

    fn share(&mut self, part: Bytes) {
        self.close();
        self.encoded.tail.push(part);
    }

    fn close(&mut self) {
        if !self.rest.is_empty() {
            self.encoded.tail.push(std::mem::take(&mut self.rest).into());
        }
    }
}

impl Flavor for Output {
    type Output = Encoded;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.end().push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if bytes.len() >= SHARE_AT_LEAST_BYTES
            && let Some(part) = offered(bytes)
        {
            self.share(part);
        } else {
            self.end().extend_from_slice(bytes);
        }
        Ok(())
    }

    fn finalize(mut self) -> postcard::Result<Encoded> {
        self.close();
        Ok(self.encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blob;

    #[test]
    fn long_blobs_are_shared_and_everything_is_as_postcard_writes_it() {
        let long = Blob::from(vec![7; 10_000]);
        let value = (1_u32, long.clone(), Blob::from(b"short"), "text", long.clone(), 300_u16);
        let encoded = encode_into(&value, vec![1, 2, 3]).unwrap();
        let shared = encoded.tail.iter().filter(|part| part.as_ptr() == long.as_ptr()).count();
        assert_eq!(shared, 2);
        let plain = postcard::to_allocvec(&value).unwrap();
        assert_eq!(encoded.len(), plain.len());
        assert_eq!(encoded.into_vec(), plain);
    }

    #[test]
    fn bytes_that_are_no_blob_are_copied() {
        let text = "x".repeat(10_000);
        let encoded = encode_into(&(&text, Blob::from(vec![1; 10_000])), Vec::new()).unwrap();
        assert_eq!(encoded.tail.len(), 1);
        assert_eq!(encoded.into_vec(), postcard::to_allocvec(&(&text, Blob::from(vec![1; 10_000]))).unwrap());
    }
}
