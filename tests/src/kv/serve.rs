//! The service's side.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tombolo_rpc::{Blob, BusyServer, Ctx, Link, LinkConfig, Router};
use tombolo_transport::{Endpoint, ListenOptions, Messages, Port, Sizes, TryRecv};

use super::{Kv, KvError, KvServer};

/// Bytes of the ring of a stream: enough that both sides copy for long before either has to wait.
const STREAM_RING_BYTES: u32 = 4 << 20;

/// Bytes of one write of the endless stream.
const STREAM_WRITE_BYTES: usize = 1 << 20;

/// Looks at an empty ring before a busy-polling thread yields its processor once.
const SPINS_BEFORE_YIELD: u32 = 100_000;

/// The store.
#[derive(Debug, Default)]
pub struct Store {
    values: Mutex<HashMap<String, Blob>>,
}

impl Kv for Arc<Store> {
    async fn read(&self, _: &Ctx, key: String) -> Result<Option<Blob>, KvError> {
        check(&key)?;
        Ok(self.lock().get(&key).cloned())
    }

    async fn write(&self, _: &Ctx, key: String, value: Blob) -> Result<(), KvError> {
        check(&key)?;
        self.lock().insert(key, value);
        Ok(())
    }
}

impl Store {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Blob>> {
        // Nothing panics while it holds the lock.
        self.values.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn check(key: &str) -> Result<(), KvError> {
    if (1..=256).contains(&key.len()) { Ok(()) } else { Err(KvError::BadKey { bytes: key.len() as u32 }) }
}

/// Serves until SIGTERM.
///
/// # Errors
/// When the broker is not there or a name is taken.
pub async fn serve(broker: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let endpoint = Endpoint::attach(broker).await.context("could not attach to the fabric")?;
    let store = Arc::new(Store::default());

    let named = |name: &str| ListenOptions::named(name);
    let mut calls = endpoint.listen_messages(Port::ANY, named("kv")).await?;
    let mut polled = endpoint.listen_messages(Port::ANY, named("kv-busy")).await?;
    let mut echoes = endpoint.listen_messages(Port::ANY, named("kv-echo")).await?;
    let sizes = Sizes { ring_bytes: STREAM_RING_BYTES, ..Sizes::default() };
    let mut streams = endpoint.listen(Port::ANY, ListenOptions { sizes, ..named("kv-bytes") }).await?;
    println!("serving kv at {}", calls.local_addr());
    loop {
        tokio::select! {
            accepted = calls.accept() => drop(tokio::spawn(serve_calls(accepted?.0, Arc::clone(&store)))),
            accepted = polled.accept() => {
                let (messages, _) = accepted?;
                let store = Arc::clone(&store);
                thread::spawn(move || serve_calls_busy(messages, store));
            }
            accepted = echoes.accept() => {
                let (messages, _) = accepted?;
                thread::spawn(move || echo(messages));
            }
            accepted = streams.accept() => drop(tokio::spawn(pour(accepted?.0))),
            _ = terminate.recv() => {
                println!("SIGTERM: {} keys are forgotten", store.lock().len());
                return Ok(());
            }
        }
    }
}

async fn serve_calls(messages: Messages, store: Arc<Store>) {
    let peer = messages.peer_addr();
    let router = Router::new().service(KvServer::new(store));
    match Link::accept(messages, LinkConfig::new("kv"), router).await {
        Ok(link) => println!("{peer} left: {}", link.closed().await),
        Err(error) => println!("{peer} did not become a client: {error}"),
    }
}

/// Serves typed calls, spinning.
fn serve_calls_busy(messages: Messages, store: Arc<Store>) {
    let router = Router::new().service(KvServer::new(store));
    match BusyServer::accept(messages, LinkConfig::new("kv-busy"), router) {
        Ok(mut server) => drop(server.run()),
        Err(error) => println!("a busy-polling client did not get through: {error}"),
    }
}

/// Sends every message back, spinning.
fn echo(mut messages: Messages) {
    let mut message = Vec::new();
    let mut empty = 0;
    loop {
        match messages.try_recv(&mut message) {
            Ok(TryRecv::Message) => {
                empty = 0;
                if !send_busy(&mut messages, &message) {
                    return;
                }
            }
            Ok(TryRecv::Empty) => {
                empty += 1;
                if empty % SPINS_BEFORE_YIELD == 0 {
                    thread::yield_now();
                }
                std::hint::spin_loop();
            }
            Ok(TryRecv::End) | Err(_) => return,
        }
    }
}

/// Sends, spinning while there is no room. False when the connection is gone.
pub(super) fn send_busy(messages: &mut Messages, message: &[u8]) -> bool {
    loop {
        match messages.try_send(message) {
            Ok(true) => return true,
            Ok(false) => std::hint::spin_loop(),
            Err(_) => return false,
        }
    }
}

/// Writes a known pattern until the reader leaves.
async fn pour(mut stream: tombolo_transport::Stream) {
    let block = pattern();
    while stream.write_all(&block).await.is_ok() {}
}

/// The block that the endless stream repeats: its reader checks it.
pub(super) fn pattern() -> Vec<u8> {
    (0..STREAM_WRITE_BYTES as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
