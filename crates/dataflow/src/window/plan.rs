//! A window aggregate's specification, checked against its schemas and resolved to accumulators.

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use weir_state::columns::{Role, SPAN_MS, state_field};
use weir_state::merge::SEGMENT;
use weir_state::values::Form;
use weir_types::graph::{AggregateFunction, AggregateSpec, WindowAggregateSpec, WindowColumn, WindowSpec};
use weir_types::{Code, Error, Result};

use super::accumulator::{Fold, Kind};
use super::names::{self, Names, is_given};
use super::time::Timeline;

/// Filters over one DISTINCT column share a bit mask of this many bits.
const MASK_BITS: usize = 64;

/// One aggregate call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) fold: Fold,
    pub(super) kind: Kind,
    /// Index into [`Plan::arguments`].
    pub(super) argument: Option<usize>,
    /// Index into [`Plan::filters`].
    pub(super) filter: Option<usize>,
    /// Whether a [`DistinctSet`] feeds it.
    pub(super) distinct: bool,
    pub(super) argument_type: Option<DataType>,
    pub(super) output_type: DataType,
    /// What its state is called in snapshots.
    pub(super) state_name: String,
}

/// The values of one column, seen under several filters by several calls.
#[derive(Debug)]
pub(super) struct DistinctSet {
    /// Index into [`Plan::arguments`].
    pub(super) argument: usize,
    pub(super) value_type: DataType,
    /// For each bit of the mask, the filter that it stands for …
    pub(super) filters: Vec<Option<usize>>,
    /// … and the calls that it feeds.
    pub(super) calls: Vec<Vec<usize>>,
    /// What the values are called in snapshots.
    pub(super) state_name: String,
}

/// What a window aggregate needs to know about its columns.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) time_column: usize,
    pub(super) time_name: String,
    pub(super) keys: Vec<usize>,
    pub(super) key_fields: Vec<Field>,
    pub(super) key_forms: Vec<Form>,
    /// What the keys are called in snapshots.
    pub(super) key_names: Vec<String>,
    pub(super) calls: Vec<Call>,
    /// Input columns that calls aggregate.
    pub(super) arguments: Vec<usize>,
    /// Input columns that calls filter by.
    pub(super) filters: Vec<usize>,
    pub(super) distincts: Vec<DistinctSet>,
    pub(super) window_columns: Vec<WindowColumn>,
    /// The column of slices in snapshots.
    pub(super) slice_field: Field,
}

impl Plan {
    pub(super) fn new(spec: &WindowAggregateSpec, input: &Schema, output: &Schema) -> Result<Self> {
        let columns = spec.keys.len() + spec.aggregates.len() + spec.window_columns.len();
        if output.fields().len() != columns {
            let found = output.fields().len();
            return Err(Error::invalid(format!("a window aggregate has {columns} columns, not {found}")));
        }
        let time = field(input, spec.time_column)?;
        if !matches!(time.data_type(), DataType::Timestamp(_, _)) {
            let (name, found) = (time.name(), time.data_type());
            return Err(Error::invalid(format!("event time column \"{name}\" is of type {found}, not a timestamp")));
        }
        let mut plan = Self {
            time_column: spec.time_column,
            time_name: time.name().clone(),
            keys: spec.keys.clone(),
            key_fields: Vec::new(),
            key_forms: Vec::new(),
            key_names: Vec::new(),
            calls: Vec::new(),
            arguments: Vec::new(),
            filters: Vec::new(),
            distincts: Vec::new(),
            window_columns: spec.window_columns.clone(),
            slice_field: slice_field(&spec.window)?,
        };
        let mut names = Names::new();
        for (&key, out) in spec.keys.iter().zip(output.fields()) {
            let key = field(input, key)?;
            plan.key_names.push(names.unique(key.name()));
            check_output(out, plain(key.data_type()), key.is_nullable())?;
            plan.key_forms.push(Form::of_key(key.data_type())?);
            plan.key_fields.push(key.clone().with_data_type(plain(key.data_type()).clone()));
        }
        for (aggregate, out) in spec.aggregates.iter().zip(&output.fields()[spec.keys.len()..]) {
            plan.add_call(aggregate, input, out, &mut names)?;
        }
        for out in &output.fields()[spec.keys.len() + spec.aggregates.len()..] {
            if !matches!(out.data_type(), DataType::Timestamp(_, _)) {
                let (name, found) = (out.name(), out.data_type());
                return Err(Error::invalid(format!("window column \"{name}\" is of type {found}, not a timestamp")));
            }
        }
        Ok(plan)
    }

    fn add_call(&mut self, spec: &AggregateSpec, input: &Schema, out: &Field, names: &mut Names) -> Result<()> {
        let argument = spec.argument.map(|argument| field(input, argument)).transpose()?;
        let argument_type = argument.map(|argument| plain(argument.data_type()).clone());
        let (kind, result) = resolve(spec.function, argument_type.as_ref())?;
        let nullable = argument.is_some_and(Field::is_nullable) || spec.filter.is_some();
        check_output(out, &result, nullable && spec.function != AggregateFunction::Count)?;
        if let Some(filter) = spec.filter {
            let filter = field(input, filter)?;
            if *filter.data_type() != DataType::Boolean {
                let (name, found) = (filter.name(), filter.data_type());
                return Err(Error::invalid(format!("filter column \"{name}\" is of type {found}, not BOOLEAN")));
            }
        }
        let state_name = names.of_call(spec, out.name(), input);
        let argument_name = argument.map_or("", |argument| argument.name().as_str());
        let argument = spec.argument.map(|column| position(&mut self.arguments, column));
        let filter = spec.filter.map(|column| position(&mut self.filters, column));
        // Repeated values change neither a minimum nor a maximum.
        let distinct = spec.distinct && !matches!(spec.function, AggregateFunction::Min | AggregateFunction::Max);
        if distinct {
            let (Some(argument), Some(value_type)) = (argument, &argument_type) else {
                return Err(Error::invalid("DISTINCT needs an argument"));
            };
            self.add_distinct((argument, argument_name), value_type, filter)?;
        }
        let single_precision = argument_type == Some(DataType::Float32);
        let fold = Fold { function: spec.function, single_precision };
        let output_type = out.data_type().clone();
        self.calls.push(Call { fold, kind, argument, filter, distinct, argument_type, output_type, state_name });
        Ok(())
    }

    /// Lets the call that is about to be added draw on a set of distinct values.
    fn add_distinct(
        &mut self,
        (argument, name): (usize, &str),
        value_type: &DataType,
        filter: Option<usize>,
    ) -> Result<()> {
        Form::of_key(value_type)?;
        let call = self.calls.len();
        let usable = |set: &DistinctSet| {
            set.argument == argument && (set.filters.contains(&filter) || set.filters.len() < MASK_BITS)
        };
        let set = match self.distincts.iter().position(usable) {
            Some(set) => set,
            None => {
                let mut names = Names::new();
                self.key_names.iter().for_each(|key| drop(names.unique(key)));
                self.distincts.push(DistinctSet {
                    argument,
                    value_type: value_type.clone(),
                    filters: Vec::new(),
                    calls: Vec::new(),
                    state_name: names.unique(if is_given(name) { name } else { "value" }),
                });
                self.distincts.len() - 1
            }
        };
        let set = &mut self.distincts[set];
        let bit = position(&mut set.filters, filter);
        set.calls.resize(set.filters.len(), Vec::new());
        set.calls[bit].push(call);
        Ok(())
    }
}

/// The column of slices: an instant, and how long the slice is that starts there.
fn slice_field(window: &WindowSpec) -> Result<Field> {
    let span = Timeline::new(window)?.slice_size();
    let data_type = DataType::Timestamp(TimeUnit::Millisecond, None);
    let mut field = state_field("slice_start", Role::MapKey, names::slice_start(window), data_type, false);
    field.metadata_mut().insert(SPAN_MS.to_owned(), span.to_string());
    field.metadata_mut().insert(SEGMENT.to_owned(), "true".to_owned());
    Ok(field)
}

/// The accumulator and the result type of a function, as in Flink.
fn resolve(function: AggregateFunction, argument: Option<&DataType>) -> Result<(Kind, DataType)> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    use DataType::{Decimal128, Float32, Float64, Int8, Int16, Int32, Int64};
    if function == Count {
        return Ok((Kind::Count, Int64));
    }
    let Some(argument) = argument else {
        return Err(Error::invalid(format!("{function:?} needs an argument")));
    };
    let form = Form::of(argument)?;
    let number = matches!(argument, Int8 | Int16 | Int32 | Int64 | Float32 | Float64 | Decimal128(_, _));
    let unsigned = argument.is_unsigned_integer();
    let binary = form == Form::Bytes && !is_text(argument);
    match (function, argument) {
        (Sum, Decimal128(_, scale)) => Ok((Kind::Value(form), Decimal128(38, *scale))),
        (Avg, Decimal128(_, scale)) => Ok((Kind::Mean(form), Decimal128(38, (*scale).max(6)))),
        (Sum, _) if number => Ok((Kind::Value(form), argument.clone())),
        (Avg, _) if number => Ok((Kind::Mean(form), argument.clone())),
        (Min | Max, _) if !unsigned && !binary && *argument != DataType::Null => {
            Ok((Kind::Value(form), argument.clone()))
        }
        _ => Err(Error::new(Code::Unsupported, format!("{function:?} over {argument} is not supported"))
            .with_hint("Cast the argument to a number, a string, a date or a timestamp.")),
    }
}

/// The type without a dictionary.
fn plain(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether a result fits the column that was planned for it. Strings may change their layout.
fn check_output(out: &Field, result: &DataType, nullable: bool) -> Result<()> {
    let fits = out.data_type() == result || (is_text(out.data_type()) && is_text(result));
    if !fits {
        let (name, found) = (out.name(), out.data_type());
        return Err(Error::invalid(format!("column \"{name}\" is planned as {found}, its values are {result}")));
    }
    if nullable && !out.is_nullable() {
        return Err(Error::invalid(format!(
            "column \"{}\" is planned as NOT NULL, its values may be null",
            out.name()
        )));
    }
    Ok(())
}

fn field(schema: &Schema, column: usize) -> Result<&Field> {
    match schema.fields().get(column) {
        Some(field) => Ok(field),
        None => Err(Error::invalid(format!("the input has no column {column}"))),
    }
}

fn position<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|other| *other == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}
