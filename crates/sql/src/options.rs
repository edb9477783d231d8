//! `SET 'key' = 'value'`: Flink's keys as options of the job.

mod restart;

use std::collections::BTreeMap;

use weir_types::graph::{CHECKPOINTS_RETAINED_MAX, JobOptions};
use weir_types::ids::Parallelism;
use weir_types::options::parse_duration_ms;
use weir_types::restore::ClaimMode;
use weir_types::{Error, Result};

use crate::error::nearest;

/// Settings in force, and what there is to say about them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) options: JobOptions,
    pub(crate) name: Option<String>,
    pub(crate) warnings: Vec<String>,
    /// Whose a snapshot is from which the job is restored.
    pub(crate) claim_mode: ClaimMode,
    restart: restart::Restart,
}

/// A key, what it takes, and what it does.
type Key = (&'static str, &'static str, Apply);
type Apply = fn(&mut Settings, &str) -> Option<()>;

/// All keys but those of restart strategies.
const KEYS: &[Key] = &[
    ("parallelism.default", "a number from 1", |settings, value| {
        settings.options.parallelism = Parallelism::new(value.parse().ok()?).ok()?;
        Some(())
    }),
    ("table.exec.resource.default-parallelism", "a number from 1", |settings, value| {
        settings.options.parallelism = Parallelism::new(value.parse().ok()?).ok()?;
        Some(())
    }),
    ("parallelism.min", "a number from 1", |settings, value| {
        settings.options.parallelism_min = Some(Parallelism::new(value.parse().ok()?).ok()?);
        Some(())
    }),
    ("pipeline.name", "a text", |settings, value| {
        settings.name = Some(value.to_owned());
        Some(())
    }),
    ("execution.checkpointing.interval", "a duration such as '10 s', or '0' for none", |settings, value| {
        let interval = parse_duration_ms(value)?;
        settings.options.checkpoint_interval_ms = (interval > 0).then_some(interval);
        Some(())
    }),
    ("execution.checkpointing.timeout", "a duration such as '10 min'", |settings, value| {
        settings.options.checkpoint_timeout_ms = positive(parse_duration_ms(value)?)?;
        Some(())
    }),
    ("execution.checkpointing.min-pause", "a duration such as '1 s'", |settings, value| {
        settings.options.checkpoint_min_pause_ms = parse_duration_ms(value)?;
        Some(())
    }),
    ("execution.checkpointing.num-retained", RETAINED, retained),
    ("state.checkpoints.num-retained", RETAINED, retained),
    ("execution.checkpointing.tolerable-failed-checkpoints", "a number", |settings, value| {
        settings.options.checkpoint_failures_tolerated = Some(value.parse().ok()?);
        Some(())
    }),
    ("execution.checkpointing.incremental", "'true' or 'false'", incremental),
    ("state.backend.incremental", "'true' or 'false'", incremental),
    ("execution.checkpointing.mode", "'EXACTLY_ONCE'", |_, value| {
        ["EXACTLY_ONCE", "EXACTLY-ONCE"].contains(&value.to_uppercase().as_str()).then_some(())
    }),
    ("execution.buffer-timeout", "a duration such as '10 ms'", |settings, value| {
        settings.options.buffer_timeout_ms = parse_duration_ms(value)?;
        Some(())
    }),
    ("execution.buffer-timeout.interval", "a duration such as '10 ms'", |settings, value| {
        settings.options.buffer_timeout_ms = parse_duration_ms(value)?;
        Some(())
    }),
    ("table.local-time-zone", "an IANA name such as 'Europe/Berlin'", |settings, value| {
        let zone = if value == "default" { "UTC" } else { value };
        settings.options.local_time_zone = weir_functions::time::zone(zone)?.name().to_owned();
        Some(())
    }),
    ("table.exec.source.idle-timeout", "a duration such as '5 s', or '0' for never", |settings, value| {
        settings.options.source_idle_timeout_ms = parse_duration_ms(value)?;
        Some(())
    }),
    ("execution.state-recovery.claim-mode", CLAIM_MODES, claim_mode),
    ("execution.savepoint-restore-mode", CLAIM_MODES, claim_mode),
    ("execution.runtime-mode", "'streaming'", |_, value| value.eq_ignore_ascii_case("streaming").then_some(())),
    ("sql-client.execution.result-mode", "a text", |_, _| Some(())),
];

/// Keys that say how Flink does things that Weir does in its own way.
const IGNORED: &[&str] = &[
    "table.exec.mini-batch.",
    "table.optimizer.",
    "table.exec.state.ttl",
    "table.exec.sink.",
    "table.exec.async-",
    "table.dml-sync",
    "table.dynamic-table-options.enabled",
    "pipeline.object-reuse",
    "pipeline.operator-chaining",
    "pipeline.auto-watermark-interval",
    "pipeline.max-parallelism",
    "state.backend",
    "state.checkpoints.dir",
    "state.savepoints.dir",
    "execution.checkpointing.unaligned",
    "execution.checkpointing.externalized-checkpoint-retention",
    "execution.checkpointing.max-concurrent-checkpoints",
    "execution.checkpointing.incremental",
    "execution.attached",
    "execution.target",
    "taskmanager.",
    "jobmanager.",
    "rest.",
    "sql-client.",
];

fn positive(value: u64) -> Option<u64> {
    (value > 0).then_some(value)
}

fn incremental(settings: &mut Settings, value: &str) -> Option<()> {
    settings.options.checkpoints_incremental = value.to_lowercase().parse().ok()?;
    Some(())
}

const RETAINED: &str = "a number from 1 to 1000";

fn retained(settings: &mut Settings, value: &str) -> Option<()> {
    let retained = value.parse().ok().filter(|retained| (1..=CHECKPOINTS_RETAINED_MAX).contains(retained))?;
    settings.options.checkpoints_retained = retained;
    Some(())
}

const CLAIM_MODES: &str = "'NO_CLAIM' or 'CLAIM'";

fn claim_mode(settings: &mut Settings, value: &str) -> Option<()> {
    settings.claim_mode = ClaimMode::parse(value)?;
    Some(())
}

impl Settings {
    /// The settings that these keys and values make.
    pub(crate) fn of<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Result<Self> {
        let mut settings = Self::default();
        let mut seen = BTreeMap::new();
        for (key, value) in pairs {
            seen.insert(key, value);
        }
        for (key, value) in seen {
            settings.apply(key, value)?;
        }
        settings.options.restart = settings.restart.strategy(&mut settings.warnings)?;
        let most = settings.options.parallelism;
        if let Some(least) = settings.options.parallelism_min.filter(|least| *least > most) {
            let message = format!("the job is to have at least {least} subtasks, but its parallelism is {most}");
            return Err(Error::invalid(message).with_hint("Raise 'parallelism.default', or lower 'parallelism.min'."));
        }
        Ok(settings)
    }

    fn apply(&mut self, key: &str, value: &str) -> Result<()> {
        let keys = || KEYS.iter().chain(restart::KEYS);
        if let Some((_, takes, apply)) = keys().find(|(known, ..)| *known == key) {
            return apply(self, value.trim()).ok_or_else(|| {
                Error::invalid(format!("option '{key}' does not take the value '{value}'"))
                    .with_hint(format!("It takes {takes}."))
            });
        }
        if IGNORED.iter().any(|ignored| key == *ignored || key.starts_with(ignored)) {
            self.warnings.push(format!("option '{key}' has no effect in Weir and is ignored"));
            return Ok(());
        }
        let error = Error::invalid(format!("unknown option '{key}'"));
        Err(match nearest(key, keys().map(|(known, ..)| *known)) {
            Some(near) => error.with_hint(format!("Did you mean '{near}'?")),
            None => error.with_hint("docs/sql.md lists the options."),
        })
    }
}
