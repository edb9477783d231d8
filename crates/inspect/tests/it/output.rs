//! Exported files hold exactly the table.

use std::fs::{self, File};

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use weir_inspect::export::{Format, file_name, write_file, write_table};
use weir_inspect::names::state_table;
use weir_types::Code;

use super::fixture::{state, write};

#[test]
fn csv_and_json_lines_hold_every_row() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), "sp-a", &state(1, 2), 1, 10);
    let table = state_table(&snapshot, "groups").unwrap();
    let text = |format| String::from_utf8(write_table(&table, format, Vec::new()).unwrap().0).unwrap();
    let csv = text(Format::Csv);
    let (header, rows) = csv.split_once('\n').unwrap();
    assert_eq!(header, "key_hash,window_start,window_end,sensor,n,total");
    let mut rows: Vec<&str> = rows.lines().map(|row| row.split_once(',').unwrap().1).collect();
    rows.sort_unstable();
    let window = "1970-01-01T00:00:00.000,1970-01-01T00:00:01.000";
    let window = if rows[0].starts_with(window) { window } else { "1970-01-01T00:00:00,1970-01-01T00:00:01" };
    assert_eq!(rows, [format!("{window},s0,1,0"), format!("{window},s1,2,1")]);
    let lines = text(Format::Jsonl);
    let mut values: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let whole: serde_json::Value = serde_json::from_str(&text(Format::Json)).unwrap();
    assert_eq!(whole.as_array().unwrap(), &values);
    values.sort_by_key(|value| value["sensor"].as_str().unwrap().to_owned());
    assert_eq!((&values[1]["sensor"], &values[1]["n"]), (&"s1".into(), &2.into()));
}

#[test]
fn parquet_is_read_back_and_no_file_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(&directory.path().join("sp"), "sp-a", &state(10, 100), 3, 10);
    let table = &snapshot.tables()[0];
    let path = directory.path().join(file_name(table, Format::Parquet));
    assert!(path.ends_with("12e45678deadbeef.groups.parquet"));
    let (rows, bytes) = write_file(table, Format::Parquet, &path).unwrap();
    assert_eq!((rows, bytes), (1_000, fs::metadata(&path).unwrap().len()));
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap().build().unwrap();
    assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 1_000);
    let before = fs::read(&path).unwrap();
    assert_eq!(write_file(table, Format::Csv, &path).unwrap_err().code, Code::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(write_file(table, Format::Csv, &directory.path().join("no/such/x")).unwrap_err().code, Code::Io);
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing half-written stays: {names:?}");
}
