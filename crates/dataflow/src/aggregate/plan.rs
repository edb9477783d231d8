//! Keys and aggregate calls, checked against their schemas and resolved to accumulators.

use arrow::datatypes::{DataType, Field, Schema};
use weir_state::values::Form;
use weir_types::graph::{AggregateFunction, AggregateSpec};
use weir_types::{Code, Error, Result};

use super::accumulator::{Fold, Kind};
use super::names::{Names, is_given};

/// Filters over one DISTINCT column share a bit mask of this many bits.
const MASK_BITS: usize = 64;

/// One aggregate call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) fold: Fold,
    pub(crate) kind: Kind,
    /// Index into [`Plan::arguments`].
    pub(crate) argument: Option<usize>,
    /// Index into [`Plan::filters`].
    pub(crate) filter: Option<usize>,
    /// Whether a [`ValueSet`] feeds it.
    pub(crate) of_set: bool,
    pub(crate) argument_type: Option<DataType>,
    pub(crate) output_type: DataType,
    /// What its state is called in snapshots.
    pub(crate) state_name: String,
}

/// The values of one column, seen under several filters by several calls: of those with DISTINCT, and where rows are
/// retracted, of MIN and MAX.
#[derive(Debug)]
pub(crate) struct ValueSet {
    /// Index into [`Plan::arguments`].
    pub(crate) argument: usize,
    pub(crate) value_type: DataType,
    /// For each bit of the mask, the filter that it stands for …
    pub(crate) filters: Vec<Option<usize>>,
    /// … and the calls that it feeds.
    pub(crate) calls: Vec<Vec<usize>>,
    /// What the values are called in snapshots.
    pub(crate) state_name: String,
}

/// Columns that keys and calls are made of, by an index of their own.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) keys: Vec<usize>,
    pub(crate) key_fields: Vec<Field>,
    pub(crate) key_forms: Vec<Form>,
    /// What the keys are called in snapshots.
    pub(crate) key_names: Vec<String>,
    pub(crate) calls: Vec<Call>,
    /// Input columns that calls aggregate.
    pub(crate) arguments: Vec<usize>,
    /// Input columns that calls filter by.
    pub(crate) filters: Vec<usize>,
    pub(crate) sets: Vec<ValueSet>,
    /// Whether rows may be taken out again.
    pub(crate) retracting: bool,
}

impl Plan {
    /// `output` begins with the keys and goes on with the calls.
    pub(crate) fn new(
        keys: &[usize],
        aggregates: &[AggregateSpec],
        retracting: bool,
        input: &Schema,
        output: &Schema,
    ) -> Result<Self> {
        let mut plan = Self {
            keys: keys.to_vec(),
            key_fields: Vec::new(),
            key_forms: Vec::new(),
            key_names: Vec::new(),
            calls: Vec::new(),
            arguments: Vec::new(),
            filters: Vec::new(),
            sets: Vec::new(),
            retracting,
        };
        let mut names = Names::new();
        for (&key, out) in keys.iter().zip(output.fields()) {
            let key = field(input, key)?;
            plan.key_names.push(names.unique(key.name()));
            check_output(out, plain(key.data_type()), key.is_nullable())?;
            plan.key_forms.push(Form::of_key(key.data_type())?);
            plan.key_fields.push(key.clone().with_data_type(plain(key.data_type()).clone()));
        }
        for (aggregate, out) in aggregates.iter().zip(output.fields().iter().skip(keys.len())) {
            plan.add_call(aggregate, input, out, &mut names)?;
        }
        Ok(plan)
    }

    fn add_call(&mut self, spec: &AggregateSpec, input: &Schema, out: &Field, names: &mut Names) -> Result<()> {
        let argument = spec.argument.map(|argument| field(input, argument)).transpose()?;
        let argument_type = argument.map(|argument| plain(argument.data_type()).clone());
        let (kind, result) = resolve(spec.function, argument_type.as_ref(), self.retracting)?;
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
        // Repeated values change neither a minimum nor a maximum; a retracted one has to be told from its likes.
        let extreme = matches!(spec.function, AggregateFunction::Min | AggregateFunction::Max);
        let of_set = if extreme { self.retracting } else { spec.distinct };
        if of_set {
            let (Some(argument), Some(value_type)) = (argument, &argument_type) else {
                return Err(Error::invalid("DISTINCT needs an argument"));
            };
            self.add_to_set((argument, argument_name), value_type, filter)?;
        }
        let single_precision = argument_type == Some(DataType::Float32);
        let fold = Fold { function: spec.function, single_precision };
        let output_type = out.data_type().clone();
        self.calls.push(Call { fold, kind, argument, filter, of_set, argument_type, output_type, state_name });
        Ok(())
    }

    /// Lets the call that is about to be added draw on a set of distinct values.
    fn add_to_set(
        &mut self,
        (argument, name): (usize, &str),
        value_type: &DataType,
        filter: Option<usize>,
    ) -> Result<()> {
        Form::of_key(value_type)?;
        let call = self.calls.len();
        let usable = |set: &ValueSet| {
            set.argument == argument && (set.filters.contains(&filter) || set.filters.len() < MASK_BITS)
        };
        let set = match self.sets.iter().position(usable) {
            Some(set) => set,
            None => {
                let mut names = Names::new();
                self.key_names.iter().for_each(|key| drop(names.unique(key)));
                self.sets.push(ValueSet {
                    argument,
                    value_type: value_type.clone(),
                    filters: Vec::new(),
                    calls: Vec::new(),
                    state_name: names.unique(if is_given(name) { name } else { "value" }),
                });
                self.sets.len() - 1
            }
        };
        let set = &mut self.sets[set];
        let bit = position(&mut set.filters, filter);
        set.calls.resize(set.filters.len(), Vec::new());
        set.calls[bit].push(call);
        Ok(())
    }
}

/// The accumulator and the result type of a function, as in Flink. A sum from which rows are retracted has to know when
/// none is left.
fn resolve(function: AggregateFunction, argument: Option<&DataType>, retracting: bool) -> Result<(Kind, DataType)> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    use DataType::{Decimal128, Float32, Float64, Int8, Int16, Int32, Int64};
    if function == Count {
        return Ok((Kind::Count, Int64));
    }
    let Some(argument) = argument else {
        return Err(Error::invalid(format!("{function:?} needs an argument")));
    };
    let form = Form::of(argument)?;
    let summed = if retracting { Kind::Mean(form) } else { Kind::Value(form) };
    let number = matches!(argument, Int8 | Int16 | Int32 | Int64 | Float32 | Float64 | Decimal128(_, _));
    let unsigned = argument.is_unsigned_integer();
    let binary = form == Form::Bytes && !is_text(argument);
    match (function, argument) {
        (Sum, Decimal128(_, scale)) => Ok((summed, Decimal128(38, *scale))),
        (Avg, Decimal128(_, scale)) => Ok((Kind::Mean(form), Decimal128(38, (*scale).max(6)))),
        (Sum, _) if number => Ok((summed, argument.clone())),
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

pub(crate) fn field(schema: &Schema, column: usize) -> Result<&Field> {
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
