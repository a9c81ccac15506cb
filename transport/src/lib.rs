//! vsock-shaped sockets between kernels: shared memory, AF_VSOCK, or a hybrid Unix socket, behind one API.

pub mod addr;
pub mod broker;
#[cfg(feature = "conformance")]
pub mod conformance;
mod doorbell;
pub mod endpoint;
pub mod error;
mod fds;
pub mod framed;
pub mod hybrid;
pub mod incarnation;
pub mod listener;
pub mod loan;
pub mod mem;
pub mod memory;
pub mod messages;
pub mod options;
pub mod pool;
mod ports;
pub mod ring;
mod shm;
mod sockets;
pub mod stream;
pub mod vsock;

pub use addr::{Addr, Cid, Port};
pub use broker::{Broker, BrokerConfig, BrokerHandle};
pub use endpoint::Endpoint;
pub use error::{Error, ResetCause, Result};
pub use incarnation::Incarnation;
pub use listener::{Listener, MessageListener};
pub use loan::{Loan, Received};
pub use messages::{MessageReceiver, MessageSender, Messages, TryRecv};
pub use options::{AttachOptions, ConnectOptions, ListenOptions, Sizes};
pub use pool::{Member, Pool};
pub use stream::{Stream, StreamReader, StreamWriter};
