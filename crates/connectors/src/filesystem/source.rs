//! Reads files, one after the other: a file is a split, its position counts records.
//!
//! Bytes are read, decompressed and cut into records on the io runtime, at most [`CHUNKS_AHEAD`] chunks ahead; the compute
//! thread only decodes. Going on from a position reads the file from its beginning and passes over what comes before.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use async_trait::async_trait;
use flate2::read::MultiGzDecoder;
use metrics::counter;
use tokio::sync::mpsc;
use tracing::{info, warn};
use weir_dataflow::source::{Source, SourceContext, SourceEvent};
use weir_types::{Code, Error, Result, splits};

use super::Format;
use super::lines::{Chunk, Framing, RecordReader};
use crate::format::layout::Layout;
use crate::format::{self, Decode, OnMalformed};

/// Chunks that wait to be decoded.
const CHUNKS_AHEAD: usize = 2;

/// Reads the files of its splits.
pub(crate) struct FilesystemSource {
    table: String,
    root: PathBuf,
    format: Format,
    on_malformed: OnMalformed,
    decoder: Box<dyn Decode>,
    layout: Layout,
    batch_rows: usize,
    io: tokio::runtime::Handle,
    files: Vec<SplitFile>,
    /// The file that is being read.
    current: Option<Open>,
    skipped: u64,
}

struct SplitFile {
    relative: String,
    position: u64,
    finished: bool,
    reported: bool,
}

struct Open {
    split: usize,
    path: PathBuf,
    chunks: mpsc::Receiver<Result<Chunk>>,
}

impl FilesystemSource {
    pub(crate) fn new(context: SourceContext) -> Result<Self> {
        let SourceContext { spec, splits, batch_rows, io, .. } = context;
        let format = Format::new(&spec.connector)?;
        let layout = Layout::new(&spec.scan_schema, &spec.metadata);
        let file = |split: &weir_types::snapshot::SplitPosition| {
            let relative = splits::parse_file(&split.split)?;
            Ok(SplitFile { relative, position: split.offset, finished: split.finished, reported: false })
        };
        Ok(Self {
            root: PathBuf::from(spec.connector.path()?),
            on_malformed: format.on_malformed(&spec.connector)?,
            decoder: format.decoder(Arc::clone(&layout.physical))?,
            files: splits.iter().map(file).collect::<Result<_>>()?,
            table: spec.table,
            format,
            layout,
            batch_rows: batch_rows.max(1),
            io,
            current: None,
            skipped: 0,
        })
    }

    /// Starts to read a file.
    fn open(&self, split: usize) -> Open {
        let file = &self.files[split];
        let path = if self.root.is_dir() { self.root.join(&file.relative) } else { self.root.clone() };
        let (framing, header) = match &self.format {
            Format::Json => (Framing::Lines, 0),
            Format::Csv(options) => {
                (Framing::Csv { delimiter: options.delimiter }, u64::from(options.ignore_first_line))
            }
        };
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (theirs, skip, records_max) = (path.clone(), file.position + header, self.batch_rows);
        self.io.spawn_blocking(move || {
            if let Err(error) = read_file(&theirs, framing, skip, records_max, &sender) {
                // Nobody listens if the subtask was cancelled meanwhile.
                let _ = sender.blocking_send(Err(error));
            }
        });
        Open { split, path, chunks }
    }

    fn rows(&mut self, split: usize, path: &Path, chunk: &Chunk) -> Result<SourceEvent> {
        let records: Vec<&[u8]> = chunk.records().collect();
        let place = |index: usize| format!("{}:{}", path.display(), chunk.line(index));
        let option = self.format.ignore_option();
        let decoded = format::decode(self.decoder.as_mut(), &records, self.on_malformed, option, place)?;
        if let Some(kept) = &decoded.kept {
            let skipped = (records.len() - kept.len()) as u64;
            self.skipped += skipped;
            counter!("weir_source_records_skipped_total", "table" => self.table.clone()).increment(skipped);
            warn!(table = %self.table, file = %path.display(), skipped, total = self.skipped, "malformed records skipped");
        }
        let count = decoded.rows.num_rows();
        let rows = self.layout.assemble(&decoded.rows, |key, _| {
            let text = match key {
                "file.path" => path.display().to_string(),
                "file.name" => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                _ => return Err(Error::invalid(format!("connector 'filesystem' has no metadata column '{key}'"))),
            };
            Ok(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, count))) as ArrayRef)
        })?;
        let file = &mut self.files[split];
        file.position += records.len() as u64;
        Ok(SourceEvent::Rows { split, rows, next_offset: file.position, event_time_max_ms: None })
    }
}

#[async_trait(?Send)]
impl Source for FilesystemSource {
    async fn next(&mut self) -> Result<SourceEvent> {
        loop {
            if let Some(split) = self.files.iter().position(|file| file.finished && !file.reported) {
                self.files[split].reported = true;
                return Ok(SourceEvent::SplitFinished { split });
            }
            let open = match self.current.take() {
                Some(open) => open,
                None => match self.files.iter().position(|file| !file.finished) {
                    Some(split) => self.open(split),
                    None => return Ok(SourceEvent::End),
                },
            };
            let (split, path) = (open.split, open.path.clone());
            // Kept in `self` while waiting, so that dropping this future loses nothing.
            let chunk = self.current.insert(open).chunks.recv().await;
            match chunk {
                Some(chunk) => return self.rows(split, &path, &chunk?),
                None => {
                    info!(table = %self.table, file = %path.display(), records = self.files[split].position, "file read");
                    self.current = None;
                    self.files[split].finished = true;
                }
            }
        }
    }
}

/// Reads a file to its end, or until nobody listens any more.
fn read_file(
    path: &Path,
    framing: Framing,
    skip: u64,
    records_max: usize,
    chunks: &mpsc::Sender<Result<Chunk>>,
) -> Result<()> {
    let in_file = |mut error: Error| {
        error.message = format!("{}: {}", path.display(), error.message);
        error
    };
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(Code::NotFound, format!("file {} does not exist", path.display()))
            .with_hint("It was there when the job was created. Every TaskManager must see it under the same path."),
        _ => Error::io(format!("cannot open {}", path.display()), &error),
    })?;
    let compressed = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    let input: Box<dyn Read> = if compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut reader = RecordReader::new(input, framing, skip);
    while let Some(chunk) = reader.next_chunk(records_max).map_err(in_file)? {
        if chunks.blocking_send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
