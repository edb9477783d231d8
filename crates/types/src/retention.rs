//! Retention policies: which savepoints are kept, and when savepoints are taken by themselves.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::snapshot::Annotations;

/// The shortest interval between two scheduled savepoints, in milliseconds.
pub const INTERVAL_MS_MIN: u64 = 1_000;

/// What happens to the savepoints of a job, or of every job of a namespace that has no policy of its own.
///
/// A savepoint is kept as long as *any* rule keeps it. A policy without a rule on count or age deletes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionPolicy {
    /// The newest so many completed savepoints of a job are kept.
    pub keep_last: Option<u32>,
    /// Savepoints are kept for so many milliseconds after they completed.
    pub keep_for_ms: Option<u64>,
    /// Savepoints that bear one of these labels are kept.
    pub keep_labels: BTreeMap<String, String>,
    /// When savepoints are taken by themselves.
    pub schedule: Option<Schedule>,
}

/// When savepoints are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// So many milliseconds after the last one.
    EveryMs(u64),
    /// A cron expression of five fields (six with seconds first), in UTC.
    Cron(String),
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::EveryMs(ms) => write!(f, "every {ms} ms"),
            Schedule::Cron(expression) => write!(f, "cron {expression}"),
        }
    }
}

impl RetentionPolicy {
    /// Whether the policy makes sense. That a cron expression is one, whoever evaluates it has to check.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming what does not.
    pub fn check(&self) -> Result<()> {
        if self.keep_last == Some(0) {
            return Err(Error::invalid("keeping the last 0 savepoints would keep none")
                .with_hint("Keep at least one, or set --keep-for alone."));
        }
        if self.keep_for_ms == Some(0) {
            return Err(Error::invalid("savepoints cannot be kept for no time at all"));
        }
        if let Some(Schedule::EveryMs(ms)) = self.schedule
            && ms < INTERVAL_MS_MIN
        {
            return Err(Error::invalid(format!(
                "an interval of {ms} ms between savepoints is shorter than {INTERVAL_MS_MIN} ms"
            )));
        }
        let labels = Annotations { labels: self.keep_labels.clone(), ..Annotations::default() };
        labels.check()?;
        if !self.keep_labels.is_empty() && !self.deletes() {
            return Err(Error::invalid("labels keep savepoints from being deleted, but nothing deletes any")
                .with_hint("Add --keep-last or --keep-for."));
        }
        if *self == Self::default() {
            return Err(Error::invalid("a policy without any rule does nothing")
                .with_hint("Give --keep-last, --keep-for, --every or --cron."));
        }
        Ok(())
    }

    /// Whether it ever deletes anything.
    pub fn deletes(&self) -> bool {
        self.keep_last.is_some() || self.keep_for_ms.is_some()
    }

    /// Whether the policy keeps a savepoint that completed `age_ms` ago and has so many `newer` completed ones of the same job.
    pub fn keeps(&self, newer: usize, age_ms: u64, annotations: &Annotations) -> bool {
        !self.deletes()
            || annotations.pinned
            || self.keep_last.is_some_and(|last| newer < last as usize)
            || self.keep_for_ms.is_some_and(|ms| age_ms < ms)
            || self.keep_labels.iter().any(|(key, value)| annotations.labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(labels: &[(&str, &str)], pinned: bool) -> Annotations {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Annotations { labels, pinned, ..Annotations::default() }
    }

    #[test]
    fn any_rule_keeps_and_none_of_them_deletes_by_itself() {
        let policy = RetentionPolicy {
            keep_last: Some(2),
            keep_for_ms: Some(1_000),
            keep_labels: [("release".to_owned(), "yes".to_owned())].into(),
            schedule: None,
        };
        let plain = annotations(&[], false);
        assert!(policy.keeps(1, 5_000, &plain), "it is the last but one");
        assert!(policy.keeps(2, 999, &plain), "it is young");
        assert!(!policy.keeps(2, 1_000, &plain));
        assert!(policy.keeps(9, 9_000, &annotations(&[("release", "yes")], false)));
        assert!(!policy.keeps(9, 9_000, &annotations(&[("release", "no")], false)));
        assert!(policy.keeps(9, 9_000, &annotations(&[], true)), "it is pinned");
        let only_schedule =
            RetentionPolicy { schedule: Some(Schedule::EveryMs(INTERVAL_MS_MIN)), ..RetentionPolicy::default() };
        assert!(only_schedule.keeps(1_000, u64::MAX, &plain));
    }

    #[test]
    fn policies_that_cannot_be_meant_are_refused() {
        let labels: BTreeMap<_, _> = [("a".to_owned(), "b".to_owned())].into();
        for policy in [
            RetentionPolicy::default(),
            RetentionPolicy { keep_last: Some(0), ..RetentionPolicy::default() },
            RetentionPolicy { keep_for_ms: Some(0), ..RetentionPolicy::default() },
            RetentionPolicy { keep_labels: labels, ..RetentionPolicy::default() },
            RetentionPolicy { schedule: Some(Schedule::EveryMs(999)), ..RetentionPolicy::default() },
        ] {
            assert_eq!(policy.check().unwrap_err().code, crate::Code::InvalidArgument, "{policy:?}");
        }
    }
}
