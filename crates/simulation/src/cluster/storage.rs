//! The directory of snapshots that all processes share, in memory: conditional creates, names and bytes that are lost with
//! the machine that wrote them until they are synced.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use weir_state::store::{Created, NewFile, SnapshotStore, StoredFile};
use weir_types::{Code, Error, Result};

/// Who writes: what was not synced is lost with it.
pub(super) type Writer = String;

/// All directories.
#[derive(Clone, Default)]
pub(super) struct Storage(Arc<Mutex<BTreeMap<String, Directory>>>);

type Directory = BTreeMap<String, File>;

#[derive(Clone)]
struct File {
    bytes: Arc<Vec<u8>>,
    /// Who would take it along in a crash; none: it is durable.
    unsynced_of: Option<Writer>,
}

/// One directory of it, as the production code for manifests sees it.
pub(super) struct View {
    storage: Storage,
    path: String,
}

impl Storage {
    /// A directory.
    pub(super) fn open(&self, path: &str) -> View {
        View { storage: self.clone(), path: path.to_owned() }
    }

    /// Makes a directory if it is not there.
    pub(super) fn make(&self, path: &str) {
        self.0.lock().entry(path.to_owned()).or_default();
    }

    /// Writes a file without syncing it.
    pub(super) fn write(&self, path: &str, name: &str, bytes: Vec<u8>, writer: &Writer) -> Result<()> {
        let mut directories = self.0.lock();
        let gone = || Error::new(Code::Io, format!("{path} is gone"));
        let directory = directories.get_mut(path).ok_or_else(gone)?;
        if directory.contains_key(name) {
            return Err(Error::new(Code::AlreadyExists, format!("{path}/{name} exists")));
        }
        directory.insert(name.to_owned(), File { bytes: Arc::new(bytes), unsynced_of: Some(writer.clone()) });
        Ok(())
    }

    /// Makes a file durable.
    pub(super) fn sync(&self, path: &str, name: &str) -> Result<()> {
        let mut directories = self.0.lock();
        let file = directories.get_mut(path).and_then(|directory| directory.get_mut(name));
        file.ok_or_else(|| Error::new(Code::Io, format!("{path}/{name} is gone")))?.unsynced_of = None;
        Ok(())
    }

    /// Deletes a file, if it is there.
    pub(super) fn delete(&self, path: &str, name: &str) {
        if let Some(directory) = self.0.lock().get_mut(path) {
            directory.remove(name);
        }
    }

    /// A machine crashed: what it had not synced is lost.
    pub(super) fn crash(&self, writer: &Writer) {
        for directory in self.0.lock().values_mut() {
            directory.retain(|_, file| file.unsynced_of.as_ref() != Some(writer));
        }
    }

    /// A durable file.
    pub(super) fn read(&self, path: &str, name: &str) -> Option<Arc<Vec<u8>>> {
        let directories = self.0.lock();
        let file = directories.get(path)?.get(name).filter(|file| file.unsynced_of.is_none())?;
        Some(file.bytes.clone())
    }

    /// Bytes by directory.
    pub(super) fn sizes(&self) -> BTreeMap<String, u64> {
        let size = |directory: &Directory| directory.values().map(|file| file.bytes.len() as u64).sum();
        self.0.lock().iter().map(|(path, directory)| (path.clone(), size(directory))).collect()
    }

    /// Bytes of a file; zero if there is none.
    pub(super) fn size(&self, path: &str, name: &str) -> u64 {
        let directories = self.0.lock();
        directories.get(path).and_then(|directory| directory.get(name)).map_or(0, |file| file.bytes.len() as u64)
    }

    /// The names in a directory.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        self.0.lock().get(path).map(|directory| directory.keys().cloned().collect()).unwrap_or_default()
    }
}

impl SnapshotStore for View {
    fn describe(&self, file: &str) -> String {
        format!("{}/{file}", self.path)
    }

    fn prepare(&self) -> Result<()> {
        self.storage.make(&self.path);
        Ok(())
    }

    fn create(&self, file: &str) -> Result<Box<dyn NewFile>> {
        Ok(Box::new(Creating { view: self.storage.open(&self.path), name: file.to_owned(), bytes: Vec::new() }))
    }

    fn publish(&self, file: &str, bytes: &[u8]) -> Result<Created> {
        self.prepare()?;
        let mut directories = self.storage.0.lock();
        let directory = directories.entry(self.path.clone()).or_default();
        if directory.contains_key(file) {
            return Ok(Created::Exists);
        }
        directory.insert(file.to_owned(), File { bytes: Arc::new(bytes.to_vec()), unsynced_of: None });
        Ok(Created::New)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn open(&self, file: &str) -> Result<Box<dyn StoredFile>> {
        let directories = self.storage.0.lock();
        let found = directories.get(&self.path).and_then(|directory| directory.get(file));
        let found = found.ok_or_else(|| Error::not_found(format!("{}/{file} does not exist", self.path)))?;
        Ok(Box::new(Opened(found.bytes.clone())))
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(self.storage.names(&self.path))
    }

    fn delete(&self, file: &str) -> Result<()> {
        self.storage.delete(&self.path, file);
        Ok(())
    }

    fn delete_directory(&self) -> Result<bool> {
        let mut directories = self.storage.0.lock();
        let empty = directories.get(&self.path).is_none_or(BTreeMap::is_empty);
        if empty {
            directories.remove(&self.path);
        }
        Ok(empty)
    }
}

struct Opened(Arc<Vec<u8>>);

impl StoredFile for Opened {
    fn len(&self) -> Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let from = offset as usize;
        let slice = self.0.get(from..from + bytes);
        slice.map(<[u8]>::to_vec).ok_or_else(|| Error::new(Code::Corrupt, "the file ends before"))
    }
}

struct Creating {
    view: View,
    name: String,
    bytes: Vec<u8>,
}

impl Write for Creating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NewFile for Creating {
    fn finish(self: Box<Self>) -> Result<()> {
        self.view.publish(&self.name, &self.bytes).map(drop)
    }
}
