//! Long reads and writes that can be ended from outside: between two blocks, with an error that says why.
//!
//! Invariant: whoever began them holds the [`Stopper`]; when that is dropped, they end as well, so that nothing goes on
//! behind a leader that has given up its work.

use std::sync::{Arc, OnceLock};

use weir_state::store::{Created, NewFile, SnapshotStore, StoredFile};
use weir_types::{Error, Result};

/// Ends what reads and writes through its [`Stop`].
#[derive(Debug, Default)]
pub(crate) struct Stopper(Arc<OnceLock<Error>>);

/// Tells whether to go on.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<OnceLock<Error>>);

impl Stopper {
    /// Ends it for this reason, unless it has another one already.
    pub(crate) fn stop(&self, reason: Error) {
        let _had_one = self.0.set(reason);
    }

    /// Whether it was ended.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.get().is_some()
    }

    /// What it ends.
    pub(crate) fn token(&self) -> Stop {
        Stop(self.0.clone())
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.stop(Error::unavailable("the JobManager has given up its work"));
    }
}

impl Stop {
    /// Whether to go on.
    ///
    /// # Errors
    /// The reason not to.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.get().map_or(Ok(()), |reason| Err(reason.clone()))
    }
}

/// A store whose every call asks first whether to go on.
pub(crate) struct Stoppable {
    pub(crate) store: Box<dyn SnapshotStore>,
    pub(crate) stop: Stop,
}

struct StoppableFile {
    file: Box<dyn StoredFile>,
    stop: Stop,
}

impl SnapshotStore for Stoppable {
    fn describe(&self, file: &str) -> String {
        self.store.describe(file)
    }

    fn prepare(&self) -> Result<()> {
        self.stop.check()?;
        self.store.prepare()
    }

    fn create(&self, file: &str) -> Result<Box<dyn NewFile>> {
        self.stop.check()?;
        self.store.create(file)
    }

    fn publish(&self, file: &str, bytes: &[u8]) -> Result<Created> {
        self.stop.check()?;
        self.store.publish(file, bytes)
    }

    fn sync(&self) -> Result<()> {
        self.store.sync()
    }

    fn open(&self, file: &str) -> Result<Box<dyn StoredFile>> {
        self.stop.check()?;
        Ok(Box::new(StoppableFile { file: self.store.open(file)?, stop: self.stop.clone() }))
    }

    fn list(&self) -> Result<Vec<String>> {
        self.stop.check()?;
        self.store.list()
    }

    fn delete(&self, file: &str) -> Result<()> {
        self.store.delete(file)
    }

    fn delete_directory(&self) -> Result<bool> {
        self.store.delete_directory()
    }
}

impl StoredFile for StoppableFile {
    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        self.stop.check()?;
        self.file.read(offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use weir_state::open_store;
    use weir_types::Code;

    use super::*;

    #[test]
    fn whatever_goes_on_ends_with_the_first_reason_or_with_its_stopper() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "abc").unwrap();
        let (first, second) = (Stopper::default(), Stopper::default());
        let open = |stopper: &Stopper| Stoppable {
            store: open_store(directory.path().to_str().unwrap()).unwrap(),
            stop: stopper.token(),
        };
        let (store, other) = (open(&first), open(&second));
        let file = store.open("a").unwrap();
        assert_eq!(file.read(0, 3).unwrap(), b"abc");
        first.stop(Error::new(Code::Timeout, "late"));
        first.stop(Error::new(Code::Cancelled, "later"));
        assert_eq!(file.read(0, 3).unwrap_err().code, Code::Timeout);
        assert_eq!(store.open("a").err().map(|error| error.code), Some(Code::Timeout));
        assert_eq!(store.create("b").err().map(|error| error.code), Some(Code::Timeout));
        assert!(other.open("a").is_ok());
        drop(second);
        assert_eq!(other.open("a").err().map(|error| error.code), Some(Code::Unavailable));
    }
}
