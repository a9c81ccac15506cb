//! The pieces of a message's way, each within one thread: what they cost without any cache line moving between cores.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tombolo_benches::lines::Side;
use tombolo_benches::rings::{Halves, halves_bytes, shared_file};
use tombolo_transport::ring::HalfLayout;
use tombolo_transport::{Addr, Cid, Messages, Port};

fn message_ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("message_ring_send_and_receive");
    for len in [8, 56, 57, 1024, 16 * 1024] {
        let layout = HalfLayout::MESSAGES;
        let (file, _) = shared_file(halves_bytes(layout)).expect("memory for a ring");
        let near = Halves::make(&file, 0, layout, Side::Leader).expect("a half");
        let far = Halves::make(&file, 0, layout, Side::Follower).expect("a half");
        let (mut tx, _near_rx) = near.messages().expect("the other half");
        let (_far_tx, mut rx) = far.messages().expect("the other half");
        let message = vec![7; len];
        let mut received = Vec::with_capacity(len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len}_bytes"), |b| {
            b.iter(|| {
                tx.try_send(black_box(&message)).expect("room for one message");
                let _nobody_sleeps = tx.flush().expect("an open ring");
                rx.try_recv(&mut received).expect("the message just sent")
            });
        });
    }
    group.finish();
}

fn byte_ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("byte_ring_write_and_read");
    for len in [64, 4096, 64 * 1024] {
        let layout = HalfLayout::STREAM;
        let (file, _) = shared_file(halves_bytes(layout)).expect("memory for a ring");
        let near = Halves::make(&file, 0, layout, Side::Leader).expect("a half");
        let far = Halves::make(&file, 0, layout, Side::Follower).expect("a half");
        let (mut tx, _near_rx) = near.bytes().expect("the other half");
        let (_far_tx, mut rx) = far.bytes().expect("the other half");
        let source = vec![7; len];
        let mut target = vec![0; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len}_bytes"), |b| {
            b.iter(|| {
                assert_eq!(tx.try_write(black_box(&source)).expect("room"), len);
                let _nobody_sleeps = tx.flush().expect("an open ring");
                assert_eq!(rx.try_read(&mut target).expect("bytes"), len);
                let _nobody_sleeps = rx.flush();
            });
        });
    }
    group.finish();
}

fn framing(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = c.benchmark_group("framed_message_there");
    for len in [56, 4096] {
        let addr = Addr::new(Cid::LOCAL, Port::ANY);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut near = Messages::framed(near, addr, addr, 1 << 20);
        let mut far = Messages::framed(far, addr, addr, 1 << 20);
        let message = vec![7; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len}_bytes"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    near.send(black_box(&message)).await.expect("an open connection");
                    far.recv().await.expect("an open connection")
                })
            });
        });
    }
    group.finish();
}

criterion_group!(pieces, message_ring, byte_ring, framing);
criterion_main!(pieces);
