//! Fail points: named places between two steps of a durability order where a test lets a process end as kill −9 ends it.
//!
//! `WEIR_FAIL_POINT=NAME=FILE` in the environment of a debug build makes the process create FILE, which proves that the
//! place was reached, and end at once when it gets to the place called NAME. Release builds have no fail points: there,
//! [`reach`] is empty.

/// The variable that names a fail point and the file that proves it was reached.
pub const VARIABLE: &str = "WEIR_FAIL_POINT";

/// Ends the process if the environment says so.
#[cfg(debug_assertions)]
pub fn reach(name: &str) {
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    if let Some(proof) = proof(&wanted, name) {
        tracing::error!(fail_point = name, "ending here, as a test wants it");
        // Without the file the test fails: that is all that can be done about an error here.
        let _written = std::fs::write(proof, name);
        std::process::abort();
    }
}

/// Does nothing: this is a release build.
#[cfg(not(debug_assertions))]
pub fn reach(_name: &str) {}

/// The file to create, if this is the fail point that is wanted.
#[cfg(debug_assertions)]
fn proof<'a>(wanted: &'a str, name: &str) -> Option<&'a str> {
    wanted.split_once('=').filter(|(wanted, _)| *wanted == name).map(|(_, proof)| proof)
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn only_the_place_that_was_named_is_one() {
        assert_eq!(proof("delete.files=/tmp/a=b", "delete.files"), Some("/tmp/a=b"));
        assert_eq!(proof("delete.files=/tmp/a", "delete.file"), None);
        assert_eq!(proof("delete.files", "delete.files"), None);
        // Nothing is named in this process's environment.
        reach("delete.files");
    }
}
