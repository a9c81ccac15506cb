//! iceoryx2: publish and subscribe in shared memory, and its events.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use tombolo_benches::payload::{number_of, room};
use tombolo_benches::probe::{Probe, Test};

use crate::link::{Link, Loans, Meet, Wakes};
use crate::place;

/// What the ports of the service in one process and without locks around them are called.
pub(crate) type Ipc = ipc::Service;

/// Messages that a subscriber has room for, one at a time.
const SHALLOW: usize = 2;
/// The same where many are under way.
const DEEP: usize = 256;
/// Of all messages under way, so that they fit a second-level cache's neighbourhood rather than flood the machine's memory.
const BYTES_UNDER_WAY: usize = 8 << 20;
/// Loans one way.
const LOANS_UNDER_WAY: usize = 12;
/// A wait that is longer is given up, so that the process looks whether it is still wanted.
const WAIT: Duration = Duration::from_secs(10);

/// A node whose files are under `at`, or in shared memory under its name.
pub(crate) fn node(at: &Path) -> anyhow::Result<Node<Ipc>> {
    set_log_level(LogLevel::Error);
    let mut config = Config::default();
    let root = at.to_str().context("a folder whose name is not text")?;
    config.global.set_root_path(&root.try_into().map_err(|error| anyhow!("{root}: {error:?}"))?);
    let prefix = format!("{}_", place::name_of(at));
    config.global.prefix = prefix.as_str().try_into().map_err(|error| anyhow!("{prefix}: {error:?}"))?;
    let node = NodeBuilder::new().config(&config).signal_handling_mode(SignalHandlingMode::Disabled);
    node.create::<Ipc>().map_err(said)
}

/// Its errors as ours.
pub(crate) fn said(error: impl Debug) -> anyhow::Error {
    anyhow!("iceoryx2 said {error:?}")
}

const THERE: &str = "there";
const BACK: &str = "back";

/// Messages loaned, written and read in place.
#[derive(Debug)]
pub(crate) struct InPlace {
    publisher: Publisher<Ipc, [u8], ()>,
    subscriber: Subscriber<Ipc, [u8], ()>,
    /// Dropped last: the ports' services are its own.
    _node: Node<Ipc>,
}

impl InPlace {
    fn open(at: &Path, probe: &Probe, [from, to]: [&str; 2]) -> anyhow::Result<Self> {
        let node = node(at)?;
        let depth = match probe.test {
            Test::RoundTrip | Test::LoanRoundTrip => SHALLOW,
            // As many as Tombolo's.
            Test::LoanOneWay => LOANS_UNDER_WAY,
            _ => (BYTES_UNDER_WAY / probe.bytes).clamp(SHALLOW, DEEP),
        };
        let service = |name: &str| {
            node.service_builder(&name.try_into().map_err(said)?)
                .publish_subscribe::<[u8]>()
                // With overflow messages would be lost.
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(depth)
                .subscriber_max_borrowed_samples(1)
                .history_size(0)
                .max_publishers(1)
                .max_subscribers(1)
                .open_or_create()
                .map_err(said)
        };
        let subscriber = service(from)?.subscriber_builder().buffer_size(depth).create().map_err(said)?;
        let publisher = service(to)?
            .publisher_builder()
            .initial_max_slice_len(probe.bytes)
            .max_loaned_samples(1)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()
            .map_err(said)?;
        Ok(Self { publisher, subscriber, _node: node })
    }

    #[inline]
    fn next(&self) -> anyhow::Result<iceoryx2::sample::Sample<Ipc, [u8], ()>> {
        loop {
            if let Some(sample) = self.subscriber.receive().map_err(said)? {
                return Ok(sample);
            }
            std::hint::spin_loop();
        }
    }
}

impl Meet for InPlace {
    type Offer = Self;

    fn offer(at: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        Ok((Self::open(at, probe, [BACK, THERE])?, at.display().to_string()))
    }

    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self> {
        Self::open(Path::new(word), probe, [THERE, BACK])
    }

    fn accept(offer: Self::Offer) -> anyhow::Result<Self> {
        Ok(offer)
    }
}

impl Link for InPlace {
    #[inline]
    fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let sample = self.publisher.loan_slice_uninit(message.len()).map_err(said)?;
        let receivers = sample.write_from_slice(message).send().map_err(said)?;
        ensure!(receivers == 1, "the message went to {receivers} subscribers");
        Ok(())
    }

    #[inline]
    fn receive(&mut self, read: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        read(&self.next()?)
    }
}

impl Loans for InPlace {
    #[inline]
    #[allow(unsafe_code, reason = "to hand over a loan whose bytes are not written is what is measured")]
    fn send_loan(&mut self, bytes: usize, number: u64) -> anyhow::Result<()> {
        let mut loan = self.publisher.loan_slice_uninit(bytes).map_err(said)?;
        for (at, byte) in loan.payload_mut().iter_mut().zip(number.to_le_bytes()) {
            at.write(byte);
        }
        // SAFETY: what is not written is memory of a shared segment, which the kernel has filled with zeros; every value
        // of a byte is valid.
        let sample = unsafe { loan.assume_init() };
        let receivers = sample.send().map_err(said)?;
        ensure!(receivers == 1, "the loan went to {receivers} subscribers");
        Ok(())
    }

    #[inline]
    fn receive_loan(&mut self) -> anyhow::Result<Option<u64>> {
        Ok(number_of(&self.next()?))
    }
}

/// Messages copied in from a buffer of the sender's and out to one of the receiver's.
#[derive(Debug)]
pub(crate) struct Copying {
    link: InPlace,
    own: Vec<u8>,
}

fn own_buffer(bytes: usize) -> Vec<u8> {
    let mut own = room(bytes);
    own.resize(bytes, 0);
    own
}

impl Meet for Copying {
    type Offer = Self;

    fn offer(at: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        let (link, word) = InPlace::offer(at, probe)?;
        Ok((Self { link, own: own_buffer(probe.bytes) }, word))
    }

    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self> {
        Ok(Self { link: InPlace::join(word, probe)?, own: own_buffer(probe.bytes) })
    }

    fn accept(offer: Self::Offer) -> anyhow::Result<Self> {
        Ok(offer)
    }
}

impl Link for Copying {
    #[inline]
    fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        self.link.send(message)
    }

    #[inline]
    fn receive(&mut self, read: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let sample = self.link.next()?;
        let own = self.own.get_mut(..sample.payload().len()).context("a message of another length")?;
        own.copy_from_slice(&sample);
        drop(sample);
        read(&self.own)
    }
}

/// Events, whose listener sleeps in the kernel. They carry no bytes.
#[derive(Debug)]
pub(crate) struct Events {
    notifier: Notifier<Ipc>,
    listener: Listener<Ipc>,
    _node: Node<Ipc>,
}

impl Events {
    fn open(at: &Path, [from, to]: [&str; 2]) -> anyhow::Result<Self> {
        let node = node(at)?;
        let service = |name: &str| {
            node.service_builder(&name.try_into().map_err(said)?).event().open_or_create().map_err(said)
        };
        let listener = service(from)?.listener_builder().create().map_err(said)?;
        let notifier = service(to)?.notifier_builder().create().map_err(said)?;
        Ok(Self { notifier, listener, _node: node })
    }
}

impl Meet for Events {
    const NOTE: Option<&str> = Some("an event without bytes");
    type Offer = Self;

    fn offer(at: &Path, _: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        Ok((Self::open(at, [BACK, THERE])?, at.display().to_string()))
    }

    fn join(word: &str, _: &Probe) -> anyhow::Result<Self> {
        Self::open(Path::new(word), [THERE, BACK])
    }

    fn accept(offer: Self::Offer) -> anyhow::Result<Self> {
        Ok(offer)
    }
}

impl Wakes for Events {
    fn wake(&mut self) -> anyhow::Result<()> {
        let listeners = self.notifier.notify().map_err(said)?;
        ensure!(listeners == 1, "the event went to {listeners} listeners");
        Ok(())
    }

    fn sleep(&mut self) -> anyhow::Result<()> {
        let events = self.listener.timed_wait(|_| {}, WAIT).map_err(said)?;
        ensure!(events > 0, "no event within {WAIT:?}");
        Ok(())
    }
}
