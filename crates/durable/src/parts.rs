//! Part files that appear with a decision: hidden while they are written and while they wait, visible from their commit on.
//!
//! ```text
//! .part-FAMILY-ATTEMPT-SUBTASK-NUMBER.EXT.inprogress      being written
//! .part-FAMILY-ATTEMPT-SUBTASK-NUMBER.EXT.prepared-MARK   whole and durable, waits for a decision
//! part-FAMILY-ATTEMPT-SUBTASK-NUMBER.EXT                  committed
//! ```
//!
//! A decision finds files by their names; no list of them is kept anywhere. Carrying it out again changes nothing.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use weir_types::ids::{Attempt, BarrierId};
use weir_types::output::Settlement;

const IN_PROGRESS: &str = "inprogress";
const PREPARED: &str = "prepared-";

/// The name of a part file. No two are alike: each attempt has names of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    /// What all files of the sink have in common, see [`weir_types::output::file_family`].
    pub family: String,
    /// Who writes it: the attempt …
    pub attempt: Attempt,
    /// … and the subtask.
    pub subtask: u32,
    /// Its number among the subtask's files.
    pub number: u64,
    /// What its rows are encoded as.
    pub extension: String,
}

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    InProgress,
    Prepared(BarrierId),
}

/// What a decision has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Files that have become visible.
    pub committed: u64,
    /// Files that were removed.
    pub removed: u64,
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, attempt, subtask, number, extension } = self;
        write!(f, "part-{family}-{attempt}-{subtask}-{number}.{extension}")
    }
}

impl PartName {
    /// Its name while it is written.
    pub fn in_progress(&self) -> String {
        format!(".{self}.{IN_PROGRESS}")
    }

    /// Its name while it waits for a decision.
    pub fn prepared(&self, mark: BarrierId) -> String {
        format!(".{self}.{PREPARED}{mark}")
    }

    /// The hidden file of this family that has this name, if it is one.
    fn parse(family: &str, name: &str) -> Option<(Self, Stage)> {
        let (name, stage) = name.strip_prefix('.')?.rsplit_once('.')?;
        let stage = match stage.strip_prefix(PREPARED) {
            Some(mark) => Stage::Prepared(BarrierId(mark.parse().ok()?)),
            None if stage == IN_PROGRESS => Stage::InProgress,
            None => return None,
        };
        let rest = name.strip_prefix("part-")?.strip_prefix(family)?.strip_prefix('-')?;
        let (numbers, extension) = rest.split_once('.')?;
        let mut numbers = numbers.split('-');
        let part = Self {
            family: family.to_owned(),
            attempt: Attempt(numbers.next()?.parse().ok()?),
            subtask: numbers.next()?.parse().ok()?,
            number: numbers.next()?.parse().ok()?,
            extension: extension.to_owned(),
        };
        numbers.next().is_none().then_some((part, stage))
    }
}

/// Carries out a decision about the files of a family in a directory, durably. A directory that is not there holds none.
///
/// # Errors
/// Whatever the operating system says: carry it out again.
pub fn settle(directory: &Path, family: &str, settlement: Settlement) -> io::Result<Settled> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settled::default()),
        entries => entries?,
    };
    let mut settled = Settled::default();
    for entry in entries {
        let hidden = entry?.file_name();
        let Some((part, stage)) = hidden.to_str().and_then(|name| PartName::parse(family, name)) else { continue };
        let hidden = directory.join(&hidden);
        let commits = |mark| settlement.commit.is_some_and(|to| part.attempt == to.attempt && mark <= to.barrier);
        match stage {
            Stage::Prepared(mark) if commits(mark) => {
                gone_is_fine(fs::rename(&hidden, directory.join(part.to_string())))?;
                settled.committed += 1;
            }
            _ if settlement.below.is_some_and(|below| part.attempt < below) => {
                gone_is_fine(fs::remove_file(&hidden))?;
                settled.removed += 1;
            }
            _ => {}
        }
    }
    super::sync_directory(directory)?;
    Ok(settled)
}

/// The same decision may be carried out by somebody else at the same time.
fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use weir_types::output::CommitMark;

    use super::*;

    fn part(attempt: u32, subtask: u32, number: u64) -> PartName {
        PartName { family: "j-u".to_owned(), attempt: Attempt(attempt), subtask, number, extension: "json".to_owned() }
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn up_to(attempt: u32, barrier: u64) -> Option<CommitMark> {
        Some(CommitMark { attempt: Attempt(attempt), barrier: BarrierId(barrier) })
    }

    #[test]
    fn a_decision_commits_up_to_its_mark_and_removes_what_older_attempts_have_left() {
        let directory = tempfile::tempdir().unwrap();
        let foreign = [
            ".part-j-u2-1-0-0.json.prepared-1",
            ".part-j-u-1-0.json.prepared-1",
            ".part-j-u-1-0-0.json.prepared-x",
            ".part-j-u-1-0-0.json",
            "part-j-u-0-0-0.json",
            "x",
        ];
        let (one, two, beyond, open) = (part(2, 0, 0), part(2, 7, 1), part(2, 0, 2), part(2, 1, 3));
        let zombie = part(1, 0, 9);
        for name in foreign.iter().map(|name| (*name).to_owned()).chain([
            one.prepared(BarrierId(4)),
            two.prepared(BarrierId(5)),
            beyond.prepared(BarrierId(6)),
            open.in_progress(),
            zombie.prepared(BarrierId(3)),
        ]) {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let commit = Settlement { commit: up_to(2, 5), below: None };
        assert_eq!(settle(directory.path(), "j-u", commit).unwrap(), Settled { committed: 2, removed: 0 });
        assert_eq!(settle(directory.path(), "j-u", commit).unwrap(), Settled::default(), "it was carried out already");
        let back = Settlement { commit: up_to(2, 5), below: Some(Attempt(3)) };
        assert_eq!(settle(directory.path(), "j-u", back).unwrap(), Settled { committed: 0, removed: 3 });
        let mut left: Vec<String> = foreign.iter().map(|name| (*name).to_owned()).collect();
        left.extend([one.to_string(), two.to_string()]);
        left.sort();
        assert_eq!(names(directory.path()), left);
    }

    #[test]
    fn a_directory_that_is_not_there_has_nothing_to_decide() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert_eq!(settle(&missing, "j-u", Settlement::default()).unwrap(), Settled::default());
        assert!(!missing.exists());
    }
}
