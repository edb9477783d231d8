//! Replays `testdata/scheduler/*.txt`: events in, printed actions out; see `checkpoint_scenarios.rs` for the format.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

mod scenarios;

use std::collections::BTreeSet;
use std::fmt::Write;

use weir_coordination::scheduler::{Action, Config, Event, JobPlan, Recovered, Scheduler, SlotsOf};
use weir_types::control::SubtaskStatus;
use weir_types::deployment::{Placement, SubtaskState};
use weir_types::error::Facts;
use weir_types::ids::{Attempt, ChainId, JobId, Parallelism, SubtaskId, SubtaskIndex, TaskManagerId};
use weir_types::job::{Followed, JobFailure, JobState};
use weir_types::restart::{Backoff, RestartStrategy};
use weir_types::time::Millis;
use weir_types::{Code, Error};

fn id(name: &str) -> JobId {
    JobId::new(name).unwrap()
}

fn manager(name: &str) -> TaskManagerId {
    TaskManagerId::new(name).unwrap()
}

/// A code; `state:CODE` says that the snapshot's state could not be read.
fn error(code: &str) -> Error {
    match code.strip_prefix("state:") {
        Some(code) => error(code).with_facts(Facts::StateUnreadable { directory: "/d".to_owned(), operator: None }),
        None => Error::new(Code::parse(code).unwrap(), "scripted"),
    }
}

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// `job/chain/index#attempt`
fn subtask(text: &str) -> SubtaskId {
    let (path, attempt) = text.split_once('#').unwrap();
    let parts: Vec<&str> = path.split('/').collect();
    SubtaskId {
        job: id(parts[0]),
        chain: ChainId(parts[1].parse().unwrap()),
        index: SubtaskIndex(parts[2].parse().unwrap()),
        attempt: Attempt(attempt.parse().unwrap()),
    }
}

fn recovered(words: &[&str]) -> Option<Recovered> {
    let (state, attempt) = value(words, "recovered")?.split_once('#').unwrap();
    let state = [
        JobState::Created,
        JobState::Starting,
        JobState::Running,
        JobState::Restarting,
        JobState::Stopping,
        JobState::Cancelling,
    ]
    .into_iter()
    .find(|known| known.as_str() == state)
    .unwrap();
    let on = value(words, "on").unwrap_or_default();
    let on = on.split(',').filter(|name| !name.is_empty()).map(manager);
    Some(Recovered {
        state,
        attempt: Attempt(attempt.parse().unwrap()),
        parallelism: value(words, "p").map_or(Parallelism::ONE, parallelism),
        placements: (0..).zip(on).flat_map(|(index, on)| [0, 1].map(|chain| placed(chain, index, &on))).collect(),
        stopped: words.contains(&"stopped"),
        failures: value(words, "failures").map_or(0, |failures| failures.parse().unwrap()),
        failed_at: Vec::new(),
    })
}

fn parallelism(text: &str) -> Parallelism {
    Parallelism::new(text.parse().unwrap()).unwrap()
}

/// `none`; `fixed[:ATTEMPTS]`, 100 ms each; `exponential[:ATTEMPTS]`, from 100 ms doubling to 1 s, reset after 10 s, without
/// jitter; `rate:FAILURES:INTERVAL`.
fn strategy(text: &str) -> RestartStrategy {
    let parts: Vec<&str> = text.split(':').collect();
    let number = |index: usize| parts.get(index).map(|part| part.parse::<u32>().unwrap());
    match parts[0] {
        "none" => RestartStrategy::None,
        "fixed" => RestartStrategy::FixedDelay { attempts_max: number(1), delay_ms: 100 },
        "exponential" => RestartStrategy::ExponentialDelay(Backoff {
            initial_ms: 100,
            max_ms: 1_000,
            multiplier_permille: 2_000,
            reset_threshold_ms: 10_000,
            jitter_permille: 0,
            attempts_max: number(1),
        }),
        "rate" => RestartStrategy::FailureRate {
            failures_max: number(1).unwrap(),
            interval_ms: number(2).unwrap().into(),
            delay_ms: 100,
        },
        other => panic!("unknown strategy {other}"),
    }
}

/// What broke, where, and what follows.
fn failure(failure: &JobFailure) -> String {
    let subtask = failure.subtask.map(|(chain, index)| format!(" in {chain}/{index}")).unwrap_or_default();
    let on = failure.task_manager.as_ref().map(|on| format!(" on {on}")).unwrap_or_default();
    let followed = match failure.followed {
        Followed::Restart { delay_ms } => format!("restart after {delay_ms}"),
        Followed::Fail => "fail".to_owned(),
    };
    format!("#{} {}{subtask}{on}: {followed}", failure.attempt, failure.error.code)
}

fn placed(chain: u32, index: u32, on: &TaskManagerId) -> Placement {
    Placement {
        chain: ChainId(chain),
        index: SubtaskIndex(index),
        task_manager: on.clone(),
        slot: 0,
        data_address: String::new(),
    }
}

/// `running=j/0/0#1,j/1/0#1 failed=…` and so on: subtasks that register, and their states.
fn registered(words: &[&str]) -> Vec<SubtaskStatus> {
    let states = [
        ("starting", SubtaskState::Starting),
        ("running", SubtaskState::Running),
        ("drained", SubtaskState::Drained),
        ("finished", SubtaskState::Finished),
        ("failed", SubtaskState::Failed(error("IO"))),
        ("cancelled", SubtaskState::Cancelled),
    ];
    let mut registered = Vec::new();
    for (key, state) in states {
        let subtasks = value(words, key).unwrap_or_default().split(',').filter(|text| !text.is_empty());
        registered.extend(subtasks.map(|text| SubtaskStatus { subtask: subtask(text), state: state.clone() }));
    }
    registered
}

/// A source chain 0 and an aggregating chain 1, both of parallelism `p`.
fn plan(words: &[&str]) -> JobPlan {
    let p = value(words, "p").map_or(Parallelism::ONE, parallelism);
    JobPlan {
        job: id(words[0]),
        chains: vec![(ChainId(0), None), (ChainId(1), None)],
        parallelism: p,
        parallelism_min: value(words, "min").map(parallelism),
        sources: BTreeSet::from([ChainId(0)]),
        restart: strategy(value(words, "restart").unwrap_or("fixed")),
        recovered: recovered(words),
    }
}

fn events(name: &str, words: &[&str]) -> Vec<Event> {
    match name {
        "joined" => {
            let slots = value(words, "slots").map_or(1, |slots| slots.parse().unwrap());
            let slots = SlotsOf { id: manager(words[0]), slots, data_address: String::new() };
            vec![Event::TaskManagerJoined(slots, registered(words))]
        }
        "lost" => vec![Event::TaskManagerLost(manager(words[0]), error("UNAVAILABLE"))],
        "submit" => vec![Event::Submitted(plan(words))],
        "deployed" => vec![Event::Deployed(id(words[0]), Attempt(words[1].parse().unwrap()))],
        "broken" => vec![Event::Broken(id(words[0]), Attempt(words[1].parse().unwrap()), error(words[2]))],
        "resumed" => vec![Event::Resumed(id(words[0]), Attempt(words[1].parse().unwrap()), error(words[2]))],
        "rescale" => vec![Event::Rescale(id(words[0]), parallelism(words[1]))],
        "grow" => vec![Event::Grow(id(words[0]), Attempt(words[1].parse().unwrap()))],
        "not-grown" => vec![Event::NotGrown(id(words[0]), Attempt(words[1].parse().unwrap()))],
        "cancel" => vec![Event::Cancel(id(words[0]))],
        "stop" => vec![Event::Stop(id(words[0]))],
        "stop-abandoned" => vec![Event::StopAbandoned(id(words[0]))],
        "stop-completed" => vec![Event::StopCompleted(id(words[0]))],
        "tick" => vec![Event::Tick],
        "running" | "drained" | "finished" | "cancelled" | "failed" => {
            let state = match name {
                "running" => SubtaskState::Running,
                "drained" => SubtaskState::Drained,
                "finished" => SubtaskState::Finished,
                "cancelled" => SubtaskState::Cancelled,
                _ => SubtaskState::Failed(error(words[1])),
            };
            let subtasks = words[0].split(',').map(subtask);
            subtasks.map(|subtask| Event::Status(SubtaskStatus { subtask, state: state.clone() })).collect()
        }
        other => panic!("unknown event {other}"),
    }
}

fn show(action: &Action) -> String {
    match action {
        Action::StartAttempt(job, attempt, placements) => {
            let at = |p: &weir_types::deployment::Placement| {
                format!(" {}/{}@{}:{}", p.chain, p.index, p.task_manager, p.slot)
            };
            format!("start {job}#{attempt}:{}", placements.iter().map(at).collect::<String>())
        }
        Action::CancelAttempt(job, attempt, on) => {
            let on: Vec<&str> = on.iter().map(TaskManagerId::as_str).collect();
            format!("cancel {job}#{attempt} on {}", on.join(","))
        }
        Action::FinishAttempt(job, attempt) => format!("finish {job}#{attempt}"),
        Action::ChangeJob(job, change, None) => format!("change {job} {change:?}"),
        Action::ChangeJob(job, change, Some(why)) => format!("change {job} {change:?} {}", failure(why)),
        Action::Grow(job, attempt) => format!("grow {job}#{attempt}"),
        Action::Adopted(job, attempt) => format!("adopted {job}#{attempt}"),
        Action::AttemptRunning(job, attempt) => format!("running {job}#{attempt}"),
        Action::AttemptEnded(job, attempt, error) => format!("ended {job}#{attempt} {}", error.code),
    }
}

#[test]
fn scenarios_of_the_scheduler_replay() {
    scenarios::replay("scheduler", 8, || {
        let mut scheduler = Scheduler::new(Config {
            cancel_timeout_ms: 1_000,
            recovery_wait_ms: 500,
            resource_wait_ms: 3_000,
            resource_stabilization_ms: 10_000,
        });
        move |words, out| {
            let now = Millis(words[0].parse().unwrap());
            if words[1] == "waiting" {
                let waits = scheduler.waiting_for(now, &id(words[2])).join("; ");
                writeln!(out, "{}", if waits.is_empty() { "nothing" } else { &waits }).unwrap();
                return;
            }
            for event in events(words[1], &words[2..]) {
                for action in scheduler.on_event(now, event) {
                    writeln!(out, "{}", show(&action)).unwrap();
                }
            }
            if words[1] == "tick" {
                let at = scheduler.next_deadline().map_or_else(|| "never".to_owned(), |at| at.0.to_string());
                writeln!(out, "next {at}").unwrap();
            }
        }
    });
}
