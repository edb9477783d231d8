//! What the cluster remembers: jobs, the catalogue of snapshots, reservations, answered requests. Replicated through
//! raft as a deterministic state machine: [`State::apply`] depends on nothing but the state and the command; time enters
//! through commands.
//!
//! Invariants: a reservation ends once, as complete or as aborted; a completed snapshot is deleted only after an entry
//! has marked it; what a job would restart from, or a restore still needs, is never marked.

mod admission;
mod annotations;
mod catalogue;
mod claims;
mod command;
mod deletion;
mod eviction;
mod failures;
#[cfg(test)]
mod fixture;
mod imports;
mod output;
mod policy;
mod queue;
mod record;
mod recovery;
mod requests;
mod shared;
mod snapshots;
mod usage;

use std::collections::BTreeMap;

use weir_types::ids::{Attempt, BarrierId, ClusterId, JobId, Parallelism, RequestId};
use weir_types::job::{JobChange, JobFailure, JobState};
use weir_types::quota::{check_namespace, check_owner, or_default};
use weir_types::restore::ClaimMode;
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

pub use admission::Quotas;
pub use catalogue::Catalogue;
pub use claims::Claim;
pub use command::{Applied, Command, Completion, NewJob, Reply, Reserve, StartAttempt};
pub use deletion::{DeletedRecord, Deleter, Deletion};
pub use failures::Failures;
pub use imports::{Import, Origin};
pub use output::Output;
pub use policy::{PolicyRecord, Retention};
pub use record::{JobRecord, ReaderGroup, RestoreRecord, SnapshotEntry, SourceRecord};
pub use recovery::{Fallback, PassedOver, Recovery, RecoveryPoint};
pub use requests::{Answered, Requests};
pub use shared::{Account, SharedFiles, SharedRecord};
pub use usage::Usage;

/// Jobs that have ended and are still listed; older ones without snapshots are forgotten.
const ENDED_JOBS_MAX: usize = 256;

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The cluster; none before its first command.
    pub cluster: Option<ClusterId>,
    /// The limits in force.
    pub quotas: Quotas,
    /// Jobs, the ended ones too.
    pub jobs: BTreeMap<JobId, JobRecord>,
    /// The catalogue: every attempt at a snapshot that is worth remembering.
    pub snapshots: Catalogue,
    /// Files that several checkpoints of a job share.
    pub shared: SharedFiles,
    /// Requests that were answered.
    pub requests: Requests,
    /// Retention policies, and what was deleted.
    pub retention: Retention,
}

impl State {
    /// Applies a command. A command that does not apply changes nothing and is answered with an error.
    pub fn apply(&mut self, now: Millis, command: Command) -> Reply {
        let mut applied = self.change(now, command)?;
        // Whatever has changed may have freed a place.
        applied.admitted = self.admit_queued(now);
        Ok(applied)
    }

    fn change(&mut self, now: Millis, command: Command) -> Reply {
        match command {
            Command::Found { cluster, defaults } => {
                self.quotas.defaults = *defaults;
                self.cluster.get_or_insert(cluster);
                Ok(Applied::default())
            }
            Command::SetQuota { request, level, limits } => self.once(request, |state| state.set_quota(level, limits)),
            Command::Grant { snapshot, nonce, bytes } => self.grant(&snapshot, &nonce, bytes),
            Command::Swept { snapshot } => Ok(self.swept(&snapshot)),
            Command::Released { job, names } => {
                self.shared.release(&job, &names);
                Ok(Applied { job: Some(job), ..Applied::default() })
            }
            Command::CreateJob(job) => {
                let request = job.request.clone();
                self.once(request, |state| state.create_job(now, *job))
            }
            Command::StartAttempt(start) => self.start_attempt(now, start),
            Command::ChangeJob { job, change, failure } => self.change_job(now, &job, change, failure),
            Command::Rescale { request, job, parallelism } => {
                self.once(request, |state| state.rescale(job, parallelism))
            }
            Command::Discharged { job, duty } => self.discharged(now, &job, duty),
            Command::Reserve(reserve) => {
                let request = reserve.request.clone();
                self.once(request, |state| state.reserve(now, *reserve))
            }
            Command::Import(import) => {
                let request = import.request.clone();
                self.once(request, |state| state.import(now, *import))
            }
            Command::Complete(completion) => self.complete(now, *completion),
            Command::Abort { snapshot, nonce, failure } => self.abort(now, &snapshot, &nonce, failure),
            Command::MarkDeleted { snapshot, request, force, by } => {
                self.once(request, |state| state.mark_deleted(now, &snapshot, force, by))
            }
            Command::Deleted { snapshot } => Ok(self.deleted(now, &snapshot)),
            Command::Annotate { snapshot, request, change } => {
                self.once(request, |state| state.annotate(&snapshot, &change))
            }
            Command::SetPolicy { level, request, policy, by } => {
                self.once(request, |state| state.set_policy(now, level, policy, by))
            }
            Command::EnforcePolicies => self.enforce_policies(now),
            Command::Verified { snapshot, by, findings, damage } => self.verified(now, &snapshot, by, findings, damage),
            Command::CutOff { snapshot, reason } => self.cut_off(&snapshot, reason),
        }
    }

    /// The job with this id.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn job(&self, job: &JobId) -> Result<&JobRecord> {
        self.jobs.get(job).ok_or_else(|| no_job(job.as_str()))
    }

    /// The job that a user means: by id, by a unique prefix of an id, or by the name of the only job that has not ended.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `INVALID_ARGUMENT` if more than one is meant.
    pub fn find_job(&self, text: &str, namespace: Option<&str>) -> Result<&JobRecord> {
        if let Some(job) = JobId::new(text).ok().and_then(|id| self.jobs.get(&id)) {
            return Ok(job);
        }
        let by_prefix: Vec<_> = self.jobs.values().filter(|job| job.id.as_str().starts_with(text)).collect();
        let named = |job: &JobRecord| job.name == text && namespace.is_none_or(|namespace| job.namespace == namespace);
        let by_name = |ended: bool| move |job: &&JobRecord| named(job) && job.state.is_terminal() == ended;
        let candidates = [
            by_prefix,
            self.jobs.values().filter(by_name(false)).collect(),
            self.jobs.values().filter(by_name(true)).collect(),
        ];
        match candidates.iter().find(|found| !found.is_empty() && !text.is_empty()) {
            None => Err(no_job(text)),
            Some(found) => match found.as_slice() {
                [job] => Ok(job),
                several => {
                    let ids: Vec<_> = several.iter().map(|job| job.id.as_str()).collect();
                    Err(Error::invalid(format!("{text:?} means more than one job"))
                        .with_detail(ids.join(", "))
                        .with_hint("Give one of these ids, or as much of it as no other begins with."))
                }
            },
        }
    }

    /// Snapshots of one job in the order of their barriers.
    pub fn snapshots_of<'a>(&'a self, job: &'a JobId) -> Vec<&'a SnapshotEntry> {
        let all = self.snapshots.of_job(job).into_iter().flat_map(|sums| &sums.all);
        all.filter_map(|(_, id)| self.snapshots.get(id)).collect()
    }

    /// Runs `act` unless the request was answered before; remembers the answer, unless it may differ the next time.
    fn once(&mut self, request: Option<RequestId>, act: impl FnOnce(&mut Self) -> Reply) -> Reply {
        let Some(request) = request else { return act(self) };
        if let Some(answered) = self.requests.get(&request) {
            return answered.reply.clone();
        }
        let reply = act(self);
        self.requests.remember(request, reply.clone());
        reply
    }

    fn create_job(&mut self, now: Millis, new: NewJob) -> Reply {
        let short = crate::checkpoint::short(&new.id);
        if self.known_jobs().any(|id| crate::checkpoint::short(id) == short) {
            return Err(Error::new(Code::AlreadyExists, format!("a job whose id begins with {short} exists already")));
        }
        self.check_repeats(&new)?;
        let NewJob { request: _, id, name, sql, owner, namespace, graph, plan, sources, restore, allow_duplicates } =
            new;
        let (owner, namespace) = (or_default(owner), or_default(namespace));
        check_owner(&owner)?;
        check_namespace(&namespace)?;
        if let Some(restore) = &restore {
            self.check_restore(restore)?;
            if restore.claim == ClaimMode::Claim {
                let claim = Claim { job: id.clone(), job_name: name.clone(), at: now };
                self.claim(now, restore, claim, &owner, &namespace)?;
            }
        }
        let applied = Applied { job: Some(id.clone()), ..Applied::default() };
        self.forget_ended_jobs();
        self.jobs.insert(
            id.clone(),
            JobRecord {
                id,
                name,
                sql,
                owner,
                namespace,
                parallelism_wanted: graph.options.parallelism,
                graph,
                plan,
                sources,
                state: JobState::Created,
                attempt: Attempt(0),
                restarts: 0,
                submitted_at: now,
                started_at: None,
                ended_at: None,
                failures: Failures::default(),
                restore,
                placements: Vec::new(),
                splits: Vec::new(),
                last_barrier: BarrierId(0),
                stopped_by: None,
                took_snapshot: false,
                fallback: None,
                output: Output::default(),
                allow_duplicates,
            },
        );
        Ok(applied)
    }

    fn forget_ended_jobs(&mut self) {
        let mut ended: Vec<_> = self.jobs.values().filter(|job| job.state.is_terminal()).collect();
        if ended.len() < ENDED_JOBS_MAX {
            return;
        }
        ended.sort_by_key(|job| job.ended_at);
        let forgotten = ended.into_iter().map(|job| job.id.clone()).find(|job| self.is_forgettable(job));
        if let Some(job) = forgotten {
            let entries: Vec<_> = self.snapshots_of(&job).into_iter().map(|entry| entry.id.clone()).collect();
            for id in entries {
                self.snapshots.remove(&id);
            }
            self.jobs.remove(&job);
        }
    }

    fn is_forgettable(&self, job: &JobId) -> bool {
        self.snapshots_of(job).iter().all(|entry| entry.is_over())
            && self.shared.of_job(job).next().is_none()
            && self.jobs.get(job).is_none_or(|job| job.output.duty.is_none())
    }

    fn start_attempt(&mut self, now: Millis, start: StartAttempt) -> Reply {
        let StartAttempt { job, attempt, placements, splits, from, passed_over, parallelism } = start;
        let record = self.jobs.get_mut(&job).ok_or_else(|| no_job(job.as_str()))?;
        if attempt <= record.attempt {
            return Err(Error::fenced(format!("attempt {attempt} of job {job} is not newer than {}", record.attempt)));
        }
        record.state = next_state(record, JobChange::Deploy)?;
        record.attempt = attempt;
        record.placements = placements;
        record.splits = splits;
        if let Some(parallelism) = parallelism {
            record.set_parallelism(parallelism);
        }
        if let Some(to) = from.filter(|_| !passed_over.is_empty()) {
            record.fallback = Some(Fallback { at: now, attempt, to, passed_over });
        }
        Ok(Applied { job: Some(job), ..Applied::default() })
    }

    fn rescale(&mut self, job: JobId, parallelism: Parallelism) -> Reply {
        let record = self.jobs.get_mut(&job).ok_or_else(|| no_job(job.as_str()))?;
        if record.state.is_terminal() {
            let message = format!("job {job} is {} and cannot be rescaled", record.state);
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        record.parallelism_wanted = parallelism;
        Ok(Applied { job: Some(job), ..Applied::default() })
    }

    fn change_job(&mut self, now: Millis, job: &JobId, change: JobChange, failure: Option<Box<JobFailure>>) -> Reply {
        next_state(self.job(job)?, change)?;
        if self.settle_change(job, change) {
            return Ok(Applied { job: Some(job.clone()), ..Applied::default() });
        }
        self.end_job(now, job, change, failure)
    }

    /// Changes a job whose output does not stand against that.
    fn end_job(&mut self, now: Millis, job: &JobId, change: JobChange, failure: Option<Box<JobFailure>>) -> Reply {
        let record = self.jobs.get_mut(job).ok_or_else(|| no_job(job.as_str()))?;
        let state = next_state(record, change)?;
        record.state = state;
        if let Some(failure) = failure {
            record.failures.note(*failure);
        }
        match change {
            JobChange::Run => {
                record.started_at.get_or_insert(now);
            }
            JobChange::Restart => record.restarts += 1,
            _ => {}
        }
        let mut applied = Applied { job: Some(job.clone()), ..Applied::default() };
        if state.is_terminal() {
            record.ended_at = Some(now);
            self.retention.scheduled.remove(job);
            // A failed job's checkpoints are kept: somebody may want to go on from them.
            if state != JobState::Failed {
                applied.retired = self.retire(now, job, 0);
            }
            applied.retired.extend(self.let_go(now, job));
        }
        Ok(applied)
    }
}

/// The state after a change; one that only waits for its output to be committed ends as it is to.
fn next_state(job: &JobRecord, change: JobChange) -> Result<JobState> {
    let next = job.state.next(change).filter(|_| job.output.ending.is_none());
    next.ok_or_else(|| cannot(job, change))
}

fn no_job(text: &str) -> Error {
    Error::not_found(format!("job {text:?} does not exist")).with_hint("`weir list -a` shows all jobs.")
}

fn cannot(job: &JobRecord, change: JobChange) -> Error {
    let verb = match change {
        JobChange::Deploy => "be deployed",
        JobChange::Run => "run",
        JobChange::Restart => "restart",
        JobChange::Stop => "be stopped",
        JobChange::Cancel => "be cancelled",
        JobChange::Finish | JobChange::EndStopped | JobChange::EndCancelled => "end",
        JobChange::Fail => "fail",
    };
    Error::new(Code::FailedPrecondition, format!("job {} is {} and cannot {verb}", job.id, job.state))
}
