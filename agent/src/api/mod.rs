//! The services an agent offers, as `tombolo-rpc` services.
//!
//! Each module holds one service: the trait (which the macro turns into `FooClient` and `FooServer`), what goes in,
//! what comes out, and what can go wrong. Times are in milliseconds unless the name says otherwise.

pub mod agent;
pub mod exec;
pub mod files;
pub mod forward;
pub mod handover;
pub mod health;
pub mod logs;
pub mod measure;

pub use tombolo_rpc::Blob;
