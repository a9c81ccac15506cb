// Shared by the library that is preloaded (`preload.rs`) and by its tests, so without documentation of its own as a module.

/// Where the header is in an XSAVE area of the standard format, and how long: Intel SDM vol. 1, 13.4.2.
const HEADER: core::ops::Range<usize> = 512..576;

/// Makes of `short`, the beginning of an XSAVE area of the standard format, a whole one in `full`.
///
/// `components` are the state components that lie within `short`, as bits; all others get their initial state (their bit in
/// the header is cleared). `false`: `short` does not even hold a header, or does not fit.
pub(super) fn widen(short: &[u8], full: &mut [u8], components: u64) -> bool {
    if short.len() < HEADER.end || short.len() > full.len() {
        return false;
    }
    let (head, tail) = full.split_at_mut(short.len());
    head.copy_from_slice(short);
    tail.fill(0);
    let word = &mut head[HEADER.start..HEADER.start + 8];
    let mut present = [0; 8];
    present.copy_from_slice(word);
    word.copy_from_slice(&(u64::from_le_bytes(present) & components).to_le_bytes());
    true
}
