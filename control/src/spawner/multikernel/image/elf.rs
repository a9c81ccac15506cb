//! ELF files: which of them are a kernel (vmlinux), and what the others are.
//!
//! The kernel's loader for ELF files checks again, but answers all of this with one number (ENOEXEC).

use super::Arch;
use super::bytes::{contains, range, u16_at, u32_at, u64_at};
use super::error::{ImageError, REMEDY};

pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// The kernel's half of the address space begins here; no program of user space is linked into it.
const KERNEL_SPACE: u64 = 1 << 63;
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const BIG_ENDIAN: u8 = 2;
const ET_REL: u16 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

/// A segment that is loaded.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// Checks that this is a vmlinux for x86-64, with all its segments.
pub(super) fn check(bytes: &[u8], needed: Arch) -> Result<(), ImageError> {
    let have_bytes = bytes.len() as u64;
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        let part = "the header of the ELF file";
        return Err(ImageError::Truncated { part, needed_bytes: HEADER_BYTES as u64, have_bytes });
    };
    check_header(header, bytes, needed)?;
    let segments = segments(header, bytes)?;
    if !segments.iter().any(|segment| segment.virtual_address >= KERNEL_SPACE) {
        return Err(program());
    }
    segments.iter().try_for_each(|segment| check_segment(segment, bytes))
}

/// A module, an object file or a core dump, in words and with what to do; `None` for what can be run. The beginning of a file
/// will do, though it may not tell a module from an object file.
pub(super) fn what_cannot_run(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    match u16_at(bytes, 16)? {
        ET_REL if contains(bytes, b".modinfo") || contains(bytes, b"vermagic=") => {
            Some(("a kernel module (.ko)", "give the kernel that it belongs to, and the module as a module"))
        }
        ET_REL => Some(("a kernel module (.ko) or an object file (.o)", REMEDY)),
        ET_CORE => Some(("a core dump", REMEDY)),
        _ => None,
    }
}

fn check_header(header: &[u8; HEADER_BYTES], bytes: &[u8], needed: Arch) -> Result<(), ImageError> {
    let [_, _, _, _, class, order, ..] = *header;
    let wrong = |found: String| Err(ImageError::WrongArch { found, needed });
    match order {
        LITTLE_ENDIAN => {}
        BIG_ENDIAN => return wrong("a big-endian machine".into()),
        other => return Err(ImageError::corrupt("the byte order of the ELF file", "1 or 2", other)),
    }
    if let Some((what, remedy)) = what_cannot_run(bytes) {
        return Err(ImageError::NotAKernel { what: what.into(), remedy });
    }
    let [kind, machine] = [16, 18].map(|at| u16_at(header, at).unwrap_or_default());
    match class {
        CLASS_64 => {}
        CLASS_32 => return wrong(format!("a 32-bit machine ({})", machine_name(machine))),
        other => return Err(ImageError::corrupt("the class of the ELF file", "1 or 2", other)),
    }
    if machine == EM_AARCH64 && needed == Arch::Aarch64 {
        return Err(ImageError::NotAKernel {
            what: "a vmlinux for arm64".into(),
            remedy: "arm64 loads arch/arm64/boot/Image: give that of the same build",
        });
    }
    if machine != EM_X86_64 || needed != Arch::X86_64 {
        return wrong(machine_name(machine));
    }
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(ImageError::corrupt("the type of the ELF file", "2 (EXEC) or 3 (DYN)", kind));
    }
    let size = u16_at(header, 54).unwrap_or_default();
    if usize::from(size) != PROGRAM_HEADER_BYTES {
        return Err(ImageError::corrupt("the size of an ELF program header", PROGRAM_HEADER_BYTES, size));
    }
    Ok(())
}

/// All segments that are loaded.
fn segments(header: &[u8; HEADER_BYTES], bytes: &[u8]) -> Result<Vec<Segment>, ImageError> {
    let at = u64_at(header, 32).unwrap_or_default();
    let count = u16_at(header, 56).unwrap_or_default();
    let table_bytes = u64::from(count) * PROGRAM_HEADER_BYTES as u64;
    let Some(table) = range(bytes, at, table_bytes) else {
        return Err(ImageError::Truncated {
            part: "its table of ELF program headers",
            needed_bytes: at.saturating_add(table_bytes),
            have_bytes: bytes.len() as u64,
        });
    };
    let mut segments = Vec::new();
    for entry in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        let field = |at| u64_at(entry, at).unwrap_or_default();
        match u32_at(entry, 0).unwrap_or_default() {
            // A kernel asks for no interpreter, and the loader refuses it.
            PT_INTERP => return Err(program()),
            PT_LOAD => segments.push(Segment {
                offset: field(8),
                virtual_address: field(16),
                physical_address: field(24),
                file_bytes: field(32),
                memory_bytes: field(40),
            }),
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(ImageError::corrupt(
            "its table of ELF program headers",
            "a segment to load",
            format!("none among {count}"),
        ));
    }
    Ok(segments)
}

fn check_segment(segment: &Segment, bytes: &[u8]) -> Result<(), ImageError> {
    let Segment { offset, file_bytes, memory_bytes, physical_address, .. } = *segment;
    if file_bytes > memory_bytes {
        return Err(ImageError::corrupt(
            "a segment",
            format!("at most {memory_bytes} bytes in the file"),
            file_bytes,
        ));
    }
    if physical_address.checked_add(memory_bytes).is_none() {
        let expected = "an end within the address space";
        return Err(ImageError::corrupt(
            "a segment",
            expected,
            format!("{memory_bytes} bytes at {physical_address:#x}"),
        ));
    }
    match range(bytes, offset, file_bytes) {
        Some(_) => Ok(()),
        None => Err(ImageError::Truncated {
            part: "a segment of the ELF file",
            needed_bytes: offset.saturating_add(file_bytes),
            have_bytes: bytes.len() as u64,
        }),
    }
}

fn program() -> ImageError {
    ImageError::NotAKernel {
        what: "a program of user space".into(),
        remedy: "give the vmlinux or the bzImage of a kernel build; a User-mode Linux kernel is for the `uml` spawner",
    }
}

fn machine_name(machine: u16) -> String {
    let name = match machine {
        3 => "i386",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "s390",
        40 => "32-bit Arm",
        EM_X86_64 => "x86-64",
        EM_AARCH64 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("ELF machine {other}"),
    };
    name.into()
}
