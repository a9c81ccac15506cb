//! Images that loaders take for a kernel of this machine, and that hold the User-mode Linux kernel which is booted in its place.
//!
//! An ELF file as a kernel build makes it, with one segment, whose content is the program; a note in front of it says how long that is.

const MARK: &[u8; 32] = b"STAND-IN tombolo-mksim image  1\n";
const MARK_AT: usize = 0x200;
const BODY_AT: usize = 0x1000;
const VIRTUAL: u64 = 0xffff_ffff_8100_0000;
const PHYSICAL: u64 = 0x100_0000;

/// An image that holds this program.
pub fn wrap(program: &[u8]) -> Vec<u8> {
    let bytes = program.len() as u64;
    let mut image = Vec::with_capacity(BODY_AT + program.len());
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend(2_u16.to_le_bytes()); // ET_EXEC
    image.extend(62_u16.to_le_bytes()); // EM_X86_64
    image.extend(1_u32.to_le_bytes());
    image.extend([PHYSICAL, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, no sections
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    image.extend(1_u32.to_le_bytes()); // PT_LOAD
    image.extend(7_u32.to_le_bytes());
    let segment = [BODY_AT as u64, VIRTUAL, PHYSICAL, bytes, bytes, 0x1000];
    image.extend(segment.map(u64::to_le_bytes).concat());
    image.resize(MARK_AT, 0);
    image.extend(MARK);
    image.extend(bytes.to_le_bytes());
    image.resize(BODY_AT, 0);
    image.extend(program);
    image
}

/// The program in an image; one that is not wrapped is taken for the program itself.
pub fn unwrap(image: &[u8]) -> &[u8] {
    let mark = image.get(MARK_AT..MARK_AT + MARK.len());
    let bytes =
        image.get(MARK_AT + MARK.len()..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_le_bytes(*b));
    match (mark, bytes.and_then(|bytes| usize::try_from(bytes).ok())) {
        (Some(mark), Some(bytes)) if mark == MARK => {
            image.get(BODY_AT..).and_then(|body| body.get(..bytes)).unwrap_or(image)
        }
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrapped_comes_out_and_what_was_not_stays() {
        for program in [&b""[..], b"x", &[7; 5000]] {
            assert_eq!(unwrap(&wrap(program)), program);
        }
        let torn = &wrap(&[7; 5000])[..BODY_AT + 10];
        assert_eq!(unwrap(torn), torn);
        assert_eq!(unwrap(b"\x7fELF"), b"\x7fELF");
    }
}
