//! Rings between two threads of one process: what two processes could have if nothing had to be shared but memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, anyhow, bail};
use crossbeam::queue::ArrayQueue;
use tombolo_benches::duo;
use tombolo_benches::payload::Payload;
use tombolo_benches::probe::{Probe, Reading, Test};
use tombolo_benches::turns::Leading;

use crate::link::Link;
use crate::messages::streams::Framed;

const NOTE: &str = "in one process: two threads, and no memory shared with anybody else";
/// Messages that a ring has room for.
const DEPTH: usize = 256;
/// Of a ring of bytes.
const RING_BYTES: usize = 8 << 20;

/// What the other thread is to do next, and how often.
#[derive(Clone, Copy, Debug)]
enum Job {
    Echo(u64),
    Drain(u64),
}

/// The leader's part for two ends in one process. The follower's process only takes part in the floor.
fn lead<L: Link + Send>(
    leading: &mut Leading,
    (mut near, mut far): (L, L),
    depth: &str,
) -> anyhow::Result<Reading> {
    leading.note(format!("{NOTE}; {depth}"));
    let probe = leading.probe().clone();
    let mut payload = Payload::new(probe.bytes);
    let mut next = 0;
    let (jobs, due) = channel();
    let (told, done) = channel();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| carry_out(&mut far, &probe, due, told));
        let reading = match probe.test {
            Test::RoundTrip => leading.times(None, |mut rounds| {
                begin(&jobs, Job::Echo(rounds.count()))?;
                while rounds.another() {
                    near.send(payload.numbered(next))?;
                    near.receive(|message| payload.check(message, next))?;
                    next += 1;
                }
                finished(&done)?;
                Ok(rounds)
            }),
            Test::OneWay | Test::OneWayBatched | Test::Stream => leading.rates(None, |count| {
                begin(&jobs, Job::Drain(count))?;
                near.send_many(next..next + count, &mut payload)?;
                next += count;
                finished(&done)
            }),
            test => bail!("no measurement of {test:?} in one process"),
        };
        drop(jobs);
        other.join().map_err(|_| anyhow!("the other thread panicked"))??;
        reading
    })
}

fn begin(jobs: &Sender<Job>, job: Job) -> anyhow::Result<()> {
    jobs.send(job).context("the other thread has failed")
}

fn finished(done: &Receiver<()>) -> anyhow::Result<()> {
    done.recv().context("the other thread has failed")
}

fn carry_out(far: &mut impl Link, probe: &Probe, due: Receiver<Job>, told: Sender<()>) -> anyhow::Result<()> {
    duo::pin_follower();
    let mut payload = Payload::new(probe.bytes);
    let mut next = 0;
    for job in due {
        let count = match job {
            Job::Echo(count) => {
                for number in next..next + count {
                    far.receive(|message| payload.check(message, number))?;
                    far.send(payload.numbered(number))?;
                }
                count
            }
            Job::Drain(count) => {
                far.receive_many(next..next + count, &mut payload)?;
                count
            }
        };
        next += count;
        if told.send(()).is_err() {
            break;
        }
    }
    Ok(())
}

/// A ring of messages of `N` bytes.
trait Ring<const N: usize> {
    type Tx: Send;
    type Rx: Send;
    fn ring() -> (Self::Tx, Self::Rx);
    /// Gives the message back if there is no room.
    fn push(tx: &mut Self::Tx, message: [u8; N]) -> Result<(), [u8; N]>;
    fn pop(rx: &mut Self::Rx) -> Option<[u8; N]>;
}

/// One end of two rings.
struct Ends<R: Ring<N>, const N: usize> {
    tx: R::Tx,
    rx: R::Rx,
}

impl<R: Ring<N>, const N: usize> Ends<R, N> {
    fn pair() -> (Self, Self) {
        let ((tx, far_rx), (far_tx, rx)) = (R::ring(), R::ring());
        (Self { tx, rx }, Self { tx: far_tx, rx: far_rx })
    }
}

impl<R: Ring<N>, const N: usize> Link for Ends<R, N> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let mut message: [u8; N] = message.try_into().context("a message of another length")?;
        while let Err(back) = R::push(&mut self.tx, message) {
            message = back;
            std::hint::spin_loop();
        }
        Ok(())
    }

    #[inline]
    fn receive(&mut self, read: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        loop {
            if let Some(message) = R::pop(&mut self.rx) {
                return read(&message);
            }
            std::hint::spin_loop();
        }
    }
}

struct Rtrb;

impl<const N: usize> Ring<N> for Rtrb {
    type Tx = rtrb::Producer<[u8; N]>;
    type Rx = rtrb::Consumer<[u8; N]>;

    fn ring() -> (Self::Tx, Self::Rx) {
        rtrb::RingBuffer::new(DEPTH)
    }

    #[inline]
    fn push(tx: &mut Self::Tx, message: [u8; N]) -> Result<(), [u8; N]> {
        tx.push(message).map_err(|rtrb::PushError::Full(back)| back)
    }

    #[inline]
    fn pop(rx: &mut Self::Rx) -> Option<[u8; N]> {
        rx.pop().ok()
    }
}

struct Channel;

impl<const N: usize> Ring<N> for Channel {
    type Tx = crossbeam::channel::Sender<[u8; N]>;
    type Rx = crossbeam::channel::Receiver<[u8; N]>;

    fn ring() -> (Self::Tx, Self::Rx) {
        crossbeam::channel::bounded(DEPTH)
    }

    #[inline]
    fn push(tx: &mut Self::Tx, message: [u8; N]) -> Result<(), [u8; N]> {
        tx.try_send(message).map_err(crossbeam::channel::TrySendError::into_inner)
    }

    #[inline]
    fn pop(rx: &mut Self::Rx) -> Option<[u8; N]> {
        rx.try_recv().ok()
    }
}

struct Queue;

impl<const N: usize> Ring<N> for Queue {
    type Tx = Arc<ArrayQueue<[u8; N]>>;
    type Rx = Arc<ArrayQueue<[u8; N]>>;

    fn ring() -> (Self::Tx, Self::Rx) {
        let queue = Arc::new(ArrayQueue::new(DEPTH));
        (Arc::clone(&queue), queue)
    }

    #[inline]
    fn push(tx: &mut Self::Tx, message: [u8; N]) -> Result<(), [u8; N]> {
        tx.push(message)
    }

    #[inline]
    fn pop(rx: &mut Self::Rx) -> Option<[u8; N]> {
        rx.pop()
    }
}

/// Several messages at once, as a chunk of the ring.
struct Chunks {
    tx: rtrb::Producer<[u8; 64]>,
    rx: rtrb::Consumer<[u8; 64]>,
}

/// Messages of a chunk: half of what is quickest to fill is the other's to read.
const CHUNK: usize = DEPTH / 4;

impl Link for Chunks {
    fn send(&mut self, _: &[u8]) -> anyhow::Result<()> {
        bail!("made for several messages at once")
    }

    fn receive(&mut self, _: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        bail!("made for several messages at once")
    }

    fn send_many(&mut self, numbers: Range<u64>, payload: &mut Payload) -> anyhow::Result<()> {
        let mut at = numbers.start;
        while at < numbers.end {
            let room = self.tx.slots().min(CHUNK).min((numbers.end - at) as usize);
            let Ok(chunk) = self.tx.write_chunk_uninit(room) else { continue };
            let messages = (at..at + room as u64).map(|number| {
                let mut message = [0; 64];
                message.copy_from_slice(payload.numbered(number));
                message
            });
            at += chunk.fill_from_iter(messages) as u64;
        }
        Ok(())
    }

    fn receive_many(&mut self, numbers: Range<u64>, payload: &mut Payload) -> anyhow::Result<()> {
        let mut at = numbers.start;
        while at < numbers.end {
            let there = self.rx.slots().min(CHUNK).min((numbers.end - at) as usize);
            let Ok(chunk) = self.rx.read_chunk(there) else { continue };
            let (first, second) = chunk.as_slices();
            for message in first.iter().chain(second) {
                payload.check(message, at)?;
                at += 1;
            }
            chunk.commit_all();
        }
        Ok(())
    }
}

fn lead_ring<R: Ring<56> + Ring<64> + Ring<4096>>(leading: &mut Leading) -> anyhow::Result<Reading> {
    let depth = format!("{DEPTH} messages deep");
    match leading.probe().bytes {
        56 => lead(leading, Ends::<R, 56>::pair(), &depth),
        64 => lead(leading, Ends::<R, 64>::pair(), &depth),
        4096 => lead(leading, Ends::<R, 4096>::pair(), &depth),
        bytes => bail!("not built for messages of {bytes} bytes"),
    }
}

/// rtrb: a ring of messages, or of bytes for streams.
pub(crate) fn lead_rtrb(leading: &mut Leading) -> anyhow::Result<Reading> {
    let probe = leading.probe().clone();
    match probe.test {
        Test::Stream => {
            let ((tx, far_rx), (far_tx, rx)) =
                (rtrb::RingBuffer::new(RING_BYTES), rtrb::RingBuffer::new(RING_BYTES));
            let ends = (Framed::new(rx, tx, &probe), Framed::new(far_rx, far_tx, &probe));
            lead(leading, ends, "a ring of 8 MiB; received bytes are copied out of it")
        }
        Test::OneWayBatched => {
            let ((tx, far_rx), (far_tx, rx)) = (rtrb::RingBuffer::new(DEPTH), rtrb::RingBuffer::new(DEPTH));
            lead(
                leading,
                (Chunks { tx, rx }, Chunks { tx: far_tx, rx: far_rx }),
                "chunks of up to 64 messages",
            )
        }
        _ => lead_ring::<Rtrb>(leading),
    }
}

/// crossbeam's bounded channel.
pub(crate) fn lead_channel(leading: &mut Leading) -> anyhow::Result<Reading> {
    lead_ring::<Channel>(leading)
}

/// crossbeam's queue of fixed size.
pub(crate) fn lead_queue(leading: &mut Leading) -> anyhow::Result<Reading> {
    lead_ring::<Queue>(leading)
}
