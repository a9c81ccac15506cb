//! What the machine itself costs. Each function pins two threads to two cores and takes under a second.

use std::hint::black_box;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};
use tombolo_transport::mem::ticks;

use crate::lines::{Lines, Poll, Side, lines_file};
use crate::pin;
use crate::rounds::Samples;
use crate::series::Series;

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
                    follower.follow(LINE_ROUNDS, poll)?;
                }
            }
            anyhow::Ok(())
        });
        let leading = scope.spawn(move || {
            pin::to_core(near);
            let mut batch = || {
                let mut best_ns = f64::INFINITY;
                for poll in Poll::ALL {
                    let mut result = Ok(());
                    best_ns = best_ns.min(timed_ns(LINE_ROUNDS, || result = leader.lead(LINE_ROUNDS, poll)));
                    result?;
                }
                anyhow::Ok(best_ns)
            };
            batch()?;
            (0..batches).map(|_| batch()).collect()
        });
        leading.join()
    });
    series.map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
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

/// Wakes a thread that sleeps on an eventfd, `wakes` times, each after a nap: from just before the write until the sleeper runs.
pub fn eventfd_wakes(wakes: u64, nap: Duration, samples: &mut Samples) -> anyhow::Result<()> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC)?;
    let sleeper_wake = wake.try_clone()?;
    let (told, runs) = channel();
    let (_, far) = pin::two_cores();
    std::thread::scope(|scope| {
        // After an error `told` is gone, and the waker learns of it.
        scope.spawn(move || {
            pin::to_core(far);
            let mut count = [0; 8];
            for _ in 0..wakes {
                if rustix::io::read(&sleeper_wake, &mut count).is_err() || told.send(ticks()).is_err() {
                    return;
                }
            }
        });
        for number in 0..wakes {
            std::thread::sleep(nap);
            let woke_at = ticks();
            rustix::io::write(&wake, &1_u64.to_ne_bytes())?;
            let runs_at: u64 = runs.recv().context("the sleeper on an eventfd has failed")?;
            // The first finds a thread that was just started.
            if number > 0 {
                samples.push_ticks(runs_at.saturating_sub(woke_at));
            }
        }
        Ok(())
    })
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
        let mut wakes = Samples::default();
        eventfd_wakes(20, Duration::ZERO, &mut wakes).unwrap();
        assert_eq!(wakes.len(), 19);
    }
}
