//! Errors over gRPC: a status whose details hold the whole [`Error`], so that nothing is lost on the way.

use prost::Message;
use tonic::{Code as GrpcCode, Status};
use weir_types::{Code, Error};

use crate::pb::common::v1 as pb;

impl From<&Error> for pb::Error {
    fn from(error: &Error) -> Self {
        let Error { code, message, detail, hint, facts } = error;
        Self {
            code: code.as_str().to_owned(),
            message: message.clone(),
            detail: detail.clone(),
            hint: hint.clone(),
            facts_json: facts.as_ref().and_then(|facts| serde_json::to_string(facts).ok()).unwrap_or_default(),
        }
    }
}

impl From<pb::Error> for Error {
    fn from(error: pb::Error) -> Self {
        let pb::Error { code, message, detail, hint, facts_json } = error;
        // A newer peer may know codes and facts that this build does not; the prose still says what happened.
        let code = Code::parse(&code).unwrap_or(Code::Internal);
        let facts = serde_json::from_str(&facts_json).ok().map(Box::new);
        Self { code, message, detail, hint, facts }
    }
}

fn grpc_code(code: Code) -> GrpcCode {
    match code {
        Code::InvalidArgument | Code::InvalidSql | Code::MalformedRecord => GrpcCode::InvalidArgument,
        Code::Unsupported => GrpcCode::Unimplemented,
        Code::NotFound => GrpcCode::NotFound,
        Code::AlreadyExists => GrpcCode::AlreadyExists,
        Code::FailedPrecondition | Code::GroupInUse | Code::DuplicateOutput => GrpcCode::FailedPrecondition,
        Code::Fenced => GrpcCode::Aborted,
        Code::OffsetTruncated | Code::SequenceGap => GrpcCode::OutOfRange,
        Code::QuotaExceeded | Code::GroupLimitExceeded | Code::ResourceExhausted => GrpcCode::ResourceExhausted,
        Code::Timeout => GrpcCode::DeadlineExceeded,
        Code::Unavailable | Code::NotLeader => GrpcCode::Unavailable,
        Code::Cancelled => GrpcCode::Cancelled,
        Code::Corrupt | Code::Unrestorable => GrpcCode::DataLoss,
        _ => GrpcCode::Internal,
    }
}

/// The gRPC status that carries `error` whole.
pub fn to_status(error: &Error) -> Status {
    let details = pb::Error::from(error).encode_to_vec();
    Status::with_details(grpc_code(error.code), error.to_string(), details.into())
}

/// The error that a status carries; a status that Weir did not make becomes the nearest code.
pub fn from_status(status: &Status) -> Error {
    if !status.details().is_empty()
        && let Ok(error) = pb::Error::decode(status.details())
        && !error.code.is_empty()
    {
        return error.into();
    }
    let code = match status.code() {
        GrpcCode::InvalidArgument => Code::InvalidArgument,
        GrpcCode::NotFound => Code::NotFound,
        GrpcCode::AlreadyExists => Code::AlreadyExists,
        GrpcCode::FailedPrecondition => Code::FailedPrecondition,
        GrpcCode::ResourceExhausted => Code::ResourceExhausted,
        GrpcCode::DeadlineExceeded => Code::Timeout,
        GrpcCode::Unimplemented => Code::Unsupported,
        // A broken connection surfaces as Unknown ("transport error"), Unavailable, or, where a call was on its way to it,
        // as Cancelled ("operation was canceled"); all are worth a retry.
        GrpcCode::Unavailable | GrpcCode::Unknown | GrpcCode::Cancelled => Code::Unavailable,
        _ => Code::Internal,
    };
    Error::new(code, status.message().to_owned())
}

#[cfg(test)]
mod tests {
    use weir_types::error::Facts;
    use weir_types::stream::Offset;

    use super::*;

    #[test]
    fn a_connection_that_ends_under_a_call_is_worth_a_retry() {
        for code in [GrpcCode::Unavailable, GrpcCode::Unknown, GrpcCode::Cancelled] {
            assert!(from_status(&Status::new(code, "operation was canceled")).code.is_retryable());
        }
        // What a Weir process has cancelled is not.
        assert_eq!(from_status(&to_status(&Error::new(Code::Cancelled, "m"))).code, Code::Cancelled);
    }

    #[test]
    fn an_error_survives_the_wire_whole() {
        for code in Code::ALL {
            let error = Error::new(code, "m")
                .with_detail("d")
                .with_hint("h")
                .with_facts(Facts::OffsetTruncated { head: Offset(7) });
            assert_eq!(from_status(&to_status(&error)), error);
        }
    }

    #[test]
    fn a_foreign_status_becomes_the_nearest_code() {
        assert_eq!(from_status(&Status::unavailable("gone")).code, Code::Unavailable);
    }
}
