#[tombolo_rpc::service(name = "test.Kv")]
struct Kv;

fn main() {}
