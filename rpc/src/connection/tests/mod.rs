//! The core stepped by hand: two ends, two wires, a clock that is a number. No sleeps, no sockets.

mod bulk;
mod calls;
mod handshake;
mod hostile;
mod sim;
