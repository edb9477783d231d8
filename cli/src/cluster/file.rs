//! `cluster.json`: which processes make up the local cluster of a directory, and where they listen.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_types::{Code, Error, Result};

use crate::cluster::process::ProcessId;

/// The processes of a local cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterFile {
    /// Address of the JobManager's API.
    pub jobmanager: String,
    /// Address of the JobManager's HTTP pages.
    pub jobmanager_http: String,
    /// Address of the stream store.
    pub store: String,
    /// All processes, in the order in which they were started.
    pub processes: Vec<Process>,
}

/// One process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// `store`, `jobmanager`, `tm-1` …
    pub name: String,
    /// Which process it is.
    pub id: ProcessId,
    /// Where its pages are.
    pub http: String,
}

impl ClusterFile {
    /// Where the file lies.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join("cluster.json")
    }

    /// Reads the file of `dir`; none if there is no cluster.
    ///
    /// # Errors
    /// `IO` or `CORRUPT`, naming the file.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("could not read {}", path.display()), &error)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Error::new(Code::Corrupt, format!("{} is damaged", path.display()))
                .with_detail(error.to_string())
                .with_hint("Stop the cluster's processes by hand, then delete the file.")
        })
    }

    /// Writes the file of `dir` in one step.
    ///
    /// # Errors
    /// `IO`, naming the file.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = Self::path(dir);
        let temporary = dir.join("cluster.json.new");
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::internal(error.to_string()))?;
        std::fs::write(&temporary, text + "\n")
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|error| Error::io(format!("could not write {}", path.display()), &error))
    }

    /// Removes the file of `dir`.
    ///
    /// # Errors
    /// `IO`, naming the file.
    pub(crate) fn remove(dir: &Path) -> Result<()> {
        let path = Self::path(dir);
        std::fs::remove_file(&path).map_err(|error| Error::io(format!("could not remove {}", path.display()), &error))
    }
}
