//! What messages of every way consist of, so that each has every byte written and read by the same means.
//!
//! A message is a pattern of which the first eight bytes are its number. Whoever sends copies it to where it leaves from (into a
//! loan, or as the argument of a send that copies); whoever receives compares every byte with what was due. Both are copies and compares of the C
//! library: some nanoseconds for 56 bytes, where a loop over bytes would take ten times that.

use tombolo_transport::mem::CACHE_LINE;

/// Bytes of a message's number.
const NUMBER_BYTES: usize = 8;

/// A message, with a number that changes.
#[derive(Clone, Debug)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// One of `bytes`, which must be at least 8.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes >= NUMBER_BYTES, "a message of {bytes} bytes has no room for its number");
        // Not a multiple of any power of two, so that no two lines are alike.
        let mut pattern = room(bytes);
        pattern.extend((0..bytes).map(|at| (at % 251) as u8));
        Self(pattern)
    }

    /// The message of this number, to be sent.
    #[inline]
    pub fn numbered(&mut self, number: u64) -> &[u8] {
        self.0[..NUMBER_BYTES].copy_from_slice(&number.to_le_bytes());
        &self.0
    }

    /// The message of the number it was last given.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads every byte of `received`.
    ///
    /// # Errors
    /// If it is not the message of this number.
    #[inline]
    pub fn check(&self, received: &[u8], number: u64) -> anyhow::Result<()> {
        // By itself: what is compared by lines was better not written by words just now.
        let is_right = number_of(received) == Some(number)
            && received.len() == self.0.len()
            && received[NUMBER_BYTES..] == self.0[NUMBER_BYTES..];
        if is_right { Ok(()) } else { wrong(received, number) }
    }
}

/// An empty buffer with room for so many bytes that begins at a cache line, as far as the heap has one: where it happens to begin is worth a quarter of a round
/// trip of 4 KiB.
pub fn room(bytes: usize) -> Vec<u8> {
    // What is not wanted is kept for the while, or it would be given again.
    let mut others = Vec::new();
    for extra in 0..64 {
        let room: Vec<u8> = Vec::with_capacity(bytes + 16 * extra);
        if room.as_ptr().addr().is_multiple_of(CACHE_LINE) {
            return room;
        }
        others.push(room);
    }
    Vec::with_capacity(bytes)
}

/// Of a message whose bytes are not to be touched: the number alone.
#[inline]
pub fn number_of(received: &[u8]) -> Option<u64> {
    received.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cold]
fn wrong(received: &[u8], number: u64) -> anyhow::Result<()> {
    anyhow::bail!(
        "what arrived is not message {number}: {} bytes, number {:?}",
        received.len(),
        number_of(received)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_byte_is_found_wherever_it_is() {
        let mut payload = Payload::new(100);
        let sent = payload.numbered(7).to_vec();
        payload.check(&sent, 7).unwrap();
        payload.check(&sent, 8).unwrap_err();
        payload.check(&sent[..99], 7).unwrap_err();
        for at in 0..100 {
            let mut changed = sent.clone();
            changed[at] ^= 1;
            payload.check(&changed, 7).unwrap_err();
        }
    }
}
