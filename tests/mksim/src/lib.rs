//! **STAND-IN.** A test double for the kernel interface of Multikernel Linux, not that kernel.
//!
//! Towards programs it behaves as the kernel does, traps included; what it boots are real Linux kernels (User-mode Linux).
//!
//! ```text
//!  COMMAND (own mount namespace, seccomp filter)
//!    │ files                          │ kexec_file_load, reboot, DMA_HEAP_IOCTL_ALLOC
//!    ▼                                ▼
//!  fuse ───────────► world ◄──────── calls
//!                    │   ▲
//!              model │   │ ends, console
//!                    ▼   │
//!                    boot: a User-mode Linux kernel per instance
//! ```
//!
//! [`model`] is the behaviour, pure. The rest is its shell, for the binary `tombolo-mksim` alone: [`run`] and [`ctl`].

mod boot;
mod calls;
pub mod ctl;
pub mod dtb;
mod fuse;
pub mod guard;
pub mod image;
pub mod model;
mod namespace;
pub mod run;
mod terminals;
mod watchers;
mod world;

/// What every surface of the stand-in says.
pub const BANNER: &str =
    "STAND-IN for Multikernel Linux: a test double, no isolation, User-mode Linux kernels";
