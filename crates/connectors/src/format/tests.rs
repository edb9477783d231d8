//! What formats read and write, exactly; round trips of arbitrary values.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
    StringArray, StructArray, TimestampMillisecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use arrow_schema::{Fields, Schema, TimeUnit};
use proptest::prelude::*;

use super::csv::{CsvDecoder, CsvEncoder, CsvOptions};
use super::json::{JsonDecoder, JsonEncoder, keys};
use super::*;

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, None)
}

fn timestamp_ltz() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

fn json(fields: Vec<Field>, records: &[&str]) -> Result<Decoded> {
    decode_with(&mut JsonDecoder::new(schema(fields)).unwrap(), records, OnMalformed::Fail)
}

fn decode_with(decoder: &mut dyn Decode, records: &[&str], on_malformed: OnMalformed) -> Result<Decoded> {
    let records: Vec<&[u8]> = records.iter().map(|record| record.as_bytes()).collect();
    decode(decoder, &records, on_malformed, "ignore", |index| format!("record {index}"))
}

fn plain_csv() -> CsvOptions {
    CsvOptions { delimiter: b',', null_literal: String::new(), ignore_first_line: false }
}

#[test]
fn json_fields_are_found_by_name_and_missing_ones_are_null() {
    let nested = Fields::from(vec![Field::new("x", DataType::Int32, true), Field::new("y", DataType::Utf8, true)]);
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("nested", DataType::Struct(nested), true),
        Field::new("price", DataType::Decimal128(10, 2), true),
        Field::new("ok", DataType::Boolean, true),
        Field::new("text", DataType::Utf8, true),
    ];
    let rows = json(
        fields,
        &[
            r#"{"unknown":[1,{"a":2}],"id":9007199254740993,"nested":{"y":"ä\n\"\u00e9","z":1},"price":12.5,"ok":true}"#,
            r#" {"text":12,"id":"7","price":"0.01","nested":null,"ok":null} "#,
        ],
    )
    .unwrap()
    .rows;
    assert_eq!(rows["id"].as_primitive::<Int64Type>().values(), &[9_007_199_254_740_993, 7]);
    let nested = rows["nested"].as_struct();
    assert_eq!(nested["y"].as_string::<i32>().value(0), "ä\n\"é");
    assert!(nested["x"].is_null(0) && nested.is_null(1));
    assert_eq!(
        &rows["price"],
        &(Arc::new(Decimal128Array::from(vec![1250, 1]).with_precision_and_scale(10, 2).unwrap()) as ArrayRef)
    );
    assert_eq!(&rows["ok"], &(Arc::new(BooleanArray::from(vec![Some(true), None])) as ArrayRef));
    assert_eq!(&rows["text"], &(Arc::new(StringArray::from(vec![None, Some("12")])) as ArrayRef));
}

#[test]
fn timestamps_are_read_in_iso_8601_and_rfc_3339() {
    let records = [
        r#"{"t":"2020-02-29 12:34:56.789"}"#,
        r#"{"t":"2020-02-29T12:34:56.789"}"#,
        r#"{"t":"2020-02-29T12:34:56.789Z"}"#,
        r#"{"t":"2020-02-29T14:34:56.789+02:00"}"#,
        r#"{"t":"2020-02-29T12:34:56.789999"}"#,
    ];
    for data_type in [timestamp(), timestamp_ltz()] {
        let rows = json(vec![Field::new("t", data_type.clone(), false)], &records).unwrap().rows;
        let times = rows["t"].as_primitive::<TimestampMillisecondType>();
        assert_eq!(times.values(), &[1_582_979_696_789; 5], "{data_type}");
    }
    let rows =
        json(vec![Field::new("t", timestamp(), false)], &[r#"{"t":"2020-02-29 12:34:56"}"#, r#"{"t":"2020-02-29"}"#]);
    assert_eq!(
        rows.unwrap().rows["t"].as_primitive::<TimestampMillisecondType>().values(),
        &[1_582_979_696_000, 1_582_934_400_000]
    );
    assert!(json(vec![Field::new("t", timestamp(), true)], &[r#"{"t":"yesterday"}"#]).is_err());
}

#[test]
fn the_malformed_record_is_named_with_its_column() {
    let fields = || vec![Field::new("id", DataType::Int64, false), Field::new("n", DataType::Int32, true)];
    for (bad, reason) in [
        (r#"{"id":1,"n":"many"}"#, "n"),
        (r#"{"n":3}"#, "id"),
        (r#"{"id":null}"#, "id"),
        (r#"{"id":99999999999999999999}"#, "id"),
        (r#"{"id":1"#, "object"),
        (r#"{"id":1}{"id":2}"#, "object"),
        (r#"{"id":1} x"#, ""),
        ("17", "object"),
        ("[1]", ""),
        ("", "object"),
        ("null", ""),
        ("\u{0}", ""),
    ] {
        for place in [0, 1, 6] {
            let mut records = vec![r#"{"id":1,"n":null}"#; 7];
            records[place] = bad;
            let error = json(fields(), &records).err().unwrap_or_else(|| panic!("{bad:?} decodes"));
            assert_eq!((error.code, error.message), (Code::MalformedRecord, format!("record {place} does not decode")));
            let detail = error.detail.unwrap();
            assert!(detail.contains(reason) && detail.ends_with(&format!("the record is {bad}")), "{detail}");
        }
    }
}

#[test]
fn malformed_records_are_skipped_if_asked_for() {
    let mut decoder = JsonDecoder::new(schema(vec![Field::new("id", DataType::Int64, false)])).unwrap();
    for bad in [vec![], vec![0], vec![9], vec![3, 4, 5], (0..10).collect::<Vec<u32>>()] {
        let texts: Vec<String> =
            (0..10).map(|id| if bad.contains(&id) { "{".to_owned() } else { format!("{{\"id\":{id}}}") }).collect();
        let records: Vec<&str> = texts.iter().map(String::as_str).collect();
        let decoded = decode_with(&mut decoder, &records, OnMalformed::Skip).unwrap();
        let good: Vec<u32> = (0..10).filter(|id| !bad.contains(id)).collect();
        let ids: Vec<u32> =
            decoded.rows["id"].as_primitive::<Int64Type>().values().iter().map(|id| *id as u32).collect();
        assert_eq!(ids, good);
        assert_eq!(decoded.kept, (!bad.is_empty()).then_some(good));
    }
}

#[test]
fn records_without_columns_are_still_counted() {
    let decoded = json(vec![], &[r#"{"a":1}"#, "{}"]).unwrap();
    assert_eq!((decoded.rows.num_rows(), decoded.rows.num_columns()), (2, 0));
    assert!(json(vec![], &["{}", "nonsense"]).is_err());
}

#[test]
fn deep_nesting_is_malformed_and_not_a_crash() {
    let nested = |depth: usize| format!("{{\"id\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    for depth in [600, 100_000] {
        let error = json(vec![Field::new("id", DataType::Int64, true)], &[&nested(depth)]).err().unwrap();
        assert_eq!(error.code, Code::MalformedRecord);
    }
    // Brackets in strings are text.
    let text = format!(r#"{{"t":"{}\"["}}"#, "[".repeat(2000));
    assert_eq!(json(vec![Field::new("t", DataType::Utf8, true)], &[&text]).unwrap().rows.num_rows(), 1);
}

#[test]
fn json_is_written_with_nulls_and_sql_timestamps() {
    let nested = StructArray::from(vec![(
        Arc::new(Field::new("x", DataType::Int32, true)),
        Arc::new(Int32Array::from(vec![Some(1), None])) as ArrayRef,
    )]);
    let rows = RecordBatch::try_from_iter(vec![
        ("t", Arc::new(TimestampMillisecondArray::from(vec![Some(1_577_836_800_120), None])) as ArrayRef),
        ("l", Arc::new(TimestampMillisecondArray::from(vec![1_577_836_800_000, 5]).with_timezone("+02:00"))),
        ("s", Arc::new(StringArray::from(vec!["a\"b\n", "ü"]))),
        ("d", Arc::new(Decimal128Array::from(vec![Some(-105), None]).with_precision_and_scale(5, 2).unwrap())),
        ("day", Arc::new(Date32Array::from(vec![18_321, 0]))),
        ("n", Arc::new(nested)),
    ])
    .unwrap();
    let mut out = Vec::new();
    JsonEncoder::new(&rows.schema()).unwrap().encode(&rows, &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        concat!(
            r#"{"t":"2020-01-01 00:00:00.120","l":"2020-01-01 00:00:00Z","s":"a\"b\n","d":-1.05,"day":"2020-02-29","n":{"x":1}}"#,
            "\n",
            r#"{"t":null,"l":"1970-01-01 00:00:00.005Z","s":"ü","d":null,"day":"1970-01-01","n":{"x":null}}"#,
            "\n"
        )
    );
}

#[test]
fn keys_are_the_text_of_one_column_or_an_array_of_several() {
    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("a\"b"), None]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(5), None]));
    let key = |columns: Vec<(&str, ArrayRef)>| -> Vec<Option<String>> {
        let columns = RecordBatch::try_from_iter(columns).unwrap();
        keys(&columns).unwrap().into_iter().map(|key| key.map(|key| String::from_utf8(key).unwrap())).collect()
    };
    assert_eq!(key(vec![("t", Arc::clone(&text))]), [Some("a\"b".to_owned()), None]);
    assert_eq!(key(vec![("n", Arc::clone(&number))]), [Some("5".to_owned()), None]);
    assert_eq!(
        key(vec![("t", text), ("n", number)]),
        [Some(r#"["a\"b",5]"#.to_owned()), Some("[null,null]".to_owned())]
    );
}

#[test]
fn csv_is_read_by_place_with_quotes_and_nulls() {
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
        Field::new("t", timestamp(), true),
        Field::new("f", DataType::Float64, true),
    ];
    let records = ["1,\"a, \"\"b\"\"\nc\",2020-01-01 00:00:00.5,1.5", "2,,,"];
    let mut decoder = CsvDecoder::new(schema(fields.clone()), &plain_csv()).unwrap();
    let rows = decode_with(&mut decoder, &records, OnMalformed::Fail).unwrap().rows;
    assert_eq!(&rows["text"], &(Arc::new(StringArray::from(vec![Some("a, \"b\"\nc"), None])) as ArrayRef));
    assert_eq!(
        &rows["t"],
        &(Arc::new(TimestampMillisecondArray::from(vec![Some(1_577_836_800_500), None])) as ArrayRef)
    );
    assert_eq!(&rows["f"], &(Arc::new(Float64Array::from(vec![Some(1.5), None])) as ArrayRef));
    let options = CsvOptions { delimiter: b';', null_literal: "n/a".to_owned(), ignore_first_line: false };
    let mut decoder = CsvDecoder::new(schema(fields), &options).unwrap();
    let rows = decode_with(&mut decoder, &["1;;n/a;n/a", "2;n/a;n/a;n/a"], OnMalformed::Fail).unwrap().rows;
    assert_eq!(&rows["text"], &(Arc::new(StringArray::from(vec![Some(""), None])) as ArrayRef));
}

#[test]
fn malformed_csv_is_named() {
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("text", DataType::Utf8, true)];
    for bad in ["1", "1,a,b", "x,a", ",a", "1,\"a"] {
        let mut decoder = CsvDecoder::new(schema(fields.clone()), &plain_csv()).unwrap();
        let error = decode_with(&mut decoder, &["1,a", bad, "2,b"], OnMalformed::Fail).err().unwrap();
        assert_eq!((error.code, error.message.as_str()), (Code::MalformedRecord, "record 1 does not decode"), "{bad}");
        let detail = error.detail.unwrap();
        assert!(!detail.contains("line 1"));
        assert!(
            bad != "x,a" || detail.contains("column id: Error while parsing value 'x' as type 'Int64'"),
            "{detail}"
        );
        let rows = decode_with(&mut decoder, &["1,a", bad, "2,b"], OnMalformed::Skip).unwrap();
        assert_eq!(rows.kept, Some(vec![0, 2]), "{bad}");
    }
}

#[test]
fn types_without_text_are_refused_by_column() {
    let binary = schema(vec![Field::new("b", DataType::Binary, true)]);
    let error = JsonDecoder::new(Arc::clone(&binary)).err().unwrap();
    assert_eq!(error.to_string(), "UNSUPPORTED: format 'json' has no values of type Binary (column 'b')");
    let nested = schema(vec![Field::new("r", DataType::Struct(Fields::empty()), true)]);
    assert_eq!(CsvDecoder::new(nested, &plain_csv()).err().unwrap().code, Code::Unsupported);
}

/// Rows of every type that both formats have.
fn rows(nested: bool) -> impl Strategy<Value = RecordBatch> {
    let row = (
        any::<i64>(),
        proptest::option::of(any::<i32>()),
        // An empty text is a null in CSV without a null literal; both directions are tested with one.
        proptest::option::of("\\PC{0,8}|[\"',;\\\\\n\r\t a-z]{0,8}"),
        proptest::option::of(-62_135_596_800_000_i64..253_402_300_800_000),
        proptest::option::of(-9_999_999_999_i128..9_999_999_999),
        proptest::option::of(any::<bool>()),
        proptest::option::of(prop::num::f64::NORMAL | prop::num::f64::ZERO),
    );
    prop::collection::vec(row, 1..20).prop_map(move |rows| {
        let number: ArrayRef = Arc::new(rows.iter().map(|row| row.1).collect::<Int32Array>());
        let text: ArrayRef = Arc::new(rows.iter().map(|row| row.2.as_deref()).collect::<StringArray>());
        let decimals = rows.iter().map(|row| row.4).collect::<Decimal128Array>();
        let mut columns: Vec<(Field, ArrayRef)> = vec![
            (Field::new("id", DataType::Int64, false), Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>())),
            (Field::new("n", DataType::Int32, true), Arc::clone(&number)),
            (Field::new("s", DataType::Utf8, true), Arc::clone(&text)),
            (
                Field::new("t", timestamp(), true),
                Arc::new(rows.iter().map(|row| row.3).collect::<TimestampMillisecondArray>()),
            ),
            (
                Field::new("l", timestamp_ltz(), true),
                Arc::new(rows.iter().map(|row| row.3).collect::<TimestampMillisecondArray>().with_timezone("UTC")),
            ),
            (
                Field::new("d", DataType::Decimal128(10, 3), true),
                Arc::new(decimals.with_precision_and_scale(10, 3).unwrap()),
            ),
            (
                Field::new("b", DataType::Boolean, true),
                Arc::new(rows.iter().map(|row| row.5).collect::<BooleanArray>()),
            ),
            (
                Field::new("f", DataType::Float64, true),
                Arc::new(rows.iter().map(|row| row.6).collect::<Float64Array>()),
            ),
        ];
        if nested {
            let fields =
                Fields::from(vec![Field::new("n", DataType::Int32, true), Field::new("s", DataType::Utf8, true)]);
            let valid = NullBuffer::from_iter(rows.iter().map(|row| row.5 != Some(true)));
            // Children of a null row are null in what is read back.
            let mask = |array: &ArrayRef| {
                let nulls = NullBuffer::union(Some(&valid), array.nulls());
                arrow::array::make_array(array.to_data().into_builder().nulls(nulls).build().unwrap())
            };
            let array = StructArray::new(fields.clone(), vec![mask(&number), mask(&text)], Some(valid.clone()));
            columns.push((Field::new("r", DataType::Struct(fields), true), Arc::new(array)));
        }
        let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        RecordBatch::try_new(schema(fields), arrays).unwrap()
    })
}

proptest! {
    #[test]
    fn json_reads_what_it_wrote(rows in rows(true)) {
        let mut out = Vec::new();
        JsonEncoder::new(&rows.schema()).unwrap().encode(&rows, &mut out).unwrap();
        prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), rows.num_rows());
        let records: Vec<&[u8]> = out.split(|byte| *byte == b'\n').take(rows.num_rows()).collect();
        let read = JsonDecoder::new(rows.schema()).unwrap().decode(&records).unwrap();
        prop_assert_eq!(read, rows);
    }

    #[test]
    fn csv_reads_what_it_wrote(rows in rows(false)) {
        let options = CsvOptions { delimiter: b';', null_literal: "\\N".to_owned(), ignore_first_line: false };
        let mut out = Vec::new();
        let mut encoder = CsvEncoder::new(&rows.schema(), options.clone()).unwrap();
        for row in 0..rows.num_rows() {
            let start = out.len();
            encoder.encode(&rows.slice(row, 1), &mut out).unwrap();
            prop_assert_eq!(out.pop(), Some(b'\n'));
            let record = out.split_off(start);
            let read = CsvDecoder::new(rows.schema(), &options).unwrap().decode(&[&record]).unwrap();
            prop_assert_eq!(read, rows.slice(row, 1));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let schema = schema(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)]);
        let _ = JsonDecoder::new(Arc::clone(&schema)).unwrap().decode(&[&bytes]);
        let _ = CsvDecoder::new(schema, &plain_csv()).unwrap().decode(&[&bytes]);
    }
}
