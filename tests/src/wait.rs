//! Waiting for conditions, always with a deadline.

use std::future::Future;
use std::time::{Duration, Instant};

/// Long enough for a kernel to boot on a busy machine; reached only by a test that fails.
pub const LONG: Duration = Duration::from_secs(60);

/// Polls `condition` until it returns something.
///
/// # Panics
/// After [`LONG`], naming `what` was awaited.
pub async fn until<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < LONG, "waited {LONG:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
