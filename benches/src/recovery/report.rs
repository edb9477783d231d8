//! What a run has measured, and how it is shown.

use serde::{Deserialize, Serialize};
use weir_benches::measure::median;

/// One measured quantity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) value: f64,
}

/// One run of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) scenario: String,
    pub(crate) figures: Vec<Figure>,
}

impl Run {
    pub(crate) fn new(scenario: &str) -> Self {
        Self { scenario: scenario.to_owned(), figures: Vec::new() }
    }

    /// Adds a figure.
    pub(crate) fn add(&mut self, name: &str, unit: &str, value: f64) {
        self.figures.push(Figure { name: name.to_owned(), unit: unit.to_owned(), value });
    }
}

/// The table's header, in Markdown.
pub(crate) fn header() -> &'static str {
    "| scenario | figure | median | least | most | runs |\n| --- | --- | ---: | ---: | ---: | ---: |"
}

/// The rows of one scenario: medians of its runs, figure by figure, in the order in which the first run has them.
pub(crate) fn rows(runs: &[Run]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let rows = first.figures.iter().map(|Figure { name, unit, .. }| {
        let of_run = |run: &Run| run.figures.iter().find(|figure| figure.name == *name).map(|figure| figure.value);
        let values: Vec<f64> = runs.iter().filter_map(of_run).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (scenario, count) = (&first.scenario, values.len());
        let median = shown(median(values));
        format!("| {scenario} | {name} | {median} {unit} | {} | {} | {count} |\n", shown(least), shown(most))
    });
    rows.collect()
}

/// Three significant digits of small figures, all of large ones.
fn shown(value: f64) -> String {
    let digits = match value.abs() {
        magnitude if magnitude >= 100.0 => 0,
        magnitude if magnitude >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}
