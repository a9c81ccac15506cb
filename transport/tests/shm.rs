//! Shared memory between kernels of one fabric: what applications see, and what deaths of brokers and kernels do to them.

mod common;

use std::time::{Duration, Instant};

use common::{Fabric, WATCHDOG};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tombolo_transport::broker::Policy;
use tombolo_transport::pool::{Geometry, PoolSource};
use tombolo_transport::{
    Addr, Broker, BrokerConfig, BrokerHandle, Cid, ConnectOptions, Endpoint, Error, ListenOptions, Member,
    MessageListener, Messages, Pool, Port, ResetCause, Sizes, TryRecv,
};

async fn listen(broker: &BrokerHandle, options: ListenOptions) -> (Endpoint, MessageListener) {
    let endpoint = broker.endpoint().await.unwrap();
    let listener = endpoint.listen_messages(Port::ANY, options).await.unwrap();
    (endpoint, listener)
}

/// A message connection from `caller` to `callee`, with the endpoints of both.
async fn connected(
    fabric: &Fabric,
    caller: usize,
    callee: usize,
    sizes: Sizes,
) -> (Messages, Messages, [Endpoint; 2]) {
    let (server, mut listener) =
        listen(&fabric.brokers[callee], ListenOptions { sizes, ..ListenOptions::default() }).await;
    let client = fabric.brokers[caller].endpoint().await.unwrap();
    let options = ConnectOptions { sizes, ..ConnectOptions::default() };
    let near = client.connect_messages_with(listener.local_addr(), &options).await.unwrap();
    let (far, from) = listener.accept().await.unwrap();
    assert_eq!((from, far.local_addr()), (near.local_addr(), near.peer_addr()));
    (near, far, [client, server])
}

async fn cause_of_end(messages: &mut Messages) -> ResetCause {
    loop {
        match timeout(WATCHDOG, messages.recv()).await.expect("a hang instead of an error") {
            Ok(Some(_)) => {}
            Err(Error::Reset { cause, .. }) => return cause,
            other => panic!("expected a reset, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn very_long_messages_travel_as_loans_and_are_returned() {
    let fabric = Fabric::new(1).await;
    let sizes = Sizes { ring_bytes: 4096, loans: 2, loan_bytes: 1 << 20, ..Sizes::default() };
    let (near, far, _endpoints) = connected(&fabric, 0, 1, sizes).await;
    assert_eq!(near.max_len(), 1 << 20);
    let (mut sender, _near) = near.split();
    let (_far, mut receiver) = far.split();
    let sending = tokio::spawn(async move {
        for round in 0..50u8 {
            let mut loan = sender.loan(1_000_000).await.unwrap();
            loan.write_at(0, &[round]).unwrap();
            loan.write_at(999_999, &[round]).unwrap();
            assert!(loan.write_at(999_999, &[0, 0]).is_err());
            sender.send_loan(loan).await.unwrap();
        }
        sender
    });
    for round in 0..50u8 {
        let message = timeout(WATCHDOG, receiver.recv_loan()).await.unwrap().unwrap().unwrap();
        let mut bytes = [9; 2];
        message.read_at(0, &mut bytes[..1]).unwrap();
        message.read_at(999_999, &mut bytes[1..]).unwrap();
        assert_eq!((message.len(), bytes), (1_000_000, [round; 2]));
        assert!(message.read_at(1_000_000, &mut [0]).is_err());
    }
    let mut sender = sending.await.unwrap();
    // The ordinary way through, too; and a loan of another connection is refused.
    sender.send(&vec![7; 900_000]).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap().len(), 900_000);
    let (other, ..) = connected(&fabric, 0, 1, sizes).await;
    let (mut other, _rx) = other.split();
    let loan = other.loan(10).await.unwrap();
    assert!(matches!(sender.send_loan(loan).await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn a_loan_keeps_the_connection_and_its_memory() {
    let fabric = Fabric::new(1).await;
    let sizes = Sizes { loans: 1, loan_bytes: 4096, ..Sizes::default() };
    let (mut near, far, endpoints) = connected(&fabric, 0, 1, sizes).await;
    let (mut sender, rx) = far.split();
    let mut loan = sender.loan(100).await.unwrap();
    loan.write_at(0, &[5; 100]).unwrap();
    sender.send_loan(loan).await.unwrap();
    let received = near_recv_loan(&mut near).await;
    drop(near);
    drop((sender, rx));
    drop(endpoints);
    let status = fabric.brokers[0].status().await.unwrap();
    assert_eq!(status.connections, 1, "the loan is still held");
    let mut bytes = [0; 100];
    received.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [5; 100]);
    drop(received);
    fabric.wait_until_free(0).await;
    fabric.wait_until_free(1).await;
}

async fn near_recv_loan(near: &mut Messages) -> tombolo_transport::Received {
    timeout(WATCHDOG, near.recv_loan()).await.unwrap().unwrap().unwrap()
}

#[test]
fn messages_work_without_a_runtime_once_connected() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_fabric, mut near, mut far, _endpoints) = runtime.block_on(async {
        let fabric = Fabric::new(1).await;
        let (near, far, endpoints) = connected(&fabric, 0, 1, Sizes::default()).await;
        (fabric, near, far, endpoints)
    });
    let deadline = || Instant::now() + WATCHDOG;
    let echo = std::thread::spawn(move || {
        let mut message = Vec::new();
        while far.recv_busy(&mut message, deadline()).unwrap() == TryRecv::Message {
            assert!(far.try_send(&message).unwrap());
        }
        far
    });
    let mut back = Vec::new();
    for len in (0..2000).chain([50_000]) {
        let message = vec![len as u8; len];
        assert!(near.try_send(&message).unwrap());
        assert_eq!(near.recv_busy(&mut back, deadline()).unwrap(), TryRecv::Message);
        assert_eq!(back, message);
    }
    assert_eq!(near.recv_busy(&mut back, Instant::now()).unwrap(), TryRecv::Empty);
    runtime.block_on(near.shutdown()).unwrap();
    echo.join().unwrap();
}

#[tokio::test]
async fn a_name_leads_to_a_service_in_another_kernel() {
    let fabric = Fabric::new(2).await;
    let (_server, mut listener) = listen(&fabric.brokers[2], ListenOptions::named("kv")).await;
    let client = fabric.brokers[1].endpoint().await.unwrap();
    let addr = client.resolve("k2/kv").await.unwrap();
    assert_eq!(addr, listener.local_addr());
    client.connect_messages(addr).await.unwrap();
    listener.accept().await.unwrap();
    let reason = |result: Result<Addr, Error>| match result {
        Err(Error::NotFound { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason(client.resolve("moon/kv").await).contains("no kernel named `moon`"));
    assert!(reason(client.resolve("k2/other").await).contains("no service named `other`"));
    assert_eq!(fabric.brokers[2].services().await.unwrap(), [("kv".to_owned(), addr.port)]);
    let again = client.listen(Port::ANY, ListenOptions::named("kv")).await.unwrap();
    let taken = client.listen(Port::ANY, ListenOptions::named("kv")).await;
    assert!(matches!(taken, Err(Error::NameInUse { .. })), "{taken:?}");
    drop(again);
}

#[tokio::test]
async fn policy_denies_spawned_kernels_each_other() {
    let fabric = Fabric::new(2).await;
    fabric.brokers[2].set_policy(Policy::default()).await.unwrap();
    let (_server, listener) = listen(&fabric.brokers[2], ListenOptions::default()).await;
    let addr = listener.local_addr();
    let from_web = fabric.brokers[1].endpoint().await.unwrap();
    let denied = from_web.connect_messages(addr).await;
    assert!(
        matches!(&denied, Err(Error::Denied { reason, .. }) if reason.contains("policy allow")),
        "{denied:?}"
    );
    let from_host = fabric.brokers[0].endpoint().await.unwrap();
    from_host.connect_messages(addr).await.unwrap();
}

#[tokio::test]
async fn kinds_do_not_mix_and_a_full_extent_is_named() {
    let fabric = Fabric::new(1).await;
    let (server, listener) = listen(&fabric.brokers[1], ListenOptions::default()).await;
    let refused = server.connect(listener.local_addr()).await;
    assert!(
        matches!(&refused, Err(Error::Refused { reason, .. }) if reason.contains("messages")),
        "{refused:?}"
    );
    let client = fabric.brokers[0].endpoint().await.unwrap();
    let sizes = Sizes { ring_bytes: 64 << 20, ..Sizes::default() };
    let options = ConnectOptions { sizes, ..ConnectOptions::default() };
    let full = client.connect_messages_with(listener.local_addr(), &options).await;
    assert!(matches!(full, Err(Error::NoMemory { cid: Cid::HOST, .. })), "{full:?}");
    let absent = client.connect_messages(Addr::new(Cid(99), Port(5))).await;
    assert!(matches!(absent, Err(Error::Refused { .. })), "{absent:?}");
    let nonsense = client.connect_messages(Addr::new(Cid(3), Port::ANY)).await;
    assert!(matches!(nonsense, Err(Error::Invalid(_))), "{nonsense:?}");
}

#[tokio::test]
async fn closing_with_unread_data_is_a_reset_and_without_is_an_end() {
    let fabric = Fabric::new(1).await;
    let (mut near, far, _endpoints) = connected(&fabric, 0, 1, Sizes::default()).await;
    drop(far);
    assert_eq!(timeout(WATCHDOG, near.recv()).await.unwrap().unwrap(), None);
    let (mut near, mut far, _endpoints) = connected(&fabric, 0, 1, Sizes::default()).await;
    near.send(b"unread").await.unwrap();
    far.send(b"last").await.unwrap();
    drop(far);
    assert_eq!(near.recv().await.unwrap().unwrap(), b"last"[..]);
    assert_eq!(cause_of_end(&mut near).await, ResetCause::PeerClosed);
}

#[tokio::test]
async fn memory_of_thousands_of_connections_comes_back() {
    let fabric = Fabric::new(1).await;
    let server = fabric.brokers[1].endpoint().await.unwrap();
    let mut listener = server.listen(Port(7000), ListenOptions::default()).await.unwrap();
    let accepting = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"hello").await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let client = fabric.brokers[0].endpoint().await.unwrap();
    for round in 0..2000 {
        let mut stream = client.connect(Addr::new(Cid(3), Port(7000))).await.unwrap();
        match round % 4 {
            0 => drop(stream),
            1 => {
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).await.unwrap();
                assert_eq!(&hello, b"hello");
            }
            2 => stream.write_all(&[0; 1000]).await.unwrap(),
            _ => drop(stream.split().1),
        }
    }
    accepting.abort();
    fabric.wait_until_free(0).await;
    fabric.wait_until_free(1).await;
}

#[tokio::test]
async fn bells_that_are_lost_are_found_by_the_timer() {
    let fabric = Fabric::new(1).await;
    // No line: every bell between the two is lost.
    fabric.brokers[0].remove_line(Member(1));
    fabric.brokers[1].remove_line(Member::PRIMARY);
    let (mut near, mut far, _endpoints) = connected(&fabric, 0, 1, Sizes::default()).await;
    for _ in 0..3 {
        let waiting = tokio::spawn(async move {
            let message = timeout(WATCHDOG, far.recv()).await.unwrap().unwrap();
            (far, message)
        });
        // Let the receiver park.
        tokio::time::sleep(Duration::from_millis(20)).await;
        near.send(b"hello").await.unwrap();
        let (back, message) = waiting.await.unwrap();
        assert_eq!(message.unwrap(), b"hello"[..]);
        far = back;
    }
    let found = fabric.brokers[1].status().await.unwrap().found_by_timer;
    assert!(found > 0, "the timer found nothing");
}

#[tokio::test]
async fn a_fenced_kernel_resets_its_connections_everywhere() {
    let fabric = Fabric::new(2).await;
    let (mut from_host, mut at_k1, _a) = connected(&fabric, 0, 1, Sizes::default()).await;
    let (mut from_k2, mut at_k1_too, _b) = connected(&fabric, 2, 1, Sizes::default()).await;
    let (mut from_k2_to_host, mut at_host, _c) = connected(&fabric, 2, 0, Sizes::default()).await;
    let generation = fabric.brokers[0].generation(Member(1));
    assert_ne!(generation, 0);
    fabric.brokers[0].fence(Member(1), generation).await.unwrap();
    assert_eq!(cause_of_end(&mut from_host).await, ResetCause::PeerKernelDied);
    assert_eq!(cause_of_end(&mut from_k2).await, ResetCause::PeerKernelDied);
    // Its own side: it was alive all the while, and has to find out.
    for end in [&mut at_k1, &mut at_k1_too] {
        let cause = cause_of_end(end).await;
        assert!(matches!(cause, ResetCause::Fenced | ResetCause::BrokerDied), "{cause:?}");
    }
    from_k2_to_host.send(b"unharmed").await.unwrap();
    assert_eq!(at_host.recv().await.unwrap().unwrap(), b"unharmed"[..]);
    drop((from_host, from_k2, at_k1, at_k1_too));
    // It goes on in a new generation, and so does the endpoint of its process.
    let again = async {
        loop {
            // The first of these may still reach the broker before it has noticed.
            if let Ok(listening) = _a[1].listen_messages(Port::ANY, ListenOptions::default()).await
                && _a[0].connect_messages(listening.local_addr()).await.is_ok()
            {
                return listening;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let listening = timeout(WATCHDOG, again).await.expect("the endpoint never came back");
    drop((listening, _a, _b, _c));
    let (mut near, mut far, _d) = connected(&fabric, 0, 1, Sizes::default()).await;
    near.send(b"again").await.unwrap();
    assert_eq!(far.recv().await.unwrap().unwrap(), b"again"[..]);
    assert!(fabric.brokers[0].generation(Member(1)) > generation);
}

#[tokio::test]
async fn the_end_of_a_broker_resets_its_processes_and_their_peers() {
    let mut fabric = Fabric::new(1).await;
    let (mut near, mut far, endpoints) = connected(&fabric, 0, 1, Sizes::default()).await;
    fabric.brokers.remove(1).stop().await;
    assert_eq!(cause_of_end(&mut near).await, ResetCause::PeerKernelDied);
    assert_eq!(cause_of_end(&mut far).await, ResetCause::BrokerDied);
    let refused = endpoints[0].connect_messages(near.peer_addr()).await;
    assert!(
        matches!(&refused, Err(Error::Refused { reason, .. }) if reason.contains("not up")),
        "{refused:?}"
    );
    assert!(matches!(endpoints[1].connect_messages(near.local_addr()).await, Err(Error::Io { .. })));
    drop((near, far));
    fabric.wait_until_free(0).await;
}

#[tokio::test]
async fn a_broker_that_starts_again_leaves_alone_what_old_processes_hold() {
    let mut fabric = Fabric::new(1).await;
    let (near, far, endpoints) = connected(&fabric, 0, 1, Sizes::default()).await;
    let by_socket = Endpoint::attach(fabric.socket(Member(1))).await.unwrap();
    let before = fabric.brokers[1].status().await.unwrap();
    fabric.brokers.remove(1).stop().await;
    assert!(matches!(by_socket.resolve("x").await, Err(Error::Io { .. })), "there is no broker now");
    fabric.brokers.push(Broker::start(fabric.config(Member(1))).await.unwrap());
    fabric.join(1);
    assert!(matches!(by_socket.resolve("x").await, Err(Error::NotFound { .. })), "it attached again");
    let after = fabric.brokers[1].status().await.unwrap();
    assert!(after.generation > before.generation);
    assert_eq!(after.heap_free_bytes, before.heap_free_bytes, "the old process still holds its half");
    // New connections work beside it.
    let (mut a, mut b, _endpoints) = connected(&fabric, 0, 1, Sizes::default()).await;
    a.send(b"x").await.unwrap();
    assert_eq!(b.recv().await.unwrap().unwrap(), b"x"[..]);
    drop((a, b, _endpoints, near, far, endpoints));
    fabric.wait_until_free(1).await;
    fabric.wait_until_free(0).await;
}

#[tokio::test]
async fn a_member_has_one_broker_and_must_be_admitted() {
    let fabric = Fabric::new(1).await;
    let reason = |result: Result<BrokerHandle, Error>| match result {
        Err(Error::BadPool { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason(Broker::start(fabric.config(Member(1))).await).contains("another broker"));
    assert!(reason(Broker::start(fabric.config(Member(2))).await).contains("not admitted"));
    assert!(reason(Broker::start(fabric.config(Member(200))).await).contains("members"));
    let taken = fabric.brokers[0].admit(Member(2), Cid(3), "k2", tombolo_transport::Incarnation::NONE).await;
    assert!(matches!(taken, Err(Error::Invalid(_))), "{taken:?}");
    assert!(fabric.brokers[1].fence(Member(0), 9).await.is_err(), "only the primary fences");
    let elsewhere = BrokerConfig::new(PoolSource::path(fabric.dir.path().join("none")), Member(0));
    assert!(Broker::start(elsewhere).await.is_err());
    // A socket that somebody serves is not taken over.
    fabric.admit(Member(2)).await;
    let mut config = fabric.config(Member(2));
    config.socket = Some(fabric.socket(Member(1)));
    assert!(matches!(Broker::start(config).await, Err(Error::Io { .. })));
    Broker::start(fabric.config(Member(2))).await.unwrap();
}

#[tokio::test]
async fn processes_attach_by_socket_and_strangers_are_told_why_not() {
    let fabric = Fabric::new(1).await;
    let endpoint = Endpoint::attach(fabric.socket(Member(1))).await.unwrap();
    assert_eq!(endpoint.local_cid(), Cid(3));
    assert!(matches!(Endpoint::attach(fabric.dir.path().join("none")).await, Err(Error::Io { .. })));
    // Garbage instead of a hello, and a hello of another version, end only that attachment.
    for bytes in [&[0xff; 64][..], &[2, 0, 0, 0, 0, 99]] {
        let mut stream = tokio::net::UnixStream::connect(fabric.socket(Member(1))).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(!answer.is_empty());
    }
    endpoint.listen(Port(5000), ListenOptions::default()).await.unwrap();
}

/// Every byte of a kernel's extent may change at any time. Whoever talks to it gets errors, or data, and stays sound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_kernel_rewriting_its_extent_harms_nobody_else() {
    use std::os::unix::fs::FileExt;
    let geometry = Geometry { members_max: 4, extent_bytes: 2 << 20, black_box_records: 16 };
    let fabric = Fabric::with_geometry(2, geometry).await;
    let file = std::fs::OpenOptions::new().write(true).open(fabric.pool_path()).unwrap();
    let pool = Pool::attach(PoolSource::path(fabric.pool_path()), Member(3)).unwrap();
    let extent = pool.len_bytes() - 3 * geometry.extent_bytes; // of member 1
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let sizes = Sizes { slots: 16, ring_bytes: 4096, loans: 1, loan_bytes: 4096, ..Sizes::default() };
    for round in 0..60 {
        let (server, mut listener) =
            listen(&fabric.brokers[0], ListenOptions { sizes, ..ListenOptions::default() }).await;
        let addr = listener.local_addr();
        let client = fabric.brokers[1].endpoint().await.unwrap();
        let options = ConnectOptions { timeout: Duration::from_millis(300), sizes };
        let near = client.connect_messages_with(addr, &options).await;
        let far = timeout(Duration::from_millis(300), listener.accept()).await;
        for _ in 0..200 {
            // Mostly small strokes all over, sometimes a large one.
            let len = if random() % 50 == 0 { 65536 } else { 8 };
            let at = random() % (geometry.extent_bytes - len);
            let stroke: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random().to_ne_bytes()).collect();
            file.write_all_at(&stroke, extent + at).unwrap();
        }
        if let (Ok(mut near), Ok(Ok((mut far, _)))) = (near, far) {
            let _ = near.try_send(&[round; 100]);
            let mut message = Vec::new();
            for len in [1, 56, 57, 2000, 4000] {
                let _ = far.try_send(&vec![round; len]);
                let _ = far.try_recv(&mut message);
                let _ = far.recv_busy(&mut message, Instant::now());
                let _ = timeout(Duration::from_millis(1), far.recv_loan()).await;
            }
        }
        drop(server);
    }
    // The others are as well as ever.
    let (mut near, mut far, _endpoints) = connected(&fabric, 2, 0, Sizes::default()).await;
    near.send(b"sound").await.unwrap();
    assert_eq!(far.recv().await.unwrap().unwrap(), b"sound"[..]);
    // Once the hostile kernel is declared dead, everything that was held for it comes back.
    fabric.brokers[0].fence(Member(1), u64::MAX).await.unwrap();
    drop((near, far, _endpoints));
    fabric.wait_until_free(0).await;
    fabric.wait_until_free(2).await;
}
