//! A measurement and its floor, in turns: both ends of one way between two processes, and the two lines between the same two.
//!
//! The leader gives an order, waits until the follower is about to carry it out, and measures; a batch takes a millisecond or two, so that most are
//! not interrupted by whatever else runs on these cores. Before each batch of the way comes one of the lines.
//!
//! ```text
//! leader                                        follower
//! times("echo", one batch of round trips)       next_order() -> "echo": batch(as many answers)
//! rates("drain", one batch of messages)         next_order() -> "drain": batch(as many received)
//! wakes("sleep", wake it once)                  next_order() -> "sleep": wakes(sleep until woken once)
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tombolo_transport::mem::ticks;

use crate::duo::{self, Follower, Leader};
use crate::floor;
use crate::lines::{LINES_BYTES, Lines, Poll, Side};
use crate::probe::{Floors, Probe, Reading, Test};
use crate::rings::{open_shared, shared_file};
use crate::rounds::{Rounds, Samples};
use crate::series::Series;

/// Of the two lines, each way of polling: a third of a millisecond.
const LINE_ROUNDS: u64 = 2_000;
/// How long a batch should take: so short that on a busy machine too some are not interrupted.
const BATCH: Duration = Duration::from_millis(2);
/// Batches that warm up and tell how many rounds make one: the first are too short to tell well.
const WARM_UPS: usize = 4;
/// Of the batch that tells how long a round takes, and of every batch at the least. All batches are multiples of it.
const ROUNDS_MIN: u64 = 64;
const ROUNDS_MAX: u64 = 1 << 20;
/// However little time there is.
const BATCHES_MIN: usize = 3;
/// Between two wakes, for whoever was woken to be asleep again.
const NAP: Duration = Duration::from_micros(300);
const WAKES_PER_BATCH: u64 = 16;

/// Orders that no way has to know.
const MAPPED: &str = "mapped";
const LINES: &str = "lines";

/// The leader's end.
#[derive(Debug)]
pub struct Leading {
    follower: Follower,
    lines: Lines,
    probe: Probe,
    time: Duration,
    note: Option<String>,
}

/// The follower's end.
#[derive(Debug)]
pub struct Following {
    leader: Leader,
    lines: Lines,
}

impl Leading {
    /// Starts the follower. Both threads are pinned when the first batch begins, so that threads started before are free to run anywhere;
    /// one that is part of what is measured has to pin itself ([`duo::pin_leader`], [`duo::pin_follower`]).
    pub fn start(probe: &Probe, time: Duration) -> anyhow::Result<Self> {
        let (file, path) = shared_file(LINES_BYTES)?;
        let lines = Lines::map(&file, Side::Leader)?;
        let mut follower = Follower::start(&[&path.to_string_lossy(), &serde_json::to_string(probe)?])?;
        // Until it has mapped the lines, the file must live.
        follower.order(MAPPED)?;
        Ok(Self { follower, lines, probe: probe.clone(), time, note: None })
    }

    /// What is measured.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// What a reader of the figure has to know.
    pub fn note(&mut self, note: impl Into<String>) {
        self.note = Some(note.into());
    }

    /// Gives an order and waits until the follower is about to carry it out, or has.
    ///
    /// # Errors
    /// If the follower is gone.
    pub fn order(&mut self, order: &str) -> anyhow::Result<()> {
        self.follower.order(order)
    }

    /// Times rounds. With an order, the follower carries out a [`Following::batch`] of as many; without, it serves by itself.
    ///
    /// # Errors
    /// As `work`, or if the follower is gone.
    pub fn times(
        &mut self,
        order: Option<&str>,
        mut work: impl FnMut(Rounds) -> anyhow::Result<Rounds>,
    ) -> anyhow::Result<Reading> {
        let (mut taken, mut floor) = (Samples::default(), LineSamples::default());
        self.batches(order, &mut floor, |count, counted| {
            let rounds = work(Rounds::new(count))?;
            if counted {
                taken.add(&rounds);
            }
            Ok(())
        })?;
        let percentiles = taken.percentiles();
        self.reading(taken.median_ns(), percentiles, floor, None)
    }

    /// Times batches of so many messages, or calls, that `work` is told. It may return before the last has arrived: the end is when the
    /// follower's [`Following::batch`] has returned too.
    ///
    /// # Errors
    /// As `work`, or if the follower is gone.
    pub fn rates(
        &mut self,
        order: Option<&str>,
        mut work: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<Reading> {
        let mut floor = LineSamples::default();
        let per_ns = self.batches(order, &mut floor, |count, _| work(count))?.median();
        let value = match self.probe.test {
            Test::Stream => per_ns * self.probe.bytes as f64,
            _ => per_ns * 1e3,
        };
        self.reading(value, Vec::new(), floor, None)
    }

    /// Times wakes: from just before `wake` until whoever sleeps in [`Following::wakes`] runs. In turns with an eventfd's.
    ///
    /// # Errors
    /// As `wake`, or if the follower is gone.
    pub fn wakes(
        &mut self,
        order: &str,
        mut wake: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<Reading> {
        let (mut taken, mut floor, mut raw) =
            (Samples::default(), LineSamples::default(), Samples::default());
        let deadline = Instant::now() + self.time;
        let mut batch = 0;
        while batch < BATCHES_MIN || Instant::now() < deadline {
            self.measure_lines(&mut floor)?;
            floor::eventfd_wakes(WAKES_PER_BATCH, NAP, &mut raw)?;
            self.order(&format!("{order} {WAKES_PER_BATCH}"))?;
            for number in 0..WAKES_PER_BATCH {
                std::thread::sleep(NAP);
                let woke_at = ticks();
                wake(number)?;
                let runs_at = self.lines.await_told()?;
                // The first of a batch finds a follower that was just started.
                if number > 0 {
                    taken.push_ticks(runs_at.saturating_sub(woke_at));
                }
            }
            batch += 1;
        }
        let percentiles = taken.percentiles();
        self.reading(taken.median_ns(), percentiles, floor, Some(raw.median_ns()))
    }

    /// Runs batches until the time is over: a floor, then one of `work`. Returns rounds for each nanosecond.
    fn batches(
        &mut self,
        order: Option<&str>,
        floor: &mut LineSamples,
        mut work: impl FnMut(u64, bool) -> anyhow::Result<()>,
    ) -> anyhow::Result<Series> {
        let mut rates = Series::default();
        let mut count = ROUNDS_MIN;
        let mut deadline = None;
        let mut batch = 0;
        loop {
            self.measure_lines(floor)?;
            if let Some(order) = order {
                self.order(&format!("{order} {count}"))?;
            }
            if order.is_none() {
                // A server that serves by itself may be asleep by now.
                work(ROUNDS_MIN, false)?;
            }
            let began = Instant::now();
            work(count, batch >= WARM_UPS)?;
            if order.is_some() {
                self.lines.lead(1, Poll::Pausing)?;
            }
            let rate = count as f64 / began.elapsed().as_nanos().max(1) as f64;
            if batch < WARM_UPS {
                count = ((BATCH.as_nanos() as f64 * rate) as u64).clamp(ROUNDS_MIN, ROUNDS_MAX);
                count = count.next_multiple_of(ROUNDS_MIN);
                deadline = Some(Instant::now() + self.time);
            } else {
                rates.push(rate);
            }
            batch += 1;
            if batch >= WARM_UPS + BATCHES_MIN && deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Ok(rates);
            }
        }
    }

    fn measure_lines(&mut self, floor: &mut LineSamples) -> anyhow::Result<()> {
        duo::pin_leader();
        let [mut hot, mut pausing] = [Rounds::new(LINE_ROUNDS), Rounds::new(LINE_ROUNDS)];
        self.order(&format!("{LINES} {LINE_ROUNDS}"))?;
        self.lines.lead_timed(&mut hot, Poll::Hot)?;
        self.lines.lead_timed(&mut pausing, Poll::Pausing)?;
        floor.hot.add(&hot);
        floor.pausing.add(&pausing);
        Ok(())
    }

    fn reading(
        &self,
        value: f64,
        percentiles: Vec<(f64, f64)>,
        floor: LineSamples,
        eventfd_ns: Option<f64>,
    ) -> anyhow::Result<Reading> {
        let memcpy_rate = floor::memcpy_gb_per_s(self.probe.bytes.max(1), 3).median();
        Ok(Reading {
            probe: self.probe.clone(),
            value,
            percentiles,
            floors: Floors {
                lines_ns: floor.better(),
                memcpy_ns: self.probe.bytes as f64 / memcpy_rate,
                eventfd_ns,
            },
            note: self.note.clone(),
        })
    }
}

impl Following {
    /// The follower's end in the process that [`Leading::start`] started with these arguments, and what is measured.
    pub fn start(leader: Leader, args: &[String]) -> anyhow::Result<(Self, Probe)> {
        let [path, probe] = args else { bail!("this process is to be started by another of its kind") };
        let lines = Lines::map(open_shared(path)?, Side::Follower)?;
        let probe = serde_json::from_str(probe).context("reading what is to be measured")?;
        Ok((Self { leader, lines }, probe))
    }

    /// The next order for the way, without the number of rounds; `None` when there are no more. Orders for the lines are carried out here.
    pub fn next_order(&mut self) -> anyhow::Result<Option<Order>> {
        while let Some(words) = self.leader.next_order()? {
            let count = words.last().and_then(|word| word.parse().ok());
            let Some(word) = words.first() else { continue };
            let count = count.unwrap_or(0);
            match word.as_str() {
                MAPPED => self.leader.ready()?,
                LINES => {
                    duo::pin_follower();
                    self.leader.ready()?;
                    for poll in Poll::ALL {
                        self.lines.follow(count, poll)?;
                    }
                }
                _ => return Ok(Some(Order { word: word.clone(), words: words[1..].to_vec(), count })),
            }
        }
        Ok(None)
    }

    /// Says that an order which is no batch has been carried out, or is about to be.
    pub fn ready(&self) -> anyhow::Result<()> {
        self.leader.ready()
    }

    /// Carries out a batch.
    ///
    /// # Errors
    /// As `work`.
    pub fn batch(
        &mut self,
        order: &Order,
        work: impl FnOnce(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.leader.ready()?;
        work(order.count)?;
        self.lines.follow(1, Poll::Pausing)
    }

    /// Sleeps in `sleep` until woken, as often as the order says.
    ///
    /// # Errors
    /// As `sleep`.
    pub fn wakes(
        &mut self,
        order: &Order,
        mut sleep: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.leader.ready()?;
        for number in 0..order.count {
            sleep(number)?;
            self.lines.tell(ticks());
        }
        Ok(())
    }
}

/// What a follower is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What.
    pub word: String,
    /// What follows it.
    pub words: Vec<String>,
    /// How often: the last word as a number, else 0.
    pub count: u64,
}

/// Of the two lines, by each way of polling.
#[derive(Debug, Default)]
struct LineSamples {
    hot: Samples,
    pausing: Samples,
}

impl LineSamples {
    /// Middle and 99th percentile of the way of polling whose middle is lower.
    fn better(mut self) -> [f64; 2] {
        let [hot, pausing] = [&mut self.hot, &mut self.pausing].map(|samples| {
            let found = samples.at(&[50.0, 99.0]);
            [found[0].1, found[1].1]
        });
        if hot[0] <= pausing[0] { hot } else { pausing }
    }
}
