//! The `Streams` service: a thin shell that turns messages into calls of the store and back.

use tonic::{Request, Response, Status, Streaming};
use weir_proto::convert::store::cut_from_pb;
use weir_proto::convert::transaction::{decision_from_pb, info_to_pb, spec_from_pb};
use weir_proto::pb::store::v1 as pb;
use weir_proto::pb::store::v1::streams_server::Streams;
use weir_proto::to_status;
use weir_types::Error;
use weir_types::ids::{Epoch, PinHolder, ProducerId, TransactionId};
use weir_types::store::Pin;
use weir_types::stream::StreamName;

use super::{Context, append, read};

pub(crate) struct StreamsService(pub(crate) Context);

pub(crate) fn status(error: Error) -> Status {
    to_status(&error)
}

fn stream_name(name: &str) -> Result<StreamName, Status> {
    name.parse().map_err(status)
}

fn transaction_ids(ids: Vec<String>) -> Result<Vec<TransactionId>, Status> {
    ids.into_iter().map(|id| TransactionId::new(id).map_err(status)).collect()
}

#[tonic::async_trait]
impl Streams for StreamsService {
    type AppendStream = append::Replies;
    type ReadStream = read::Replies;

    async fn create_stream(
        &self,
        request: Request<pb::CreateStreamRequest>,
    ) -> Result<Response<pb::StreamInfo>, Status> {
        let pb::CreateStreamRequest { stream, options, if_not_exists } = request.into_inner();
        let options = options.ok_or_else(|| status(Error::invalid("the request has no stream options")))?;
        let options = options.try_into().map_err(status)?;
        let name = stream_name(&stream)?;
        let info = self.0.store.create_stream(&name, options, if_not_exists).await.map_err(status)?;
        Ok(Response::new((&info).into()))
    }

    async fn delete_stream(&self, request: Request<pb::DeleteStreamRequest>) -> Result<Response<pb::Empty>, Status> {
        let pb::DeleteStreamRequest { stream, force } = request.into_inner();
        self.0.store.delete_stream(&stream_name(&stream)?, force).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn list_streams(
        &self,
        request: Request<pb::ListStreamsRequest>,
    ) -> Result<Response<pb::ListStreamsReply>, Status> {
        let pb::ListStreamsRequest { scope } = request.into_inner();
        let streams = self.0.store.list_streams(scope.as_deref());
        Ok(Response::new(pb::ListStreamsReply { streams: streams.iter().map(Into::into).collect() }))
    }

    async fn describe_stream(&self, request: Request<pb::StreamRef>) -> Result<Response<pb::StreamInfo>, Status> {
        let name = stream_name(&request.into_inner().stream)?;
        let info = self.0.store.describe_stream(&name).map_err(status)?;
        Ok(Response::new((&info).into()))
    }

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        Ok(Response::new(append::serve(self.0.clone(), request.into_inner())))
    }

    async fn read(&self, request: Request<Streaming<pb::ReadRequest>>) -> Result<Response<Self::ReadStream>, Status> {
        Ok(Response::new(read::serve(self.0.clone(), request.into_inner()).await?))
    }

    async fn truncate(&self, request: Request<pb::TruncateRequest>) -> Result<Response<pb::TruncateReport>, Status> {
        let pb::TruncateRequest { stream, cut, force } = request.into_inner();
        let name = stream_name(&stream)?;
        let report = self.0.store.truncate(&name, cut_from_pb(cut), force).await.map_err(status)?;
        Ok(Response::new((&report).into()))
    }

    async fn fence_producers(
        &self,
        request: Request<pb::FenceProducersRequest>,
    ) -> Result<Response<pb::Empty>, Status> {
        let pb::FenceProducersRequest { stream, producer, epoch } = request.into_inner();
        let (name, producer) = (stream_name(&stream)?, ProducerId::new(producer).map_err(status)?);
        self.0.store.fence(&name, producer, Epoch(epoch)).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn begin_transaction(
        &self,
        request: Request<pb::TransactionSpec>,
    ) -> Result<Response<pb::TransactionInfo>, Status> {
        let (name, spec) = spec_from_pb(request.into_inner()).map_err(status)?;
        let info = self.0.store.begin_transaction(&name, spec).await.map_err(status)?;
        Ok(Response::new(info_to_pb(&name, &info)))
    }

    async fn renew_transaction(&self, request: Request<pb::TransactionRef>) -> Result<Response<pb::Empty>, Status> {
        let pb::TransactionRef { stream, id } = request.into_inner();
        let (name, id) = (stream_name(&stream)?, TransactionId::new(id).map_err(status)?);
        self.0.store.renew_transaction(&name, id).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn prepare_transaction(
        &self,
        request: Request<pb::PrepareTransactionRequest>,
    ) -> Result<Response<pb::Empty>, Status> {
        let pb::PrepareTransactionRequest { stream, id, ends, mark } = request.into_inner();
        let (name, id) = (stream_name(&stream)?, TransactionId::new(id).map_err(status)?);
        self.0.store.prepare_transaction(&name, id, cut_from_pb(ends), mark).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn decide_transactions(
        &self,
        request: Request<pb::DecideTransactionsRequest>,
    ) -> Result<Response<pb::Empty>, Status> {
        let pb::DecideTransactionsRequest { stream, ids, commit, reason } = request.into_inner();
        let (name, ids) = (stream_name(&stream)?, transaction_ids(ids)?);
        let decided = match commit {
            true => self.0.store.commit_transactions(&name, ids).await,
            false => self.0.store.abort_transactions(&name, ids, &reason).await,
        };
        decided.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn decide_family(&self, request: Request<pb::FamilyDecision>) -> Result<Response<pb::FamilyDecided>, Status> {
        let (name, decision) = decision_from_pb(request.into_inner()).map_err(status)?;
        let decided = self.0.store.decide_family(&name, decision).await.map_err(status)?;
        Ok(Response::new(pb::FamilyDecided { committed: decided.committed, aborted: decided.aborted }))
    }

    async fn acknowledge_transactions(
        &self,
        request: Request<pb::AcknowledgeTransactionsRequest>,
    ) -> Result<Response<pb::Empty>, Status> {
        let pb::AcknowledgeTransactionsRequest { stream, ids } = request.into_inner();
        let (name, ids) = (stream_name(&stream)?, transaction_ids(ids)?);
        self.0.store.acknowledge_transactions(&name, ids).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn list_transactions(
        &self,
        request: Request<pb::StreamRef>,
    ) -> Result<Response<pb::ListTransactionsReply>, Status> {
        let name = stream_name(&request.into_inner().stream)?;
        let transactions = self.0.store.transactions(&name).map_err(status)?;
        let transactions = transactions.iter().map(|info| info_to_pb(&name, info)).collect();
        Ok(Response::new(pb::ListTransactionsReply { transactions }))
    }

    async fn create_pin(&self, request: Request<pb::CreatePinRequest>) -> Result<Response<pb::Pin>, Status> {
        let pb::CreatePinRequest { stream, holder, cut } = request.into_inner();
        let (name, holder) = (stream_name(&stream)?, PinHolder::new(holder).map_err(status)?);
        let pin = self.0.store.pin(&name, holder, cut_from_pb(cut)).await.map_err(status)?;
        Ok(Response::new((&pin).into()))
    }

    async fn delete_pin(&self, request: Request<pb::DeletePinRequest>) -> Result<Response<pb::Empty>, Status> {
        let pb::DeletePinRequest { stream, holder } = request.into_inner();
        let (name, holder) = (stream_name(&stream)?, PinHolder::new(holder).map_err(status)?);
        self.0.store.unpin(&name, holder).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn list_pins(&self, request: Request<pb::StreamRef>) -> Result<Response<pb::ListPinsReply>, Status> {
        let name = stream_name(&request.into_inner().stream)?;
        let (pins, holds): (Vec<_>, Vec<_>) = self.0.store.holds(&name).map_err(status)?.into_iter().unzip();
        let holds = holds.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::ListPinsReply { pins: pins.iter().map(Into::into).collect(), holds }))
    }

    async fn list_broken_pins(
        &self,
        _request: Request<pb::Empty>,
    ) -> Result<Response<pb::ListBrokenPinsReply>, Status> {
        let broken = self.0.store.broken_pins();
        let pin =
            |(stream, pin): &(StreamName, Pin)| pb::StreamPin { stream: stream.to_string(), pin: Some(pin.into()) };
        Ok(Response::new(pb::ListBrokenPinsReply { pins: broken.iter().map(pin).collect() }))
    }
}
