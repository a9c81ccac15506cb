//! Putting a kernel into an instance: as the usual loader takes it, and where the kernel wants a signature that this lacks, as its file
//! was.
//!
//! A bzImage is unpacked for the loader, and the signature that it has is of the file. The newest kernel loads it packed as well
//! (`kexec-bzimage64.c`); earlier ones do not, which is why that comes second.

use std::io;
use std::os::fd::BorrowedFd;

use super::clock::{BUSY_MAX, unless_busy};
use super::ids::InstanceId;
use super::interface::Interface;

/// What is put into an instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    /// The kernel, as the usual loader takes it.
    pub(super) image: BorrowedFd<'a>,
    /// The file that it was unpacked from, if that has a signature.
    pub(super) signed: Option<BorrowedFd<'a>>,
    /// The initial archive.
    pub(super) initrd: BorrowedFd<'a>,
    /// Nothing secret is on it.
    pub(super) command_line: &'a str,
}

impl Load<'_> {
    /// Puts it into an instance. `is_empty`: whether nothing is in that, asked while the kernel is busy, when waiting else does not help.
    /// The error follows "could not load".
    pub(super) fn put(
        &self,
        kernel: &impl Interface,
        id: InstanceId,
        is_empty: impl Fn() -> bool,
    ) -> Result<(), String> {
        let put = |image| {
            let load = || kernel.load(id, image, self.initrd, self.command_line);
            unless_busy(kernel, BUSY_MAX, load, &is_empty)
        };
        let Err(unpacked) = put(self.image) else { return Ok(()) };
        // Each try is taken from kernel.kexec_load_limit_reboot, where that is set.
        let Some(signed) = self.signed.filter(|_| may_want_signature(&unpacked)) else {
            return Err(reason(&unpacked));
        };
        put(signed).map_err(|packed| reason_of_both(&unpacked, &packed))?;
        tracing::info!(instance = %id, refused = %unpacked, "a signed kernel is loaded as its file was, not unpacked");
        Ok(())
    }
}

/// Whether the kernel may have taken it with a signature. One that is locked down says EPERM, as one does that lacks something else.
fn may_want_signature(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::ENODATA | libc::ENOKEY | libc::EKEYREJECTED | libc::EPERM))
}

fn reason(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "it needs CAP_SYS_BOOT, kernel.kexec_load_disabled = 0, and no lockdown or an image that is signed (kerf sign)"
        }
        Some(libc::EBUSY) => "the kernel is busy with another instance, or this one has an image already",
        Some(libc::ENOEXEC) => "it is not a kernel that this one can load",
        Some(libc::ENODATA | libc::ENOKEY | libc::EKEYREJECTED) => {
            "this kernel loads only signed images: sign it (kerf sign), or boot one here that does not enforce signatures"
        }
        Some(libc::ENOENT) => "the kernel has no such instance any more",
        Some(libc::EINVAL) => "the kernel takes no such image or command line; dmesg says which",
        _ => return error.to_string(),
    };
    format!("{error}: {hint}")
}

fn reason_of_both(unpacked: &io::Error, packed: &io::Error) -> String {
    let may_lack_more = [unpacked, packed].iter().all(|error| error.raw_os_error() == Some(libc::EPERM));
    let more = if may_lack_more {
        "if the daemon has CAP_SYS_BOOT, and kernel.kexec_load_disabled is 0, "
    } else {
        ""
    };
    format!(
        "tried unpacked, without the signature of its file: {unpacked}; tried as the signed file that it is: {packed}; {more}sign the \
         vmlinux of the same build with a key that this kernel knows (kerf sign), or boot a kernel here that does not enforce signatures"
    )
}
