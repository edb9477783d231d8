//! Whatever is asked for in whatever order: what lies on storage never exceeds what is charged, is equal to it when nothing
//! is under way, and nothing is charged beyond the limit in force. Storage is modelled here, by files and what was written
//! to them; the state machine has no part in that.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weir_coordination::checkpoint::{Contents, Trigger};
use weir_coordination::metadata::{
    Catalogue, Command, Completion, Deleter, NewJob, Reply, Reserve, RestoreRecord, SnapshotEntry, StartAttempt, State,
};
use weir_types::graph::{JobGraph, JobOptions};
use weir_types::ids::{Attempt, BarrierId, JobId, Nonce, SnapshotId};
use weir_types::job::JobChange;
use weir_types::quota::{QuotaLevel, QuotaLimits};
use weir_types::restore::ClaimMode;
use weir_types::snapshot::{Annotations, SharedFile, SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error};

/// Name, namespace, owner.
type Account = (&'static str, &'static str, &'static str);

const JOBS: [Account; 3] = [("a", "web", "ada"), ("b", "web", "bob"), ("c", "ops", "ada")];
/// Jobs that are restored from checkpoints of these, and claim them, take their turns in these places.
const CLAIMANTS: [Account; 3] = [("d", "web", "bob"), ("a", "ops", "bob"), ("c", "ops", "ada")];
const LEVELS: [&str; 7] =
    ["cluster", "namespace:web", "namespace:ops", "owner:ada", "owner:bob", "job:web/a", "job:ops/c"];

#[derive(Clone, Debug)]
enum Move {
    Reserve {
        job: usize,
        savepoint: bool,
        estimate: u64,
    },
    Grant {
        which: usize,
        more: u64,
    },
    Write {
        which: usize,
        bytes: u64,
    },
    Complete {
        which: usize,
        manifest: bool,
        share: bool,
    },
    Abort(usize),
    Sweep(usize),
    Mark(usize),
    /// Files go one by one; the crash of a leader in between leaves the rest to its successor.
    Delete {
        which: usize,
        crash: bool,
    },
    Release(usize),
    /// A job fails, if it still runs.
    Fail(usize),
    /// A new job claims a snapshot of one that has failed.
    Claim(usize),
    Limit {
        level: usize,
        bytes: Option<u64>,
        in_flight: Option<u64>,
    },
    Repeat,
}

fn a_move() -> impl Strategy<Value = Move> {
    let which = || 0usize..64;
    prop_oneof![
        6 => (0..JOBS.len(), prop::bool::weighted(0.4), 0u64..40)
            .prop_map(|(job, savepoint, estimate)| Move::Reserve { job, savepoint, estimate }),
        6 => (which(), 1u64..30).prop_map(|(which, more)| Move::Grant { which, more }),
        8 => (which(), 1u64..40).prop_map(|(which, bytes)| Move::Write { which, bytes }),
        6 => (which(), any::<bool>(), any::<bool>())
            .prop_map(|(which, manifest, share)| Move::Complete { which, manifest, share }),
        2 => which().prop_map(Move::Abort),
        3 => which().prop_map(Move::Sweep),
        2 => which().prop_map(Move::Mark),
        4 => (which(), prop::bool::weighted(0.2)).prop_map(|(which, crash)| Move::Delete { which, crash }),
        3 => (0..JOBS.len()).prop_map(Move::Release),
        1 => (0..JOBS.len()).prop_map(Move::Fail),
        4 => which().prop_map(Move::Claim),
        2 => (0..LEVELS.len(), prop::option::of(0u64..200), prop::option::weighted(0.3, 1u64..3))
            .prop_map(|(level, bytes, in_flight)| Move::Limit { level, bytes, in_flight }),
        2 => Just(Move::Repeat),
    ]
}

/// A snapshot as its writers know it.
#[derive(Clone, Debug)]
struct Taken {
    job: usize,
    /// What its writers were told that they may write; none: they were not told anything.
    granted: Option<u64>,
    /// Bytes in its own files, and in shared files that it has written.
    own: u64,
    shared: Vec<SharedFile>,
    /// Whom it is charged to.
    account: Account,
    /// The shared files that it needs, once it is complete.
    needs: BTreeSet<String>,
}

/// A shared file on storage.
#[derive(Clone, Copy, Debug)]
struct Stored {
    bytes: u64,
    /// Who has written it, or needed it last.
    last: Account,
}

struct World {
    state: State,
    now: u64,
    next: u64,
    last: Option<Command>,
    taken: BTreeMap<SnapshotId, Taken>,
    /// The files on storage: of snapshots, and shared ones by job and path.
    own_files: BTreeMap<SnapshotId, u64>,
    shared_files: BTreeMap<(usize, String), Stored>,
    claims: usize,
    limits: BTreeMap<QuotaLevel, QuotaLimits>,
}

fn job(index: usize) -> JobId {
    JobId::new(format!("{:08}", index)).unwrap()
}

fn level(index: usize) -> QuotaLevel {
    LEVELS[index].parse().unwrap()
}

fn create(index: usize, (name, namespace, owner): Account, restore: Option<RestoreRecord>) -> Command {
    let graph = JobGraph {
        name: name.to_owned(),
        options: JobOptions { checkpoints_retained: 2, ..JobOptions::default() },
        operators: vec![],
        edges: vec![],
        expression_version: String::new(),
    };
    Command::CreateJob(Box::new(NewJob {
        request: None,
        id: job(index),
        name: name.to_owned(),
        sql: String::new(),
        owner: owner.to_owned(),
        namespace: namespace.to_owned(),
        graph,
        plan: String::new(),
        sources: vec![],
        restore,
        allow_duplicates: false,
    }))
}

/// The commands that let a job run.
fn begin(index: usize) -> [Command; 2] {
    let (job, attempt) = (job(index), Attempt(1));
    let start = StartAttempt {
        job: job.clone(),
        attempt,
        placements: vec![],
        splits: vec![],
        from: None,
        passed_over: vec![],
        parallelism: None,
    };
    [Command::StartAttempt(start), Command::ChangeJob { job, change: JobChange::Run, failure: None }]
}

impl World {
    fn new() -> Self {
        let mut state = State::default();
        for (index, account) in JOBS.into_iter().enumerate() {
            state.apply(Millis(0), create(index, account, None)).unwrap();
            begin(index).into_iter().for_each(|command| drop(state.apply(Millis(0), command).unwrap()));
        }
        Self {
            state,
            now: 0,
            next: 1,
            last: None,
            taken: BTreeMap::new(),
            own_files: BTreeMap::new(),
            shared_files: BTreeMap::new(),
            claims: 0,
            limits: BTreeMap::new(),
        }
    }

    /// Bytes on storage that fall under a level: a shared file counts where anybody needs it.
    fn stored(&self, level: &QuotaLevel) -> u64 {
        let under = |(name, namespace, owner): Account| level.covers(namespace, owner, name);
        let own = self.own_files.iter().filter(|(id, _)| under(self.taken[*id].account)).map(|(_, bytes)| *bytes);
        let needing = |job: usize, name: &String| {
            let all = self.taken.values().filter(move |taken| taken.job == job && taken.needs.contains(name));
            all.map(|taken| taken.account).collect::<Vec<_>>()
        };
        let counts = |job: usize, name: &String, file: &Stored| match needing(job, name).as_slice() {
            [] => under(file.last),
            accounts => accounts.iter().any(|account| under(*account)),
        };
        let shared = self.shared_files.iter().filter(|((job, name), file)| counts(*job, name, file));
        own.chain(shared.map(|(_, file)| file.bytes)).sum()
    }

    fn pick(&self, which: usize, states: &[SnapshotState]) -> Option<SnapshotId> {
        let of: Vec<_> = self.state.snapshots.values().filter(|entry| states.contains(&entry.state)).collect();
        (!of.is_empty()).then(|| of[which % of.len()].id.clone())
    }

    fn apply(&mut self, command: Command) -> Result<Reply, TestCaseError> {
        self.now += 1;
        let charged = |state: &State, level: &QuotaLevel| (state.usage(level).bytes, state.usage(level).in_flight);
        let before: Vec<_> = (0..LEVELS.len()).map(|index| charged(&self.state, &level(index))).collect();
        self.last = Some(command.clone());
        let reply = self.state.apply(Millis(self.now), command.clone());
        for (index, before) in before.into_iter().enumerate() {
            let level = level(index);
            let (bytes, in_flight) = charged(&self.state, &level);
            let limits = self.limits.get(&level).copied().unwrap_or_default();
            let within =
                |after: u64, before: u64, limit: Option<u64>| after <= before || after <= limit.unwrap_or(u64::MAX);
            prop_assert!(within(bytes, before.0, limits.bytes), "{command:?} charges {bytes} at {level}: {limits:?}");
            prop_assert!(within(in_flight, before.1, limits.in_flight), "{command:?} admits too many at {level}");
        }
        // Whoever was admitted, at once or from the queue, is told what it may write.
        for (id, taken) in &mut self.taken {
            let entry = self.state.snapshots.get(id).filter(|entry| entry.state == SnapshotState::InProgress);
            if let Some(entry) = entry
                && taken.granted.is_none()
            {
                taken.granted = Some(entry.charged_bytes);
            }
        }
        Ok(reply)
    }

    fn step(&mut self, chosen: Move) -> Result<(), TestCaseError> {
        match chosen {
            Move::Reserve { job: index, savepoint, estimate } => self.reserve(index, savepoint, estimate)?,
            Move::Grant { which, more } => {
                let Some(id) = self.pick(which, &[SnapshotState::InProgress, SnapshotState::Failed]) else {
                    return Ok(());
                };
                let entry = &self.state.snapshots[&id];
                let (bytes, nonce) = (entry.charged_bytes + more, entry.nonce.clone());
                let failed = entry.state == SnapshotState::Failed;
                let reply = self.apply(Command::Grant { snapshot: id.clone(), nonce, bytes })?;
                prop_assert!(!failed || reply.is_err(), "a grant after the end");
                if reply.is_ok() {
                    self.taken.get_mut(&id).unwrap().granted = Some(bytes);
                }
            }
            Move::Write { which, bytes } => {
                // Late writers of an aborted snapshot write within their grant as well.
                let Some(id) = self.pick(which, &[SnapshotState::InProgress, SnapshotState::Failed]) else {
                    return Ok(());
                };
                self.write(&id, bytes);
            }
            Move::Complete { which, manifest, share } => self.complete(which, manifest, share)?,
            Move::Abort(which) => {
                let Some(id) = self.pick(which, &[SnapshotState::InProgress, SnapshotState::Queued]) else {
                    return Ok(());
                };
                let nonce = self.state.snapshots[&id].nonce.clone();
                self.apply(Command::Abort { snapshot: id, nonce, failure: Error::new(Code::Timeout, "late") })?
                    .unwrap();
            }
            Move::Sweep(which) => {
                let Some(id) = self.pick(which, &[SnapshotState::Failed]) else { return Ok(()) };
                self.sweep(&id);
                self.apply(Command::Swept { snapshot: id })?.unwrap();
            }
            Move::Mark(which) => {
                let Some(id) = self.pick(which, &[SnapshotState::Completed, SnapshotState::Failed]) else {
                    return Ok(());
                };
                let _held = self.apply(Command::MarkDeleted {
                    snapshot: id,
                    request: None,
                    force: true,
                    by: Deleter::User(String::new()),
                })?;
            }
            Move::Delete { which, crash } => {
                let Some(id) = self.pick(which, &[SnapshotState::Deleting]) else { return Ok(()) };
                self.sweep(&id);
                if !crash {
                    self.apply(Command::Deleted { snapshot: id.clone() })?.unwrap();
                    self.leave(&id);
                }
            }
            Move::Release(index) => self.release(index)?,
            Move::Fail(index) => {
                // What it has under way is given up first, as its coordinator does.
                let under_way =
                    |entry: &&SnapshotEntry| matches!(entry.state, SnapshotState::Queued | SnapshotState::InProgress);
                let failing = job(index);
                let of_job = self.state.snapshots_of(&failing);
                let ids: Vec<_> =
                    of_job.into_iter().filter(under_way).map(|e| (e.id.clone(), e.nonce.clone())).collect();
                for (snapshot, nonce) in ids {
                    self.apply(Command::Abort { snapshot, nonce, failure: Error::new(Code::Timeout, "ended") })?
                        .unwrap();
                }
                let _ended_before =
                    self.apply(Command::ChangeJob { job: job(index), change: JobChange::Fail, failure: None })?;
            }
            Move::Claim(which) => self.claim(which)?,
            Move::Limit { level: index, bytes, in_flight } => {
                let limits = QuotaLimits { bytes, in_flight, ..QuotaLimits::default() };
                self.limits.insert(level(index), limits);
                self.apply(Command::SetQuota { request: None, level: level(index), limits: Some(limits) })?.unwrap();
            }
            Move::Repeat => {
                if let Some(command) = self.last.clone() {
                    let before = self.state.clone();
                    let _answer = self.apply(command)?;
                    prop_assert_eq!(&before, &self.state, "a repeated proposal has changed something");
                }
            }
        }
        self.check()
    }

    fn reserve(&mut self, index: usize, savepoint: bool, estimate: u64) -> Result<(), TestCaseError> {
        let kind = if savepoint { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint };
        let id = SnapshotId::new(format!("{}-{index}-{}", kind.prefix(), self.next)).unwrap();
        let account = JOBS[index];
        let taken = Taken { job: index, granted: None, own: 0, shared: vec![], account, needs: BTreeSet::new() };
        self.taken.insert(id.clone(), taken);
        let reserve = Reserve {
            request: None,
            snapshot: id.clone(),
            job: job(index),
            kind,
            trigger: Trigger::Periodic,
            barrier: BarrierId(self.next),
            attempt: Attempt(1),
            nonce: Nonce(id.to_string()),
            directory: String::new(),
            deadline: Millis(u64::MAX),
            owner: String::new(),
            annotations: Annotations::default(),
            plan_hash: String::new(),
            subtasks: 1,
            evict: false,
            estimate_bytes: estimate,
        };
        self.next += 1;
        let _refused = self.apply(Command::Reserve(Box::new(reserve)))?;
        Ok(())
    }

    /// Lets a new job claim a snapshot; it gives that up again when it is cancelled.
    fn claim(&mut self, which: usize) -> Result<(), TestCaseError> {
        let Some(id) = self.pick(which, &[SnapshotState::Completed]) else { return Ok(()) };
        let (index, account) = (JOBS.len() + self.claims, CLAIMANTS[self.claims % CLAIMANTS.len()]);
        let restore = RestoreRecord {
            directory: String::new(),
            snapshot: Some(id.clone()),
            allow_non_restored_state: false,
            claim: ClaimMode::Claim,
        };
        if self.apply(create(index, account, Some(restore)))?.is_err() {
            return Ok(());
        }
        self.claims += 1;
        self.taken.get_mut(&id).unwrap().account = account;
        for command in begin(index) {
            self.apply(command)?.unwrap();
        }
        // Half of them fail, and leave what they have claimed to whoever claims it next.
        if self.claims.is_multiple_of(2) {
            self.apply(Command::ChangeJob { job: job(index), change: JobChange::Fail, failure: None })?.unwrap();
        }
        Ok(())
    }

    /// A deleted snapshot needs nothing any more.
    fn leave(&mut self, id: &SnapshotId) {
        let (of, account) = (self.taken[id].job, self.taken[id].account);
        let needed = std::mem::take(&mut self.taken.get_mut(id).unwrap().needs);
        for name in needed {
            if let Some(file) = self.shared_files.get_mut(&(of, name)) {
                file.last = account;
            }
        }
    }

    fn write(&mut self, id: &SnapshotId, bytes: u64) {
        let taken = self.taken.get_mut(id).unwrap();
        let Some(granted) = taken.granted else { return };
        let written = taken.own + taken.shared.iter().map(|file| file.bytes).sum::<u64>();
        let bytes = bytes.min(granted - written);
        // Once swept, a prefix is never written again: that is for the collector.
        let swept = !self.own_files.contains_key(id) && written > 0;
        if bytes == 0
            || swept
            || self.state.snapshots[id].state == SnapshotState::Failed && self.state.snapshots[id].charged_bytes == 0
        {
            return;
        }
        if self.state.snapshots[id].kind == SnapshotKind::Checkpoint && bytes.is_multiple_of(3) {
            let name = format!("{id}+{}", taken.shared.len());
            self.shared_files.insert((taken.job, name.clone()), Stored { bytes, last: taken.account });
            taken.shared.push(SharedFile { name, bytes });
            self.own_files.entry(id.clone()).or_default();
        } else {
            taken.own += bytes;
            *self.own_files.entry(id.clone()).or_default() += bytes;
        }
    }

    fn complete(&mut self, which: usize, manifest: bool, share: bool) -> Result<(), TestCaseError> {
        let Some(id) = self.pick(which, &[SnapshotState::InProgress]) else { return Ok(()) };
        let taken = self.taken[&id].clone();
        let mut shared = taken.shared.clone();
        let entry = &self.state.snapshots[&id];
        if share && entry.kind == SnapshotKind::Checkpoint {
            // What the job's newest checkpoint refers to is still there.
            let base = self.state.snapshots_of(&entry.job).into_iter().rev();
            let mut base =
                base.filter(|of| of.state == SnapshotState::Completed && of.kind == SnapshotKind::Checkpoint);
            if let Some(base) = base.next() {
                let files = self.state.shared.of_job(&entry.job).filter(|(_, file)| file.referrers.contains(&base.id));
                shared.extend(files.map(|(name, file)| SharedFile { name: name.to_owned(), bytes: file.bytes }));
            }
        }
        let manifest_bytes = if manifest { taken.own.min(2) } else { 0 };
        let all: u64 = shared.iter().map(|file| file.bytes).sum();
        let bytes = taken.own - manifest_bytes + all;
        let nonce = entry.nonce.clone();
        self.taken.get_mut(&id).unwrap().needs = shared.iter().map(|file| file.name.clone()).collect();
        let contents = Contents { bytes, manifest_bytes, shared, ..Contents::default() };
        let completion = Completion { snapshot: id, nonce, contents };
        self.apply(Command::Complete(Box::new(completion)))?.unwrap();
        Ok(())
    }

    /// Deletes the files of a snapshot: its own, and shared ones that no completed checkpoint has brought in.
    fn sweep(&mut self, id: &SnapshotId) {
        self.own_files.remove(id);
        let taken = &self.taken[id];
        let known: BTreeSet<String> =
            self.state.shared.of_job(&job(taken.job)).map(|(path, _)| path.to_owned()).collect();
        let prefix = format!("{id}+");
        self.shared_files
            .retain(|(of, path), _| *of != taken.job || !path.starts_with(&prefix) || known.contains(path));
    }

    fn release(&mut self, index: usize) -> Result<(), TestCaseError> {
        let names = self.state.shared.unreferenced(&job(index));
        for name in &names {
            self.shared_files.remove(&(index, name.clone()));
        }
        self.apply(Command::Released { job: job(index), names })?.unwrap();
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let over = |state| matches!(state, SnapshotState::Completed | SnapshotState::Failed | SnapshotState::Queued);
        let idle = self.state.snapshots.values().all(|entry| over(entry.state) && !entry.is_unswept())
            && (0..JOBS.len()).all(|index| self.state.shared.unreferenced(&job(index)).is_empty());
        // The sums are what the entries add up to.
        let mut anew = self.state.clone();
        anew.snapshots = self.state.snapshots.values().cloned().collect::<Catalogue>();
        for index in 0..LEVELS.len() {
            let level = level(index);
            let (stored, usage) = (self.stored(&level), self.state.usage(&level));
            prop_assert!(stored <= usage.bytes, "{stored} bytes on storage, {} charged at {level}", usage.bytes);
            prop_assert!(
                !idle || stored == usage.bytes,
                "idle: {stored} on storage, {} charged at {level}",
                usage.bytes
            );
            prop_assert_eq!(&anew.usage(&level), &usage);
        }
        // Whatever a completed snapshot refers to is there.
        for (of, path, record) in self.state.shared.iter() {
            let index = (0..JOBS.len()).find(|index| job(*index) == *of).unwrap();
            let there = self.shared_files.contains_key(&(index, path.to_owned()));
            prop_assert!(record.referrers.is_empty() || there, "{path} is gone");
        }
        Ok(())
    }

    /// Ends and removes everything.
    fn wind_up(&mut self) -> Result<(), TestCaseError> {
        while self.pick(0, &[SnapshotState::InProgress, SnapshotState::Queued]).is_some() {
            self.step(Move::Abort(0))?;
        }
        while self.pick(0, &[SnapshotState::Deleting]).is_some() {
            self.step(Move::Delete { which: 0, crash: false })?;
        }
        let failed: Vec<_> = self.state.unswept().map(|entry| entry.id.clone()).collect();
        for id in failed {
            self.sweep(&id);
            self.apply(Command::Swept { snapshot: id })?.unwrap();
        }
        for index in 0..JOBS.len() {
            self.step(Move::Release(index))?;
        }
        self.check()
    }
}

proptest! {
    #[test]
    fn storage_never_exceeds_what_is_charged_and_nothing_is_charged_beyond_a_limit(
        moves in prop::collection::vec(a_move(), 1..150),
    ) {
        let mut world = World::new();
        for chosen in moves {
            world.step(chosen)?;
        }
        world.wind_up()?;
        let idle = world.state.snapshots.values().all(|entry| !entry.is_unswept());
        prop_assert!(idle);
        prop_assert_eq!(world.stored(&QuotaLevel::Cluster), world.state.usage(&QuotaLevel::Cluster).bytes);
    }
}
