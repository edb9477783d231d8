//! Attempts: what they start from, their deployment, and what the scheduler decides about them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use weir_coordination::checkpoint::{self, RunningAttempt, SourcePlan, Trigger};
use weir_coordination::metadata::{Command, JobRecord, Recovery, RecoveryPoint, Reply, StartAttempt};
use weir_coordination::scheduler::{self, Action, assign_splits};
use weir_state::manifest::read_manifest;
use weir_types::Result;
use weir_types::control::{CancelAttempt, FinishAttempt, ToTaskManager};
use weir_types::deployment::{Deployment, Placement, Restore, SplitAssignment};
use weir_types::ids::{Attempt, JobId, PartitionId, PinHolder, ReaderId, RequestId};
use weir_types::snapshot::{OperatorSnapshot, SnapshotKind, SplitPosition};
use weir_types::splits;
use weir_types::stream::{Offset, StreamCut};

use super::{Event, Leader, Reign, Step, Then, call};
use crate::cluster::store::Call;
use crate::cluster::world::World;

/// What an attempt starts with.
#[derive(Clone, Debug, Default)]
pub(in crate::cluster) struct Prepared {
    splits: Vec<SplitAssignment>,
    restore: Option<Restore>,
}

impl Leader {
    /// Lets the scheduler decide, and carries out what it says.
    pub(super) fn schedule(&mut self, world: &mut World, event: scheduler::Event) {
        let now = self.now(world);
        for action in self.scheduler.on_event(now, event) {
            if self.dies(world, scheduler_step(&action)) {
                return;
            }
            match action {
                Action::StartAttempt(job, attempt, placements) => {
                    if let Some(live) = self.jobs.get_mut(&job) {
                        live.pending_start = Some((attempt, placements));
                    }
                    self.start_pending(world, &job);
                }
                Action::CancelAttempt(job, attempt, task_managers) => {
                    let cancel = CancelAttempt { term: self.term, job, attempt };
                    for task_manager in task_managers {
                        self.send(world, &task_manager, ToTaskManager::Cancel(cancel.clone()));
                    }
                }
                Action::FinishAttempt(job, attempt) => {
                    self.coordinate(world, &job, checkpoint::Event::Drained);
                    if let Some(live) = self.jobs.get_mut(&job) {
                        live.pending_finish = Some(attempt);
                    }
                    self.finish_pending(world, &job);
                }
                Action::ChangeJob(job, change, failure) => {
                    world.note(|| {
                        format!(
                            "job {job}: {change:?} {}",
                            failure.as_ref().map(|failure| failure.error.to_string()).unwrap_or_default()
                        )
                    });
                    self.commit(Command::ChangeJob { job, change, failure }, Then::Nothing);
                }
                Action::Adopted(job, attempt) => {
                    world.note(|| format!("{job}#{attempt} is adopted"));
                    world.seen("an attempt is adopted");
                }
                Action::Grow(job, attempt) => {
                    world.seen("a job is to grow");
                    let id = RequestId::new(format!("grow{}", world.next_number())).unwrap();
                    self.growing.insert(id.clone(), (job.clone(), attempt));
                    self.want(world, &job, id, SnapshotKind::Checkpoint, Trigger::Rescale);
                }
                Action::AttemptRunning(job, attempt) => {
                    let running =
                        self.state(world, |state| state.jobs.get(&job).map(|job| running_attempt(job, attempt)));
                    if let Some(running) = running {
                        self.coordinate(world, &job, checkpoint::Event::Started(running));
                    }
                }
                Action::AttemptEnded(job, _, error) => {
                    if let Some(live) = self.jobs.get_mut(&job) {
                        live.pending_start = None;
                        live.pending_finish = None;
                    }
                    self.coordinate(world, &job, checkpoint::Event::Ended(error));
                }
            }
        }
    }

    /// Starts the attempt that waits, unless a snapshot is in flight, which may become what the attempt starts from.
    pub(super) fn start_pending(&mut self, world: &mut World, job: &JobId) {
        let Some(live) = self.jobs.get_mut(job).filter(|live| live.coordinator.in_flight().is_none()) else {
            return;
        };
        let Some((attempt, placements)) = live.pending_start.take() else {
            return;
        };
        let found = self.state(world, |state| state.jobs.get(job).map(|job| (job.clone(), state.recovery(job))));
        let Some((mut record, recovery)) = found else { return };
        if let Some(parallelism) = self.scheduler.parallelism(job) {
            record.set_parallelism(parallelism);
        }
        let point = match recovery {
            Recovery::Nothing => None,
            Recovery::From(point) => Some(point),
            Recovery::Lost(error) => panic!("job {job} has nothing left to start from: {error} {:?}", error.detail),
        };
        world.note(|| format!("job {job}#{attempt} starts from {:?}", point.as_ref().map(RecoveryPoint::name)));
        let prepared = Rc::new(RefCell::new(Prepared::default()));
        let steps = prepare(self.reign, record, attempt, point, &prepared);
        let job = job.clone();
        self.work(world, steps, move |result| {
            let prepared = result.map(|()| prepared.borrow().clone());
            Event::Prepared { job, attempt, placements, prepared }
        });
    }

    /// Lets a drained attempt end, unless a snapshot is in flight.
    pub(super) fn finish_pending(&mut self, world: &mut World, job: &JobId) {
        let Some(live) = self.jobs.get_mut(job).filter(|live| live.coordinator.in_flight().is_none()) else {
            return;
        };
        let Some(attempt) = live.pending_finish.take() else {
            return;
        };
        let finish = FinishAttempt { term: self.term, job: job.clone(), attempt };
        for task_manager in self.scheduler.task_managers_of(job) {
            self.send(world, &task_manager, ToTaskManager::Finish(finish.clone()));
        }
    }

    pub(super) fn on_prepared(
        &mut self,
        world: &mut World,
        job: JobId,
        attempt: Attempt,
        placements: Vec<Placement>,
        prepared: Result<Prepared>,
    ) {
        if self.job_state(world, &job).is_none_or(|state| state.is_terminal()) {
            return self.release_job(world, &job);
        }
        if self.scheduler.attempt(&job) != Some(attempt) || self.scheduler.task_managers_of(&job).is_empty() {
            return;
        }
        match prepared {
            Ok(prepared) => {
                let start = StartAttempt {
                    job: job.clone(),
                    attempt,
                    placements: placements.clone(),
                    splits: prepared.splits.clone(),
                    from: None,
                    passed_over: Vec::new(),
                    parallelism: self.scheduler.parallelism(&job),
                };
                let then = Then::Deploy(job, attempt, placements, Box::new(prepared));
                self.commit(Command::StartAttempt(start), then);
            }
            Err(error) => self.schedule(world, scheduler::Event::Broken(job, attempt, error)),
        }
    }

    pub(super) fn on_attempt_committed(
        &mut self,
        world: &mut World,
        job: JobId,
        attempt: Attempt,
        placements: Vec<Placement>,
        prepared: Prepared,
        reply: Reply,
    ) {
        if let Err(error) = reply {
            return self.schedule(world, scheduler::Event::Broken(job, attempt, error));
        }
        let Some(record) = self.record(world, &job) else { return };
        if record.committed_sinks().is_empty() {
            return self.deploy(world, job, attempt, placements, prepared);
        }
        // What older attempts have left is settled before this one may write.
        let settle = call(self.reign, Call::Settle(job.clone(), record.rollback()));
        self.work(world, vec![settle], move |settled| Event::RolledBack {
            job,
            attempt,
            placements,
            prepared: settled.map(|()| Box::new(prepared)),
        });
    }

    /// Sends an attempt to its TaskManagers, unless it was cancelled, or broken, meanwhile.
    pub(super) fn deploy(
        &mut self,
        world: &mut World,
        job: JobId,
        attempt: Attempt,
        placements: Vec<Placement>,
        prepared: Prepared,
    ) {
        let task_managers = self.scheduler.task_managers_of(&job);
        if self.scheduler.attempt(&job) != Some(attempt) || task_managers.is_empty() {
            return;
        }
        let Some(graph) = self.state(world, |state| state.jobs.get(&job).map(|record| record.graph.clone())) else {
            return;
        };
        let Prepared { splits, restore } = prepared;
        let deployment = Deployment {
            term: self.term,
            job: job.clone(),
            attempt,
            graph,
            placements,
            splits,
            restore,
            checkpoint_root: super::CHECKPOINTS.to_owned(),
            store_address: String::new(),
        };
        self.schedule(world, scheduler::Event::Deployed(job, attempt));
        for task_manager in task_managers {
            self.send(world, &task_manager, ToTaskManager::Deploy(Box::new(deployment.clone())));
        }
    }
}

/// The steps that make an attempt ready: its snapshot is read, what it begins at is pinned, its group is divided.
fn prepare(
    reign: Reign,
    record: JobRecord,
    attempt: Attempt,
    point: Option<RecoveryPoint>,
    prepared: &Rc<RefCell<Prepared>>,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (filled, job) = (prepared.clone(), record.clone());
    let directory = point.as_ref().map(|point| point.directory.clone());
    steps.push(Box::new(move |world: &mut World| {
        let operators = match &directory {
            Some(directory) => read_manifest(&world.storage.open(directory))?.operators,
            None => Vec::new(),
        };
        let splits = divide_splits(&job, &operators);
        let restore = directory.map(|directory| Restore { directory, operators });
        *filled.borrow_mut() = Prepared { splits, restore };
        Ok(())
    }));
    let (filled, job) = (prepared.clone(), record.clone());
    let own = point.is_some_and(|point| point.own);
    steps.push(Box::new(move |world: &mut World| {
        let (group, positions) = (job.sources[0].group.clone().unwrap(), cut(&filled.borrow().splits));
        if own {
            return Ok(());
        }
        let holder = PinHolder::new(job.id.as_str()).unwrap();
        world.call_store(reign.member, Call::Pin(group.stream, holder, positions))
    }));
    let (filled, job) = (prepared.clone(), record.clone());
    steps.push(Box::new(move |world: &mut World| {
        let (group, positions) = (job.sources[0].group.clone().unwrap(), cut(&filled.borrow().splits));
        world.call_store(reign.member, Call::CreateGroup(group.name, group.stream, job.id, positions))
    }));
    let (filled, job) = (prepared.clone(), record.clone());
    steps.push(Box::new(move |world: &mut World| {
        let group = job.sources[0].group.clone().unwrap();
        let splits = filled.borrow().splits.clone();
        let mut owners: BTreeMap<ReaderId, Vec<PartitionId>> = BTreeMap::new();
        for split in &splits {
            let reader = ReaderId::new(format!("{}-{}", split.uid, split.index)).unwrap();
            owners.entry(reader).or_default().push(splits::parse_partition(&split.position.split)?);
        }
        world.call_store(reign.member, Call::Assign(group.name, job.id, attempt, owners, cut(&splits)))
    }));
    steps
}

fn divide_splits(record: &JobRecord, operators: &[OperatorSnapshot]) -> Vec<SplitAssignment> {
    let mut assignments = Vec::new();
    for source in &record.sources {
        let of_source = operators.iter().filter(|operator| operator.uid == source.uid);
        let known: BTreeMap<&str, &SplitPosition> =
            of_source.flat_map(|operator| &operator.splits).map(|split| (split.split.as_str(), split)).collect();
        let splits = source.splits.iter().map(|split| (*known.get(split.split.as_str()).unwrap_or(&split)).clone());
        assignments.extend(assign_splits(&source.uid, source.parallelism, splits));
    }
    assignments
}

/// Positions of splits that are not read to their end.
fn cut(splits: &[SplitAssignment]) -> StreamCut {
    let open = splits.iter().map(|split| &split.position).filter(|position| !position.finished);
    let position = |at: &SplitPosition| (splits::parse_partition(&at.split).unwrap(), Offset(at.offset));
    StreamCut(open.map(position).collect())
}

fn running_attempt(record: &JobRecord, attempt: Attempt) -> RunningAttempt {
    let source = |source: &weir_coordination::metadata::SourceRecord| SourcePlan {
        uid: source.uid.clone(),
        splits: source.splits.iter().map(|split| split.split.clone()).collect(),
    };
    RunningAttempt {
        attempt,
        subtasks: record.placements.iter().map(|placement| (placement.chain, placement.index)).collect(),
        sources: record.sources.iter().map(source).collect(),
    }
}

fn scheduler_step(action: &Action) -> &'static str {
    match action {
        Action::StartAttempt(..) => "start attempt",
        Action::CancelAttempt(..) => "cancel attempt",
        Action::FinishAttempt(..) => "finish attempt",
        Action::ChangeJob(..) => "change job",
        Action::Grow(..) => "grow",
        Action::Adopted(..) => "adopt",
        Action::AttemptRunning(..) => "attempt running",
        Action::AttemptEnded(..) => "attempt ended",
    }
}
