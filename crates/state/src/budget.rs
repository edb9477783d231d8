//! A directory in which every byte is drawn from a budget before it is written.
//!
//! Promise: what lies in the directory never exceeds what was drawn. A file that is deleted again gives nothing back: its
//! bytes were granted, and are settled with the snapshot.

use std::io::{self, Write};
use std::sync::Arc;

use weir_types::Result;

use crate::store::{Created, NewFile, SnapshotStore, StoredFile};

/// Who says how much may be written.
pub trait WriteBudget: Send + Sync {
    /// Takes `bytes` out of what was granted; waits for more where that does not suffice.
    ///
    /// # Errors
    /// If no more is granted; then nothing more may be written.
    fn draw(&self, bytes: u64) -> Result<()>;
}

/// A budget without a limit, for snapshots that nobody accounts for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl WriteBudget for Unlimited {
    fn draw(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
}

/// A store whose writes are drawn from a budget.
pub struct Budgeted {
    store: Box<dyn SnapshotStore>,
    budget: Arc<dyn WriteBudget>,
}

impl Budgeted {
    /// Everything written to `store` through this is drawn from `budget`.
    pub fn new(store: Box<dyn SnapshotStore>, budget: Arc<dyn WriteBudget>) -> Self {
        Self { store, budget }
    }
}

impl SnapshotStore for Budgeted {
    fn describe(&self, file: &str) -> String {
        self.store.describe(file)
    }

    fn prepare(&self) -> Result<()> {
        self.store.prepare()
    }

    fn create(&self, file: &str) -> Result<Box<dyn NewFile>> {
        let file = self.store.create(file)?;
        Ok(Box::new(BudgetedFile { file, budget: Arc::clone(&self.budget), ahead: 0 }))
    }

    fn publish(&self, file: &str, bytes: &[u8]) -> Result<Created> {
        self.budget.draw(bytes.len() as u64)?;
        self.store.publish(file, bytes)
    }

    fn sync(&self) -> Result<()> {
        self.store.sync()
    }

    fn open(&self, file: &str) -> Result<Box<dyn StoredFile>> {
        self.store.open(file)
    }

    fn list(&self) -> Result<Vec<String>> {
        self.store.list()
    }

    fn delete(&self, file: &str) -> Result<()> {
        self.store.delete(file)
    }

    fn delete_directory(&self) -> Result<bool> {
        self.store.delete_directory()
    }
}

struct BudgetedFile {
    file: Box<dyn NewFile>,
    budget: Arc<dyn WriteBudget>,
    /// Bytes drawn that the file did not take at once.
    ahead: u64,
}

impl Write for BudgetedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wanted = bytes.len() as u64;
        if wanted > self.ahead {
            self.budget.draw(wanted - self.ahead).map_err(io::Error::other)?;
            self.ahead = wanted;
        }
        let written = self.file.write(bytes)?;
        self.ahead -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl NewFile for BudgetedFile {
    fn finish(self: Box<Self>) -> Result<()> {
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use weir_types::{Code, Error};

    use super::*;
    use crate::frozen::{FrozenTable, HashedRow, RowRef};
    use crate::{LocalDirectory, write_tables};

    /// So many bytes, and then a refusal.
    struct Purse(Mutex<u64>);

    impl WriteBudget for Purse {
        fn draw(&self, bytes: u64) -> Result<()> {
            let mut left = self.0.lock().unwrap();
            *left = left.checked_sub(bytes).ok_or_else(|| Error::new(Code::QuotaExceeded, "the purse is empty"))?;
            Ok(())
        }
    }

    fn table() -> Vec<FrozenTable> {
        let rows: Vec<_> = (0..100).map(|hash| HashedRow { hash, row: RowRef { segment: 0, slot: 0 } }).collect();
        vec![FrozenTable::of_rows("t", move |show| show(&rows))]
    }

    #[test]
    fn exactly_the_bytes_of_the_files_are_drawn_and_one_less_is_a_refusal_that_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: u64| {
            let purse = Arc::new(Purse(Mutex::new(bytes)));
            let local = Box::new(LocalDirectory::new(directory.path().join(name)));
            (Budgeted::new(local, Arc::clone(&purse) as Arc<dyn WriteBudget>), purse)
        };
        let (store, purse) = open("enough", 1 << 20);
        let files = write_tables(table(), &store, "p").unwrap();
        let bytes = files[0].bytes;
        assert_eq!(*purse.0.lock().unwrap(), (1 << 20) - bytes);
        assert_eq!(std::fs::metadata(directory.path().join("enough").join(&files[0].path)).unwrap().len(), bytes);

        let (store, purse) = open("exact", bytes);
        write_tables(table(), &store, "p").unwrap();
        assert_eq!(*purse.0.lock().unwrap(), 0);

        let (store, _) = open("short", bytes - 1);
        let error = write_tables(table(), &store, "p").unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::QuotaExceeded, "the purse is empty"));
        assert_eq!(store.list().unwrap(), Vec::<String>::new());
    }
}
