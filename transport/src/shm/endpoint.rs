//! The client of a broker.

use std::path::Path;

use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};
use crate::messages::Messages;
use crate::options::{ConnectOptions, ListenOptions};
use crate::shm::ShmListener;
use crate::stream::Stream;

#[derive(Clone, Debug)]
pub(crate) struct ShmEndpoint {
    cid: Cid,
}

fn unsupported(attempt: &str) -> Error {
    Error::io(attempt, std::io::ErrorKind::Unsupported.into())
}

impl ShmEndpoint {
    pub(crate) async fn attach(socket: &Path) -> Result<Self> {
        Err(unsupported(&format!("attaching to {}", socket.display())))
    }

    pub(crate) fn local_cid(&self) -> Cid {
        self.cid
    }

    pub(crate) async fn resolve(&self, name: &str) -> Result<Addr> {
        Err(unsupported(name))
    }

    pub(crate) async fn connect(&self, addr: Addr, _options: &ConnectOptions) -> Result<Stream> {
        Err(unsupported(&format!("connecting to {addr}")))
    }

    pub(crate) async fn connect_messages(&self, addr: Addr, _options: &ConnectOptions) -> Result<Messages> {
        Err(unsupported(&format!("connecting to {addr}")))
    }

    pub(crate) async fn listen(&self, port: Port, _options: ListenOptions) -> Result<ShmListener> {
        Err(unsupported(&format!("listening on {port}")))
    }

    pub(crate) async fn listen_messages(&self, port: Port, _options: ListenOptions) -> Result<ShmListener> {
        Err(unsupported(&format!("listening on {port}")))
    }
}
