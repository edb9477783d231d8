//! Damaged and hostile snapshots: typed errors, whatever is asked of them.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;
use weir_inspect::diff::diff;
use weir_inspect::export::{Format, write_table};
use weir_inspect::snapshot::verify_directory;
use weir_inspect::summary::{Depth, summarise};
use weir_inspect::{Snapshot, query};
use weir_types::{Code, Error};

use super::fixture::{open, state, write};

/// Everything that can be asked of a snapshot; the first error.
fn everything(snapshot: &Snapshot) -> Result<(), Error> {
    query::tables(snapshot)?;
    summarise(snapshot, Depth { ranges: None, heaviest: 3 })?;
    for table in snapshot.tables() {
        write_table(table, Format::Jsonl, Vec::new())?;
    }
    diff(snapshot, snapshot).map(|_diff| ())
}

fn expected(code: Code) -> bool {
    matches!(code, Code::Corrupt | Code::Unsupported | Code::NotFound | Code::FailedPrecondition)
}

/// Writes the manifest's content with a checksum that is right.
fn rewrite(directory: &Path, change: impl FnOnce(&mut Value)) {
    let path = directory.join("manifest.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut file["content"]);
    let crc = crc32c::crc32c(&serde_json::to_vec(&file["content"]).unwrap());
    file["crc32c"] = Value::from(format!("{crc:08x}"));
    fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
}

const STATE_FILE: &str = "state-1-0-a1-o0-groups.state.arrow";

/// Puts `bytes` in the state file's place, with a manifest whose checksums are those of `bytes`.
fn forge(directory: &Path, bytes: &[u8]) {
    fs::write(directory.join(STATE_FILE), bytes).unwrap();
    rewrite(directory, |content| {
        let file = content.pointer_mut("/manifest/operators/0/files/0").unwrap();
        file["crc32c"] = crc32c::crc32c(bytes).into();
        for block in file["blocks"].as_array_mut().unwrap() {
            let number = |name: &str| block[name].as_u64().unwrap() as usize;
            let (start, len) = (number("offset"), number("bytes"));
            block["crc32c"] = crc32c::crc32c(&bytes[start..start + len]).into();
        }
    });
}

#[test]
fn a_forged_bit_in_any_byte_lets_no_panic_out() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "sp-a", &state(2, 20), 1, 10);
    let bytes = fs::read(directory.path().join(STATE_FILE)).unwrap();
    for place in 0..bytes.len() {
        let mut forged = bytes.clone();
        // One bit of each byte, a different one from byte to byte: all bits of all would take minutes.
        forged[place] ^= 1 << (place % 8);
        forge(directory.path(), &forged);
        let read = open(directory.path())
            .and_then(|snapshot| summarise(&snapshot, Depth { ranges: None, heaviest: 3 }).map(drop));
        if let Err(error) = read {
            assert!(expected(error.code), "byte {place}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_flipped_bit_anywhere_is_an_error_or_makes_no_difference(file in 0usize..3, at in 0.0..1.0f64, bit in 0u8..8) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "sp-a", &state(2, 20), 2, 10);
        let mut names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let path = &names[file];
        let mut bytes = fs::read(path).unwrap();
        let place = (bytes.len() as f64 * at) as usize;
        bytes[place] ^= 1 << bit;
        fs::write(path, bytes).unwrap();
        match open(directory.path()).and_then(|snapshot| everything(&snapshot)) {
            Ok(()) => prop_assert!(path.ends_with("manifest.json"), "only white space of a manifest may change"),
            Err(error) => prop_assert!(expected(error.code), "{}", error),
        }
        let verified = verify_directory(directory.path().to_str().unwrap(), &mut |_| {});
        prop_assert!(path.ends_with("manifest.json") || verified.unwrap().findings() > 0);
    }

    #[test]
    fn a_forger_who_knows_the_checksums_causes_no_panic(flips in prop::collection::vec((0.0..1.0f64, any::<u8>()), 1..4)) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "sp-a", &state(2, 20), 1, 10);
        let mut bytes = fs::read(directory.path().join(STATE_FILE)).unwrap();
        for (at, value) in flips {
            let place = (bytes.len() as f64 * at) as usize;
            bytes[place] = value;
        }
        forge(directory.path(), &bytes);
        if let Err(error) = open(directory.path()).and_then(|snapshot| everything(&snapshot)) {
            prop_assert!(expected(error.code), "{}", error);
        }
        verify_directory(directory.path().to_str().unwrap(), &mut |_| {}).unwrap();
    }

    #[test]
    fn a_file_that_was_cut_is_an_error(file in 0usize..3, at in 0.0..1.0f64) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "sp-a", &state(2, 20), 2, 10);
        let mut names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let bytes = fs::read(&names[file]).unwrap();
        let kept = ((bytes.len() - 2) as f64 * at) as usize;
        fs::write(&names[file], &bytes[..kept]).unwrap();
        let error = open(directory.path()).and_then(|snapshot| everything(&snapshot)).unwrap_err();
        prop_assert!(expected(error.code), "{}", error);
    }
}

#[test]
fn a_hostile_manifest_leads_nowhere_and_takes_no_memory() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("sp");
    fs::write(parent.path().join("secret.state.arrow"), "x").unwrap();
    let file = "/manifest/operators/0/files/0";
    let cases: [(&str, Value); 9] = [
        ("/path", "../secret.state.arrow".into()),
        ("/path", "/etc/passwd".into()),
        ("/path", "../shared/../secret.state.arrow".into()),
        ("/path", "".into()),
        ("/bytes", u64::MAX.into()),
        ("/rows", u64::MAX.into()),
        ("/blocks/0/bytes", u64::MAX.into()),
        ("/blocks/0/offset", u64::MAX.into()),
        ("/blocks/0/rows", u64::MAX.into()),
    ];
    for (at, value) in cases {
        let _fresh = fs::remove_dir_all(&directory);
        write(&directory, "sp-a", &state(2, 20), 1, 10);
        rewrite(&directory, |content| *content.pointer_mut(&format!("{file}{at}")).unwrap() = value.clone());
        let result = open(&directory).and_then(|snapshot| everything(&snapshot));
        // How many rows a file has is told by its blocks; only verification compares the sum.
        let error = match result {
            Err(error) => error,
            Ok(()) => {
                assert_eq!(at, "/rows", "{value}");
                let report = verify_directory(directory.to_str().unwrap(), &mut |_| {}).unwrap();
                report.first_damage().unwrap().clone()
            }
        };
        assert_eq!(error.code, Code::Corrupt, "{at} = {value}: {error}");
    }
}

#[test]
fn what_is_no_snapshot_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(open(directory.path()).unwrap_err().code, Code::NotFound);
    fs::write(directory.path().join("manifest.json"), "{}").unwrap();
    assert_eq!(open(directory.path()).unwrap_err().code, Code::Corrupt);
    assert_eq!(Snapshot::open("s3://bucket/sp").unwrap_err().code, Code::Unsupported);
}
