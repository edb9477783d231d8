//! A directory in memory that forgets, in a crash, what was not synced: bytes at the end of files, which may be torn, and
//! the newest changes of names.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::random::Random;
use weir_replication::stepwise::{Files, OpenFile};

const SECTOR_BYTES: usize = 512;

/// A member's directory; clones share it, and it outlives the member.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    names: BTreeMap<String, u64>,
    names_durable: BTreeMap<String, u64>,
    /// What happened to names since the directory was synced.
    renamings: Vec<Renaming>,
    files: BTreeMap<u64, Bytes>,
    created: u64,
    /// So many more changes succeed.
    changes_left: Option<u64>,
    /// The planted bug: syncing does nothing.
    ignores_sync: bool,
}

#[derive(Default)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

enum Renaming {
    Is(String, u64),
    Gone(String),
    Moved(String, String),
}

impl Disk {
    /// A disk that lies about syncing.
    pub(crate) fn ignoring_sync() -> Self {
        Self(Arc::new(Mutex::new(Content { ignores_sync: true, ..Content::default() })))
    }

    /// Lets `changes` more changes succeed and none after them, until the crash.
    pub(crate) fn fail_after(&self, changes: u64) {
        self.0.lock().changes_left = Some(changes);
    }

    /// Loses what a crash of the machine would.
    pub(crate) fn crash(&self, random: &mut Random) {
        let content = &mut *self.0.lock();
        content.changes_left = None;
        let kept = random.below(content.renamings.len() as u64 + 1) as usize;
        for renaming in content.renamings.drain(..).take(kept) {
            renaming.apply(&mut content.names_durable);
        }
        content.names = content.names_durable.clone();
        content.files.retain(|file, _| content.names.values().any(|named| named == file));
        for bytes in content.files.values_mut() {
            if let Some(tail) = bytes.now.strip_prefix(&bytes.durable[..]).filter(|tail| !tail.is_empty()) {
                let tail = torn(tail, bytes.durable.len(), random);
                bytes.durable.extend(tail);
            }
            bytes.now = bytes.durable.clone();
        }
    }
}

/// What may be left of bytes that were written at `offset` and not synced.
fn torn(tail: &[u8], offset: usize, random: &mut Random) -> Vec<u8> {
    match random.below(3) {
        0 => Vec::new(),
        1 => tail[..random.below(tail.len() as u64 + 1) as usize].to_vec(),
        _ => {
            // The file has its new length, but some sectors of it never arrived.
            let mut tail = tail.to_vec();
            let sectors = (offset + tail.len()).div_ceil(SECTOR_BYTES) - offset / SECTOR_BYTES;
            let lost = offset / SECTOR_BYTES + random.below(sectors as u64) as usize;
            for (place, byte) in tail.iter_mut().enumerate() {
                if (offset + place) / SECTOR_BYTES == lost {
                    *byte = 0;
                }
            }
            tail
        }
    }
}

impl Renaming {
    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Is(name, file) => drop(names.insert(name, file)),
            Self::Gone(name) => drop(names.remove(&name)),
            Self::Moved(from, to) => {
                if let Some(file) = names.remove(&from) {
                    names.insert(to, file);
                }
            }
        }
    }
}

impl Content {
    fn change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            Some(0) => Err(io::Error::other("the machine is about to crash")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn file(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&mut self, renaming: Renaming, again: Renaming) -> io::Result<()> {
        self.change()?;
        renaming.apply(&mut self.names);
        self.renamings.push(again);
        Ok(())
    }
}

impl Files for Disk {
    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let content = self.0.lock();
        Ok(content.files[&content.file(name)?].now.clone())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn OpenFile>> {
        let mut content = self.0.lock();
        content.created += 1;
        let file = content.created;
        content.rename(Renaming::Is(name.to_owned(), file), Renaming::Is(name.to_owned(), file))?;
        content.files.insert(file, Bytes::default());
        Ok(Box::new(Handle { disk: self.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn OpenFile>> {
        let file = self.0.lock().file(name)?;
        Ok(Box::new(Handle { disk: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let moved = || Renaming::Moved(from.to_owned(), to.to_owned());
        self.0.lock().rename(moved(), moved())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let gone = || Renaming::Gone(name.to_owned());
        self.0.lock().rename(gone(), gone())
    }

    fn sync(&self) -> io::Result<()> {
        let content = &mut *self.0.lock();
        content.change()?;
        if !content.ignores_sync {
            content.renamings.clear();
            content.names_durable = content.names.clone();
        }
        Ok(())
    }
}

struct Handle {
    disk: Disk,
    file: u64,
}

impl Handle {
    fn change(&self, change: impl FnOnce(&mut Bytes)) -> io::Result<()> {
        let content = &mut *self.disk.0.lock();
        content.change()?;
        change(content.files.entry(self.file).or_default());
        Ok(())
    }
}

impl OpenFile for Handle {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.change(|file| file.now.extend_from_slice(bytes))
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.change(|file| file.now.truncate(length as usize))
    }

    fn sync(&mut self) -> io::Result<()> {
        let ignored = self.disk.0.lock().ignores_sync;
        self.change(|file| {
            // Only what is new is copied: logs are appended to and synced often.
            if !ignored && file.now.len() >= file.durable.len() {
                file.durable.extend_from_slice(&file.now[file.durable.len()..]);
            } else if !ignored {
                file.durable.clone_from(&file.now);
            }
        })
    }
}
