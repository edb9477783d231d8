//! Replays `testdata/admission/*.txt`: commands for the replicated state in, printed answers out. A step is a line that
//! begins with `>`, the time in ms, the command and its arguments, followed by what is answered. `usage`, `queue`, `exceed`
//! and `snapshot` only look. `UPDATE_SCENARIOS=1` rewrites the expectations from what the state does.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

mod scenarios;

use std::fmt::Write;

use weir_coordination::checkpoint::{Contents, Trigger};
use weir_coordination::metadata::{
    Applied, Command, Completion, Deleter, Import, NewJob, Origin, Recovery, Reserve, RestoreRecord, StartAttempt,
    State,
};
use weir_types::annotations::AnnotationChange;
use weir_types::error::Facts;
use weir_types::graph::{JobGraph, JobOptions};
use weir_types::ids::{Attempt, BarrierId, ClusterId, JobId, Nonce, Parallelism, RequestId, SnapshotId};
use weir_types::job::JobChange;
use weir_types::quota::{QuotaDefaults, QuotaDimension, QuotaExceeded, QuotaLevel, QuotaLimits};
use weir_types::restore::{ClaimMode, QuotaNeed};
use weir_types::snapshot::{Annotations, SharedFile, SnapshotKind, Verifier};
use weir_types::time::Millis;
use weir_types::{Code, Error};

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str) -> Option<u64> {
    value(words, key).map(|text| if text == "unlimited" { QuotaLimits::UNLIMITED } else { text.parse().unwrap() })
}

/// The limits among the words whose keys begin with `prefix`.
fn limits(words: &[&str], prefix: &str) -> QuotaLimits {
    let of = |dimension: QuotaDimension| number(words, &format!("{prefix}{}", dimension.as_str()));
    QuotaLimits {
        savepoints: of(QuotaDimension::Savepoints),
        retained_checkpoints: of(QuotaDimension::RetainedCheckpoints),
        bytes: of(QuotaDimension::Bytes),
        in_flight: of(QuotaDimension::InFlight),
        minimum_interval_ms: of(QuotaDimension::MinimumInterval),
        age_ms: of(QuotaDimension::Age),
    }
}

fn job(name: &str) -> JobId {
    JobId::new(name).unwrap()
}

fn snapshot(word: &str) -> SnapshotId {
    SnapshotId::new(word).unwrap()
}

/// `KIND-JOB-NUMBER`.
fn parts(id: &str) -> (SnapshotKind, &str, u64) {
    let (kind, rest) = id.split_once('-').unwrap();
    let (job, number) = rest.rsplit_once('-').unwrap();
    let kind = if kind == "sp" { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint };
    (kind, job, number.parse().unwrap())
}

fn nonce(words: &[&str]) -> Nonce {
    Nonce(value(words, "nonce").unwrap_or(words[0]).to_owned())
}

fn create(words: &[&str]) -> Command {
    let restore = value(words, "from").map(|from| RestoreRecord {
        directory: format!("/d/{from}"),
        snapshot: Some(snapshot(from)),
        allow_non_restored_state: false,
        claim: if words.contains(&"claim") { ClaimMode::Claim } else { ClaimMode::NoClaim },
    });
    let retained = number(words, "retained").unwrap_or(1) as u32;
    Command::CreateJob(Box::new(NewJob {
        allow_duplicates: false,
        request: None,
        id: job(words[0]),
        name: value(words, "name").unwrap_or(words[0]).to_owned(),
        sql: String::new(),
        owner: value(words, "owner").unwrap_or_default().to_owned(),
        namespace: value(words, "namespace").unwrap_or_default().to_owned(),
        graph: JobGraph {
            name: words[0].to_owned(),
            options: JobOptions {
                checkpoints_retained: retained,
                checkpoint_interval_ms: (value(words, "interval") != Some("none")).then_some(10_000),
                ..JobOptions::default()
            },
            operators: vec![],
            edges: vec![],
            expression_version: String::new(),
        },
        plan: String::new(),
        sources: vec![],
        restore,
    }))
}

fn reserve(words: &[&str]) -> Command {
    let (kind, of, barrier) = parts(words[0]);
    Command::Reserve(Box::new(Reserve {
        request: value(words, "request").map(|id| RequestId::new(id).unwrap()),
        snapshot: snapshot(words[0]),
        job: job(of),
        kind,
        trigger: if words.contains(&"periodic") { Trigger::Periodic } else { Trigger::User },
        barrier: BarrierId(barrier),
        attempt: Attempt(number(words, "attempt").unwrap_or(1) as u32),
        nonce: nonce(words),
        directory: format!("/d/{}", words[0]),
        deadline: Millis(u64::MAX),
        owner: value(words, "owner").unwrap_or_default().to_owned(),
        annotations: Annotations { pinned: words.contains(&"pinned"), ..Annotations::default() },
        plan_hash: String::new(),
        subtasks: 1,
        evict: false,
        estimate_bytes: number(words, "estimate").unwrap_or(0),
    }))
}

/// `shared=chk-a-2+f:30,chk-a-1+f:30`: the name says which checkpoint wrote it.
fn shared(words: &[&str]) -> Vec<SharedFile> {
    let files = value(words, "shared").into_iter().flat_map(|files| files.split(','));
    files
        .map(|file| {
            let (name, bytes) = file.split_once(':').unwrap();
            SharedFile { name: name.to_owned(), bytes: bytes.parse().unwrap() }
        })
        .collect()
}

fn complete(words: &[&str]) -> Command {
    let contents = Contents {
        bytes: number(words, "bytes").unwrap_or(0),
        manifest_bytes: number(words, "manifest").unwrap_or(0),
        shared: shared(words),
        ..Contents::default()
    };
    Command::Complete(Box::new(Completion { snapshot: snapshot(words[0]), nonce: nonce(words), contents }))
}

fn commands(name: &str, words: &[&str]) -> Vec<Command> {
    let change = |change| Command::ChangeJob { job: job(words[0]), change, failure: None };
    vec![match name {
        "defaults" => Command::Found {
            cluster: ClusterId::new("c").unwrap(),
            defaults: Box::new(QuotaDefaults {
                cluster: limits(words, "cluster."),
                namespace: limits(words, "namespace."),
                owner: limits(words, "owner."),
                job: limits(words, "job."),
            }),
        },
        "quota" => Command::SetQuota {
            request: None,
            level: words[0].parse().unwrap(),
            limits: (words.get(1) != Some(&"none")).then(|| limits(words, "")),
        },
        "job" => {
            let start = StartAttempt {
                job: job(words[0]),
                attempt: Attempt(1),
                placements: vec![],
                splits: vec![],
                from: None,
                passed_over: vec![],
                parallelism: None,
            };
            return vec![create(words), Command::StartAttempt(start), change(JobChange::Run)];
        }
        "finish" => change(JobChange::Finish),
        "fail" => change(JobChange::Fail),
        "import" => {
            let (_, of, barrier) = parts(words[0]);
            Command::Import(Box::new(Import {
                request: value(words, "request").map(|id| RequestId::new(id).unwrap()),
                snapshot: snapshot(words[0]),
                job: job(of),
                job_name: value(words, "name").unwrap_or("clicks").to_owned(),
                owner: value(words, "owner").unwrap_or_default().to_owned(),
                namespace: value(words, "namespace").unwrap_or_default().to_owned(),
                annotations: Annotations::default(),
                barrier: BarrierId(barrier),
                nonce: nonce(words),
                directory: format!("/d/{}", words[0]),
                deadline: Millis(u64::MAX),
                parallelism: Parallelism::ONE,
                plan_hash: String::new(),
                bytes: number(words, "bytes").unwrap_or(0),
                origin: Origin {
                    cluster: ClusterId::new("far").unwrap(),
                    snapshot: snapshot("sp-there-7"),
                    job: job("there"),
                    taken_at: Millis(0),
                    directory: "/copied".to_owned(),
                },
            }))
        }
        "cancel" => return vec![change(JobChange::Cancel), change(JobChange::EndCancelled)],
        "pin" => Command::Annotate {
            snapshot: snapshot(words[0]),
            request: None,
            change: AnnotationChange { pinned: Some(true), ..AnnotationChange::default() },
        },
        "restart" => {
            let start = StartAttempt {
                job: job(words[0]),
                attempt: Attempt(2),
                placements: vec![],
                splits: vec![],
                from: None,
                passed_over: vec![],
                parallelism: None,
            };
            return vec![change(JobChange::Restart), Command::StartAttempt(start), change(JobChange::Run)];
        }
        "reserve" => reserve(words),
        "grant" => {
            Command::Grant { snapshot: snapshot(words[0]), nonce: nonce(words), bytes: number(words, "bytes").unwrap() }
        }
        "complete" => complete(words),
        "abort" => Command::Abort {
            snapshot: snapshot(words[0]),
            nonce: nonce(words),
            failure: Error::new(Code::parse(words.get(1).unwrap_or(&"TIMEOUT")).unwrap(), "scripted"),
        },
        "swept" => Command::Swept { snapshot: snapshot(words[0]) },
        "delete" => Command::MarkDeleted {
            snapshot: snapshot(words[0]),
            request: None,
            force: true,
            by: Deleter::User(String::new()),
        },
        "deleted" => Command::Deleted { snapshot: snapshot(words[0]) },
        "released" => {
            Command::Released { job: job(words[0]), names: words[1..].iter().map(|name| (*name).to_owned()).collect() }
        }
        "damaged" | "whole" => {
            let damage = (name == "damaged").then(|| Error::new(Code::Corrupt, "scripted"));
            let findings = u64::from(damage.is_some());
            Command::Verified { snapshot: snapshot(words[0]), by: Verifier::Request, findings, damage }
        }
        "cut-off" => Command::CutOff { snapshot: snapshot(words[0]), reason: "its stream was truncated".to_owned() },
        other => panic!("unknown command {other}"),
    }]
}

fn ids(what: &str, ids: &[impl ToString]) -> Option<String> {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    (!ids.is_empty()).then(|| format!("{what} {}", ids.join(" ")))
}

fn exceeded(facts: &QuotaExceeded) -> String {
    let QuotaExceeded { level, dimension, limit, used, requested } = facts;
    format!("{level} {} limit={limit} used={used} requested={requested}", dimension.as_str())
}

fn show_error(error: &Error) -> String {
    let mut text = match error.facts.as_deref() {
        Some(Facts::QuotaExceeded(facts)) => format!("refused {} {}", error.code, exceeded(facts)),
        _ => format!("refused {error}"),
    };
    if let Some(hint) = &error.hint {
        write!(text, "\n  hint: {hint}").unwrap();
    }
    text
}

fn show(state: &State, applied: &Applied) -> String {
    let Applied { job: _, snapshot: _, retired, queued, admitted, unreferenced } = applied;
    let turned: Vec<String> = admitted.iter().map(|id| format!("{id}:{}", state.snapshots[id].state)).collect();
    let parts = [
        queued.then(|| "queued".to_owned()),
        ids("retired", retired),
        ids("admitted", &turned),
        ids("unreferenced", unreferenced),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "ok".to_owned() } else { parts.join("; ") }
}

fn look(state: &State, now: Millis, name: &str, words: &[&str]) -> Option<String> {
    Some(match name {
        "usage" => {
            let usage = state.usage(&words[0].parse().unwrap());
            let age = usage.used(QuotaDimension::Age, now).map_or_else(|| "-".to_owned(), |age| age.to_string());
            format!(
                "savepoints={} retained={} bytes={} shared={} reserve={} in_flight={} queued={} oldest={age}",
                usage.savepoints,
                usage.retained_checkpoints,
                usage.bytes,
                usage.shared_bytes,
                usage.checkpoint_reserve,
                usage.in_flight,
                usage.queued,
            )
        }
        "levels" => state.quota_levels().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        "consumers" => {
            let of = state.consumers(&words[0].parse().unwrap(), 3);
            of.iter().map(|entry| format!("{}:{}", entry.id, entry.charged_bytes)).collect::<Vec<_>>().join(" ")
        }
        "queue" => ids("queue", &state.queue().iter().map(|entry| &entry.id).collect::<Vec<_>>())
            .unwrap_or_else(|| "queue is empty".to_owned()),
        "waits" => {
            let place = state.queue_position(&snapshot(words[0])).unwrap();
            format!("place {place}, {}", exceeded(&state.waits_for(&snapshot(words[0])).unwrap()))
        }
        "exceed" => {
            let level: QuotaLevel = words[0].parse().unwrap();
            let limits = (words.get(1) != Some(&"none")).then(|| limits(words, ""));
            let over = state.would_exceed(now, &level, limits);
            if over.is_empty() {
                return Some("nothing exceeded".to_owned());
            }
            over.iter().map(exceeded).collect::<Vec<_>>().join("\n")
        }
        "snapshot" => match state.snapshots.get(&snapshot(words[0])) {
            None => "none".to_owned(),
            Some(entry) => format!(
                "{} charged={} full={} written={} exclusive={} failures={}",
                entry.status(),
                entry.charged_bytes,
                entry.bytes,
                entry.written_bytes,
                state.exclusive_bytes(entry),
                entry.failures,
            ),
        },
        "holders" => ids("held:", &state.holders(&snapshot(words[0]))).unwrap_or_else(|| "nobody".to_owned()),
        "needs" => {
            let restore = RestoreRecord {
                directory: String::new(),
                snapshot: Some(snapshot(words[0])),
                allow_non_restored_state: false,
                claim: if words.contains(&"claim") { ClaimMode::Claim } else { ClaimMode::NoClaim },
            };
            let part = |key| value(words, key).unwrap_or("default");
            let levels = QuotaLevel::of(part("namespace"), part("owner"), part("name"));
            let needs = state.restore_needs(now, &restore, &levels, 7);
            let need = |need: &QuotaNeed| {
                let QuotaNeed { level, dimension, limit, used, at_once, first_checkpoint } = need;
                let limit = limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
                format!(
                    "{level} {} limit={limit} used={used} at_once={at_once} first={first_checkpoint}",
                    dimension.as_str()
                )
            };
            if needs.is_empty() {
                return Some("nothing".to_owned());
            }
            needs.iter().map(need).collect::<Vec<_>>().join("\n")
        }
        "recovery" => match state.recovery(&state.jobs[&job(words[0])]) {
            Recovery::Nothing => "nothing".to_owned(),
            Recovery::From(point) => {
                let passed: Vec<_> = point.passed_over.iter().map(|passed| &passed.snapshot).collect();
                [Some(point.name()), ids("passes over", &passed)].into_iter().flatten().collect::<Vec<_>>().join(" ")
            }
            Recovery::Lost(error) => format!("lost {error}"),
        },
        "unreferenced" => {
            ids("unreferenced", &state.shared.unreferenced(&job(words[0]))).unwrap_or_else(|| "none".to_owned())
        }
        "base" => state.base_of_next(&job(words[0])).map_or_else(|| "none".to_owned(), |base| base.to_string()),
        "unswept" => ids("unswept", &state.unswept().map(|entry| &entry.id).collect::<Vec<_>>())
            .unwrap_or_else(|| "none".to_owned()),
        "estimate" => {
            let estimate = |kind| state.estimate(&job(words[0]), kind);
            let (checkpoint, savepoint) = (estimate(SnapshotKind::Checkpoint), estimate(SnapshotKind::Savepoint));
            format!("checkpoint={checkpoint} savepoint={savepoint}")
        }
        _ => return None,
    })
}

#[test]
fn scenarios_of_admission_replay() {
    scenarios::replay("admission", 10, || {
        let mut state = State::default();
        move |words, out| {
            let now = Millis(words[0].parse().unwrap());
            let (name, words) = (words[1], &words[2..]);
            if let Some(seen) = look(&state, now, name, words) {
                writeln!(out, "{seen}").unwrap();
                return;
            }
            let mut answer = String::new();
            for command in commands(name, words) {
                match state.apply(now, command) {
                    Ok(applied) => answer = show(&state, &applied),
                    Err(error) => {
                        answer = show_error(&error);
                        break;
                    }
                }
            }
            writeln!(out, "{answer}").unwrap();
        }
    });
}
