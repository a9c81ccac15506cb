//! Numbers and probes in words.

use tombolo_benches::probe::{Probe, Test, Waiting};
use tombolo_benches::series::Series;

use crate::results::Key;

/// A probe, in one line.
pub(crate) fn probe(probe: &Probe) -> String {
    format!("{}, {}", key(Key::of(probe)), probe.way)
}

/// What is measured, in one line.
pub(crate) fn key(key: Key) -> String {
    let test = match key.test {
        Test::RoundTrip => "round trip",
        Test::OneWay => "one way",
        Test::OneWayBatched => "one way, batched",
        Test::Stream => "stream",
        Test::LoanRoundTrip => "loan, round trip",
        Test::LoanOneWay => "loan, one way",
        Test::Call => "call",
        Test::CallsInFlight => "calls, 64 in flight",
        Test::CallWithBytes => "call with bytes",
        Test::Wake => "wake",
    };
    let waiting = match key.waiting {
        Waiting::Busy => "busy",
        Waiting::Tokio => "Tokio",
        Waiting::Asleep => "asleep",
    };
    format!("{test} {}, {waiting}", size(key.bytes))
}

/// A size, in the largest unit that divides it.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        0 => "0 B".into(),
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 0.01 || magnitude == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.1e}")
    }
}

/// Middle, and in brackets the smallest and the largest.
pub(crate) fn range(series: &Series) -> String {
    if series.is_empty() {
        return "–".into();
    }
    format!("{} [{} … {}]", number(series.median()), number(series.min()), number(series.max()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_matter() {
        let written = [0.0, 0.001, 0.5, 12.34, 123.4, 12_345.0].map(number);
        assert_eq!(written, ["0.00", "1.0e-3", "0.50", "12.3", "123", "12345"]);
    }

    #[test]
    fn sizes_have_their_unit() {
        assert_eq!([56, 4096, 1 << 20].map(size), ["56 B", "4 KiB", "1 MiB"]);
    }
}
