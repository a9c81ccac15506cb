//! What connections cost in bytes: those on which nothing happens, and those that have been closed.

mod common;

use common::Fabric;
use tokio::runtime::Runtime;
use tombolo_transport::pool::Geometry;
use tombolo_transport::{ConnectOptions, Endpoint, ListenOptions, MessageListener, Messages, Port, Sizes};

const CONNECTIONS: u64 = 2000;
/// Of each end, beside its ring.
const BYTES_MAX: u64 = 2048;
/// What an allocator keeps beside each piece, as a rule: its size, and half of what it is rounded up by.
const BYTES_BESIDE: u64 = 16;
/// The smallest rings of a whole page.
const SIZES: Sizes = Sizes { slots: 64, ring_bytes: 4096, loans: 0, loan_bytes: 0, message_bytes_max: 4096 };

/// Of these nothing may be left. `cargo xtask verify` makes ten million, between processes.
const CLOSED: u64 = 20_000;

async fn park(connection: Messages) {
    let (_sender, mut receiver) = connection.split();
    let _ = receiver.recv().await;
}

/// Two processes of a kernel and its broker, all on this thread: allocations are counted by thread.
struct OneThread {
    runtime: Runtime,
    fabric: Fabric,
    client: Endpoint,
    listener: MessageListener,
    _server: Endpoint,
}

impl OneThread {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let geometry = Geometry { members_max: 2, extent_bytes: 64 << 20, ..Geometry::default() };
        let (fabric, client, server, listener) = runtime.block_on(async {
            let fabric = Fabric::with_geometry(0, geometry).await;
            let server = fabric.brokers[0].endpoint().await.unwrap();
            let client = fabric.brokers[0].endpoint().await.unwrap();
            let listen = ListenOptions { sizes: SIZES, ..ListenOptions::default() };
            let listener = server.listen_messages(Port(1), listen).await.unwrap();
            (fabric, client, server, listener)
        });
        Self { runtime, fabric, client, listener, _server: server }
    }

    /// Makes so many connections; `take` gets both ends of each.
    fn connect(&mut self, count: u64, take: impl Fn(Messages)) {
        let options = ConnectOptions { sizes: SIZES, ..ConnectOptions::default() };
        let Self { runtime, client, listener, .. } = self;
        runtime.block_on(async {
            let addr = listener.local_addr();
            for _ in 0..count {
                let connect = client.connect_messages_with(addr, &options);
                let (near, far) = tokio::join!(connect, listener.accept());
                [near.unwrap(), far.unwrap().0].into_iter().for_each(&take);
                tokio::task::yield_now().await;
            }
        });
    }

    fn heap_used_bytes(&self) -> u64 {
        let status = self.runtime.block_on(self.fabric.brokers[0].status()).unwrap();
        status.heap_bytes - status.heap_free_bytes
    }
}

#[test]
fn an_end_that_is_parked_holds_little_beside_its_ring() {
    let mut one = OneThread::new();
    let spawn = |end| drop(tokio::spawn(park(end)));
    // What is made once is made with the first.
    one.connect(1, spawn);
    let used_before = one.heap_used_bytes();
    let private = allocation_counter::measure(|| one.connect(CONNECTIONS, spawn));
    let ends = 2 * CONNECTIONS;
    let ring = u64::from(SIZES.slots) * 64 + u64::from(SIZES.ring_bytes);
    let shared_bytes = (one.heap_used_bytes() - used_before) / ends - ring;
    let private_bytes = (private.bytes_current as u64 + BYTES_BESIDE * private.count_current as u64) / ends;
    println!("of each end, beside its ring of {ring} bytes: {shared_bytes} shared, {private_bytes} private");
    assert!(shared_bytes + private_bytes <= BYTES_MAX, "{shared_bytes} shared, {private_bytes} private");
}

#[test]
fn nothing_is_left_of_connections_that_were_closed() {
    let mut one = OneThread::new();
    let close_all = |one: &mut OneThread, count| {
        one.connect(count, drop);
        one.runtime.block_on(one.fabric.wait_until_free(0));
    };
    close_all(&mut one, CLOSED / 10);
    let left = allocation_counter::measure(|| close_all(&mut one, CLOSED));
    assert!(left.bytes_current < i64::try_from(CLOSED).unwrap(), "{left:?}: a byte of each, or more");
    assert_eq!(one.heap_used_bytes(), 0);
}
