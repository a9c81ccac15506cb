//! iceoryx2's requests and responses in shared memory, both ends polling.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use iceoryx2::active_request::ActiveRequest;
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::port::server::Server;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::request_response::PortFactory;
use tombolo_benches::calls::receipt;
use tombolo_benches::payload::Payload;
use tombolo_benches::probe::{Probe, Reading, Test};
use tombolo_benches::turns::{Following, Leading};

use super::swallowed;
use crate::link::LEAVE;
use crate::messages::iceoryx2::{Ipc, node, said};

const SERVE: &str = "serve";
const ANSWER: &str = "answer";
/// Requests under way at the most, which is what `calls_in_flight` has.
const IN_FLIGHT: usize = 64;

/// A record as shared memory can have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ZeroCopySend)]
#[repr(C)]
struct Record {
    count: u64,
    key: [u8; 16],
}

impl Record {
    fn sample() -> Self {
        Self { count: 41, key: *b"user:00000000042" }
    }

    fn answered(self) -> Self {
        Self { count: self.count + 1, ..self }
    }
}

/// The service of `touch`, within `node`.
fn touch_service(node: &Node<Ipc>) -> anyhow::Result<PortFactory<Ipc, Record, (), Record, ()>> {
    node.service_builder(&"touch".try_into().map_err(said)?)
        .request_response::<Record, Record>()
        // With overflow requests would be lost.
        .enable_safe_overflow_for_requests(false)
        .enable_safe_overflow_for_responses(false)
        .max_active_requests_per_client(IN_FLIGHT)
        .max_loaned_requests(IN_FLIGHT)
        .max_response_buffer_size(1)
        .max_clients(1)
        .max_servers(1)
        .open_or_create()
        .map_err(said)
}

/// The service of `swallow`, within `node`.
fn swallow_service(node: &Node<Ipc>) -> anyhow::Result<PortFactory<Ipc, [u8], (), u64, ()>> {
    node.service_builder(&"swallow".try_into().map_err(said)?)
        .request_response::<[u8], u64>()
        .enable_safe_overflow_for_requests(false)
        .enable_safe_overflow_for_responses(false)
        .max_active_requests_per_client(1)
        .max_response_buffer_size(1)
        .max_clients(1)
        .max_servers(1)
        .open_or_create()
        .map_err(said)
}

/// The answer to one request, once it is there.
#[inline]
fn answer(pending: &PendingResponse<Ipc, Record, (), Record, ()>) -> anyhow::Result<Record> {
    loop {
        if let Some(response) = pending.receive().map_err(said)? {
            return Ok(*response);
        }
        std::hint::spin_loop();
    }
}

fn ask(
    client: &Client<Ipc, Record, (), Record, ()>,
) -> anyhow::Result<PendingResponse<Ipc, Record, (), Record, ()>> {
    let request = client.loan_uninit().map_err(said)?.write_payload(Record::sample());
    request.send().map_err(said)
}

fn check(answer: Record) -> anyhow::Result<()> {
    ensure!(answer == Record::sample().answered(), "wrong answer {answer:?}");
    Ok(())
}

const NOTE: &str =
    "requests in shared memory, without a name or a version of the call; bytes are read where they are";

/// The leader's part.
pub(crate) fn lead(leading: &mut Leading, at: &Path) -> anyhow::Result<Reading> {
    leading.note(NOTE);
    let node = node(at)?;
    let probe = leading.probe().clone();
    match probe.test {
        Test::Call | Test::CallsInFlight => {
            let client = touch_service(&node)?.client_builder().create().map_err(said)?;
            leading.order(&format!("{SERVE} {}", at.display()))?;
            if probe.test == Test::Call {
                return leading.times(Some(ANSWER), |mut rounds| {
                    while rounds.another() {
                        check(answer(&ask(&client)?)?)?;
                    }
                    Ok(rounds)
                });
            }
            leading.rates(Some(ANSWER), |count| {
                let mut asked = 0;
                let mut pending = std::collections::VecDeque::with_capacity(IN_FLIGHT);
                for _ in 0..count {
                    while asked < count && pending.len() < IN_FLIGHT {
                        pending.push_back(ask(&client)?);
                        asked += 1;
                    }
                    let oldest = pending.pop_front().context("no call under way")?;
                    check(answer(&oldest)?)?;
                }
                Ok(())
            })
        }
        Test::CallWithBytes => {
            let service = swallow_service(&node)?;
            let client =
                service.client_builder().initial_max_slice_len(probe.bytes).create().map_err(said)?;
            leading.order(&format!("{SERVE} {}", at.display()))?;
            let mut payload = Payload::new(probe.bytes);
            leading.times(Some(ANSWER), |mut rounds| {
                let mut count = 0;
                while rounds.another() {
                    let request = client.loan_slice_uninit(probe.bytes).map_err(said)?;
                    let pending = request.write_from_slice(payload.numbered(count)).send().map_err(said)?;
                    let number = loop {
                        if let Some(response) = pending.receive().map_err(said)? {
                            break *response;
                        }
                        std::hint::spin_loop();
                    };
                    ensure!(
                        number == receipt(payload.numbered(count)),
                        "wrong answer {number} to the bytes of {count}"
                    );
                    count += 1;
                }
                Ok(rounds)
            })
        }
        other => bail!("no measurement of {other:?} by requests"),
    }
}

/// What a server answers requests with.
enum Serving {
    Touch(Server<Ipc, Record, (), Record, ()>),
    /// The bytes of a request end in the server's own memory, as those of every other framework do: what is lent is the peer's to change.
    Swallow(Server<Ipc, [u8], (), u64, ()>, Vec<u8>),
}

impl Serving {
    fn answer(&mut self, count: u64) -> anyhow::Result<()> {
        for _ in 0..count {
            match self {
                Self::Touch(server) => loop {
                    if let Some(request) = server.receive().map_err(said)? {
                        touch(&request)?;
                        break;
                    }
                    std::hint::spin_loop();
                },
                Self::Swallow(server, memory) => loop {
                    if let Some(request) = server.receive().map_err(said)? {
                        memory.clear();
                        memory.extend_from_slice(&request);
                        request.send_copy(swallowed(memory)?).map_err(said)?;
                        break;
                    }
                    std::hint::spin_loop();
                },
            }
        }
        Ok(())
    }
}

fn touch(request: &ActiveRequest<Ipc, Record, (), Record, ()>) -> anyhow::Result<()> {
    let response = request.loan_uninit().map_err(said)?;
    response.write_payload(request.answered()).send().map_err(said)
}

/// The follower's part.
pub(crate) fn follow(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let order = following.next_order()?.context("no order to serve")?;
    let node = node(Path::new(order.words.first().context("an order to serve without a place")?))?;
    let mut serving = if probe.test == Test::CallWithBytes {
        Serving::Swallow(swallow_service(&node)?.server_builder().create().map_err(said)?, Vec::new())
    } else {
        Serving::Touch(touch_service(&node)?.server_builder().create().map_err(said)?)
    };
    following.ready()?;
    while let Some(order) = following.next_order()? {
        match order.word.as_str() {
            ANSWER => following.batch(&order, |count| serving.answer(count))?,
            LEAVE => break,
            other => bail!("unknown order `{other}`"),
        }
    }
    Ok(())
}
