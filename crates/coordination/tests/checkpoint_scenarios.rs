//! Replays `testdata/checkpoint/*.txt`: events in, printed actions out. A scenario is a list of steps; each is an event
//! line beginning with `>`, `>` + the time in ms, the event's name and its arguments, followed by the actions expected, one
//! per line. `UPDATE_SCENARIOS=1` rewrites the expectations from what the coordinator does.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

mod scenarios;

use std::fmt::Write;

use weir_coordination::checkpoint::{
    Action, Config, Contents, Coordinator, Event, Marked, Request, Reservation, RunningAttempt, SourcePlan, Trigger,
};
use weir_types::control::SnapshotDeclined;
use weir_types::ids::{Attempt, BarrierId, ChainId, JobId, RequestId, SnapshotId, SubtaskId, SubtaskIndex};
use weir_types::snapshot::{
    Annotations, OperatorSnapshot, SnapshotKind, SnapshotTimings, SplitPosition, StateFile, StopMode, SubtaskSnapshot,
};
use weir_types::time::Millis;
use weir_types::{Code, Error};

/// Two sources subtasks (chain 0) with one split each, and two aggregating ones (chain 1).
fn attempt(number: u32) -> RunningAttempt {
    RunningAttempt {
        attempt: Attempt(number),
        subtasks: [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(c, i)| (ChainId(c), SubtaskIndex(i))).to_vec(),
        sources: vec![SourcePlan { uid: "src".into(), splits: vec!["p-0".into(), "p-1".into()] }],
    }
}

fn job() -> JobId {
    JobId::new("0123456789abcdef").unwrap()
}

fn subtask(text: &str, attempt: u32) -> SubtaskId {
    let (chain, index) = text.split_once('/').unwrap();
    SubtaskId {
        job: job(),
        chain: ChainId(chain.parse().unwrap()),
        index: SubtaskIndex(index.parse().unwrap()),
        attempt: Attempt(attempt),
    }
}

fn error(code: &str) -> Error {
    Error::new(Code::parse(code).unwrap(), "scripted")
}

/// `ok`, or a code.
fn result(word: Option<&&str>) -> Result<(), Error> {
    match word {
        None | Some(&"ok") => Ok(()),
        Some(code) => Err(error(code)),
    }
}

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str) -> Option<u64> {
    value(words, key).map(|text| text.parse().unwrap())
}

fn config(words: &[&str]) -> Config {
    Config {
        interval_ms: number(words, "interval"),
        timeout_ms: number(words, "timeout").unwrap_or(1_000),
        min_pause_ms: number(words, "min-pause").unwrap_or(0),
        failures_tolerated: number(words, "tolerated").map(|tolerated| tolerated as u32),
        checkpoint_root: "/chk".into(),
        savepoint_root: "/sp".into(),
    }
}

fn ack(words: &[&str]) -> SubtaskSnapshot {
    let id = subtask(words[1], number(words, "attempt").unwrap_or(1) as u32);
    let operators = if id.chain == ChainId(0) {
        let splits = value(words, "splits").map_or_else(|| format!("p-{}", id.index), str::to_owned);
        let split = |name: &str| SplitPosition {
            split: name.to_owned(),
            offset: 10,
            end: None,
            watermark_ms: 0,
            finished: false,
        };
        let splits = splits.split(',').filter(|name| !name.is_empty() && *name != "none").map(split).collect();
        vec![OperatorSnapshot { uid: "src".into(), watermark_ms: 0, files: vec![], splits, prepared: None }]
    } else {
        let file = StateFile {
            path: format!("{}.arrow", id.index),
            table: "t".into(),
            bytes: 100,
            rows: 5,
            crc32c: 0,
            ..StateFile::default()
        };
        vec![OperatorSnapshot { uid: "agg".into(), watermark_ms: 0, files: vec![file], splits: vec![], prepared: None }]
    };
    SubtaskSnapshot {
        subtask: id,
        barrier: BarrierId(0),
        snapshot: SnapshotId::new(words[0]).unwrap(),
        operators,
        timings: SnapshotTimings::default(),
    }
}

fn request(words: &[&str]) -> Request {
    let trigger = match value(words, "stop") {
        None => Trigger::User,
        Some("drain") => Trigger::Stop(StopMode::Drain),
        Some(_) => Trigger::Stop(StopMode::Suspend),
    };
    let kind = if words[1] == "savepoint" { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint };
    Request {
        id: RequestId::new(words[0]).unwrap(),
        kind,
        trigger,
        directory: value(words, "dir").map(str::to_owned),
        timeout_ms: number(words, "timeout"),
        owner: String::new(),
        annotations: Annotations::default(),
        evict: false,
    }
}

/// A snapshot that an earlier JobManager has left: `<id> barrier=3`, perhaps with `stop=suspend`.
fn found(words: &[&str]) -> Reservation {
    let stop = value(words, "stop").map_or(Trigger::Periodic, |mode| {
        Trigger::Stop(if mode == "drain" { StopMode::Drain } else { StopMode::Suspend })
    });
    Reservation {
        snapshot: SnapshotId::new(words[0]).unwrap(),
        barrier: BarrierId(number(words, "barrier").unwrap_or(1)),
        kind: if words[0].starts_with("sp") { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint },
        trigger: stop,
        attempt: Attempt(1),
        request: None,
        directory: "/d".to_owned(),
        deadline_ms: 1_000,
        triggered_at_ms: 0,
        subtasks: 4,
    }
}

fn event(name: &str, words: &[&str]) -> Event {
    let snapshot = || SnapshotId::new(words[0]).unwrap();
    match name {
        "resuming" => Event::Resuming,
        "found" => Event::FoundInFlight(found(words)),
        "found-queued" => Event::FoundQueued(found(words)),
        "settled" => Event::Settled(
            snapshot(),
            match words[1] {
                "published" => Ok(Some(Box::new(Contents { bytes: 200, ..Contents::default() }))),
                "nothing" => Ok(None),
                code => Err(error(code)),
            },
        ),
        "started" => Event::Started(attempt(words.first().map_or(1, |word| word.parse().unwrap()))),
        "ended" => Event::Ended(error("UNAVAILABLE")),
        "drained" => Event::Drained,
        "request" => Event::Requested(request(words)),
        "queued" => Event::Queued(snapshot()),
        "cancelled" => Event::Cancelled(snapshot()),
        "no-room" => Event::OutOfRoom(snapshot(), error("QUOTA_EXCEEDED")),
        "reserved" => Event::Reserved(snapshot(), result(words.get(1))),
        "groups" => Event::GroupsStarted(snapshot(), result(words.get(1))),
        "ack" => Event::Acked(ack(words)),
        "decline" => Event::Declined(SnapshotDeclined {
            subtask: subtask(words[1], number(words, "attempt").unwrap_or(1) as u32),
            barrier: BarrierId(0),
            snapshot: snapshot(),
            error: error("IO"),
        }),
        "published" => Event::Published(snapshot(), result(words.get(1))),
        "marked" => Event::Marked(
            snapshot(),
            match words.get(1) {
                None | Some(&"aborted") => Ok(Marked::Aborted),
                Some(&"published") => Ok(Marked::Published),
                Some(code) => Err(error(code)),
            },
        ),
        "completed" => Event::Completed(snapshot(), result(words.get(1))),
        "aborted" => Event::Aborted(snapshot()),
        "tick" => Event::Tick,
        other => panic!("unknown event {other}"),
    }
}

fn show(action: &Action) -> String {
    match action {
        Action::Settle(id) => format!("settle {id}"),
        Action::Reserve(r) => {
            let (directory, trigger) = (&r.directory, r.trigger.as_str());
            format!("reserve {} barrier={} {trigger} deadline={} {directory}", r.snapshot, r.barrier, r.deadline_ms)
        }
        Action::StartGroups(id) => format!("start groups {id}"),
        Action::SendBarriers(barrier) => {
            format!("send barriers {} barrier={} stop={:?}", barrier.snapshot, barrier.id, barrier.stop)
        }
        Action::Publish(id, contents) => {
            let splits: usize = contents.sources.iter().map(|source| source.splits.len()).sum();
            format!("publish {id} bytes={} rows={} splits={splits}", contents.bytes, contents.rows)
        }
        Action::PersistComplete(id, contents) => format!("persist complete {id} bytes={}", contents.bytes),
        Action::MarkAborted(id) => format!("mark aborted {id}"),
        Action::PersistAbort(id, error) => format!("persist abort {id} {error}"),
        Action::NotifyComplete(id, barrier) => format!("notify complete {id} barrier={barrier}"),
        Action::NotifyAborted(id, barrier, error) => format!("notify aborted {id} barrier={barrier} {}", error.code),
        Action::ReleaseGroups(id) => format!("release groups {id}"),
        Action::Sweep(id) => format!("sweep {id}"),
        Action::Answer(request, Ok(id)) => format!("answer {request} {id}"),
        Action::Answer(request, Err(error)) => format!("answer {request} {error}"),
        Action::RestartJob(error) => format!("restart job {}", error.code),
        Action::ResumeJob(error) => format!("resume job {}", error.code),
        Action::AbandonStop => "abandon stop".to_owned(),
    }
}

#[test]
fn scenarios_of_the_checkpoint_coordinator_replay() {
    scenarios::replay("checkpoint", 10, || {
        let mut coordinator = Coordinator::new(job(), config(&[]), BarrierId(0));
        move |words, out| {
            if words[0] == "config" {
                let last = number(words, "last-barrier").unwrap_or(0);
                coordinator = Coordinator::new(job(), config(words), BarrierId(last));
                return;
            }
            let now = Millis(words[0].parse().unwrap());
            for action in coordinator.on_event(now, event(words[1], &words[2..])) {
                writeln!(out, "{}", show(&action)).unwrap();
            }
            if words[1] == "tick" {
                let at = coordinator.next_deadline().map_or_else(|| "never".to_owned(), |at| at.0.to_string());
                writeln!(out, "next {at}").unwrap();
            }
        }
    });
}
