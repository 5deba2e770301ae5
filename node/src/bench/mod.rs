//! `kai bench`: figures as ratios against a peer, medians of alternating runs.

pub mod directory;
mod forward;
pub mod link;
pub mod node;
mod subject;

use serde::Serialize;

/// Alternating runs of each side; the figure is the median.
pub const RUNS: usize = 7;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Its name, stable.
    pub name: String,
    /// Ours.
    pub value: f64,
    /// Of `value` and of the peer's figure.
    pub unit: &'static str,
    /// Against what, when there is something to compare with.
    pub peer: Option<&'static str>,
    /// Ours as a share of the peer's; above 1 we are ahead.
    pub ratio: Option<f64>,
    /// What it shall be, for people.
    pub bar: &'static str,
}

/// What `kai bench … --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// 1.
    pub schema_version: u32,
    /// The figures.
    pub results: Vec<Figure>,
}

impl Report {
    /// A report of these figures.
    pub fn new(results: Vec<Figure>) -> Self {
        Self { schema_version: 1, results }
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for figure in &self.results {
            let ratio = figure.ratio.map(|ratio| format!("{ratio:.2} × {}", figure.peer.unwrap_or("peer")));
            text += &format!(
                "{:<24} {:>12.1} {:<8} {:<22} bar {}\n",
                figure.name,
                figure.value,
                figure.unit,
                ratio.unwrap_or_default(),
                figure.bar
            );
        }
        text
    }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_nan());
    }
}
