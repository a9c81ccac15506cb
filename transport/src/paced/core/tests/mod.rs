//! Tests of the core: two ends joined by a channel that splits, loses, refuses and breaks, with time as a number.

mod hostile;
mod properties;
mod scenarios;
mod sound;
mod world;
