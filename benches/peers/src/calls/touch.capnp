# The measured calls, for Cap'n Proto. `touch_capnp.rs` is made of it: see the README of this workspace.
@0xc4f1b8f3a5d27e61;

interface Touch {
  touch @0 (count :UInt64, key :Text) -> (count :UInt64, key :Text);
  swallow @1 (bytes :Data) -> (number :UInt64);
}
