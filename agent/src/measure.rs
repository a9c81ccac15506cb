//! The service [`Measure`].

use std::time::{Duration, Instant};

use bytes::Bytes;
use tombolo_rpc::{Blob, Ctx, Receiver, Sender};

use crate::api::measure::{Give, Measure, MeasureError};

const CHUNK_BYTES_MAX: u32 = 256 * 1024;
const FOR_MS_MAX: u32 = 60_000;

/// Serves [`Measure`].
#[derive(Clone, Copy, Debug, Default)]
pub struct MeasureService;

impl Measure for MeasureService {
    async fn take(&self, _cx: &Ctx, mut input: Receiver<Blob>) -> Result<u64, MeasureError> {
        let mut taken = 0;
        while let Ok(Some(Blob(bytes))) = input.recv().await {
            taken += bytes.len() as u64;
        }
        Ok(taken)
    }

    async fn give(&self, _cx: &Ctx, request: Give, out: Sender<Blob>) -> Result<u64, MeasureError> {
        let Give { chunk_bytes, for_ms } = request;
        if !(1..=CHUNK_BYTES_MAX).contains(&chunk_bytes) || for_ms > FOR_MS_MAX {
            return Err(MeasureError::Invalid {
                reason: format!(
                    "items have 1 to {CHUNK_BYTES_MAX} bytes, and {FOR_MS_MAX} ms is the longest time"
                ),
            });
        }
        let chunk = Bytes::from(vec![0x5a; chunk_bytes as usize]);
        let (started, time) = (Instant::now(), Duration::from_millis(for_ms.into()));
        let mut given = 0;
        while started.elapsed() < time && out.send(Blob(chunk.clone())).await.is_ok() {
            given += u64::from(chunk_bytes);
        }
        Ok(given)
    }
}
