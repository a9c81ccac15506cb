//! Files inside the kernel: what is behind [`crate::api::files::Files`].

mod look;
mod path;
mod put;
mod room;
mod service;

pub use put::{PutFile, PutLocks};
pub use service::FilesService;
