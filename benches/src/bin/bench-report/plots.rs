//! The plots: latency by percentile, throughput by size, cost by number.

use plotters::coord::Shift;
use plotters::prelude::*;
use tombolo_benches::probe::{Test, Waiting};
use tombolo_benches::rounds::PERCENTILES;

use crate::results::{Key, Results};

const SIZE: (u32, u32) = (900, 520);
const FONT: (&str, i32) = ("sans-serif", 15);
/// Beside the plot, so that it hides no curve.
const LEGEND_WIDTH: u32 = 190;
const LEGEND_LINE: i32 = 22;
const OURS_COLOR: RGBColor = RGBColor(0xc0, 0x10, 0x30);

/// A file of the report.
pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) what: &'static str,
    pub(crate) svg: anyhow::Result<String>,
}

/// A line of a plot.
#[derive(Clone, Debug, PartialEq)]
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Those for which there are figures.
pub(crate) fn all(results: &Results) -> Vec<Plot> {
    let small = Key::new(Test::RoundTrip, 56, Waiting::Busy);
    let plots = [
        (
            "latency.svg",
            "56 B there and back, busy: nanoseconds by percentile",
            latency(results, small),
            Axis { title: "percentile", label: percentile_label, log: false },
            "ns",
        ),
        (
            "throughput.svg",
            "A stream of bytes, busy: GB/s by bytes of a write",
            throughput(results),
            Axis { title: "bytes", label: bytes_label, log: true },
            "GB/s",
        ),
        (
            "scale.svg",
            "Cost by number of connections and kernels: per cent of a CPU",
            scale(results),
            Axis { title: "connections or kernels", label: |of| format!("{of:.0}"), log: true },
            "% of a CPU",
        ),
    ];
    let drawn = plots.into_iter().filter(|(.., curves, _, _)| !curves.is_empty());
    drawn.map(|(file, what, curves, x, y)| Plot { file, what, svg: draw(what, &curves, &x, y) }).collect()
}

/// Percentiles stand side by side: each is about ten times as rare as the one before.
fn percentile_label(at: f64) -> String {
    match PERCENTILES.get(at.round() as usize) {
        Some(percent) if (at - at.round()).abs() < 1e-6 => match percent {
            100.0 => "max".into(),
            percent => format!("p{percent}"),
        },
        _ => String::new(),
    }
}

fn bytes_label(bytes: f64) -> String {
    crate::text::size(bytes.round() as usize)
}

fn latency(results: &Results, key: Key) -> Vec<Curve> {
    let curve = |name: &str, at: &dyn Fn(f64) -> Option<f64>| {
        let places = PERCENTILES.iter().enumerate();
        let points: Vec<_> =
            places.filter_map(|(place, &percent)| Some((place as f64, at(percent)?))).collect();
        (!points.is_empty()).then(|| Curve { name: name.to_owned(), points })
    };
    let of_way = |way: &str, percent: f64| {
        let found = results
            .series(key, way, |reading| Some(reading.percentiles.iter().find(|(at, _)| *at == percent)?.1));
        (!found.is_empty()).then(|| found.median())
    };
    let ways = results.ways(key);
    let floor = ways.first().and_then(|way| {
        curve("F: two lines", &|percent| {
            let which = [50.0, 99.0].iter().position(|at| *at == percent)?;
            Some(results.series(key, way, |reading| Some(reading.floors.lines_ns[which])).median())
        })
    });
    floor
        .into_iter()
        .chain(ways.iter().filter_map(|way| curve(way, &|percent| of_way(way, percent))))
        .collect()
}

fn throughput(results: &Results) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    let mut add = |name: &str, at: f64, value: f64| match curves.iter_mut().find(|curve| curve.name == name) {
        Some(curve) => curve.points.push((at, value)),
        None => curves.push(Curve { name: name.to_owned(), points: vec![(at, value)] }),
    };
    // Sorted by size.
    for key in results.keys() {
        let of_one = match key.test {
            Test::Stream if key.waiting == Waiting::Busy => 1.0,
            // Millions of messages a second.
            Test::OneWay if key.waiting == Waiting::Busy => key.bytes as f64 / 1e3,
            _ => continue,
        };
        for (number, way) in results.ways(key).into_iter().enumerate() {
            add(
                way,
                key.bytes as f64,
                of_one * results.series(key, way, |reading| Some(reading.value)).median(),
            );
            if number == 0 && key.test == Test::Stream {
                let copy =
                    results.series(key, way, |reading| Some(key.bytes as f64 / reading.floors.memcpy_ns));
                add("M: memcpy", key.bytes as f64, copy.median());
            }
        }
    }
    curves
}

fn scale(results: &Results) -> Vec<Curve> {
    let names = [("idle/cpu", "parked connections"), ("heartbeats/cpu", "heartbeats of kernels")];
    let curve = |(figure, name): (&str, &str)| {
        let found = results.figures.iter().filter(|found| found.name == figure);
        // A log axis has no zero.
        let mut points: Vec<_> =
            found.filter_map(|found| Some((found.of? as f64, found.value.max(1e-3)))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (points.len() > 1).then(|| Curve { name: name.to_owned(), points })
    };
    names.into_iter().filter_map(curve).collect()
}

struct Axis {
    title: &'static str,
    label: fn(f64) -> String,
    log: bool,
}

fn draw(title: &str, curves: &[Curve], x: &Axis, y_title: &str) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (plot, beside) = root.split_horizontally(SIZE.0 - LEGEND_WIDTH);
        legend(&beside, curves)?;
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let (low, high) = bounds(points().map(|point| point.1));
        let (first, last) = match x.log {
            true => bounds(points().map(|point| point.0)),
            false => (-0.2, PERCENTILES.len() as f64 - 0.8),
        };
        let mut builder = ChartBuilder::on(&plot);
        builder.caption(title, ("sans-serif", 20)).margin(12).x_label_area_size(44).y_label_area_size(70);
        let y = (low / 1.5..high * 1.5).log_scale();
        if x.log {
            let mut chart = builder.build_cartesian_2d((first / 1.2..last * 1.2).log_scale(), y)?;
            fill(&mut chart, curves, x, y_title)?;
        } else {
            let mut chart = builder.build_cartesian_2d(first..last, y)?;
            fill(&mut chart, curves, x, y_title)?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let positive = values.filter(|value| *value > 0.0);
    let (low, high) =
        positive.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if high > 0.0 { (low, high) } else { (1.0, 10.0) }
}

fn fill<'a, X>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, LogCoord<f64>>>,
    curves: &[Curve],
    x: &Axis,
    y_title: &str,
) -> anyhow::Result<()>
where
    X: plotters::coord::ranged1d::Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(x.title)
        .y_desc(y_title)
        .x_label_formatter(&|at| (x.label)(*at))
        .y_label_formatter(&|value| crate::text::number(*value))
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    for (number, curve) in curves.iter().enumerate() {
        let line = LineSeries::new(curve.points.iter().copied(), style(number, curve)).point_size(3);
        chart.draw_series(line).map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(())
}

/// Ours and the floors look the same in every plot.
fn style(number: usize, curve: &Curve) -> ShapeStyle {
    match curve.name.as_str() {
        crate::results::OURS => OURS_COLOR.stroke_width(4),
        floor if floor.starts_with("F:") || floor.starts_with("M:") => BLACK.stroke_width(2),
        _ => Palette99::pick(number).to_rgba().stroke_width(2),
    }
}

fn legend(area: &DrawingArea<SVGBackend<'_>, Shift>, curves: &[Curve]) -> anyhow::Result<()> {
    for (number, curve) in curves.iter().enumerate() {
        let y = 60 + number as i32 * LEGEND_LINE;
        let name = Text::new(curve.name.clone(), (34, y - 8), FONT);
        let line = PathElement::new([(6, y), (28, y)], style(number, curve));
        area.draw(&line).map_err(|error| anyhow::anyhow!("{error}"))?;
        area.draw(&name).map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::{SMALL, nothing, taken};

    #[test]
    fn every_way_has_a_curve_in_the_plot_of_latency() {
        let mut results = nothing();
        results.taken =
            vec![taken(1, SMALL, "tombolo", 120.0, 100.0), taken(1, SMALL, "aeron", 240.0, 100.0)];
        let plots = all(&results);
        let files: Vec<_> = plots.iter().map(|plot| plot.file).collect();
        assert_eq!(files, ["latency.svg"]);
        let svg = plots[0].svg.as_ref().unwrap();
        for word in ["<svg", "tombolo", "aeron", "F: two lines", "p99", "max"] {
            assert!(svg.contains(word), "{word} is missing");
        }
    }

    #[test]
    fn what_was_measured_once_is_no_curve() {
        let mut results = nothing();
        let figure = |of, value| tombolo_benches::figure::Figure {
            name: "idle/cpu".into(),
            of: Some(of),
            value,
            unit: "%".into(),
            note: None,
        };
        results.figures = vec![figure(100, 0.0)];
        assert!(all(&results).is_empty());
        results.figures.push(figure(10_000, 0.5));
        assert!(all(&results)[0].svg.as_ref().unwrap().contains("parked connections"));
    }
}
