//! Appends over one call: requests queue in the order of arrival, and each is answered in that order once it is durable.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weir_proto::convert::store::format_from_pb;
use weir_proto::pb::common::v1 as common;
use weir_proto::pb::store::v1 as pb;
use weir_types::ids::PartitionId;
use weir_types::store::Appended;
use weir_types::{Error, Result};

use super::Context;
use crate::block::RecordBlock;

pub(crate) type Replies = Pin<Box<dyn Stream<Item = Result<pb::AppendReply, Status>> + Send>>;

/// Requests of one call that may wait for the disk.
const UNANSWERED_MAX: usize = 256;

type Answer = Result<oneshot::Receiver<Result<Appended>>>;

pub(crate) fn serve(context: Context, mut requests: Streaming<pb::AppendRequest>) -> Replies {
    let (queue, queued) = mpsc::channel::<(u64, Answer)>(UNANSWERED_MAX);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = requests.message() => message,
                () = context.stopping.cancelled() => return,
            };
            // The client has finished, or it has gone away: what it sent before is appended nevertheless.
            let Ok(Some(request)) = message else { return };
            let number = request.request;
            let answer = submit(&context, request).await;
            if queue.send((number, answer)).await.is_err() {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(queued).then(reply))
}

async fn submit(context: &Context, request: pb::AppendRequest) -> Answer {
    let pb::AppendRequest {
        request: _,
        stream,
        partition,
        producer,
        format,
        record_count,
        max_event_time_ms,
        crc32c,
        payload,
    } = request;
    let name = stream.parse()?;
    let producer = producer.map(TryInto::try_into).transpose()?;
    let block = RecordBlock::check(format_from_pb(format)?, record_count, max_event_time_ms, crc32c, payload)?;
    context.store.submit(&name, PartitionId(partition), block, producer).await
}

async fn reply((request, answer): (u64, Answer)) -> Result<pb::AppendReply, Status> {
    let closed = || Err(Error::unavailable("the store was closed before the append was durable"));
    let appended = match answer {
        Ok(receiver) => receiver.await.unwrap_or_else(|_| closed()),
        Err(error) => Err(error),
    };
    let result = match appended {
        Ok(appended) => pb::append_reply::Result::Done(appended.into()),
        Err(error) => pb::append_reply::Result::Error(common::Error::from(&error).encode_to_vec().into()),
    };
    Ok(pb::AppendReply { request, result: Some(result) })
}
