//! Names for what a sink leaves elsewhere: files, producers.

/// Characters of a uid that go into a name.
const LENGTH_MAX: usize = 64;

/// A uid as part of a name: users' hints may hold characters that file names and ids may not.
pub(crate) fn safe(uid: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '_' };
    uid.chars().take(LENGTH_MAX).map(legal).collect()
}
