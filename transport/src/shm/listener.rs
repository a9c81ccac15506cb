//! Connections that the broker has brokered for a listener of this process.

use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::messages::Messages;
use crate::stream::Stream;

#[derive(Debug)]
pub(crate) struct ShmListener {
    local: Addr,
}

impl ShmListener {
    pub(crate) async fn accept_stream(&mut self) -> Result<(Stream, Addr)> {
        Err(Error::io("accepting", std::io::ErrorKind::Unsupported.into()))
    }

    pub(crate) async fn accept_messages(&mut self) -> Result<(Messages, Addr)> {
        Err(Error::io("accepting", std::io::ErrorKind::Unsupported.into()))
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.local
    }
}
