//! The Nexmark generator source.
//!
//! Event i is a pure function of (seed, i): any split, any batch cut and any restart position gives the same events. What
//! a scan does not read is not made: neither columns, nor nested fields, nor events of kinds that a pushed filter leaves
//! out; positions and event time advance over them all the same.

mod columns;
mod config;
mod fields;
mod pools;
mod random;
mod sequence;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, BooleanArray, RecordBatch, StructArray};
use arrow_schema::{DataType, Field as ArrowField, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use tokio::time::Instant;
use weir_dataflow::source::{Source, SourceContext, SourceEvent};
use weir_types::splits::NexmarkSplit;
use weir_types::{Error, Result};

use self::columns::Scan;
use self::config::Config;
use self::fields::{Field, Generator};
use self::sequence::{Kind, Kinds, Runs};

/// The standard schema: `event_type` and one nested row per kind of event.
pub fn schema() -> SchemaRef {
    let event = |name: &str, kind| {
        let fields: Fields =
            Field::of(kind).iter().map(|(name, field)| ArrowField::new(*name, field.data_type(), true)).collect();
        ArrowField::new(name, DataType::Struct(fields), true)
    };
    Arc::new(Schema::new(vec![
        ArrowField::new("event_type", DataType::Int32, true),
        event("person", Kind::Person),
        event("auction", Kind::Auction),
        event("bid", Kind::Bid),
    ]))
}

struct Split {
    share: NexmarkSplit,
    position: u64,
    /// Exclusive; `u64::MAX` if there is none.
    end: u64,
    reported: bool,
}

/// Makes the events of its splits.
pub(crate) struct NexmarkSource {
    generator: Generator,
    scan: Scan,
    /// With `push-down` = `false`: what `scan` is cut out of once everything was made.
    full: Option<Scan>,
    scan_schema: SchemaRef,
    splits: Vec<Split>,
    batch_rows: usize,
    runs: Runs,
    pace: Option<Pace>,
    io: tokio::runtime::Handle,
}

impl NexmarkSource {
    pub(crate) fn new(context: SourceContext) -> Result<Self> {
        let SourceContext { spec, splits, batch_rows, io, .. } = context;
        let config = Config::new(&spec.connector)?;
        let events = spec.connector.integer("events.num", 0)?;
        let split = |position: &weir_types::snapshot::SplitPosition| {
            let share = NexmarkSplit::parse(&position.split)?;
            let events_end = if events > 0 { share.events_before(events) } else { u64::MAX };
            let end = if position.finished { position.offset } else { position.end.unwrap_or(events_end) };
            Ok(Split { share, position: position.offset, end, reported: false })
        };
        let splits = splits.iter().map(split).collect::<Result<Vec<_>>>()?;
        if batch_rows == 0 {
            return Err(Error::internal("a source was built for batches of no rows"));
        }
        let scan = Scan::new(Arc::clone(&spec.scan_schema), &spec.pushed_filters, batch_rows)?;
        let is_full = spec.scan_schema.fields() == schema().fields() && scan.kinds == Kinds::ALL;
        let full = if config.push_down || is_full { None } else { Some(Scan::new(schema(), &[], batch_rows)?) };
        Ok(Self {
            scan,
            pace: config.emit_rate.map(|rate| Pace::new(rate, &splits)),
            generator: Generator::new(config),
            full,
            scan_schema: spec.scan_schema,
            splits,
            batch_rows,
            runs: Runs::default(),
            io,
        })
    }

    /// The unfinished split that is furthest behind, so that event time advances evenly.
    fn next_split(&self) -> Option<usize> {
        let unfinished = self.splits.iter().enumerate().filter(|(_, split)| split.position < split.end);
        unfinished.min_by_key(|(_, split)| split.position).map(|(index, _)| index)
    }

    fn finished_split(&mut self) -> Option<usize> {
        let index = self.splits.iter().position(|split| !split.reported && split.position >= split.end)?;
        self.splits[index].reported = true;
        Some(index)
    }

    /// The next batch of a split, of events before its position `limit`.
    fn generate(&mut self, index: usize, limit: u64) -> Result<SourceEvent> {
        let Split { share, position, .. } = self.splits[index];
        let kinds = if self.full.is_some() { Kinds::ALL } else { self.scan.kinds };
        let epochs = self.generator.config.epochs;
        let next = epochs.select(share, kinds, position, limit, self.batch_rows, &mut self.runs);
        let rows = match &self.full {
            None => self.scan.batch(&self.generator, &self.runs)?,
            Some(full) => self.cut(&full.batch(&self.generator, &self.runs)?)?,
        };
        self.splits[index].position = next;
        let event_time_max_ms = next.checked_sub(1).map(|last| self.generator.config.time_ms(share.event_number(last)));
        Ok(SourceEvent::Rows { split: index, rows, next_offset: next, event_time_max_ms })
    }

    /// Filters and projects a batch of all events with all columns.
    fn cut(&self, full: &RecordBatch) -> Result<RecordBatch> {
        let arrow = |error: arrow_schema::ArrowError| Error::internal(error.to_string());
        let wanted = |run: &sequence::Run| std::iter::repeat_n(self.scan.kinds.has(run.kind), run.count as usize);
        let mask = BooleanArray::from(self.runs.runs.iter().flat_map(wanted).collect::<Vec<_>>());
        let rows = arrow::compute::filter_record_batch(full, &mask).map_err(arrow)?;
        let missing = |name: &str| Error::internal(format!("nexmark has no column {name}"));
        let column = |field: &arrow_schema::FieldRef| {
            let column = rows.column_by_name(field.name()).ok_or_else(|| missing(field.name()))?;
            match (field.data_type(), column.as_any().downcast_ref::<StructArray>()) {
                (DataType::Struct(fields), Some(events)) => {
                    let child = |nested: &arrow_schema::FieldRef| {
                        events.column_by_name(nested.name()).cloned().ok_or_else(|| missing(nested.name()))
                    };
                    let children = fields.iter().map(child).collect::<Result<_>>()?;
                    let nulls = events.nulls().filter(|nulls| nulls.null_count() > 0).cloned();
                    let cut = StructArray::try_new_with_length(fields.clone(), children, nulls, events.len());
                    Ok(Arc::new(cut.map_err(arrow)?) as _)
                }
                _ => Ok(Arc::clone(column)),
            }
        };
        let columns = self.scan_schema.fields().iter().map(column).collect::<Result<_>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.scan_schema), columns, &options).map_err(arrow)
    }
}

#[async_trait(?Send)]
impl Source for NexmarkSource {
    async fn next(&mut self) -> Result<SourceEvent> {
        if let Some(split) = self.finished_split() {
            return Ok(SourceEvent::SplitFinished { split });
        }
        let Some(index) = self.next_split() else { return Ok(SourceEvent::End) };
        let mut limit = self.splits[index].end;
        if let Some(pace) = &mut self.pace {
            limit = limit.min(pace.allowed(&self.io, index, &self.splits[index]).await);
        }
        self.generate(index, limit)
    }
}

/// Holds the events of every split to its share of `emit.rate`.
struct Pace {
    rate: u64,
    /// When this attempt began to emit, and each split's position then.
    started: Option<Instant>,
    positions: Vec<u64>,
}

/// Events are released in portions of about this time.
const PACE_STEP: Duration = Duration::from_millis(10);

impl Pace {
    fn new(rate: u64, splits: &[Split]) -> Self {
        Self { rate, started: None, positions: splits.iter().map(|split| split.position).collect() }
    }

    /// Waits until the split may go on; returns the position it may go to.
    async fn allowed(&mut self, io: &tokio::runtime::Handle, index: usize, split: &Split) -> u64 {
        let started = *self.started.get_or_insert_with(Instant::now);
        let done = split.position - self.positions[index];
        // The split's share of the rate is rate / count; times and counts as whole nanoseconds and events.
        let events_at = |elapsed: Duration| {
            let events = elapsed.as_nanos() * u128::from(self.rate) / u128::from(split.share.count) / 1_000_000_000;
            u64::try_from(events).unwrap_or(u64::MAX)
        };
        let mut elapsed = started.elapsed();
        if events_at(elapsed) <= done {
            let one_more = u128::from(done + 1) * u128::from(split.share.count) * 1_000_000_000;
            let due = u64::try_from(one_more.div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX);
            let due = Duration::from_nanos(due).max(elapsed + PACE_STEP);
            let sleep = {
                let _guard = io.enter();
                tokio::time::sleep_until(started + due)
            };
            sleep.await;
            elapsed = started.elapsed();
        }
        self.positions[index].saturating_add(events_at(elapsed).max(done + 1)).min(split.end)
    }
}
