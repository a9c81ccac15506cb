//! Whether a file is signed. Whether a signature is good, the kernel says.

use super::bytes::{array_at, range, u16_at, u32_at};
use super::error::ImageError;

/// Whether an ELF file ends with a signature (`sign-file` of the kernel's sources: PKCS#7, `struct module_signature`, a mark).
pub(super) fn is_behind_elf(bytes: &[u8]) -> Result<bool, ImageError> {
    const MARK: &[u8] = b"~Module signature appended~\n";
    const INFO_BYTES: usize = 12;
    const PKCS7: u8 = 2;
    let Some(rest) = bytes.strip_suffix(MARK) else { return Ok(false) };
    let info = rest.len().checked_sub(INFO_BYTES).and_then(|at| array_at::<INFO_BYTES>(rest, at));
    let Some(info) = info else {
        return Err(ImageError::corrupt("its signature", "a description of it", "nothing"));
    };
    let [_, _, kind, _, _, _, _, _, len @ ..] = info;
    let (signature_bytes, room) = (u64::from(u32::from_be_bytes(len)), (rest.len() - INFO_BYTES) as u64);
    if kind != PKCS7 || signature_bytes == 0 || signature_bytes > room {
        let expected = format!("PKCS#7 (kind {PKCS7}) of 1 to {room} bytes");
        return Err(ImageError::corrupt(
            "its signature",
            expected,
            format!("kind {kind} of {signature_bytes} bytes"),
        ));
    }
    Ok(true)
}

/// Whether a bzImage or an Image, which are EFI programs as well, has a table of certificates (Microsoft's PE format, "The Attribute
/// Certificate Table").
pub(super) fn is_in_pe(bytes: &[u8]) -> Result<bool, ImageError> {
    const PE32_PLUS: u16 = 0x20b;
    const CERTIFICATES: u32 = 4;
    let certificates = || {
        let pe = usize::try_from(bytes.starts_with(b"MZ").then(|| u32_at(bytes, 0x3c))??).ok()?;
        let optional = pe.checked_add(24)?;
        let is_pe = bytes.get(pe..)?.starts_with(b"PE\0\0") && u16_at(bytes, optional)? == PE32_PLUS;
        let is_listed = is_pe && u32_at(bytes, optional.checked_add(108)?)? > CERTIFICATES;
        let entry = optional.checked_add(112 + 8 * CERTIFICATES as usize)?;
        is_listed.then_some(())?;
        Some((u32_at(bytes, entry)?, u32_at(bytes, entry.checked_add(4)?)?))
    };
    match certificates() {
        None | Some((_, 0)) => Ok(false),
        Some((at, len)) if range(bytes, at.into(), len.into()).is_some() => Ok(true),
        Some((at, len)) => Err(ImageError::Truncated {
            part: "its table of certificates",
            needed_bytes: u64::from(at) + u64::from(len),
            have_bytes: bytes.len() as u64,
        }),
    }
}
