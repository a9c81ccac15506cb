//! The fast parts of the story: what memory costs on this host, and what applications get of it between kernels.

use std::fs;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::bed::{number, text};
use super::{Stage, must};
use crate::command;

/// Size of the file that goes into a kernel and back, in bytes.
const FILE_BYTES: usize = 64 << 20;

impl Stage<'_> {
    pub(super) fn refuse_without_policy(&mut self) -> Result<()> {
        let bed = &*self.bed;
        self.progress.step("connect web to db: refused until policy allows it", || {
            let words = bed.app_words("web", &["try", "db/kv"]);
            let mut command = bed.command(&["exec", "web", "--"]);
            let output = command::run_for(command.args(words), std::time::Duration::from_secs(30))?;
            let said = command::last_lines(&[output.stdout, output.stderr].concat());
            must(!output.status.success(), || format!("web reached db although nothing allows it: {said}"))?;
            bed.tombolo(&["policy", "allow", "web", "db"])?;
            Ok((format!("\"{}\"; allowed now", said.trim()), ()))
        })
    }

    pub(super) fn measure_the_host(&mut self) -> Result<()> {
        let bed = &*self.bed;
        let measured = self.progress.step("measure the host: memory and a Unix socket", || {
            let measured = bed.host_app_json(&["floor"])?;
            let (floor, uds) = (number(&measured, "floor_rtt_ns")?, number(&measured, "uds_rtt_ns_p50")?);
            Ok((format!("cache-line round trip {floor:.0} ns, Unix socket {}", micros(uds)), measured))
        })?;
        self.report.floor_rtt_ns = Some(number(&measured, "floor_rtt_ns")? as u64);
        self.report.uds_rtt_ns_p50 = Some(number(&measured, "uds_rtt_ns_p50")? as u64);
        Ok(())
    }

    pub(super) fn measure_kernel_to_kernel(&mut self) -> Result<()> {
        let bed = &*self.bed;
        let seen = self.progress.step("key-value service in db, client in web", || {
            let seen = bed.app("web", &["measure", "db/kv"])?;
            let wrong = number(&seen, "wrong_replies")?;
            must(wrong == 0.0, || format!("{wrong} replies were wrong: {seen}"))?;
            Ok((
                format!(
                    "{} checked replies, found by name at {}",
                    number(&seen, "replies")?,
                    text(&seen, "peer")?
                ),
                seen,
            ))
        })?;
        self.take_measurements(&seen)
    }

    fn take_measurements(&mut self, seen: &Value) -> Result<()> {
        let ns = |key: &str| number(seen, key);
        let whole = |value: f64| Some(value as u64);
        let report = &mut *self.report;
        report.message_rtt_ns_p50 = whole(ns("message_rtt_ns_p50")?);
        report.app_rtt_ns_p50 = whole(ns("rpc_rtt_ns_p50")?);
        report.app_rtt_ns_p99 = whole(ns("rpc_rtt_ns_p99")?);
        report.tokio_rtt_ns_p50 = whole(ns("tokio_rtt_ns_p50")?);
        report.rpc_calls_per_s = Some(ns("rpc_calls_per_s")?);
        report.stream_gb_per_s = Some(ns("stream_gb_per_s")?);
        let floor = report.floor_rtt_ns.unwrap_or(1).max(1) as f64;
        let uds = report.uds_rtt_ns_p50.unwrap_or_default() as f64;
        let row = |what: &str, p50: f64, p99: Option<f64>| {
            let p99 = p99.map(|p99| format!(", p99 {}", micros(p99))).unwrap_or_default();
            format!("{what:<44}{:>10}{p99}  ({:.1} x the memory's own)", micros(p50), p50 / floor)
        };
        let rows = [
            row("cache line, two threads of the host", floor, None),
            row(
                "56-byte message, web to db, busy-polled",
                ns("message_rtt_ns_p50")?,
                Some(ns("message_rtt_ns_p99")?),
            ),
            row("typed call, web to db, busy-polled", ns("rpc_rtt_ns_p50")?, Some(ns("rpc_rtt_ns_p99")?)),
            row("typed call, web to db, on Tokio", ns("tokio_rtt_ns_p50")?, Some(ns("tokio_rtt_ns_p99")?)),
            row("Unix socket, two processes of the host", uds, None),
        ];
        for row in rows {
            self.progress.note(&row);
        }
        let (calls, stream) = (ns("rpc_calls_per_s")?, ns("stream_gb_per_s")?);
        self.progress.note(&format!(
            "{calls:.0} calls per second on one connection; {stream:.2} GB/s through one stream"
        ));
        Ok(())
    }

    pub(super) fn move_a_file(&mut self) -> Result<()> {
        let bed = &*self.bed;
        self.progress.step("move 64 MiB into web and back, checksummed", || {
            let (out, back) = (bed.dir().join("out.bin"), bed.dir().join("back.bin"));
            let bytes = noise(FILE_BYTES);
            fs::File::create(&out)?.write_all(&bytes)?;
            let inside = bed.guest_path("moved.bin");
            let (there, path) =
                (format!("web:{inside}"), |path: &std::path::Path| path.display().to_string());

            let start = Instant::now();
            bed.tombolo(&["cp", &path(&out), &there])?;
            let into = start.elapsed();
            let start = Instant::now();
            bed.tombolo(&["cp", &there, &path(&back)])?;
            let from = start.elapsed();

            must(fs::read(&back)? == bytes, || "the file that came back differs".into())?;
            let own = bed.host_app_json(&["checksum", &path(&out)])?;
            let seen_inside = bed.app("web", &["checksum", &inside])?;
            let (own, seen_inside) = (text(&own, "blake3")?, text(&seen_inside, "blake3")?);
            must(own == seen_inside, || format!("inside it has checksum {seen_inside}, outside {own}"))?;
            for file in [out, back] {
                fs::remove_file(&file).with_context(|| format!("could not remove {}", file.display()))?;
            }
            let rate = |took: std::time::Duration| FILE_BYTES as f64 / 1e6 / took.as_secs_f64();
            Ok((
                format!("{:.0} MB/s in, {:.0} MB/s out, blake3 {}...", rate(into), rate(from), &own[..16]),
                (),
            ))
        })
    }
}

/// Bytes that no layer can compress or take for zeros; the same each time (xorshift).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn micros(ns: f64) -> String {
    if ns < 1000.0 { format!("{ns:.0} ns") } else { format!("{:.2} us", ns / 1000.0) }
}
