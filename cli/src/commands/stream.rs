//! `weir stream …`: records go in and out as lines of text.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use weir_stream_store::client::{Producer, ProducerOptions, Reader, ReaderOptions, StoreClient};
use weir_types::ids::PartitionId;
use weir_types::store::{Durability, PartitionInfo, Pin, PinHold, Retention, StreamInfo, StreamOptions};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Code, Error, Result};

use crate::args::{AppendArgs, Global, StreamCommand};
use crate::commands::{stream_read, transactions};
use crate::connect;
use crate::output::{self, Progress, bytes, count};
use crate::time;

/// How many records between two looks at the progress.
const PROGRESS_RECORDS: u64 = 10_000;

/// Runs a `stream` command.
pub(crate) async fn run(global: &Global, command: StreamCommand) -> Result<()> {
    let store = connect::store(global).await?;
    match command {
        StreamCommand::Create { stream, partitions, retention_bytes, retention_time, no_fsync, if_not_exists } => {
            let mut options = StreamOptions::new(partitions);
            options.retention = Retention {
                max_bytes: retention_bytes.map(|size| size.0),
                max_age_ms: connect::timeout_ms(retention_time),
            };
            options.durability = if no_fsync { Durability::Os } else { Durability::Fsync };
            let info = store.create_stream(&stream.parse()?, &options, if_not_exists).await?;
            print_stream(global, &info)
        }
        StreamCommand::List => list(global, &store.list_streams(None).await?),
        StreamCommand::Describe { stream } => print_stream(global, &store.describe_stream(&stream.parse()?).await?),
        StreamCommand::Pins { stream } => print_pins(global, &store.holds(&stream.parse()?).await?),
        StreamCommand::Append(args) => append(global, &store, args).await,
        StreamCommand::Read(args) => stream_read::read(global, &store, args).await,
        StreamCommand::Transactions(command) => transactions::run(global, &store, command).await,
        StreamCommand::Truncate { stream, before, force } => truncate(global, &store, &stream, &before, force).await,
        StreamCommand::Delete { stream, force } => {
            let stream: StreamName = stream.parse()?;
            store.delete_stream(&stream, force).await?;
            if global.json {
                output::print_json(&json!({"deleted": stream}))
            } else {
                output::print(&format!("stream {stream} deleted\n"))
            }
        }
    }
}

fn list(global: &Global, streams: &[StreamInfo]) -> Result<()> {
    if global.json {
        return output::print_json(&json!(streams));
    }
    let rows = streams.iter().map(|stream| {
        let records: u64 = stream.partitions.iter().map(|partition| partition.end.0 - partition.head.0).sum();
        vec![
            stream.name.to_string(),
            stream.options.format.to_string(),
            stream.partitions.len().to_string(),
            count(records),
            bytes(stream.partitions.iter().map(|partition| partition.bytes).sum()),
            time::moment(stream.created_at_ms),
        ]
    });
    output::print(&output::table(&["stream", "format", "partitions", "records", "size", "created"], &[2, 3, 4], rows))
}

fn print_stream(global: &Global, info: &StreamInfo) -> Result<()> {
    if global.json {
        return output::print_json(&json!(info));
    }
    let row = |partition: &PartitionInfo| {
        let undecided = match partition.stable_end == partition.end {
            true => "-".to_owned(),
            false => partition.stable_end.to_string(),
        };
        vec![
            partition.partition.to_string(),
            partition.head.to_string(),
            partition.end.to_string(),
            undecided,
            count(partition.end.0 - partition.head.0),
            bytes(partition.bytes),
            partition.segments.to_string(),
            partition.fault.clone().unwrap_or_default(),
        ]
    };
    let header = ["partition", "head", "end", "undecided from", "records", "size", "segments", "fault"];
    let table = output::table(&header, &[0, 1, 2, 3, 4, 5, 6], info.partitions.iter().map(row));
    let StreamOptions { format, durability, retention, .. } = &info.options;
    let mut text = format!("{}: {format} records, durability {durability}", info.name);
    if let Some(size) = retention.max_bytes {
        text += &format!(", at most {} a partition", bytes(size));
    }
    if let Some(age) = retention.max_age_ms {
        text += &format!(", kept for {}", weir_service::units::TimeSpan(Duration::from_millis(age)));
    }
    output::print(&format!("{text}\n\n{table}"))
}

fn print_pins(global: &Global, pins: &[(Pin, PinHold)]) -> Result<()> {
    if global.json {
        let pin = |(pin, held): &(Pin, PinHold)| {
            json!({
                "holder": pin.holder, "cut": pin.cut, "held_records": held.records, "held_bytes": held.bytes,
                "created_at_ms": pin.created_at_ms, "broken_at_ms": pin.broken_at_ms,
            })
        };
        return output::print_json(&pins.iter().map(pin).collect());
    }
    let rows = pins.iter().map(|(pin, held)| {
        let cut: Vec<_> = pin.cut.0.iter().map(|(partition, offset)| format!("{partition}={offset}")).collect();
        vec![
            pin.holder.to_string(),
            cut.join(" "),
            count(held.records),
            bytes(held.bytes),
            time::moment(pin.created_at_ms),
            time::moment(pin.broken_at_ms.unwrap_or_default()),
        ]
    });
    output::print(&output::table(&["holder", "cut", "records held", "size held", "since", "broken"], &[2, 3], rows))
}

async fn truncate(global: &Global, store: &StoreClient, stream: &str, before: &[String], force: bool) -> Result<()> {
    let mut cut = StreamCut::default();
    for place in before {
        let parsed = place
            .split_once('=')
            .and_then(|(partition, offset)| Some((PartitionId(partition.parse().ok()?), Offset(offset.parse().ok()?))));
        let Some((partition, offset)) = parsed else {
            return Err(Error::invalid(format!("{place:?} is not a place in a partition"))
                .with_hint("Write PARTITION=OFFSET, for example --before 0=1000."));
        };
        cut.0.insert(partition, offset);
    }
    let report = store.truncate(&stream.parse()?, &cut, force).await?;
    if global.json {
        return output::print_json(&json!(report));
    }
    let rows = report.heads.0.iter().map(|(partition, head)| vec![partition.to_string(), head.to_string()]);
    let mut text = output::table(&["partition", "head"], &[0, 1], rows);
    for pin in &report.overrun {
        text += &format!("pin of {} can no longer be honoured\n", pin.holder);
    }
    output::print(&text)
}

/// Lines of a file (gzip if it ends in .gz) or of standard input; empty ones are left out.
///
/// # Errors
/// `NOT_FOUND` or `IO` if it cannot be opened; each line may fail with `IO`.
pub(crate) fn open_lines(file: Option<&PathBuf>) -> Result<Box<dyn Iterator<Item = Result<String>>>> {
    let name = file.map_or_else(|| "standard input".to_owned(), |file| file.display().to_string());
    let reader: Box<dyn BufRead> = match file {
        None => Box::new(BufReader::new(std::io::stdin())),
        Some(path) => {
            let opened = File::open(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Error::not_found(format!("the file {name} does not exist")),
                _ => Error::io(format!("could not open {name}"), &error),
            })?;
            if path.extension().is_some_and(|extension| extension == "gz") {
                Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(opened)))
            } else {
                Box::new(BufReader::with_capacity(1 << 16, opened))
            }
        }
    };
    let lines =
        reader.lines().map(move |line| line.map_err(|error| Error::io(format!("could not read {name}"), &error)));
    Ok(Box::new(lines.filter(|line| !line.as_ref().is_ok_and(String::is_empty))))
}

async fn append(global: &Global, store: &StoreClient, args: AppendArgs) -> Result<()> {
    let stream: StreamName = args.stream.parse()?;
    if let Some(partitions) = args.create {
        create_stream(store, &stream, partitions).await?;
    }
    let lines = open_lines(args.file.as_ref())?;
    let checked = lines.enumerate().map(|(index, line)| {
        let line = line?;
        if !args.raw && args.key.is_none() {
            serde_json::from_str::<Object>(&line).map_err(|error| not_an_object(index, &error))?;
        }
        Ok(line)
    });
    let begun = std::time::Instant::now();
    let mut progress = Progress::new();
    let appended = append_lines(store, &stream, checked, args.key.as_deref(), |appended| {
        progress.show(&format!("{} records appended to {stream}", count(appended)));
    })
    .await?;
    drop(progress);
    if global.json {
        return output::print_json(&json!({"stream": stream, "records": appended}));
    }
    output::print(&format!("{} records appended to {stream} in {:.2?}\n", count(appended), begun.elapsed()))
}

/// Makes a stream of bytes records unless it exists.
///
/// # Errors
/// What the store says; one that exists with other options is fine.
pub(crate) async fn create_stream(store: &StoreClient, stream: &StreamName, partitions: u32) -> Result<()> {
    match store.create_stream(stream, &StreamOptions::new(partitions), true).await {
        Err(error) if error.code == Code::AlreadyExists => Ok(()),
        created => created.map(drop),
    }
}

/// Appends lines as records and returns their number once all are durable; `progress` is told now and then.
///
/// # Errors
/// `MALFORMED_RECORD` naming the line if the key field is missing; what the store says.
pub(crate) async fn append_lines(
    store: &StoreClient,
    stream: &StreamName,
    lines: impl Iterator<Item = Result<String>>,
    key: Option<&str>,
    mut progress: impl FnMut(u64),
) -> Result<u64> {
    let mut producer = Producer::open(store, stream, ProducerOptions::default()).await?;
    let mut appended = 0;
    for (index, line) in lines.enumerate() {
        let line = line?;
        let key = key.map(|field| key_of(&line, field, index)).transpose()?;
        producer.send(key.as_deref().map(str::as_bytes), line.as_bytes(), None).await?;
        appended += 1;
        if appended % PROGRESS_RECORDS == 0 {
            progress(appended);
        }
    }
    producer.flush().await?;
    Ok(appended)
}

/// Text of a JSON field: a string as it is, anything else as JSON.
fn key_of(line: &str, field: &str, index: usize) -> Result<String> {
    let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| not_an_object(index, &error))?;
    match object.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
        None => Err(malformed(index, &format!("it has no field {field:?}"))),
    }
}

/// A JSON object whose fields do not matter.
type Object = std::collections::HashMap<IgnoredKey, IgnoredAny>;

/// A field's name that does not matter: all are equal, so that nothing is kept.
#[derive(Debug, Eq, Hash, PartialEq, serde::Deserialize)]
#[serde(from = "std::borrow::Cow<'_, str>")]
struct IgnoredKey;

impl From<std::borrow::Cow<'_, str>> for IgnoredKey {
    fn from(_: std::borrow::Cow<'_, str>) -> Self {
        Self
    }
}

fn not_an_object(index: usize, error: &serde_json::Error) -> Error {
    // The parser's own line is always the first: only the column says something.
    let text = error.to_string();
    let why = text.split(" at line ").next().unwrap_or(&text);
    malformed(index, &format!("column {}: {why}", error.column()))
}

fn malformed(index: usize, why: &str) -> Error {
    Error::new(Code::MalformedRecord, format!("line {} is not a JSON object that can be appended", index + 1))
        .with_detail(why.to_owned())
        .with_hint("Lines before it may have been appended already; --raw takes lines as they are.")
}

/// All committed records of a stream as of now, as lines, partition by partition.
///
/// # Errors
/// `NOT_FOUND`; `CORRUPT` if the stream is damaged.
pub(crate) async fn read_to_end(store: &StoreClient, stream: &StreamName) -> Result<Vec<String>> {
    let info = store.describe_stream(stream).await?;
    let options = ReaderOptions::default();
    let options = ReaderOptions { until: Some(info.readable_ends(options.isolation)), ..options };
    let mut reader = Reader::open(store, stream, info.heads(), options);
    let mut lines = Vec::new();
    while let Some(block) = reader.next().await? {
        lines.extend(block.records()?.map(|record| String::from_utf8_lossy(record.value).into_owned()));
    }
    Ok(lines)
}
