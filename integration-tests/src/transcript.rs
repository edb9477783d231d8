//! Transcripts: files with commands and exactly what they print, replayed against a cluster.
//!
//! A line that begins with `$ ` is a command, one that begins with `# ` a remark; what follows a command is its output, with
//! lines of standard error behind `! ` and, unless it is 0, the exit code as `exit N`. `UPDATE_TRANSCRIPTS=1` rewrites the
//! outputs from what the commands print.
//!
//! What differs from run to run is replaced before it is compared, and nothing else is:
//!
//! - the directory of a cluster by `DIR`, or by another name that a test has given it;
//! - ids of jobs and clusters by `ID1`, `ID2` in the order of their appearance, within snapshots' ids too (`sp-ID1-2`). A
//!   command may name them so;
//! - moments by `TIME` (but not those of the input, which lie on 2026-01-01), spans by `TOOK`, sizes other than `0 B` by
//!   `SIZE`, hashes of plans by `HASH`. Numbers of bytes, moments and spans in JSON likewise, by their keys;
//! - blanks between the columns of a table, whose widths depend on all this, by two;
//! - the order of the lines of a timeline, where nodes may speak at the same moment: they are sorted.

use std::fmt::Write;
use std::path::PathBuf;

use regex::Regex;

use crate::cluster::{Cluster, Ran};

/// Replays transcripts, and remembers what was replaced by what.
#[derive(Debug)]
pub struct Transcripts {
    directory: PathBuf,
    filter: Filter,
}

#[derive(Debug)]
struct Filter {
    /// Directories and what they are called.
    places: Vec<(String, &'static str)>,
    /// Ids of jobs and clusters in the order of their appearance.
    ids: Vec<String>,
    long_id: Regex,
    snapshot_id: Regex,
    moment: Regex,
    rules: Vec<(Regex, &'static str)>,
}

impl Transcripts {
    /// Those in `directory`, against `cluster`.
    pub fn new(directory: impl Into<PathBuf>, cluster: &Cluster) -> Self {
        let rule = |pattern: &str, by| (regex(pattern), by);
        let rules = vec![
            rule("[0-9]+ min [0-9]+ s|[0-9]+[.][0-9]{3} m?s|[0-9]+ ms", "TOOK"),
            rule("(?:[0-9]*[1-9][0-9]*|[0-9]+[.][0-9]) (?:B|KiB|MiB)", "SIZE"),
            rule(r#"("[a-z_]*(?:at_ms|taken_at|next_ms|last_ms)": )[1-9][0-9]*"#, "${1}TIME"),
            rule(r#"("[a-z_]*_us": )[0-9]+"#, "${1}TIME"),
            rule(r#"("(?:age|minimum_interval)": [{][^}]*"used": )[0-9]+"#, "${1}TIME"),
            rule("((?:age|minimum_interval) +)[0-9]+(?:ms|s|min|h)", "${1}TOOK"),
            rule(r#"("(?:[a-z]+_)*bytes(?:_[a-z]+)*": |"checkpoint_reserve": |bytes=)[1-9][0-9]*"#, "${1}SIZE"),
            rule(r#"("bytes": [{][^}]*"used": )[1-9][0-9]*"#, "${1}SIZE"),
            rule("( bytes +[-0-9]+ +[0-9]+ +)[1-9][0-9]*( +)[1-9][0-9]*", "${1}SIZE${2}SIZE"),
            rule(r#"((?:plan_hash|graph_hash)": "|plan )[0-9a-f]{16}"#, "${1}HASH"),
            rule("([^ \n]) {2,}", "$1  "),
        ];
        let filter = Filter {
            places: vec![(cluster.path("").trim_end_matches('/').to_owned(), "DIR")],
            ids: Vec::new(),
            long_id: regex("[0-9a-f]{32}"),
            moment: regex("20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z"),
            snapshot_id: regex("(sp|chk|savepoint|job)-([0-9a-f]{8})"),
            rules,
        };
        Self { directory: directory.into(), filter }
    }

    /// Calls a directory, for example of another cluster, by this name.
    pub fn call(&mut self, directory: String, name: &'static str) {
        self.filter.places.push((directory, name));
    }

    /// Replays `NAME.txt`.
    ///
    /// # Panics
    /// If a command prints anything else than the transcript says.
    pub fn replay(&mut self, cluster: &Cluster, name: &str) {
        let path = self.directory.join(format!("{name}.txt"));
        let wanted = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut seen = String::new();
        let mut copying = true;
        for line in wanted.lines() {
            match line.strip_prefix("$ weir ") {
                Some(command) => {
                    copying = false;
                    let command = self.filter.real(command);
                    let words = words(&command);
                    let ran = cluster.weir(&words.iter().map(String::as_str).collect::<Vec<_>>());
                    let blank =
                        if seen.is_empty() || seen.ends_with("\n\n") || after_remark(&seen) { "" } else { "\n" };
                    write!(seen, "{blank}{line}\n{}", self.filter.shown(&ran)).expect("a string");
                }
                None if line.starts_with("# ") => {
                    copying = true;
                    let blank = if seen.is_empty() || after_remark(&seen) { "" } else { "\n" };
                    writeln!(seen, "{blank}{line}").expect("a string");
                }
                None if copying && !line.is_empty() => panic!("{}: {line:?} belongs to no command", path.display()),
                None => {}
            }
        }
        if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            return std::fs::write(&path, seen).expect("a writable transcript");
        }
        if let Some(difference) = first_difference(&wanted, &seen) {
            panic!("{}: {difference}", path.display());
        }
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern that compiles")
}

/// Whether a text's last line is a remark.
fn after_remark(text: &str) -> bool {
    text.lines().last().is_some_and(|line| line.starts_with("# "))
}

/// Where two texts begin to differ, with the command that did it.
fn first_difference(wanted: &str, seen: &str) -> Option<String> {
    let mut command = "";
    let mut wanted_lines = wanted.trim_end().lines();
    let mut seen_lines = seen.trim_end().lines();
    loop {
        let (wanted, seen) = (wanted_lines.next(), seen_lines.next());
        if wanted == seen {
            command = wanted.filter(|line| line.starts_with("$ ")).unwrap_or(command);
            wanted?;
            continue;
        }
        let rest: Vec<&str> = seen.into_iter().chain(seen_lines).take(40).collect();
        let wanted = wanted.unwrap_or("nothing more");
        return Some(format!("{command}\nshould print: {wanted}\nbut prints:\n{}", rest.join("\n")));
    }
}

/// The words of a command; quotes keep blanks together.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in command.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

impl Filter {
    /// A command with ids and places as they are.
    fn real(&self, command: &str) -> String {
        let mut text = command.to_owned();
        for (index, id) in self.ids.iter().enumerate().rev() {
            let name = format!("ID{}", index + 1);
            for prefix in ["sp-", "chk-", "savepoint-", "job-"] {
                text = text.replace(&format!("{prefix}{name}"), &format!("{prefix}{}", &id[..8]));
            }
            text = text.replace(&name, id);
        }
        self.places.iter().fold(text, |text, (path, name)| text.replace(name, path))
    }

    /// What a command has printed, filtered.
    fn shown(&mut self, ran: &Ran) -> String {
        let mut text = self.filtered(&ran.stdout);
        for line in self.filtered(&ran.stderr).lines() {
            writeln!(text, "! {line}").expect("a string");
        }
        if ran.code != 0 {
            writeln!(text, "exit {}", ran.code).expect("a string");
        }
        text
    }

    fn filtered(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (path, name) in &self.places {
            text = text.replace(path, name);
        }
        for id in self.long_id.find_iter(&text) {
            // Its beginning may have been seen before, in a snapshot's id.
            match self.ids.iter_mut().find(|known| id.as_str().starts_with(known.as_str())) {
                Some(known) => id.as_str().clone_into(known),
                None => self.ids.push(id.as_str().to_owned()),
            }
        }
        for (index, id) in self.ids.iter().enumerate() {
            text = text.replace(id, &format!("ID{}", index + 1));
        }
        for found in self.snapshot_id.captures_iter(&text) {
            if !self.ids.iter().any(|known| known.starts_with(&found[2])) {
                self.ids.push(found[2].to_owned());
            }
        }
        let named = |found: &regex::Captures<'_>| {
            let index = self.ids.iter().position(|id| id.starts_with(&found[2])).unwrap_or_default();
            format!("{}-ID{}", &found[1], index + 1)
        };
        let mut text = self.snapshot_id.replace_all(&text, named).into_owned();
        let moment = |found: &regex::Captures<'_>| match &found[0] {
            of_the_input if of_the_input.starts_with("2026-01-01") => of_the_input.to_owned(),
            _ => "TIME".to_owned(),
        };
        text = self.moment.replace_all(&text, moment).into_owned();
        for (pattern, by) in &self.rules {
            text = pattern.replace_all(&text, *by).into_owned();
        }
        sorted_timelines(&text)
    }
}

/// Sorts what stands below the header of a timeline.
fn sorted_timelines(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    if let Some(header) = lines.iter().position(|line| line.starts_with("TIME  NODE  LEVEL")) {
        let end = lines[header..].iter().position(|line| line.is_empty()).map_or(lines.len(), |length| header + length);
        lines[header + 1..end].sort_unstable();
    }
    lines.iter().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_at_blanks_outside_of_quotes() {
        assert_eq!(words("a 'b c' \"d 'e'\" f=''"), ["a", "b c", "d 'e'", "f="]);
    }

    #[test]
    fn a_difference_is_told_with_its_command() {
        assert_eq!(first_difference("$ a\n1\n", "$ a\n1\n\n"), None);
        let told = first_difference("$ a\n1\n$ b\n2\n", "$ a\n1\n$ b\n3\n").expect("a difference");
        assert_eq!(told, "$ b\nshould print: 2\nbut prints:\n3");
    }
}
