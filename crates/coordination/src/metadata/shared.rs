//! Files that several checkpoints of a job share.
//!
//! Invariants: a file is listed, and charged, from the completion of the checkpoint that wrote it until a command says that
//! it is gone; it is deleted only after its last referrer has left the catalogue, and then nothing refers to it ever again.
//! It is charged once at every level that a referrer falls under; when the last one has gone, at that one's levels. So what
//! a level is charged grows by what is admitted or claimed there, and never because somebody else has deleted something.

use std::collections::{BTreeMap, BTreeSet};

use weir_types::ids::{JobId, SnapshotId};
use weir_types::snapshot::SharedFile;
use weir_types::{Code, Error, Result};

/// What is known of a shared file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRecord {
    /// Its length in bytes.
    pub bytes: u64,
    /// The checkpoints that need it; none: it is about to be deleted.
    pub referrers: BTreeSet<SnapshotId>,
    /// Whom its last referrer was charged to, once that has gone; none: its own job.
    pub owed_by: Option<Account>,
}

/// Whom a claimed checkpoint is charged to: another job than the one that has taken it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The owner.
    pub owner: String,
    /// The namespace.
    pub namespace: String,
    /// The job's name.
    pub job_name: String,
}

/// The shared files of all jobs.
#[derive(Clone, Debug, Default)]
pub struct SharedFiles(BTreeMap<JobId, JobFiles>);

#[derive(Clone, Debug, Default)]
struct JobFiles {
    files: BTreeMap<String, SharedRecord>,
    /// Derived: what the files add up to.
    bytes: u128,
    /// Derived: how many of them somebody else than the job owes.
    owed: usize,
}

impl JobFiles {
    fn count(&mut self, record: &SharedRecord) {
        self.bytes += u128::from(record.bytes);
        self.owed += usize::from(record.owed_by.is_some());
    }

    fn discount(&mut self, record: &SharedRecord) {
        self.bytes -= u128::from(record.bytes);
        self.owed -= usize::from(record.owed_by.is_some());
    }
}

impl SharedFiles {
    /// Enters a file as it was persisted.
    pub fn insert(&mut self, job: JobId, name: String, record: SharedRecord) {
        let of_job = self.0.entry(job).or_default();
        of_job.count(&record);
        if let Some(before) = of_job.files.insert(name, record) {
            of_job.discount(&before);
        }
    }

    /// Every file with its job and name.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &str, &SharedRecord)> {
        self.0.iter().flat_map(|(job, of_job)| of_job.files.iter().map(move |(name, file)| (job, name.as_str(), file)))
    }

    /// The files of one job.
    pub fn of_job(&self, job: &JobId) -> impl Iterator<Item = (&str, &SharedRecord)> {
        self.0.get(job).into_iter().flat_map(|of_job| of_job.files.iter().map(|(name, file)| (name.as_str(), file)))
    }

    /// The files of a job that nothing refers to any more: they are deleted, and then released.
    pub fn unreferenced(&self, job: &JobId) -> Vec<String> {
        self.of_job(job).filter(|(_, file)| file.referrers.is_empty()).map(|(name, _)| name.to_owned()).collect()
    }

    /// Jobs that have shared files, what these add up to, and whether others owe some of them.
    pub(super) fn jobs(&self) -> impl Iterator<Item = (&JobId, u128, bool)> {
        self.0.iter().map(|(job, of_job)| (job, of_job.bytes, of_job.owed > 0))
    }

    /// Whether a checkpoint may refer to these files.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if one that an earlier checkpoint brought is gone or about to go, or if the name of a new one
    /// is taken.
    pub(super) fn check(&self, job: &JobId, snapshot: &SnapshotId, files: &[SharedFile]) -> Result<()> {
        let known = self.0.get(job).map(|of_job| &of_job.files);
        for file in files {
            let (name, record) = (&file.name, known.and_then(|known| known.get(&file.name)));
            match (file.is_written_by(snapshot), record) {
                (true, Some(_)) => return Err(refused(format!("shared file {name} of job {job} exists already"))),
                (false, record) if record.is_none_or(|record| record.referrers.is_empty()) => {
                    return Err(refused(format!("shared file {name} of job {job} is no longer there")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes that a completed checkpoint refers to these files.
    pub(super) fn refer(&mut self, job: &JobId, snapshot: &SnapshotId, files: &[SharedFile]) {
        for file in files {
            let of_job = self.0.entry(job.clone()).or_default();
            let record = of_job.files.entry(file.name.clone()).or_insert_with(|| {
                of_job.bytes += u128::from(file.bytes);
                SharedRecord { bytes: file.bytes, referrers: BTreeSet::new(), owed_by: None }
            });
            record.referrers.insert(snapshot.clone());
        }
    }

    /// Takes a deleted checkpoint off its files; those that nothing refers to any more come back. Until they are gone they
    /// are charged to whom it was charged: its job, or the `account` of who had claimed it.
    pub(super) fn leave(&mut self, job: &JobId, snapshot: &SnapshotId, account: Option<&Account>) -> Vec<String> {
        let mut unreferenced = Vec::new();
        let Some(of_job) = self.0.get_mut(job) else { return unreferenced };
        for (name, record) in &mut of_job.files {
            if record.referrers.remove(snapshot) && record.referrers.is_empty() {
                record.owed_by = account.cloned();
                of_job.owed += usize::from(account.is_some());
                unreferenced.push(name.clone());
            }
        }
        unreferenced
    }

    /// Forgets files that were deleted; those that something refers to stay.
    pub(super) fn release(&mut self, job: &JobId, names: &[String]) {
        let Some(of_job) = self.0.get_mut(job) else { return };
        for name in names {
            if of_job.files.get(name).is_some_and(|record| record.referrers.is_empty())
                && let Some(record) = of_job.files.remove(name)
            {
                of_job.discount(&record);
            }
        }
        if of_job.files.is_empty() {
            self.0.remove(job);
        }
    }

    /// Bytes of the files that only this checkpoint refers to.
    pub fn exclusive_bytes(&self, job: &JobId, snapshot: &SnapshotId) -> u64 {
        let only = |record: &SharedRecord| record.referrers.len() == 1 && record.referrers.contains(snapshot);
        self.of_job(job).filter(|(_, record)| only(record)).fold(0, |sum, (_, file)| sum.saturating_add(file.bytes))
    }
}

impl PartialEq for SharedFiles {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

fn refused(message: String) -> Error {
    Error::new(Code::FailedPrecondition, message).with_hint("The next checkpoint starts from what is there.")
}
