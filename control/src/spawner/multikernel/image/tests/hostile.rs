//! Bytes that nobody meant to be a kernel: no panic, no more memory than the limits allow.

use std::io::Write as _;

use lzma_rust2::{XzOptions, XzWriter};
use proptest::prelude::*;

use super::super::*;
use super::synthetic::{ALL, arm64_image, bzimage, bzimage_around, pack, vmlinux};

const LIMITS: Limits =
    Limits { file_bytes_max: 1 << 20, unpacked_bytes_max: 1 << 20, window_bytes_max: 1 << 20 };
/// What is unpacked, thrice the window (zstd's grows by doubling, old and new side by side), and tables (4 MiB for bzip2).
const MEMORY_BYTES_MAX: u64 = (1 << 20) + 3 * (1 << 20) + (6 << 20);

/// Looks at it, and at how much memory that takes.
fn look(file: Vec<u8>) -> Result<KernelImage, ImageError> {
    let mut result = None;
    let used = allocation_counter::measure(|| {
        result = Some(KernelImage::from_bytes(file, Arch::X86_64, &LIMITS));
    });
    assert!(used.bytes_max <= MEMORY_BYTES_MAX, "{} bytes of memory were taken", used.bytes_max);
    let result = result.unwrap();
    match &result {
        Ok(image) => assert!(image.bytes.len() <= LIMITS.unpacked_bytes_max),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    result
}

fn images() -> Vec<Vec<u8>> {
    let mut images: Vec<_> = ALL
        .iter()
        .map(|compression| bzimage(*compression, &vmlinux()))
        .chain([vmlinux(), arm64_image()])
        .collect();
    images.extend(ALL.iter().map(|compression| pack(*compression, &vmlinux())));
    images
}

/// A kernel that is small when packed, so that every length of it can be tried.
fn small() -> Vec<u8> {
    let mut elf = vmlinux();
    elf.truncate(0x1000 + 64);
    for segment in [64, 120] {
        super::put(&mut elf, segment + 32, &16_u64.to_le_bytes());
    }
    elf
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = look(bytes);
    }

    #[test]
    fn arbitrary_bytes_behind_any_mark_are_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..2048),
        kind in 0..ALL.len(),
        kept in 0_usize..64,
    ) {
        let mut packed = pack(ALL[kind], &small());
        packed.truncate(kept);
        packed.extend(bytes);
        let _ = look(packed.clone());
        let length = 0x1_0000_u32.to_le_bytes();
        packed.extend(length);
        prop_assert!(look(bzimage_around(&packed)).is_err());
    }

    #[test]
    fn mutations_of_an_image_are_taken_or_refused(
        image in proptest::sample::select(images()),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), any::<bool>()), 1..8),
    ) {
        let mut file = image;
        for (at, value, is_early) in changes {
            // Half of them where the headers are.
            let len = if is_early { file.len().min(0x300) } else { file.len() };
            let at = at.index(len);
            file[at] = value;
        }
        let _ = look(file);
    }

    #[test]
    fn mutations_of_a_payload_are_taken_or_refused(
        kind in 0..ALL.len(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut packed = pack(ALL[kind], &small());
        for (at, value) in changes {
            let at = at.index(packed.len());
            packed[at] = value;
        }
        if ALL[kind] != Compression::Gzip {
            packed.extend((small().len() as u32).to_le_bytes());
        }
        let _ = look(bzimage_around(&packed));
    }
}

#[test]
fn image_that_ends_early_is_refused_wherever_it_ends() {
    for compression in ALL {
        let whole = bzimage(compression, &small());
        assert!(look(whole.clone()).is_ok(), "{compression}");
        // What follows the payload does not belong to it.
        let payload_end = whole.len() - 64;
        for len in 0..payload_end {
            assert!(look(whole[..len].to_vec()).is_err(), "{compression}, {len} of {payload_end} bytes");
        }
    }
}

#[test]
fn payload_that_ends_early_is_refused_wherever_it_ends() {
    for compression in ALL {
        let whole = pack(compression, &small());
        let length = (small().len() as u32).to_le_bytes();
        for len in 0..whole.len() {
            let mut payload = whole[..len].to_vec();
            payload.extend(length);
            // Gzip's own last four bytes are this length: all of it is there again.
            let is_whole = compression == Compression::Gzip && len + 4 == whole.len();
            let refused = look(bzimage_around(&payload)).is_err();
            assert_eq!(refused, !is_whole, "{compression}, {len} of {} bytes", whole.len());
        }
    }
}

#[test]
fn bomb_is_stopped_at_the_length_it_says() {
    for compression in ALL {
        let mut payload = pack(compression, &vec![0; 4 << 20]);
        if compression == Compression::Gzip {
            payload.truncate(payload.len() - 4);
        }
        payload.extend(0x1_0000_u32.to_le_bytes());
        let error = look(bzimage_around(&payload)).unwrap_err();
        let says_so = match &error {
            ImageError::Corrupt { expected, found, .. } => {
                expected.contains("65536 bytes") && found == "more"
            }
            // A block of lz4 is unpacked whole or not at all.
            ImageError::Unpack { .. } => compression == Compression::Lz4,
            _ => false,
        };
        assert!(says_so, "{compression}: {error}");
    }
}

/// A zstd frame of the same byte over and over, 128 KiB in every four bytes.
fn zstd_bomb(window: u8, blocks: usize) -> Vec<u8> {
    let block = ((128_u32 << 10) << 3 | 1 << 1).to_le_bytes();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    frame.extend([block[0], block[1], block[2], 0].repeat(blocks));
    frame
}

#[test]
fn window_beyond_the_limit_is_not_allocated() {
    // 1 MiB, as the limit is: stopped at the length it says.
    let mut payload = zstd_bomb(10 << 3, 4096);
    payload.extend(0x1_0000_u32.to_le_bytes());
    assert!(matches!(look(bzimage_around(&payload)).unwrap_err(), ImageError::Corrupt { .. }));
    // 128 MiB, and 2 TiB.
    for window in [17 << 3, 31 << 3] {
        let mut payload = zstd_bomb(window, 4096);
        payload.extend(0x1_0000_u32.to_le_bytes());
        assert!(matches!(look(bzimage_around(&payload)).unwrap_err(), ImageError::Unpack { .. }));
        // Looking at what is in a packed file is bounded as well.
        let _ = look(zstd_bomb(window, 4096));
    }
    // Dictionaries: of nearly 4 GiB for lzma, of 8 MiB for xz.
    let mut of_lzma = pack(Compression::Lzma, &small());
    of_lzma[4] = 0xff;
    let options = XzOptions::with_preset(6);
    let mut of_xz = XzWriter::new(Vec::new(), options).unwrap();
    of_xz.write_all(&small()).unwrap();
    for mut payload in [of_lzma, of_xz.finish().unwrap()] {
        payload.extend((small().len() as u32).to_le_bytes());
        let error = look(bzimage_around(&payload)).unwrap_err();
        assert!(matches!(&error, ImageError::Unpack { reason, .. } if reason.contains("memory")), "{error}");
    }
}
