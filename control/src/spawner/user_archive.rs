//! An initial archive of the user's: whether a kernel can unpack it, looked at before one is given it.
//!
//! A kernel unpacks what it is given from front to back (Linux's init/initramfs.c and
//! Documentation/driver-api/early-userspace/buffer-format.rst): archives in the newc form of cpio, plain or packed, with zeros before,
//! between and behind them. What comes later takes the place of what came earlier, so ours follows the user's. But it is found only where
//! the user's has ended: of one that is cut short it would be the missing part. Plain archives are therefore followed from header
//! to header. What is packed is told by its first bytes and not unpacked here: one that is damaged stops the boot, and the kernel says
//! so on its console.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::SpawnError;
use super::multikernel::{Compression, first_bytes};

/// The two forms that the kernel takes, without and with checksums.
const NEWC: [&[u8]; 2] = [b"070701", b"070702"];
/// Other forms of cpio: with octal numbers (POSIX), with binary ones in either order of bytes.
const OTHER_CPIO: [&[u8]; 3] = [b"070707", b"\xc7\x71", b"\x71\xc7"];
/// A newc header: a magic number and 13 fields of 8 hexadecimal digits.
const HEADER_BYTES: u64 = 110;
/// The fields of a header with the length of the file, and with that of its name and the closing NUL.
const FILE_LEN: usize = 6;
const NAME_LEN: usize = 11;
/// What is read of the archive at a time.
const LOOK_BYTES: u64 = 4096;

/// A file that a kernel can unpack, as far as that can be told without unpacking it.
#[derive(Debug)]
pub(super) struct UserArchive {
    path: PathBuf,
    file: File,
    bytes: u64,
    packed_from: u64,
}

impl UserArchive {
    /// Opens it and looks at it. Blocks for as long as it takes to read a page for each file in a plain archive.
    ///
    /// # Errors
    /// [`SpawnError::File`] when it cannot be read, [`SpawnError::NotAnArchive`] when it is not what a kernel unpacks.
    pub(super) fn open(path: &Path) -> Result<Self, SpawnError> {
        let failed =
            |source| SpawnError::File { action: "read the initial archive", path: path.to_owned(), source };
        let refuse = |reason: String| SpawnError::NotAnArchive { path: path.to_owned(), reason };
        // Opening a FIFO would else wait for its writer.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.is_dir() {
            return Err(refuse(
                "it is a folder; pack what is in it with `find . | cpio -o -H newc`, run there".into(),
            ));
        }
        if !meta.is_file() {
            return Err(refuse("it is a device or a FIFO, not a file".into()));
        }
        let bytes = meta.len();
        let packed_from = look(&file, bytes).map_err(failed)?.map_err(refuse)?;
        Ok(Self { path: path.to_owned(), file, bytes, packed_from })
    }

    /// Its length, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How much of it is packed, in bytes.
    pub(super) fn packed_bytes(&self) -> u64 {
        self.bytes - self.packed_from
    }

    /// Copies it as it is, and behind it zeros up to where another archive can begin.
    pub(super) fn copy_to(&self, out: &mut impl Write) -> io::Result<()> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).map_err(at)?;
        let copied = io::copy(&mut file.take(self.bytes), out).map_err(at)?;
        if copied != self.bytes {
            return Err(at(io::Error::other("it shrank while it was read")));
        }
        // The next begins at a multiple of four. Where lz4 has ended, the kernel is told by four zeros alone (lib/decompress_unlz4.c).
        let zeros = 4 + self.bytes.wrapping_neg() % 4;
        out.write_all(&[0; 8][..zeros as usize])
    }
}

/// Follows the archives as the kernel unpacks them. Returns from where on it is packed, its length if nothing is; or why a kernel
/// would not find its end.
fn look(mut file: &File, bytes: u64) -> io::Result<Result<u64, String>> {
    let (mut at, mut follows_another, mut head) = (0, false, Vec::new());
    loop {
        file.seek(SeekFrom::Start(at))?;
        head.clear();
        file.take(LOOK_BYTES.min(bytes.saturating_sub(at))).read_to_end(&mut head)?;
        match head.iter().position(|byte| *byte != 0) {
            Some(0) => {}
            None if head.is_empty() => return Ok(ended(bytes, follows_another)),
            zeros => {
                at += zeros.unwrap_or(head.len()) as u64;
                continue;
            }
        }
        let is_newc = NEWC.iter().any(|magic| head.starts_with(magic));
        if at % 4 != 0 && (follows_another || is_newc) {
            return Ok(Err(format!(
                "what begins at byte {at} of it does not begin at a multiple of four: put zeros before that"
            )));
        }
        if !is_newc {
            return Ok(if Compression::of(&head).is_some() { Ok(at) } else { Err(other(at, &head)) });
        }
        match end_of_file(at, &head, bytes) {
            Ok(end) => (at, follows_another) = (end, true),
            Err(reason) => return Ok(Err(reason)),
        }
    }
}

/// What it is when nothing more is in it.
fn ended(bytes: u64, has_archive: bool) -> Result<u64, String> {
    match (bytes, has_archive) {
        (_, true) => Ok(bytes),
        (0, false) => Err("it is empty".into()),
        (_, false) => Err("it has nothing but zeros".into()),
    }
}

/// Where the header of a file in an archive says that the next can begin.
fn end_of_file(at: u64, head: &[u8], bytes: u64) -> Result<u64, String> {
    let cut_short = |end: u64| {
        Err(format!(
            "it is cut short: what begins at byte {at} of it ends at byte {end}, and it has {bytes}; copy or pack it again"
        ))
    };
    let Some(header) = head.get(..HEADER_BYTES as usize) else { return cut_short(at + HEADER_BYTES) };
    let field = |index: usize| {
        let digits = header.get(6 + 8 * index..)?.get(..8)?;
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (Some(file_len), Some(name_len)) = (field(FILE_LEN), field(NAME_LEN)) else {
        return Err(format!("the header at byte {at} of it is damaged; copy or pack it again"));
    };
    let end = (at + HEADER_BYTES + name_len).next_multiple_of(4) + file_len;
    if end > bytes {
        return cut_short(end);
    }
    Ok(end.next_multiple_of(4).min(bytes))
}

/// What is not an archive, in words.
fn other(at: u64, head: &[u8]) -> String {
    if OTHER_CPIO.iter().any(|magic| head.starts_with(magic)) {
        return format!(
            "at byte {at} of it begins an archive in another form of cpio; pack it with `cpio -o -H newc`"
        );
    }
    format!(
        "at byte {at} of it is neither cpio (newc) nor what gzip, bzip2, xz, lzma, lz4, zstd or lzo packed, but {}",
        first_bytes(head)
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{FileContent, InitrdFile, cpio};
    use super::*;

    fn archive() -> Vec<u8> {
        let content = FileContent::Bytes(b"hello".to_vec());
        let mut out = Vec::new();
        let file = InitrdFile { guest_path: "/data/file".into(), mode: 0o644, content };
        cpio::write_archive(&mut out, &[file]).unwrap();
        out
    }

    fn opened(content: &[u8]) -> Result<UserArchive, SpawnError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        UserArchive::open(file.path())
    }

    fn refused(content: &[u8], why: &str) {
        match opened(content).unwrap_err() {
            SpawnError::NotAnArchive { reason, .. } => assert!(reason.contains(why), "{why}: {reason}"),
            other => panic!("{why}: {other}"),
        }
    }

    #[test]
    fn archives_in_every_form_that_the_kernel_knows_are_taken() {
        for magic in [
            &b"\x1f\x8b\x08"[..],
            b"BZh9",
            b"\xfd7zXZ\0",
            b"\x5d\0\0",
            b"\x02\x21\x4c\x18",
            b"\x28\xb5\x2f\xfd",
            b"\x89LZO",
        ] {
            let opened = opened(magic).unwrap();
            assert_eq!(opened.packed_bytes(), magic.len() as u64, "{magic:02x?}");
        }
        let mut with_checksums = archive();
        with_checksums[5] = b'2';
        assert_eq!(opened(&with_checksums).unwrap().packed_bytes(), 0);
    }

    #[test]
    fn archives_one_after_another_are_followed_to_what_is_packed() {
        let plain = archive();
        let two = [&[0; 512][..], &plain, &[0; 4096], &plain, &[0; 8]].concat();
        assert_eq!(opened(&two).unwrap().packed_bytes(), 0);
        let packed = [&two[..], b"\x1f\x8b\x08 and what follows"].concat();
        assert_eq!(opened(&packed).unwrap().packed_bytes(), 20);
    }

    #[test]
    fn archive_that_would_swallow_what_follows_is_refused() {
        let plain = archive();
        assert_eq!(opened(&plain).unwrap().bytes(), plain.len() as u64);
        let body = plain.windows(5).position(|window| window == b"hello").unwrap();
        for len in [6, 109, 112, body + 4] {
            refused(&plain[..len], "cut short");
        }
        // Whoever packed it left out the zeros at its end, which the kernel does not miss.
        opened(&plain[..body + 5]).unwrap();
        let mut damaged = plain.clone();
        damaged[60] = b'x';
        refused(&damaged, "header at byte 0 of it is damaged");
        refused(&[&[0; 2][..], &plain].concat(), "multiple of four");
        refused(&[&plain[..], &[0; 2], b"\x1f\x8b"].concat(), "multiple of four");
    }

    #[test]
    fn what_is_no_archive_is_refused_with_what_it_is() {
        refused(b"", "it is empty");
        refused(&[0; 10_000], "nothing but zeros");
        refused(b"070707000000", "cpio -o -H newc");
        refused(b"\x7fELF\x02\x01\x01\0", "7f 45 4c 46");
        let behind = [&archive()[..], b"tail"].concat();
        refused(&behind, &format!("at byte {} of it is neither", behind.len() - 4));

        let dir = tempfile::tempdir().unwrap();
        let error = UserArchive::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("it is a folder") && error.contains("nothing was started"), "{error}");
        let error = UserArchive::open(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("a device"), "{error}");
        let missing = UserArchive::open(&dir.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("read the initial archive"), "{missing}");
        assert!(
            matches!(missing, SpawnError::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
        );
    }

    #[test]
    fn what_follows_begins_where_the_kernel_looks_for_it() {
        for tail in 0..4 {
            let content = [&b"\x02\x21\x4c\x18"[..], &[7; 3][..tail]].concat();
            let mut out = Vec::new();
            opened(&content).unwrap().copy_to(&mut out).unwrap();
            let zeros = out.strip_prefix(&content[..]).unwrap();
            assert!(out.len() % 4 == 0 && zeros.len() >= 4, "{out:02x?}");
            assert!(zeros.iter().all(|byte| *byte == 0), "{out:02x?}");
        }
    }
}
