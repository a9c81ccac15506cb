//! Initial archives as users bring them.

/// A folder, as the mode of an entry.
pub const FOLDER: u32 = 0o040_755;
/// A program.
pub const PROGRAM: u32 = 0o100_755;
/// A link, whose content is where it leads.
pub const LINK: u32 = 0o120_777;

/// An archive as `cpio -o -H newc` writes it.
#[derive(Debug, Default)]
pub struct Newc {
    written: Vec<u8>,
    files: u32,
}

impl Newc {
    /// Adds something with one name.
    #[must_use]
    pub fn with(mut self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.files += 1;
        self.entry(name, mode, 1, content);
        self
    }

    /// Adds a program with two names.
    #[must_use]
    pub fn with_program_of_two_names(mut self, names: [&str; 2], content: &[u8]) -> Self {
        self.files += 1;
        for (name, content) in names.into_iter().zip([content, &[]]) {
            self.entry(name, PROGRAM, 2, content);
        }
        self
    }

    /// All of it.
    pub fn bytes(mut self) -> Vec<u8> {
        self.files = 0;
        self.entry("TRAILER!!!", 0, 1, &[]);
        self.written
    }

    fn entry(&mut self, name: &str, mode: u32, names: u32, content: &[u8]) {
        let (len, name_len) = (content.len(), name.len() + 1);
        let header = format!(
            "070701{:08X}{mode:08X}{:08X}{:08X}{names:08X}{:08X}{len:08X}{:032X}{name_len:08X}{:08X}{name}\0",
            self.files, 0, 0, 0, 0, 0
        );
        for part in [header.as_bytes(), content] {
            self.written.extend(part);
            self.written.resize(self.written.len().next_multiple_of(4), 0);
        }
    }
}

/// What `lz4 -l` makes of content that it cannot make shorter.
///
/// # Panics
/// When there are 15 bytes or fewer, or more than a block has.
pub fn lz4(content: &[u8]) -> Vec<u8> {
    assert!((16..8 << 20).contains(&content.len()));
    let more = content.len() - 15;
    // A token for literals alone, with how many there are beyond 15.
    let mut block = vec![0xf0];
    block.extend(vec![0xff; more / 255]);
    block.push((more % 255) as u8);
    block.extend(content);
    let len = u32::try_from(block.len()).expect("it is a block");
    [&[0x02, 0x21, 0x4c, 0x18][..], &len.to_le_bytes(), &block].concat()
}
