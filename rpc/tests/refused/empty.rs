#[tombolo_rpc::service(name = "test.Kv")]
trait Kv {}

fn main() {}
