//! DAXFS: a file system in memory that several kernels have, which is mounted by where that is.

use std::fs;
use std::io;

use crate::config::Daxfs;
use crate::pid1::is_mounted;
use nix::mount::MsFlags;

/// Mounts it, unless it is mounted there already: by an earlier life of the agent in this kernel.
pub(crate) fn mount(daxfs: &Daxfs) -> io::Result<()> {
    let at = daxfs.mount.display();
    let failed = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what} {at}: {error}"));
    if is_mounted(&daxfs.mount) {
        return Ok(());
    }
    fs::create_dir_all(&daxfs.mount).map_err(|error| failed("making", error))?;
    let options = options(daxfs);
    nix::mount::mount(Some("none"), &daxfs.mount, Some("daxfs"), MsFlags::MS_NOATIME, Some(options.as_str()))
        .map_err(|errno| {
            let hint = match errno {
                nix::Error::ENODEV => " (this kernel has no DAXFS: build it in, or have its module loaded)",
                nix::Error::EINVAL => {
                    " (there is no DAXFS at that address, or one of another version than this kernel's)"
                }
                _ => "",
            };
            failed(
                "mounting DAXFS on",
                io::Error::new(io::Error::from(errno).kind(), format!("{errno}{hint}, with {options}")),
            )
        })
}

fn options(daxfs: &Daxfs) -> String {
    format!("phys={:#x},size={}", daxfs.phys, daxfs.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_without_the_file_system_is_told_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let daxfs = Daxfs { mount: dir.path().join("m"), phys: 0x1_4000_0000, size: 1 << 20 };
        assert_eq!(options(&daxfs), "phys=0x140000000,size=1048576");
        // No kernel that runs tests has it, or they may not mount.
        let error = mount(&daxfs).unwrap_err().to_string();
        assert!(error.contains("mounting DAXFS on") && error.contains("phys=0x140000000"), "{error}");
    }
}
