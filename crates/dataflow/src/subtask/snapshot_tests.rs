//! Tests of snapshots that are given up while their files are written: nothing of them stays.

use std::path::Path;
use std::sync::mpsc as blocking;

use futures::FutureExt;
use weir_state::frozen::{HashedRow, RowRef, Show};
use weir_state::memory::{Memory, uncounted};

use super::*;
use crate::element::Watermark;
use crate::fixtures::barrier;
use crate::memory::{MemoryBudget, SnapshotAccount};
use crate::operator::Frozen;
use weir_types::ids::{Attempt, ChainId, JobId, SubtaskIndex};

fn subtask() -> SubtaskId {
    SubtaskId { job: JobId::new("job").unwrap(), chain: ChainId(1), index: SubtaskIndex(0), attempt: Attempt(1) }
}

fn row(show: Show<'_>) {
    show(&[HashedRow { hash: 1, row: RowRef { segment: 0, slot: 0 } }]);
}

fn aligned(directory: &Path) -> AlignedBarrier {
    AlignedBarrier::at_source(Barrier { directory: directory.to_str().unwrap().to_owned(), ..barrier(1) })
}

fn frozen(tables: Vec<FrozenTable>) -> FrozenOperator {
    FrozenOperator {
        uid: "window".to_owned(),
        watermark: Watermark::MIN,
        state: Frozen { tables },
        prepared: None,
        splits: Vec::new(),
        memory: None,
    }
}

/// Two tables; the second says that its writer has come to it, and waits for leave to go on.
fn halting() -> (Vec<FrozenTable>, blocking::Receiver<()>, blocking::Sender<()>) {
    let ((reached, at_second), (go, leave)) = (blocking::channel(), blocking::channel());
    let halted = std::cell::Cell::new(false);
    let second = FrozenTable::of_rows("second", move |show| {
        if !halted.replace(true) {
            reached.send(()).unwrap();
            leave.recv().unwrap();
        }
        row(show);
    });
    (vec![FrozenTable::of_rows("first", row), second], at_second, go)
}

/// Begins a snapshot, gives it up between its files, sweeps its directory, and lets the writer go on to its end.
fn give_up(how: impl FnOnce(Snapshots)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chk-1");
    let files = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (events, mut reports) = mpsc::channel(1);
    let mut snapshots = Snapshots::new(subtask(), files.handle().clone(), SnapshotGrants::unlimited(), events, false);
    let (tables, at_second, go) = halting();
    snapshots.start(&aligned(&path), vec![frozen(tables)], Duration::ZERO);
    assert!(snapshots.ended().now_or_never().is_none(), "it is being written");
    at_second.recv().unwrap();
    assert!(path.join("state-1-0-a1-o0-first.state.arrow").exists());
    std::fs::remove_dir_all(&path).unwrap();
    how(snapshots);
    go.send(()).unwrap();
    // Waits for what the files thread has begun.
    drop(files);
    assert!(!path.exists(), "the directory does not come back");
    assert!(reports.try_recv().is_err(), "nobody is told");
}

#[test]
fn an_aborted_snapshot_does_not_bring_its_directory_back() {
    give_up(|mut snapshots| {
        snapshots.abort(BarrierId(1));
        snapshots.ended().now_or_never().unwrap();
        assert!(snapshots.is_empty());
    });
}

#[test]
fn a_snapshot_of_a_cancelled_subtask_does_not_bring_its_directory_back() {
    give_up(drop);
}

async fn write_first(draft: &Draft) -> Vec<StateFile> {
    let tables = vec![FrozenTable::of_rows("first", row)];
    draft.write(|store, wanted| write_tables_while(tables, store, "a1", wanted)).await.unwrap()
}

#[tokio::test]
async fn files_are_deleted_if_the_snapshot_is_given_up_between_writing_and_acknowledging() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chk-1");
    let grants = SnapshotGrants::unlimited();
    let draft = || {
        let writer = grants.begin(&subtask(), &barrier(1)).unwrap();
        Draft::new(Handle::current(), barrier(1).snapshot, path.to_str().unwrap().to_owned(), writer)
    };
    let deleted = draft();
    let written = write_first(&deleted).await;
    assert!(path.join(&written[0].path).exists());
    drop(deleted);
    // Blocking work of the test's own runtime: asked until it is done.
    while path.exists() {
        tokio::task::yield_now().await;
    }

    let kept = draft();
    let written = write_first(&kept).await;
    kept.keep();
    assert!(path.join(&written[0].path).exists());
}

#[tokio::test]
async fn an_acknowledged_snapshot_keeps_its_files_and_a_declined_one_has_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chk-1");
    let (events, mut reports) = mpsc::channel(1);
    let mut snapshots = Snapshots::new(subtask(), Handle::current(), SnapshotGrants::unlimited(), events, false);
    let one = || frozen(vec![FrozenTable::of_rows("first", row)]);
    snapshots.start(&aligned(&path), vec![one()], Duration::ZERO);
    snapshots.ended().await;
    let Some(SubtaskEvent::SnapshotAcked(ack)) = reports.recv().await else { panic!("it was not acknowledged") };
    let name = &ack.operators[0].files[0].path;
    assert!(path.join(name).exists());

    // The names are taken: the second refuses, and what the first wrote stays.
    snapshots.start(&aligned(&path), vec![one()], Duration::ZERO);
    snapshots.ended().await;
    let Some(SubtaskEvent::SnapshotDeclined(declined)) = reports.recv().await else { panic!("it was not declined") };
    assert_eq!(declined.error.code, Code::AlreadyExists);
    drop(snapshots);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
}

#[test]
fn a_writer_waits_for_a_grant_and_an_abort_deletes_what_it_has_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chk-1");
    let files = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (events, _reports) = mpsc::channel(1);
    let grants = SnapshotGrants::new();
    let mut snapshots = Snapshots::new(subtask(), files.handle().clone(), Arc::clone(&grants), events, false);
    snapshots.start(&aligned(&path), vec![frozen(vec![FrozenTable::of_rows("first", row)])], Duration::ZERO);
    assert!(snapshots.ended().now_or_never().is_none(), "it is being written");
    files.block_on(grants.changed());
    let asked = grants.messages(false);
    assert!(matches!(asked.as_slice(), [weir_types::control::FromTaskManager::GrantWanted(_)]), "{asked:?}");
    assert_eq!(std::fs::read_dir(&path).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>(), 0);
    let barrier = barrier(1);
    let error = Error::new(Code::QuotaExceeded, "no more");
    grants.end(&subtask().job, Attempt(1), barrier.id, &barrier.snapshot, Some(error));
    snapshots.abort(barrier.id);
    snapshots.ended().now_or_never().unwrap();
    // Waits for what the files thread has begun.
    drop(files);
    let stopped = grants.messages(false);
    assert!(matches!(stopped.as_slice(), [weir_types::control::FromTaskManager::WritersStopped(_)]), "{stopped:?}");
    assert!(!path.exists());
}

/// Takes a checkpoint that builds on another; what was reported.
async fn checkpoint(
    snapshots: &mut Snapshots,
    reports: &mut mpsc::Receiver<SubtaskEvent>,
    root: &Path,
    number: u64,
    base: Option<u64>,
) -> (Since, SubtaskEvent) {
    let id = |number: u64| SnapshotId::new(format!("chk-{number}")).unwrap();
    let directory = root.join(format!("chk-{number}")).to_str().unwrap().to_owned();
    let kind = SnapshotKind::Checkpoint;
    let barrier = Barrier { snapshot: id(number), base: base.map(id), directory, kind, ..barrier(number) };
    let since = snapshots.since(&barrier);
    let table = FrozenTable::of_keys("t", &Arc::new(vec![keys(since, &uncounted())]));
    snapshots.start(&AlignedBarrier::at_source(barrier), vec![frozen(vec![table])], Duration::ZERO);
    snapshots.ended().await;
    (since, reports.recv().await.unwrap())
}

/// Keys of a hundred rows, one of which has changed.
fn keys(since: Since, memory: &Memory) -> weir_state::keys::FrozenKeys {
    use weir_state::values::{Form, Values};
    let numbers: arrow::array::ArrayRef = Arc::new(arrow::array::Int64Array::from_iter_values(0..100));
    let values = [Values::for_key(&numbers).unwrap()];
    let (mut hashes, mut slots) = (Vec::new(), Vec::new());
    weir_state::key_hash::hash_values(&values, 100, &mut hashes);
    let mut table = weir_state::keys::KeyTable::new(&[Form::Word], 0);
    table.lookup_or_insert(&hashes, &values, &(0..100).collect::<Vec<_>>(), &mut slots).unwrap();
    table.mark(&slots[..1]);
    table.freeze(since, memory)
}

fn shared(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("shared")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn an_incremental_checkpoint_names_the_files_of_its_base_and_an_aborted_one_deletes_only_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let (events, mut reports) = mpsc::channel(1);
    let mut snapshots = Snapshots::new(subtask(), Handle::current(), SnapshotGrants::unlimited(), events, true);
    let rows = |event: SubtaskEvent| match event {
        SubtaskEvent::SnapshotAcked(ack) => {
            let files = &ack.operators[0].files;
            files.iter().map(|file| (file.shared_name().unwrap().to_owned(), file.rows)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let name = |number: u64| format!("chk-{number}+state-1-0-a1-o0-t.state.arrow");

    let (since, first) = checkpoint(&mut snapshots, &mut reports, root, 1, None).await;
    assert_eq!((since, rows(first)), (Since::Start, vec![(name(1), 100)]));
    let (since, second) = checkpoint(&mut snapshots, &mut reports, root, 2, Some(1)).await;
    assert_eq!((since, rows(second)), (Since::LastFreeze, vec![(name(1), 100), (name(2), 1)]));
    // It failed elsewhere, and is swept.
    std::fs::remove_file(root.join("shared").join(name(2))).unwrap();
    let (since, third) = checkpoint(&mut snapshots, &mut reports, root, 3, Some(1)).await;
    assert_eq!((since, rows(third)), (Since::SameAsLast, vec![(name(1), 100), (name(3), 1)]));

    // One whose subtask is cancelled before anybody has heard of it.
    let grants = SnapshotGrants::unlimited();
    let writer = grants.begin(&subtask(), &barrier(4)).unwrap();
    let path = root.join("chk-4").to_str().unwrap().to_owned();
    let draft = Draft::new(Handle::current(), barrier(4).snapshot, path, writer);
    let tables = vec![FrozenTable::of_keys("t", &Arc::new(vec![keys(Since::Start, &uncounted())]))];
    let prefix = shared_path(&SnapshotId::new("chk-4").unwrap(), "x");
    let write = draft.write(move |store, wanted| write_increment(tables, &Runs::default(), store, &prefix, wanted));
    assert_eq!(write.await.unwrap().written.len(), 1);
    assert_eq!(shared(root).len(), 3);
    drop(draft);
    while shared(root).len() > 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(shared(root), [name(1), name(3)]);
}

/// A snapshot of a window operator of a TaskManager with so much memory, whose writer waits for a grant.
struct Crowded {
    _directory: tempfile::TempDir,
    files: tokio::runtime::Runtime,
    budget: Arc<MemoryBudget>,
    snapshots: Snapshots,
    grants: Arc<SnapshotGrants>,
    reports: mpsc::Receiver<SubtaskEvent>,
    path: std::path::PathBuf,
}

impl Crowded {
    fn start(limit: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chk-1");
        let files = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (events, reports) = mpsc::channel(1);
        let grants = SnapshotGrants::new();
        let mut snapshots = Snapshots::new(subtask(), files.handle().clone(), Arc::clone(&grants), events, false);
        let budget = MemoryBudget::new(limit);
        let account = SnapshotAccount::new(Arc::clone(&budget), "TumbleWindow(ts)");
        let memory: Memory = Arc::clone(&account) as _;
        let table = FrozenTable::of_keys("t", &Arc::new(vec![keys(Since::Start, &memory)]));
        let operator = FrozenOperator { memory: Some(account), ..frozen(vec![table.with_memory(&memory)]) };
        snapshots.start(&aligned(&path), vec![operator], Duration::ZERO);
        Self { _directory: directory, files, budget, snapshots, grants, reports, path }
    }

    /// Waits for the end, and checks that the snapshot was declined for want of memory and that nothing of it is left.
    fn declined(mut self) {
        self.files.block_on(self.snapshots.ended());
        let Ok(SubtaskEvent::SnapshotDeclined(declined)) = self.reports.try_recv() else {
            panic!("it was not declined")
        };
        assert_eq!(declined.error.code, Code::ResourceExhausted);
        assert!(declined.error.message.contains("TumbleWindow(ts)"), "{}", declined.error);
        assert!(self.snapshots.is_empty(), "the subtask goes on");
        drop(self.snapshots);
        // Its writer has let go when this is reported.
        let barrier = barrier(1);
        self.grants.end(&subtask().job, Attempt(1), barrier.id, &barrier.snapshot, Some(declined.error));
        while self.grants.messages(false).is_empty() {
            self.files.block_on(self.grants.changed());
        }
        drop(self.files);
        assert_eq!(self.budget.used_by_snapshots(), 0);
        assert!(!self.path.exists());
    }
}

#[test]
fn a_snapshot_that_does_not_fit_into_memory_is_declined_and_the_job_goes_on() {
    Crowded::start(100).declined();
}

#[test]
fn a_snapshot_gives_way_to_state_that_grows_while_it_waits_for_a_grant() {
    let mut crowded = Crowded::start(10 << 20);
    assert!(crowded.snapshots.ended().now_or_never().is_none(), "it is being written");
    crowded.files.block_on(crowded.grants.changed());
    assert_eq!(crowded.grants.messages(false).len(), 1, "it waits");
    assert!(crowded.budget.used_by_snapshots() > 1600);
    let mut state = crate::memory::MemoryAccount::new(Arc::clone(&crowded.budget), "TumbleWindow(ts)");
    state.set(10 << 20).unwrap();
    crowded.declined();
}
