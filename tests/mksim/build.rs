//! The library that is preloaded into User-mode Linux kernels is the one that the control plane has for its own.

#[path = "../../control/build/xstate.rs"]
mod xstate;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    xstate::compile("../../control/src/keeper/xstate".as_ref())
}
