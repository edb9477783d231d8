//! What the store asks of the file system: positioned writes, syncs, atomic replacement of small files, the lock.
//!
//! Durability order of a replacement: write a temporary file, fsync it, rename it, fsync the directory. Creation of a
//! file or directory counts only once its directory is fsynced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read};
use std::path::Path;

use rustix::fs::FlockOperation;
use weir_types::{Code, Error, Result};

/// Writing and syncing of segment files; an argument of the store, so that tests can fill the disk or fail an fsync.
pub trait Disk: Send + Sync {
    /// Writes all of `slices` at `position`.
    ///
    /// # Errors
    /// Whatever the operating system says; part of the bytes may have been written then.
    fn write_all_at(&self, file: &File, slices: &mut [IoSlice<'_>], position: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// Whatever the operating system says; nothing may be assumed about earlier writes then.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// Linux takes at most this many slices at once.
const MAX_SLICES: usize = 1024;

impl Disk for RealDisk {
    fn write_all_at(&self, file: &File, mut slices: &mut [IoSlice<'_>], mut position: u64) -> io::Result<()> {
        while !slices.is_empty() {
            let some = slices.len().min(MAX_SLICES);
            let written = match rustix::io::pwritev(file, &slices[..some], position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            position += written as u64;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        rustix::fs::fdatasync(file).map_err(Into::into)
    }
}

/// Reads up to `len` bytes at `position`; fewer only at the end of the file.
pub(crate) fn read_at(file: &File, position: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(len.max(1));
    while out.len() < len {
        let at = position + out.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut out), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    out.truncate(len);
    Ok(out)
}

/// Makes the entries of `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    weir_durable::sync_directory(dir)
        .map_err(|error| Error::io(format!("directory {} could not be synced", dir.display()), &error))
}

/// Replaces `path` by `bytes` so that a crash leaves the old file or the new one, whole.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    weir_durable::replace_file(path, bytes)
        .map_err(|error| Error::io(format!("{} could not be written", path.display()), &error))
}

/// The whole file, or `None` if there is none.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("{} could not be read", path.display()), &error)),
    }
}

/// Creates `dir` and its parents, each of them durable in its own parent.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    weir_durable::create_directories(dir)
        .map_err(|error| Error::io(format!("directory {} could not be created", dir.display()), &error))
}

/// Removes a file or a directory tree; gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("{} could not be removed", path.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Locks a data directory for as long as the file stays open.
pub(crate) fn lock_dir(dir: &Path) -> Result<File> {
    let path = dir.join("LOCK");
    let failed = |error: io::Error| Error::io(format!("{} could not be opened", path.display()), &error);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::new(Code::FailedPrecondition, format!("{} is in use by another store", dir.display()))
                .with_hint("Stop the other store first, or choose another data directory."))
        }
        Err(error) => Err(Error::io(format!("{} could not be locked", path.display()), &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_dir(dir.path()).unwrap();
        let error = lock_dir(dir.path()).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        drop(held);
        lock_dir(dir.path()).unwrap();
    }

    #[test]
    fn many_slices_are_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("f")).unwrap();
        let words: Vec<String> = (0..3000).map(|i| format!("{i},")).collect();
        let mut slices: Vec<IoSlice<'_>> = words.iter().map(|word| IoSlice::new(word.as_bytes())).collect();
        RealDisk.write_all_at(&file, &mut slices, 5).unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap()[5..], *words.concat().as_bytes());
    }
}
