//! What the facts about a snapshot amount to: the reason in a sentence, the steps with their durations, and hints.

use std::collections::{BTreeMap, BTreeSet};

use weir_coordination::checkpoint::{SubtaskKey, SubtaskShare};
use weir_coordination::metadata::{Fallback, JobRecord, SnapshotEntry};
use weir_proto::pb::client::v1::SnapshotStep;
use weir_types::event::LogEvent;
use weir_types::ids::{ChainId, SnapshotId, SubtaskIndex};
use weir_types::snapshot::{SnapshotState, SnapshotTimings};
use weir_types::time::Millis;

use super::timeline::Timeline;
use super::{JOBMANAGER, Subject};
use crate::metadata::now;

/// A part of a snapshot that takes less is not worth a hint.
const SLOW_US: u64 = 500_000;
/// Shares of a subtask's time that are worth a hint, in percent.
const BACKPRESSURED: u64 = 50;
const BUSY: u64 = 90;
/// Hints of one kind that are given at most.
const ALIKE_MAX: usize = 4;

/// What it amounts to.
#[derive(Debug)]
pub(super) struct Diagnosis {
    pub(super) summary: String,
    pub(super) hints: Vec<String>,
    pub(super) steps: Vec<SnapshotStep>,
}

pub(super) fn diagnose(subject: &Subject, timeline: &Timeline) -> Diagnosis {
    let entry = subject.entry.as_ref().map(|(entry, _)| entry);
    let names = Names { record: subject.record.as_ref() };
    let summary = match entry {
        Some(entry) => {
            let fallback = subject.record.as_ref().and_then(|record| record.fallback.as_ref());
            summary(entry, &subject.missing, now()) + &fallback.map(|of| fell_back(of, &entry.id)).unwrap_or_default()
        }
        None => summary_of_removed(subject, timeline),
    };
    let mut hints = Vec::new();
    if let Some(entry) = entry {
        hints.extend(slowest_part(entry, &names));
        hints.extend(entry.failure.iter().filter_map(|failure| failure.hint.clone()));
    }
    hints.extend(unfinished(subject, timeline, &names));
    hints.extend(loads(timeline, &names));
    Diagnosis { summary, hints, steps: steps(timeline) }
}

fn summary(entry: &SnapshotEntry, missing: &[SubtaskKey], now: Millis) -> String {
    let what = format!("{} {}", entry.kind, entry.id);
    let took = |until: Millis| format!("{} ms", until.since(entry.triggered_at));
    let mut text = match entry.state {
        SnapshotState::Queued => format!("{what} has waited for its turn for {}", took(now)),
        SnapshotState::InProgress => {
            let acknowledged = entry.subtasks.saturating_sub(missing.len() as u32);
            let of = entry.subtasks;
            format!("{what} has been under way for {}; {acknowledged} of {of} subtasks have acknowledged", took(now))
        }
        SnapshotState::Completed => format!("{what} completed in {}", took(entry.ended_at.unwrap_or(now))),
        SnapshotState::Deleting => format!("{what} is being deleted"),
        SnapshotState::Failed => {
            let failure = entry.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            match entry.started_at {
                None => format!("{what} was refused: {failure}"),
                Some(_) => format!("{what} failed after {}: {failure}", took(entry.ended_at.unwrap_or(now))),
            }
        }
    };
    if entry.failures > 1 {
        text += &format!("; {} in a row failed alike", entry.failures);
    }
    if let Some(reason) = &entry.unrestorable {
        text += &format!("; it can no longer be restored: {reason}");
    }
    if let Some(damage) = entry.verified.as_ref().and_then(|verified| verified.damage.as_ref()) {
        text += &format!("; it is damaged: {damage}");
    }
    text
}

/// What the job's last fallback has to do with a snapshot; empty: nothing.
fn fell_back(fallback: &Fallback, snapshot: &SnapshotId) -> String {
    let Fallback { at: _, attempt, to, passed_over } = fallback;
    let passed: Vec<&str> = passed_over.iter().map(|passed| passed.snapshot.as_str()).collect();
    if to == snapshot.as_str() {
        format!("; attempt {attempt} of the job fell back to it, because {} cannot be restored", passed.join(", "))
    } else if passed.contains(&snapshot.as_str()) {
        format!("; attempt {attempt} of the job passed it over and fell back to {to}")
    } else {
        String::new()
    }
}

/// The catalogue forgets deleted snapshots, and failures that were repeated.
fn summary_of_removed(subject: &Subject, timeline: &Timeline) -> String {
    let id = &subject.id;
    let own = || timeline.iter().rev().filter(|(node, _)| node == JOBMANAGER).map(|(_, event)| event);
    let gone = format!("snapshot {id} is no longer in the catalogue");
    if own().any(|event| event.message == "snapshot removed") {
        return format!("{gone}: it was deleted");
    }
    let ended = own().find(|event| matches!(event.field("step"), Some("failed" | "refused")));
    match ended.and_then(|event| event.field("error")) {
        Some(error) => format!("{gone}: it failed: {error}"),
        None => gone,
    }
}

/// Each step that the JobManager took, and how long after the one before it.
fn steps(timeline: &Timeline) -> Vec<SnapshotStep> {
    let mut steps: Vec<SnapshotStep> = Vec::new();
    for (_, event) in timeline.iter().filter(|(node, _)| node == JOBMANAGER) {
        let Some(name) = event.field("step") else { continue };
        let took_us = steps.last().map_or(0, |last| event.at_us.saturating_sub(last.at_us));
        steps.push(SnapshotStep { name: name.to_owned(), at_us: event.at_us, took_us });
    }
    steps
}

/// What subtasks are called.
struct Names<'a> {
    record: Option<&'a JobRecord>,
}

impl Names<'_> {
    /// `3/0 (window → sink) on tm-2`.
    fn subtask(&self, (chain, index): SubtaskKey) -> String {
        let mut name = format!("{chain}/{index}");
        let Some(record) = self.record else { return name };
        if let Some(found) = record.graph.chains().into_iter().find(|found| found.id == chain) {
            let operators = record.graph.operators.iter().filter(|operator| found.operators.contains(&operator.id));
            let operators: Vec<_> = operators.map(|operator| operator.name.as_str()).collect();
            name += &format!(" ({})", operators.join(" → "));
        }
        if let Some(place) = record.placements.iter().find(|place| place.chain == chain && place.index == index) {
            name += &format!(" on {}", place.task_manager);
        }
        name
    }
}

/// The subtask of an event, of `job/chain/index#attempt`.
fn subtask_of(event: &LogEvent) -> Option<SubtaskKey> {
    let (path, _attempt) = event.field("subtask")?.split_once('#')?;
    let mut parts = path.split('/').skip(1).map(|part| part.parse().ok());
    Some((ChainId(parts.next()??), SubtaskIndex(parts.next()??)))
}

/// The part of a snapshot that took the longest, if it took long.
fn slowest_part(entry: &SnapshotEntry, names: &Names<'_>) -> Option<String> {
    type Part = (&'static str, fn(&SnapshotTimings) -> u64, &'static str);
    const PARTS: [Part; 4] = [
        ("start delay", |t| t.start_delay_us, "the barrier waited behind data that was still to be processed"),
        (
            "alignment",
            |t| t.alignment_us,
            "its inputs' barriers arrived far apart: one input is slower than the others",
        ),
        ("synchronous part", |t| t.sync_us, "much state was frozen at once; nothing was processed meanwhile"),
        ("asynchronous part", |t| t.async_us, "writing the files, or the sink's flush, is slow; processing went on"),
    ];
    let slowest = |(name, time, why): Part| -> Option<(u64, &SubtaskShare, &str, &str)> {
        let share = entry.shares.iter().max_by_key(|share| time(&share.timings))?;
        Some((time(&share.timings), share, name, why))
    };
    let (us, share, part, why) = PARTS.into_iter().filter_map(slowest).max_by_key(|(us, ..)| *us)?;
    let who = names.subtask((share.chain, share.index));
    (us >= SLOW_US).then(|| format!("the longest part was the {part} of subtask {who}, {} ms: {why}", us / 1_000))
}

/// Where those stood who had not acknowledged, or have not yet.
fn unfinished(subject: &Subject, timeline: &Timeline, names: &Names<'_>) -> Vec<String> {
    let left = timeline.iter().filter(|(_, event)| event.message == "had not acknowledged");
    let mut missing: BTreeSet<SubtaskKey> = left.filter_map(|(_, event)| subtask_of(event)).collect();
    missing.extend(&subject.missing);
    let mut last: BTreeMap<SubtaskKey, String> = BTreeMap::new();
    for (_, event) in timeline {
        let Some(subtask) = subtask_of(event) else { continue };
        let stage = match event.message.as_str() {
            "barrier triggered" | "its barrier still waited behind what had been read" => {
                "its barrier waited behind what the source had read".to_owned()
            }
            "barrier let in" => "its barrier was let in, but its state was not frozen yet".to_owned(),
            "aligning" | "was still aligning" => {
                let of = |name| event.field(name).unwrap_or("?");
                format!("the barrier had arrived on {} of its {} inputs", of("arrived"), of("inputs"))
            }
            "frozen" | "was still writing" => "it was writing its state".to_owned(),
            _ => continue,
        };
        last.insert(subtask, stage);
    }
    let count = missing.len();
    let stage = |subtask: &SubtaskKey| last.get(subtask).map_or("no barrier had reached it", String::as_str);
    let describe =
        |subtask: &SubtaskKey| format!("subtask {} had not acknowledged: {}", names.subtask(*subtask), stage(subtask));
    let mut hints: Vec<String> = missing.iter().take(ALIKE_MAX).map(describe).collect();
    if count > ALIKE_MAX {
        hints.push(format!("{} more subtasks had not acknowledged", count - ALIKE_MAX));
    }
    hints
}

/// Who was back pressured, and who had no time to spare, while the barriers were under way.
fn loads(timeline: &Timeline, names: &Names<'_>) -> Vec<String> {
    let mut hints = Vec::new();
    for (_, event) in timeline {
        let percent = |name| event.field(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        let Some(subtask) = subtask_of(event) else { continue };
        let (backpressured, busy) = (percent("backpressured_percent"), percent("busy_percent"));
        let who = || names.subtask(subtask);
        if backpressured >= BACKPRESSURED {
            hints.push(format!(
                "subtask {} was back pressured {backpressured} % of the time: what comes after it is too slow",
                who()
            ));
        } else if busy >= BUSY {
            hints.push(format!("subtask {} was busy {busy} % of the time: it is a bottleneck", who()));
        }
    }
    hints.sort();
    hints.dedup();
    hints.truncate(ALIKE_MAX);
    hints
}

#[cfg(test)]
mod tests {
    use weir_coordination::metadata::PassedOver;
    use weir_types::ids::Attempt;

    use super::*;

    fn event(at_us: u64, message: &str, fields: &[(&str, &str)]) -> LogEvent {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        LogEvent { at_us, level: "INFO".to_owned(), message: message.to_owned(), fields }
    }

    fn subject(missing: Vec<SubtaskKey>) -> Subject {
        Subject {
            id: weir_types::ids::SnapshotId::new("chk-a-1").unwrap(),
            entry: None,
            record: None,
            missing,
            hosts: BTreeMap::new(),
            store_address: String::new(),
        }
    }

    fn timeline(events: Vec<(&str, LogEvent)>) -> Timeline {
        events.into_iter().map(|(node, event)| (node.to_owned(), event)).collect()
    }

    #[test]
    fn steps_are_those_of_the_jobmanager_with_the_time_between_them() {
        let timeline = timeline(vec![
            (JOBMANAGER, event(100, "reserving", &[("step", "reserving")])),
            ("tm", event(120, "barrier triggered", &[("step", "foreign")])),
            (JOBMANAGER, event(130, "chatter", &[])),
            (JOBMANAGER, event(150, "reserved", &[("step", "reserved")])),
        ]);
        let steps: Vec<_> = steps(&timeline).into_iter().map(|step| (step.name, step.at_us, step.took_us)).collect();
        assert_eq!(steps, [("reserving".to_owned(), 100, 0), ("reserved".to_owned(), 150, 50)]);
    }

    #[test]
    fn a_fallback_is_told_of_the_snapshots_that_had_to_do_with_it() {
        let of = |name| SnapshotId::new(name).unwrap();
        let passed = |name: &str| PassedOver { snapshot: name.to_owned(), reason: "it is damaged".to_owned() };
        let fallback = Fallback {
            at: Millis(7),
            attempt: Attempt(3),
            to: "chk-a-1".to_owned(),
            passed_over: vec![passed("chk-a-3"), passed("chk-a-2")],
        };
        let told = ["chk-a-1", "chk-a-2", "chk-a-4"].map(|name| fell_back(&fallback, &of(name)));
        assert_eq!(
            told,
            [
                "; attempt 3 of the job fell back to it, because chk-a-3, chk-a-2 cannot be restored",
                "; attempt 3 of the job passed it over and fell back to chk-a-1",
                "",
            ]
        );
    }

    #[test]
    fn each_missing_subtask_is_shown_with_how_far_it_was() {
        let of = |chain: u32| format!("job/{chain}/0#2");
        let said = vec![
            ("tm", event(1, "barrier triggered", &[("subtask", &of(0))])),
            ("tm", event(2, "aligning", &[("subtask", &of(1)), ("arrived", "1"), ("inputs", "3")])),
            ("tm", event(3, "aligning", &[("subtask", &of(2)), ("arrived", "1"), ("inputs", "1")])),
            ("tm", event(4, "frozen", &[("subtask", &of(2))])),
            ("tm", event(5, "had not acknowledged", &[("subtask", &of(2)), ("backpressured_percent", "73")])),
            ("tm", event(6, "snapshot acknowledged", &[("subtask", &of(4)), ("busy_percent", "95")])),
        ];
        let missing = [0, 1, 3].map(|chain| (ChainId(chain), SubtaskIndex(0))).to_vec();
        let found = diagnose(&subject(missing), &timeline(said));
        assert_eq!(
            found.hints,
            [
                "subtask 0/0 had not acknowledged: its barrier waited behind what the source had read",
                "subtask 1/0 had not acknowledged: the barrier had arrived on 1 of its 3 inputs",
                "subtask 2/0 had not acknowledged: it was writing its state",
                "subtask 3/0 had not acknowledged: no barrier had reached it",
                "subtask 2/0 was back pressured 73 % of the time: what comes after it is too slow",
                "subtask 4/0 was busy 95 % of the time: it is a bottleneck",
            ]
        );
    }

    #[test]
    fn a_snapshot_that_the_catalogue_has_forgotten_is_explained_from_the_log() {
        let failed = event(1, "snapshot failed", &[("step", "failed"), ("error", "TIMEOUT: late")]);
        let told = |events| diagnose(&subject(Vec::new()), &timeline(events)).summary;
        let gone = "snapshot chk-a-1 is no longer in the catalogue";
        assert_eq!(told(vec![(JOBMANAGER, failed)]), format!("{gone}: it failed: TIMEOUT: late"));
        assert_eq!(told(vec![(JOBMANAGER, event(2, "snapshot removed", &[]))]), format!("{gone}: it was deleted"));
        assert_eq!(told(vec![("tm", event(3, "snapshot removed", &[]))]), gone);
    }
}
