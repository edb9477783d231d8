//! Limits as clients set and see them.

use weir_coordination::metadata::{Command, Reply, SnapshotEntry, Usage};
use weir_proto::pb::client::v1 as pb;
use weir_types::quota::{QuotaDimension, QuotaExceeded, QuotaLevel, QuotaLimits};
use weir_types::snapshot::SnapshotKind;
use weir_types::{Error, Result};

use super::{Leader, Then, answer};
use crate::event::Answer;
use crate::metadata::now;

/// Snapshots that are named as a level's consumers.
const CONSUMERS_MAX: usize = 10;

impl Leader {
    pub(super) fn set_quota(&mut self, request: pb::SetQuotaRequest, to: Answer<pb::SetQuotaReply>) {
        let changed = self.changed_limits(&request);
        let (level, limits) = match changed {
            Ok(changed) => changed,
            Err(error) => return answer(to, Err(error)),
        };
        if request.dry_run {
            return answer(to, Ok(self.quota_reply(&level, Some(limits))));
        }
        let being_set = |then: &Then| matches!(then, Then::QuotaSet(other, _) if *other == level);
        let mut under_way = self.commits.iter().map(|(_, then)| then);
        if under_way.any(being_set) || self.committing.as_ref().is_some_and(|(_, then)| being_set(then)) {
            let error = Error::unavailable(format!("the limits of {level} are being changed by somebody else"));
            return answer(to, Err(error.with_hint("Try again in a moment.")));
        }
        let id = match super::jobs::request_id(&request.request_id) {
            Ok(id) => id,
            Err(error) => return answer(to, Err(error)),
        };
        tracing::info!(%level, ?limits, "setting limits");
        let limits = (limits != QuotaLimits::default()).then_some(limits);
        let command = Command::SetQuota { request: Some(id), level: level.clone(), limits };
        self.commit(command, Then::QuotaSet(level, to));
    }

    pub(super) fn on_quota_set(&self, level: &QuotaLevel, reply: Reply, to: Answer<pb::SetQuotaReply>) {
        answer(to, reply.map(|_| self.quota_reply(level, None)));
    }

    /// What is set of a level after the change.
    fn changed_limits(&self, request: &pb::SetQuotaRequest) -> Result<(QuotaLevel, QuotaLimits)> {
        let level: QuotaLevel = request.level.parse()?;
        if request.remove {
            return Ok((level, QuotaLimits::default()));
        }
        let new: QuotaLimits = request.limits.map(Into::into).unwrap_or_default();
        let mut limits = new.or(self.state(|state| state.quotas.set.get(&level).copied().unwrap_or_default()));
        for name in &request.unset {
            let dimension = QuotaDimension::ALL.into_iter().find(|dimension| dimension.as_str() == name);
            match dimension.ok_or_else(|| Error::invalid(format!("{name:?} is not a dimension of quotas")))? {
                QuotaDimension::Savepoints => limits.savepoints = None,
                QuotaDimension::RetainedCheckpoints => limits.retained_checkpoints = None,
                QuotaDimension::Bytes => limits.bytes = None,
                QuotaDimension::InFlight => limits.in_flight = None,
                QuotaDimension::MinimumInterval => limits.minimum_interval_ms = None,
                QuotaDimension::Age => limits.age_ms = None,
            }
        }
        Ok((level, limits))
    }

    /// A level as it is, or as it would be with other limits, and what of it is exceeded.
    fn quota_reply(&self, level: &QuotaLevel, limits: Option<QuotaLimits>) -> pb::SetQuotaReply {
        self.state(|state| {
            let mut usage = state.usage(level);
            if let Some(limits) = limits {
                usage.set = limits;
                usage.limits = limits.or(state.quotas.defaults.of(level));
            }
            let exceeded = state.would_exceed(now(), level, Some(usage.set));
            let exceeded = exceeded.into_iter().map(|QuotaExceeded { level, dimension, limit, used, .. }| {
                pb::QuotaExcess { level: level.to_string(), dimension: dimension.as_str().to_owned(), limit, used }
            });
            pb::SetQuotaReply { quota: Some(quota(&usage, &[])), exceeded: exceeded.collect() }
        })
    }

    pub(super) fn quotas_view(&self, request: &pb::ListQuotasRequest) -> Result<pb::ListQuotasReply> {
        let level = request.level.as_deref().map(str::parse::<QuotaLevel>).transpose()?;
        let lies_in = |level: &QuotaLevel| {
            request.namespace.as_deref().is_none_or(|namespace| level.namespace() == Some(namespace))
        };
        Ok(self.state(|state| {
            let view = |level: &QuotaLevel| quota(&state.usage(level), &state.consumers(level, CONSUMERS_MAX));
            let quotas = match level {
                Some(level) => vec![view(&level)],
                None => state.quota_levels().iter().filter(|level| lies_in(level)).map(view).collect(),
            };
            pb::ListQuotasReply { quotas }
        }))
    }
}

fn quota(usage: &Usage, consumers: &[&SnapshotEntry]) -> pb::Quota {
    let consumer = |entry: &&SnapshotEntry| pb::QuotaConsumer {
        snapshot: entry.id.to_string(),
        savepoint: entry.kind == SnapshotKind::Savepoint,
        job_name: entry.job_name.clone(),
        owner: entry.owner.clone(),
        state: entry.state.to_string(),
        bytes: entry.charged_bytes,
    };
    let now = now();
    pb::Quota {
        level: usage.level.to_string(),
        limits: Some(usage.limits.into()),
        set: Some(usage.set.into()),
        savepoints: usage.savepoints,
        retained_checkpoints: usage.retained_checkpoints,
        bytes: usage.bytes,
        shared_bytes: usage.shared_bytes,
        checkpoint_reserve: usage.checkpoint_reserve,
        in_flight: usage.in_flight,
        queued: usage.queued,
        since_last_savepoint_ms: usage.used(QuotaDimension::MinimumInterval, now),
        oldest_savepoint_ms: usage.used(QuotaDimension::Age, now),
        consumers: consumers.iter().map(consumer).collect(),
    }
}
