//! The shared-memory backend: connections whose data flows from process to process through a pool.

mod endpoint;
mod listener;

pub(crate) use endpoint::ShmEndpoint;
pub(crate) use listener::ShmListener;
