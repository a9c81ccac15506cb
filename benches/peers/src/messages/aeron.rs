//! Aeron: publications and subscriptions in shared memory, through rusteron, with the media driver in the leader's process.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use rusteron_client::{
    Aeron, AeronContext, AeronExclusivePublication, AeronImage, AeronSubscription, Handlers, IntoCString,
};
use rusteron_media_driver::bindings::aeron_threading_mode_enum::AERON_THREADING_MODE_SHARED;
use rusteron_media_driver::testing::EmbeddedDriver;
use tombolo_benches::payload::Payload;
use tombolo_benches::probe::{Probe, Test};

use crate::link::{Link, Meet};
use crate::place;

/// The largest frame that it allows: with its default of 1408 bytes, every page would be cut in three.
const MTU: usize = 65504;
/// Of a frame.
const HEAD: usize = 32;
/// Of each of a publication's three terms: the driver lets a sender go half a term ahead, and looks only between its sleeps.
const TERM: &str = "16m";
/// Of a frame that carries several messages.
const PACKED: usize = 8 << 10;
/// Frames that one look may hand over.
const FRAMES_AT_ONCE: usize = 64;

const THERE: i32 = 1001;
const BACK: i32 = 1002;
/// For the driver to answer, and for the ends to hear of each other.
const CONNECT: Duration = Duration::from_secs(10);

/// Its errors as ours.
fn said(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("aeron said: {error}")
}

/// One end. The fields are dropped in their order: what belongs to the client before it, and the driver last.
pub(crate) struct Ipc {
    from: Option<AeronImage>,
    subscription: AeronSubscription,
    publication: AeronExclusivePublication,
    _client: Aeron,
    _driver: Option<EmbeddedDriver>,
    messages_per_frame: usize,
}

impl Ipc {
    fn open(
        dir: &str,
        driver: Option<EmbeddedDriver>,
        probe: &Probe,
        [from, to]: [i32; 2],
    ) -> anyhow::Result<Self> {
        let context = AeronContext::new().map_err(said)?;
        context.set_dir(&dir.into_c_string()).map_err(said)?;
        // Its own handler ends the process, also when the driver stops before the last client does.
        let tell = |code: i32, message: &str| eprintln!("aeron error {code}: {message}");
        context.set_error_handler(Some(tell)).map_err(said)?;
        let client = Aeron::new(&context).map_err(said)?;
        client.start().map_err(said)?;
        let channel = format!("aeron:ipc?term-length={TERM}|mtu={MTU}").into_c_string();
        let publication = client
            .async_add_exclusive_publication(&channel, to)
            .and_then(|adding| adding.poll_blocking(CONNECT))
            .map_err(said)?;
        let subscription = client
            .async_add_subscription(c"aeron:ipc", from, Handlers::NONE, Handlers::NONE)
            .and_then(|adding| adding.poll_blocking(CONNECT))
            .map_err(said)?;
        let messages_per_frame = if probe.test == Test::OneWayBatched { PACKED / probe.bytes } else { 1 };
        Ok(Self {
            from: None,
            subscription,
            publication,
            _client: client,
            _driver: driver,
            messages_per_frame,
        })
    }

    /// Waits until both directions are known to both ends.
    fn connected(mut self) -> anyhow::Result<Self> {
        let deadline = Instant::now() + CONNECT;
        while Instant::now() < deadline {
            self.from = self.subscription.image_at_index(0);
            if self.from.is_some() && self.publication.is_connected() {
                return Ok(self);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("the ends did not hear of each other within {CONNECT:?}")
    }

    /// Hands over what is there, up to `limit` frames.
    #[inline]
    fn poll(&self, limit: usize, mut read: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let image = self.from.as_ref().context("not connected")?;
        let mut result = Ok(());
        let count = image.poll_fn(
            |frame, _| {
                if result.is_ok() {
                    result = read(frame);
                }
            },
            limit,
        );
        if count.map_err(said)? == 0 {
            std::hint::spin_loop();
        }
        result
    }
}

impl Meet for Ipc {
    type Offer = Self;

    const NOTE: Option<&str> =
        Some("mtu 65504; the driver's thread, shared by its agents, is in the leader's process");
    const TOGETHER: bool = true;

    fn offer(at: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        let dir = format!("/dev/shm/{}_aeron", place::name_of(at));
        let driver = EmbeddedDriver::launch_with(|context| {
            context.set_dir(&dir.as_str().into_c_string())?;
            context.set_threading_mode(AERON_THREADING_MODE_SHARED)?;
            // Messages do not pass through it, and it must not take a core from either end.
            context.set_shared_idle_strategy(c"sleeping")?;
            Ok(())
        })
        .map_err(said)?;
        Ok((Self::open(&dir, Some(driver), probe, [BACK, THERE])?, dir))
    }

    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self> {
        Self::open(word, None, probe, [THERE, BACK])?.connected()
    }

    fn accept(offer: Self::Offer) -> anyhow::Result<Self> {
        offer.connected()
    }
}

impl Link for Ipc {
    #[inline]
    fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        loop {
            let sent = if message.len() <= MTU - HEAD {
                self.publication.try_claim_owned(message.len()).map(|mut claim| {
                    claim.data().copy_from_slice(message);
                    claim
                })
            } else {
                match self.publication.offer(message) {
                    Ok(_) => return Ok(()),
                    Err(error) => Err(error),
                }
            };
            match sent {
                Ok(claim) => {
                    claim.commit().map_err(said)?;
                    return Ok(());
                }
                Err(error) if error.is_retryable() => std::hint::spin_loop(),
                Err(error) => return Err(said(error)),
            }
        }
    }

    #[inline]
    fn receive(&mut self, read: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut read = Some(read);
        while read.is_some() {
            self.poll(1, |message| read.take().map_or(Ok(()), |read| read(message)))?;
        }
        Ok(())
    }

    fn send_many(&mut self, numbers: Range<u64>, payload: &mut Payload) -> anyhow::Result<()> {
        let mut at = numbers.start;
        while self.messages_per_frame > 1 && at < numbers.end {
            let messages = (numbers.end - at).min(self.messages_per_frame as u64);
            let bytes = payload.numbered(at).len();
            match self.publication.try_claim_owned(messages as usize * bytes) {
                Ok(mut claim) => {
                    for place in claim.data().chunks_exact_mut(bytes) {
                        place.copy_from_slice(payload.numbered(at));
                        at += 1;
                    }
                    claim.commit().map_err(said)?;
                }
                Err(error) if error.is_retryable() => std::hint::spin_loop(),
                Err(error) => return Err(said(error)),
            }
        }
        (at..numbers.end).try_for_each(|number| self.send(payload.numbered(number)))
    }

    /// Every frame is read where it is, be it a part of a message or many messages: nothing is put together.
    fn receive_many(&mut self, numbers: Range<u64>, payload: &mut Payload) -> anyhow::Result<()> {
        let mut number = numbers.start;
        let mut part = 0;
        while number < numbers.end {
            self.poll(FRAMES_AT_ONCE, |mut frame| {
                while !frame.is_empty() {
                    let due = &payload.numbered(number)[part..];
                    let (here, rest) = frame.split_at(due.len().min(frame.len()));
                    ensure!(due.starts_with(here), "what arrived is not message {number} from byte {part}");
                    part = if here.len() == due.len() { 0 } else { part + here.len() };
                    number += u64::from(part == 0);
                    frame = rest;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
