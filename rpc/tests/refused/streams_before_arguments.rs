#![allow(unused_imports)]

use tombolo_rpc::{Ctx, Never, Receiver, Sender};

#[tombolo_rpc::service(name = "test.Kv")]
trait Kv {
    async fn scan(&self, cx: &Ctx, out: Sender<u64>, input: Receiver<u64>) -> Result<u64, Never>;
    async fn load(&self, cx: &Ctx, input: Receiver<u64>, name: String) -> Result<u64, Never>;
}

fn main() {}
