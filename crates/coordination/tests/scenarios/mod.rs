//! Scenario files: `testdata/<kind>/*.txt` list steps and what each prints. A step is a line that begins with `> `; the lines
//! behind it are what is expected; empty lines and those that begin with `#` are for people. `UPDATE_SCENARIOS=1` rewrites the
//! expectations from what is printed.

use std::fmt::Write;
use std::path::Path;

/// Replays every file of a kind; `begin` makes what takes the steps of one file, each by its words, and prints what follows.
pub(crate) fn replay<Step: FnMut(&[&str], &mut String)>(kind: &str, least: usize, begin: impl Fn() -> Step) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(kind);
    let mut files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= least, "the scenarios are gone");
    for file in files {
        let expected = std::fs::read_to_string(&file).unwrap();
        let (mut actual, mut take) = (String::new(), begin());
        for line in expected.lines() {
            if let Some(step) = line.strip_prefix("> ") {
                writeln!(actual, "{line}").unwrap();
                take(&step.split_whitespace().collect::<Vec<_>>(), &mut actual);
            } else if line.is_empty() || line.starts_with('#') {
                writeln!(actual, "{line}").unwrap();
            }
        }
        if std::env::var_os("UPDATE_SCENARIOS").is_some() {
            std::fs::write(&file, actual).unwrap();
        } else {
            assert_eq!(actual, expected, "{}", file.display());
        }
    }
}
