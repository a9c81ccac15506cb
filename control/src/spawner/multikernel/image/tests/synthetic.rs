//! Kernels that are as small as they can be, and packed in every way.

use std::io::Write as _;

use lzma_rust2::{CheckType, FilterType, LzmaOptions, LzmaWriter, XzOptions, XzWriter};

use super::super::Compression;

pub(super) const ALL: [Compression; 6] = [
    Compression::Gzip,
    Compression::Xz,
    Compression::Lzma,
    Compression::Bzip2,
    Compression::Zstd,
    Compression::Lz4,
];
pub(super) const VERSION: &str = "7.0.0-mk2 (builder@host) (gcc 14.2) #1 SMP";
pub(super) const SETUP_BYTES: usize = 5 * 512;
pub(super) const CMDLINE_SIZE: u32 = 2047;

/// A vmlinux for x86-64: two segments and the version.
pub(super) fn vmlinux() -> Vec<u8> {
    let mut text = b"\0Linux version %s (%s)\n\0".to_vec();
    text.extend(format!("Linux version {VERSION}\n\0").bytes());
    text.extend((0..3000_u32).flat_map(|n| (n * n / 7).to_le_bytes()));
    let segments = [(0x1000, 0x100_0000, text.len() as u64), (0x1000, 0x200_0000, 16)];
    let mut elf = elf_header(2, 62, segments.len() as u16);
    for (offset, physical, len) in segments {
        elf.extend([1_u32, 5].iter().flat_map(|word| word.to_le_bytes()));
        let fields = [offset, 0xffff_ffff_8000_0000 + physical, physical, len, len + 4096, 4096];
        elf.extend(fields.iter().flat_map(|field: &u64| field.to_le_bytes()));
    }
    elf.resize(0x1000, 0);
    elf.extend(text);
    elf
}

/// The header of a 64-bit ELF file whose program headers follow it.
pub(super) fn elf_header(kind: u16, machine: u16, segments: u16) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    put(&mut header, 16, &kind.to_le_bytes());
    put(&mut header, 18, &machine.to_le_bytes());
    put(&mut header, 20, &1_u32.to_le_bytes());
    put(&mut header, 24, &0x100_0000_u64.to_le_bytes());
    put(&mut header, 32, &64_u64.to_le_bytes());
    put(&mut header, 52, &64_u16.to_le_bytes());
    put(&mut header, 54, &56_u16.to_le_bytes());
    put(&mut header, 56, &segments.to_le_bytes());
    header
}

/// A bzImage with this in it.
pub(super) fn bzimage(compression: Compression, content: &[u8]) -> Vec<u8> {
    let mut payload = pack(compression, content);
    if compression != Compression::Gzip {
        payload.extend((content.len() as u32).to_le_bytes());
    }
    bzimage_around(&payload)
}

/// A bzImage with this payload.
pub(super) fn bzimage_around(payload: &[u8]) -> Vec<u8> {
    const PAYLOAD_OFFSET: u32 = 0x200;
    let mut image = vec![0; SETUP_BYTES + PAYLOAD_OFFSET as usize];
    image[0x1f1] = 4;
    put(&mut image, 0x1fe, &[0x55, 0xaa]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut image, 0x20e, &0x400_u16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x236, &1_u16.to_le_bytes());
    put(&mut image, 0x238, &CMDLINE_SIZE.to_le_bytes());
    put(&mut image, 0x248, &PAYLOAD_OFFSET.to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    put(&mut image, 0x600, VERSION.as_bytes());
    image.extend(payload);
    image.extend([0; 64]);
    image
}

/// An Image for arm64.
pub(super) fn arm64_image() -> Vec<u8> {
    let mut image = vec![0; 4096];
    put(&mut image, 16, &0x1_0000_u64.to_le_bytes());
    put(&mut image, 56, b"ARM\x64");
    put(&mut image, 1024, format!("Linux version {VERSION}\n").as_bytes());
    image
}

pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// Packs it as the kernel's build does.
pub(super) fn pack(compression: Compression, content: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            out.write_all(content).unwrap();
            out.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            out.write_all(content).unwrap();
            out.finish().unwrap()
        }
        Compression::Xz => {
            let mut options = XzOptions::with_preset(0);
            options.set_check_sum_type(CheckType::Crc32);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut out = XzWriter::new(Vec::new(), options).unwrap();
            out.write_all(content).unwrap();
            out.finish().unwrap()
        }
        Compression::Lzma => {
            let options = LzmaOptions::with_preset(0);
            let mut out = LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            out.write_all(content).unwrap();
            out.finish().unwrap()
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Compression::Lz4 => {
            let mut out = 0x184c_2102_u32.to_le_bytes().to_vec();
            for block in content.chunks(8 << 20) {
                let packed = lz4_flex::block::compress(block);
                out.extend((packed.len() as u32).to_le_bytes());
                out.extend(packed);
            }
            out
        }
        Compression::Lzo => b"\x89LZO\0\r\n\x1a\n and more".to_vec(),
    }
}
