//! **STAND-IN.** A test double for the kernel interface of Multikernel Linux, not that kernel.
//!
//! It behaves as the kernel does towards programs, traps included, and what it boots are real Linux kernels: User-mode Linux.
//! [`model`] is the behaviour, pure; the rest serves it to a command.

pub mod model;
