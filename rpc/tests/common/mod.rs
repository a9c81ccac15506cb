//! A small key-value service and two ends of a link, for the tests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tombolo_rpc::{Blob, Ctx, Link, LinkConfig, LinkError, Receiver, Router, Schema, Sender};
use tombolo_transport::{Addr, Cid, Messages, Port};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema)]
pub struct Entry {
    pub key: String,
    pub value: Blob,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, thiserror::Error)]
pub enum KvError {
    #[error("no such store: {0}")]
    NoSuchStore(String),
}

#[tombolo_rpc::service(name = "tombolo.test.Kv")]
pub trait Kv {
    /// Reads one value.
    async fn read(&self, cx: &Ctx, key: String) -> Result<Option<Blob>, KvError>;
    async fn write(&self, cx: &Ctx, key: String, value: Blob) -> Result<(), KvError>;
    async fn scan(&self, cx: &Ctx, prefix: String, out: Sender<Entry>) -> Result<u64, KvError>;
    async fn load(&self, cx: &Ctx, name: String, input: Receiver<Entry>) -> Result<u64, KvError>;
    async fn echo(
        &self,
        cx: &Ctx,
        times: u32,
        input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<u64, KvError>;
    /// Never answers; counts its starts and its ends.
    async fn hang(&self, cx: &Ctx) -> Result<(), KvError>;
    async fn panic(&self, cx: &Ctx, late: bool) -> Result<(), KvError>;
    /// Takes a stream and does not read it.
    async fn ignore(&self, cx: &Ctx, input: Receiver<Blob>) -> Result<(), KvError>;
    /// Sends for ever.
    async fn flood(&self, cx: &Ctx, bytes: u32, out: Sender<Blob>) -> Result<(), KvError>;
}

#[derive(Debug, Default)]
pub struct Store {
    pub entries: Mutex<BTreeMap<String, Blob>>,
    pub hanging: AtomicUsize,
    pub hung: AtomicUsize,
}

struct Hanging<'a>(&'a Store);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Kv for Store {
    async fn read(&self, _: &Ctx, key: String) -> Result<Option<Blob>, KvError> {
        if key.starts_with('/') {
            return Err(KvError::NoSuchStore(key));
        }
        Ok(self.entries.lock().unwrap().get(&key).cloned())
    }

    async fn write(&self, _: &Ctx, key: String, value: Blob) -> Result<(), KvError> {
        self.entries.lock().unwrap().insert(key, value);
        Ok(())
    }

    async fn scan(&self, _: &Ctx, prefix: String, out: Sender<Entry>) -> Result<u64, KvError> {
        let found: Vec<_> = self.entries.lock().unwrap().clone().into_iter().collect();
        let mut sent = 0;
        for (key, value) in found.into_iter().filter(|(key, _)| key.starts_with(&prefix)) {
            if out.send(Entry { key, value }).await.is_err() {
                break;
            }
            sent += 1;
        }
        Ok(sent)
    }

    async fn load(&self, _: &Ctx, name: String, mut input: Receiver<Entry>) -> Result<u64, KvError> {
        let mut loaded = 0;
        while let Ok(Some(Entry { key, value })) = input.recv().await {
            self.entries.lock().unwrap().insert(format!("{name}{key}"), value);
            loaded += 1;
        }
        Ok(loaded)
    }

    async fn echo(
        &self,
        _: &Ctx,
        times: u32,
        mut input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<u64, KvError> {
        let mut bytes = 0;
        while let Ok(Some(item)) = input.recv().await {
            bytes += item.len() as u64;
            for _ in 0..times {
                if out.send_ref(&item).await.is_err() {
                    return Ok(bytes);
                }
            }
        }
        Ok(bytes)
    }

    async fn hang(&self, _: &Ctx) -> Result<(), KvError> {
        self.hanging.fetch_add(1, Ordering::SeqCst);
        self.hung.fetch_add(1, Ordering::SeqCst);
        let _hanging = Hanging(self);
        std::future::pending().await
    }

    async fn panic(&self, _: &Ctx, late: bool) -> Result<(), KvError> {
        if late {
            tokio::task::yield_now().await;
        }
        panic!("as it was told, late = {late}")
    }

    async fn ignore(&self, _: &Ctx, input: Receiver<Blob>) -> Result<(), KvError> {
        let _input = input;
        std::future::pending().await
    }

    async fn flood(&self, _: &Ctx, bytes: u32, out: Sender<Blob>) -> Result<(), KvError> {
        let item = Blob::from(vec![7; bytes as usize]);
        while out.send_ref(&item).await.is_ok() {}
        Ok(())
    }
}

pub fn addr(cid: u32) -> Addr {
    Addr::new(Cid(cid), Port(1))
}

/// Messages over an in-memory pipe.
pub fn pipe() -> (Messages, Messages) {
    let (a, b) = tokio::io::duplex(64 * 1024);
    (Messages::framed(a, addr(3), addr(2), 1 << 20), Messages::framed(b, addr(2), addr(3), 1 << 20))
}

/// Messages over a Unix socket.
pub fn socket() -> (Messages, Messages) {
    let (a, b) = tokio::net::UnixStream::pair().unwrap();
    (Messages::framed(a, addr(3), addr(2), 1 << 20), Messages::framed(b, addr(2), addr(3), 1 << 20))
}

/// Both ends of a link with these configurations and services.
pub async fn try_link(
    (a, b): (Messages, Messages),
    (ours, theirs): (LinkConfig, LinkConfig),
    (our_router, their_router): (Router, Router),
) -> (Result<Link, LinkError>, Result<Link, LinkError>) {
    tokio::join!(Link::connect(a, ours, our_router), Link::accept(b, theirs, their_router))
}

/// A client's end and a server's end that serves `store`.
pub async fn serve(store: std::sync::Arc<Store>) -> (Link, Link) {
    let router = Router::new().service(KvServer::shared(store));
    let (client, server) =
        try_link(pipe(), (config("client"), config("server")), (Router::new(), router)).await;
    (client.unwrap(), server.unwrap())
}

/// No keepalive, which would wake up again whatever had wrongly gone to sleep.
pub fn config(role: &str) -> LinkConfig {
    let mut config = LinkConfig::new(role);
    config.keepalive = Duration::from_secs(3600);
    config.silence_max = Duration::from_secs(7200);
    config
}

/// Fails the test instead of hanging.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("took more than 20 s")
}
