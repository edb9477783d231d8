//! What neither rustc nor clippy checks: file headers and sizes, leftovers, who may depend on whom, and that the pages
//! that list error codes and metrics list all of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

const LINES_MAX: usize = 700;

/// Words and paths that must not be committed, taken apart here so that this file may be.
const LEFTOVERS: [(&str, &str); 6] = [
    (concat!("TO", "DO"), "leftover"),
    (concat!("FIX", "ME"), "leftover"),
    (concat!("XX", "X"), "leftover"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
];

/// Which of the workspace's own crates each one may link. Lower layers first; binaries never link each other.
const MAY_LINK: [(&str, &[&str]); 21] = [
    ("weir-types", &[]),
    ("weir-durable", &["weir-types"]),
    ("weir-coordination", &["weir-types"]),
    ("weir-replication", &["weir-types", "weir-durable"]),
    ("weir-functions", &["weir-types"]),
    ("weir-service", &["weir-types"]),
    ("weir-testkit", &["weir-types"]),
    ("weir-simulation", &[]),
    ("weir-proto", &["weir-types", "weir-coordination"]),
    ("weir-sql", &["weir-types", "weir-functions"]),
    ("weir-state", &["weir-types", "weir-durable", "weir-functions"]),
    ("weir-inspect", &["weir-types", "weir-functions", "weir-state"]),
    ("weir-dataflow", &["weir-types", "weir-functions", "weir-state"]),
    ("weir-stream-store", &["weir-types", "weir-durable", "weir-proto", "weir-service"]),
    (
        "weir-connectors",
        &["weir-types", "weir-durable", "weir-functions", "weir-state", "weir-dataflow", "weir-stream-store"],
    ),
    (
        "weir-jobmanager",
        &[
            "weir-types",
            "weir-proto",
            "weir-service",
            "weir-coordination",
            "weir-durable",
            "weir-replication",
            "weir-functions",
            "weir-sql",
            "weir-state",
            "weir-stream-store",
        ],
    ),
    (
        "weir-taskmanager",
        &[
            "weir-types",
            "weir-proto",
            "weir-service",
            "weir-functions",
            "weir-state",
            "weir-dataflow",
            "weir-connectors",
            "weir-stream-store",
        ],
    ),
    // The quickstart plans a user's script and computes it in batch, to check what the job made of it.
    (
        "weir-cli",
        &[
            "weir-types",
            "weir-proto",
            "weir-service",
            "weir-stream-store",
            "weir-functions",
            "weir-sql",
            "weir-inspect",
        ],
    ),
    (
        "weir-benches",
        &[
            "weir-types",
            "weir-coordination",
            "weir-replication",
            "weir-functions",
            "weir-state",
            "weir-dataflow",
            "weir-connectors",
            "weir-stream-store",
            "weir-service",
            "weir-proto",
            "weir-sql",
            "weir-integration-tests",
            "weir-testkit",
        ],
    ),
    ("weir-integration-tests", &["weir-types", "weir-proto", "weir-service", "weir-stream-store"]),
    ("xtask", &[]),
];

/// Crates from elsewhere that only the named ones may link.
const RESERVED: [(&str, &[&str]); 2] = [("raft", &["weir-replication"]), ("protobuf", &["weir-replication"])];

/// Crates from elsewhere that pure crates may not link: they get time, randomness and I/O as arguments.
const IMPURE: [&str; 5] = ["tokio", "rand", "object_store", "tonic", "chrono"];
const PURE: [&str; 2] = ["weir-types", "weir-coordination"];

/// Runs all checks.
pub(crate) fn check() -> Result<()> {
    let files = tracked_files()?;
    let mut problems = Vec::new();
    let mut metrics = BTreeSet::new();
    for path in &files {
        let Ok(text) = std::fs::read_to_string(run::root().join(path)) else { continue };
        leftovers(path, &text, &mut problems);
        if path.ends_with(".rs") {
            source(path, &text, &mut problems);
            metrics.extend(metric_names(&text));
        }
    }
    crates(&run::metadata()?, &mut problems)?;
    let codes = std::fs::read_to_string(run::root().join("crates/types/src/error.rs"))?;
    listed("docs/errors.md", error_codes(&codes), &mut problems)?;
    listed("docs/metrics.md", metrics, &mut problems)?;
    if problems.is_empty() {
        println!("tidy: {} files are in order", files.len());
        return Ok(());
    }
    for problem in &problems {
        println!("{problem}");
    }
    bail!("tidy found {} problems", problems.len());
}

/// Every file that is, or is about to be, committed.
fn tracked_files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(run::root());
    let output = git.output().context("could not start git")?;
    if !output.status.success() {
        bail!("git could not list the files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn leftovers(path: &str, text: &str, problems: &mut Vec<String>) {
    if matches!(path, "Cargo.lock" | "LICENSE") {
        return;
    }
    for (number, line) in (1..).zip(text.lines()) {
        for (word, what) in LEFTOVERS {
            if has_word(line, word) {
                problems.push(format!("{path}:{number}: {word} is {what}"));
            }
        }
    }
}

/// Whether `line` holds `word`, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        word.starts_with('/') && !is_part(before) || !word.starts_with('/') && !is_part(before) && !is_part(after)
    })
}

fn source(path: &str, text: &str, problems: &mut Vec<String>) {
    if !text.starts_with("//!") {
        problems.push(format!("{path}:1: does not open with `//!`: what is this file for, what does it promise?"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("{path}: has {lines} lines, more than {LINES_MAX}: split it"));
    }
}

/// The names given to `counter!`, `gauge!` and `histogram!` that are not only a test's.
fn metric_names(text: &str) -> Vec<String> {
    let quoted = |at: usize| text[at..].trim_start().strip_prefix('"')?.split_once('"').map(|(name, _)| name);
    ["counter!(", "gauge!(", "histogram!("]
        .into_iter()
        .flat_map(|call| text.match_indices(call).map(move |(start, _)| start + call.len()))
        .filter_map(quoted)
        .filter(|name| name.starts_with("weir_") && !name.starts_with("weir_test_"))
        .map(str::to_owned)
        .collect()
}

/// The names that `Code::as_str` returns.
fn error_codes(source: &str) -> BTreeSet<String> {
    let arms = source.lines().filter_map(|line| line.trim().strip_prefix("Code::")?.split_once(" => \""));
    arms.filter_map(|(_, rest)| rest.strip_suffix("\",")).map(str::to_owned).collect()
}

/// Checks that a page has each name, in code style.
fn listed(page: &str, names: impl IntoIterator<Item = String>, problems: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(run::root().join(page)).with_context(|| format!("could not read {page}"))?;
    let missing = names.into_iter().filter(|name| !text.contains(&format!("`{name}`")));
    problems.extend(missing.map(|name| format!("{page}: does not list `{name}`")));
    Ok(())
}

fn crates(metadata: &serde_json::Value, problems: &mut Vec<String>) -> Result<()> {
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let name = package["name"].as_str().context("a package has no name")?;
        let manifest = package["manifest_path"].as_str().context("a package has no manifest")?;
        if !std::fs::read_to_string(Path::new(manifest))?.contains("[lints]\nworkspace = true") {
            problems.push(format!("{name}: its manifest does not take the workspace's lints"));
        }
        let Some((_, may_link)) = MAY_LINK.iter().find(|(known, _)| *known == name) else {
            problems.push(format!("{name}: say in xtask/src/tidy.rs what it may link"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("a package has no dependencies")? {
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let linked = dependency["name"].as_str().context("a dependency has no name")?;
            problems.extend(forbidden(name, may_link, linked));
        }
    }
    Ok(())
}

fn forbidden(name: &str, may_link: &[&str], linked: &str) -> Option<String> {
    if linked.starts_with("weir-") && !may_link.contains(&linked) {
        return Some(format!("{name}: may not depend on {linked}"));
    }
    if RESERVED.iter().any(|(reserved, users)| *reserved == linked && !users.contains(&name)) {
        return Some(format!("{name}: may not depend on {linked}, which others hide"));
    }
    if PURE.contains(&name) && IMPURE.contains(&linked) {
        return Some(format!("{name}: is pure and may not depend on {linked}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_whole_words_and_paths() {
        let word = concat!("TO", "DO");
        assert!(has_word(&format!("// {word}: later"), word));
        assert!(!has_word(&format!("MAS{word}N"), word));
        let path = concat!("/ho", "me/");
        assert!(has_word(&format!("cd {path}me"), path));
        assert!(!has_word(&format!("example.org{path}page"), path));
    }

    #[test]
    fn a_source_needs_its_header_and_a_bounded_size() {
        let mut problems = Vec::new();
        source("a.rs", "//! Fine.\n", &mut problems);
        assert!(problems.is_empty());
        source("b.rs", &"fn x() {}\n".repeat(LINES_MAX + 1), &mut problems);
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn crates_link_downwards_only() {
        assert_eq!(forbidden("weir-dataflow", &["weir-state"], "weir-state"), None);
        assert!(forbidden("weir-state", &["weir-types"], "weir-dataflow").is_some());
        assert!(forbidden("weir-jobmanager", &[], "raft").is_some());
        assert!(forbidden("weir-coordination", &[], "tokio").is_some());
        assert_eq!(forbidden("weir-replication", &[], "raft"), None);
    }

    #[test]
    fn codes_and_metrics_are_found_in_source() {
        let codes = error_codes("            Code::NotFound => \"NOT_FOUND\",\n            _ => \"X\",\n");
        assert_eq!(codes.into_iter().collect::<Vec<_>>(), ["NOT_FOUND"]);
        let text =
            "metrics::counter!(\"weir_a_total\");\nhistogram!(\n    \"weir_b_seconds\", 1);\ngauge!(\"weir_test_c\")";
        assert_eq!(metric_names(text), ["weir_a_total", "weir_b_seconds"]);
    }
}
