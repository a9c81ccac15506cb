//! vsock-shaped sockets between kernels: shared memory, AF_VSOCK, or a hybrid Unix socket, behind one API.

pub mod addr;
pub mod error;
pub mod framed;
pub mod messages;

pub use addr::{Addr, Cid, Port};
pub use error::{Error, ResetCause, Result};
pub use messages::{MessageReceiver, MessageSender, Messages};
