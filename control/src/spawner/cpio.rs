//! Writing a newc cpio archive: the initial file system that Linux unpacks at boot.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::{FileContent, InitrdFile};

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes an archive of `files`, with the folders they need and `/dev/console`, which the kernel opens for `/init`.
///
/// Owners are 0:0 and times 0: the same input gives the same bytes. Whatever an archive before it has in the place of one of the
/// files is replaced, and nothing else of it: folders that are links there stay links.
pub(super) fn write_archive(out: &mut impl Write, files: &[InitrdFile]) -> io::Result<()> {
    let mut archive = Archive { out, written: 0, entries: 0 };
    let mut folders = BTreeSet::from(["dev", "proc", "sys", "run", "tmp"].map(str::to_owned));
    for file in files {
        let path = relative(&file.guest_path)?;
        folders.extend(path.match_indices('/').map(|(end, _)| path[..end].to_owned()));
    }
    for folder in &folders {
        // The kernel removes what is there already and of another kind (`clean_path` in init/initramfs.c). With a slash at its end the
        // name of a link, such as `lib` to `usr/lib`, is that of the folder behind it.
        archive.entry(&format!("{folder}/"), FOLDER | 0o755, (0, 0), 0)?;
    }
    archive.entry("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), 0)?;
    for file in files {
        let path = relative(&file.guest_path)?;
        let mode = REGULAR | (file.mode & 0o7777);
        // A file that is there already would be written over, under all its names: a link in its place takes this name from it.
        archive.entry(path, SYMLINK | 0o777, (0, 0), 1)?;
        archive.data(b".")?;
        match &file.content {
            FileContent::Bytes(bytes) => {
                archive.entry(path, mode, (0, 0), bytes.len() as u64)?;
                archive.data(bytes)?;
            }
            FileContent::Path(source) => archive.copy(path, mode, source)?,
        }
    }
    archive.entry("TRAILER!!!", 0, (0, 0), 0)
}

/// The path as the archive writes it: relative, clean.
fn relative(guest_path: &str) -> io::Result<&str> {
    let path = guest_path.strip_prefix('/').unwrap_or_default();
    let clean = !path.is_empty()
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !path.contains('\0');
    if clean {
        Ok(path)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{guest_path}` is not an absolute, plain path"),
        ))
    }
}

struct Archive<'a, W> {
    out: &'a mut W,
    written: u64,
    entries: u32,
}

impl<W: Write> Archive<'_, W> {
    /// The header and name of an entry, padded; `len` bytes of data must follow.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), len: u64) -> io::Result<()> {
        let len = u32::try_from(len).map_err(|_| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{name}: {len} bytes do not fit a cpio archive"),
            )
        })?;
        self.entries += 1;
        let name_len = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // magic, inode, mode, uid, gid, links, mtime, size, device of the file, device it is, name length, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, device.0, device.1, name_len, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        header.push_str(name);
        header.push('\0');
        self.data(header.as_bytes())
    }

    /// Bytes, padded with zeros to a multiple of four.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn copy(&mut self, name: &str, mode: u32, source: &Path) -> io::Result<()> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", source.display()));
        let mut file = File::open(source).map_err(at)?;
        let len = file.metadata().map_err(at)?.len();
        self.entry(name, mode, (0, 0), len)?;
        let copied = io::copy(&mut io::Read::take(&mut file, len), self.out).map_err(at)?;
        if copied != len {
            return Err(at(io::Error::other("it shrank while it was read")));
        }
        self.pad(copied)
    }

    fn pad(&mut self, len: u64) -> io::Result<()> {
        self.written += len;
        let padding = self.written.wrapping_neg() % 4;
        self.written += padding;
        self.out.write_all(&[0; 4][..padding as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &[u8]) -> InitrdFile {
        InitrdFile { guest_path: path.into(), mode: 0o755, content: FileContent::Bytes(content.into()) }
    }

    #[test]
    fn archive_holds_folders_before_files_and_is_aligned() {
        let mut out = Vec::new();
        write_archive(&mut out, &[file("/init", b"hello"), file("/etc/tombolo/agent.json", b"{}")]).unwrap();
        assert_eq!(out.len() % 4, 0);
        let find = |name: &str| out.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
        assert!(find("etc/\0") < find("etc/tombolo/\0"));
        assert!(find("etc/tombolo/\0") < find("etc/tombolo/agent.json\0"));
        assert!(find("hello\x00\x00\x00070701") > find("init\0"));
        assert!(find("TRAILER!!!\0") > find("{}\x00\x00070701"));
    }

    #[test]
    fn path_that_could_escape_is_refused() {
        for path in ["init", "/../x", "/a//b", "/", "", "/a/./b", "/a/"] {
            assert!(write_archive(&mut Vec::new(), &[file(path, b"")]).is_err(), "{path} was accepted");
        }
    }

    #[test]
    fn file_of_the_host_that_is_missing_is_named() {
        let missing = InitrdFile {
            guest_path: "/x".into(),
            mode: 0o644,
            content: FileContent::Path("/no/such/file".into()),
        };
        let error = write_archive(&mut Vec::new(), &[missing]).unwrap_err();
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }
}
