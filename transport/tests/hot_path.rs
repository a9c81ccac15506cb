//! What a message costs beside moving its bytes: no allocation, no lock that sleeps, no system call. Both are counted, by an allocator that
//! counts and by a filter that kills whoever enters the kernel.
//!
//! Both ends are in the hands of one thread, so that neither ever waits; waiting may sleep, and then does enter the kernel.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::Fabric;
use seccompiler::{SeccompAction, SeccompFilter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tombolo_transport::{
    Addr, Cid, ConnectOptions, Endpoint, ListenOptions, Messages, Port, Sizes, Stream, TryRead, TryRecv,
};

/// For the process that is filtered: what it does.
const SHAPE: &str = "TOMBOLO_TEST_SHAPE";
const WARM: usize = 300;
const TIMES: usize = 10_000;
const SIGSYS: i32 = 31;

/// Connections between two kernels, both ends in our hands.
struct Ends {
    near: Messages,
    far: Messages,
    near_stream: Stream,
    far_stream: Stream,
    buffer: Vec<u8>,
    _fabric: (Fabric, [Endpoint; 2], Runtime),
}

impl Ends {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sizes = Sizes { loans: 2, loan_bytes: 64 * 1024, ..Sizes::default() };
        let (fabric, endpoints, messages, streams) = runtime.block_on(async {
            let fabric = Fabric::new(1).await;
            let server = fabric.brokers[1].endpoint().await.unwrap();
            let client = fabric.brokers[0].endpoint().await.unwrap();
            let listen = || ListenOptions { sizes, ..ListenOptions::default() };
            let connect = ConnectOptions { sizes, ..ConnectOptions::default() };
            let mut listener = server.listen_messages(Port(1), listen()).await.unwrap();
            let near = client.connect_messages_with(Addr::new(Cid(3), Port(1)), &connect).await.unwrap();
            let messages = (near, listener.accept().await.unwrap().0);
            let mut listener = server.listen(Port(2), ListenOptions::default()).await.unwrap();
            let near = client.connect(Addr::new(Cid(3), Port(2))).await.unwrap();
            let streams = (near, listener.accept().await.unwrap().0);
            (fabric, [client, server], messages, streams)
        });
        Self {
            near: messages.0,
            far: messages.1,
            near_stream: streams.0,
            far_stream: streams.1,
            buffer: Vec::with_capacity(128 * 1024),
            _fabric: (fabric, endpoints, runtime),
        }
    }

    /// There and back.
    fn messages(&mut self, len: usize) {
        let message = [7; 8192];
        for there in [true, false] {
            let (from, to) = match there {
                true => (&mut self.near, &mut self.far),
                false => (&mut self.far, &mut self.near),
            };
            assert!(from.try_send(&message[..len]).unwrap());
            assert_eq!(to.try_recv(&mut self.buffer).unwrap(), TryRecv::Message);
            assert_eq!(self.buffer.len(), len);
        }
    }

    /// In a batch.
    fn batch(&mut self) {
        for len in 0..40 {
            assert!(self.near.try_put_parts(&[&[7; 40][..len], &[7; 24]]).unwrap());
        }
        assert!(self.near.try_flush().unwrap());
        for len in 0..40 {
            assert_eq!(self.far.try_recv(&mut self.buffer).unwrap(), TryRecv::Message);
            assert_eq!(self.buffer.len(), len + 24);
        }
    }

    /// As tasks do it.
    fn awaited_messages(&mut self) {
        at_once(self.near.send(&[7; 56])).unwrap();
        assert_eq!(self.far.try_recv(&mut self.buffer).unwrap(), TryRecv::Message);
    }

    /// Written in place, read in place, returned.
    fn loans(&mut self) {
        let mut loan = at_once(self.near.loan(64 * 1024)).unwrap();
        loan.write_at(0, &[7; 4096]).unwrap();
        at_once(self.near.send_loan(loan)).unwrap();
        let received = at_once(self.far.recv_loan()).unwrap().unwrap();
        let mut start = [0; 4096];
        received.read_at(0, &mut start).unwrap();
        assert_eq!(start, [7; 4096]);
    }

    /// As loans, without one.
    fn in_place(&mut self) {
        assert!(
            self.near
                .try_send_in_place(64 * 1024, |message| message.write_at(0, &[7; 4096]).unwrap())
                .unwrap()
        );
        let mut start = [0; 4096];
        let read = self.far.try_recv_in_place(|message| message.read_at(0, &mut start));
        assert!(matches!(read, Ok(TryRead::Read(Ok(())))), "{read:?}");
        assert_eq!(start, [7; 4096]);
    }

    /// Several at once.
    fn many(&mut self) {
        let message = [7; 64];
        assert_eq!(self.near.try_put_many((0..60).map(|len| &message[..len])).unwrap(), 60);
        assert!(self.near.try_flush().unwrap());
        let mut count = 0;
        while count < 60 {
            let found = self.far.try_recv_many(|message| {
                assert_eq!(message.len(), count);
                count += 1;
            });
            assert!(matches!(found, Ok(TryRead::Read(_))), "{found:?}");
        }
    }

    fn stream(&mut self) {
        let mut out = [0; 16 * 1024];
        for len in [64, out.len()] {
            at_once(self.near_stream.write_all(&[7; 16 * 1024][..len])).unwrap();
            at_once(self.far_stream.read_exact(&mut out[..len])).unwrap();
        }
    }

    fn run(&mut self, shape: &str) {
        match shape {
            "inline" => self.messages(56),
            "ring" => self.messages(4096),
            "batch" => self.batch(),
            "awaited" => self.awaited_messages(),
            "loans" => self.loans(),
            "in place" => self.in_place(),
            "many" => self.many(),
            "stream" => self.stream(),
            "entering the kernel" => {
                self.messages(56);
                let _ = rustix::process::getppid();
            }
            other => panic!("no shape is called {other}"),
        }
    }
}

/// What must not have to wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

const SHAPES: [&str; 8] = ["inline", "ring", "batch", "awaited", "loans", "in place", "many", "stream"];

#[test]
fn nothing_is_allocated_per_message() {
    let mut ends = Ends::new();
    for shape in SHAPES {
        (0..WARM).for_each(|_| ends.run(shape));
        let counted = allocation_counter::measure(|| (0..TIMES).for_each(|_| ends.run(shape)));
        assert_eq!(counted.count_total, 0, "{shape}: {counted:?}");
    }
}

#[test]
fn the_allocator_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![0_u8; 100])));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn no_message_enters_the_kernel() {
    for shape in SHAPES {
        let output = filtered(shape);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && out.contains("all done"),
            "{shape}: {:?} {out} {err}",
            output.status
        );
    }
}

#[test]
fn whoever_enters_the_kernel_is_killed() {
    assert_eq!(filtered("entering the kernel").status.signal(), Some(SIGSYS));
}

/// Runs a shape in a process of its own, in a thread that may make no system call.
fn filtered(shape: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["runs_its_shape_when_started_as_a_child", "--exact", "--nocapture"])
        .env(SHAPE, shape)
        .output()
        .unwrap()
}

/// What a started child does. Without the environment variable this test is empty.
#[test]
fn runs_its_shape_when_started_as_a_child() {
    let Ok(shape) = std::env::var(SHAPE) else { return };
    let mut ends = Ends::new();
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    std::thread::spawn(move || {
        (0..WARM).for_each(|_| ends.run(&shape));
        // Nothing is allowed: not even to end.
        let filter = SeccompFilter::new(
            Default::default(),
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        (0..TIMES).for_each(|_| ends.run(&shape));
        done.store(true, Ordering::Release);
        loop {
            std::hint::spin_loop();
        }
    });
    while !is_done.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("all done");
    std::process::exit(0);
}
