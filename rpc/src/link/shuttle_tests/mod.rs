//! A link among several tasks, in orders that shuttle chooses: at random, and by the priorities of PCT, which finds what takes few preemptions.
//!
//! Time stands still (`sync/scheduled.rs`), so a call or an item for which somebody was not woken is waited for in vain, which shuttle reports as a deadlock.
//! All atomics count as SeqCst here: what a weaker order allows is not seen.
//!
//! `TOMBOLO_SCHEDULES`: how many of each kind. `TOMBOLO_SEED`: which. A failure prints its schedule; `TOMBOLO_SCHEDULE` replays it, for the one test
//! that is named.

mod line;
mod losses;
mod traffic;

use std::env;

use shuttle::future::{block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::{Config, Runner};
use tokio::sync::oneshot;
use tombolo_transport::{Addr, Cid, Messages, Port};

use self::line::Line;
use super::{Link, LinkConfig, Receiver, Sender};
use crate::error::{CallError, Failure, LinkError, Never};
use crate::service::{Ctx, Router};

/// How many preemptions PCT tries to find a bug with.
const DEPTH: usize = 4;
/// The longest message of the transport, in bytes: little more than the least that a link takes.
const FRAME_BYTES: usize = 1024;
/// More than a window and what waits for it have, in items.
const ITEMS: u32 = 9;
const ITEM_BYTES: usize = 24 * 1024;

/// Runs `scenario` in many schedules.
fn explore<F: Future<Output = ()> + 'static>(scenario: impl Fn() -> F + Send + Sync + Copy + 'static) {
    let number = |name, otherwise| env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (seed, schedules) = (number("TOMBOLO_SEED", 1), number("TOMBOLO_SCHEDULES", 50) as usize);
    let mut config = Config::new();
    config.stack_size = 512 * 1024;
    config.silence_warnings = true;
    let run = move || block_on(scenario());
    if let Ok(schedule) = env::var("TOMBOLO_SCHEDULE") {
        Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(run);
        return;
    }
    Runner::new(RandomScheduler::new_from_seed(seed, schedules), config.clone()).run(run);
    Runner::new(PctScheduler::new_from_seed(seed, DEPTH, schedules), config).run(run);
}

/// What both ends serve.
#[crate::service(name = "tombolo.test.Tasks")]
trait Tasks {
    /// Answers at once with what it got.
    async fn echo(&self, cx: &Ctx, bytes: Vec<u8>) -> Result<Vec<u8>, Never>;
    /// The same after others had their turn, on a task of its own.
    async fn echo_later(&self, cx: &Ctx, bytes: Vec<u8>) -> Result<Vec<u8>, Never>;
    /// Answers when it is told to.
    async fn wait(&self, cx: &Ctx) -> Result<(), Never>;
    /// Never answers.
    async fn hang(&self, cx: &Ctx) -> Result<(), Never>;
    /// Sends items, and answers with how many went out.
    async fn produce(&self, cx: &Ctx, items: u32, out: Sender<Vec<u8>>) -> Result<u32, Never>;
    /// Reads all items, and answers with their bytes.
    async fn consume(&self, cx: &Ctx, input: Receiver<Vec<u8>>) -> Result<u64, Never>;
}

#[derive(Default)]
struct Server {
    /// Tells the handler of `wait` to answer.
    waiting: std::sync::Mutex<Option<oneshot::Receiver<()>>>,
    /// Told when the handler of `hang` starts, and gone when it has ended.
    hanging: std::sync::Mutex<Option<(oneshot::Sender<()>, oneshot::Sender<()>)>>,
}

impl Tasks for Server {
    async fn echo(&self, _: &Ctx, bytes: Vec<u8>) -> Result<Vec<u8>, Never> {
        Ok(bytes)
    }

    async fn echo_later(&self, _: &Ctx, bytes: Vec<u8>) -> Result<Vec<u8>, Never> {
        yield_now().await;
        Ok(bytes)
    }

    async fn wait(&self, _: &Ctx) -> Result<(), Never> {
        let waiting = self.waiting.lock().unwrap().take();
        if let Some(told) = waiting {
            let _ = told.await;
        }
        Ok(())
    }

    async fn hang(&self, _: &Ctx) -> Result<(), Never> {
        let hanging = self.hanging.lock().unwrap().take();
        let (started, _ended) = hanging.unzip();
        if let Some(started) = started {
            let _ = started.send(());
        }
        std::future::pending().await
    }

    async fn produce(&self, _: &Ctx, items: u32, out: Sender<Vec<u8>>) -> Result<u32, Never> {
        for item in 0..items {
            if out.send(vec![item as u8; ITEM_BYTES]).await.is_err() {
                return Ok(item);
            }
        }
        Ok(items)
    }

    async fn consume(&self, _: &Ctx, mut input: Receiver<Vec<u8>>) -> Result<u64, Never> {
        let mut bytes = 0;
        while let Ok(Some(item)) = input.recv().await {
            bytes += item.len() as u64;
        }
        Ok(bytes)
    }
}

/// Both ends of a link over a line with this much room.
async fn ends(room: usize) -> (Link, Link, Line) {
    let (client, server, line) = try_ends(room, Server::default()).await;
    (client.unwrap(), server.unwrap(), line)
}

async fn try_ends(room: usize, server: Server) -> (Result<Link, LinkError>, Result<Link, LinkError>, Line) {
    let (line, near, far) = Line::new(room);
    let addr = Addr::new(Cid::LOCAL, Port(1));
    let messages = |end| Messages::framed(end, addr, addr, FRAME_BYTES);
    let serving = |server| Router::new().service(TasksServer::new(server));
    let (client, server) = futures_util::join!(
        Link::connect(messages(near), config("near"), serving(Server::default())),
        Link::accept(messages(far), config("far"), serving(server)),
    );
    (client, server, line)
}

/// The least window there is: items soon wait for credit.
fn config(role: &str) -> LinkConfig {
    LinkConfig { window_bytes: 32 * 1024, ..LinkConfig::new(role) }
}

/// Waits for as many turns as the schedule says.
async fn some_turns() {
    for _ in 0..thread_rng().gen_range(0..48) {
        yield_now().await;
    }
}

/// The answer to an echo is what was sent; a failure is one of a link that ends.
fn check_echo(sent: &[u8], got: Result<Vec<u8>, CallError<Never>>) {
    match got {
        Ok(got) => assert_eq!(got, sent),
        Err(CallError::Failed(Failure::LinkLost { .. } | Failure::Draining(_))) => {}
        Err(error) => panic!("{error:?}"),
    }
}
