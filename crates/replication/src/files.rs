//! What a member asks of the file system, in steps small enough that a crash between any two of them can be played
//! through. `Directory` is the real one; the simulation has one that forgets what was not synced.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use weir_types::{Code, Error, Result};

const LOCK: &str = "LOCK";

/// The files of one directory, by name.
///
/// Bytes are durable once their file is synced; names, new, changed or gone, once the directory is.
pub trait Files: Send {
    /// The directory, for messages.
    fn path(&self) -> &Path;
    /// All names.
    fn names(&self) -> io::Result<Vec<String>>;
    /// A whole file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// An empty file; one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Box<dyn OpenFile>>;
    /// A file to append to.
    fn open(&self, name: &str) -> io::Result<Box<dyn OpenFile>>;
    /// Gives a file another name, and takes that from whichever file had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Deletes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file that is being written.
pub trait OpenFile: Send {
    /// Writes at the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file off at `length` bytes.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Makes the bytes durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the machine's, which no other process opens as one meanwhile.
pub(crate) struct Directory {
    path: PathBuf,
    /// Held until this is dropped.
    _lock: File,
}

impl Directory {
    /// Opens a directory, creating it if need be.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if another process has it open, `IO`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        weir_durable::create_directories(path)
            .map_err(|error| Error::io(format!("could not create the raft directory {}", path.display()), &error))?;
        Ok(Self { path: path.to_owned(), _lock: lock(path)? })
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let failed = |action: &str, error: &io::Error| Error::io(format!("could not {action} {}", path.display()), error);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| failed("open", &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Code::FailedPrecondition,
            format!("the raft directory {} is in use by another process", dir.display()),
        )
        .with_hint("Stop that process, or give this one a directory of its own.")),
        Err(TryLockError::Error(error)) => Err(failed("lock", &error)),
    }
}

impl Files for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(File::create(self.path.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(OpenOptions::new().append(true).open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        weir_durable::sync_directory(&self.path)
    }
}

impl OpenFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
