//! Messages between two ends: what a peer has to do, and how every peer is measured at it.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use tombolo_benches::payload::Payload;
use tombolo_benches::probe::{Probe, Reading, Test};
use tombolo_benches::turns::{Following, Leading};

/// One end of a way to send messages in both directions.
pub(crate) trait Link {
    /// Sends a message, which is copied to where it leaves from: the one write of its bytes. Waits for room.
    fn send(&mut self, message: &[u8]) -> anyhow::Result<()>;

    /// Waits for a message and has it read where the way has put it.
    fn receive(&mut self, read: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()>;

    /// Sends the messages of these numbers, for ways that can publish several at once.
    fn send_many(&mut self, numbers: Range<u64>, payload: &mut Payload) -> anyhow::Result<()> {
        for number in numbers {
            self.send(payload.numbered(number))?;
        }
        Ok(())
    }

    /// Receives the messages of these numbers, for ways that can hand over several at once.
    fn receive_many(&mut self, numbers: Range<u64>, payload: &mut Payload) -> anyhow::Result<()> {
        for number in numbers {
            self.receive(|message| payload.check(message, number))?;
        }
        Ok(())
    }
}

/// Loans: messages of which nothing is written or read but their number, in their first eight bytes.
pub(crate) trait Loans {
    /// Passes on a message of so many bytes.
    fn send_loan(&mut self, bytes: usize, number: u64) -> anyhow::Result<()>;

    /// Waits for a message, and gives the number that it has.
    fn receive_loan(&mut self) -> anyhow::Result<Option<u64>>;
}

/// Wakes of whoever sleeps at the other end.
pub(crate) trait Wakes {
    /// Wakes the other end.
    fn wake(&mut self) -> anyhow::Result<()>;

    /// Sleeps until woken.
    fn sleep(&mut self) -> anyhow::Result<()>;
}

/// How the two ends of a link find each other.
pub(crate) trait Meet: Sized {
    /// What the leader has before the follower comes.
    type Offer;

    /// What a reader of every figure of it has to know.
    const NOTE: Option<&str> = None;

    /// Whether the follower joins only while the leader accepts, because both have to take part.
    const TOGETHER: bool = false;

    /// The leader's first step: makes what the follower will join by `word`. Files go to the folder `at`.
    fn offer(at: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)>;

    /// The follower's step.
    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self>;

    /// The leader's second step.
    fn accept(offer: Self::Offer) -> anyhow::Result<Self>;
}

const JOIN: &str = "join";
const ECHO: &str = "echo";
const DRAIN: &str = "drain";
const SLEEP: &str = "sleep";
/// The last order of every way: what it holds goes.
pub(crate) const LEAVE: &str = "leave";

/// The leader's end of a link.
fn meet<L: Meet>(leading: &mut Leading, at: &Path) -> anyhow::Result<L> {
    if let Some(note) = L::NOTE {
        leading.note(note);
    }
    let (offer, word) = L::offer(at, &leading.probe().clone()).context("making the leader's end")?;
    leading.order(&format!("{JOIN} {word}"))?;
    L::accept(offer).context("accepting the follower")
}

/// The follower's end of a link.
fn join<L: Meet>(probe: &Probe, following: &mut Following) -> anyhow::Result<L> {
    let order = following.next_order()?.context("no order to join")?;
    let [word] = order.words.as_slice() else { bail!("`{order:?}` where `{JOIN} WORD` was due") };
    if L::TOGETHER {
        following.ready()?;
    }
    let link = L::join(word, probe).context("joining the leader")?;
    if !L::TOGETHER {
        following.ready()?;
    }
    Ok(link)
}

/// The leader's part for a way of messages.
pub(crate) fn lead<L: Link + Meet>(leading: &mut Leading, at: &Path) -> anyhow::Result<Reading> {
    let mut link: L = meet(leading, at)?;
    let probe = leading.probe().clone();
    let mut payload = Payload::new(probe.bytes);
    let mut next = 0;
    match probe.test {
        Test::RoundTrip => leading.times(Some(ECHO), |mut rounds| {
            while rounds.another() {
                link.send(payload.numbered(next))?;
                link.receive(|message| payload.check(message, next))?;
                next += 1;
            }
            Ok(rounds)
        }),
        Test::OneWay | Test::OneWayBatched | Test::Stream => leading.rates(Some(DRAIN), |count| {
            let numbers = next..next + count;
            next += count;
            link.send_many(numbers, &mut payload)
        }),
        Test::Wake => leading.wakes(SLEEP, |number| link.send(payload.numbered(number))),
        other => bail!("no measurement of {other:?} by messages"),
    }
}

/// The follower's part of [`lead`].
pub(crate) fn follow<L: Link + Meet>(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let mut link: L = join(probe, following)?;
    let mut payload = Payload::new(probe.bytes);
    let mut next = 0;
    while let Some(order) = following.next_order()? {
        match order.word.as_str() {
            ECHO => following.batch(&order, |count| {
                for _ in 0..count {
                    link.receive(|message| payload.check(message, next))?;
                    link.send(payload.numbered(next))?;
                    next += 1;
                }
                Ok(())
            })?,
            DRAIN => following.batch(&order, |count| {
                let numbers = next..next + count;
                next += count;
                link.receive_many(numbers, &mut payload)
            })?,
            SLEEP => {
                following.wakes(&order, |number| link.receive(|message| payload.check(message, number)))?;
            }
            LEAVE => break,
            other => bail!("unknown order `{other}`"),
        }
    }
    Ok(())
}

/// The leader's part for a way of loans.
pub(crate) fn lead_loans<L: Loans + Meet>(leading: &mut Leading, at: &Path) -> anyhow::Result<Reading> {
    let mut link: L = meet(leading, at)?;
    let probe = leading.probe().clone();
    let mut number = 0;
    match probe.test {
        Test::LoanRoundTrip => leading.times(Some(ECHO), |mut rounds| {
            while rounds.another() {
                link.send_loan(probe.bytes, number)?;
                expect(&mut link, number)?;
                number += 1;
            }
            Ok(rounds)
        }),
        Test::LoanOneWay => leading.rates(Some(DRAIN), |count| {
            for _ in 0..count {
                link.send_loan(probe.bytes, number)?;
                number += 1;
            }
            Ok(())
        }),
        other => bail!("no measurement of {other:?} by loans"),
    }
}

#[inline]
fn expect(link: &mut impl Loans, number: u64) -> anyhow::Result<()> {
    let found = link.receive_loan()?;
    ensure!(found == Some(number), "loan {found:?} where {number} was due");
    Ok(())
}

/// The follower's part of [`lead_loans`].
pub(crate) fn follow_loans<L: Loans + Meet>(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let mut link: L = join(probe, following)?;
    let mut number = 0;
    while let Some(order) = following.next_order()? {
        match order.word.as_str() {
            word @ (ECHO | DRAIN) => following.batch(&order, |count| {
                for _ in 0..count {
                    expect(&mut link, number)?;
                    if word == ECHO {
                        link.send_loan(probe.bytes, number)?;
                    }
                    number += 1;
                }
                Ok(())
            })?,
            LEAVE => break,
            other => bail!("unknown order `{other}`"),
        }
    }
    Ok(())
}

/// The leader's part for a way to wake.
pub(crate) fn lead_wakes<L: Wakes + Meet>(leading: &mut Leading, at: &Path) -> anyhow::Result<Reading> {
    let mut link: L = meet(leading, at)?;
    leading.wakes(SLEEP, |_| link.wake())
}

/// The follower's part of [`lead_wakes`].
pub(crate) fn follow_wakes<L: Wakes + Meet>(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let mut link: L = join(probe, following)?;
    while let Some(order) = following.next_order()? {
        match order.word.as_str() {
            SLEEP => following.wakes(&order, |_| link.sleep())?,
            LEAVE => break,
            other => bail!("unknown order `{other}`"),
        }
    }
    Ok(())
}
