//! The error that users see: a code to look up, a message, a detail, and a hint that says what to do next.
//!
//! Crates have their own error enums; whatever leaves a process (gRPC, HTTP, exit code) is turned into this type, and
//! `weir-proto` carries it over the wire unchanged.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::OperatorUid;
use crate::quota::QuotaExceeded;
use crate::stream::Offset;

/// `Result` with Weir's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by remedy. Each code is listed in `docs/errors.md` and has one gRPC status and one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum Code {
    /// The request itself is wrong: an unknown option, a type error, a malformed id.
    InvalidArgument,
    /// SQL that does not parse or plan.
    InvalidSql,
    /// Valid in Flink's dialect but not supported here.
    Unsupported,
    /// A record could not be decoded.
    MalformedRecord,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already.
    AlreadyExists,
    /// The operation is valid but not in the present state (a job that is not running, a stream with readers).
    FailedPrecondition,
    /// A command of an older epoch, term or attempt: somebody newer is in charge.
    Fenced,
    /// The offset asked for lies before the head of the partition.
    OffsetTruncated,
    /// A producer skipped a sequence number.
    SequenceGap,
    /// A quota refused it.
    QuotaExceeded,
    /// The reader group has as many checkpoints outstanding or retained as it may have.
    GroupLimitExceeded,
    /// The reader group belongs to another job.
    GroupInUse,
    /// Not enough slots, memory or disk.
    ResourceExhausted,
    /// The deadline passed.
    Timeout,
    /// A peer cannot be reached; worth retrying.
    Unavailable,
    /// Another JobManager leads, at the address in the detail, or none at the moment; worth retrying there, with the same
    /// request id.
    NotLeader,
    /// The operation was cancelled.
    Cancelled,
    /// Stored bytes are damaged.
    Corrupt,
    /// A snapshot cannot be restored any more, or none that a job could go on from is left.
    Unrestorable,
    /// Output that is committed already would be written to the same place again.
    DuplicateOutput,
    /// The operating system refused an I/O operation.
    Io,
    /// A broken invariant of Weir's own.
    Internal,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Code; 23] = [
        Code::InvalidArgument,
        Code::InvalidSql,
        Code::Unsupported,
        Code::MalformedRecord,
        Code::NotFound,
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::Fenced,
        Code::OffsetTruncated,
        Code::SequenceGap,
        Code::QuotaExceeded,
        Code::GroupLimitExceeded,
        Code::GroupInUse,
        Code::ResourceExhausted,
        Code::Timeout,
        Code::Unavailable,
        Code::NotLeader,
        Code::Cancelled,
        Code::Corrupt,
        Code::Unrestorable,
        Code::DuplicateOutput,
        Code::Io,
        Code::Internal,
    ];

    /// The name users see, for example `OFFSET_TRUNCATED`.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::InvalidSql => "INVALID_SQL",
            Code::Unsupported => "UNSUPPORTED",
            Code::MalformedRecord => "MALFORMED_RECORD",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Fenced => "FENCED",
            Code::OffsetTruncated => "OFFSET_TRUNCATED",
            Code::SequenceGap => "SEQUENCE_GAP",
            Code::QuotaExceeded => "QUOTA_EXCEEDED",
            Code::GroupLimitExceeded => "GROUP_LIMIT_EXCEEDED",
            Code::GroupInUse => "GROUP_IN_USE",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::Timeout => "TIMEOUT",
            Code::Unavailable => "UNAVAILABLE",
            Code::NotLeader => "NOT_LEADER",
            Code::Cancelled => "CANCELLED",
            Code::Corrupt => "CORRUPT",
            Code::Unrestorable => "UNRESTORABLE",
            Code::DuplicateOutput => "DUPLICATE_OUTPUT",
            Code::Io => "IO",
            Code::Internal => "INTERNAL",
        }
    }

    /// The code with this name, as [`Code::as_str`] writes it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == name)
    }

    /// Whether the same request may succeed later without change.
    pub fn is_retryable(self) -> bool {
        matches!(self, Code::Unavailable | Code::NotLeader | Code::Timeout)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Facts about an error that a program needs, beside the prose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Facts {
    /// With [`Code::OffsetTruncated`]: the oldest offset that can still be read.
    OffsetTruncated {
        /// The head of the partition.
        head: Offset,
    },
    /// With [`Code::QuotaExceeded`].
    QuotaExceeded(QuotaExceeded),
    /// With [`Code::GroupLimitExceeded`].
    GroupLimit {
        /// The limit in force.
        limit: u32,
        /// The ids of the checkpoints that use it up, oldest first.
        blockers: Vec<String>,
    },
    /// With [`Code::SequenceGap`]: the sequence number the store waits for.
    SequenceGap {
        /// The next sequence number the store would accept.
        expected: u64,
    },
    /// With [`Code::Corrupt`] and [`Code::NotFound`]: a part of the snapshot that an attempt was to start from could not be
    /// read back. Whether the snapshot is to blame is for the JobManager to find out.
    StateUnreadable {
        /// The snapshot's directory.
        directory: String,
        /// The operator whose state it is; none: it is the manifest.
        operator: Option<OperatorUid>,
    },
    /// With [`Code::InvalidSql`] and [`Code::Unsupported`]: where in the script.
    Position {
        /// Line, from 1.
        line: u32,
        /// Column in characters, from 1.
        column: u32,
    },
}

/// An error for people (message, detail, hint) and programs (code, facts).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of error, to look up and to decide on.
    pub code: Code,
    /// One sentence, lower case, without a full stop: what could not be done.
    pub message: String,
    /// What exactly was found, if there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What the user can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The same for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Box<Facts>>,
}

impl Error {
    /// An error with a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, hint: None, facts: None }
    }

    /// [`Code::Internal`]: one of Weir's own invariants does not hold.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// [`Code::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// [`Code::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// [`Code::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// [`Code::Fenced`].
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(Code::Fenced, message)
    }

    /// [`Code::Io`], with what the operating system said as detail; a full disk gets its own code and hint.
    pub fn io(message: impl Into<String>, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Self::new(Code::ResourceExhausted, message)
                .with_detail(error.to_string())
                .with_hint("The disk is full: free some space; nothing that was acknowledged is lost.");
        }
        Self::new(Code::Io, message).with_detail(error.to_string())
    }

    /// The same error with a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same error with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with facts for programs.
    #[must_use]
    pub fn with_facts(mut self, facts: Facts) -> Self {
        self.facts = Some(Box::new(facts));
        self
    }
}

/// As one line, for logs: `CODE: message (detail)`.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_parses_from_its_own_name() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(code));
            assert_eq!(serde_json::to_value(code).unwrap(), serde_json::Value::from(code.as_str()));
        }
    }

    #[test]
    fn one_line_shows_code_message_and_detail() {
        let error = Error::not_found("stream \"a/b\" does not exist").with_detail("scope a is empty").with_hint("x");
        assert_eq!(error.to_string(), "NOT_FOUND: stream \"a/b\" does not exist (scope a is empty)");
    }
}
