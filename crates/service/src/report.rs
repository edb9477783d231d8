//! The last word of a process that fails: the whole error on stderr, and an exit code that scripts can tell apart.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;

use weir_types::{Code, Error, Result};

/// The exit code of a process that ended with `code`, as listed in `docs/errors.md`. Success is 0; 2 is also what a
/// wrong command line gives.
pub fn exit_code(code: Code) -> u8 {
    match code {
        Code::InvalidArgument => 2,
        Code::InvalidSql => 3,
        Code::Unsupported => 4,
        Code::MalformedRecord => 5,
        Code::NotFound => 6,
        Code::AlreadyExists => 7,
        Code::FailedPrecondition => 8,
        Code::Fenced => 9,
        Code::OffsetTruncated => 10,
        Code::SequenceGap => 11,
        Code::QuotaExceeded => 12,
        Code::GroupLimitExceeded => 13,
        Code::GroupInUse => 14,
        Code::ResourceExhausted => 15,
        Code::Timeout => 16,
        Code::Unavailable => 17,
        Code::Cancelled => 18,
        Code::Corrupt => 19,
        Code::Io => 20,
        Code::Unrestorable => 21,
        Code::DuplicateOutput => 23,
        Code::NotLeader => 22,
        _ => 1,
    }
}

/// The result of `main`: reports an error on stderr and in the log, and turns it into its exit code.
pub fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "process failed");
            report(&error);
            ExitCode::from(exit_code(error.code))
        }
    }
}

/// Prints an error for people on stderr; the first word is red on a terminal.
pub fn report(error: &Error) {
    let stderr = std::io::stderr();
    let text = render(error);
    let plain = !stderr.is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match text.strip_prefix("error") {
        Some(rest) if !plain => eprint!("\x1b[1;31merror\x1b[0m{rest}"),
        _ => eprint!("{text}"),
    }
}

/// The error as people read it, ending in a newline:
///
/// ```text
/// error[NOT_FOUND]: stream "a/b" does not exist
///   detail: scope a has no streams
///   hint: Create it with `weir stream create a/b`.
/// ```
pub fn render(error: &Error) -> String {
    let Error { code, message, detail, hint, facts: _ } = error;
    let mut text = format!("error[{code}]: {message}\n");
    for (name, part) in [("detail", detail), ("hint", hint)] {
        let Some(part) = part else { continue };
        // Further lines, such as the excerpt of a configuration file, keep their own alignment.
        let shown = part.replace('\n', "\n    ");
        let gap = if part.contains('\n') { "\n    " } else { " " };
        let _infallible = writeln!(text, "  {name}:{gap}{shown}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_and_hint_follow_the_message() {
        let error = Error::not_found("stream \"a/b\" does not exist").with_detail("one\n  two").with_hint("Create it.");
        assert_eq!(
            render(&error),
            "error[NOT_FOUND]: stream \"a/b\" does not exist\n  detail:\n    one\n      two\n  hint: Create it.\n"
        );
        assert_eq!(render(&Error::internal("x")), "error[INTERNAL]: x\n");
    }

    #[test]
    fn every_code_is_documented_with_its_own_exit_code() {
        let page = include_str!("../../../docs/errors.md");
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{code}` |")));
            let row = row.unwrap_or_else(|| panic!("docs/errors.md does not list {code}"));
            let columns: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(columns.len(), 5, "{row}");
            assert_eq!(columns[4], exit_code(code).to_string(), "{row}");
            assert_eq!(columns[3], crate::http::status(code).as_u16().to_string(), "{row}");
            assert!(seen.insert(exit_code(code)), "{code} shares its exit code");
        }
    }
}
