//! What a call allocates once both ends are warm.

mod common;

use std::sync::{Arc, Mutex, PoisonError};

use common::{config, pipe, try_link};
use tombolo_rpc::{BusyClient, BusyServer, Ctx, FramePipe, LinkConfig, Never, Router};
use tombolo_transport::TryRecv;

#[tombolo_rpc::service(name = "tombolo.test.Add")]
trait Add {
    async fn add(&self, cx: &Ctx, a: u64, b: u64) -> Result<u64, Never>;
}

struct Adder;

impl Add for Adder {
    async fn add(&self, _: &Ctx, a: u64, b: u64) -> Result<u64, Never> {
        Ok(a + b)
    }
}

/// One direction, with room for one frame.
#[derive(Debug, Default)]
struct Wire {
    frame: Vec<u8>,
    full: bool,
}

/// One end of a pipe in memory. While it holds `server`, receiving lets that take a turn.
#[derive(Debug, Default)]
struct Pipe {
    out: Arc<Mutex<Wire>>,
    inn: Arc<Mutex<Wire>>,
    server: Option<Arc<Mutex<Option<BusyServer<Self>>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FramePipe for Pipe {
    fn try_send(&mut self, frame: &[u8]) -> tombolo_transport::Result<bool> {
        let mut out = lock(&self.out);
        if out.full {
            return Ok(false);
        }
        out.frame.clear();
        out.frame.extend_from_slice(frame);
        out.full = true;
        Ok(true)
    }

    fn try_recv(&mut self, frame: &mut Vec<u8>) -> tombolo_transport::Result<TryRecv> {
        if let Some(server) = &self.server
            && let Some(server) = &mut *lock(server)
        {
            server.poll().expect("an open link");
        }
        let mut inn = lock(&self.inn);
        if !inn.full {
            return Ok(TryRecv::Empty);
        }
        std::mem::swap(frame, &mut inn.frame);
        inn.full = false;
        Ok(TryRecv::Message)
    }

    fn flush(&mut self) -> tombolo_transport::Result<()> {
        Ok(())
    }

    fn max_len(&self) -> usize {
        16 * 1024
    }
}

fn router() -> Router {
    Router::new().service(AddServer::new(Adder))
}

const WARM: u64 = 100;
const CALLS: u64 = 1000;

#[test]
fn busy_call_allocates_nothing_on_either_side() {
    let place = Arc::new(Mutex::new(None));
    let (to_server, to_client) = <(Arc<Mutex<Wire>>, Arc<Mutex<Wire>>)>::default();
    let servers = Pipe { out: to_client.clone(), inn: to_server.clone(), server: None };
    let clients = Pipe { out: to_server, inn: to_client, server: Some(place.clone()) };
    let accepting =
        std::thread::spawn(move || BusyServer::accept(servers, LinkConfig::new("server"), router()).unwrap());
    let mut client = BusyClient::connect(clients, LinkConfig::new("client")).unwrap();
    *lock(&place) = Some(accepting.join().unwrap());
    let mut add = AddBusyClient::new(&mut client);
    for i in 0..WARM {
        assert_eq!(add.add(i, 1), Ok(i + 1));
    }
    let counted = allocation_counter::measure(|| {
        for i in 0..CALLS {
            assert_eq!(add.add(i, 1), Ok(i + 1));
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

#[test]
fn call_under_tokio_allocates_only_for_the_frames_of_its_byte_stream() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (client, _server) =
        runtime.block_on(try_link(pipe(), (config("client"), config("server")), (Router::new(), router())));
    let add = AddClient::new(client.unwrap());
    let calls = async |count: u64| {
        for i in 0..count {
            assert_eq!(add.add(i, 1).await, Ok(i + 1));
        }
    };
    runtime.block_on(calls(WARM));
    let counted = allocation_counter::measure(|| runtime.block_on(calls(CALLS)));
    // Each of the two frames of a call is received in memory of its own; shared memory has none of that.
    assert!(counted.count_total <= 4 * CALLS + 100, "{counted:?}");
}
