//! Schemas of state tables: what an operator keeps, and what the files of a snapshot hold, so that the two can be compared
//! before anything is restored. Columns are matched by their ids, as restoring does.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use weir_types::Result;
use weir_types::graph::{
    AggregateFunction, AggregateSpec, GroupAggregateSpec, JobGraph, OperatorSpec, WindowAggregateSpec,
};
use weir_types::ids::OperatorUid;
use weir_types::restore::{StateColumn, StateTable};
use weir_types::snapshot::OperatorSnapshot;

use crate::columns::{self, Role, state_field};
use crate::file::HASH_COLUMN;
use crate::reader::FileReader;
use crate::store::SnapshotStore;

/// Filters over one DISTINCT column that share a table.
const FILTERS_PER_SET: usize = 64;

/// The state tables of every operator of a snapshot, from the headers of its files. `describe` names types.
///
/// # Errors
/// `NOT_FOUND` for a missing file, `CORRUPT` for a damaged header, by name and offset.
pub fn held_tables(
    store: &dyn SnapshotStore,
    operators: &[OperatorSnapshot],
    describe: &dyn Fn(&DataType) -> String,
) -> Result<BTreeMap<OperatorUid, Vec<StateTable>>> {
    let mut tables: BTreeMap<OperatorUid, Vec<StateTable>> = BTreeMap::new();
    for operator in operators {
        // Tombstones have keys only.
        for file in operator.files.iter().filter(|file| !file.deletes) {
            let known = tables.entry(operator.uid.clone()).or_default();
            if known.iter().any(|table| table.table == file.table) {
                continue;
            }
            let reader = FileReader::open(store, file)?;
            known.push(StateTable { table: file.table.clone(), columns: state_columns(reader.schema(), describe) });
        }
    }
    Ok(tables)
}

/// The state tables that every operator of a job keeps. `describe` names types.
pub fn kept_tables(graph: &JobGraph, describe: &dyn Fn(&DataType) -> String) -> BTreeMap<OperatorUid, Vec<StateTable>> {
    let mut tables = BTreeMap::new();
    for operator in &graph.operators {
        let (Some(uid), Some(input)) = (&operator.uid, graph.input_schema(operator.id)) else { continue };
        let kept = match &operator.spec {
            OperatorSpec::WindowAggregate(spec) => window_tables(spec, input, &operator.schema),
            OperatorSpec::GroupAggregate(spec) => group_tables(spec, input, &operator.schema),
            OperatorSpec::Source(_) | OperatorSpec::Calc(_) | OperatorSpec::Sink(_) => continue,
        };
        let kept = kept.into_iter();
        let kept = kept.map(|(table, schema)| StateTable { table, columns: state_columns(&schema, describe) });
        tables.insert(uid.clone(), kept.collect());
    }
    tables
}

/// The tables that a window aggregate from an input of this schema to such an output keeps. Columns are called as the
/// query does; where it has no name for one, it has none here.
pub fn window_tables(spec: &WindowAggregateSpec, input: &Schema, output: &Schema) -> Vec<(String, Schema)> {
    let instant = DataType::Timestamp(TimeUnit::Millisecond, None);
    let slice = state_field("slice_start", Role::MapKey, "", instant, false);
    let leading: Vec<Field> = [hash_field(), slice].into_iter().chain(key_fields(&spec.keys, input)).collect();
    let calls = aggregate_fields(&spec.aggregates, false, input, &output.fields()[spec.keys.len()..]);
    let groups = leading.iter().cloned().chain(calls).collect::<Vec<_>>();
    let mut tables = vec![("groups".to_owned(), Schema::new(groups))];
    for (index, (argument, _)) in value_sets(&spec.aggregates, false).into_iter().enumerate() {
        let own = distinct_fields(type_of(input, argument));
        let fields = leading.iter().cloned().chain(own).collect::<Vec<_>>();
        tables.push((format!("distinct{index}"), Schema::new(fields)));
    }
    tables
}

/// The tables that an updating aggregate from an input of this schema to such an output keeps, named as in
/// [`window_tables`].
pub fn group_tables(spec: &GroupAggregateSpec, input: &Schema, output: &Schema) -> Vec<(String, Schema)> {
    let GroupAggregateSpec { keys, aggregates, retracting, update_before: _ } = spec;
    let leading: Vec<Field> = std::iter::once(hash_field()).chain(key_fields(keys, input)).collect();
    let rows = retracting.then(|| state_field("rows", Role::Value, "row_count", DataType::Int64, false));
    let calls = aggregate_fields(aggregates, *retracting, input, &output.fields()[keys.len()..]);
    let groups = leading.iter().cloned().chain(rows).chain(calls).collect::<Vec<_>>();
    let mut tables = vec![("groups".to_owned(), Schema::new(groups))];
    for (index, (argument, filters)) in value_sets(aggregates, *retracting).into_iter().enumerate() {
        let kind = type_of(input, argument);
        let (name, own) = if *retracting {
            let value = state_field("value", Role::MapKey, "", kind, false);
            let count = |filter| state_field(&format!("count{filter}"), Role::Value, "", DataType::Int64, false);
            (format!("values{index}"), std::iter::once(value).chain((0..filters).map(count)).collect::<Vec<_>>())
        } else {
            (format!("distinct{index}"), distinct_fields(kind).into())
        };
        tables.push((name, Schema::new(leading.iter().cloned().chain(own).collect::<Vec<_>>())));
    }
    tables
}

fn type_of(input: &Schema, column: usize) -> DataType {
    input.fields().get(column).map_or(DataType::Null, |field| plain(field.data_type()))
}

fn hash_field() -> Field {
    Field::new(HASH_COLUMN, DataType::UInt64, false)
}

fn key_fields<'a>(keys: &'a [usize], input: &'a Schema) -> impl Iterator<Item = Field> + 'a {
    keys.iter().enumerate().map(|(index, &key)| {
        let name = input.fields().get(key).map_or("", |field| given(field.name()));
        state_field(&format!("key{index}"), Role::Key, name, type_of(input, key), true)
    })
}

/// The columns of all calls, which the query calls as `outputs` are called.
fn aggregate_fields(calls: &[AggregateSpec], retracting: bool, input: &Schema, outputs: &[FieldRef]) -> Vec<Field> {
    let mut fields = Vec::new();
    for (index, call) in calls.iter().enumerate() {
        let name = outputs.get(index).map_or("", |field| given(field.name()));
        let argument = call.argument.map_or(DataType::Null, |argument| type_of(input, argument));
        let columns = call_columns(call.function, argument, retracting).into_iter();
        fields.extend(columns.map(|(part, suffix, data_type)| {
            let name = if name.is_empty() { String::new() } else { format!("{name}{suffix}") };
            state_field(&format!("agg{index}.{part}"), Role::Value, &name, data_type, true)
        }));
    }
    fields
}

fn distinct_fields(value: DataType) -> [Field; 2] {
    [
        state_field("value", Role::MapKey, "", value, false),
        state_field("seen", Role::Value, "", DataType::UInt64, false),
    ]
}

/// A name that comes from the query: the planner's own hold a `$`.
fn given(name: &str) -> &str {
    if name.contains('$') { "" } else { name }
}

/// The columns that hold one call's state: what each is, what its name ends in, and its type.
fn call_columns(
    function: AggregateFunction,
    argument: DataType,
    retracting: bool,
) -> Vec<(&'static str, &'static str, DataType)> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    let float = matches!(argument, DataType::Float32 | DataType::Float64);
    let text = matches!(argument, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let decimal = matches!(argument, DataType::Decimal128(..));
    let sum = match argument {
        DataType::Decimal128(_, scale) => DataType::Decimal128(38, scale),
        _ if float => DataType::Float64,
        _ => DataType::Int64,
    };
    match function {
        Count => vec![("count", "", DataType::Int64)],
        Avg => vec![("sum", "_sum", sum), ("count", "_count", DataType::Int64)],
        // A sum from which values are taken has to know when none is left.
        Sum if retracting => vec![("sum", "_sum", sum), ("count", "_count", DataType::Int64)],
        Sum if decimal => vec![("value", "", sum), ("overflow", "_overflow", DataType::Boolean)],
        Sum => vec![("value", "", sum)],
        Min | Max if float => vec![("value", "", DataType::Float64)],
        Min | Max if text => vec![("value", "", DataType::Utf8)],
        Min | Max => vec![("value", "", argument)],
    }
}

/// The argument of each table of values, and under how many filters it tells them apart. Repeated values change neither a
/// minimum nor a maximum, unless values are retracted.
fn value_sets(calls: &[AggregateSpec], retracting: bool) -> Vec<(usize, usize)> {
    let mut sets: Vec<(usize, Vec<Option<usize>>)> = Vec::new();
    for call in calls {
        let extreme = matches!(call.function, AggregateFunction::Min | AggregateFunction::Max);
        let of_set = if extreme { retracting } else { call.distinct };
        let Some(argument) = call.argument.filter(|_| of_set) else { continue };
        let has_room = |(of, filters): &&mut (usize, Vec<Option<usize>>)| {
            *of == argument && (filters.contains(&call.filter) || filters.len() < FILTERS_PER_SET)
        };
        match sets.iter_mut().find(has_room) {
            Some((_, filters)) if filters.contains(&call.filter) => {}
            Some((_, filters)) => filters.push(call.filter),
            None => sets.push((argument, vec![call.filter])),
        }
    }
    sets.into_iter().map(|(argument, filters)| (argument, filters.len())).collect()
}

/// The columns of a table but for the hash of its key.
fn state_columns(schema: &Schema, describe: &dyn Fn(&DataType) -> String) -> Vec<StateColumn> {
    let mut keys = 0;
    let fields = schema.fields().iter().filter(|field| field.name() != HASH_COLUMN);
    fields
        .map(|field| {
            // Snapshots without column ids call key columns `key.<name>`, and the others by their ids.
            let old_key = field.name().strip_prefix("key.").filter(|_| columns::role(field).is_none());
            let (id, name) = match old_key {
                Some(name) => (format!("key{keys}"), name),
                None => (columns::id(field).to_owned(), field.name().as_str()),
            };
            keys += usize::from(old_key.is_some());
            StateColumn { id, name: name.to_owned(), data_type: describe(field.data_type()) }
        })
        .collect()
}

/// The type without a dictionary.
fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        other => other.clone(),
    }
}
