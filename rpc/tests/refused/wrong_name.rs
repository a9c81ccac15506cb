#![allow(unused_imports)]

use tombolo_rpc::{Ctx, Never};

#[tombolo_rpc::service(name = "test/Kv")]
trait Kv {
    async fn read(&self, cx: &Ctx, key: String) -> Result<u64, Never>;
}

fn main() {}
