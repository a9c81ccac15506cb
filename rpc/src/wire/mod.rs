//! The bytes of the protocol: frames, HELLO, errors. The whole format is in `docs/rpc-wire.md`.

pub(crate) mod fault;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod metadata;
pub(crate) mod trace;

#[cfg(test)]
mod tests;
