//! What a function is: a name, a signature that says which arguments it takes and what it returns, and code over columns.
//!
//! A signature resolves before evaluation: arguments arrive with exactly the types that it asked for.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, FieldRef, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature as UdfSignature, Volatility,
};

use crate::types;

/// A kind of parameter, and with it which argument types are cast to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// STRING.
    Text,
    /// TINYINT, SMALLINT or INT, as INT.
    Int,
    /// Any integer, as BIGINT.
    Long,
    /// Any number, as DOUBLE.
    Double,
    /// Any number, as it is.
    Number,
    /// BOOLEAN.
    Bool,
    /// BYTES.
    Bytes,
    /// TIMESTAMP or TIMESTAMP_LTZ, as it is; DATE as TIMESTAMP(3).
    Timestamp,
    /// DATE; TIMESTAMP is not cast.
    Date,
    /// DATE, TIME, TIMESTAMP or TIMESTAMP_LTZ, as it is.
    Temporal,
    /// Anything, as it is.
    Any,
}

impl Param {
    /// The type an argument of type `given` is cast to; none if it does not fit.
    pub fn accept(self, given: &DataType) -> Option<DataType> {
        let is_null = *given == DataType::Null;
        match self {
            Param::Text => (is_null || *given == DataType::Utf8).then_some(DataType::Utf8),
            Param::Bytes => (is_null || *given == DataType::Binary).then_some(DataType::Binary),
            Param::Bool => (is_null || *given == DataType::Boolean).then_some(DataType::Boolean),
            Param::Int => (is_null || matches!(given, DataType::Int8 | DataType::Int16 | DataType::Int32))
                .then_some(DataType::Int32),
            Param::Long => (is_null || given.is_signed_integer()).then_some(DataType::Int64),
            Param::Double => (is_null || types::is_numeric(given)).then_some(DataType::Float64),
            Param::Number if is_null => Some(DataType::Int32),
            Param::Number => types::is_numeric(given).then(|| given.clone()),
            Param::Timestamp => match given {
                DataType::Timestamp(..) => Some(given.clone()),
                DataType::Date32 | DataType::Null => Some(DataType::Timestamp(TimeUnit::Millisecond, None)),
                _ => None,
            },
            Param::Date => (is_null || *given == DataType::Date32).then_some(DataType::Date32),
            Param::Temporal if is_null => Some(DataType::Timestamp(TimeUnit::Millisecond, None)),
            Param::Temporal => types::is_temporal(given).then(|| given.clone()),
            Param::Any => Some(given.clone()),
        }
    }

    /// For messages.
    pub fn describe(self) -> &'static str {
        match self {
            Param::Text => "STRING",
            Param::Int => "INT",
            Param::Long => "BIGINT",
            Param::Double => "DOUBLE",
            Param::Number => "a number",
            Param::Bool => "BOOLEAN",
            Param::Bytes => "BYTES",
            Param::Timestamp => "TIMESTAMP",
            Param::Date => "DATE",
            Param::Temporal => "a date or time",
            Param::Any => "anything",
        }
    }
}

/// What a function returns.
pub enum Returns {
    /// Always this type.
    Always(DataType),
    /// The type of this argument.
    Argument(usize),
    /// Computed from the types of the (cast) arguments; none if they do not fit together.
    Computed(fn(&[DataType]) -> Option<DataType>),
}

/// Which arguments a function takes.
pub struct Signature {
    /// In order.
    pub params: &'static [Param],
    /// How many of them must be given.
    pub required: usize,
    /// Whether the last one may be repeated.
    pub variadic: bool,
    /// The result.
    pub returns: Returns,
}

impl Signature {
    /// The types the arguments are cast to, and the result's; none if they do not fit.
    pub fn resolve(&self, given: &[DataType]) -> Option<(Vec<DataType>, DataType)> {
        if given.len() < self.required || (!self.variadic && given.len() > self.params.len()) {
            return None;
        }
        let param = |index: usize| self.params.get(index).or(self.params.last());
        let cast: Vec<DataType> = given
            .iter()
            .enumerate()
            .map(|(index, data_type)| param(index)?.accept(data_type))
            .collect::<Option<_>>()?;
        let result = match &self.returns {
            Returns::Always(data_type) => data_type.clone(),
            Returns::Argument(index) => cast.get(*index)?.clone(),
            Returns::Computed(compute) => compute(&cast)?,
        };
        Some((cast, result))
    }

    /// `(STRING, INT [, INT])`, for messages.
    pub fn describe(&self) -> String {
        let mut text = String::from("(");
        for (index, param) in self.params.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            if index < self.required {
                text.push_str(&format!("{separator}{}", param.describe()));
            } else {
                text.push_str(&format!(" [{separator}{}]", param.describe()));
            }
        }
        if self.variadic {
            text.push_str(", …");
        }
        text.push(')');
        text
    }
}

/// When a result can be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nulls {
    /// If an argument is null, and only then.
    Propagate,
    /// Also without a null argument (a text that does not parse).
    Maybe,
    /// Never.
    Never,
}

/// Code of a function: arguments as the signature cast them.
pub type Eval = fn(&Arguments<'_>) -> Result<ColumnarValue>;

/// A function.
pub struct Definition {
    /// Lower case. Those that begin with `$` are the planner's own and cannot be called by name.
    pub name: &'static str,
    /// Other names, lower case.
    pub aliases: &'static [&'static str],
    /// Arguments and result.
    pub signature: Signature,
    /// When the result can be null.
    pub nulls: Nulls,
    /// Evaluated anew each time, never folded.
    pub volatile: bool,
    /// The code.
    pub eval: Eval,
}

/// Arguments of one evaluation.
pub struct Arguments<'a> {
    /// One per argument: a column, or one value for all rows.
    pub values: &'a [ColumnarValue],
    /// Rows of the batch.
    pub rows: usize,
    /// Type of the result.
    pub result: &'a DataType,
}

impl Arguments<'_> {
    /// The argument as a column.
    ///
    /// # Errors
    /// If a constant cannot be repeated.
    pub fn array(&self, index: usize) -> Result<ArrayRef> {
        match self.values.get(index) {
            Some(value) => value.to_array(self.rows),
            None => exec_err!("argument {index} is missing"),
        }
    }

    /// The argument as texts.
    ///
    /// # Errors
    /// If it is missing or none.
    pub fn text(&self, index: usize) -> Result<Text<'_>> {
        match self.values.get(index) {
            Some(ColumnarValue::Scalar(ScalarValue::Utf8(value))) => Ok(Text::Constant(value.as_deref())),
            Some(ColumnarValue::Array(array)) if *array.data_type() == DataType::Utf8 => {
                Ok(Text::Column(array.as_string::<i32>()))
            }
            _ => exec_err!("argument {index} is not a STRING"),
        }
    }

    /// The argument as numbers, dates or timestamps of one type.
    ///
    /// # Errors
    /// If it is missing or of another type.
    pub fn numbers<T: ArrowPrimitiveType>(&self, index: usize) -> Result<Numbers<'_, T>> {
        match self.values.get(index) {
            Some(ColumnarValue::Array(array)) => match array.as_primitive_opt::<T>() {
                Some(array) => Ok(Numbers::Column(array)),
                None => exec_err!("argument {index} is a {} column", array.data_type()),
            },
            Some(ColumnarValue::Scalar(value)) => {
                let array = value.to_array()?;
                match array.as_primitive_opt::<T>() {
                    Some(array) => Ok(Numbers::Constant(array.is_valid(0).then(|| array.value(0)))),
                    None => exec_err!("argument {index} is a {}", array.data_type()),
                }
            }
            None => exec_err!("argument {index} is missing"),
        }
    }

    /// Whether every argument is one value for all rows; then so is the result.
    pub fn is_constant(&self) -> bool {
        self.values.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)))
    }

    /// How many rows to compute: one if all arguments are constant.
    pub fn rows_to_compute(&self) -> usize {
        if self.is_constant() { 1 } else { self.rows }
    }

    /// The result of [`Arguments::rows_to_compute`] rows.
    ///
    /// # Errors
    /// If a single value cannot be taken out.
    pub fn finish(&self, array: ArrayRef) -> Result<ColumnarValue> {
        if self.is_constant() {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?));
        }
        Ok(ColumnarValue::Array(array))
    }
}

/// Texts: a column, or one for all rows.
#[derive(Clone, Copy)]
pub enum Text<'a> {
    /// For all rows.
    Constant(Option<&'a str>),
    /// One per row.
    Column(&'a StringArray),
}

impl<'a> Text<'a> {
    /// The text of a row; none if it is null.
    #[inline]
    pub fn get(&self, row: usize) -> Option<&'a str> {
        match self {
            Text::Constant(value) => *value,
            Text::Column(array) => array.is_valid(row).then(|| array.value(row)),
        }
    }
}

/// Values of a primitive type: a column, or one for all rows.
pub enum Numbers<'a, T: ArrowPrimitiveType> {
    /// For all rows.
    Constant(Option<T::Native>),
    /// One per row.
    Column(&'a arrow::array::PrimitiveArray<T>),
}

impl<T: ArrowPrimitiveType> Numbers<'_, T> {
    /// The value of a row; none if it is null.
    #[inline]
    pub fn get(&self, row: usize) -> Option<T::Native> {
        match self {
            Numbers::Constant(value) => *value,
            Numbers::Column(array) => array.is_valid(row).then(|| array.value(row)),
        }
    }
}

/// A [`Definition`] as DataFusion wants it. Two are equal if they bear the same name.
#[derive(Clone)]
pub struct Function {
    /// What it is.
    pub definition: &'static Definition,
    signature: UdfSignature,
}

impl Function {
    /// Wraps a definition.
    pub fn new(definition: &'static Definition) -> Self {
        let volatility = if definition.volatile { Volatility::Volatile } else { Volatility::Immutable };
        Self { definition, signature: UdfSignature::user_defined(volatility) }
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.definition.name)
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.definition.name == other.definition.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.definition.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.definition.name
    }

    fn signature(&self) -> &UdfSignature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match self.definition.signature.resolve(arg_types) {
            Some((_, result)) => Ok(result),
            None => plan_err!("{} does not take {}", self.definition.name, types::list(arg_types)),
        }
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match self.definition.signature.resolve(arg_types) {
            Some((arguments, _)) => Ok(arguments),
            None => plan_err!("{} does not take {}", self.definition.name, types::list(arg_types)),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let given: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = match self.definition.nulls {
            Nulls::Propagate => args.arg_fields.iter().any(|field| field.is_nullable()),
            Nulls::Maybe => true,
            Nulls::Never => false,
        };
        Ok(Arc::new(Field::new(self.definition.name, self.return_type(&given)?, nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let result = args.return_field.data_type();
        (self.definition.eval)(&Arguments { values: &args.args, rows: args.number_rows, result })
    }
}
