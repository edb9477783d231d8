//! `weir stream read`: records as lines, Arrow rows as JSON.

use std::fmt::Write as _;

use arrow::datatypes::SchemaRef;
use arrow::json::LineDelimitedWriter;
use serde_json::{Value, json};
use weir_stream_store::arrow_block::decode_schema;
use weir_stream_store::client::{ReadBlock, Reader, ReaderOptions, StoreClient};
use weir_types::store::PartitionInfo;
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Error, Result};

use crate::args::{Global, ReadArgs};
use crate::output;

/// Prints what is there, or for ever what comes with `--follow`.
///
/// # Errors
/// `NOT_FOUND` for the stream or partition; `CORRUPT` if the stream is damaged.
pub(crate) async fn read(global: &Global, store: &StoreClient, args: ReadArgs) -> Result<()> {
    let stream: StreamName = args.stream.parse()?;
    let info = store.describe_stream(&stream).await?;
    let schema = info.options.arrow_schema.as_deref().map(decode_schema).transpose()?;
    let wanted = |partition: &PartitionInfo| args.partition.is_none_or(|wanted| partition.partition.0 == wanted);
    let partitions: Vec<&PartitionInfo> = info.partitions.iter().filter(|partition| wanted(partition)).collect();
    if partitions.is_empty() {
        return Err(Error::not_found(format!("stream {stream} has no such partition"))
            .with_detail(format!("it has {}, from 0", info.partitions.len())));
    }
    let from = StreamCut(
        partitions.iter().map(|partition| (partition.partition, partition.head.max(Offset(args.from)))).collect(),
    );
    let ends = info.readable_ends(args.isolation);
    let end = |partition: &PartitionInfo| ends.get(partition.partition).unwrap_or(partition.end);
    // A starting point behind the end is an empty read, not a wait.
    let until =
        StreamCut(partitions.iter().map(|p| (p.partition, end(p).max(p.head.max(Offset(args.from))))).collect());
    let until = (!args.follow).then_some(until);
    let options = ReaderOptions { until, isolation: args.isolation, ..ReaderOptions::default() };
    let mut reader = Reader::open(store, &stream, from, options);
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0
        && let Some(block) = reader.next().await?
    {
        let take = usize::try_from(left).unwrap_or(usize::MAX);
        let text = match &schema {
            Some(schema) => rows(&block, schema, take, global.json, args.verbose)?,
            None => records(&block, take, global.json, args.verbose)?,
        };
        output::print(&text)?;
        left -= left.min(u64::from(block.record_count()));
    }
    Ok(())
}

/// A record per line: as it is, or in an object with its place and key.
fn records(block: &ReadBlock, take: usize, as_json: bool, verbose: bool) -> Result<String> {
    let mut text = String::new();
    for (record, offset) in block.records()?.take(take).zip(block.first.0..) {
        let value = String::from_utf8_lossy(record.value);
        if as_json {
            // What is JSON already is not quoted once more.
            let value = serde_json::from_str(&value).unwrap_or_else(|_| Value::String(value.into_owned()));
            let key = record.key.map(String::from_utf8_lossy);
            let line = json!({
                "partition": block.partition, "offset": offset, "key": key, "event_time_ms": record.event_time_ms,
                "value": value,
            });
            text += &format!("{line}\n");
        } else {
            line(&mut text, block, offset, &value, verbose);
        }
    }
    Ok(text)
}

/// An Arrow row per line, as JSON.
fn rows(block: &ReadBlock, schema: &SchemaRef, take: usize, as_json: bool, verbose: bool) -> Result<String> {
    let batch = block.to_batch(schema, None)?;
    let batch = batch.slice(0, batch.num_rows().min(take));
    let failed = |error: arrow::error::ArrowError| {
        Error::internal("rows could not be written as JSON").with_detail(error.to_string())
    };
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(&batch).and_then(|()| writer.finish()).map_err(failed)?;
    let mut text = String::new();
    for (value, offset) in String::from_utf8_lossy(&writer.into_inner()).lines().zip(block.first.0..) {
        if as_json {
            let partition = block.partition;
            text += &format!("{{\"partition\":{partition},\"offset\":{offset},\"value\":{value}}}\n");
        } else {
            line(&mut text, block, offset, value, verbose);
        }
    }
    Ok(text)
}

fn line(text: &mut String, block: &ReadBlock, offset: u64, value: &str, verbose: bool) {
    let written = match verbose {
        true => writeln!(text, "{}\t{offset}\t{value}", block.partition),
        false => writeln!(text, "{value}"),
    };
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
}
