//! A kernel as a distribution ships it, and streams as the tools write them that the kernel's build calls.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::super::bytes::{u16_at, u32_at, u64_at};
use super::super::*;
use super::synthetic::{bzimage_around, vmlinux};
use crate::spawner::image::cache_folder;

/// The kernel that the tests of the `qemu` spawner use; where there is none, says so or fails.
fn kernel() -> Option<PathBuf> {
    let named = std::env::var_os("TOMBOLO_QEMU_KERNEL").map(PathBuf::from);
    let fetched = || {
        let boot = std::fs::read_dir(cache_folder("qemu")?.join("boot")).ok()?;
        let mut paths = boot.filter_map(|entry| Some(entry.ok()?.path()));
        paths.find(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-"))
        })
    };
    let found = named.or_else(fetched);
    if found.is_none() {
        assert!(
            std::env::var_os("TOMBOLO_REQUIRE_QEMU").is_none(),
            "no kernel: run `cargo xtask fetch-qemu`"
        );
        skipped("no kernel of a distribution is here; `cargo xtask fetch-qemu` fetches one");
    }
    found
}

/// Past the capture of the test harness.
fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

#[test]
fn kernel_of_a_distribution_is_what_its_headers_say() {
    let Some(path) = kernel() else { return };
    let image = KernelImage::read(&path, Arch::X86_64, &Limits::default()).unwrap();
    let file = std::fs::read(&path).unwrap();
    assert!(matches!(image.format, Format::BzImage(_)), "{image:?}");
    assert_eq!(image.packed.as_ref(), Some(&file));
    // The length behind the payload.
    let setup_bytes = (usize::from(file[0x1f1]) + 1) * 512;
    let field = |at| u32_at(&file, at).unwrap() as usize;
    let payload_end = setup_bytes + field(0x248) + field(0x24c);
    assert_eq!(image.bytes.len(), field(payload_end - 4));
    // Where it goes in memory, and how much of it.
    let (preferred, init_size) = (u64_at(&file, 0x258).unwrap(), u64::from(u32_at(&file, 0x260).unwrap()));
    let count = u16_at(&image.bytes, 56).unwrap();
    let headers =
        (0..usize::from(count)).map(|index| u64_at(&image.bytes, 32).unwrap() as usize + index * 56);
    let loads: Vec<(u64, u64)> = headers
        .filter(|at| u32_at(&image.bytes, *at) == Some(1))
        .map(|at| (u64_at(&image.bytes, at + 24).unwrap(), u64_at(&image.bytes, at + 40).unwrap()))
        .collect();
    let end = loads.iter().map(|(physical, len)| physical + len).max().unwrap();
    assert_eq!(loads.iter().map(|(physical, _)| *physical).min(), Some(preferred));
    assert!(end - preferred <= init_size, "{end:#x} is beyond {init_size:#x} bytes from {preferred:#x}");
    // The version in the setup header is that of the kernel in it.
    let banner = version::in_kernel(&image.bytes).unwrap();
    assert_eq!(image.release(), banner.split(' ').next());
    assert!(banner.contains("gcc") || banner.contains("clang"), "{banner}");
    if let Some(release) = path.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-")) {
        assert_eq!(image.release(), Some(release));
    }
    assert!(image.cmdline_bytes_max >= 1024);
    image.check_command_line("console=mktty0 panic=-1").unwrap();
    // The vmlinux alone is the same kernel.
    let again = KernelImage::from_bytes(image.bytes.clone(), Arch::X86_64, &Limits::default()).unwrap();
    assert_eq!((again.format, again.version.as_ref()), (Format::Vmlinux, Some(&banner)));
}

/// As Linux's scripts/Makefile.lib and scripts/xz_wrap.sh call them.
#[test]
fn streams_of_the_tools_of_the_kernel_build_are_unpacked() {
    let tools: [(Compression, &[&str]); 6] = [
        (Compression::Gzip, &["gzip", "-n", "-f", "-9"]),
        (Compression::Bzip2, &["bzip2", "-9"]),
        (Compression::Lzma, &["lzma", "-9"]),
        (Compression::Xz, &["xz", "--check=crc32", "--threads=1", "--x86", "--lzma2=preset=9e,dict=128MiB"]),
        (Compression::Zstd, &["zstd", "-q", "-22", "--ultra"]),
        (Compression::Lz4, &["lz4", "-q", "-l", "-9", "-", "-"]),
    ];
    for (compression, line) in tools {
        let Some(mut payload) = filter(line, &vmlinux()) else {
            skipped(&format!("{compression} cannot be tried without the program {}", line[0]));
            continue;
        };
        if compression != Compression::Gzip {
            payload.extend((vmlinux().len() as u32).to_le_bytes());
        }
        let file = bzimage_around(&payload);
        let image = KernelImage::from_bytes(file, Arch::X86_64, &Limits::default());
        let image = image.unwrap_or_else(|error| panic!("{compression}: {error}"));
        assert_eq!(image.format, Format::BzImage(compression));
        assert_eq!(image.bytes, vmlinux(), "{compression}");
    }
}

/// What a program makes of its input; `None` without that program.
fn filter(line: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new(line[0]);
    let piped = command.args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = piped.ok()?;
    // Less than a pipe holds: it need not be read meanwhile.
    child.stdin.take()?.write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line:?} failed");
    Some(output.stdout)
}
