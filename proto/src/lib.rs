//! Wire types of Weir: generated protobuf code and its conversions to domain types, in both directions.
//!
//! Nothing but the edges of processes uses [`pb`]; everything behind them works on `weir-types`.

pub mod convert;
pub mod diagnostics;

/// Generated code, one module per `.proto` file. The packages nest as `weir.<name>.v1`, so that generated code can refer to
/// other packages by `super` paths.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    reason = "generated; the comments are in the .proto files"
)]
pub mod pb {
    macro_rules! package {
        ($name:ident, $file:literal) => {
            pub mod $name {
                pub mod v1 {
                    tonic::include_proto!($file);
                }
            }
        };
    }

    package!(common, "weir.common.v1");
    package!(graph, "weir.graph.v1");
    package!(control, "weir.control.v1");
    package!(client, "weir.client.v1");
    package!(members, "weir.members.v1");
    package!(metadata, "weir.metadata.v1");
    package!(store, "weir.store.v1");
    package!(data, "weir.data.v1");
    package!(diagnostics, "weir.diagnostics.v1");
}

pub use convert::error::{from_status, to_status};
