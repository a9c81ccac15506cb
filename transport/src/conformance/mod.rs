//! What every backend must do, as one suite that runs on all of them.
//!
//! A backend implements [`Backend`]: it makes a [`Pair`] of endpoints that can reach each other. [`run`] puts each
//! behaviour to the test in both directions and reports one [`Verdict`] for each. Nothing here asserts that something
//! is fast; a watchdog only turns silence into a failure.
//!
//! One endpoint of a pair may be in another kernel ([`Party::There`]): a peer program there ([`serve_peer`]) does on its own endpoint what
//! the behaviour, running here, asks of it. As each behaviour runs in both directions, each side of it is once the endpoint of
//! this process, with nothing in between.

pub mod backends;
mod connecting;
mod crowds;
mod faults;
mod messages;
mod party;
mod peer;
pub mod relayed;
mod remote;
mod streams;
mod tools;
mod wire;

pub use self::party::Party;
pub use self::peer::serve_peer;
pub use self::remote::RemoteParty;
pub use self::wire::PEER_PORT;

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use self::party::{Listener, MessageListener, Messages, Stream};
use crate::addr::{Addr, Cid, Port};
use crate::error::Error;
use crate::options::ListenOptions;

/// A way to carry connections, to be put to the test.
pub trait Backend {
    /// Two endpoints that can connect to each other. Called once for each behaviour and direction.
    fn pair(&self) -> impl Future<Output = Result<Pair, Failure>>;

    /// What this backend cannot do, by its nature and not by a fault.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Why a behaviour cannot be put to the test in that direction, if so.
    fn skips(&self, behaviour: &str, direction: Direction) -> Option<&'static str> {
        let _ = (behaviour, direction);
        None
    }
}

/// Two endpoints that can connect to each other.
#[derive(Debug)]
pub struct Pair {
    /// The side that calls.
    pub caller: Party,
    /// The side that listens.
    pub callee: Party,
    /// Whatever must live as long as the endpoints (brokers, directories).
    pub keep: Box<dyn fmt::Debug + Send + Sync>,
}

/// What a backend cannot do by its nature.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whether the acceptor learns the caller's port.
    pub caller_port_known: bool,
    /// Whether one direction can be shut down without the other (not on Multikernel's vsock).
    pub half_close: bool,
    /// Callers beyond the backlog that may still be let in (a race between kernel threads).
    pub backlog_slack: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { caller_port_known: true, half_close: true, backlog_slack: 1 }
    }
}

/// What a behaviour did instead of what it should.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

/// How one behaviour went.
#[derive(Debug)]
pub struct Verdict {
    /// The behaviour, as the name of its function.
    pub behaviour: &'static str,
    /// Which endpoint of the pair called.
    pub direction: Direction,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

/// What came of one behaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Passed,
    /// It is not.
    Failed(Failure),
    /// It cannot be put to the test, for this reason.
    Skipped(&'static str),
}

/// How many behaviours, times directions, came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// As they should.
    pub passed: usize,
    /// Not.
    pub failed: usize,
    /// Not put to the test.
    pub skipped: usize,
}

impl Counts {
    /// Counts verdicts.
    pub fn of(verdicts: &[Verdict]) -> Self {
        verdicts.iter().fold(Self::default(), |mut counts, verdict| {
            match verdict.outcome {
                Outcome::Passed => counts.passed += 1,
                Outcome::Failed(_) => counts.failed += 1,
                Outcome::Skipped(_) => counts.skipped += 1,
            }
            counts
        })
    }
}

/// Which endpoint of a pair calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// [`Pair::caller`] calls [`Pair::callee`].
    Forward,
    /// The other way round.
    Backward,
}

/// What one behaviour works with.
pub(crate) struct Case {
    pair: Pair,
    limits: Limits,
}

type Check = Result<(), Failure>;
type Running = Pin<Box<dyn Future<Output = Check>>>;

/// A behaviour: its name and the function that checks it.
#[derive(Clone, Copy)]
pub struct Behaviour {
    /// The name of its function.
    pub name: &'static str,
    check: fn(Case) -> Running,
}

macro_rules! behaviours {
    ($($module:ident: $($name:ident)*;)*) => {
        /// Every behaviour, in the order it is run.
        pub const BEHAVIOURS: &[Behaviour] = &[
            $($(Behaviour { name: stringify!($name), check: |case| Box::pin($module::$name(case)) },)*)*
        ];
    };
}

behaviours! {
    connecting:
        both_sides_know_each_others_addresses
        ephemeral_ports_are_distinct
        port_in_use_is_refused_until_freed
        port_without_listener_refuses
        absent_kernel_is_an_error_within_the_deadline
        closed_listener_refuses_later_callers
        callers_waiting_at_a_closed_listener_are_ended
        full_backlog_refuses_and_recovers
        callers_are_accepted_in_order
        connect_answers_within_its_deadline
        dropped_connect_leaves_the_listener_sound
        dropped_accept_loses_no_caller;
    streams:
        bytes_arrive_whole_in_order_over_any_split
        half_close_leaves_the_other_direction_open
        write_after_shutdown_is_an_error
        data_in_flight_survives_the_writers_drop
        dropped_peer_ends_a_waiting_reader
        dropped_peer_ends_a_writer
        unread_data_dropped_with_the_peer_is_no_silence
        dropped_writer_half_ends_the_peers_reading
        writer_of_a_peer_that_never_reads_waits_then_resumes
        dropped_read_loses_nothing;
    messages:
        boundaries_are_kept_at_every_length
        messages_in_place_and_many_at_once_arrive_as_others_do
        longest_message_travels_and_longer_is_refused
        shutdown_ends_with_none_after_the_last_message
        message_half_close_leaves_the_other_direction_open
        send_after_shutdown_is_an_error
        dropped_message_peer_ends_a_waiting_receiver
        dropped_message_peer_ends_a_sender
        messages_in_flight_survive_the_senders_drop
        sender_of_a_peer_that_never_receives_waits_then_resumes
        dropped_send_is_whole_or_nothing
        dropped_recv_loses_nothing
        batch_becomes_visible_with_one_flush;
    crowds:
        many_connections_keep_their_bytes_apart
        many_message_connections_keep_their_messages_apart
        short_connections_in_quick_succession;
}

/// What makes no sense where [`Limits::half_close`] is not given.
const HALF_CLOSING: [&str; 3] = [
    "half_close_leaves_the_other_direction_open",
    "dropped_writer_half_ends_the_peers_reading",
    "message_half_close_leaves_the_other_direction_open",
];

/// Silence for so long is a failure. Ample for a software-emulated kernel on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Runs every behaviour whose name contains `filter`, in both directions; `each` sees each verdict as it falls.
pub async fn run(backend: &impl Backend, filter: &str, mut each: impl FnMut(&Verdict)) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for behaviour in BEHAVIOURS.iter().filter(|behaviour| behaviour.name.contains(filter)) {
        for direction in [Direction::Forward, Direction::Backward] {
            let verdict = run_one(backend, behaviour, direction).await;
            each(&verdict);
            verdicts.push(verdict);
        }
    }
    verdicts
}

async fn run_one(backend: &impl Backend, behaviour: &Behaviour, direction: Direction) -> Verdict {
    let started = std::time::Instant::now();
    let halves = !backend.limits().half_close && HALF_CLOSING.contains(&behaviour.name);
    let skipped = halves.then_some("this backend cannot close one direction alone");
    if let Some(reason) = skipped.or_else(|| backend.skips(behaviour.name, direction)) {
        let outcome = Outcome::Skipped(reason);
        return Verdict { behaviour: behaviour.name, direction, outcome, elapsed: started.elapsed() };
    }
    let running = async {
        let mut pair = backend.pair().await?;
        if direction == Direction::Backward {
            std::mem::swap(&mut pair.caller, &mut pair.callee);
        }
        CatchPanic((behaviour.check)(Case { pair, limits: backend.limits() })).await
    };
    let outcome = match tokio::time::timeout(WATCHDOG, running).await {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(failure)) => Outcome::Failed(failure),
        Err(_) => Outcome::Failed(Failure(format!("silent for {} s", WATCHDOG.as_secs()))),
    };
    Verdict { behaviour: behaviour.name, direction, outcome, elapsed: started.elapsed() }
}

/// A panic in one behaviour is its failure, not the end of the suite.
struct CatchPanic(Running);

impl Future for CatchPanic {
    type Output = Check;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Check> {
        let inner = &mut self.0;
        match std::panic::catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Poll::Ready(Err(Failure(format!("panicked: {}", text.unwrap_or_default()))))
            }
        }
    }
}

impl Case {
    async fn listen(&self) -> Result<Listener, Failure> {
        self.listen_with(Port::ANY, ListenOptions::default()).await
    }

    async fn listen_with(&self, port: Port, options: ListenOptions) -> Result<Listener, Failure> {
        Ok(self.pair.callee.listen(port, options).await?)
    }

    async fn listen_messages(&self) -> Result<MessageListener, Failure> {
        Ok(self.pair.callee.listen_messages(Port::ANY, ListenOptions::default()).await?)
    }

    /// A connection, both sides of it: caller's, callee's.
    async fn streams(&self) -> Result<(Stream, Stream), Failure> {
        let mut listener = self.listen().await?;
        let caller = self.pair.caller.connect(listener.local_addr()).await?;
        let (callee, _) = listener.accept().await?;
        Ok((caller, callee))
    }

    /// A message connection, both sides of it: caller's, callee's.
    async fn messages(&self) -> Result<(Messages, Messages), Failure> {
        let mut listener = self.listen_messages().await?;
        let caller = self.pair.caller.connect_messages(listener.local_addr()).await?;
        let (callee, _) = listener.accept().await?;
        Ok((caller, callee))
    }

    fn callee_addr(&self, port: Port) -> Addr {
        Addr::new(self.callee_cid(), port)
    }

    fn callee_cid(&self) -> Cid {
        self.pair.callee.local_cid()
    }
}

impl Failure {
    /// A failure with this explanation.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match std::error::Error::source(&error) {
            Some(source) => Self(format!("unexpected error: {error}: {source}")),
            None => Self(format!("unexpected error: {error}")),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(format!("unexpected error ({:?}): {error}", error.kind()))
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { behaviour, direction, outcome, elapsed } = self;
        match outcome {
            Outcome::Passed => write!(f, "ok      {behaviour} ({direction}, {} ms)", elapsed.as_millis()),
            Outcome::Failed(failure) => {
                write!(f, "FAILED  {behaviour} ({direction}, {} ms): {failure}", elapsed.as_millis())
            }
            Outcome::Skipped(reason) => write!(f, "skipped {behaviour} ({direction}): {reason}"),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_half_closing_behaviours_are_called_is_right() {
        for name in HALF_CLOSING {
            assert!(BEHAVIOURS.iter().any(|behaviour| behaviour.name == name), "{name}");
        }
    }
}
