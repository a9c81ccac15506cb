//! The book on file, for an agent that is started again while its kernel goes on.
//!
//! The file is replaced as a whole. It says of which boot it is: what it tells of another one means nothing. No more is needed than
//! that it outlives its process, so nothing waits for a disk.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::book::Book;
use super::boot;

/// Of what follows; a file of another format is not read.
const FORMAT: u32 = 1;
/// Longer than any, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// A checksum of all that follows it, in bytes.
const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// Where the book is kept.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    boot_id: String,
}

impl Record {
    /// In this file. `None` if the kernel does not say which boot this is.
    pub(super) fn at(path: PathBuf) -> Option<Self> {
        Some(Self { path, boot_id: boot::id()? })
    }

    /// What the agent knew before it was started again; nothing if it was not, or if that cannot be told.
    pub(super) fn read(&self) -> Book {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
        let reason = match read {
            Ok(_) => match self.parse(&bytes) {
                Ok(book) => return book,
                Err(reason) => reason.to_owned(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Book::default(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(path = %self.path.display(), reason, "what was known of hand-overs is ignored");
        Book::default()
    }

    fn parse(&self, bytes: &[u8]) -> Result<Book, &'static str> {
        let (checksum, page) = bytes.split_at_checked(CHECKSUM_BYTES).ok_or("it is too short")?;
        if blake3::hash(page).as_bytes() != checksum {
            return Err("its checksum is wrong");
        }
        let ((format, boot_id), book) =
            postcard::take_from_bytes::<(u32, &str)>(page).map_err(|_| "it has no beginning")?;
        if format != FORMAT {
            return Err("it is of another format");
        }
        if boot_id != self.boot_id {
            return Err("it is of another boot");
        }
        let book: Book = postcard::from_bytes(book).map_err(|_| "it is no book")?;
        if book.is_bounded() { Ok(book) } else { Err("it knows too many units") }
    }

    /// The file's new content.
    pub(super) fn page(&self, book: &Book) -> postcard::Result<Vec<u8>> {
        let page = postcard::to_extend(&(FORMAT, self.boot_id.as_str()), vec![0; CHECKSUM_BYTES])?;
        let mut page = postcard::to_extend(book, page)?;
        let checksum = blake3::hash(&page[CHECKSUM_BYTES..]);
        page[..CHECKSUM_BYTES].copy_from_slice(checksum.as_bytes());
        Ok(page)
    }

    /// Replaces the file. If that fails there is none any more: one that is out of date would have what was confirmed lapse.
    pub(super) fn write(&self, page: &[u8]) -> io::Result<()> {
        let written = self.replace(page);
        if written.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        written
    }

    fn replace(&self, page: &[u8]) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = self.path.with_added_extension("new");
        // Never through a link, nor into what somebody else has open.
        let _ = fs::remove_file(&new);
        File::options().write(true).create_new(true).mode(0o600).open(&new)?.write_all(page)?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tombolo_handover::{OpId, UnitId};

    use super::*;
    use crate::api::handover::Here;

    fn book() -> Book {
        let mut book = Book::default();
        book.note(OpId(7), UnitId::Lot(3), 9, Duration::ZERO);
        book.confirm(OpId(7), UnitId::Cpu(1), Here::Cpu { index: 1 }, Duration::from_secs(4));
        book
    }

    fn record(dir: &tempfile::TempDir) -> Record {
        Record::at(dir.path().join("run/book")).unwrap()
    }

    #[test]
    fn what_was_written_last_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(&dir);
        assert_eq!(record.read(), Book::default());
        for book in [book(), Book::default(), book()] {
            record.write(&record.page(&book).unwrap()).unwrap();
            assert_eq!(record.read(), book);
        }
        assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_is_torn_or_changed_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(&dir);
        let page = record.page(&book()).unwrap();
        for at in 0..page.len() {
            let mut changed = page.clone();
            changed[at] ^= 1;
            assert!(record.parse(&changed).is_err() && record.parse(&page[..at]).is_err(), "{at}");
        }
        record.write(&page[..page.len() - 1]).unwrap();
        assert_eq!(record.read(), Book::default());
    }

    #[test]
    fn what_is_of_another_boot_or_format_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(&dir);
        let other = Record { boot_id: "another".into(), path: record.path.clone() };
        assert_eq!(record.parse(&other.page(&book()).unwrap()), Err("it is of another boot"));
        let mut page = vec![0; CHECKSUM_BYTES];
        page.push(2);
        page.extend(postcard::to_extend(&record.boot_id, Vec::new()).unwrap());
        let checksum = *blake3::hash(&page[CHECKSUM_BYTES..]).as_bytes();
        page[..CHECKSUM_BYTES].copy_from_slice(&checksum);
        assert_eq!(record.parse(&page), Err("it is of another format"));
    }

    #[test]
    fn a_record_that_cannot_be_written_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(&dir);
        record.write(&record.page(&book()).unwrap()).unwrap();
        fs::create_dir(dir.path().join("run/book.new")).unwrap();
        assert!(record.write(b"new").is_err());
        assert_eq!(record.read(), Book::default());
    }
}
