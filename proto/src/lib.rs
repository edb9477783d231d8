//! Wire types of Weir: generated protobuf code and its conversions to domain types, in both directions.
//!
//! Nothing but the edges of processes uses [`pb`]; everything behind them works on `weir-types`.

pub mod convert;

/// Generated code, one module per `.proto` file.
#[expect(missing_docs, reason = "generated; the comments are in the .proto files")]
pub mod pb {
    /// Errors.
    pub mod common {
        tonic::include_proto!("weir.common.v1");
    }
}

pub use convert::error::{from_status, to_status};
