//! What people say about snapshots, what of it may be said, and how it is changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::check_name;
use crate::snapshot::Annotations;

/// Labels that one snapshot may have.
pub const LABELS_MAX: usize = 64;
/// Longest value of a label, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Longest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 4096;

/// A change of annotations; what it does not name stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotationChange {
    /// The new name; empty: none.
    pub name: Option<String>,
    /// The new note; empty: none.
    pub note: Option<String>,
    /// Labels that are set, instead of those of the same keys.
    pub set_labels: BTreeMap<String, String>,
    /// Keys of labels that are removed; those that are not there do not matter.
    pub remove_labels: BTreeSet<String>,
    /// Whether it is pinned from now on.
    pub pinned: Option<bool>,
}

impl Annotations {
    /// Whether all of it may be said.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming what may not.
    pub fn check(&self) -> Result<()> {
        let Self { name, note, labels, pinned: _ } = self;
        if let Some(name) = name {
            check_name("snapshot name", name)?;
        }
        if let Some(note) = note {
            check_text("a note", note, NOTE_BYTES_MAX)?;
        }
        if labels.len() > LABELS_MAX {
            return Err(Error::invalid(format!("{} labels are more than {LABELS_MAX}", labels.len())));
        }
        for (key, value) in labels {
            check_name("label key", key)?;
            check_text("a label's value", value, LABEL_VALUE_BYTES_MAX)?;
        }
        Ok(())
    }

    /// These annotations after a change.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the change asks for what may not be said.
    pub fn changed(&self, change: &AnnotationChange) -> Result<Self> {
        let AnnotationChange { name, note, set_labels, remove_labels, pinned } = change;
        if let Some(key) = remove_labels.iter().find(|key| set_labels.contains_key(*key)) {
            return Err(Error::invalid(format!("label {key:?} is both set and removed")));
        }
        let mut changed = self.clone();
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        if let Some(name) = name {
            changed.name = some(name);
        }
        if let Some(note) = note {
            changed.note = some(note);
        }
        changed.labels.retain(|key, _| !remove_labels.contains(key));
        changed.labels.extend(set_labels.clone());
        changed.pinned = pinned.unwrap_or(changed.pinned);
        changed.check()?;
        Ok(changed)
    }
}

/// Text that is short and shows on one line of a terminal as it is.
fn check_text(what: &str, text: &str, bytes_max: usize) -> Result<()> {
    if text.len() > bytes_max {
        return Err(Error::invalid(format!("{what} of {} bytes is longer than {bytes_max}", text.len())));
    }
    if let Some(control) = text.chars().find(|character| character.is_control()) {
        return Err(Error::invalid(format!("{what} must not contain the control character {control:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let before = Annotations {
            name: Some("nightly".to_owned()),
            note: Some("before the upgrade".to_owned()),
            labels: labels(&[("env", "test"), ("team", "a")]),
            pinned: true,
        };
        assert_eq!(before.changed(&AnnotationChange::default()).unwrap(), before);
        let change = AnnotationChange {
            note: Some(String::new()),
            set_labels: labels(&[("env", "prod")]),
            remove_labels: ["team", "nothing"].map(str::to_owned).into(),
            pinned: Some(false),
            ..AnnotationChange::default()
        };
        let after = before.changed(&change).unwrap();
        assert_eq!(
            after,
            Annotations { name: before.name, note: None, labels: labels(&[("env", "prod")]), pinned: false }
        );
    }

    #[test]
    fn what_would_break_a_table_or_a_selector_is_refused() {
        let name = |text: &str| AnnotationChange { name: Some(text.to_owned()), ..AnnotationChange::default() };
        let note = |text: String| AnnotationChange { note: Some(text), ..AnnotationChange::default() };
        let label = |key: &str, value: &str| AnnotationChange {
            set_labels: labels(&[(key, value)]),
            ..AnnotationChange::default()
        };
        let both = AnnotationChange { remove_labels: ["a".to_owned()].into(), ..label("a", "b") };
        for change in [
            name("../../x"),
            name("two words"),
            note("red\u{1b}[31m".to_owned()),
            note("x".repeat(NOTE_BYTES_MAX + 1)),
            label("", "x"),
            label("a=b", "x"),
            label("a", "two\nlines"),
            label("a", &"x".repeat(LABEL_VALUE_BYTES_MAX + 1)),
            both,
        ] {
            let refused = Annotations::default().changed(&change).unwrap_err();
            assert_eq!(refused.code, crate::Code::InvalidArgument, "{change:?}");
        }
        let many = (0..=LABELS_MAX).map(|i| (format!("k{i}"), String::new())).collect();
        let many = AnnotationChange { set_labels: many, ..AnnotationChange::default() };
        assert!(Annotations::default().changed(&many).is_err());
    }
}
