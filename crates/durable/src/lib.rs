//! Directories and small files that survive a crash of the machine.
//!
//! On Linux a file's name is an entry of its directory: it is durable only once the directory is fsynced, and that
//! directory only once its own parent is (see fsync(2)). Everything here keeps that order. All of it blocks.

pub mod parts;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Creates a directory with whatever is missing above it, each of them durable in its parent.
///
/// # Errors
/// Whatever the operating system says; some of the directories may be there then.
pub fn create_directories(directory: &Path) -> io::Result<()> {
    create_directories_with(directory, sync_directory)
}

fn create_directories_with(directory: &Path, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let missing: Vec<_> =
        directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::create_dir_all(directory)?;
    for created in missing.iter().rev() {
        let parent = created.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// Whatever the operating system says.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Replaces a file by `bytes`: after a crash it is the old one or the new one, whole. Meanwhile `<name>.tmp` lies beside
/// it; a crash may leave that behind.
///
/// # Errors
/// Whatever the operating system says; the old file is still there then.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        // A full disk must not be held full by what could not be finished.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn every_directory_that_is_created_is_made_durable_in_its_parent() {
        let base = tempfile::tempdir().unwrap();
        let wanted = base.path().join("a/b");
        let synced = RefCell::new(Vec::new());
        let note = |path: &Path| {
            synced.borrow_mut().push(path.to_owned());
            sync_directory(path)
        };
        create_directories_with(&wanted, note).unwrap();
        assert!(wanted.is_dir());
        assert_eq!(synced.take(), [base.path().to_owned(), base.path().join("a")]);
        create_directories_with(&wanted, note).unwrap();
        assert_eq!(synced.take(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("positions.json");
        replace_file(&path, b"old").unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays_as_it_was() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("positions.json");
        fs::create_dir_all(path.join("in the way")).unwrap();
        replace_file(&path, b"new").unwrap_err();
        assert!(path.join("in the way").is_dir());
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }
}
