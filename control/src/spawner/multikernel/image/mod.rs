//! Kernel images: what a file is, and the kernel in it as the loader takes it.
//!
//! Three kinds can be spawned. The kernel's usual loader for x86 takes the **vmlinux** of a build, an ELF file. Distributions ship
//! a **bzImage**, which has that ELF file packed in it; it is unpacked here, in user space. On arm64 the kernel takes an **Image**
//! as it is. Every other file is refused by its name: what it is, why it cannot be, what to give instead.
//!
//! ```text
//!   file ─▶ KernelImage::read ─▶ vmlinux ──────────────▶ elf::check ─▶ KernelImage
//!                             ├▶ bzImage ─▶ unpack ────────▲              ▲
//!                             ├▶ Image ─▶ arm64::check ───────────────────┘
//!                             └▶ anything else ─▶ other::name ─▶ ImageError
//! ```
//!
//! Everything but [`KernelImage::read`] is a function of bytes. The bytes come from outside: nothing in them is believed that is
//! not checked, and what they make the decompressors take is within [`Limits`].

mod arm64;
mod bytes;
mod bzimage;
mod elf;
mod error;
mod lz4;
mod other;
mod signature;
#[cfg(test)]
mod tests;
mod unpack;
mod version;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

pub(crate) use bytes::first_bytes;
pub(crate) use error::{CommandLineError, ImageError};
pub(crate) use unpack::Compression;

/// `COMMAND_LINE_SIZE` of Linux on x86 and arm64, with the closing NUL.
const COMMAND_LINE_SIZE: usize = 2048;
/// What the kernel's loader for a bzImage keeps free for what it adds (`MAX_ELFCOREHDR_STR_LEN`).
const LOADER_BYTES: usize = 30;

/// Kinds of machines that kernels are spawned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm, little-endian.
    Aarch64,
}

impl Arch {
    /// The one this program was built for.
    pub(crate) const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "arm64",
        })
    }
}

/// What a file was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// An ELF file, as the linker made it.
    Vmlinux,
    /// x86's bzImage, with a vmlinux in it that was packed this way.
    BzImage(Compression),
    /// arm64's Image.
    Arm64Image,
}

/// How much is read and unpacked at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Length of the file.
    pub(crate) file_bytes_max: u64,
    /// Length of the unpacked kernel.
    pub(crate) unpacked_bytes_max: usize,
    /// What a decompressor keeps to refer back to; it may take twice as much for a moment.
    pub(crate) window_bytes_max: usize,
}

impl Default for Limits {
    /// 512 MiB of each, and the 128 MiB to refer back to that the kernel's build makes xz and zstd use.
    fn default() -> Self {
        Self { file_bytes_max: 512 << 20, unpacked_bytes_max: 512 << 20, window_bytes_max: 128 << 20 }
    }
}

/// A kernel that can be spawned.
#[derive(Clone)]
pub(crate) struct KernelImage {
    /// What the file was.
    pub(crate) format: Format,
    /// What it runs on.
    pub(crate) arch: Arch,
    /// What the loader takes: the ELF file of a vmlinux or a bzImage, the file itself of an Image. Behind an ELF file may follow
    /// what belongs to it: a signature, or the list of relocations that the build packs with it.
    pub(crate) bytes: Vec<u8>,
    /// The file as it was, when `bytes` are not. Only with it does a signature of a bzImage hold.
    pub(crate) packed: Option<Vec<u8>>,
    /// The longest command line, in bytes without the closing NUL, however it is loaded.
    pub(crate) cmdline_bytes_max: usize,
    /// Its version and how it was built, such as `6.1.0-48-cloud-amd64 (builder@host) #1 SMP ...`; `None` when it does not tell.
    pub(crate) version: Option<String>,
    /// Whether the file has a signature: PKCS#7 behind a vmlinux, a table of certificates in a bzImage. Whether that is good, the
    /// kernel says.
    pub(crate) is_signed: bool,
}

impl KernelImage {
    /// Reads a file, and looks at what it is. Blocks for as long as reading and unpacking take.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be read, else those of [`Self::from_bytes`].
    pub(crate) fn read(path: &Path, needed: Arch, limits: &Limits) -> Result<Self, ImageError> {
        let failed = |action| move |source| ImageError::File { action, path: path.to_owned(), source };
        // Opening a FIFO would else wait for its writer.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(nonblocking).open(path);
        let file = file.map_err(failed("open the kernel"))?;
        let meta = file.metadata().map_err(failed("look at the kernel"))?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "a folder" } else { "a device or a FIFO" };
            return Err(ImageError::NotAKernel { what: what.into(), remedy: error::REMEDY });
        }
        if meta.len() > limits.file_bytes_max {
            return Err(too_big(meta.len(), limits));
        }
        let mut bytes = Vec::new();
        // It may grow while it is read.
        let read = file.take(limits.file_bytes_max.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(failed("read the kernel"))?;
        Self::from_bytes(bytes, needed, limits)
    }

    /// Looks at what a file is, and unpacks it.
    ///
    /// # Errors
    /// [`ImageError`] says what it is instead, what it lacks, or what it is too big for.
    pub(crate) fn from_bytes(file: Vec<u8>, needed: Arch, limits: &Limits) -> Result<Self, ImageError> {
        if file.len() as u64 > limits.file_bytes_max {
            return Err(too_big(file.len() as u64, limits));
        }
        if file.starts_with(elf::MAGIC) {
            Self::from_vmlinux(file, needed)
        } else if bzimage::is_bzimage(&file) {
            Self::from_bzimage(file, needed, limits)
        } else if arm64::is_image(&file) {
            Self::from_arm64(file, needed)
        } else {
            Err(other::name(&file, limits))
        }
    }

    fn from_vmlinux(file: Vec<u8>, needed: Arch) -> Result<Self, ImageError> {
        elf::check(&file, needed)?;
        Ok(Self {
            format: Format::Vmlinux,
            arch: Arch::X86_64,
            packed: None,
            cmdline_bytes_max: COMMAND_LINE_SIZE - 1,
            version: version::in_kernel(&file),
            is_signed: signature::is_behind_elf(&file)?,
            bytes: file,
        })
    }

    fn from_bzimage(file: Vec<u8>, needed: Arch, limits: &Limits) -> Result<Self, ImageError> {
        let header = bzimage::parse(&file, needed)?;
        let (compression, unpacked) = unpack::unpack(header.payload, limits)?;
        let of_payload = |error| ImageError::Payload(Box::new(error));
        if !unpacked.starts_with(elf::MAGIC) {
            return Err(of_payload(other::name(&unpacked, limits)));
        }
        elf::check(&unpacked, needed).map_err(of_payload)?;
        // The loader counts the closing NUL, the setup header does not.
        let by_loader = (header.cmdline_size as usize).saturating_sub(LOADER_BYTES + 1);
        Ok(Self {
            format: Format::BzImage(compression),
            arch: Arch::X86_64,
            cmdline_bytes_max: by_loader.min(COMMAND_LINE_SIZE - 1),
            version: header.version.or_else(|| version::in_kernel(&unpacked)),
            is_signed: signature::is_in_pe(&file)?,
            bytes: unpacked,
            packed: Some(file),
        })
    }

    fn from_arm64(file: Vec<u8>, needed: Arch) -> Result<Self, ImageError> {
        arm64::check(&file, needed)?;
        Ok(Self {
            format: Format::Arm64Image,
            arch: Arch::Aarch64,
            packed: None,
            cmdline_bytes_max: COMMAND_LINE_SIZE - 1,
            version: version::in_kernel(&file),
            is_signed: signature::is_in_pe(&file)?,
            bytes: file,
        })
    }

    /// The file as it was, if it has a signature and `bytes` have not.
    pub(crate) fn signed_file(&self) -> Option<&[u8]> {
        self.packed.as_deref().filter(|_| self.is_signed)
    }

    /// Its release, as `uname -r` says it and folders of modules are named: the first word of the version.
    pub(crate) fn release(&self) -> Option<&str> {
        self.version.as_deref()?.split_whitespace().next()
    }

    /// Whether it can be given this command line.
    ///
    /// # Errors
    /// [`CommandLineError`] says what has to change.
    pub(crate) fn check_command_line(&self, line: &str) -> Result<(), CommandLineError> {
        let forbidden = [('\0', "a NUL"), ('\n', "a line break"), ('\r', "a line break")];
        let found = forbidden.iter().find_map(|(character, what)| Some((line.find(*character)?, *what)));
        if let Some((at, what)) = found {
            return Err(CommandLineError::Forbidden { what, at });
        }
        if line.len() > self.cmdline_bytes_max {
            return Err(CommandLineError::TooLong { bytes: line.len(), bytes_max: self.cmdline_bytes_max });
        }
        Ok(())
    }
}

fn too_big(bytes: u64, limits: &Limits) -> ImageError {
    ImageError::TooBig {
        part: "it",
        bytes,
        bytes_max: limits.file_bytes_max,
        remedy: "give the bzImage of the build, or its vmlinux after `strip --strip-debug`",
    }
}

impl fmt::Debug for KernelImage {
    /// Lengths instead of megabytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelImage")
            .field("format", &self.format)
            .field("arch", &self.arch)
            .field("bytes", &self.bytes.len())
            .field("packed", &self.packed.as_ref().map(Vec::len))
            .field("cmdline_bytes_max", &self.cmdline_bytes_max)
            .field("version", &self.version)
            .field("is_signed", &self.is_signed)
            .finish()
    }
}
