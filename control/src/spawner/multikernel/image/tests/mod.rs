//! What is taken, and what is refused by which name.

mod distribution;
mod hostile;
mod synthetic;

use synthetic::{ALL, CMDLINE_SIZE, VERSION, arm64_image, bzimage, bzimage_around, elf_header, put, vmlinux};

use super::*;

const LIMITS: Limits =
    Limits { file_bytes_max: 1 << 20, unpacked_bytes_max: 1 << 20, window_bytes_max: 8 << 20 };

fn look(file: Vec<u8>) -> Result<KernelImage, ImageError> {
    KernelImage::from_bytes(file, Arch::X86_64, &LIMITS)
}

/// It must be refused in words that have all of these.
#[track_caller]
fn assert_refused(file: Vec<u8>, words: &[&str]) {
    let error = look(file).unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not all in: {error}");
}

#[test]
fn vmlinux_is_taken_as_it_is() {
    let image = look(vmlinux()).unwrap();
    assert_eq!((image.format, image.arch), (Format::Vmlinux, Arch::X86_64));
    assert_eq!(image.bytes, vmlinux());
    assert_eq!(image.packed, None);
    assert_eq!(image.version.as_deref(), Some(VERSION));
    assert_eq!(image.release(), Some("7.0.0-mk2"));
    assert!(!image.is_signed);
}

#[test]
fn vmlinux_inside_a_bzimage_is_unpacked_whatever_packed_it() {
    for compression in ALL {
        let file = bzimage(compression, &vmlinux());
        let image = look(file.clone()).unwrap_or_else(|error| panic!("{compression}: {error}"));
        assert_eq!((image.format, image.arch), (Format::BzImage(compression), Arch::X86_64));
        assert_eq!(image.bytes, vmlinux(), "{compression}");
        assert_eq!(image.packed, Some(file));
        assert_eq!(image.release(), Some("7.0.0-mk2"));
        assert!(!image.is_signed);
    }
}

#[test]
fn version_is_found_in_the_kernel_where_the_setup_header_has_none() {
    let mut file = bzimage(Compression::Gzip, &vmlinux());
    put(&mut file, 0x20e, &[0, 0]);
    assert_eq!(look(file.clone()).unwrap().version.as_deref(), Some(VERSION));
    // Where it points out of the setup, and where it points to what is no text.
    for pointer in [0xffff_u16, 0x41] {
        put(&mut file, 0x20e, &pointer.to_le_bytes());
        assert_eq!(look(file.clone()).unwrap().version.as_deref(), Some(VERSION));
    }
}

#[test]
fn image_of_arm64_is_taken_on_arm64_only() {
    let image = KernelImage::from_bytes(arm64_image(), Arch::Aarch64, &LIMITS).unwrap();
    assert_eq!((image.format, image.arch), (Format::Arm64Image, Arch::Aarch64));
    assert_eq!(image.bytes, arm64_image());
    assert_eq!(image.version.as_deref(), Some(VERSION));
    assert_refused(arm64_image(), &["for arm64", "needs one for x86-64"]);
    for file in [vmlinux(), bzimage(Compression::Gzip, &vmlinux())] {
        let error = KernelImage::from_bytes(file, Arch::Aarch64, &LIMITS).unwrap_err().to_string();
        assert!(error.contains("for x86-64, and this host needs one for arm64"), "{error}");
    }
    let mut elf = vmlinux();
    put(&mut elf, 18, &[183, 0]);
    let error = KernelImage::from_bytes(elf, Arch::Aarch64, &LIMITS).unwrap_err().to_string();
    assert!(error.contains("arch/arm64/boot/Image"), "{error}");
    let mut big_endian = arm64_image();
    big_endian[24] = 1;
    let error = KernelImage::from_bytes(big_endian, Arch::Aarch64, &LIMITS).unwrap_err().to_string();
    assert!(error.contains("big-endian"), "{error}");
    let mut longer_than_it_says = arm64_image();
    put(&mut longer_than_it_says, 16, &64_u64.to_le_bytes());
    assert!(KernelImage::from_bytes(longer_than_it_says, Arch::Aarch64, &LIMITS).is_err());
}

#[test]
fn kernel_for_another_machine_is_refused_by_its_name() {
    let with = |at: usize, value: &[u8]| {
        let mut elf = vmlinux();
        put(&mut elf, at, value);
        elf
    };
    assert_refused(with(18, &[183, 0]), &["for arm64"]);
    assert_refused(with(18, &[243, 0]), &["for RISC-V"]);
    assert_refused(with(18, &[0x39, 0x30]), &["ELF machine 12345"]);
    assert_refused(with(5, &[2]), &["big-endian"]);
    let mut i386 = with(4, &[1]);
    put(&mut i386, 18, &[3, 0]);
    assert_refused(i386, &["32-bit", "i386"]);
    let mut bzimage_of_i386 = bzimage(Compression::Gzip, &vmlinux());
    put(&mut bzimage_of_i386, 0x236, &[0, 0]);
    assert_refused(bzimage_of_i386, &["32-bit", "i386"]);
    assert_refused(bzimage(Compression::Xz, &with(4, &[1])), &["packed in it", "32-bit"]);
}

#[test]
fn what_is_no_kernel_is_refused_by_its_name() {
    let mut module = elf_header(1, 62, 0);
    module.extend(b"\0.modinfo\0license=GPL");
    let cpio = b"070701000002D2000081A4".to_vec();
    let mut boot_sector = vec![0; 1024];
    put(&mut boot_sector, 0x1fe, &[0x55, 0xaa]);
    let mut zboot = vec![0; 1024];
    put(&mut zboot, 0, b"MZ\0\0zimg");
    let cases: [(Vec<u8>, &[&str]); 15] = [
        (Vec::new(), &["an empty file"]),
        (cpio.clone(), &["an initial archive (cpio), not a kernel", "as the initial archive"]),
        (b"#!/bin/sh\nexec true\n".to_vec(), &["a script, not a kernel", "vmlinux"]),
        (module.clone(), &["a kernel module (.ko), not a kernel"]),
        (elf_header(1, 62, 0), &["object file"]),
        (elf_header(4, 62, 0), &["a core dump, not a kernel"]),
        (boot_sector, &["boot sector"]),
        (zboot, &["EFI program", "Image"]),
        (b"MZ\0\0".to_vec(), &["EFI or Windows program"]),
        (b"!<arch>\ndebian-binary".to_vec(), &["Debian package"]),
        (b"hello world".to_vec(), &["unknown kind", "68 65 6c 6c"]),
        (b"\x7f".to_vec(), &["unknown kind"]),
        (b"\x7fELF".to_vec(), &["cut short", "64"]),
        (synthetic::pack(Compression::Lzo, b""), &["a file packed with lzo"]),
        (b"\x1f\x8b and nothing that can be unpacked".to_vec(), &["a file packed with gzip"]),
    ];
    for (file, words) in cases {
        assert_refused(file, words);
    }
    for compression in ALL {
        let packed = |content: &[u8]| synthetic::pack(compression, content);
        assert_refused(packed(&cpio), &["an initial archive (cpio packed with ", "not a kernel"]);
        assert_refused(packed(&module), &["a kernel module (.ko) packed with ", "as a module"]);
        assert_refused(packed(&vmlinux()), &["perhaps a vmlinux, packed with ", "unpack it"]);
        assert_refused(packed(&arm64_image()), &["an arm64 kernel (Image) packed with ", "unpack it"]);
        assert_refused(bzimage(compression, &cpio), &["packed in it", "an initial archive"]);
    }
}

#[test]
fn program_of_user_space_is_not_taken_for_a_kernel() {
    let this = std::fs::read("/proc/self/exe").unwrap();
    let limits = Limits { file_bytes_max: u64::MAX, ..LIMITS };
    let error = KernelImage::from_bytes(this, Arch::HOST, &limits).unwrap_err().to_string();
    assert!(error.contains("a program of user space"), "{error}");
    let mut low = vmlinux();
    for segment in [64, 120] {
        put(&mut low, segment + 16, &0x40_0000_u64.to_le_bytes());
    }
    assert_refused(low, &["a program of user space", "`uml`"]);
}

#[test]
fn setup_header_that_cannot_be_is_refused_with_what_was_expected() {
    let with = |at: usize, value: &[u8]| {
        let mut file = bzimage(Compression::Gzip, &vmlinux());
        put(&mut file, at, value);
        file
    };
    assert_refused(with(0x1fe, &[0, 0]), &["the boot flag", "expected 0xaa55", "found 0x0000"]);
    assert_refused(with(0x206, &[7, 2]), &["boot protocol 2.07", "2.08"]);
    assert_refused(with(0x211, &[0]), &["a zImage", "the bzImage"]);
    assert_refused(with(0x24c, &[0; 4]), &["0 bytes"]);
    assert_refused(with(0x248, &[0xff; 4]), &["cut short", "the payload"]);
    assert_refused(with(0x24c, &[0xff; 4]), &["cut short", "the payload"]);
}

#[test]
fn payload_that_cannot_be_unpacked_is_refused_with_what_to_do() {
    assert_refused(bzimage(Compression::Lzo, b""), &["packed with lzo", "CONFIG_KERNEL_ZSTD=y"]);
    assert_refused(bzimage_around(b"plain text"), &["its payload is damaged", "70 6c 61 69"]);
    assert_refused(bzimage_around(b"\x1f\x8b"), &["its payload is damaged", "its length"]);
    for compression in ALL {
        let packed = synthetic::pack(compression, &vmlinux());
        let with_length = |packed: &[u8], length: u32| {
            let mut payload = packed.to_vec();
            if compression == Compression::Gzip {
                payload.truncate(packed.len() - 4);
            }
            payload.extend(length.to_le_bytes());
            bzimage_around(&payload)
        };
        let length = vmlinux().len() as u32;
        assert!(look(with_length(&packed, length)).is_ok(), "{compression}");
        assert_refused(with_length(&packed, length - 1), &["its payload"]);
        assert_refused(with_length(&packed, length + 1), &["its payload"]);
        assert_refused(with_length(&packed[..packed.len() / 2], length), &["its payload"]);
    }
}

#[test]
fn checksum_that_does_not_match_is_refused() {
    // How far from its end a byte of it is.
    for (compression, from_end) in
        [(Compression::Gzip, 8), (Compression::Bzip2, 2), (Compression::Zstd, 1), (Compression::Xz, 24)]
    {
        let mut packed = synthetic::pack(compression, &vmlinux());
        let at = packed.len() - from_end;
        packed[at] ^= 1;
        if compression != Compression::Gzip {
            packed.extend((vmlinux().len() as u32).to_le_bytes());
        }
        let looked = look(bzimage_around(&packed));
        assert!(matches!(looked, Err(ImageError::Unpack { .. })), "{compression}: {looked:?}");
    }
}

#[test]
fn unpacked_length_beyond_the_limit_is_refused_before_it_is_unpacked() {
    for compression in ALL {
        let bomb = bzimage(compression, &vec![0; LIMITS.unpacked_bytes_max + 1]);
        assert_refused(bomb, &["1048577 bytes", "at most 1048576"]);
    }
    let limits = Limits { file_bytes_max: 100, ..LIMITS };
    let error = KernelImage::from_bytes(vmlinux(), Arch::X86_64, &limits).unwrap_err().to_string();
    assert!(error.contains("at most 100 are allowed; give the bzImage"), "{error}");
}

#[test]
fn segment_that_is_not_in_the_file_is_refused() {
    let with = |at: usize, value: u64| {
        let mut elf = vmlinux();
        put(&mut elf, at, &value.to_le_bytes());
        elf
    };
    let mut shorter = vmlinux();
    shorter.pop();
    assert_refused(shorter, &["cut short", "a segment"]);
    assert_refused(with(64 + 8, u64::MAX), &["cut short", "a segment"]);
    assert_refused(with(64 + 32, u64::MAX), &["a segment is damaged"]);
    assert_refused(with(64 + 24, u64::MAX), &["address space"]);
    assert_refused(with(32, u64::MAX), &["cut short", "program headers"]);
    assert_refused(elf_header(2, 62, 0), &["a segment to load", "none among 0"]);
    let mut of_no_size = vmlinux();
    put(&mut of_no_size, 54, &[0, 0]);
    assert_refused(of_no_size, &["expected 56", "found 0"]);
    for (at, part) in [(4, "the class"), (5, "the byte order")] {
        let mut odd = vmlinux();
        odd[at] = 7;
        assert_refused(odd, &[part, "expected 1 or 2, found 7"]);
    }
    let mut of_odd_type = vmlinux();
    put(&mut of_odd_type, 16, &[9, 0]);
    assert_refused(of_odd_type, &["2 (EXEC) or 3 (DYN)", "found 9"]);
}

#[test]
fn signature_behind_a_vmlinux_is_seen_and_kept() {
    let signed = |kind: u8, len: u32| {
        let mut file = vmlinux();
        file.extend([0xaa; 256]);
        file.extend([0, 0, kind, 0, 0, 0, 0, 0]);
        file.extend(len.to_be_bytes());
        file.extend(b"~Module signature appended~\n");
        file
    };
    let image = look(signed(2, 256)).unwrap();
    assert!(image.is_signed);
    assert_eq!(image.bytes, signed(2, 256));
    assert_eq!(image.signed_file(), None, "it has its signature as it is loaded");
    assert_refused(signed(2, u32::MAX), &["its signature is damaged", "4294967295 bytes"]);
    assert_refused(signed(1, 256), &["PKCS#7"]);
    assert_refused(signed(2, 0), &["its signature is damaged"]);
}

#[test]
fn bzimage_with_certificates_is_kept_as_it_is_for_a_kernel_that_wants_them() {
    let signed = |at: u32, len: u32| {
        let mut file = bzimage(Compression::Gzip, &vmlinux());
        put(&mut file, 0, b"MZ");
        put(&mut file, 0x3c, &0x40_u32.to_le_bytes());
        put(&mut file, 0x40, b"PE\0\0");
        put(&mut file, 0x40 + 24, &0x20b_u16.to_le_bytes());
        put(&mut file, 0x40 + 24 + 108, &6_u32.to_le_bytes());
        put(&mut file, 0x40 + 24 + 112 + 32, &at.to_le_bytes());
        put(&mut file, 0x40 + 24 + 112 + 36, &len.to_le_bytes());
        file
    };
    let image = look(signed(64, 128)).unwrap();
    assert!(image.is_signed);
    assert_eq!((image.signed_file(), &image.bytes), (Some(&signed(64, 128)[..]), &vmlinux()));
    let unsigned = look(signed(0, 0)).unwrap();
    assert_eq!((unsigned.is_signed, unsigned.signed_file()), (false, None));
    assert_refused(signed(64, u32::MAX), &["cut short", "certificates"]);
}

#[test]
fn command_line_must_fit_and_be_one_line() {
    let vmlinux_image = look(vmlinux()).unwrap();
    let bzimage_image = look(bzimage(Compression::Zstd, &vmlinux())).unwrap();
    assert_eq!(vmlinux_image.cmdline_bytes_max, 2047);
    // With its NUL and 30 bytes more it is as long as the setup header allows.
    assert_eq!(bzimage_image.cmdline_bytes_max + 1 + 30, CMDLINE_SIZE as usize);
    for image in [&vmlinux_image, &bzimage_image] {
        let bytes_max = image.cmdline_bytes_max;
        assert_eq!(image.check_command_line(""), Ok(()));
        assert_eq!(image.check_command_line(&"x".repeat(bytes_max)), Ok(()));
        let too_long = CommandLineError::TooLong { bytes: bytes_max + 1, bytes_max };
        assert_eq!(image.check_command_line(&"x".repeat(bytes_max + 1)), Err(too_long));
        for (line, at) in [("console=mktty0\n", 14), ("\0", 0), ("a=\r", 2)] {
            match image.check_command_line(line) {
                Err(CommandLineError::Forbidden { at: found, .. }) => assert_eq!(found, at),
                other => panic!("{line:?}: {other:?}"),
            }
        }
    }
    let mut without_room = bzimage(Compression::Gzip, &vmlinux());
    put(&mut without_room, 0x238, &[30, 0, 0, 0]);
    assert_eq!(look(without_room).unwrap().cmdline_bytes_max, 0);
    let mut with_too_much = bzimage(Compression::Gzip, &vmlinux());
    put(&mut with_too_much, 0x238, &[0xff; 4]);
    assert_eq!(look(with_too_much).unwrap().cmdline_bytes_max, 2047);
}

#[test]
fn file_is_read_up_to_the_limit_and_only_if_it_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let read = |path: &Path| KernelImage::read(path, Arch::X86_64, &LIMITS);
    let path = dir.path().join("vmlinux");
    match read(&path).unwrap_err() {
        ImageError::File { path: of, .. } => assert_eq!(of, path),
        other => panic!("{other}"),
    }
    std::fs::write(&path, vmlinux()).unwrap();
    assert_eq!(read(&path).unwrap().bytes, vmlinux());
    File::options().write(true).open(&path).unwrap().set_len(LIMITS.file_bytes_max + 1).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("it takes 1048577 bytes"));
    assert!(read(dir.path()).unwrap_err().to_string().contains("a folder"));
    assert!(read(Path::new("/dev/null")).unwrap_err().to_string().contains("a device"));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(read(&fifo).unwrap_err().to_string().contains("a FIFO"));
}
