//! Appends part files to a directory.
//!
//! A subtask writes `.part-….inprogress` and at every barrier syncs it and renames it to `part-…`, which is when others see
//! it; then a new one begins. Whole files appear at once, lines are never torn. A job that restarts writes again what it
//! had written after its last checkpoint: every row is there at least once. Names are unique per attempt, so that nothing
//! is overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use async_trait::async_trait;
use tracing::{debug, warn};
use weir_dataflow::element::Batch;
use weir_dataflow::sink::{Prepared, Sink, SinkContext};
use weir_types::snapshot::Barrier;
use weir_types::{Error, Result};

use super::Format;
use crate::changes::Written;
use crate::format::Encode;
use crate::names;
use crate::writer::{Blocking, BlockingOutput, Writer};

/// Writes rows to part files.
pub(crate) struct FilesystemSink {
    table: String,
    written: Written,
    encoder: Box<dyn Encode>,
    writer: Writer<Vec<u8>>,
}

impl FilesystemSink {
    pub(crate) fn new(context: &SinkContext) -> Result<Self> {
        let format = Format::new(&context.spec.connector)?;
        let output = PartFiles {
            directory: super::path(&context.spec.connector)?,
            owner: format!("{}-{}", context.job, names::safe(&context.uid)),
            attempt: context.attempt,
            subtask: context.subtask,
            parallelism: context.parallelism,
            extension: format.extension(),
            sequence: 0,
            current: None,
        };
        Ok(Self {
            table: context.spec.table.clone(),
            written: Written::of(&context.spec.connector),
            encoder: format.encoder(&context.schema)?,
            writer: Writer::new(&context.io, Blocking::new(output)),
        })
    }
}

#[async_trait(?Send)]
impl Sink for FilesystemSink {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let rows = self.written.rows(&self.table, batch, batch.rows.clone())?;
        let mut text = Vec::new();
        self.encoder.encode(&rows, &mut text)?;
        let bytes = text.len();
        self.writer.write(text, bytes)
    }

    async fn ready(&mut self) -> Result<()> {
        self.writer.ready().await
    }

    fn prepare(&mut self, _barrier: &Barrier) -> Result<Prepared> {
        let commit = self.writer.commit();
        Ok(Box::pin(async move { commit.await.map(|()| None) }))
    }

    async fn finish(&mut self) -> Result<()> {
        self.writer.commit().await
    }
}

/// The part files of one subtask in one attempt.
struct PartFiles {
    directory: PathBuf,
    /// Job and sink.
    owner: String,
    attempt: u32,
    subtask: u32,
    parallelism: u32,
    extension: &'static str,
    sequence: u64,
    current: Option<File>,
}

const IN_PROGRESS: &str = "inprogress";

impl PartFiles {
    /// `part-<job>-<uid>-<attempt>-<subtask>-<sequence>.<extension>`
    fn part_name(&self) -> String {
        let Self { owner, attempt, subtask, sequence, extension, .. } = self;
        format!("part-{owner}-{attempt}-{subtask}-{sequence}.{extension}")
    }

    fn in_progress_path(&self) -> PathBuf {
        self.directory.join(format!(".{}.{IN_PROGRESS}", self.part_name()))
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Error {
        Error::io(format!("cannot {what} in {}", self.directory.display()), error)
    }

    /// Makes the directory, and removes what earlier attempts of this subtask left unfinished.
    fn open_directory(&self) -> Result<()> {
        weir_durable::create_directories(&self.directory).map_err(|error| self.failed("make the directory", &error))?;
        for entry in fs::read_dir(&self.directory).map_err(|error| self.failed("list files", &error))? {
            let name = entry.map_err(|error| self.failed("list files", &error))?.file_name();
            if name.to_str().is_some_and(|name| self.is_leftover(name)) {
                // Somebody else may have been faster; a file that stays is hidden anyway.
                if let Err(error) = fs::remove_file(self.directory.join(&name)) {
                    warn!(file = ?name, %error, "cannot remove an unfinished part file of an earlier attempt");
                }
            }
        }
        Ok(())
    }

    /// Whether a file was begun by an earlier attempt of this subtask, or of one that is no more.
    fn is_leftover(&self, name: &str) -> bool {
        let numbers = name
            .strip_prefix(&format!(".part-{}-", self.owner))
            .and_then(|rest| rest.strip_suffix(&format!(".{}.{IN_PROGRESS}", self.extension)))
            .map(|numbers| numbers.split('-').map(str::parse).collect::<Result<Vec<u64>, _>>());
        let Some(Ok(numbers)) = numbers else { return false };
        let [attempt, subtask, _sequence] = numbers[..] else { return false };
        let is_orphan = self.subtask == 0 && subtask >= u64::from(self.parallelism);
        attempt < u64::from(self.attempt) && (subtask == u64::from(self.subtask) || is_orphan)
    }
}

impl BlockingOutput for PartFiles {
    fn start(&mut self) -> Result<()> {
        self.open_directory()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut file = match self.current.take() {
            Some(file) => file,
            None => OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(self.in_progress_path())
                .map_err(|error| self.failed("begin a part file", &error))?,
        };
        file.write_all(bytes).map_err(|error| self.failed("write a part file", &error))?;
        self.current = Some(file);
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let Some(file) = self.current.take() else { return Ok(()) };
        file.sync_all().map_err(|error| self.failed("sync a part file", &error))?;
        let visible = self.directory.join(self.part_name());
        fs::rename(self.in_progress_path(), &visible).map_err(|error| self.failed("rename a part file", &error))?;
        // The rename itself must survive a power failure too.
        weir_durable::sync_directory(&self.directory).map_err(|error| self.failed("sync the directory", &error))?;
        debug!(file = %visible.display(), "part file finished");
        self.sequence += 1;
        Ok(())
    }
}
