#![allow(unused_imports)]

use tombolo_rpc::Ctx;

#[tombolo_rpc::service(name = "test.Kv")]
trait Kv {
    async fn read(&self, cx: &Ctx, key: String) -> std::io::Result<u64>;
}

fn main() {}
