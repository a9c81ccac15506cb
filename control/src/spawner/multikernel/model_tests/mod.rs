//! The spawner on a model of the kernel (`tombolo-mksim`), traps included: no call of it is real, and no time passes.

mod bench;
mod crashes;
mod deeds;
mod endings;
mod lock;
mod owners;
mod traps;
mod world;
