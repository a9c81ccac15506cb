//! Peers that carry messages, one file each.

#[cfg(feature = "aeron")]
pub(crate) mod aeron;
pub(crate) mod iceoryx2;
pub(crate) mod in_process;
pub(crate) mod ipc_channel;
pub(crate) mod shmipc;
pub(crate) mod streams;
