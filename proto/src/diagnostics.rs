//! Both ends of the question that every process answers: what do you remember of this snapshot?

use std::time::Duration;

use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};
use weir_types::event::Recollection;
use weir_types::ids::SnapshotId;
use weir_types::{Code, Error, Result};

use crate::pb::diagnostics::v1 as pb;
use crate::pb::diagnostics::v1::diagnostics_client::DiagnosticsClient;
use crate::pb::diagnostics::v1::diagnostics_server::{Diagnostics, DiagnosticsServer};
use crate::{from_status, to_status};

/// The largest answer that is taken.
const REPLY_BYTES_MAX: usize = 32 << 20;

/// Looks up what a process remembers; it may read files, so it runs on a thread for that.
pub type Recall = fn(&SnapshotId) -> Recollection;

/// Answers with what `recall` finds.
#[derive(Clone, Copy, Debug)]
pub struct Witness(Recall);

/// The service, for a process's gRPC server.
pub fn server(recall: Recall) -> DiagnosticsServer<Witness> {
    DiagnosticsServer::new(Witness(recall)).max_encoding_message_size(REPLY_BYTES_MAX)
}

#[tonic::async_trait]
impl Diagnostics for Witness {
    async fn snapshot_events(
        &self,
        request: Request<pb::SnapshotEventsRequest>,
    ) -> Result<Response<pb::SnapshotEventsReply>, Status> {
        let pb::SnapshotEventsRequest { snapshot } = request.into_inner();
        let snapshot = SnapshotId::new(snapshot).map_err(|error| to_status(&error))?;
        let recall = self.0;
        let recalled = tokio::task::spawn_blocking(move || recall(&snapshot)).await;
        let recalled = recalled.map_err(|error| {
            to_status(&Error::internal("looking through the log was broken off").with_detail(error.to_string()))
        })?;
        Ok(Response::new(recalled.into()))
    }
}

/// Asks the process at `address` what it remembers.
///
/// # Errors
/// `UNAVAILABLE` if nobody answers there, `TIMEOUT` if the answer takes too long.
pub async fn ask(address: &str, snapshot: &SnapshotId, timeout: Duration) -> Result<Recollection> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Error::invalid(format!("{address:?} is not HOST:PORT")).with_detail(error.to_string()))?
        .tcp_nodelay(true);
    let asked = async {
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::unavailable(format!("nobody answers at {address}")).with_detail(cause)
        })?;
        let request = pb::SnapshotEventsRequest { snapshot: snapshot.to_string() };
        let mut client = DiagnosticsClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        let reply = client.snapshot_events(request).await.map_err(|status| from_status(&status))?;
        Ok(reply.into_inner().into())
    };
    let late = |_| Error::new(Code::Timeout, format!("{address} did not answer within {} ms", timeout.as_millis()));
    tokio::time::timeout(timeout, asked).await.map_err(late)?
}
