//! `weir quota`: limits on snapshots, how much of them is used, and by what.

use std::io::IsTerminal;

use serde_json::{Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_service::units::TimeSpan;
use weir_types::Result;
use weir_types::quota::{QuotaDimension, QuotaLevel, QuotaLimits};

use crate::args::Global;
use crate::args::quota::{QuotaCommand, SetArgs};
use crate::identity::Identity;
use crate::{connect, output};

/// Blocks of a full usage bar.
const BAR_BLOCKS: u64 = 20;

/// `weir quota …`.
pub(crate) async fn run(global: &Global, command: QuotaCommand) -> Result<()> {
    match command {
        QuotaCommand::Set(args) => set(global, args).await,
        QuotaCommand::Show { level, namespace } => {
            show(global, &Identity::load(global)?.level(&namespace, &level)?).await
        }
        QuotaCommand::List(scope) => list(global, Identity::load(global)?.scope(&scope)?).await,
    }
}

async fn set(global: &Global, args: SetArgs) -> Result<()> {
    let request = pb::SetQuotaRequest {
        request_id: connect::request_id(),
        level: Identity::load(global)?.level(&args.namespace, &args.level)?.to_string(),
        limits: Some(args.limits().into()),
        unset: args.unset.iter().map(|dimension| dimension.as_str().to_owned()).collect(),
        remove: args.remove,
        dry_run: args.dry_run,
    };
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.set_quota(request).await })
            .await?;
    let quota = reply.quota.unwrap_or_default();
    if global.json {
        return output::print_json(&json!({
            "quota": quota_json(&quota),
            "dry_run": args.dry_run,
            "exceeded": reply.exceeded.iter().map(excess_json).collect::<Vec<_>>(),
        }));
    }
    let mut text = if args.dry_run { "Nothing was changed. Limits would be:\n" } else { "" }.to_owned();
    text += &limits_table(std::slice::from_ref(&quota), true);
    for excess in &reply.exceeded {
        let dimension = named(&excess.dimension);
        let (used, limit) = (amount(dimension, Some(excess.used)), amount(dimension, Some(excess.limit)));
        let already = if args.dry_run { "would already exceed" } else { "already exceeds" };
        text += &format!("{} {already} its limit of {}: {used} of {limit}\n", excess.level, excess.dimension);
    }
    output::print(&text)
}

async fn show(global: &Global, level: &QuotaLevel) -> Result<()> {
    let request = pb::ListQuotasRequest { level: Some(level.to_string()), namespace: None };
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.list_quotas(request).await })
            .await?;
    let quota = reply.quotas.into_iter().next().unwrap_or_default();
    if global.json {
        return output::print_json(&quota_json(&quota));
    }
    let mut text = limits_table(std::slice::from_ref(&quota), true);
    if quota.checkpoint_reserve > 0 {
        let reserve = output::bytes(quota.checkpoint_reserve);
        text += &format!("\nSavepoints must leave {reserve} for the next checkpoints of running jobs.\n");
    }
    if quota.queued > 0 {
        text += &format!("\n{} snapshots wait for their turn.\n", quota.queued);
    }
    if !quota.consumers.is_empty() {
        let rows = quota.consumers.iter().map(|consumer| {
            vec![
                consumer.snapshot.clone(),
                consumer.job_name.clone(),
                consumer.owner.clone(),
                consumer.state.clone(),
                output::bytes(consumer.bytes),
            ]
        });
        text += &format!("\n{}", output::table(&["snapshot", "job", "owner", "state", "size"], &[4], rows));
    }
    output::print(&text)
}

async fn list(global: &Global, namespace: Option<String>) -> Result<()> {
    let request = pb::ListQuotasRequest { level: None, namespace };
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.list_quotas(request).await })
            .await?;
    if global.json {
        return output::print_json(&json!(reply.quotas.iter().map(quota_json).collect::<Vec<_>>()));
    }
    output::print(&limits_table(&reply.quotas, false))
}

/// One line per level and dimension: all dimensions, or those that are used or limited.
fn limits_table(quotas: &[pb::Quota], all: bool) -> String {
    let bars = std::io::stdout().is_terminal();
    let mut rows = Vec::new();
    for quota in quotas {
        let (limits, set) = (limits(quota.limits), limits(quota.set));
        for dimension in QuotaDimension::ALL {
            let (used, limit) = (used(quota, dimension), limits.get(dimension));
            if !all && limit.is_none() && used.is_none_or(|used| used == 0) {
                continue;
            }
            let limit_of = limit.filter(|limit| *limit != QuotaLimits::UNLIMITED);
            let mut row = vec![
                quota.level.clone(),
                dimension.as_str().to_owned(),
                amount(dimension, used.map(|used| rounded(dimension, used))),
                amount(dimension, limit),
                share(used, limit_of),
                if set.get(dimension).is_some() {
                    "set"
                } else if limit.is_some() {
                    "default"
                } else {
                    "-"
                }
                .to_owned(),
            ];
            if bars {
                row.push(bar(used, limit_of));
            }
            rows.push(row);
        }
    }
    let header = ["level", "dimension", "used", "limit", "%", "from", ""];
    output::table(&header[..if bars { 7 } else { 6 }], &[2, 3, 4], rows)
}

fn used(quota: &pb::Quota, dimension: QuotaDimension) -> Option<u64> {
    match dimension {
        QuotaDimension::Savepoints => Some(quota.savepoints),
        QuotaDimension::RetainedCheckpoints => Some(quota.retained_checkpoints),
        QuotaDimension::Bytes => Some(quota.bytes),
        QuotaDimension::InFlight => Some(quota.in_flight),
        QuotaDimension::MinimumInterval => quota.since_last_savepoint_ms,
        QuotaDimension::Age => quota.oldest_savepoint_ms,
    }
}

/// How long ago something was, in whole seconds; other amounts as they are.
fn rounded(dimension: QuotaDimension, used: u64) -> u64 {
    let is_span = matches!(dimension, QuotaDimension::MinimumInterval | QuotaDimension::Age);
    if is_span && used >= 1_000 { used - used % 1_000 } else { used }
}

/// An amount in the dimension's unit.
fn amount(dimension: QuotaDimension, amount: Option<u64>) -> String {
    match (amount, dimension) {
        (None, _) => "-".to_owned(),
        (Some(QuotaLimits::UNLIMITED), _) => "unlimited".to_owned(),
        (Some(bytes), QuotaDimension::Bytes) => output::bytes(bytes),
        (Some(ms), QuotaDimension::MinimumInterval | QuotaDimension::Age) => TimeSpan::ms(ms).to_string(),
        (Some(count), _) => output::count(count),
    }
}

fn share(used: Option<u64>, limit: Option<u64>) -> String {
    match (used, limit) {
        (Some(used), Some(limit)) if limit > 0 => (u128::from(used) * 100 / u128::from(limit)).to_string(),
        _ => "-".to_owned(),
    }
}

fn bar(used: Option<u64>, limit: Option<u64>) -> String {
    let (Some(used), Some(limit)) = (used, limit) else { return String::new() };
    let full = u128::from(used.min(limit)) * u128::from(BAR_BLOCKS) / u128::from(limit.max(1));
    let full = if limit == 0 { BAR_BLOCKS as usize } else { full as usize };
    "█".repeat(full) + &"░".repeat(BAR_BLOCKS as usize - full)
}

fn limits(limits: Option<pb::QuotaLimits>) -> QuotaLimits {
    limits.map(Into::into).unwrap_or_default()
}

fn named(dimension: &str) -> QuotaDimension {
    let found = QuotaDimension::ALL.into_iter().find(|known| known.as_str() == dimension);
    found.unwrap_or(QuotaDimension::Savepoints)
}

fn excess_json(excess: &pb::QuotaExcess) -> Value {
    json!({"level": excess.level, "dimension": excess.dimension, "limit": excess.limit, "used": excess.used})
}

fn quota_json(quota: &pb::Quota) -> Value {
    let dimensions = QuotaDimension::ALL.into_iter().map(|dimension| {
        let value = json!({
            "used": used(quota, dimension),
            "limit": limits(quota.limits).get(dimension),
            "set": limits(quota.set).get(dimension).is_some(),
        });
        (dimension.as_str().to_owned(), value)
    });
    let consumers = quota.consumers.iter().map(|consumer| {
        json!({
            "snapshot": consumer.snapshot, "job_name": consumer.job_name, "owner": consumer.owner,
            "state": consumer.state, "bytes": consumer.bytes,
        })
    });
    json!({
        "level": quota.level,
        "dimensions": dimensions.collect::<serde_json::Map<_, _>>(),
        "shared_bytes": quota.shared_bytes,
        "checkpoint_reserve": quota.checkpoint_reserve,
        "queued": quota.queued,
        "consumers": consumers.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_shown_in_the_unit_of_its_dimension_beside_where_its_limit_comes_from() {
        let quota = pb::Quota {
            level: "owner:ada".to_owned(),
            limits: Some(pb::QuotaLimits {
                savepoints: Some(4),
                bytes: Some(3 << 20),
                age_ms: Some(QuotaLimits::UNLIMITED),
                ..Default::default()
            }),
            set: Some(pb::QuotaLimits { bytes: Some(3 << 20), ..Default::default() }),
            savepoints: 3,
            bytes: 1 << 20,
            oldest_savepoint_ms: Some(90_123),
            ..Default::default()
        };
        let expected = "\
LEVEL      DIMENSION   USED     LIMIT      %   FROM
owner:ada  savepoints  3        4          75  default
owner:ada  bytes       1.0 MiB  3.0 MiB    33  set
owner:ada  age         90s      unlimited  -   default
";
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&limits_table(&[quota], false)), squeezed(expected));
        assert_eq!(bar(Some(1), Some(2)), "██████████░░░░░░░░░░");
        assert_eq!(bar(Some(7), Some(0)), "█".repeat(20));
    }
}
