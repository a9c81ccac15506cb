use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tombolo_transport::{Cid, Incarnation, TryRecv};

use super::{BusyClient, BusyServer, FramePipe};
use crate::{Auth, Blob, CallError, Ctx, Failure, LinkConfig, LinkError, Never, Router};

type Wire = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// A pipe in memory that holds a few frames.
#[derive(Debug)]
struct Pipe {
    out: Wire,
    inn: Wire,
}

fn pipe() -> (Pipe, Pipe) {
    let (a, b) = (Wire::default(), Wire::default());
    (Pipe { out: a.clone(), inn: b.clone() }, Pipe { out: b, inn: a })
}

impl FramePipe for Pipe {
    fn try_send(&mut self, frame: &[u8]) -> tombolo_transport::Result<bool> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.len() >= 4 {
            return Ok(false);
        }
        out.push_back(frame.to_vec());
        Ok(true)
    }

    fn try_recv(&mut self, frame: &mut Vec<u8>) -> tombolo_transport::Result<TryRecv> {
        match self.inn.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            Some(next) => {
                *frame = next;
                Ok(TryRecv::Message)
            }
            None if Arc::strong_count(&self.inn) == 1 => Ok(TryRecv::End),
            None => {
                thread::yield_now();
                Ok(TryRecv::Empty)
            }
        }
    }

    fn flush(&mut self) -> tombolo_transport::Result<()> {
        Ok(())
    }

    fn max_len(&self) -> usize {
        16 * 1024
    }
}

#[crate::service(name = "tombolo.test.Echo")]
trait Echo {
    async fn echo(&self, cx: &Ctx, bytes: Blob, turns: u32) -> Result<Blob, Never>;
    async fn hang(&self, cx: &Ctx) -> Result<(), Never>;
    async fn panic(&self, cx: &Ctx) -> Result<(), Never>;
}

struct Echoer;

impl Echo for Echoer {
    async fn echo(&self, _: &Ctx, bytes: Blob, turns: u32) -> Result<Blob, Never> {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        Ok(bytes)
    }

    async fn hang(&self, _: &Ctx) -> Result<(), Never> {
        std::future::pending().await
    }

    async fn panic(&self, _: &Ctx) -> Result<(), Never> {
        panic!("told to")
    }
}

fn served(
    client: LinkConfig,
    server: LinkConfig,
) -> (Result<BusyClient<Pipe>, LinkError>, thread::JoinHandle<LinkError>) {
    let (a, b) = pipe();
    let serving = thread::spawn(move || {
        let router = Router::new().service(EchoServer::new(Echoer));
        match BusyServer::accept(b, server, router) {
            Ok(mut server) => server.run(),
            Err(error) => error,
        }
    });
    (BusyClient::connect(a, client), serving)
}

#[test]
fn busy_call_is_answered_whether_the_handler_waits_or_not() {
    let (client, serving) = served(LinkConfig::new("c"), LinkConfig::new("s"));
    let mut client = client.unwrap();
    assert_eq!(client.peer().unwrap().role, "s");
    let mut echo = EchoBusyClient::new(&mut client);
    for turns in [0, 1, 5] {
        assert_eq!(echo.echo(b"hello".into(), turns).unwrap(), Blob::from(b"hello"));
    }
    let long = Blob::from(vec![3; 500_000]);
    assert_eq!(echo.echo(long.clone(), 1).unwrap(), long);
    drop(client);
    assert!(matches!(serving.join().unwrap(), LinkError::Closed | LinkError::Lost(_)));
}

#[test]
fn busy_call_fails_at_its_deadline_and_on_a_panic_and_goes_on() {
    let (client, serving) = served(LinkConfig::new("c"), LinkConfig::new("s"));
    let mut client = client.unwrap();
    client.set_deadline(Duration::from_millis(20));
    let error = EchoBusyClient::new(&mut client).hang().unwrap_err();
    assert_eq!(error, CallError::Failed(Failure::DeadlineExceeded { started: true }));
    client.set_deadline(Duration::from_secs(20));
    let mut echo = EchoBusyClient::new(&mut client);
    assert_eq!(echo.panic().unwrap_err(), CallError::Failed(Failure::HandlerPanicked("told to".into())));
    assert_eq!(echo.echo(b"still".into(), 0).unwrap(), Blob::from(b"still"));
    drop(client);
    serving.join().unwrap();
}

#[test]
fn busy_ends_prove_the_secret_too() {
    let secret = |secret| LinkConfig::new("c").auth(Auth::Secret([secret; 32]));
    let chooser = || {
        let known = Incarnation([4; 16]);
        LinkConfig::new("s").auth(Auth::choose(move |peer| {
            if peer.incarnation == known { Ok([7; 32]) } else { Err("stale incarnation".into()) }
        }))
    };
    let (client, serving) = served(secret(7).identity(Cid(3), Incarnation([4; 16])), chooser());
    assert!(client.unwrap().peer().unwrap().authenticated);
    serving.join().unwrap();
    let (client, serving) = served(secret(7).identity(Cid(3), Incarnation([5; 16])), chooser());
    assert!(client.unwrap_err().to_string().contains("stale incarnation"));
    assert!(serving.join().unwrap().to_string().contains("stale incarnation"));
    let (client, serving) = served(secret(8).identity(Cid(3), Incarnation([4; 16])), chooser());
    // Whichever side finds out first.
    assert!(client.is_err() || serving.join().unwrap().to_string().contains("secret"));
}
