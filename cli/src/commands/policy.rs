//! `weir policy …`: what is kept of savepoints, and when they are taken by themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_service::units::TimeSpan;
use weir_types::Result;

use crate::args::Global;
use crate::args::policy::{PolicyCommand, SetArgs};
use crate::commands::snapshots::labels;
use crate::identity::Identity;
use crate::{connect, output, time};

/// `weir policy …`.
pub(crate) async fn run(global: &Global, command: PolicyCommand) -> Result<()> {
    match command {
        PolicyCommand::Set(args) => set(global, args).await,
        PolicyCommand::Show { level, namespace } => {
            show(global, Identity::load(global)?.level(&namespace, &level)?.to_string()).await
        }
        PolicyCommand::List(scope) => list(global, Identity::load(global)?.scope(&scope)?).await,
        PolicyCommand::Remove { level, owner, namespace } => {
            let identity = Identity::load(global)?;
            let level = identity.level(&namespace, &level)?.to_string();
            remove(global, level, identity.owner(&owner)?).await
        }
    }
}

async fn set(global: &Global, args: SetArgs) -> Result<()> {
    let SetArgs { level, keep_last, keep_for, keep_label, every, cron, owner, namespace } = args;
    let identity = Identity::load(global)?;
    let request = pb::SetPolicyRequest {
        request_id: connect::request_id(),
        level: identity.level(&namespace, &level)?.to_string(),
        keep_last,
        keep_for_ms: connect::timeout_ms(keep_for),
        keep_labels: labels(&keep_label)?,
        every_ms: connect::timeout_ms(every),
        cron,
        owner: identity.owner(&owner)?,
    };
    let policy =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.set_policy(request).await })
            .await?;
    if global.json {
        return output::print_json(&policy_json(&policy));
    }
    output::print(&policies_table(std::slice::from_ref(&policy)))
}

async fn show(global: &Global, level: String) -> Result<()> {
    let request = pb::ListPoliciesRequest { level: Some(level), namespace: None };
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.list_policies(request).await })
            .await?;
    let Some(policy) = reply.policies.first() else { return Ok(()) };
    if global.json {
        return output::print_json(&policy_json(policy));
    }
    output::print(&policy_text(policy))
}

async fn list(global: &Global, namespace: Option<String>) -> Result<()> {
    let request = pb::ListPoliciesRequest { level: None, namespace };
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.list_policies(request).await })
            .await?;
    if global.json {
        return output::print_json(&json!(reply.policies.iter().map(policy_json).collect::<Vec<_>>()));
    }
    output::print(&policies_table(&reply.policies))
}

async fn remove(global: &Global, level: String, owner: String) -> Result<()> {
    let request = pb::RemovePolicyRequest { request_id: connect::request_id(), level, owner };
    let policy =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.remove_policy(request).await })
            .await?;
    if global.json {
        return output::print_json(&policy_json(&policy));
    }
    output::print(&format!("policy of {} removed\n", policy.level))
}

fn policy_json(policy: &pb::Policy) -> Value {
    let scheduled = policy
        .scheduled
        .iter()
        .map(|job| json!({"job": job.job, "job_name": job.job_name, "last_ms": job.last_ms, "next_ms": job.next_ms}));
    json!({
        "level": policy.level, "keep_last": policy.keep_last, "keep_for_ms": policy.keep_for_ms,
        "keep_labels": policy.keep_labels, "every_ms": policy.every_ms, "cron": policy.cron,
        "set_at_ms": policy.set_at_ms, "set_by": policy.set_by, "scheduled": scheduled.collect::<Vec<_>>(),
    })
}

/// Policies for people; the next savepoint is the earliest of all jobs.
fn policies_table(policies: &[pb::Policy]) -> String {
    let rows = policies.iter().map(|policy| {
        let next_ms = policy.scheduled.iter().map(|job| job.next_ms).min().unwrap_or_default();
        let schedule = match (&policy.cron, policy.every_ms) {
            (Some(expression), _) => format!("cron {expression}"),
            (None, Some(ms)) => format!("every {}", span(ms)),
            (None, None) => "-".to_owned(),
        };
        vec![
            policy.level.clone(),
            policy.keep_last.map_or_else(|| "-".to_owned(), |last| last.to_string()),
            policy.keep_for_ms.map_or_else(|| "-".to_owned(), span),
            dash(&joined(&policy.keep_labels)),
            schedule,
            time::moment(next_ms),
        ]
    });
    output::table(&["level", "keep last", "keep for", "keep labelled", "savepoints", "next"], &[1, 2], rows)
}

fn policy_text(policy: &pb::Policy) -> String {
    let mut text = policies_table(std::slice::from_ref(policy));
    let by = if policy.set_by.is_empty() { String::new() } else { format!(" by {}", policy.set_by) };
    text += &format!("\nSet at {}{by}\n", time::moment(policy.set_at_ms));
    if !policy.scheduled.is_empty() {
        let rows = policy.scheduled.iter().map(|job| {
            vec![job.job.clone(), job.job_name.clone(), time::moment(job.last_ms), time::moment(job.next_ms)]
        });
        text += &format!("\n{}", output::table(&["job", "name", "last savepoint", "next savepoint"], &[], rows));
    }
    text
}

/// Labels as `a=b,c=d`.
fn joined(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn span(ms: u64) -> String {
    TimeSpan(Duration::from_millis(ms)).to_string()
}
