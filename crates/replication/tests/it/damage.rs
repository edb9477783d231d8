//! What a crash may leave behind is recovered; what it cannot have left is reported with its file.

use std::path::{Path, PathBuf};

use weir_types::Code;

use crate::ledger::{applied, commands, propose, start_alone};

/// A directory in which `count` commands have been applied one after the other, and its log file.
async fn written(dir: &Path, count: usize) -> PathBuf {
    let node = start_alone(dir).unwrap();
    node.serving().await.unwrap();
    propose(&node, 0, count).await;
    node.stop().await;
    log_file(dir)
}

fn log_file(dir: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-")).unwrap()
}

/// Starts a member on a copy of `dir` with another log, and returns what it has applied when it serves.
async fn recover(dir: &Path, log: &[u8]) -> weir_types::Result<Vec<String>> {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    std::fs::write(log_file(copy.path()), log).unwrap();
    let node = start_alone(copy.path())?;
    node.serving().await.unwrap();
    let state = applied(&node);
    node.stop().await;
    Ok(state)
}

#[tokio::test]
async fn a_log_cut_anywhere_keeps_every_whole_record() {
    let dir = tempfile::tempdir().unwrap();
    let log = std::fs::read(written(dir.path(), 6).await).unwrap();
    // Magic, the first frame's header, its payload: this much appears in one step, when the file gets its name.
    let first_end = 12 + 20 + u32::from_le_bytes(log[12..16].try_into().unwrap()) as usize;
    let (mut found, mut last) = (std::collections::BTreeSet::new(), usize::MAX);
    for length in (0..=log.len()).rev() {
        let recovered = recover(dir.path(), &log[..length]).await;
        if length < first_end {
            assert_eq!(recovered.unwrap_err().code, Code::Corrupt, "cut at {length}");
            continue;
        }
        let state = recovered.unwrap();
        assert_eq!(state, commands(0, state.len()), "cut at {length}");
        assert!(state.len() <= last, "cut at {length}");
        last = state.len();
        found.insert(last);
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), (0..=6).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_last_record_whose_sectors_never_arrived_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = std::fs::read(written(dir.path(), 3).await).unwrap();
    log.extend_from_slice(&[0; 700]);
    assert_eq!(recover(dir.path(), &log).await.unwrap(), commands(0, 3));
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_reported_with_file_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 4).await;
    let log = std::fs::read(&path).unwrap();
    for place in 0..log.len() {
        let mut damaged = log.clone();
        damaged[place] ^= 1 << (place % 8);
        let error = recover(dir.path(), &damaged).await.unwrap_err();
        assert_eq!(error.code, Code::Corrupt, "byte {place}: {error}");
        assert!(error.message.contains("log-") && error.message.contains("offset"), "byte {place}: {error}");
    }
}

#[tokio::test]
async fn a_zeroed_record_in_the_middle_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = std::fs::read(written(dir.path(), 40).await).unwrap();
    let middle = log.len() / 1024 * 512;
    log[middle..middle + 512].fill(0);
    assert_eq!(recover(dir.path(), &log).await.unwrap_err().code, Code::Corrupt);
}

#[tokio::test]
async fn a_damaged_or_missing_snapshot_is_reported_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 1).await;
    let snapshot = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("snapshot-"))
        .unwrap();
    let whole = std::fs::read(&snapshot).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() - 1], b""] {
        std::fs::write(&snapshot, bytes).unwrap();
        let error = start_alone(dir.path()).err().unwrap();
        assert_eq!(error.code, Code::Corrupt);
        assert!(error.message.contains(&*snapshot.to_string_lossy()), "{error}");
    }
    std::fs::remove_file(&snapshot).unwrap();
    assert_eq!(start_alone(dir.path()).err().unwrap().code, Code::Corrupt);
}

#[tokio::test]
async fn what_an_interrupted_replacement_leaves_is_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let log = written(dir.path(), 3).await;
    // A snapshot that no log names yet, and files that were not renamed yet.
    for leftover in ["snapshot-00000000000000ff", "snapshot-00000000000000ff.tmp", "log-0000000000000009.tmp"] {
        std::fs::write(dir.path().join(leftover), "half").unwrap();
    }
    // An older log that was to be deleted.
    std::fs::write(dir.path().join("log-0000000000000000"), "old").unwrap();
    let node = start_alone(dir.path()).unwrap();
    node.serving().await.unwrap();
    assert_eq!(applied(&node), commands(0, 3));
    node.stop().await;
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let log = log.file_name().unwrap().to_str().unwrap();
    assert_eq!(names, ["LOCK", log, "snapshot-0000000000000001"]);
}
