//! Large pages for whoever asks for them.
//!
//! A kernel that boots with less than 512 MiB switches transparent large pages off, whatever its command line says
//! (`hugepage_init` in mm/huge_memory.c). One that is given memory while it runs has use for them: proving that 256 MiB can be used takes
//! 128 faults then, and 65 536 without.

use std::path::Path;
use std::{fs, io};

const FOLDER: &str = "/sys/kernel/mm/transparent_hugepage";

/// Allows them to programs that ask for them (madvise(2), `MADV_HUGEPAGE`), where they are off and nobody said that they are to be.
///
/// # Errors
/// What the kernel answered. A kernel without large pages is no error.
pub(super) fn allow() -> io::Result<()> {
    let command_line = fs::read_to_string("/proc/cmdline")?;
    allow_in(Path::new(FOLDER), &command_line)
}

fn allow_in(dir: &Path, command_line: &str) -> io::Result<()> {
    if command_line.split_whitespace().any(|word| word.starts_with("transparent_hugepage=")) {
        return Ok(());
    }
    let file = dir.join("enabled");
    match fs::read_to_string(&file) {
        Ok(choices) if choices.contains("[never]") => fs::write(&file, "madvise"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_allowed_where_they_are_off_and_nobody_wanted_that() {
        let dir = tempfile::tempdir().unwrap();
        allow_in(dir.path(), "").unwrap();
        let off = "always madvise [never]\n";
        for (before, command_line, after) in [
            (off, "quiet panic=-1", "madvise"),
            (off, "quiet transparent_hugepage=never", off),
            ("[always] madvise never\n", "", "[always] madvise never\n"),
        ] {
            fs::write(dir.path().join("enabled"), before).unwrap();
            allow_in(dir.path(), command_line).unwrap();
            assert_eq!(fs::read_to_string(dir.path().join("enabled")).unwrap(), after);
        }
    }
}
