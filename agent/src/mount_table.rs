//! Paths as the kernel's mount tables have them: proc_pid_mounts(5), proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// The path that is meant: spaces, tabs, line ends and backslashes are written as a backslash and three octal digits.
pub fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_characters_are_what_their_digits_say_and_what_is_no_number_stays() {
        for (written, meant) in [
            ("/mnt/a\\040b\\134c", "/mnt/a b\\c"),
            ("/y\\09", "/y\\09"),
            ("/z\\", "/z\\"),
            ("/\\777", "/\\777"),
        ] {
            assert_eq!(unescaped(written), PathBuf::from(meant));
        }
    }
}
