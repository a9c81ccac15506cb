//! End-to-end tests on real kernels, and what they share.

pub mod archive;
pub mod attached;
pub mod bed;
pub mod guest;
pub mod kerf;
pub mod kv;
pub mod prerequisites;
pub mod standin;
pub mod wait;
