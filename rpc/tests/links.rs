//! Who may link with whom, and what old and new peers make of each other.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{KvClient, KvServer, Store, config, pipe, serve, socket, soon, try_link};
use tombolo_rpc::{
    Auth, CallError, Ctx, Failure, LinkConfig, LinkError, Metadata, Never, Outcome, Reject, Router,
};
use tombolo_transport::{Cid, Incarnation, Messages};

const BOOT: Incarnation = Incarnation([4; 16]);

fn agent(secret: [u8; 32], boot: Incarnation) -> LinkConfig {
    config("agent").identity(Cid(3), boot).auth(Auth::Secret(secret))
}

/// A control plane that knows one boot of cid 3 and its secret.
fn control() -> LinkConfig {
    config("control").identity(Cid::HOST, Incarnation([1; 16])).auth(Auth::choose(|peer| {
        match (peer.cid, peer.incarnation) {
            (Cid(3), BOOT) => Ok([7; 32]),
            (Cid(3), stale) => Err(format!("stale incarnation {stale} of cid 3, which has rebooted")),
            (cid, _) => Err(format!("no kernel with cid {cid}")),
        }
    }))
}

async fn verdicts(agent: LinkConfig, control: LinkConfig) -> (String, String) {
    let (a, b) = soon(try_link(socket(), (agent, control), (Router::new(), Router::new()))).await;
    // Either side may have been satisfied first; then its link ends at once.
    let why = |end: Result<tombolo_rpc::Link, LinkError>| async {
        match end {
            Ok(link) => link.closed().await.to_string(),
            Err(error) => error.to_string(),
        }
    };
    soon(async { (why(a).await, why(b).await) }).await
}

#[tokio::test]
async fn both_ends_know_and_have_proven_who_they_are() {
    let (a, b) = try_link(socket(), (agent([7; 32], BOOT), control()), (Router::new(), Router::new())).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((b.peer().cid, b.peer().incarnation, b.peer().authenticated), (Cid(3), BOOT, true));
    assert_eq!((&*a.peer().role, a.peer().authenticated), ("control", true));
}

#[tokio::test]
async fn wrong_secret_stale_incarnation_and_stranger_are_refused_with_reasons_on_both_sides() {
    let (a, b) = verdicts(agent([8; 32], BOOT), control()).await;
    assert!(a.contains("secret") && b.contains("secret"), "{a} / {b}");
    let (a, b) = verdicts(agent([7; 32], Incarnation([5; 16])), control()).await;
    assert!(a.contains("stale incarnation 0505") && b.contains("stale incarnation 0505"), "{a} / {b}");
    let (a, b) = verdicts(agent([7; 32], BOOT).identity(Cid(9), BOOT), control()).await;
    assert!(a.contains("no kernel with cid 9") && b.contains("no kernel with cid 9"), "{a} / {b}");
}

#[tokio::test]
async fn unexpected_incarnation_of_the_acceptor_is_refused() {
    let mut ours = agent([7; 32], BOOT);
    ours.expect_incarnation = Some(Incarnation([2; 16]));
    let (a, b) = verdicts(ours, control()).await;
    assert!(a.contains("expected 0202") && b.contains("expected 0202"), "{a} / {b}");
}

#[tokio::test]
async fn peer_that_never_says_hello_is_given_up() {
    let (a, _b) = pipe();
    let mut ours = config("client");
    ours.handshake_timeout = Duration::from_millis(20);
    let error = soon(tombolo_rpc::Link::connect(a, ours, Router::new())).await.unwrap_err();
    assert!(matches!(error, LinkError::Silent { .. }), "{error}");
}

#[tokio::test]
async fn peer_of_another_protocol_is_refused() {
    let (a, mut b) = pipe();
    let stranger = tokio::spawn(async move {
        b.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        while let Ok(Some(_)) = b.recv().await {}
    });
    let error = soon(tombolo_rpc::Link::connect(a, config("client"), Router::new())).await.unwrap_err();
    assert!(matches!(error, LinkError::Violation(_)), "{error}");
    soon(stranger).await.unwrap();
}

#[tokio::test]
async fn vanished_peer_ends_the_link() {
    let (a, b) = tokio::net::UnixStream::pair().unwrap();
    let messages = |io| Messages::framed(io, common::addr(3), common::addr(2), 1 << 20);
    let (client, server) = try_link(
        (messages(a), messages(b)),
        (config("client"), config("server")),
        (Router::new(), Router::new().service(KvServer::new(Store::default()))),
    )
    .await;
    let (client, server) = (client.unwrap(), server.unwrap());
    let hanging = tokio::spawn(KvClient::new(client.clone()).hang().no_deadline());
    KvClient::new(client.clone()).read("k".into()).await.unwrap();
    drop(server);
    let error = soon(hanging).await.unwrap().unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::LinkLost { .. })), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(soon(client.closed()).await == LinkError::Closed);
}

mod v1 {
    use tombolo_rpc::{Ctx, Never};

    #[tombolo_rpc::service(name = "tombolo.test.Evolving")]
    pub trait Evolving {
        async fn same(&self, cx: &Ctx, a: u32) -> Result<u32, Never>;
        async fn changed(&self, cx: &Ctx, a: u32) -> Result<u32, Never>;
        async fn removed(&self, cx: &Ctx) -> Result<(), Never>;
    }
}

mod v2 {
    use tombolo_rpc::{Ctx, Never};

    /// `same` has moved, `added` is new, `removed` is gone, `changed` takes another type. As postcard writes them, the
    /// arguments of both `changed` could be taken for each other.
    #[tombolo_rpc::service(name = "tombolo.test.Evolving")]
    pub trait Evolving {
        async fn added(&self, cx: &Ctx) -> Result<String, Never>;
        async fn changed(&self, cx: &Ctx, a: u64) -> Result<u32, Never>;
        async fn same(&self, cx: &Ctx, b: u32) -> Result<u32, Never>;
    }
}

#[derive(Default)]
struct Evolved {
    changed: AtomicUsize,
}

impl v1::Evolving for Evolved {
    async fn same(&self, _: &Ctx, a: u32) -> Result<u32, Never> {
        Ok(a + 1)
    }
    async fn changed(&self, _: &Ctx, a: u32) -> Result<u32, Never> {
        self.changed.fetch_add(1, Ordering::SeqCst);
        Ok(a)
    }
    async fn removed(&self, _: &Ctx) -> Result<(), Never> {
        Ok(())
    }
}

impl v2::Evolving for Evolved {
    async fn added(&self, _: &Ctx) -> Result<String, Never> {
        Ok("new".into())
    }
    async fn changed(&self, _: &Ctx, a: u64) -> Result<u32, Never> {
        self.changed.fetch_add(1, Ordering::SeqCst);
        Ok(a as u32)
    }
    async fn same(&self, _: &Ctx, b: u32) -> Result<u32, Never> {
        Ok(b + 1)
    }
}

#[tokio::test]
async fn old_client_and_new_server_agree_or_refuse_but_never_misread() {
    let evolved = Arc::new(Evolved::default());
    let router = Router::new().service(v2::EvolvingServer::shared(evolved.clone()));
    let (a, b) = try_link(pipe(), (config("old"), config("new")), (Router::new(), router)).await;
    let (a, _b) = (a.unwrap(), b.unwrap());
    let old = v1::EvolvingClient::new(a);
    soon(async {
        assert_eq!(old.same(1).await, Ok(2));
        let error = old.changed(1).await.unwrap_err();
        let Some(Failure::SchemaMismatch { method, ours, theirs }) = error.failure() else {
            panic!("{error}")
        };
        assert_eq!((&**method, ours != theirs), ("tombolo.test.Evolving/changed", true));
        assert!(error.to_string().contains(&format!("{ours:016x}")), "{error}");
        assert_eq!((error.outcome(), error.retryable()), (Outcome::NotStarted, false));
        assert_eq!(evolved.changed.load(Ordering::SeqCst), 0, "the handler was started");
        let error = old.removed().await.unwrap_err();
        let unknown =
            Failure::UnknownMethod { service: "tombolo.test.Evolving".into(), method: "removed".into() };
        assert_eq!((error.outcome(), error), (Outcome::NotStarted, CallError::Failed(unknown)));
        // Known beforehand, too.
        assert!(matches!(old.check().await, Err(Failure::SchemaMismatch { .. })));
    })
    .await;
}

#[tokio::test]
async fn new_client_and_old_server_agree_or_refuse_but_never_misread() {
    let router = Router::new().service(v1::EvolvingServer::new(Evolved::default()));
    let (a, b) = try_link(pipe(), (config("new"), config("old")), (Router::new(), router)).await;
    let (a, _b) = (a.unwrap(), b.unwrap());
    let new = v2::EvolvingClient::new(a);
    soon(async {
        assert_eq!(new.same(1).await, Ok(2));
        assert!(matches!(new.added().await.unwrap_err().failure(), Some(Failure::UnknownMethod { .. })));
        assert!(matches!(new.changed(1).await.unwrap_err().failure(), Some(Failure::SchemaMismatch { .. })));
    })
    .await;
}

#[tokio::test]
async fn service_that_is_not_there_is_named() {
    let (a, b) = try_link(pipe(), (config("a"), config("b")), (Router::new(), Router::new())).await;
    let (a, _b) = (a.unwrap(), b.unwrap());
    let error = soon(KvClient::new(a.clone()).read("k".into())).await.unwrap_err();
    let unknown = Failure::UnknownService { service: "tombolo.test.Kv".into() };
    assert_eq!(error, CallError::Failed(unknown.clone()));
    assert_eq!(soon(KvClient::new(a).check()).await, Err(unknown));
}

#[tokio::test]
async fn interceptor_sees_metadata_and_refuses_before_the_handler_starts() {
    let store = Arc::new(Store::default());
    let router = Router::new().service(KvServer::shared(store.clone())).intercept(|call| {
        match (call.method.name, call.metadata.trace()) {
            ("hang", _) => Err(Reject::Overloaded { retry_after: Duration::from_millis(7) }),
            ("read", None) => Err(Reject::Refused(format!("{} must trace its reads", call.peer.role))),
            _ => Ok(()),
        }
    });
    let counted = router.clone();
    let (a, b) = try_link(pipe(), (config("client"), config("b")), (Router::new(), router)).await;
    let (a, _b) = (a.unwrap(), b.unwrap());
    let kv = KvClient::new(a);
    soon(async {
        let error = kv.read("k".into()).await.unwrap_err();
        assert_eq!(error, CallError::Failed(Failure::Refused("client must trace its reads".into())));
        let error = kv.hang().await.unwrap_err();
        let retry_after = Duration::from_millis(7);
        assert_eq!(error, CallError::Failed(Failure::Overloaded { retry_after }));
        assert_eq!(store.hung.load(Ordering::SeqCst), 0);
        let mut metadata = Metadata::new();
        metadata.set_trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
        kv.read("k".into()).metadata(&metadata).await.unwrap();
        kv.read("/".into()).metadata(&metadata).await.unwrap_err();
    })
    .await;
    let read = counted.counters("tombolo.test.Kv", "read").unwrap();
    assert_eq!((read.calls(), read.errors(), read.in_flight()), (2, 1, 0));
    assert!(read.latency_ns_sum() < 20_000_000_000);
    assert_eq!(counted.counters("tombolo.test.Kv", "hang").unwrap().calls(), 0);
}

#[tokio::test]
async fn calls_beyond_the_limit_are_shed_and_the_rest_goes_on() {
    let mut theirs = config("server");
    theirs.calls_max = 4;
    let store = Arc::new(Store::default());
    let router = Router::new().service(KvServer::shared(store.clone()));
    let (a, b) = try_link(pipe(), (config("client"), theirs), (Router::new(), router)).await;
    let (a, _b) = (a.unwrap(), b.unwrap());
    let kv = KvClient::new(a);
    soon(async {
        let hanging: Vec<_> = (0..4).map(|_| tokio::spawn(kv.hang().no_deadline())).collect();
        while store.hanging.load(Ordering::SeqCst) < 4 {
            tokio::task::yield_now().await;
        }
        let error = kv.read("k".into()).await.unwrap_err();
        assert!(matches!(error.failure(), Some(Failure::Overloaded { .. })) && error.retryable(), "{error}");
        hanging[0].abort();
        while kv.read("k".into()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn too_long_argument_and_answer_fail_their_call_only() {
    let mut ours = config("client");
    ours.message_bytes_max = 100_000;
    let store = Arc::new(Store::default());
    let router = Router::new().service(KvServer::shared(store));
    let mut theirs = config("server");
    theirs.message_bytes_max = 200_000;
    let (a, b) = try_link(pipe(), (ours, theirs), (Router::new(), router)).await;
    let (a, _b) = (a.unwrap(), b.unwrap());
    let kv = KvClient::new(a);
    soon(async {
        let error = kv.write("k".into(), vec![0; 300_000].into()).await.unwrap_err();
        assert!(matches!(error.failure(), Some(Failure::TooLarge { max: 200_000, .. })), "{error}");
        assert_eq!(error.outcome(), Outcome::NotStarted);
        kv.write("k".into(), vec![0; 150_000].into()).await.unwrap();
        let error = kv.read("k".into()).await.unwrap_err();
        assert!(matches!(error.failure(), Some(Failure::TooLarge { max: 100_000, .. })), "{error}");
        assert_eq!(kv.read("none".into()).await, Ok(None));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_from_many_tasks_are_each_answered_right() {
    let (client, server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    soon(async {
        let mut tasks = Vec::new();
        for task in 0..50 {
            let kv = kv.clone();
            tasks.push(tokio::spawn(async move {
                for i in 0..200 {
                    let key = format!("{task}/{i}");
                    kv.write(key.clone(), key.clone().into()).await.unwrap();
                    assert_eq!(kv.read(key.clone()).await.unwrap(), Some(key.into()));
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
    assert_eq!(server.in_flight(), (0, 0));
}
