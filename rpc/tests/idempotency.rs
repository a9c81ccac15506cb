//! Calls that are sent again with the same idempotency key.

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use common::{config, pipe, soon, try_link};
use tokio::sync::Semaphore;
use tombolo_rpc::{
    CallError, CallInfo, Ctx, Failure, HandlerFuture, IDEMPOTENCY_KEY, Link, Metadata, Outcome, ReplayLimits,
    Reply, Router, Schema,
};

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, Schema, thiserror::Error)]
#[error("refused after {runs} runs")]
struct Refusal {
    runs: u64,
}

#[tombolo_rpc::service(name = "tombolo.test.Till")]
trait Till {
    /// Returns how often it has run; 0 is an error.
    async fn pay(&self, cx: &Ctx, amount: u64) -> Result<u64, Refusal>;
    /// The same, once it is let.
    async fn pay_slowly(&self, cx: &Ctx, amount: u64) -> Result<u64, Refusal>;
}

struct Tills {
    runs: AtomicU64,
    started: Semaphore,
    let_go: Semaphore,
}

impl Till for Tills {
    async fn pay(&self, _: &Ctx, amount: u64) -> Result<u64, Refusal> {
        let runs = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        if amount == 0 { Err(Refusal { runs }) } else { Ok(runs) }
    }

    async fn pay_slowly(&self, cx: &Ctx, amount: u64) -> Result<u64, Refusal> {
        self.started.add_permits(1);
        self.let_go.acquire().await.unwrap().forget();
        assert!(!cx.is_cancelled());
        self.pay(cx, amount).await
    }
}

struct Bed {
    tills: Arc<Tills>,
    router: Router,
}

impl Bed {
    fn new(replay: bool) -> Self {
        let tills = Arc::new(Tills {
            runs: AtomicU64::new(0),
            started: Semaphore::new(0),
            let_go: Semaphore::new(0),
        });
        let router = Router::new().service(TillServer::shared(tills.clone()));
        let router = if replay { router.replay(ReplayLimits::default()) } else { router };
        Self { tills, router }
    }

    fn with_router(mut self, change: impl FnOnce(Router) -> Router) -> Self {
        self.router = change(self.router);
        self
    }

    /// A new link to the same server.
    async fn link(&self) -> (TillClient, Link) {
        let (client, server) =
            try_link(pipe(), (config("client"), config("server")), (Router::new(), self.router.clone()))
                .await;
        (TillClient::new(client.unwrap()), server.unwrap())
    }
}

fn key(key: &str) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set(IDEMPOTENCY_KEY, key).unwrap();
    metadata
}

#[tokio::test]
async fn call_sent_again_on_another_link_gets_the_first_answer() {
    let bed = Bed::new(true);
    let (till, _server) = bed.link().await;
    assert_eq!(soon(till.pay(5).metadata(&key("a"))).await, Ok(1));
    let (again, _server) = bed.link().await;
    assert_eq!(soon(again.pay(5).metadata(&key("a"))).await, Ok(1));
    assert_eq!(soon(again.pay(5).metadata(&key("b"))).await, Ok(2));
    assert_eq!(soon(again.pay(5)).await, Ok(3), "a call without a key runs each time");
    // An error of the application's is an answer too.
    for _ in 0..2 {
        assert_eq!(soon(again.pay(0).metadata(&key("c"))).await, Err(CallError::App(Refusal { runs: 4 })));
    }
}

#[tokio::test]
async fn key_of_another_call_is_refused_and_not_run() {
    let bed = Bed::new(true);
    let (till, _server) = bed.link().await;
    soon(till.pay(5).metadata(&key("a"))).await.unwrap();
    for error in [
        soon(till.pay(6).metadata(&key("a"))).await.unwrap_err(),
        soon(till.pay_slowly(5).metadata(&key("a"))).await.unwrap_err(),
        soon(till.pay(5).metadata(&key(&"x".repeat(129)))).await.unwrap_err(),
    ] {
        assert!(matches!(error.failure(), Some(Failure::Refused(_))), "{error}");
        assert_eq!((error.outcome(), error.retryable()), (Outcome::NotStarted, false));
    }
    assert_eq!(bed.tills.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn call_whose_answer_was_not_kept_is_not_said_to_be_unstarted() {
    let limits = ReplayLimits { answer_bytes_max: 0, ..ReplayLimits::default() };
    let bed = Bed::new(false).with_router(|router| router.replay(limits));
    let (till, _server) = bed.link().await;
    soon(till.pay(5).metadata(&key("a"))).await.unwrap();
    let error = soon(till.pay(5).metadata(&key("a"))).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::TooLarge { .. })), "{error}");
    assert_eq!((error.outcome(), error.retryable()), (Outcome::Unknown, false));
    assert_eq!(bed.tills.runs.load(Ordering::SeqCst), 1);
}

/// A layer's own future, that holds something until it is dropped.
struct Holding {
    next: HandlerFuture,
    _held: Arc<()>,
}

impl Future for Holding {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        Pin::new(&mut self.next).poll(cx)
    }
}

#[tokio::test]
async fn what_a_layer_holds_is_let_go_with_the_answer() {
    let held = Arc::new(());
    let layer = {
        let held = held.clone();
        move |_: &CallInfo<'_>, next| HandlerFuture::new(Holding { next, _held: held.clone() })
    };
    let before = Arc::strong_count(&held) + 1; // with the one in `layer`, soon the router's
    let bed = Bed::new(false).with_router(|router| router.layer(layer));
    let (till, _server) = bed.link().await;
    soon(till.pay(5)).await.unwrap();
    assert_eq!(Arc::strong_count(&held) + 1, before);
}

#[tokio::test]
async fn call_whose_link_is_lost_runs_once_and_is_answered_on_the_next() {
    let bed = Bed::new(true);
    let (till, server) = bed.link().await;
    let lost = tokio::spawn(till.pay_slowly(5).metadata(&key("a")));
    soon(bed.tills.started.acquire()).await.unwrap().forget();
    server.close("pulled out");
    assert_eq!(soon(lost).await.unwrap().unwrap_err().outcome(), Outcome::Unknown);
    let (till, _server) = bed.link().await;
    let shed = soon(till.pay_slowly(5).metadata(&key("a"))).await.unwrap_err();
    assert!(matches!(shed.failure(), Some(Failure::Overloaded { .. })) && shed.retryable(), "{shed}");
    bed.tills.let_go.add_permits(1);
    let answer = soon(async {
        loop {
            match till.pay_slowly(5).metadata(&key("a")).await {
                Err(error) if error.retryable() => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    });
    assert_eq!(answer.await, Ok(1));
    assert_eq!(bed.tills.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn call_that_ends_at_its_deadline_is_forgotten() {
    let bed = Bed::new(true);
    let (till, _server) = bed.link().await;
    let late = till.pay_slowly(5).metadata(&key("a")).deadline(Duration::from_millis(20));
    assert!(matches!(soon(late).await.unwrap_err().failure(), Some(Failure::DeadlineExceeded { .. })));
    bed.tills.let_go.add_permits(1);
    let answer = soon(async {
        loop {
            match till.pay_slowly(5).metadata(&key("a")).await {
                Err(error) if error.retryable() => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    });
    assert_eq!(answer.await, Ok(1));
}

#[tokio::test]
async fn router_without_replay_runs_each_call() {
    let bed = Bed::new(false);
    let (till, _server) = bed.link().await;
    assert_eq!(soon(till.pay(5).metadata(&key("a"))).await, Ok(1));
    assert_eq!(soon(till.pay(5).metadata(&key("a"))).await, Ok(2));
}

#[tokio::test]
async fn layers_are_around_every_call_the_last_one_outermost() {
    let bed = Bed::new(true);
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    let logging = |name: &'static str| {
        let log = log.clone();
        move |call: &tombolo_rpc::CallInfo<'_>, next: tombolo_rpc::HandlerFuture| {
            let (log, method) = (log.clone(), call.method.name);
            tombolo_rpc::HandlerFuture::new(async move {
                log.lock().unwrap().push(format!("{name} {method}"));
                let reply = next.await;
                log.lock().unwrap().push(format!("{name} {} {}", reply.is_answer(), reply.is_app_error()));
                reply
            })
        }
    };
    let router = bed.router.clone().layer(logging("inner")).layer(logging("outer"));
    let bed = Bed { router, ..bed };
    let (till, _server) = bed.link().await;
    soon(till.pay(0)).await.unwrap_err();
    let log = log.lock().unwrap();
    assert_eq!(log[..], ["outer pay", "inner pay", "inner false true", "outer false true"]);
}
