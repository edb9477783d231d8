//! Reads over one call: any number of partitions of one stream, pushed as they grow, never more than the client's
//! credit. Partitions take turns, so that a long one does not starve the others.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::warn;
use weir_proto::convert::store::{cut_from_pb, isolation_from_pb};
use weir_proto::pb::store::v1 as pb;
use weir_proto::pb::store::v1::read_request::Kind;
use weir_types::ids::PartitionId;
use weir_types::store::Isolation;
use weir_types::stream::{Offset, StreamCut};
use weir_types::{Error, Result};

use super::Context;
use super::streams::status;
use crate::partition::Cursor;
use crate::store::blocking;
use crate::stream::StreamState;

pub(crate) type Replies = ReceiverStream<Result<pb::ReadReply, Status>>;

/// Replies that wait for the connection.
const UNSENT_MAX: usize = 2;

/// One partition of a session.
struct Source {
    id: PartitionId,
    next: Offset,
    until: Option<Offset>,
    cursor: Option<Cursor>,
}

impl Source {
    fn is_done(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until)
    }
}

struct Session {
    context: Context,
    stream: Arc<StreamState>,
    tail: watch::Receiver<u64>,
    sources: Vec<Source>,
    isolation: Isolation,
    /// Whose turn it is.
    turn: usize,
    credit: u64,
    requests: Streaming<pb::ReadRequest>,
    replies: mpsc::Sender<Result<pb::ReadReply, Status>>,
}

pub(crate) async fn serve(context: Context, mut requests: Streaming<pb::ReadRequest>) -> Result<Replies, Status> {
    let Some(pb::ReadRequest { kind: Some(Kind::Open(open)) }) = requests.message().await? else {
        return Err(status(Error::invalid("a read begins with the message that opens it")));
    };
    let pb::ReadOpen { stream, from, until, credit, isolation } = open;
    let isolation = isolation_from_pb(isolation).map_err(status)?;
    let stream = stream.parse().and_then(|name| context.store.inner.stream(&name)).map_err(status)?;
    let from = cut_from_pb(from);
    check_start(&stream, &from)
        .inspect_err(|error| warn!(stream = %stream.name, %from, code = %error.code, %error, "read refused"))
        .map_err(status)?;
    let until = cut_from_pb(until);
    let source = |(id, next): (PartitionId, Offset)| Source { id, next, until: until.get(id), cursor: None };
    let (replies, outgoing) = mpsc::channel(UNSENT_MAX);
    let session = Session {
        tail: stream.tail.subscribe(),
        sources: from.0.into_iter().map(source).collect(),
        isolation,
        turn: 0,
        credit,
        context,
        stream,
        requests,
        replies,
    };
    tokio::spawn(session.run());
    Ok(ReceiverStream::new(outgoing))
}

fn check_start(stream: &StreamState, from: &StreamCut) -> Result<()> {
    if from.0.is_empty() {
        return Err(Error::invalid("a read needs at least one partition"));
    }
    // A start behind the end would otherwise wait for records that may never get that offset.
    stream.check_cut(from)
}

impl Session {
    async fn run(mut self) {
        if let Err(error) = self.push().await {
            // The client may be gone already.
            let _ = self.replies.send(Err(status(error))).await;
        }
    }

    async fn push(&mut self) -> Result<()> {
        for index in 0..self.sources.len() {
            let source = &self.sources[index];
            let end = self.stream.partition(source.id)?.readable_end(self.isolation);
            let reply = pb::ReadReply { partition: source.id.0, end: end.0, ..Default::default() };
            if self.replies.send(Ok(reply)).await.is_err() {
                return Ok(());
            }
        }
        loop {
            // Seen before looking, so that growth in between is not missed.
            self.tail.mark_unchanged();
            if self.sources.iter().all(Source::is_done) {
                return Ok(());
            }
            if self.credit > 0
                && let Some(index) = self.next_readable()?
            {
                if !self.send_from(index).await? {
                    return Ok(());
                }
                continue;
            }
            tokio::select! {
                changed = self.tail.changed(), if self.credit > 0 => {
                    changed.map_err(|_| Error::unavailable("the stream has been closed"))?;
                }
                request = self.requests.message() => match request {
                    Ok(Some(pb::ReadRequest { kind: Some(Kind::Credit(bytes)) })) => {
                        self.credit = self.credit.saturating_add(bytes);
                    }
                    Ok(Some(_)) => return Err(Error::invalid("a read that is open takes nothing but credit")),
                    // The client has gone, or is not interested any more.
                    Ok(None) | Err(_) => return Ok(()),
                },
                () = self.context.stopping.cancelled() => {
                    return Err(Error::unavailable("the store is shutting down"));
                }
            }
        }
    }

    /// The next partition in turn that has something to send.
    fn next_readable(&mut self) -> Result<Option<usize>> {
        for step in 0..self.sources.len() {
            let index = (self.turn + step) % self.sources.len();
            let source = &self.sources[index];
            if !source.is_done() && source.next < self.stream.partition(source.id)?.readable_end(self.isolation) {
                self.turn = index + 1;
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Reads and sends the next frames of one partition; false if the client has gone.
    async fn send_from(&mut self, index: usize) -> Result<bool> {
        let &Source { id, next, cursor, .. } = &self.sources[index];
        let partition = Arc::clone(self.stream.partition(id)?);
        let chunk = self.context.store.config().read_chunk_bytes as u64;
        let max_bytes = chunk.min(self.credit) as usize;
        let isolation = self.isolation;
        let slice = blocking(move || partition.read(next, cursor, max_bytes, isolation)).await?;
        self.sources[index].next = slice.next;
        self.sources[index].cursor = slice.cursor;
        // A frame larger than what is left of the credit is sent whole; the next ones wait longer.
        self.credit = self.credit.saturating_sub(slice.frames.len() as u64);
        let range = |range: &Range<Offset>| pb::OffsetRange { begin: range.start.0, end: range.end.0 };
        let skipped = slice.skipped.iter().map(range).collect();
        let reply = pb::ReadReply { partition: id.0, end: slice.end.0, frames: slice.frames, skipped };
        Ok(tokio::select! {
            sent = self.replies.send(Ok(reply)) => sent.is_ok(),
            () = self.context.stopping.cancelled() => {
                return Err(Error::unavailable("the store is shutting down"));
            }
        })
    }
}
