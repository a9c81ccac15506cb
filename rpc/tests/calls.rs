//! Calls of all four kinds, as users write them.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Entry, KvClient, KvError, KvServer, Store, config, pipe, serve, socket, soon, try_link};
use tombolo_rpc::reflection::ReflectionClient;
use tombolo_rpc::{Blob, CallError, Failure, Outcome, Router};

#[tokio::test]
async fn unary_call_returns_answer_and_application_error() {
    let (client, _server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    soon(async {
        kv.write("k".into(), b"value".into()).await.unwrap();
        assert_eq!(kv.read("k".into()).await.unwrap(), Some(Blob::from(b"value")));
        assert_eq!(kv.read("none".into()).deadline(Duration::from_secs(5)).await.unwrap(), None);
        let error = kv.read("/x".into()).await.unwrap_err();
        assert_eq!(error, CallError::App(KvError::NoSuchStore("/x".into())));
        assert_eq!(error.outcome(), Outcome::Done);
    })
    .await;
}

#[tokio::test]
async fn long_requests_and_answers_travel_in_fragments() {
    let (client, _server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    let value = Blob::from((0..5_000_000u32).map(|i| (i * 7) as u8).collect::<Vec<_>>());
    soon(async {
        kv.write("k".into(), value.clone()).await.unwrap();
        assert_eq!(kv.read("k".into()).await.unwrap(), Some(value));
    })
    .await;
}

#[tokio::test]
async fn server_stream_yields_items_then_answer() {
    let store = Arc::new(Store::default());
    for i in 0..2000 {
        store.entries.lock().unwrap().insert(format!("p{i:05}"), vec![1; 1000].into());
    }
    let (client, _server) = serve(store).await;
    let kv = KvClient::new(client);
    soon(async {
        let (call, mut rx) = kv.scan("p".into());
        let mut seen = 0;
        while let Some(Entry { key, value }) = rx.recv().await.unwrap() {
            assert_eq!((key, value.len()), (format!("p{seen:05}"), 1000));
            seen += 1;
        }
        assert_eq!(seen, 2000);
        assert_eq!(call.await.unwrap(), 2000);
    })
    .await;
}

#[tokio::test]
async fn client_stream_is_read_to_its_end() {
    let (client, _server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    soon(async {
        let (call, tx) = kv.load("n".into());
        for i in 0..300 {
            tx.send(Entry { key: i.to_string(), value: vec![0; 9000].into() }).await.unwrap();
        }
        drop(tx);
        assert_eq!(call.await.unwrap(), 300);
        assert_eq!(kv.read("n299".into()).await.unwrap().unwrap().len(), 9000);
    })
    .await;
}

#[tokio::test]
async fn empty_client_stream_ends_when_its_sender_is_dropped_first() {
    let (client, _server) = serve(Arc::default()).await;
    let (call, tx) = KvClient::new(client).load("n".into());
    drop(tx);
    assert_eq!(soon(call).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_stream_at_once_with_items_longer_than_the_window() {
    let (client, server) = try_link(
        socket(),
        (config("client"), config("server")),
        (Router::new(), Router::new().service(KvServer::new(Store::default()))),
    )
    .await;
    let (client, _server) = (client.unwrap(), server.unwrap());
    let kv = KvClient::new(client);
    soon(async {
        let (call, tx, mut rx) = kv.echo(2);
        let sending = tokio::spawn(async move {
            for i in 0..20u8 {
                tx.send(vec![i; 700_000].into()).await.unwrap();
            }
        });
        for i in 0..40u8 {
            let item = rx.recv().await.unwrap().unwrap();
            assert!(item.len() == 700_000 && item.iter().all(|b| *b == i / 2));
        }
        assert_eq!(rx.recv().await.unwrap(), None);
        sending.await.unwrap();
        assert_eq!(call.await.unwrap(), 14_000_000);
    })
    .await;
}

#[tokio::test]
async fn both_ends_call_each_other_on_one_link() {
    let routers = || Router::new().service(KvServer::new(Store::default()));
    let (a, b) = try_link(pipe(), (config("a"), config("b")), (routers(), routers())).await;
    let (a, b) = (KvClient::new(a.unwrap()), KvClient::new(b.unwrap()));
    soon(async {
        a.write("from".into(), b"a".into()).await.unwrap();
        b.write("from".into(), b"b".into()).await.unwrap();
        let (at_b, at_a) = tokio::join!(a.read("from".into()), b.read("from".into()));
        assert_eq!((at_b.unwrap(), at_a.unwrap()), (Some(b"a".into()), Some(b"b".into())));
    })
    .await;
    assert_eq!((&*a.link().peer().role, &*b.link().peer().role), ("b", "a"));
}

#[tokio::test]
async fn deadline_drops_the_handler_on_the_other_side() {
    let store = Arc::new(Store::default());
    let (client, _server) = serve(store.clone()).await;
    let kv = KvClient::new(client);
    soon(async {
        let error = kv.hang().deadline(Duration::from_millis(30)).await.unwrap_err();
        assert_eq!(error, CallError::Failed(Failure::DeadlineExceeded { started: true }));
        assert_eq!(error.outcome(), Outcome::Unknown);
        while store.hanging.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.hung.load(Ordering::SeqCst), 1);
    })
    .await;
}

#[tokio::test]
async fn dropped_call_drops_the_handler_and_spares_the_link() {
    let store = Arc::new(Store::default());
    let (client, _server) = serve(store.clone()).await;
    let kv = KvClient::new(client);
    soon(async {
        let call = tokio::spawn(kv.hang().no_deadline());
        while store.hanging.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        call.abort();
        while store.hanging.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(kv.read("k".into()).await.unwrap(), None);
        assert_eq!(kv.link().in_flight(), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn panicking_handler_fails_its_call_only() {
    let (client, _server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    soon(async {
        for late in [false, true] {
            let error = kv.panic(late).await.unwrap_err();
            let expected = Failure::HandlerPanicked(format!("as it was told, late = {late}"));
            assert_eq!(error, CallError::Failed(expected));
        }
        assert_eq!(kv.read("k".into()).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn unread_stream_stalls_only_itself() {
    let (client, _server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    soon(async {
        let (flood, mut flooded) = kv.flood(50_000);
        assert_eq!(flooded.recv().await.unwrap().unwrap().len(), 50_000);
        // A stream that the server does not read takes what its window holds, then its sender waits.
        let (_ignored, tx) = kv.ignore();
        let stuck = tokio::time::timeout(Duration::from_millis(50), async {
            loop {
                tx.send(vec![0; 10_000].into()).await.unwrap();
            }
        });
        assert!(stuck.await.is_err());
        for _ in 0..100 {
            kv.read("k".into()).await.unwrap();
        }
        drop(flooded);
        flood.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn lost_link_fails_calls_and_streams() {
    let (client, server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    soon(async {
        let (call, mut rx) = kv.flood(100);
        rx.recv().await.unwrap();
        server.close("the test says so");
        let error = call.await.unwrap_err();
        assert!(matches!(error.failure(), Some(Failure::LinkLost { started: true, .. })), "{error}");
        while let Ok(item) = rx.recv().await {
            assert!(item.is_some());
        }
        let why = kv.link().closed().await.to_string();
        assert!(why.contains("the test says so"), "{why}");
        assert_eq!(kv.read("k".into()).await.unwrap_err().outcome(), Outcome::NotStarted);
    })
    .await;
}

#[tokio::test]
async fn goaway_lets_calls_end_and_refuses_new_ones() {
    let (client, server) = serve(Arc::default()).await;
    let kv = KvClient::new(client);
    soon(async {
        let (call, tx) = kv.load("n".into());
        tx.send(Entry { key: "k".into(), value: Blob::default() }).await.unwrap();
        kv.read("sync".into()).await.unwrap();
        server.goaway("maintenance");
        kv.link().ping().await.unwrap();
        let error = kv.read("k".into()).await.unwrap_err();
        assert_eq!(error, CallError::Failed(Failure::Draining("maintenance".into())));
        assert!(error.retryable());
        drop(tx);
        assert_eq!(call.await.unwrap(), 1);
        assert_eq!(server.closed().await, tombolo_rpc::LinkError::Closed);
        assert_eq!(kv.link().closed().await, tombolo_rpc::LinkError::Closed);
    })
    .await;
}

#[tokio::test]
async fn reflection_lists_services_with_their_methods() {
    let (client, _server) = serve(Arc::default()).await;
    let services = soon(ReflectionClient::new(client.clone()).list()).await.unwrap();
    let names: Vec<_> = services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["tombolo.Reflection", "tombolo.test.Kv"]);
    let read = &services[1].methods[0];
    assert_eq!(
        read.signature,
        "read(key: String) -> Option<bytes>, or error KvError { NoSuchStore(String) }"
    );
    soon(KvClient::new(client).check()).await.unwrap();
}
