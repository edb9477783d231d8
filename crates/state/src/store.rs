//! Where snapshots lie: a directory that is written to by conditional creates only.
//!
//! Promises: a file appears under its name at most once, whoever races for it; what [`NewFile::finish`],
//! [`SnapshotStore::publish`] and [`SnapshotStore::sync`] return from is on disk, directory entries included. A local
//! directory is one implementation; object stores with conditional create can be others, those without are refused.
//! Calls block: they belong on a files thread.
//!
//! Names are plain, or `../shared/` and a plain name: files that several snapshots refer to lie in a directory beside
//! theirs. It is made when a file in it is, and is no part of any one snapshot: neither listed nor deleted with it. Whoever
//! deletes the last file in it may delete it as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use weir_types::snapshot::SHARED_PREFIX;
use weir_types::{Code, Error, Result};

/// What the directory of files that several snapshots refer to is called; it lies beside theirs.
pub const SHARED_DIRECTORY: &str = "shared";
/// How often a directory that vanishes before a file is in it is made again.
const CREATE_TRIES: u32 = 8;
/// So much is left to the kernel's own time before it is told to write it out.
const WRITE_OUT_BYTES: u64 = 4 << 20;

/// Whether a conditional create found the name free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is ours.
    New,
    /// Somebody was there before; nothing was changed.
    Exists,
}

/// A directory of one snapshot.
pub trait SnapshotStore: Send + Sync {
    /// For messages: where this is, with a file's name.
    fn describe(&self, file: &str) -> String;

    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// `IO`, `RESOURCE_EXHAUSTED`.
    fn prepare(&self) -> Result<()>;

    /// Starts a file that must not exist, in a directory that must: one that was swept meanwhile does not come back.
    /// Readers may see the file before it is finished.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, `IO`, `RESOURCE_EXHAUSTED`.
    fn create(&self, file: &str) -> Result<Box<dyn NewFile>>;

    /// Creates a whole file at once if the name is free; nobody ever sees a part of it.
    ///
    /// # Errors
    /// `IO`, `RESOURCE_EXHAUSTED`.
    fn publish(&self, file: &str, bytes: &[u8]) -> Result<Created>;

    /// Makes the names of finished files durable.
    ///
    /// # Errors
    /// `IO`.
    fn sync(&self) -> Result<()>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`.
    fn open(&self, file: &str) -> Result<Box<dyn StoredFile>>;

    /// The names of all files.
    ///
    /// # Errors
    /// `IO`. A directory that does not exist has no files.
    fn list(&self) -> Result<Vec<String>>;

    /// Deletes a file; one that is gone already is no error.
    ///
    /// # Errors
    /// `IO`.
    fn delete(&self, file: &str) -> Result<()>;

    /// Deletes the directory itself; says whether it is gone. Not gone: something else is in it.
    ///
    /// # Errors
    /// `IO`.
    fn delete_directory(&self) -> Result<bool>;
}

/// A file being written. Dropped without [`NewFile::finish`], it is deleted.
pub trait NewFile: Write {
    /// Makes the contents durable; the name is after [`SnapshotStore::sync`].
    ///
    /// # Errors
    /// `IO`, `RESOURCE_EXHAUSTED`.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A file open for reading.
pub trait StoredFile: Send {
    /// Its length in bytes.
    ///
    /// # Errors
    /// `IO`.
    fn len(&self) -> Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// `IO`.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads `bytes` bytes from `offset`.
    ///
    /// # Errors
    /// `CORRUPT` if the file ends before, `IO`.
    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>>;
}

/// The store at `location`: a path, or a `file://` URL.
///
/// # Errors
/// `UNSUPPORTED` for other kinds of URLs.
pub fn open_store(location: &str) -> Result<Box<dyn SnapshotStore>> {
    let path = location.strip_prefix("file://").unwrap_or(location);
    match path.split_once("://") {
        None => Ok(Box::new(LocalDirectory::new(path))),
        Some((scheme, _)) => {
            Err(Error::new(Code::Unsupported, format!("snapshots cannot be kept in {scheme}:// locations yet"))
                .with_detail(location)
                .with_hint("Use a directory that every process can reach, as a path or a file:// URL."))
        }
    }
}

/// A directory of this machine, or of a file system shared by all.
#[derive(Debug)]
pub struct LocalDirectory {
    path: PathBuf,
}

impl LocalDirectory {
    /// The directory at `path`; it is created by [`SnapshotStore::prepare`] or with a published file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        let (directory, plain_name) = match name.strip_prefix(SHARED_PREFIX) {
            Some(shared) => (self.shared(), shared),
            None => (self.path.clone(), name),
        };
        let plain = !plain_name.is_empty() && !plain_name.starts_with('.') && !plain_name.contains(['/', '\\', '\0']);
        if plain {
            return Ok(directory.join(plain_name));
        }
        // Names come out of manifests, which may be anybody's: they must not lead out of the directory.
        Err(Error::new(Code::Corrupt, format!("{name:?} is not a file name of a snapshot")))
    }

    /// The directory of files that several snapshots refer to.
    fn shared(&self) -> PathBuf {
        self.path.parent().map_or_else(|| self.path.join(SHARED_PREFIX), |parent| parent.join(SHARED_DIRECTORY))
    }
}

impl SnapshotStore for LocalDirectory {
    fn describe(&self, file: &str) -> String {
        self.path.join(file).display().to_string()
    }

    fn prepare(&self) -> Result<()> {
        ensure(&self.path)
    }

    fn create(&self, file: &str) -> Result<Box<dyn NewFile>> {
        let path = self.file(file)?;
        let open = || OpenOptions::new().write(true).create_new(true).open(&path);
        let mut opened = open();
        for _ in 0..CREATE_TRIES {
            // It is not there yet, or somebody has just deleted the last file in it.
            let missing = opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if !missing || !file.starts_with(SHARED_PREFIX) {
                break;
            }
            opened = weir_durable::create_directories(&self.shared()).and_then(|()| open());
        }
        match opened {
            Ok(file) => Ok(Box::new(LocalFile { file, path, written: 0, started: 0, finished: false })),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::new(Code::AlreadyExists, format!("file {} exists already", path.display()))
                    .with_detail("Files of snapshots are written once, under names that no other attempt uses."))
            }
            Err(error) => Err(io_error("create", &path, &error)),
        }
    }

    fn publish(&self, file: &str, bytes: &[u8]) -> Result<Created> {
        ensure(&self.path)?;
        let target = self.file(file)?;
        // The temporary name is this process's own; a left-over of a crashed one with the same id is overwritten.
        let temporary = self.path.join(format!(".{file}.{}.tmp", std::process::id()));
        let write = || -> io::Result<Created> {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            match fs::hard_link(&temporary, &target) {
                Ok(()) => Ok(Created::New),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Exists),
                Err(error) => Err(error),
            }
        };
        let created = write();
        // Whether or not it worked, the temporary name has served; one that stays is swept with the snapshot.
        let _ = fs::remove_file(&temporary);
        let created = created.map_err(|error| io_error("publish", &target, &error))?;
        sync_directory(&self.path)?;
        Ok(created)
    }

    fn sync(&self) -> Result<()> {
        [&self.path, &self.shared()].into_iter().filter(|path| path.is_dir()).try_for_each(|path| sync_directory(path))
    }

    fn open(&self, file: &str) -> Result<Box<dyn StoredFile>> {
        let path = self.file(file)?;
        match File::open(&path) {
            Ok(file) => Ok(Box::new(LocalStored { file, path })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::not_found(format!("file {} does not exist", path.display())).with_hint(
                    "A snapshot is the whole directory: check that it was copied completely and that this process \
                     can see it.",
                ))
            }
            Err(error) => Err(io_error("open", &path, &error)),
        }
    }

    fn list(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("list", &self.path, &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| io_error("list", &self.path, &error))?;
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, file: &str) -> Result<()> {
        // Temporary names begin with a dot.
        let path = match file.strip_prefix('.').filter(|_| !file.starts_with(SHARED_PREFIX)) {
            Some(hidden) => self.file(hidden).map(|_| self.path.join(file))?,
            None => self.file(file)?,
        };
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("delete", &path, &error)),
        }
    }

    fn delete_directory(&self) -> Result<bool> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => Err(io_error("delete directory", &self.path, &error)),
        }
    }
}

struct LocalFile {
    file: File,
    path: PathBuf,
    written: u64,
    /// As many of these bytes are on their way to the disk, or there.
    started: u64,
    finished: bool,
}

impl LocalFile {
    /// Has the kernel begin to write out what it has got, so that the disk works while the rest is made, and syncing waits
    /// for little. Pages that are not needed any more are written first, which is what it is told.
    fn write_out(&mut self) {
        if let Some(bytes) = NonZeroU64::new(self.written - self.started).filter(|bytes| bytes.get() >= WRITE_OUT_BYTES)
        {
            // Only an advice: without it, all is written when the file is synced.
            let _advised = fadvise(&self.file, self.started, Some(bytes), Advice::DontNeed);
            self.started = self.written;
        }
    }
}

impl Write for LocalFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        self.write_out();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl NewFile for LocalFile {
    fn finish(mut self: Box<Self>) -> Result<()> {
        self.file.sync_all().map_err(|error| io_error("sync", &self.path, &error))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing refers to it; should this fail, the snapshot's directory is swept when it is aborted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

struct LocalStored {
    file: File,
    path: PathBuf,
}

impl StoredFile for LocalStored {
    fn len(&self) -> Result<u64> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|error| io_error("read", &self.path, &error))
    }

    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        // The length comes out of a manifest: check it against the file before memory is taken.
        let len = self.len()?;
        if offset.checked_add(bytes as u64).is_none_or(|end| end > len) {
            return Err(Error::new(Code::Corrupt, format!("file {} is too short", self.path.display())).with_detail(
                format!("bytes {offset} to {} are wanted, it has {len}", offset.saturating_add(bytes as u64)),
            ));
        }
        let mut buffer = vec![0; bytes];
        self.file.read_exact_at(&mut buffer, offset).map_err(|error| io_error("read", &self.path, &error))?;
        Ok(buffer)
    }
}

/// Creates a directory; every directory entry made on the way is synced.
fn ensure(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    weir_durable::create_directories(path).map_err(|error| io_error("create directory", path, &error))
}

fn sync_directory(path: &Path) -> Result<()> {
    weir_durable::sync_directory(path).map_err(|error| io_error("sync", path, &error))
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::io(format!("could not {what} {}", path.display()), error)
}
