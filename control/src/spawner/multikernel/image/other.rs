//! What a file is that is no kernel: what people give by mistake, by name.

use super::bytes::first_bytes;
use super::error::{ImageError, REMEDY};
use super::unpack::{Compression, peek};
use super::{Limits, arm64, bzimage, elf};

const INITIAL_ARCHIVE: &str =
    "give it as the initial archive, and as the kernel the vmlinux or the bzImage of a kernel build";
const UNPACK_FIRST: &str = "unpack it, and give what was in it";

/// The error that names it.
pub(super) fn name(bytes: &[u8], limits: &Limits) -> ImageError {
    let (what, remedy) = if let Some(compression) = Compression::of(bytes) {
        packed(compression, &peek(compression, bytes, limits))
    } else if let Some((what, remedy)) = plain(bytes) {
        (what.to_owned(), remedy)
    } else {
        (format!("a file of an unknown kind (its first bytes are {})", first_bytes(bytes)), REMEDY)
    };
    ImageError::NotAKernel { what, remedy }
}

fn plain(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    if bytes.is_empty() {
        return Some(("an empty file", "copy or build the image again"));
    }
    if is_cpio(bytes) {
        return Some(("an initial archive (cpio)", INITIAL_ARCHIVE));
    }
    if bytes.starts_with(b"MZ") && bytes.get(4..8) == Some(b"zimg") {
        return Some((
            "a kernel inside an EFI program (vmlinuz.efi, zboot)",
            "give the Image of the same build",
        ));
    }
    let names: [(&[u8], &str); 6] = [
        (b"#!", "a script"),
        (b"!<arch>\n", "a library or a Debian package"),
        (b"\x27\x05\x19\x56", "an image for the U-Boot loader (uImage)"),
        (b"\xd0\x0d\xfe\xed", "a device tree or an image for the U-Boot loader (FIT)"),
        (b"\x04\x22\x4d\x18", "a file packed with lz4"),
        (b"MZ", "an EFI or Windows program without a kernel's setup header"),
    ];
    let named = names.iter().find(|(mark, _)| bytes.starts_with(mark)).map(|(_, name)| *name);
    let named = named.or_else(|| bzimage::is_boot_sector(bytes).then_some("a boot sector or a disk image"));
    named.map(|name| (name, REMEDY))
}

/// `head`: what it begins with, unpacked.
fn packed(compression: Compression, head: &[u8]) -> (String, &'static str) {
    if is_cpio(head) {
        return (format!("an initial archive (cpio packed with {compression})"), INITIAL_ARCHIVE);
    }
    let is_elf = head.starts_with(elf::MAGIC);
    let (inside, remedy) = match is_elf.then(|| elf::what_cannot_run(head)).flatten() {
        Some(named) => named,
        None if is_elf => ("an ELF file, perhaps a vmlinux,", UNPACK_FIRST),
        None if arm64::is_image(head) => ("an arm64 kernel (Image)", UNPACK_FIRST),
        None if bzimage::is_bzimage(head) => ("a bzImage", UNPACK_FIRST),
        None => ("a file", REMEDY),
    };
    (format!("{inside} packed with {compression}"), remedy)
}

/// The three forms of cpio in ASCII.
fn is_cpio(bytes: &[u8]) -> bool {
    [b"070701", b"070702", b"070707"].iter().any(|magic| bytes.starts_with(*magic))
}
