//! See `build/xstate.rs`.

#[path = "build/xstate.rs"]
mod xstate;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    xstate::compile("src/keeper/xstate".as_ref())
}
