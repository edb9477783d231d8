//! What must hold: at all times, and when everything has healed and ended. The expectations come from the input alone.

use std::collections::{BTreeMap, BTreeSet};

use weir_coordination::checkpoint::Trigger;
use weir_coordination::metadata::{SnapshotEntry, State};
use weir_state::manifest::{MANIFEST, Manifest, read_manifest};
use weir_types::ids::{JobId, RequestId, SnapshotId};
use weir_types::job::JobState;
use weir_types::quota::{QuotaLevel, QuotaLimits};
use weir_types::snapshot::{SnapshotKind, SnapshotState, SourcePositions, StopMode};
use weir_types::splits;
use weir_types::{Code, Result};

use super::subtask::Sums;
use super::world::World;

/// How long everything may take to be whole again, and to end.
const QUIET_MS: u64 = 30_000;

impl World {
    /// What users do while things go wrong.
    pub(super) fn users(&mut self) {
        for job in self.jobs.keys().cloned().collect::<Vec<_>>() {
            if self.random.chance(100) {
                self.submit(&job);
            }
            if !self.random.chance(self.troubles_of_users()) {
                continue;
            }
            let request = RequestId::new(format!("r{}", self.next_number())).unwrap();
            match self.random.below(10) {
                0..=3 => self.want(&job, request, SnapshotKind::Savepoint, Trigger::User),
                4 => self.want(&job, request, SnapshotKind::Checkpoint, Trigger::User),
                5 => {
                    self.ask_leader(|leader, world| leader.cancel_snapshot(world, &job));
                }
                6 => self.delete_any(request),
                7 => {
                    let in_flight = self.random.pick(&[Some(0), Some(1), None]);
                    let bytes = self.random.pick(&[Some(5_000), Some(20_000), None]);
                    let limits = QuotaLimits { in_flight, bytes, ..QuotaLimits::default() };
                    self.ask_leader(|leader, _| leader.set_quota(Some(limits)));
                }
                8 if self.random.chance(200) => {
                    self.want(&job, request, SnapshotKind::Savepoint, Trigger::Stop(StopMode::Suspend));
                }
                9 if self.random.chance(100) => {
                    self.seen("a user cancels a job");
                    self.cancelled.insert(job.clone());
                    self.ask_leader(|leader, world| leader.cancel(world, &job));
                }
                _ => {
                    self.ask_leader(|leader, _| leader.set_quota(None));
                }
            }
        }
    }

    fn submit(&mut self, job: &JobId) {
        let unknown = self.ask_leader(|leader, world| leader.job_state(world, job).is_none()).unwrap_or(false);
        if unknown {
            self.ask_leader(|leader, world| leader.submit(world, job));
        }
    }

    fn want(&mut self, job: &JobId, request: RequestId, kind: SnapshotKind, trigger: Trigger) {
        self.ask_leader(|leader, world| leader.want(world, job, request, kind, trigger));
    }

    fn delete_any(&mut self, request: RequestId) {
        let Some(state) = self.leading_state() else { return };
        let completed = state.snapshots.values().filter(|entry| entry.kind == SnapshotKind::Savepoint);
        let ids: Vec<SnapshotId> = completed.map(|entry| entry.id.clone()).collect();
        if !ids.is_empty() {
            let snapshot = ids[self.random.below(ids.len() as u64) as usize].clone();
            self.ask_leader(|leader, _| leader.delete(snapshot, request));
        }
    }

    /// The metadata as whoever leads has it.
    fn leading_state(&self) -> Option<State> {
        let member = self.any_leader()?;
        Some(self.places[&member].running.as_ref()?.machine.read().state.clone())
    }

    /// At all times.
    pub(super) fn judge(&mut self) {
        let fresh = std::mem::take(&mut self.history.lock().fresh);
        fresh.iter().for_each(|entry| self.judge_contents(entry));
        if self.now.is_multiple_of(100) {
            self.judge_usage();
        }
    }

    /// What lies on storage is charged, but for strays: what somebody has written who had been given up.
    fn judge_usage(&self) {
        let history = self.history.lock();
        let is_stray = |directory: &str| history.cleaned.iter().any(|snapshot| directory_is_of(directory, snapshot));
        let sizes = self.storage.sizes();
        let stored: u64 = sizes.iter().filter(|(directory, _)| !is_stray(directory)).map(|(_, bytes)| bytes).sum();
        if stored <= history.charged {
            return;
        }
        // What stands in a manifest's place for an aborted snapshot is charged to nobody, until it is swept.
        let markers: u64 = sizes.keys().filter(|directory| !is_stray(directory)).map(|it| self.marker_bytes(it)).sum();
        let (stored, charged) = (stored - markers, history.charged);
        assert!(stored <= charged, "{stored} bytes are stored, {charged} are charged: {sizes:?}");
    }

    /// Bytes of the abort marker in a directory.
    fn marker_bytes(&self, directory: &str) -> u64 {
        let refused = read_manifest(&self.storage.open(directory)).err();
        if refused.is_some_and(|error| error.code == Code::FailedPrecondition) {
            self.storage.size(directory, MANIFEST)
        } else {
            0
        }
    }

    /// A manifest was to appear.
    pub(super) fn judge_manifest(&self, snapshot: &SnapshotId, published: &Result<()>) {
        let history = self.history.lock();
        // Once its place is swept, a manifest is a stray like any other file: nothing refers to it.
        let barred = history.aborted.contains(snapshot) && !history.cleaned.contains(snapshot);
        assert!(published.is_err() || !barred, "a manifest of {snapshot} appears after it was aborted");
    }

    /// A completed snapshot can be restored, and is exactly what its cut says.
    fn judge_contents(&self, entry: &SnapshotEntry) {
        let store = self.storage.open(&entry.directory);
        let manifest = read_manifest(&store).unwrap_or_else(|error| panic!("{} is complete: {error}", entry.id));
        assert_eq!(manifest.nonce, entry.nonce, "{} is somebody else's", entry.id);
        let sums = self.sums_in(&manifest, &entry.directory);
        let expected = self.sums_before(&entry.job, &entry.sources);
        assert_eq!(sums, expected, "{} does not hold what lies before its cut", entry.id);
    }

    fn sums_in(&self, manifest: &Manifest, directory: &str) -> Sums {
        let mut sums = Sums::new();
        for file in manifest.files() {
            let bytes = self.storage.read(directory, &file.path);
            let bytes = bytes.unwrap_or_else(|| panic!("{directory}/{} is not durable", file.path));
            sums.extend(serde_json::from_slice::<Sums>(&bytes).unwrap());
        }
        sums
    }

    /// Count and sum per key of the input before a cut.
    fn sums_before(&self, job: &JobId, sources: &[SourcePositions]) -> Sums {
        let partitions = &self.store.streams[&self.jobs[job].stream];
        let mut sums = Sums::new();
        for split in sources.iter().flat_map(|source| &source.splits) {
            let partition = splits::parse_partition(&split.split).unwrap();
            for record in &partitions[partition.0 as usize].records[..split.offset as usize] {
                let sum = sums.entry(record.key).or_default();
                *sum = (sum.0 + 1, sum.1 + record.value);
            }
        }
        sums
    }

    // --- the end --------------------------------------------------------------------------------------------------

    /// Ends all troubles.
    pub(super) fn heal(&mut self) {
        self.note(|| "the troubles end".to_owned());
        self.heal_everything();
    }

    /// Stops every job with a savepoint once it has read everything, and waits until nothing is left to do.
    pub(super) fn end_jobs(&mut self) {
        let end_by = self.now + QUIET_MS;
        let mut healed = false;
        while !self.now.is_multiple_of(100) || !self.is_settled() {
            assert!(self.now < end_by, "it does not come to rest: {}", self.describe());
            for member in self.member_ids() {
                if self.places[&member].running.is_none() {
                    self.start_member(member);
                }
            }
            if !healed && self.now.is_multiple_of(500) {
                healed = self.ask_leader(|leader, _| leader.set_quota(None)).is_some();
            }
            if self.now.is_multiple_of(500) {
                // Again and again: whoever led when it was asked may be gone.
                self.ask_leader(|leader, _| leader.set_quota(None));
                self.jobs.keys().cloned().collect::<Vec<_>>().iter().for_each(|job| self.stop(job));
            }
            self.step();
        }
    }

    fn stop(&mut self, job: &JobId) {
        self.submit(job);
        let state = self.ask_leader(|leader, world| leader.job_state(world, job)).flatten();
        if state != Some(JobState::Running) || !self.has_read_all(job) {
            return;
        }
        let request = RequestId::new(format!("stop{}", self.next_number())).unwrap();
        self.want(job, request, SnapshotKind::Savepoint, Trigger::Stop(StopMode::Suspend));
    }

    /// Whether subtasks that run have taken everything; what they hold of it is for the judge to say.
    fn has_read_all(&self, job: &JobId) -> bool {
        let written: BTreeSet<u64> = self.store.everything(job).into_iter().collect();
        let stream = &self.store.streams[&self.jobs[job].stream];
        stream.iter().flat_map(|partition| &partition.records).all(|record| written.contains(&record.value))
    }

    fn is_settled(&self) -> bool {
        let Some(state) = self.leading_state() else { return false };
        let idle = self.any_leader().is_some_and(|member| {
            let running = self.places[&member].running.as_ref();
            running.and_then(|running| running.leader.as_ref()).is_some_and(|leader| leader.is_idle())
        });
        let ended = |job: &JobId| state.jobs.get(job).is_some_and(|job| job.state.is_terminal());
        idle && self.jobs.keys().all(ended) && self.live_attempts().is_empty() && self.is_clean(&state).is_ok()
    }

    /// What is left belongs to somebody; what is not, is named.
    fn is_clean(&self, state: &State) -> std::result::Result<(), String> {
        let open: Vec<&SnapshotId> = state
            .snapshots
            .values()
            .filter(|entry| match entry.state {
                SnapshotState::Completed => false,
                SnapshotState::Failed => entry.charged_bytes > 0,
                _ => true,
            })
            .map(|entry| &entry.id)
            .collect();
        if !open.is_empty() {
            return Err(format!("snapshots are not over: {open:?}"));
        }
        let completed = || state.snapshots.values().filter(|entry| entry.state == SnapshotState::Completed);
        let sizes = self.storage.sizes();
        let directories: BTreeSet<&str> = completed().map(|entry| entry.directory.as_str()).collect();
        let found: BTreeSet<&str> = sizes.keys().map(String::as_str).collect();
        if directories != found {
            return Err(format!("directories {found:?} are left, not {directories:?}"));
        }
        let (stored, charged) = (sizes.values().sum::<u64>(), state.usage(&QuotaLevel::Cluster).bytes);
        if stored != charged {
            return Err(format!("{stored} bytes are stored, {charged} are charged"));
        }
        if !self.store.groups().is_empty() {
            return Err(format!("reader groups of ended jobs are left: {:?}", self.store.groups()));
        }
        let holders: BTreeSet<&str> = self.store.pins.keys().map(|(_, holder)| holder.as_str()).collect();
        let holding: BTreeSet<&str> = completed().map(|entry| entry.id.as_str()).collect();
        if holders != holding {
            return Err(format!("pins are left of {holders:?}, not of {holding:?}"));
        }
        let pending: Vec<_> = self.jobs.keys().flat_map(|job| self.store.pending(job)).collect();
        match pending.is_empty() {
            true => Ok(()),
            false => Err(format!("transactions are left: {pending:?}")),
        }
    }

    /// After the end.
    pub(super) fn judge_end(&mut self) {
        let state = self.leading_state().unwrap();
        for (id, spec) in self.jobs.clone() {
            let record = &state.jobs[&id];
            let rightly = match record.state {
                JobState::Stopped => record.stopped_by.is_some(),
                JobState::Cancelled => self.cancelled.contains(&id),
                _ => false,
            };
            assert!(rightly, "job {id} ended as {}: {:?}", record.state, record.failures.last());
            let last = self.history.lock().cuts.get(&id).map(|(_, sources)| sources.clone()).unwrap_or_default();
            let counts = counts(self.store.output(&id));
            let input = self.values_before(&id, &last);
            if spec.transactional {
                let expected: BTreeMap<u64, u32> = input.into_iter().map(|value| (value, 1)).collect();
                assert_eq!(counts, expected, "the committed output of {id} is not its input before {last:?}");
            } else {
                let lost: Vec<_> = input.iter().filter(|value| !counts.contains_key(value)).collect();
                assert!(lost.is_empty(), "{id} lost {lost:?}");
            }
        }
        for entry in state.snapshots.values().filter(|entry| entry.state == SnapshotState::Completed) {
            self.judge_contents(entry);
        }
    }

    fn values_before(&self, job: &JobId, sources: &[SourcePositions]) -> Vec<u64> {
        let partitions = &self.store.streams[&self.jobs[job].stream];
        let splits = sources.iter().flat_map(|source| &source.splits);
        let before = splits.flat_map(|split| {
            let partition = splits::parse_partition(&split.split).unwrap();
            &partitions[partition.0 as usize].records[..split.offset as usize]
        });
        before.map(|record| record.value).collect()
    }

    fn describe(&self) -> String {
        let state = self.leading_state();
        let clean = state.as_ref().map(|state| self.is_clean(state));
        let jobs: Option<Vec<_>> =
            state.as_ref().map(|state| state.jobs.values().map(|job| (&job.id, job.state, job.attempt)).collect());
        let leader = self.any_leader().and_then(|member| {
            let running = self.places[&member].running.as_ref()?;
            running.leader.as_ref().map(|leader| leader.describe())
        });
        format!("jobs {jobs:?}, leader {leader:?}, attempts {:?}, {clean:?}", self.live_attempts())
    }
}

fn counts(values: Vec<u64>) -> BTreeMap<u64, u32> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}

/// Whether a directory is that of a snapshot, by their names.
fn directory_is_of(directory: &str, snapshot: &SnapshotId) -> bool {
    let name = snapshot.as_str();
    directory.ends_with(name)
        || name.strip_prefix("sp-").is_some_and(|rest| directory.ends_with(&format!("savepoint-{rest}")))
}
