//! Carries decisions about jobs' output out: in streams of the store, and in directories.

use std::path::PathBuf;
use std::time::Duration;

use weir_coordination::metadata::JobRecord;
use weir_durable::parts;
use weir_stream_store::client::StoreClient;
use weir_types::ids::{Epoch, JobId, ProducerId};
use weir_types::output::{CommittedSink, Place, Settlement, file_family, producer_family};
use weir_types::store::FamilyDecision;
use weir_types::{Code, Error, Result};

use crate::storage;

/// A store that does not answer for so long is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Carries a decision out in all places that a job writes to.
///
/// # Errors
/// The first place's in which it could not be done: do all of it again.
pub(crate) async fn settle(store: &StoreClient, record: &JobRecord, settlement: Settlement) -> Result<()> {
    for sink in record.committed_sinks() {
        settle_sink(store, &record.id, &sink, settlement).await.map_err(|error| {
            let detail = error.to_string();
            let message = format!("output of job {} to {} could not be settled", record.id, sink.place);
            Error { message, ..error }.with_detail(detail)
        })?;
    }
    Ok(())
}

async fn settle_sink(store: &StoreClient, job: &JobId, sink: &CommittedSink, settlement: Settlement) -> Result<()> {
    match &sink.place {
        Place::Stream(stream) => {
            let decision = FamilyDecision {
                family: ProducerId::new(producer_family(job, &sink.uid))?,
                commit: settlement.commit.map(|to| (Epoch(u64::from(to.attempt.0)), to.barrier.0)),
                below: settlement.below.map(|below| Epoch(u64::from(below.0))),
            };
            let decided = tokio::time::timeout(ANSWER_WITHIN, store.decide_family(stream, &decision)).await;
            match decided.unwrap_or_else(|_| Err(Error::unavailable("the stream store does not answer"))) {
                // Nobody has written it yet, or somebody has deleted it with all that was in it.
                Err(error) if error.code == Code::NotFound => {
                    tracing::debug!(%job, %stream, "there is no stream to settle output in");
                    Ok(())
                }
                decided => {
                    let decided = decided?;
                    tracing::debug!(%job, %stream, decided.committed, decided.aborted, "output settled");
                    Ok(())
                }
            }
        }
        Place::Directory(directory) => {
            let (path, family) = (PathBuf::from(directory), file_family(job, &sink.uid));
            let settled = storage::blocking(move || {
                let settled = parts::settle(&path, &family, settlement);
                settled.map_err(|error| Error::io(format!("cannot settle files in {}", path.display()), &error))
            });
            let settled = settled.await?;
            tracing::debug!(%job, directory, settled.committed, settled.removed, "output settled");
            Ok(())
        }
    }
}
