//! Carries out what was decided about jobs' output, and lets new attempts write only behind that.
//!
//! Invariants: nothing is carried out that is not committed to the log, so that a leader whose reign is over can do no harm
//! here; a duty is tried until it is done, whatever becomes of the job, its TaskManagers, or this JobManager; an attempt is
//! deployed after what older ones have left is settled. The leader is the only one to commit: sinks only prepare.

use weir_coordination::metadata::{Command, Reply, State};
use weir_coordination::scheduler;
use weir_service::failpoint;
use weir_types::Result;
use weir_types::deployment::Placement;
use weir_types::ids::{Attempt, JobId};
use weir_types::output::Settlement;
use weir_types::time::Millis;

use super::{Leader, Then};
use crate::event::{Event, Prepared};
use crate::metadata::now;
use crate::output;

/// After which time a place that did not answer is asked again.
const RETRY_MS: u64 = 200;

impl Leader {
    /// Carries out what is due of a job's output, unless that is under way.
    pub(super) fn discharge(&mut self, job: &JobId) {
        if self.duties.get(job).is_some_and(Option::is_none) {
            return;
        }
        let is_due = |state: &State| state.jobs.get(job).filter(|job| job.output.duty.is_some()).cloned();
        let Some((record, duty)) = self.state(is_due).and_then(|record| record.output.duty.map(|duty| (record, duty)))
        else {
            self.duties.remove(job);
            return;
        };
        failpoint::reach("output.due");
        self.duties.insert(job.clone(), None);
        let (store, job) = (self.store.clone(), job.clone());
        self.work(async move {
            let settled = output::settle(&store, &record, duty).await;
            Event::OutputSettled { job, duty, settled }
        });
    }

    /// Whatever a predecessor has left to be carried out.
    pub(super) fn discharge_all(&mut self) {
        let jobs: Vec<JobId> = self.state(|state| state.jobs_with_duties().cloned().collect());
        jobs.iter().for_each(|job| self.discharge(job));
    }

    pub(super) fn discharge_due(&mut self, now: Millis) {
        let due = self.duties.iter().filter(|(_, at)| at.is_some_and(|at| at <= now));
        let due: Vec<JobId> = due.map(|(job, _)| job.clone()).collect();
        due.iter().for_each(|job| self.discharge(job));
    }

    pub(super) fn on_output_settled(&mut self, job: JobId, duty: Settlement, settled: Result<()>) {
        match settled {
            Ok(()) => {
                failpoint::reach("output.settled");
                self.commit(Command::Discharged { job: job.clone(), duty }, Then::Discharged(job));
            }
            Err(error) => {
                tracing::warn!(%job, code = %error.code, %error, "output could not be committed yet, trying again");
                self.duties.insert(job, Some(now().plus(RETRY_MS)));
            }
        }
    }

    /// That a duty was carried out is in the log; there may be the next one.
    pub(super) fn on_discharged(&mut self, job: &JobId, reply: Reply) {
        failpoint::reach("output.discharged");
        self.duties.remove(job);
        match reply {
            Ok(applied) => self.after_change(applied),
            Err(error) => tracing::warn!(%job, code = %error.code, %error, "a change no longer applied"),
        }
        self.discharge(job);
    }

    /// An attempt is decided: before it is deployed, what older ones have left is settled.
    pub(super) fn roll_back(&mut self, job: JobId, attempt: Attempt, placements: Vec<Placement>, prepared: Prepared) {
        let Some(record) = self.record(&job) else { return };
        failpoint::reach("output.rollback");
        let store = self.store.clone();
        self.work(async move {
            let settled = output::settle(&store, &record, record.rollback()).await;
            Event::RolledBack { job, attempt, placements, prepared: settled.map(|()| Box::new(prepared)) }
        });
    }

    pub(super) fn on_rolled_back(
        &mut self,
        job: JobId,
        attempt: Attempt,
        placements: Vec<Placement>,
        prepared: Result<Box<Prepared>>,
    ) {
        match prepared {
            Ok(prepared) => self.deploy(job, attempt, placements, *prepared),
            Err(error) => self.schedule(scheduler::Event::Broken(job, attempt, error)),
        }
    }
}
