#![allow(unused_imports)]

use tombolo_rpc::Never;

#[tombolo_rpc::service(name = "test.Kv")]
trait Kv {
    async fn read(&self, key: String) -> Result<u64, Never>;
}

fn main() {}
