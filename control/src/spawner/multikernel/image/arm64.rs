//! arm64's `Image` (Documentation/arch/arm64/booting.rst in Linux's source).

use super::Arch;
use super::bytes::u64_at;
use super::error::ImageError;

const MAGIC: &[u8] = b"ARM\x64";
const MAGIC_AT: usize = 56;

pub(super) fn is_image(bytes: &[u8]) -> bool {
    bytes.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC)
}

/// Checks what its header says.
pub(super) fn check(bytes: &[u8], needed: Arch) -> Result<(), ImageError> {
    let [image_bytes, flags] = [16, 24].map(|at| u64_at(bytes, at).unwrap_or_default());
    if needed != Arch::Aarch64 {
        return Err(ImageError::WrongArch { found: Arch::Aarch64.to_string(), needed });
    }
    if flags & 1 != 0 {
        return Err(ImageError::WrongArch { found: "arm64 in big-endian order".into(), needed });
    }
    // Memory beyond the file is zeroed at boot, so the file may be shorter, not longer.
    if image_bytes < bytes.len() as u64 {
        return Err(ImageError::Corrupt {
            part: "the header of the arm64 image",
            expected: format!("an image of {} bytes or more", bytes.len()),
            found: image_bytes.to_string(),
        });
    }
    Ok(())
}
