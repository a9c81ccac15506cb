//! Which version a kernel says that it is.

/// What precedes it in a kernel (`linux_banner` in Linux's init/version.c).
const BANNER: &[u8] = b"Linux version ";
const BYTES_MAX: usize = 512;

/// The version that an unpacked kernel holds, without the words before it.
pub(super) fn in_kernel(bytes: &[u8]) -> Option<String> {
    let candidates = bytes.windows(BANNER.len()).enumerate().filter(|(_, window)| *window == BANNER);
    candidates.map(|(at, _)| &bytes[at + BANNER.len()..]).find_map(|rest| {
        let rest = &rest[..rest.len().min(BYTES_MAX)];
        // The same words occur in formats, where no number follows.
        rest.first().filter(|byte| byte.is_ascii_digit())?;
        printable(&rest[..rest.iter().position(|byte| matches!(byte, 0 | b'\n'))?])
    })
}

/// Text that can be shown to people as it is.
pub(super) fn printable(text: &[u8]) -> Option<String> {
    let is_printable =
        !text.is_empty() && text.len() <= BYTES_MAX && text.iter().all(|byte| matches!(byte, b' '..=b'~'));
    is_printable.then(|| String::from_utf8_lossy(text).trim().to_owned())
}
