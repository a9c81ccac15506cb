//! x86's `bzImage`: a setup header, and a packed vmlinux (Documentation/arch/x86/boot.rst in Linux's source).

use super::Arch;
use super::bytes::{range, u16_at, u32_at};
use super::error::ImageError;

const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
/// What this much of the file has, the setup header has.
const HEADER_END: u64 = 0x250;
const BOOT_FLAG: u16 = 0xaa55;
const SECTOR_BYTES: u64 = 512;
/// The first protocol that says where the payload is.
const VERSION_MIN: u16 = 0x208;
/// The first protocol with flags that tell a 64-bit kernel.
const VERSION_XLOADFLAGS: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

/// What the setup header says.
#[derive(Debug)]
pub(super) struct SetupHeader<'a> {
    /// The packed vmlinux.
    pub(super) payload: &'a [u8],
    /// The longest command line, in bytes without the closing NUL.
    pub(super) cmdline_size: u32,
    /// Its version, such as `6.1.0-48-cloud-amd64 (builder@host) #1 SMP ...`.
    pub(super) version: Option<String>,
}

pub(super) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC)
}

/// A boot sector, as old kernels, boot loaders and disk images have it.
pub(super) fn is_boot_sector(bytes: &[u8]) -> bool {
    u16_at(bytes, 0x1fe) == Some(BOOT_FLAG)
}

/// Reads the setup header of what [`is_bzimage`].
pub(super) fn parse(bytes: &[u8], needed: Arch) -> Result<SetupHeader<'_>, ImageError> {
    if needed != Arch::X86_64 {
        return Err(ImageError::WrongArch { found: Arch::X86_64.to_string(), needed });
    }
    let have_bytes = bytes.len() as u64;
    let truncated = |part, needed_bytes| ImageError::Truncated { part, needed_bytes, have_bytes };
    let Some(header) = range(bytes, 0, HEADER_END) else {
        return Err(truncated("the setup header", HEADER_END));
    };
    let half = |at| u16_at(header, at).unwrap_or_default();
    let word = |at| u32_at(header, at).unwrap_or_default();
    if half(0x1fe) != BOOT_FLAG {
        let (expected, found) = (format!("{BOOT_FLAG:#06x}"), format!("{:#06x}", half(0x1fe)));
        return Err(ImageError::corrupt("the boot flag", expected, found));
    }
    let version = half(0x206);
    if version < VERSION_MIN {
        return Err(ImageError::NotAKernel {
            what: format!("a kernel of boot protocol {}.{:02}", version >> 8, version & 0xff),
            remedy: "2.08 or later is needed: give a kernel of 2008 or later",
        });
    }
    if header[0x211] & LOADED_HIGH == 0 {
        let remedy = "give the bzImage of the same build, or its vmlinux";
        return Err(ImageError::NotAKernel { what: "a zImage, which is loaded low,".into(), remedy });
    }
    if version >= VERSION_XLOADFLAGS && half(0x236) & XLF_KERNEL_64 == 0 {
        return Err(ImageError::WrongArch { found: "a 32-bit machine (i386)".into(), needed });
    }
    // 0 means 4, for loaders older than the field.
    let setup_sectors = match header[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let setup_bytes = (setup_sectors + 1) * SECTOR_BYTES;
    let (payload_at, payload_bytes) = (setup_bytes + u64::from(word(0x248)), u64::from(word(0x24c)));
    if payload_bytes == 0 {
        return Err(ImageError::corrupt("the setup header", "a payload", "a payload of 0 bytes"));
    }
    let Some(payload) = range(bytes, payload_at, payload_bytes) else {
        return Err(truncated("the payload", payload_at + payload_bytes));
    };
    let version = match half(0x20e) {
        0 => None,
        at => range(bytes, 0, setup_bytes).and_then(|setup| text_at(setup, usize::from(at) + 0x200)),
    };
    Ok(SetupHeader { payload, cmdline_size: word(0x238), version })
}

/// Text up to a NUL.
fn text_at(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    super::version::printable(&rest[..rest.iter().position(|byte| *byte == 0)?])
}
