//! Everything that is said between JobManager and TaskManagers survives the wire; what is incomplete is refused.

use super::*;

fn subtask() -> SubtaskId {
    SubtaskId { job: JobId::new("j").unwrap(), chain: ChainId(3), index: SubtaskIndex(1), attempt: Attempt(2) }
}

fn acknowledgement() -> SubtaskSnapshot {
    let block = StateBlock { offset: 8, bytes: 9, rows: 10, hashes: KeyRange::new(1, u64::MAX).unwrap(), crc32c: 11 };
    let file = StateFile {
        path: "a/b".into(),
        table: "t".into(),
        bytes: 20,
        rows: 10,
        crc32c: 7,
        deletes: true,
        segments: Some(Segments { first: -5, last: 6 }),
        live_from: Some(-4),
        blocks: vec![block],
    };
    let split = SplitPosition { split: "p-0".into(), offset: 5, watermark_ms: i64::MIN, finished: true, end: Some(9) };
    let operator = OperatorSnapshot {
        uid: "u".into(),
        watermark_ms: -5,
        files: vec![file],
        splits: vec![split],
        prepared: Some(vec![1, 2]),
    };
    SubtaskSnapshot {
        subtask: subtask(),
        barrier: BarrierId(4),
        snapshot: SnapshotId::new("chk-1").unwrap(),
        operators: vec![operator],
        timings: SnapshotTimings { start_delay_us: 1, alignment_us: 2, sync_us: 3, async_us: 4 },
    }
}

#[test]
fn what_a_task_manager_says_survives_the_wire() {
    let error = Error::internal("x").with_hint("y");
    let status = SubtaskStatus { subtask: subtask(), state: SubtaskState::Failed(error.clone()) };
    let messages = [
        FromTaskManager::Register(Registration {
            cluster: Some(ClusterId::new("c").unwrap()),
            task_manager: TaskManagerId::new("tm").unwrap(),
            data_address: "h:1".into(),
            http_address: "h:2".into(),
            slots: 2,
            process_id: 99,
            running: vec![status.clone()],
        }),
        FromTaskManager::Heartbeat(vec![SubtaskProgress {
            subtask: subtask(),
            rows_in: 1,
            rows_out: 2,
            late_rows: 3,
            watermark_ms: -4,
            state_bytes: 5,
        }]),
        FromTaskManager::Status(status),
        FromTaskManager::SnapshotAcked(acknowledgement()),
        FromTaskManager::SnapshotDeclined(SnapshotDeclined {
            subtask: subtask(),
            barrier: BarrierId(4),
            snapshot: SnapshotId::new("sp-1").unwrap(),
            error,
        }),
    ];
    for message in messages {
        assert_eq!(FromTaskManager::try_from(pb::TaskManagerMessage::from(&message)).unwrap(), message);
    }
}

#[test]
fn barriers_and_outcomes_survive_the_wire() {
    let barrier = Barrier {
        id: BarrierId(4),
        snapshot: SnapshotId::new("sp-1").unwrap(),
        kind: SnapshotKind::Savepoint,
        triggered_at_ms: 17,
        stop: StopMode::Drain,
        directory: "d".into(),
        base: Some(SnapshotId::new("chk-1").unwrap()),
    };
    let trigger = TriggerBarrier { term: Term(1), job: JobId::new("j").unwrap(), attempt: Attempt(1), barrier };
    assert_eq!(TriggerBarrier::try_from(pb::TriggerBarrier::from(&trigger)).unwrap(), trigger);
    let outcome = SnapshotOutcome {
        term: Term(1),
        job: JobId::new("j").unwrap(),
        attempt: Attempt(1),
        barrier: BarrierId(4),
        snapshot: SnapshotId::new("sp-1").unwrap(),
        failure: Some(Error::internal("x")),
    };
    assert_eq!(SnapshotOutcome::try_from(pb::SnapshotOutcome::from(&outcome)).unwrap(), outcome);
}

#[test]
fn a_message_without_a_required_part_is_refused() {
    let status = pb::SubtaskStatus { subtask: None, state: 2, error: None };
    assert_eq!(SubtaskStatus::try_from(status).unwrap_err().code, weir_types::Code::InvalidArgument);
    let failed = pb::SubtaskStatus { subtask: Some((&subtask()).into()), state: 4, error: None };
    assert!(SubtaskStatus::try_from(failed).is_err());
    assert!(FromTaskManager::try_from(pb::TaskManagerMessage { message: None }).is_err());
}
