//! Appends part files to a directory.
//!
//! A subtask writes a hidden file, syncs it at the barrier and renames it, still hidden, so that its name says under which
//! barrier it is prepared; then a new one begins. The JobManager makes files visible when a snapshot that covers them is
//! complete, and removes what nobody prepared, or what lies behind the snapshot that the job goes on from
//! ([`weir_durable::parts`]). Every row is there once, and lines are never torn.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use async_trait::async_trait;
use tracing::debug;
use weir_dataflow::element::Batch;
use weir_dataflow::sink::{Prepared, Sink, SinkContext};
use weir_durable::parts::PartName;
use weir_types::ids::{Attempt, BarrierId};
use weir_types::output::{END_OF_INPUT, file_family};
use weir_types::snapshot::Barrier;
use weir_types::{Error, Result};

use super::Format;
use crate::changes::Written;
use crate::format::Encode;
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
        let next = PartName {
            family: file_family(&context.job, &context.uid),
            attempt: Attempt(context.attempt),
            subtask: context.subtask,
            number: 0,
            extension: format.extension().to_owned(),
        };
        let directory = PathBuf::from(context.spec.connector.path()?);
        let output = PartFiles { directory, next, current: None, pending: None };
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

    fn prepare(&mut self, barrier: &Barrier) -> Result<Prepared> {
        Ok(Box::pin(self.writer.prepare(barrier.id)))
    }

    fn committed(&mut self, barrier: BarrierId) {
        self.writer.committed(barrier);
    }

    async fn finish(&mut self) -> Result<()> {
        self.writer.prepare(END_OF_INPUT).await.map(drop)
    }
}

/// The part files of one subtask in one attempt.
struct PartFiles {
    directory: PathBuf,
    /// The next file.
    next: PartName,
    current: Option<File>,
    /// The last barrier under which a file was prepared that is not known to be committed, and its name.
    pending: Option<(BarrierId, String)>,
}

impl PartFiles {
    fn failed(&self, what: &str, error: &std::io::Error) -> Error {
        Error::io(format!("cannot {what} in {}", self.directory.display()), error)
    }
}

impl BlockingOutput for PartFiles {
    fn start(&mut self) -> Result<()> {
        weir_durable::create_directories(&self.directory).map_err(|error| self.failed("make the directory", &error))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut file = match self.current.take() {
            Some(file) => file,
            None => OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(self.directory.join(self.next.in_progress()))
                .map_err(|error| self.failed("begin a part file", &error))?,
        };
        file.write_all(bytes).map_err(|error| self.failed("write a part file", &error))?;
        self.current = Some(file);
        Ok(())
    }

    fn prepare(&mut self, at: BarrierId) -> Result<Option<Vec<u8>>> {
        if let Some(file) = self.current.take() {
            file.sync_all().map_err(|error| self.failed("sync a part file", &error))?;
            let (from, name) = (self.directory.join(self.next.in_progress()), self.next.prepared(at));
            fs::rename(from, self.directory.join(&name)).map_err(|error| self.failed("rename a part file", &error))?;
            // The rename itself must survive a power failure too.
            weir_durable::sync_directory(&self.directory).map_err(|error| self.failed("sync the directory", &error))?;
            debug!(file = name, directory = %self.directory.display(), "part file prepared");
            self.pending = Some((at, self.next.to_string()));
            self.next.number += 1;
        }
        Ok(self.pending.as_ref().map(|(_, name)| name.clone().into_bytes()))
    }

    fn committed(&mut self, at: BarrierId) {
        self.pending.take_if(|(pending, _)| *pending <= at);
    }
}
