//! Sources read exactly what is in the files, from every position; sinks' files appear whole, at barriers.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::Int64Type;
use arrow_schema::{DataType, Field, Schema};
use flate2::Compression;
use flate2::write::GzEncoder;
use weir_dataflow::element::Batch;
use weir_durable::parts;
use weir_types::connector::ConnectorKind;
use weir_types::ids::{Attempt, BarrierId};
use weir_types::output::{CommitMark, END_OF_INPUT, Settlement};
use weir_types::{Code, splits};

use crate::testing::{Table, barrier, batch};

fn table(directory: &Path, options: &[(&str, &str)]) -> Table {
    let schema = Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("s", DataType::Utf8, true)]);
    let mut table = Table::new(ConnectorKind::Filesystem, options, schema);
    table.connector.options.insert("path".to_owned(), directory.display().to_string());
    table
}

fn json_lines(ids: std::ops::Range<i64>) -> String {
    ids.map(|id| format!("{{\"id\":{id},\"s\":\"row {id}\"}}\n")).collect()
}

fn write_gzip(path: &Path, text: &str) {
    let mut encoder = GzEncoder::new(fs::File::create(path).unwrap(), Compression::default());
    // Two members, as `cat a.gz b.gz` makes them.
    let (one, other) = text.split_at(text.len() / 2);
    encoder.write_all(one.as_bytes()).unwrap();
    let mut file = encoder.finish().unwrap();
    file.flush().unwrap();
    let mut encoder = GzEncoder::new(file, Compression::default());
    encoder.write_all(other.as_bytes()).unwrap();
    encoder.finish().unwrap();
}

fn ids(rows: &RecordBatch) -> Vec<i64> {
    rows["id"].as_primitive::<Int64Type>().values().to_vec()
}

fn files(names: &[&str]) -> Vec<weir_types::snapshot::SplitPosition> {
    splits::files(names.iter().map(|name| (*name).to_owned()))
}

#[tokio::test]
async fn gzipped_files_are_read_from_every_position() {
    let directory = tempfile::tempdir().unwrap();
    write_gzip(&directory.path().join("a.jsonl.gz"), &json_lines(0..50));
    let table = table(directory.path(), &[("format", "json")]);
    for start in 0..=50 {
        let mut split = files(&["a.jsonl.gz"]);
        split[0].offset = start;
        let read = table.read(split, 7).await.unwrap();
        assert_eq!(ids(&read.rows(&table.schema)), (start as i64..50).collect::<Vec<_>>());
        let expected: Vec<u64> =
            (1..).map(|batch| (start + batch * 7).min(50)).take((50 - start).div_ceil(7) as usize).collect();
        assert_eq!(read.batches.iter().map(|(_, _, next)| *next).collect::<Vec<_>>(), expected);
        assert_eq!(read.finished, [0]);
    }
}

#[tokio::test]
async fn files_are_splits_and_finished_ones_are_not_read_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("day=1")).unwrap();
    fs::write(directory.path().join("day=1/a b.json"), json_lines(0..3)).unwrap();
    fs::write(directory.path().join("b.json"), json_lines(3..5)).unwrap();
    fs::write(directory.path().join("empty.json"), "").unwrap();
    let table = table(directory.path(), &[("format", "json")]);
    let mut splits = files(&["day=1/a b.json", "b.json", "empty.json"]);
    let read = table.read(splits.clone(), 100).await.unwrap();
    let found: Vec<_> = read.batches.iter().map(|(split, rows, next)| (*split, ids(rows), *next)).collect();
    assert_eq!(found, [(0, vec![3, 4], 2), (1, vec![0, 1, 2], 3)]);
    assert_eq!(read.finished, [0, 1, 2]);
    splits[0].finished = true;
    let read = table.read(splits, 100).await.unwrap();
    assert_eq!(ids(&read.rows(&table.schema)), [0, 1, 2]);
    assert_eq!(read.finished, [0, 1, 2]);
}

#[tokio::test]
async fn csv_headers_are_no_records_and_quoted_line_breaks_no_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.csv");
    fs::write(&path, "id;s\r\n1;\"x\ny\"\r\n\r\n2;\r\n3;NULL").unwrap();
    let mut table = table(
        &path,
        &[
            ("format", "csv"),
            ("csv.field-delimiter", ";"),
            ("csv.ignore-first-line", "true"),
            ("csv.null-literal", "NULL"),
        ],
    );
    table.schema = Arc::new(Schema::new(vec![
        Field::new("file.name", DataType::Utf8, false),
        Field::new("id", DataType::Int64, false),
        Field::new("s", DataType::Utf8, true),
    ]));
    let table = table.with_metadata(&[(0, "file.name")]);
    for start in 0..=3 {
        let mut split = files(&["a.csv"]);
        split[0].offset = start;
        let rows = table.read(split, 2).await.unwrap().rows(&table.schema);
        let expected = RecordBatch::try_new(
            Arc::clone(&table.schema),
            vec![
                Arc::new(StringArray::from(vec!["a.csv"; 3])),
                Arc::new(Int64Array::from(vec![1, 2, 3])),
                Arc::new(StringArray::from(vec![Some("x\ny"), Some(""), None])),
            ],
        )
        .unwrap();
        assert_eq!(rows, expected.slice(start as usize, 3 - start as usize));
    }
}

#[tokio::test]
async fn malformed_records_are_named_by_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.json");
    fs::write(&path, format!("{}\n\n{{\"id\":\"x\"}}\n{}", json_lines(0..2), json_lines(2..4))).unwrap();
    let error = table(directory.path(), &[("format", "json")]).read(files(&["a.json"]), 100).await.unwrap_err();
    assert_eq!((error.code, error.message), (Code::MalformedRecord, format!("{}:5 does not decode", path.display())));
    let table = table(directory.path(), &[("format", "json"), ("json.ignore-parse-errors", "true")]);
    let read = table.read(files(&["a.json"]), 100).await.unwrap();
    assert_eq!(ids(&read.rows(&table.schema)), [0, 1, 2, 3]);
    assert_eq!(read.batches.last().unwrap().2, 5, "skipped records count for the position");
}

#[tokio::test]
async fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let table = table(directory.path(), &[("format", "json")]);
    let error = table.read(files(&["gone.json"]), 100).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.message.ends_with("gone.json does not exist"), "{error}");
    let path = directory.path().join("cut.json.gz");
    write_gzip(&path, &json_lines(0..1000));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let error = table.read(files(&["cut.json.gz"]), 10).await.unwrap_err();
    assert_eq!(error.code, Code::Io);
    assert!(error.message.contains("cut.json.gz: cannot read on at line"), "{error}");
}

fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let texts: StringArray = ids.clone().map(|id| (id % 3 != 0).then(|| format!("row {id}"))).collect();
    RecordBatch::try_from_iter_with_nullable(vec![
        ("id", Arc::new(ids.collect::<Int64Array>()) as ArrayRef, false),
        ("s", Arc::new(texts), true),
    ])
    .unwrap()
}

fn visible(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| splits::is_visible_file(name)).collect();
    names.sort();
    names
}

/// What the JobManager does when a snapshot is complete, or before an attempt begins.
fn settle(directory: &Path, commit: (u32, BarrierId), below: Option<u32>) {
    let commit = Some(CommitMark { attempt: Attempt(commit.0), barrier: commit.1 });
    let settlement = Settlement { commit, below: below.map(Attempt) };
    parts::settle(directory, "job0-sink_1__", settlement).unwrap();
}

#[tokio::test]
async fn part_files_are_hidden_until_they_are_committed_and_hold_what_came_before_the_barrier() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let table = table(&path, &[("format", "json")]);
    let mut sink = table.sink(3, 1).unwrap();
    sink.write(&batch(rows(0..2))).unwrap();
    sink.write(&batch(rows(2..3))).unwrap();
    let prepared = sink.prepare(&barrier(1)).unwrap();
    sink.write(&batch(rows(3..5))).unwrap();
    let names = ["part-job0-sink_1__-3-1-0.json", "part-job0-sink_1__-3-1-1.json"];
    assert_eq!(prepared.await.unwrap().as_deref(), Some(names[0].as_bytes()));
    assert_eq!(visible(&path), Vec::<String>::new());
    settle(&path, (3, BarrierId(1)), None);
    sink.committed(BarrierId(1));
    assert_eq!(visible(&path), names[..1]);
    // What was written after the barrier is part of the next one; an aborted snapshot leaves it to the one after.
    assert!(sink.prepare(&barrier(2)).unwrap().await.unwrap().is_some());
    assert_eq!(sink.prepare(&barrier(3)).unwrap().await.unwrap().as_deref(), Some(names[1].as_bytes()));
    assert_eq!(visible(&path), names[..1]);
    settle(&path, (3, BarrierId(3)), None);
    sink.committed(BarrierId(3));
    // Nothing was written between two barriers: no file.
    assert_eq!(sink.prepare(&barrier(4)).unwrap().await.unwrap(), None);
    assert_eq!(visible(&path), names);
    assert_eq!(
        fs::read_to_string(path.join(names[0])).unwrap(),
        "{\"id\":0,\"s\":null}\n{\"id\":1,\"s\":\"row 1\"}\n{\"id\":2,\"s\":\"row 2\"}\n"
    );
    sink.write(&batch(rows(5..6))).unwrap();
    sink.finish().await.unwrap();
    settle(&path, (3, END_OF_INPUT), Some(4));
    let all = visible(&path);
    let read = table.read(files(&all.iter().map(String::as_str).collect::<Vec<_>>()), 100).await.unwrap();
    assert_eq!(read.rows(&table.schema), rows(0..6));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 3, "nothing is left");
}

#[tokio::test]
async fn a_rollback_removes_what_nobody_committed_and_whoever_was_replaced_can_add_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let table = table(directory.path(), &[("format", "csv")]);
    let mut old = table.sink(3, 0).unwrap();
    for number in 1..=2_i64 {
        old.write(&batch(rows(number..number + 1))).unwrap();
        old.prepare(&barrier(number as u64)).unwrap().await.unwrap();
    }
    settle(directory.path(), (3, BarrierId(1)), Some(4));
    let mut new = table.sink(4, 0).unwrap();
    new.write(&batch(rows(2..3))).unwrap();
    new.prepare(&barrier(3)).unwrap().await.unwrap();
    // It does not know that it was replaced.
    old.write(&batch(rows(2..3))).unwrap();
    old.prepare(&barrier(3)).unwrap().await.unwrap();
    settle(directory.path(), (4, BarrierId(3)), None);
    let names = visible(directory.path());
    assert_eq!(names, ["part-job0-sink_1__-3-0-0.csv", "part-job0-sink_1__-4-0-0.csv"]);
    let text: String = names.iter().map(|name| fs::read_to_string(directory.path().join(name)).unwrap()).collect();
    assert_eq!(text, "1,row 1\n2,row 2\n");
}

#[tokio::test]
async fn updates_are_refused_by_a_sink_that_appends() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = table(directory.path(), &[("format", "json")]).sink(1, 0).unwrap();
    let update = Batch { rows: rows(0..2), ops: Some(ScalarBuffer::from(vec![0_u8, 2])) };
    assert_eq!(sink.write(&update).unwrap_err().code, Code::Unsupported);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_fails_the_sink() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let mut sink = table(&file.join("out"), &[("format", "json")]).sink(1, 0).unwrap();
    sink.write(&batch(rows(0..1))).unwrap();
    let error = sink.finish().await.unwrap_err();
    assert!(error.message.starts_with("cannot make the directory in "), "{error}");
    assert_eq!(sink.write(&batch(rows(0..1))).unwrap_err(), error);
}
