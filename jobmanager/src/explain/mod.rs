//! `weir snapshots explain`: what every node said about a snapshot, in one timeline, with the reason first.
//!
//! The leader says what it knows ([`Subject`]) and goes on; asking the nodes and putting it all together happens beside
//! its loop. A node that does not answer in time is named, and the rest is shown without it.

mod diagnosis;
mod timeline;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use weir_coordination::checkpoint::SubtaskKey;
use weir_coordination::metadata::{JobRecord, SnapshotEntry};
use weir_proto::pb::client::v1 as pb;
use weir_types::deployment::Placement;
use weir_types::event::Recollection;
use weir_types::ids::{JobId, SnapshotId, TaskManagerId};
use weir_types::{Error, Result};

use timeline::{Said, Timeline};

/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Places where attempts ran that are remembered, over all jobs.
const HOSTS_MAX: usize = 1_024;
/// How this process and the store are called in a timeline.
const JOBMANAGER: &str = "jobmanager";
const STORE: &str = "store";

/// Where attempts ran, the most recent last: a TaskManager that has gone since is asked as well, and named.
#[derive(Debug, Default)]
pub(crate) struct Hosts(VecDeque<(JobId, TaskManagerId, String)>);

impl Hosts {
    /// Notes where an attempt runs.
    pub(crate) fn note(&mut self, job: &JobId, placements: &[Placement]) {
        let named: BTreeMap<_, _> = placements.iter().map(|p| (&p.task_manager, &p.data_address)).collect();
        self.0.retain(|(of, task_manager, _)| of != job || !named.contains_key(task_manager));
        self.0.extend(named.into_iter().map(|(id, address)| (job.clone(), id.clone(), address.clone())));
        let surplus = self.0.len().saturating_sub(HOSTS_MAX);
        self.0.drain(..surplus);
    }

    /// TaskManagers that ran the job, or, without one, any.
    pub(crate) fn of(&self, job: Option<&JobId>) -> BTreeMap<TaskManagerId, String> {
        let wanted = self.0.iter().filter(|(of, ..)| job.is_none_or(|job| of == job));
        wanted.map(|(_, id, address)| (id.clone(), address.clone())).collect()
    }
}

/// What the leader knows of a snapshot that is to be explained.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) id: SnapshotId,
    /// The catalogue's entry, and as clients see it; none: it is gone, or never was.
    pub(crate) entry: Option<(SnapshotEntry, pb::Snapshot)>,
    pub(crate) record: Option<JobRecord>,
    /// In flight: whose acknowledgement is missing.
    pub(crate) missing: Vec<SubtaskKey>,
    /// Where the job ran.
    pub(crate) hosts: BTreeMap<TaskManagerId, String>,
    pub(crate) store_address: String,
}

/// Asks all nodes, and puts together what they say.
///
/// # Errors
/// `NOT_FOUND` if neither the catalogue nor any node knows the snapshot.
pub(crate) async fn explain(subject: Subject) -> Result<pb::SnapshotExplanation> {
    let (own, others) = tokio::join!(recall_own(&subject.id), ask_all(&subject));
    let mut said = vec![own];
    said.extend(others);
    let unanswered = |said: &Said| said.recalled.is_err();
    if subject.entry.is_none() && said.iter().all(|said| said.events() == 0) {
        let error =
            Error::not_found(format!("snapshot {} is not in the catalogue, and no log mentions it", subject.id))
                .with_hint("`weir snapshots list` shows all of them.");
        let silent: Vec<_> = said.iter().filter(|said| unanswered(said)).map(|said| said.name.as_str()).collect();
        return Err(match silent.is_empty() {
            true => error,
            false => error.with_detail(format!("these did not answer: {}", silent.join(", "))),
        });
    }
    let nodes = said.iter().map(node).collect();
    let timeline = timeline::merge(said);
    Ok(assemble(subject, timeline, nodes))
}

async fn recall_own(snapshot: &SnapshotId) -> Said {
    let snapshot = snapshot.clone();
    let recalled = tokio::task::spawn_blocking(move || weir_service::events::recall(&snapshot)).await;
    let recalled = recalled
        .map_err(|error| Error::internal("looking through the log was broken off").with_detail(error.to_string()));
    Said { name: JOBMANAGER.to_owned(), address: String::new(), ahead_us: 0, recalled }
}

async fn ask_all(subject: &Subject) -> Vec<Said> {
    let task_managers = subject.hosts.iter().map(|(id, address)| (id.to_string(), address.clone()));
    let nodes = task_managers.chain([(STORE.to_owned(), subject.store_address.clone())]);
    join_all(nodes.map(|(name, address)| ask(name, address, &subject.id))).await
}

async fn ask(name: String, address: String, snapshot: &SnapshotId) -> Said {
    let asked_us = now_us();
    let recalled = weir_proto::diagnostics::ask(&address, snapshot, ANSWER_TIMEOUT).await;
    let answered_us = now_us();
    let ahead_us = recalled.as_ref().map_or(0, |recalled| timeline::clock_ahead_us(asked_us, answered_us, recalled));
    Said { name, address, ahead_us, recalled }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn node(said: &Said) -> pb::ExplainedNode {
    pb::ExplainedNode {
        name: said.name.clone(),
        address: said.address.clone(),
        events: said.events() as u32,
        ahead_us: said.ahead_us,
        failure: said.recalled.as_ref().err().map(Into::into),
    }
}

fn assemble(subject: Subject, timeline: Timeline, nodes: Vec<pb::ExplainedNode>) -> pb::SnapshotExplanation {
    let diagnosis = diagnosis::diagnose(&subject, &timeline);
    let event = |(node, event): (String, weir_types::event::LogEvent)| pb::TimelineEvent {
        node,
        at_us: event.at_us,
        level: event.level,
        message: event.message,
        fields: event.fields.into_iter().map(|(name, value)| pb::TimelineField { name, value }).collect(),
    };
    pb::SnapshotExplanation {
        id: subject.id.to_string(),
        snapshot: subject.entry.map(|(_, view)| view),
        summary: diagnosis.summary,
        hints: diagnosis.hints,
        steps: diagnosis.steps,
        timeline: timeline.into_iter().map(event).collect(),
        nodes,
    }
}

impl Said {
    fn events(&self) -> usize {
        self.recalled.as_ref().map_or(0, |Recollection { events, .. }| events.len())
    }
}

#[cfg(test)]
mod tests {
    use weir_types::ids::{ChainId, SubtaskIndex};

    use super::*;

    fn placed(task_manager: &str, address: &str) -> Placement {
        Placement {
            chain: ChainId(0),
            index: SubtaskIndex(0),
            task_manager: TaskManagerId::new(task_manager).unwrap(),
            slot: 0,
            data_address: address.to_owned(),
        }
    }

    #[test]
    fn where_a_job_ran_is_remembered_with_the_newest_address_and_within_bounds() {
        let (a, b) = (JobId::new("a").unwrap(), JobId::new("b").unwrap());
        let mut hosts = Hosts::default();
        hosts.note(&a, &[placed("tm-1", "old"), placed("tm-2", "two"), placed("tm-2", "two")]);
        hosts.note(&b, &[placed("tm-3", "three")]);
        hosts.note(&a, &[placed("tm-1", "new")]);
        let names = |job| hosts.of(job).into_iter().map(|(id, address)| format!("{id} {address}")).collect::<Vec<_>>();
        assert_eq!(names(Some(&a)), ["tm-1 new", "tm-2 two"]);
        assert_eq!(names(None), ["tm-1 new", "tm-2 two", "tm-3 three"]);
        for number in 0..HOSTS_MAX {
            hosts.note(&b, &[placed(&format!("x-{number}"), "")]);
        }
        assert_eq!((hosts.0.len(), hosts.of(Some(&a)).len()), (HOSTS_MAX, 0));
    }
}
