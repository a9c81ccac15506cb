//! Printing: tables for people, JSON for programs.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Global;
use super::error::CliError;
use crate::time::unix_ns;

/// Version of the documents that `--json` prints. Fields are added without a new one, never removed or changed.
const SCHEMA_VERSION: u32 = 1;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) quiet: bool,
    color: bool,
}

impl Output {
    pub(super) fn new(global: &Global) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { json: global.json, quiet: global.quiet, color: wanted && std::io::stderr().is_terminal() }
    }

    /// Prints one line of data.
    pub(super) fn line(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        writeln!(std::io::stdout().lock(), "{}", text.as_ref()).map_err(CliError::written)
    }

    /// Prints data as it is.
    pub(super) fn raw(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(CliError::written)
    }

    /// Prints a JSON document: `key` holds the value, beside the version of the schema.
    pub(super) fn document(&self, key: &str, value: &impl Serialize) -> Result<(), CliError> {
        let value = serde_json::to_value(value).map_err(|error| CliError::failed("print JSON", error))?;
        self.line(json!({ "schema_version": SCHEMA_VERSION, key: value }).to_string())
    }

    /// Prints one item of many as a line of JSON.
    pub(super) fn item(&self, value: &Value) -> Result<(), CliError> {
        self.line(value.to_string())
    }

    /// Tells people something that is not data.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// Tells people, or programs if they read JSON, what went wrong.
    pub(super) fn problem(&self, message: &str, code: u8) {
        let mut stderr = std::io::stderr().lock();
        let _ = if self.json {
            writeln!(
                stderr,
                "{}",
                json!({ "schema_version": SCHEMA_VERSION, "error": message, "exit_code": code })
            )
        } else if self.color {
            writeln!(stderr, "\x1b[31mtombolo:\x1b[0m {message}")
        } else {
            writeln!(stderr, "tombolo: {message}")
        };
    }
}

/// A table without lines: as good for `awk` as for eyes.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A table as text, without the blanks at the ends of its lines.
pub(super) fn text_of(table: &Table) -> String {
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// `3.6us`, `271us`, `1.2ms`.
pub(super) fn latency(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{:.1}us", ns as f64 / 1e3),
        10_000..1_000_000 => format!("{}us", ns / 1_000),
        _ => format!("{:.1}ms", ns as f64 / 1e6),
    }
}

/// `3s`, `5m12s`, `2h05m`, `4d03h`.
pub(super) fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// How long ago `at_unix_ns` was.
pub(super) fn age(at_unix_ns: u64) -> String {
    duration(Duration::from_nanos(unix_ns().saturating_sub(at_unix_ns)))
}

/// `2026-11-23 07:15:30.123` in local time.
pub(super) fn timestamp(at_unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at_unix_ns)).map_or_else(
        |_| at_unix_ns.to_string(),
        |at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
    )
}

/// `512 B`, `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        for (seconds, text) in [(3, "3s"), (312, "5m12s"), (7500, "2h05m"), (356_400, "4d03h")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn sizes_show_a_fitting_unit() {
        for (count, text) in [(512, "512 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB")] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_table_has_one_line_per_row_and_no_blanks_at_the_ends() {
        let mut table = table(&["name", "state"]);
        table.add_row(["web", "running"]).add_row(["database", "-"]);
        let text = text_of(&table);
        assert_eq!(text.lines().collect::<Vec<_>>(), ["NAME      STATE", "web       running", "database  -"]);
    }
}
