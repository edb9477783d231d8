//! A log file of bounded size with a bounded number of predecessors: `weir-store.log`, `weir-store.log.1`, …
//!
//! Lines are written through at once, so that nothing is missing after `kill -9`. Logging never fails its caller: what
//! cannot be written is dropped, and the next line tries again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// A cloneable writer of one rotating file.
#[derive(Clone)]
pub(crate) struct RotatingFile(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    written: u64,
    bytes_max: u64,
    /// Files kept, the current one included.
    files_max: usize,
}

impl RotatingFile {
    /// Opens `path` for appending.
    pub(crate) fn open(path: PathBuf, bytes_max: u64, files_max: usize) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path, file, written, bytes_max, files_max: files_max.max(1) }))))
    }
}

impl Inner {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + line.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for age in (1..self.files_max).rev() {
            let younger = if age == 1 { self.path.clone() } else { numbered(&self.path, age - 1) };
            if younger.exists() {
                std::fs::rename(younger, numbered(&self.path, age))?;
            }
        }
        // With a single file there is no predecessor to move it to: it starts over.
        self.file = OpenOptions::new().create(true).write(true).truncate(true).open(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

/// The name of the predecessor that is so many files old.
pub(crate) fn numbered(path: &Path, age: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    name.into()
}

impl Write for &RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_line(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RotatingFile {
    type Writer = &'a RotatingFile;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn size_and_number_of_files_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.log");
        let log = RotatingFile::open(path.clone(), 10, 3).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "fifth\n", "six\n"] {
            (&log).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(read(&path), "fifth\nsix\n");
        assert_eq!(read(&numbered(&path, 1)), "four\n");
        assert_eq!(read(&numbered(&path, 2)), "three\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_restart_appends_to_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.log");
        (&RotatingFile::open(path.clone(), 100, 2).unwrap()).write_all(b"before\n").unwrap();
        (&RotatingFile::open(path.clone(), 100, 2).unwrap()).write_all(b"after\n").unwrap();
        assert_eq!(read(&path), "before\nafter\n");
    }
}
