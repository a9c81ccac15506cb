//! Values of one quantity, taken again and again.

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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_in_the_middle_whatever_the_order() {
        let series: Series = [9.0, 1.0, 4.0].into_iter().collect();
        assert_eq!((series.min(), series.median(), series.max()), (1.0, 4.0, 9.0));
    }

    #[test]
    fn ratio_is_taken_between_neighbours() {
        let ours: Series = [10.0, 40.0, 90.0].into_iter().collect();
        let floor: Series = [10.0, 20.0, 30.0].into_iter().collect();
        let ratio = ours.over(&floor);
        assert_eq!((ratio.min(), ratio.median(), ratio.max()), (1.0, 2.0, 3.0));
    }
}
