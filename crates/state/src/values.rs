//! Arrow arrays in the few physical forms that state is kept in, and back.
//!
//! Invariant: converting back to the type that an array came from gives an equal array, except that keys lose the sign
//! of a floating-point zero and the payload of a NaN (see [`Values::for_key`]).

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BinaryViewArray, BooleanArray, FixedSizeBinaryArray,
    LargeBinaryArray, LargeStringArray, PrimitiveArray, StringArray, StringViewArray, UInt32Array, make_array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowNativeType, DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use weir_types::{Code, Error, Result};

/// The physical form in which values of a type are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// 64 bits: booleans, integers, dates, times, timestamps, durations; floating-point keys as bits.
    Word,
    /// Floating point as `f64`; only outside of keys.
    Float,
    /// 128 bits: decimals, unscaled.
    Wide,
    /// Strings and binary.
    Bytes,
}

impl Form {
    /// The form of values of this type.
    ///
    /// # Errors
    /// `UNSUPPORTED` if state cannot hold the type.
    pub fn of(data_type: &DataType) -> Result<Self> {
        use DataType::{
            Binary, BinaryView, Boolean, Date32, Date64, Decimal128, Dictionary, Duration, FixedSizeBinary, Float32,
            Float64, Int8, Int16, Int32, Int64, LargeBinary, LargeUtf8, Null, Time32, Time64, Timestamp, UInt8, UInt16,
            UInt32, UInt64, Utf8, Utf8View,
        };
        Ok(match data_type {
            Null
            | Boolean
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Date32
            | Date64
            | Time32(_)
            | Time64(_)
            | Timestamp(_, _)
            | Duration(_) => Form::Word,
            Float32 | Float64 => Form::Float,
            Decimal128(_, _) => Form::Wide,
            Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Form::Bytes,
            Dictionary(_, values) => Form::of(values)?,
            other => return Err(unsupported(other)),
        })
    }

    /// The form of keys of this type: floating point becomes bits.
    ///
    /// # Errors
    /// `UNSUPPORTED` if state cannot hold the type.
    pub fn of_key(data_type: &DataType) -> Result<Self> {
        Form::of(data_type).map(|form| if form == Form::Float { Form::Word } else { form })
    }
}

/// Strings or binary values of any layout.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are Arrow's")]
pub enum BytesArray {
    Utf8(StringArray),
    LargeUtf8(LargeStringArray),
    Utf8View(StringViewArray),
    Binary(BinaryArray),
    LargeBinary(LargeBinaryArray),
    BinaryView(BinaryViewArray),
    Fixed(FixedSizeBinaryArray),
}

impl BytesArray {
    /// The bytes of one row; whatever, for a null.
    #[inline]
    pub fn value(&self, row: usize) -> &[u8] {
        match self {
            BytesArray::Utf8(array) => array.value(row).as_bytes(),
            BytesArray::LargeUtf8(array) => array.value(row).as_bytes(),
            BytesArray::Utf8View(array) => array.value(row).as_bytes(),
            BytesArray::Binary(array) => array.value(row),
            BytesArray::LargeBinary(array) => array.value(row),
            BytesArray::BinaryView(array) => array.value(row),
            BytesArray::Fixed(array) => array.value(row),
        }
    }
}

/// The values of a column, nulls aside.
#[derive(Clone, Debug)]
pub enum Data {
    /// See [`Form::Word`].
    Words(ScalarBuffer<i64>),
    /// See [`Form::Float`].
    Floats(ScalarBuffer<f64>),
    /// See [`Form::Wide`].
    Wides(ScalarBuffer<i128>),
    /// See [`Form::Bytes`].
    Bytes(BytesArray),
}

/// A column in physical form. Cheap to clone; shares the array's buffers where the layout allows.
#[derive(Clone, Debug)]
pub struct Values {
    /// The values; arbitrary where null.
    pub data: Data,
    /// Which rows are null; none: no row is.
    pub nulls: Option<NullBuffer>,
}

impl Values {
    /// The physical form of an array.
    ///
    /// # Errors
    /// `UNSUPPORTED` if state cannot hold the type.
    pub fn new(array: &ArrayRef) -> Result<Self> {
        use DataType::{Dictionary, Float32, Null};
        if let Dictionary(_, values) = array.data_type() {
            let plain = cast(array, values).map_err(|error| arrow_error("could not decode a dictionary", &error))?;
            return Self::new(&plain);
        }
        let data = match Form::of(array.data_type())? {
            Form::Float => Data::Floats(match array.data_type() {
                Float32 => widen(array.as_primitive::<Float32Type>(), f64::from),
                _ => array.as_primitive::<Float64Type>().values().clone(),
            }),
            Form::Wide => Data::Wides(array.as_primitive::<Decimal128Type>().values().clone()),
            Form::Bytes => Data::Bytes(bytes_of(array)?),
            Form::Word => Data::Words(words_of(array)?),
        };
        let nulls = match array.data_type() {
            Null => Some(NullBuffer::new_null(array.len())),
            _ => array.nulls().cloned(),
        };
        Ok(Self { data, nulls: nulls.filter(|nulls| nulls.null_count() > 0) })
    }

    /// The physical form of a key column: equal keys have equal bits (−0 becomes 0, every NaN the same one, a `FLOAT` the
    /// `DOUBLE` of equal value).
    ///
    /// # Errors
    /// `UNSUPPORTED` if state cannot hold the type.
    pub fn for_key(array: &ArrayRef) -> Result<Self> {
        let mut values = Self::new(array)?;
        if let Data::Floats(floats) = &values.data {
            values.data = Data::Words(floats.iter().map(|&float| float_key(float)).collect());
        }
        Ok(values)
    }

    /// Whether the row is null.
    #[inline]
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// The values of some rows, in their order; shares nothing with the original.
    ///
    /// # Errors
    /// `INTERNAL` if a row does not exist.
    pub fn take(&self, rows: &[u32]) -> Result<Self> {
        let failed = |error| arrow_error("could not take rows of a column", &error);
        let data = match &self.data {
            Data::Words(words) => Data::Words(rows.iter().map(|&row| words[row as usize]).collect()),
            Data::Floats(floats) => Data::Floats(rows.iter().map(|&row| floats[row as usize]).collect()),
            Data::Wides(wides) => Data::Wides(rows.iter().map(|&row| wides[row as usize]).collect()),
            Data::Bytes(bytes) => {
                let taken = rows.iter().map(|&row| Some(bytes.value(row as usize)));
                Data::Bytes(BytesArray::Binary(taken.collect()))
            }
        };
        let nulls = match &self.nulls {
            None => None,
            Some(nulls) => {
                let indices = UInt32Array::from(rows.to_vec());
                let valid = BooleanArray::new(nulls.inner().clone(), None);
                let valid = arrow::compute::take(&valid, &indices, None).map_err(failed)?;
                Some(NullBuffer::new(valid.as_boolean().values().clone()))
            }
        };
        Ok(Self { data, nulls: nulls.filter(|nulls| nulls.null_count() > 0) })
    }

    /// The values behind a key column of type `data_type`: undoes what [`Values::for_key`] does to floating point.
    #[must_use]
    pub fn out_of_key(self, data_type: &DataType) -> Self {
        match (&self.data, data_type) {
            (Data::Words(words), DataType::Float32 | DataType::Float64) => {
                let floats = words.iter().map(|&word| f64::from_bits(word as u64)).collect();
                Self { data: Data::Floats(floats), nulls: self.nulls }
            }
            _ => self,
        }
    }

    /// An array of the given type out of words; floating point is taken for keys (see [`Values::for_key`]).
    ///
    /// # Errors
    /// `INTERNAL` if the form does not fit the type.
    pub fn words_to_array(data_type: &DataType, words: Vec<i64>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        use DataType::{Boolean, Float32, Float64, Int8, Int16, Int32, Int64, Null, UInt8, UInt16, UInt32, UInt64};
        Ok(match data_type {
            Null => arrow::array::new_null_array(&Null, words.len()),
            Boolean => {
                Arc::new(BooleanArray::new(words.iter().map(|&word| word != 0).collect::<BooleanBuffer>(), nulls))
            }
            Int8 => narrow::<Int8Type>(&words, nulls, |word| word as i8),
            Int16 => narrow::<Int16Type>(&words, nulls, |word| word as i16),
            Int32 => narrow::<Int32Type>(&words, nulls, |word| word as i32),
            Int64 => Arc::new(PrimitiveArray::<Int64Type>::new(words.into(), nulls)),
            UInt8 => narrow::<UInt8Type>(&words, nulls, |word| word as u8),
            UInt16 => narrow::<UInt16Type>(&words, nulls, |word| word as u16),
            UInt32 => narrow::<UInt32Type>(&words, nulls, |word| word as u32),
            UInt64 => narrow::<UInt64Type>(&words, nulls, |word| word as u64),
            Float32 => narrow::<Float32Type>(&words, nulls, |word| f64::from_bits(word as u64) as f32),
            Float64 => narrow::<Float64Type>(&words, nulls, |word| f64::from_bits(word as u64)),
            other => match other.primitive_width() {
                Some(4) => relabel(narrow::<Int32Type>(&words, nulls, |word| word as i32), other)?,
                Some(8) => relabel(Arc::new(PrimitiveArray::<Int64Type>::new(words.into(), nulls)), other)?,
                _ => return Err(Error::internal(format!("words cannot be read as {other}"))),
            },
        })
    }

    /// An array of `FLOAT` or `DOUBLE`.
    ///
    /// # Errors
    /// `INTERNAL` if the form does not fit the type.
    pub fn floats_to_array(data_type: &DataType, floats: Vec<f64>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        match data_type {
            DataType::Float64 => Ok(Arc::new(PrimitiveArray::<Float64Type>::new(floats.into(), nulls))),
            DataType::Float32 => {
                let values = floats.iter().map(|&float| float as f32).collect();
                Ok(Arc::new(PrimitiveArray::<Float32Type>::new(values, nulls)))
            }
            other => Err(Error::internal(format!("floats cannot be read as {other}"))),
        }
    }

    /// An array of decimals, given unscaled.
    ///
    /// # Errors
    /// `INTERNAL` if the form does not fit the type.
    pub fn wides_to_array(data_type: &DataType, wides: Vec<i128>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        match data_type {
            DataType::Decimal128(_, _) => {
                let array = PrimitiveArray::<Decimal128Type>::new(wides.into(), nulls);
                Ok(Arc::new(array.with_data_type(data_type.clone())))
            }
            other => Err(Error::internal(format!("decimals cannot be read as {other}"))),
        }
    }

    /// An array of strings or binary values.
    ///
    /// # Errors
    /// `CORRUPT` for strings that are not UTF-8, `INTERNAL` if the form does not fit the type.
    pub fn bytes_to_array<'a>(
        data_type: &DataType,
        values: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Result<ArrayRef> {
        use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary, LargeUtf8, Utf8, Utf8View};
        let utf8 = |bytes: Option<&'a [u8]>| match bytes.map(std::str::from_utf8) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(error)) => {
                Err(Error::new(Code::Corrupt, "a string in state is not UTF-8").with_detail(error.to_string()))
            }
        };
        Ok(match data_type {
            Utf8 => Arc::new(values.map(utf8).collect::<Result<StringArray>>()?),
            LargeUtf8 => Arc::new(values.map(utf8).collect::<Result<LargeStringArray>>()?),
            Utf8View => Arc::new(values.map(utf8).collect::<Result<StringViewArray>>()?),
            Binary => Arc::new(values.collect::<BinaryArray>()),
            LargeBinary => Arc::new(values.collect::<LargeBinaryArray>()),
            BinaryView => Arc::new(values.collect::<BinaryViewArray>()),
            FixedSizeBinary(width) => Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, *width)
                    .map_err(|error| arrow_error("binary values in state have another width", &error))?,
            ),
            other => return Err(Error::internal(format!("bytes cannot be read as {other}"))),
        })
    }
}

/// The bits under which a floating-point key is kept and hashed.
pub(crate) fn float_key(float: f64) -> i64 {
    if float == 0.0 {
        0
    } else if float.is_nan() {
        // The quiet NaN without payload, spelled out: `f64::NAN` may differ between targets.
        0x7ff8_0000_0000_0000
    } else {
        float.to_bits() as i64
    }
}

/// What an error of Arrow's means here.
pub(crate) fn arrow_error(message: &str, error: &ArrowError) -> Error {
    Error::internal(message).with_detail(error.to_string())
}

fn unsupported(data_type: &DataType) -> Error {
    Error::new(Code::Unsupported, format!("state cannot hold values of type {data_type}"))
        .with_hint("Group and aggregate by columns of a scalar type, for example by a field of the row.")
}

fn widen<P: ArrowPrimitiveType, N: ArrowNativeType>(
    array: &PrimitiveArray<P>,
    convert: impl Fn(P::Native) -> N,
) -> ScalarBuffer<N> {
    array.values().iter().map(|&value| convert(value)).collect()
}

fn narrow<P: ArrowPrimitiveType>(
    words: &[i64],
    nulls: Option<NullBuffer>,
    convert: impl Fn(i64) -> P::Native,
) -> ArrayRef {
    Arc::new(PrimitiveArray::<P>::new(words.iter().map(|&word| convert(word)).collect(), nulls))
}

/// The same buffers under another type of the same width.
fn relabel(array: ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    let data = array.to_data().into_builder().data_type(data_type.clone()).build();
    data.map(make_array).map_err(|error| arrow_error("could not relabel an array", &error))
}

fn words_of(array: &ArrayRef) -> Result<ScalarBuffer<i64>> {
    use DataType::{Boolean, Int8, Int16, Int32, Int64, Null, UInt8, UInt16, UInt32, UInt64};
    Ok(match array.data_type() {
        Null => std::iter::repeat_n(0, array.len()).collect(),
        Boolean => array.as_boolean().values().iter().map(i64::from).collect(),
        Int8 => widen(array.as_primitive::<Int8Type>(), i64::from),
        Int16 => widen(array.as_primitive::<Int16Type>(), i64::from),
        Int32 => widen(array.as_primitive::<Int32Type>(), i64::from),
        Int64 => array.as_primitive::<Int64Type>().values().clone(),
        UInt8 => widen(array.as_primitive::<UInt8Type>(), i64::from),
        UInt16 => widen(array.as_primitive::<UInt16Type>(), i64::from),
        UInt32 => widen(array.as_primitive::<UInt32Type>(), i64::from),
        UInt64 => widen(array.as_primitive::<UInt64Type>(), |value| value as i64),
        other => match other.primitive_width() {
            Some(4) => widen(relabel(array.clone(), &Int32)?.as_primitive::<Int32Type>(), i64::from),
            Some(8) => relabel(array.clone(), &Int64)?.as_primitive::<Int64Type>().values().clone(),
            _ => return Err(unsupported(other)),
        },
    })
}

fn bytes_of(array: &ArrayRef) -> Result<BytesArray> {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary, LargeUtf8, Utf8, Utf8View};
    Ok(match array.data_type() {
        Utf8 => BytesArray::Utf8(array.as_string::<i32>().clone()),
        LargeUtf8 => BytesArray::LargeUtf8(array.as_string::<i64>().clone()),
        Utf8View => BytesArray::Utf8View(array.as_string_view().clone()),
        Binary => BytesArray::Binary(array.as_binary::<i32>().clone()),
        LargeBinary => BytesArray::LargeBinary(array.as_binary::<i64>().clone()),
        BinaryView => BytesArray::BinaryView(array.as_binary_view().clone()),
        FixedSizeBinary(_) => BytesArray::Fixed(array.as_fixed_size_binary().clone()),
        other => return Err(unsupported(other)),
    })
}
