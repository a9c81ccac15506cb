//! Why a file is not a kernel that can be spawned, in words that follow its path: "vmlinuz: it is ...".

use std::io;
use std::path::PathBuf;

use super::Arch;
use super::unpack::Compression;

/// Where to get an image that works.
pub(super) const REMEDY: &str = "give the vmlinux or the bzImage of a kernel build";
const AGAIN: &str = "copy the image again from where it was built, or build it again";

/// Why a file is not a kernel that can be spawned. Nothing has been changed when it is returned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// It is something else.
    #[error("it is {what}, not a kernel that can be spawned; {remedy}")]
    NotAKernel {
        /// What it is instead.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It is a kernel, of another kind of machine.
    #[error(
        "it is for {found}, and this host needs one for {needed}; give the image of a build for {needed}"
    )]
    WrongArch {
        /// What it is for.
        found: String,
        /// What it should be for.
        needed: Arch,
    },
    /// It ends too early.
    #[error("it is cut short: {part} ends at byte {needed_bytes}, and the file has {have_bytes}; {AGAIN}")]
    Truncated {
        /// What is not there in full.
        part: &'static str,
        /// How long the file has to be for it.
        needed_bytes: u64,
        /// How long it is.
        have_bytes: u64,
    },
    /// Something in it contradicts itself or the format.
    #[error("{part} is damaged: expected {expected}, found {found}; {AGAIN}")]
    Corrupt {
        /// What is damaged.
        part: &'static str,
        /// What belongs there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Its payload is packed in a way that is not unpacked here.
    #[error(
        "its payload is packed with {compression}, which is not unpacked here; give the vmlinux of the same build, or build it \
         with CONFIG_KERNEL_ZSTD=y"
    )]
    Unsupported {
        /// The way.
        compression: Compression,
    },
    /// Unpacking failed.
    #[error(
        "its payload could not be unpacked with {compression} after {unpacked_bytes} bytes: {reason}; {AGAIN}, or give the vmlinux of \
         the same build"
    )]
    Unpack {
        /// How it is packed.
        compression: Compression,
        /// How far it came.
        unpacked_bytes: usize,
        /// The words of the decompressor.
        reason: String,
    },
    /// What was unpacked is no kernel.
    #[error("what is packed in it cannot be spawned: {0}")]
    Payload(Box<Self>),
    /// More bytes than are allowed.
    #[error("{part} takes {bytes} bytes, and at most {bytes_max} are allowed; {remedy}")]
    TooBig {
        /// What is too big.
        part: &'static str,
        /// How big it is, or says that it is.
        bytes: u64,
        /// How big it may be.
        bytes_max: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// The file could not be read.
    #[error("could not {action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    pub(super) fn corrupt(part: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Corrupt { part, expected: expected.to_string(), found: found.to_string() }
    }
}

/// Why a command line cannot be given to a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandLineError {
    /// It does not fit.
    #[error("the command line has {bytes} bytes, and this kernel takes at most {bytes_max}: shorten it")]
    TooLong {
        /// How long it is, without the closing NUL.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// A character that would end it early.
    #[error("the command line has {what} at byte {at}, and a kernel reads it only up to there: remove it")]
    Forbidden {
        /// What it is.
        what: &'static str,
        /// Where it is, from 0.
        at: usize,
    },
}
