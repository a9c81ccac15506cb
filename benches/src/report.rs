//! Series of measurements, printed as a table for people or as one JSON object.

use std::fmt::Write;

use serde::Serialize;

/// Values of one quantity from repeated batches of one run.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The smallest; 0 if there is none.
    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(0.0)
    }

    /// The middle one; 0 if there is none.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }

    /// The largest; 0 if there is none.
    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(0.0)
    }

    /// Each value divided by the one of `other` taken beside it.
    pub fn over(&self, other: &Self) -> Self {
        self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// What a figure is hoped to be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The median is to be no more than this.
    AtMost(f64),
    /// The median is to be no less than this.
    AtLeast(f64),
}

impl Goal {
    fn met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// One line of a report.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// In which unit; `x` for a ratio.
    pub unit: &'static str,
    /// Smallest, middle and largest value of the batches.
    pub min: f64,
    /// See [`Figure::min`].
    pub median: f64,
    /// See [`Figure::min`].
    pub max: f64,
    /// What the median is hoped to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// What one benchmark found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The question.
    pub benchmark: &'static str,
    /// Under which conditions it was asked.
    pub conditions: String,
    /// The answers.
    pub figures: Vec<Figure>,
}

impl Report {
    /// An empty report.
    pub fn new(benchmark: &'static str, conditions: impl Into<String>) -> Self {
        Self { benchmark, conditions: conditions.into(), figures: Vec::new() }
    }

    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, series: &Series) {
        self.push(name.into(), unit, series, None);
    }

    /// Adds a figure that has a goal.
    pub fn add_with_goal(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        series: &Series,
        goal: Goal,
    ) {
        self.push(name.into(), unit, series, Some(goal));
    }

    fn push(&mut self, name: String, unit: &'static str, series: &Series, goal: Option<Goal>) {
        let median = series.median();
        let met = goal.map(|goal| goal.met_by(median));
        self.figures.push(Figure { name, unit, min: series.min(), median, max: series.max(), goal, met });
    }

    /// Prints it: as a table, or with `--json` among the arguments of this process as one JSON object on one line.
    pub fn print(&self) -> anyhow::Result<()> {
        if std::env::args().any(|arg| arg == "--json") {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!("{}", self.table());
        }
        Ok(())
    }

    fn table(&self) -> String {
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        let mut table = format!("{}: {}\n", self.benchmark, self.conditions);
        let _ = writeln!(table, "{:width$}  {:>10} {:>10} {:>10}  unit", "", "min", "median", "max");
        for figure in &self.figures {
            let Figure { name, unit, min, median, max, .. } = figure;
            let goal = match (figure.goal, figure.met) {
                (Some(goal), Some(met)) => {
                    let (words, limit) = match goal {
                        Goal::AtMost(limit) => ("at most", limit),
                        Goal::AtLeast(limit) => ("at least", limit),
                    };
                    format!("  goal {words} {limit}: {}", if met { "met" } else { "MISSED" })
                }
                _ => String::new(),
            };
            let _ = writeln!(table, "{name:width$}  {min:>10.2} {median:>10.2} {max:>10.2}  {unit}{goal}");
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_taken_between_neighbours() {
        let ours: Series = [10.0, 40.0, 90.0].into_iter().collect();
        let floor: Series = [10.0, 20.0, 30.0].into_iter().collect();
        let ratio = ours.over(&floor);
        assert_eq!((ratio.min(), ratio.median(), ratio.max()), (1.0, 2.0, 3.0));
    }

    #[test]
    fn goal_is_judged_by_the_median() {
        let mut report = Report::new("test", "none");
        let series: Series = [1.0, 2.0, 9.0].into_iter().collect();
        report.add_with_goal("low", "x", &series, Goal::AtMost(2.0));
        report.add_with_goal("high", "x", &series, Goal::AtLeast(3.0));
        assert_eq!((report.figures[0].met, report.figures[1].met), (Some(true), Some(false)));
        assert!(report.table().contains("MISSED"));
    }
}
