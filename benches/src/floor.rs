//! What the machine itself costs. Each function pins two threads to two cores and takes under a second.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::event::{EventfdFlags, eventfd};

use crate::lines::{Lines, Poll, Side, lines_file};
use crate::pin;
use crate::report::Series;

/// Round trips in one batch of [`cache_line_round_trip`]: long enough that reading the clock costs nothing.
const LINE_ROUNDS: u64 = 5_000;

/// Nanoseconds for a cache line there and another back between two cores, by the better way of polling; one value for
/// each of `batches`.
pub fn cache_line_round_trip(batches: usize) -> anyhow::Result<Series> {
    let file = lines_file()?;
    let mut leader = Lines::map(&file, Side::Leader)?;
    let mut follower = Lines::map(&file, Side::Follower)?;
    let (near, far) = pin::two_cores();
    let series = std::thread::scope(|scope| {
        scope.spawn(move || {
            pin::to_core(far);
            for _ in 0..=batches {
                for poll in Poll::ALL {
                    follower.follow(LINE_ROUNDS, poll);
                }
            }
        });
        let leading = scope.spawn(move || {
            pin::to_core(near);
            let mut batch = || {
                let [hot, pausing] =
                    Poll::ALL.map(|poll| timed_ns(LINE_ROUNDS, || leader.lead(LINE_ROUNDS, poll)));
                hot.min(pausing)
            };
            batch();
            (0..batches).map(|_| batch()).collect()
        });
        leading.join()
    });
    series.map_err(|_| anyhow::anyhow!("the measuring thread panicked"))
}

/// GB/s (10^9 bytes, counted once) of copying `bytes` within one thread's memory; one value for each of `batches`.
pub fn memcpy_gb_per_s(bytes: usize, batches: usize) -> Series {
    let source = vec![0x5a_u8; bytes];
    let mut target = vec![0_u8; bytes];
    // About a millisecond a batch.
    let copies = (20_000_000 / bytes.max(1)).clamp(4, 1_000_000) as u64;
    let mut batch = || {
        let ns = timed_ns(copies, || {
            for _ in 0..copies {
                black_box(&mut target[..]).copy_from_slice(black_box(&source));
            }
        });
        bytes as f64 / ns
    };
    // The first touches the memory.
    batch();
    (0..batches).map(|_| batch()).collect()
}

/// Nanoseconds of `rounds` single round trips of `len` bytes over a Unix socket, both sides blocking in the kernel.
pub fn unix_socket_round_trips(len: usize, rounds: u64) -> anyhow::Result<Histogram<u64>> {
    let (mut near, mut far) = UnixStream::pair()?;
    let echo = move || -> std::io::Result<()> {
        let mut message = vec![0; len];
        loop {
            match far.read_exact(&mut message) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            far.write_all(&message)?;
        }
    };
    let mut message = vec![7; len];
    round_trips(rounds, echo, move || {
        near.write_all(&message)?;
        near.read_exact(&mut message)
    })
}

/// Nanoseconds of `rounds` single round trips in which each side sleeps on an eventfd until the other wakes it.
pub fn eventfd_round_trips(rounds: u64) -> anyhow::Result<Histogram<u64>> {
    let there = eventfd(0, EventfdFlags::CLOEXEC)?;
    let back = eventfd(0, EventfdFlags::CLOEXEC)?;
    let (there_far, back_far) = (there.try_clone()?, back.try_clone()?);
    let total = rounds + WARM_UP;
    let echo = move || -> std::io::Result<()> {
        let mut count = [0; 8];
        for _ in 0..total {
            rustix::io::read(&there_far, &mut count)?;
            rustix::io::write(&back_far, &1_u64.to_ne_bytes())?;
        }
        Ok(())
    };
    let mut count = [0; 8];
    round_trips(rounds, echo, move || {
        rustix::io::write(&there, &1_u64.to_ne_bytes())?;
        rustix::io::read(&back, &mut count)?;
        Ok(())
    })
}

const WARM_UP: u64 = 200;

fn round_trips(
    rounds: u64,
    echo: impl FnOnce() -> std::io::Result<()> + Send,
    mut round: impl FnMut() -> std::io::Result<()> + Send,
) -> anyhow::Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    let (near, far) = pin::two_cores();
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let echoing = scope.spawn(|| {
            pin::to_core(far);
            start.wait();
            echo()
        });
        let histogram = &mut histogram;
        let start = &start;
        let asking = scope.spawn(move || -> anyhow::Result<()> {
            pin::to_core(near);
            start.wait();
            for number in 0..rounds + WARM_UP {
                let began = Instant::now();
                round()?;
                if number >= WARM_UP {
                    histogram.record(began.elapsed().as_nanos() as u64)?;
                }
            }
            // Dropping `round` closes its socket, which ends the echo.
            drop(round);
            Ok(())
        });
        let panicked = |_| anyhow::anyhow!("a measuring thread panicked");
        asking.join().map_err(panicked)??;
        echoing.join().map_err(panicked)??;
        anyhow::Ok(())
    })?;
    Ok(histogram)
}

/// Nanoseconds that one of `rounds` takes when `work` does them all.
pub fn timed_ns(rounds: u64, work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_nanos() as f64 / rounds as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_floor_gives_a_positive_number() {
        assert!(cache_line_round_trip(2).unwrap().min() > 0.0);
        assert!(memcpy_gb_per_s(1 << 16, 2).min() > 0.0);
        assert_eq!(unix_socket_round_trips(56, 50).unwrap().len(), 50);
        assert_eq!(eventfd_round_trips(50).unwrap().len(), 50);
    }
}
