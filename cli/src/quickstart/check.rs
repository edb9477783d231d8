//! The verdict: what the job wrote against what a batch computation says.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_sql::PlanContext;
use weir_types::graph::JobGraph;
use weir_types::{Error, Result};

use crate::quickstart::input::Input;
use crate::quickstart::{batch, builtin};

/// Where the script writes, found by planning it.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// The planned job.
    pub graph: JobGraph,
    /// The stream with the results.
    pub results: String,
    /// The stream with the late rows, if the script keeps them.
    pub late: Option<String>,
}

impl Outputs {
    /// Plans the script.
    ///
    /// # Errors
    /// What is wrong with the script; `UNSUPPORTED` if it writes no stream.
    pub(crate) fn of(script: &str) -> Result<Self> {
        let graph = weir_sql::plan(script, &PlanContext::default())?.graph;
        let graph = graph.ok_or_else(|| Error::invalid("the script has no INSERT"))?;
        let late = batch::late_stream(&graph).map(|(stream, _)| stream);
        let results = batch::result_stream(&graph)?;
        Ok(Self { graph, results, late })
    }
}

/// Compares and says so.
///
/// # Errors
/// `INTERNAL` with the first differences if the results differ.
pub(crate) async fn check(input: &Input, outputs: &Outputs, written: &[String], late: &[String]) -> Result<Value> {
    let (expected, actual, kind) = if input.own_script {
        let expected = batch::compute(&outputs.graph, &input.lines, late).await?;
        let actual = batch::decode(&expected.schema(), written)?;
        (batch::texts(&expected)?, batch::texts(&actual)?, "consistency check with DataFusion in batch")
    } else {
        let on_time = less(&input.lines, late)?;
        let expected = builtin::batch(on_time.iter().copied())?;
        let actual = written.iter().map(|record| builtin::canonical(record)).collect::<Result<Vec<_>>>()?;
        (expected, actual, "independent batch computation")
    };
    let differences = differences(&expected, &actual);
    if !differences.is_empty() {
        let shown: Vec<&str> = differences.iter().take(10).map(String::as_str).collect();
        return Err(Error::internal(format!("the result differs from the {kind} in {} rows", differences.len()))
            .with_detail(shown.join("\n")));
    }
    Ok(json!({
        "verdict": "equal", "compared_with": kind, "input_rows": input.lines.len(), "result_rows": written.len(),
        "late_rows": late.len(),
    }))
}

/// The input lines that are not among the late ones.
fn less<'a>(lines: &'a [String], late: &[String]) -> Result<Vec<&'a str>> {
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for line in late {
        *left.entry(builtin::view_key(line)?).or_default() += 1;
    }
    let mut on_time = Vec::with_capacity(lines.len());
    for line in lines {
        match left.get_mut(&builtin::view_key(line)?) {
            Some(count) if *count > 0 => *count -= 1,
            _ => on_time.push(line.as_str()),
        }
    }
    match left.iter().find(|(_, count)| **count > 0) {
        Some((row, _)) => Err(Error::internal("a late row is not in the input").with_detail(row.clone())),
        None => Ok(on_time),
    }
}

/// Rows that are missing (`-`) or surplus (`+`), as multisets.
fn differences(expected: &[String], actual: &[String]) -> Vec<String> {
    let mut balance: BTreeMap<&str, i64> = BTreeMap::new();
    for row in expected {
        *balance.entry(row).or_default() += 1;
    }
    for row in actual {
        *balance.entry(row).or_default() -= 1;
    }
    let unequal = balance.into_iter().filter(|(_, count)| *count != 0);
    unequal.map(|(row, count)| format!("{} {row}", if count > 0 { '-' } else { '+' })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_surplus_and_doubled_rows_all_count() {
        let rows = |rows: &[&str]| rows.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>();
        assert!(differences(&rows(&["a", "b"]), &rows(&["b", "a"])).is_empty());
        assert_eq!(differences(&rows(&["a", "b"]), &rows(&["a", "a", "c"])), ["+ a", "- b", "+ c"]);
    }
}
