//! The report: what is on its page, and the files that it consists of.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;
use tombolo_benches::probe::Reading;

use crate::causes;
use crate::judge::{Condition, Line};
use crate::machine::Machine;
use crate::page::{self, Part};
use crate::plots;
use crate::results::{Missing, OURS, Results, is_rate, unit};
use crate::text::{self, number, range};

/// Writes all files.
pub(crate) fn write(folder: &Path, results: &Results, lines: &[Line]) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut parts = summary(results, lines);
    for plot in plots::all(results) {
        fs::write(folder.join(plot.file), plot.svg?)?;
        parts.push(Part::Image { file: plot.file, what: plot.what });
    }
    parts.extend(details(results));
    fs::write(folder.join("report.md"), page::markdown(&parts))?;
    fs::write(folder.join("report.html"), page::html(&parts))?;
    fs::write(folder.join("summary.md"), page::markdown(&in_short(results, lines)))?;
    fs::write(folder.join("readings.jsonl"), readings(results)?)?;
    Ok(())
}

/// What was measured, without the goals: for those who ask how fast it is.
fn in_short(results: &Results, lines: &[Line]) -> Vec<Part> {
    let Machine { cpu, cores, kernel, .. } = &results.machine;
    let load = results.under_load().map_or_else(String::new, |load| format!(" Under load: {load}."));
    let about = format!(
        "{cores} cores of {cpu} under Linux {kernel}, middle of {} rounds. F, a cache line there and another back between the two cores, took {} ns.{load}",
        results.rounds,
        number(results.lines().median())
    );
    // A line about fewer kernels than it is to be about would say what is not so.
    let is_whole =
        |line: &&Line| !line.conditions.iter().any(|one| one.what == "kernels" && one.holds != Some(true));
    let measured = lines.iter().filter(|line| line.value.is_some()).filter(is_whole);
    let rows = measured.map(|line| {
        let cells = row(line);
        vec![line.what.clone(), cells[1].clone(), cells[3].clone(), cells[4].clone(), cells[5].clone()]
    });
    let head = vec!["what", "measured", "by its floor", "best peer", "by it"];
    vec![Part::Paragraph(about), Part::Table { head, rows: rows.collect() }]
}

fn readings(results: &Results) -> anyhow::Result<String> {
    let mut all = String::new();
    for taken in &results.taken {
        writeln!(all, "{}", serde_json::to_string(taken)?)?;
    }
    for figure in &results.figures {
        writeln!(all, "{}", serde_json::to_string(figure)?)?;
    }
    Ok(all)
}

/// What stands first, and what a terminal shows.
pub(crate) fn summary(results: &Results, lines: &[Line]) -> Vec<Part> {
    let Machine { cpu, cores, kernel, hypervisor, load_before } = &results.machine;
    let floor = results.lines();
    let mut parts = vec![
        Part::Title("Tombolo, measured".into()),
        Part::Paragraph(format!(
            "{cores} cores of {cpu}; Linux {kernel}; hypervisor: {hypervisor}; load average of the minute before: {load_before:.2}. \
             {} rounds{} in {:.0} s.",
            results.rounds,
            if results.quick { ", quick," } else { "" },
            results.took_s
        )),
    ];
    if !floor.is_empty() {
        parts.push(Part::Paragraph(format!(
            "F, two cache lines there and back between the two processes: {} ns over all readings: {}.",
            range(&floor),
            if floor.median() < NEAR_NS {
                "cores that are near each other"
            } else {
                "cores that are far apart"
            }
        )));
    }
    if let Some(load) = results.under_load() {
        parts.push(Part::Paragraph(format!(
            "UNDER LOAD: {load}. Ratios are better than times then, and neither is good."
        )));
    }
    let count = |verdict| lines.iter().filter(|line| line.holds == verdict).count();
    parts.push(Part::Paragraph(format!(
        "{} lines hold, {} do not, {} are open.",
        count(Some(true)),
        count(Some(false)),
        count(None)
    )));
    parts.push(Part::Table {
        head: vec!["line", "measured", "floor", "by floor", "best peer", "by peer", "goal", "verdict"],
        rows: lines.iter().map(row).collect(),
    });
    parts.push(Part::Table {
        head: vec!["line", "what", "demanded of it", "found", "goal", "verdict"],
        rows: lines.iter().flat_map(conditions).collect(),
    });
    parts.extend(lines.iter().filter(|line| line.holds == Some(false)).map(missed));
    let open = lines.iter().filter_map(|line| Some(format!("{}: {}", line.name, line.reason.as_ref()?)));
    let open: Vec<_> = open.collect();
    if !open.is_empty() {
        parts.push(Part::Paragraph(format!("Open. {}.", open.join(". "))));
    }
    parts
}

/// By how much, the table of demands says.
fn missed(line: &Line) -> Part {
    let cause = causes::of(&line.name).unwrap_or("Nothing is known of why.");
    Part::Paragraph(format!("{} is missed. {cause}", line.name))
}

/// F below which two cores share a cache, and above which they do not, on the machines seen so far.
const NEAR_NS: f64 = 200.0;

fn row(line: &Line) -> Vec<String> {
    let dash = || "–".to_owned();
    let measured = line.value.map_or_else(dash, |value| {
        let spread = line
            .min
            .zip(line.max)
            .map_or(String::new(), |(min, max)| format!(" [{} … {}]", number(min), number(max)));
        format!("{} {}{spread}", number(value), line.unit)
    });
    let floor = line.floor.map_or_else(dash, |floor| {
        format!("{} {} {}", line.floor_of.as_deref().unwrap_or_default(), number(floor), line.unit)
    });
    let peer = line.best_peer.as_ref();
    let by_peer = peer.and_then(|peer| peer.ratio).map_or_else(dash, number);
    vec![
        line.name.clone(),
        measured,
        floor,
        line.ratio.map_or_else(dash, number),
        peer.map_or_else(dash, |peer| format!("{} {}", peer.way, number(peer.value))),
        by_peer,
        line.goal.clone(),
        verdict(line.holds).to_owned(),
    ]
}

/// A row for each thing that the line demands.
fn conditions(line: &Line) -> Vec<Vec<String>> {
    let row = |(place, condition): (usize, &Condition)| {
        let first = |text: &String| if place == 0 { text.clone() } else { String::new() };
        vec![
            first(&line.name),
            first(&line.what),
            condition.what.clone(),
            condition.value.map_or_else(|| "–".to_owned(), number),
            condition.goal.clone(),
            verdict(condition.holds).to_owned(),
        ]
    };
    line.conditions.iter().enumerate().map(row).collect()
}

fn verdict(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "holds",
        Some(false) => "MISSED",
        None => "open",
    }
}

/// Every way that was measured, and what could not be.
fn details(results: &Results) -> Vec<Part> {
    let mut parts = vec![
        Part::Heading("Every way".into()),
        Part::Paragraph(
            "Middle of all rounds, in brackets the smallest and the largest. F and M were taken beside each reading, between the same two \
             processes; ratios are within each reading and, to Tombolo, within each round. Percentiles are the middles of the rounds'."
                .into(),
        ),
    ];
    for key in results.keys() {
        let rows = results.ways(key).into_iter().map(|way| {
            let of = |quantity: &dyn Fn(&Reading) -> Option<f64>| results.series(key, way, quantity);
            let percentile = |percent: f64| {
                let found = of(&|reading| Some(reading.percentiles.iter().find(|(at, _)| *at == percent)?.1));
                if found.is_empty() { "–".to_owned() } else { number(found.median()) }
            };
            let f = of(&|reading| Some(reading.floors.lines_ns[0]));
            let m = of(&|reading| Some(reading.floors.memcpy_ns));
            let by_f = match is_rate(key.test) {
                true => "–".to_owned(),
                false => number(of(&|reading| Some(reading.value / reading.floors.lines_ns[0])).median()),
            };
            let notes = results.of(key, way).into_iter().find_map(|taken| taken.reading.note.clone());
            vec![
                way.to_owned(),
                range(&of(&|reading| Some(reading.value))),
                percentile(99.0),
                percentile(99.9),
                percentile(100.0),
                range(&f),
                number(m.median()),
                by_f,
                number(results.ratio((key, way), (key, OURS)).median()),
                notes.unwrap_or_default(),
            ]
        });
        parts.push(Part::Heading(format!("{} ({})", text::key(key), unit(key.test))));
        parts.push(Part::Table {
            head: vec![
                "way",
                "measured",
                "p99",
                "p99.9",
                "max",
                "F, ns",
                "M, ns",
                "by F",
                "by tombolo",
                "note",
            ],
            rows: rows.collect(),
        });
    }
    if !results.figures.is_empty() {
        parts.push(Part::Heading("Scale".into()));
        let rows = results.figures.iter().map(|figure| {
            let of = figure.of.map_or(String::new(), |of| of.to_string());
            let value = format!("{} {}", number(figure.value), figure.unit);
            vec![figure.name.clone(), of, value, figure.note.clone().unwrap_or_default()]
        });
        parts.push(Part::Table { head: vec!["figure", "of", "measured", "note"], rows: rows.collect() });
    }
    if !results.missing.is_empty() {
        parts.push(Part::Heading("What could not be measured".into()));
        let rows = results.missing.iter().map(|Missing { what, reason }| vec![what.clone(), reason.clone()]);
        parts.push(Part::Table { head: vec!["what", "why"], rows: rows.collect() });
    }
    parts
}

/// What `--json` prints.
#[derive(Serialize)]
struct Json<'a> {
    machine: &'a Machine,
    /// `null`: nothing else ran.
    under_load: Option<String>,
    quick: bool,
    rounds: u32,
    took_s: f64,
    /// F over all readings: smallest, middle, largest.
    lines_ns: [f64; 3],
    lines: &'a [Line],
    missing: &'a [Missing],
}

/// One object on one line.
pub(crate) fn json(results: &Results, lines: &[Line]) -> anyhow::Result<String> {
    let floor = results.lines();
    Ok(serde_json::to_string(&Json {
        machine: &results.machine,
        under_load: results.under_load(),
        quick: results.quick,
        rounds: results.rounds,
        took_s: results.took_s,
        lines_ns: [floor.min(), floor.median(), floor.max()],
        lines,
        missing: &results.missing,
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::{SMALL, nothing, taken};
    use crate::reach;

    #[test]
    fn json_is_one_line_with_all_fields_of_every_line() {
        let mut results = nothing();
        results.taken = vec![taken(1, SMALL, OURS, 120.0, 100.0), taken(1, SMALL, "aeron", 240.0, 100.0)];
        let json = json(&results, &reach::lines(&results)).unwrap();
        assert!(!json.contains('\n'));
        let found: serde_json::Value = serde_json::from_str(&json).unwrap();
        let lines = found["lines"].as_array().unwrap();
        assert_eq!(lines.len(), reach::NAMES.len());
        for line in lines {
            for field in ["name", "value", "unit", "floor", "best_peer", "ratio", "goal", "holds"] {
                assert!(line.get(field).is_some(), "{field} is missing in {line}");
            }
        }
        assert_eq!(lines[0]["holds"], true);
        assert_eq!(lines[0]["ratio"], 1.2);
        assert_eq!(lines[0]["best_peer"]["way"], "aeron");
        assert_eq!(lines[1]["holds"], serde_json::Value::Null);
        assert_eq!(found["under_load"], serde_json::Value::Null);
    }

    #[test]
    fn the_table_has_a_verdict_per_line_and_the_calibration_beside_the_figure() {
        let mut results = nothing();
        results.taken = vec![taken(1, SMALL, OURS, 220.0, 100.0), taken(1, SMALL, "aeron", 240.0, 100.0)];
        let lines = reach::lines(&results);
        let text = page::text(&summary(&results, &lines));
        let line = text.lines().find(|line| line.starts_with("| round-trip-56")).unwrap();
        assert!(line.contains("220 ns [220 … 220]") && line.contains("two lines (F) 100 ns"), "{line}");
        assert!(line.contains("| aeron 240 | 0.92") && line.contains("| MISSED"), "{line}");
        let demanded = text.lines().find(|line| line.contains("p99 by F")).unwrap();
        let cells: Vec<_> = demanded.split('|').map(str::trim).collect();
        assert_eq!(cells[3..7], ["p99 by F", "4.40", "<= 2.5", "MISSED"]);
        assert!(text.contains("0 lines hold, 1 do not, 15 are open."), "{text}");
        assert!(text.contains("round-trip-56 is missed. Two lines' ways are F"), "{text}");
    }

    #[test]
    fn a_floor_that_moves_is_load() {
        let mut results = nothing();
        results.taken = vec![taken(1, SMALL, OURS, 120.0, 100.0), taken(2, SMALL, OURS, 500.0, 300.0)];
        let parts = summary(&results, &[]);
        assert!(page::text(&parts).contains("UNDER LOAD: the floor F moved between 100 and 300 ns"));
    }

    #[test]
    fn a_report_is_written_though_nothing_could_be_measured() {
        let folder = std::env::temp_dir().join(format!("tombolo-bench-report-{}", std::process::id()));
        let mut results = nothing();
        results.missing = vec![Missing { what: "peers".into(), reason: "no compiler".into() }];
        write(&folder, &results, &reach::lines(&results)).unwrap();
        let page = fs::read_to_string(folder.join("report.md")).unwrap();
        assert!(page.contains("no compiler"));
        fs::remove_dir_all(folder).unwrap();
    }
}
