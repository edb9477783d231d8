//! `weir snapshots explain`: the reason first, then how it came about.

use serde_json::{Map, Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_types::{Error, Result};

use super::view;
use crate::args::Global;
use crate::identity::Named;
use crate::{connect, output, time};

/// Explains one snapshot.
pub(super) async fn explain(global: &Global, snapshot: Named) -> Result<()> {
    let request = snapshot.request();
    let reply =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.explain_snapshot(request).await },
        )
        .await?;
    if global.json { output::print_json(&as_json(&reply)) } else { output::print(&as_text(&reply)) }
}

fn as_json(explanation: &pb::SnapshotExplanation) -> Value {
    let pb::SnapshotExplanation { id, snapshot, summary, hints, steps, timeline, nodes } = explanation;
    let step = |step: &pb::SnapshotStep| json!({"name": step.name, "at_us": step.at_us, "took_us": step.took_us});
    let event = |event: &pb::TimelineEvent| {
        let fields: Map<_, _> = event.fields.iter().map(|field| (field.name.clone(), json!(field.value))).collect();
        json!({
            "node": event.node, "at_us": event.at_us, "level": event.level, "message": event.message,
            "fields": fields,
        })
    };
    let node = |node: &pb::ExplainedNode| {
        json!({
            "name": node.name, "address": node.address, "events": node.events, "ahead_us": node.ahead_us,
            "failure": node.failure.clone().map(Error::from),
        })
    };
    json!({
        "id": id, "summary": summary, "hints": hints, "snapshot": snapshot.as_ref().map(view::snapshot_json),
        "steps": steps.iter().map(step).collect::<Vec<_>>(),
        "timeline": timeline.iter().map(event).collect::<Vec<_>>(),
        "nodes": nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

fn as_text(explanation: &pb::SnapshotExplanation) -> String {
    let mut text = format!("{}\n", explanation.summary);
    for hint in &explanation.hints {
        text += &format!("- {hint}\n");
    }
    for node in &explanation.nodes {
        if let Some(failure) = node.failure.clone() {
            let failure = Error::from(failure);
            text += &format!("! {} did not answer, what it said is missing: {failure}\n", node.name);
        }
        if node.ahead_us != 0 {
            let (us, way) = (node.ahead_us.unsigned_abs(), if node.ahead_us > 0 { "ahead" } else { "behind" });
            text += &format!("! the clock of {} is {} {way}; its times are corrected\n", node.name, time::micros(us));
        }
    }
    if !explanation.steps.is_empty() {
        let rows = explanation
            .steps
            .iter()
            .map(|step| vec![step.name.clone(), time::moment(step.at_us / 1000), time::micros(step.took_us)]);
        text += &format!("\n{}", output::table(&["step", "at", "after"], &[2], rows));
    }
    if let Some(snapshot) = explanation.snapshot.as_ref().filter(|snapshot| !snapshot.timings.is_empty()) {
        text += &format!("\n{}", view::timings_table(&snapshot.timings));
    }
    if !explanation.timeline.is_empty() {
        let rows = explanation
            .timeline
            .iter()
            .map(|event| vec![time::moment(event.at_us / 1000), event.node.clone(), event.level.clone(), said(event)]);
        text += &format!("\n{}", output::table(&["time", "node", "level", "event"], &[], rows));
    }
    text
}

/// What was said, as the log shows it; the job is the same all over.
fn said(event: &pb::TimelineEvent) -> String {
    let fields = event.fields.iter().filter(|field| !matches!(field.name.as_str(), "job" | "step"));
    fields.fold(event.message.clone(), |text, pb::TimelineField { name, value }| format!("{text} {name}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_comes_first_and_silent_nodes_are_named() {
        let field = |name: &str, value: &str| pb::TimelineField { name: name.to_owned(), value: value.to_owned() };
        let failure = Error::unavailable("nobody answers at 127.0.0.1:1");
        let explanation = pb::SnapshotExplanation {
            id: "chk-a-1".to_owned(),
            snapshot: None,
            summary: "checkpoint chk-a-1 failed after 7 ms: TIMEOUT: late".to_owned(),
            hints: vec!["look here".to_owned()],
            steps: vec![pb::SnapshotStep { name: "reserving".to_owned(), at_us: 1_000, took_us: 0 }],
            timeline: vec![pb::TimelineEvent {
                node: "jobmanager".to_owned(),
                at_us: 1_000,
                level: "INFO".to_owned(),
                message: "reserving".to_owned(),
                fields: vec![field("job", "a"), field("step", "reserving"), field("trigger", "user")],
            }],
            nodes: vec![
                pb::ExplainedNode { name: "tm-1".to_owned(), failure: Some((&failure).into()), ..Default::default() },
                pb::ExplainedNode { name: "tm-2".to_owned(), ahead_us: -1_500, ..Default::default() },
            ],
        };
        assert_eq!(
            as_text(&explanation),
            "checkpoint chk-a-1 failed after 7 ms: TIMEOUT: late\n\
             - look here\n\
             ! tm-1 did not answer, what it said is missing: UNAVAILABLE: nobody answers at 127.0.0.1:1\n\
             ! the clock of tm-2 is 1.500 ms behind; its times are corrected\n\
             \n\
             STEP       AT                           AFTER\n\
             reserving  1970-01-01T00:00:00.001Z  0.000 ms\n\
             \n\
             TIME                      NODE        LEVEL  EVENT\n\
             1970-01-01T00:00:00.001Z  jobmanager  INFO   reserving trigger=user\n"
        );
    }
}
