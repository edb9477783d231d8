//! Finding catalogue entries by what people call them, and changing what people say about them.

use weir_types::annotations::AnnotationChange;
use weir_types::ids::SnapshotId;
use weir_types::snapshot::SnapshotState;
use weir_types::{Code, Error, Result};

use super::command::{Applied, Reply};
use super::deletion::no_snapshot;
use super::{SnapshotEntry, State};

/// Candidates that an ambiguous name's error lists.
const CANDIDATES_MAX: usize = 10;

impl State {
    pub(super) fn annotate(&mut self, snapshot: &SnapshotId, change: &AnnotationChange) -> Reply {
        let entry = self.snapshots.get(snapshot).ok_or_else(|| no_snapshot(snapshot))?;
        if entry.state == SnapshotState::Deleting {
            return Err(Error::new(Code::FailedPrecondition, format!("snapshot {snapshot} is being deleted")));
        }
        let annotations = entry.annotations.changed(change)?;
        if let Some(mut entry) = self.snapshots.get_mut(snapshot) {
            entry.annotations = annotations;
        }
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    /// The snapshot that a user means: by id, by directory, by name, or by a unique prefix of an id. A name means one of the
    /// namespace, if there is one to look in; ids and directories are nobody else's anywhere. A failed attempt is meant by its
    /// name only if no other snapshot bears that. Nothing outside the catalogue is ever meant, whatever the text looks like.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what can be none of these, or if more than one snapshot is meant; `NOT_FOUND`.
    pub fn find_snapshot(&self, text: &str, namespace: Option<&str>) -> Result<&SnapshotEntry> {
        if text.split('/').any(|part| part == "..") || text.chars().any(char::is_control) {
            return Err(Error::invalid(format!("{text:?} is not a snapshot's id, name or directory"))
                .with_hint("Paths must be absolute, without `..`."));
        }
        if let Some(entry) = SnapshotId::new(text).ok().and_then(|id| self.snapshots.get(&id)) {
            return Ok(entry);
        }
        if text.contains('/') {
            let directory = text.trim_end_matches('/');
            // A failed attempt may have been aimed at the same place before.
            let found = self.snapshots.values().filter(|entry| entry.directory == directory);
            let found = found.max_by_key(|entry| (entry.state != SnapshotState::Failed, entry.barrier));
            return found.ok_or_else(|| {
                Error::not_found(format!("no snapshot of the catalogue lies in {text:?}"))
                    .with_hint("`weir snapshots list` shows all of them.")
            });
        }
        let named = |entry: &&SnapshotEntry| {
            entry.annotations.name.as_deref() == Some(text) && namespace.is_none_or(|of| entry.namespace == of)
        };
        let prefixed = |entry: &&SnapshotEntry| !text.is_empty() && entry.id.as_str().starts_with(text);
        let mut by_name: Vec<_> = self.snapshots.values().filter(named).collect();
        if by_name.iter().any(|entry| entry.state != SnapshotState::Failed) {
            by_name.retain(|entry| entry.state != SnapshotState::Failed);
        }
        let found = if by_name.is_empty() { self.snapshots.values().filter(prefixed).collect() } else { by_name };
        match found.as_slice() {
            [entry] => Ok(entry),
            [] => Err(Error::not_found(format!("snapshot {text:?} is not in the catalogue"))
                .with_hint("`weir snapshots list` shows all of them.")),
            several @ [first, ..] => {
                let in_one = several.iter().all(|entry| entry.namespace == first.namespace);
                let candidate = |entry: &&SnapshotEntry| match in_one {
                    true => entry.id.to_string(),
                    false => format!("{} in namespace {}", entry.id, entry.namespace),
                };
                let mut candidates: Vec<_> = several.iter().take(CANDIDATES_MAX).map(candidate).collect();
                if several.len() > CANDIDATES_MAX {
                    candidates.push("…".to_owned());
                }
                Err(Error::invalid(format!("{text:?} means more than one snapshot"))
                    .with_detail(candidates.join(", "))
                    .with_hint("Give one of these ids, or with --namespace the one that the name is looked for in."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{delete, fail, run, run_in, savepoint, take};
    use super::super::{Command, State};
    use super::*;
    use crate::checkpoint::Trigger;
    use weir_types::time::Millis;

    fn rename(state: &mut State, snapshot: &SnapshotId, name: &str) -> Reply {
        let change = AnnotationChange { name: Some(name.to_owned()), ..AnnotationChange::default() };
        state.apply(Millis(1), Command::Annotate { snapshot: snapshot.clone(), request: None, change })
    }

    #[test]
    fn snapshots_are_found_by_id_directory_name_and_unique_prefix() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let (first, second) = (take(&mut state, 1, 1, 1), take(&mut state, 2, 1, 2));
        rename(&mut state, &first, "nightly").unwrap();
        let found = |text: &str| state.find_snapshot(text, None).map(|entry| entry.id.clone());
        for text in [first.as_str(), "nightly", &format!("/{first}"), &format!("/{first}/")] {
            assert_eq!(found(text).unwrap(), first, "{text}");
        }
        assert_eq!(found("sp-00000001-2").unwrap(), second);
        let several = found("sp-").unwrap_err();
        assert_eq!(several.code, Code::InvalidArgument);
        assert_eq!(several.detail, Some(format!("{first}, {second}")));
        for text in ["", "sp-x", "/", "/nowhere", "night"] {
            assert_eq!(found(text).unwrap_err().code, Code::NotFound, "{text}");
        }
        rename(&mut state, &second, "nightly").unwrap();
        assert_eq!(state.find_snapshot("nightly", None).unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn names_are_looked_for_in_a_namespace_and_a_failed_attempt_takes_none_away() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        run_in(&mut state, 2, "clicks", "other");
        let (here, there) = (take(&mut state, 1, 1, 1), take(&mut state, 2, 2, 1));
        let failed = fail(&mut state, 3, 1, 2, Trigger::User, Code::Timeout);
        [&here, &there, &failed]
            .into_iter()
            .for_each(|snapshot| drop(rename(&mut state, snapshot, "nightly").unwrap()));
        let found = |text: &str, namespace| state.find_snapshot(text, namespace).map(|entry| entry.id.clone());
        assert_eq!(found("nightly", Some("default")).unwrap(), here);
        assert_eq!(found("nightly", Some("other")).unwrap(), there);
        assert_eq!(found("nightly", Some("none")).unwrap_err().code, Code::NotFound);
        assert_eq!(found(here.as_str(), Some("other")).unwrap(), here, "an id is an id everywhere");
        let ambiguous = found("nightly", None).unwrap_err();
        assert_eq!(ambiguous.code, Code::InvalidArgument);
        let candidates = format!("{here} in namespace default, {there} in namespace other");
        assert_eq!(ambiguous.detail, Some(candidates));
    }

    #[test]
    fn hostile_names_mean_nothing() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        take(&mut state, 1, 1, 1);
        for text in ["../../x", "/a/../sp-00000001-1", "..", "/sp-00000001-1/..", "a\0b", "x\ny"] {
            assert_eq!(state.find_snapshot(text, None).unwrap_err().code, Code::InvalidArgument, "{text:?}");
        }
    }

    #[test]
    fn failed_attempts_are_annotated_and_what_is_being_deleted_is_not() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let failed = fail(&mut state, 1, 1, 1, Trigger::User, Code::Timeout);
        rename(&mut state, &failed, "why").unwrap();
        let first = take(&mut state, 2, 1, 2);
        take(&mut state, 3, 1, 3);
        delete(&mut state, 4, &first, false).unwrap();
        assert_eq!(rename(&mut state, &first, "x").unwrap_err().code, Code::FailedPrecondition);
        assert_eq!(rename(&mut state, &savepoint(1, 9), "x").unwrap_err().code, Code::NotFound);
    }
}
