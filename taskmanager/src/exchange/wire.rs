//! Elements on the wire: cut into chunks by the sender, put together by the receiver.
//!
//! An element larger than [`ELEMENT_BYTES`] is split by rows if it can be, and nothing larger than
//! [`ELEMENT_BYTES_MAX`] is sent or accepted; both sides charge an element [`cost`] credits.

use std::collections::VecDeque;

use arrow::buffer::{Buffer, MutableBuffer, ScalarBuffer};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use weir_dataflow::element::{Batch, Element, RowOp, Watermark};
use weir_proto::pb::data::v1 as pb;
use weir_types::{Code, Error, Result};

use super::ipc;

/// Bytes of data in one chunk, at most.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// A chunk with its headers: a barrier's, an element's, a frame's.
pub(crate) const FRAME_BYTES_MAX: usize = CHUNK_BYTES + (64 << 10);
/// A batch that is larger is split by rows.
const ELEMENT_BYTES: u64 = 8 << 20;
/// Nothing larger is sent or accepted: the limit for a single row.
pub(crate) const ELEMENT_BYTES_MAX: u64 = 64 << 20;
/// What an element costs beside its data, so that small ones are bounded in number.
const ELEMENT_OVERHEAD: u64 = 64;
/// Smaller pieces of a batch are copied together instead of being passed on one by one.
const PIECE_BYTES_MIN: usize = 4 << 10;
/// How much room is made for an element before its bytes have come.
const RESERVE_BYTES_MAX: u64 = 4 << 20;

/// The credits that an element of so many bytes of data takes.
pub(crate) fn cost(bytes: u64) -> u64 {
    bytes.saturating_add(ELEMENT_OVERHEAD)
}

/// An element that is ready to be sent, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Outgoing {
    header: Option<pb::Element>,
    pieces: VecDeque<Bytes>,
    bytes: u64,
}

impl Outgoing {
    /// What it takes from the channel's credits.
    pub(crate) fn cost(&self) -> u64 {
        cost(self.bytes)
    }

    fn control(kind: pb::element::Kind) -> Self {
        Self { header: Some(pb::Element { bytes: 0, kind: Some(kind) }), pieces: VecDeque::new(), bytes: 0 }
    }
}

impl Iterator for Outgoing {
    type Item = pb::Chunk;

    fn next(&mut self) -> Option<pb::Chunk> {
        let element = self.header.take();
        let mut data = Vec::new();
        let mut room = CHUNK_BYTES;
        while let Some(mut piece) = self.pieces.pop_front() {
            if piece.len() > room {
                let rest = piece.split_off(room);
                self.pieces.push_front(rest);
            }
            room -= piece.len();
            data.push(piece);
            if room == 0 {
                break;
            }
        }
        (element.is_some() || !data.is_empty()).then_some(pb::Chunk { element, data })
    }
}

/// Makes an element ready to be sent: usually one, several if a batch is too large.
pub(crate) fn encode(encoder: &mut ipc::Encoder, element: &Element) -> Result<VecDeque<Outgoing>> {
    use pb::element::Kind;
    let kind = match element {
        Element::Batch(batch) => {
            let mut outgoing = VecDeque::with_capacity(1);
            encode_batch(encoder, batch, &mut outgoing)?;
            return Ok(outgoing);
        }
        Element::Watermark(Watermark(ms)) => Kind::WatermarkMs(*ms),
        Element::Idle => Kind::Idle(pb::Nothing {}),
        Element::Barrier(barrier) => Kind::Barrier(barrier.into()),
        Element::EndOfInput => Kind::EndOfInput(pb::Nothing {}),
    };
    Ok(VecDeque::from([Outgoing::control(kind)]))
}

fn encode_batch(encoder: &mut ipc::Encoder, batch: &Batch, out: &mut VecDeque<Outgoing>) -> Result<()> {
    let rows = batch.rows.num_rows();
    let body = encoder.encode(&batch.rows)?;
    let ops = batch.ops.as_ref().map(|ops| ops.inner().clone());
    let op_bytes = ops.as_ref().map_or(0, Buffer::len) as u64;
    let bytes = op_bytes + body.iter().map(|piece| piece.len() as u64).sum::<u64>();
    if bytes > ELEMENT_BYTES && rows > 1 {
        let half = rows / 2;
        // Compacted, because views would bring the bytes of the other half along.
        encode_batch(encoder, &batch.slice(0, half).compact()?, out)?;
        return encode_batch(encoder, &batch.slice(half, rows - half).compact()?, out);
    }
    if bytes > ELEMENT_BYTES_MAX {
        let message = format!("a row of {bytes} bytes cannot be sent to another TaskManager");
        return Err(Error::new(Code::ResourceExhausted, message)
            .with_hint(format!("Rows that cross TaskManagers hold at most {ELEMENT_BYTES_MAX} bytes.")));
    }
    let kind = pb::element::Kind::Batch(pb::Batch { op_bytes });
    let header = Some(pb::Element { bytes, kind: Some(kind) });
    out.push_back(Outgoing { header, pieces: join_small(body.into_iter().chain(ops)), bytes });
    Ok(())
}

fn join_small(pieces: impl Iterator<Item = Buffer>) -> VecDeque<Bytes> {
    struct Owned(Buffer);
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            self.0.as_slice()
        }
    }
    let mut joined = VecDeque::new();
    let mut small = Vec::new();
    for piece in pieces.filter(|piece| !piece.is_empty()) {
        if piece.len() < PIECE_BYTES_MIN {
            small.extend_from_slice(piece.as_slice());
            continue;
        }
        if !small.is_empty() {
            joined.push_back(Bytes::from(std::mem::take(&mut small)));
        }
        joined.push_back(Bytes::from_owner(Owned(piece)));
    }
    if !small.is_empty() {
        joined.push_back(Bytes::from(small));
    }
    joined
}

/// An element whose chunks have all come; decoded later, where its credits are given back.
#[derive(Debug)]
pub(crate) struct Incoming {
    kind: pb::element::Kind,
    data: Buffer,
}

impl Incoming {
    /// What it took from the channel's credits.
    pub(crate) fn cost(&self) -> u64 {
        cost(self.data.len() as u64)
    }

    /// Whether nothing follows on its channel.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self.kind, pb::element::Kind::EndOfInput(_))
    }

    /// The element. Batches share memory with the received bytes.
    pub(crate) fn decode(self, schema: &SchemaRef) -> Result<Element> {
        use pb::element::Kind;
        match self.kind {
            Kind::Batch(pb::Batch { op_bytes }) => decode_batch(&self.data, op_bytes, schema).map(Element::Batch),
            _ if !self.data.is_empty() => Err(malformed("only a batch has data")),
            Kind::WatermarkMs(ms) => Ok(Element::Watermark(Watermark(ms))),
            Kind::Idle(pb::Nothing {}) => Ok(Element::Idle),
            Kind::Barrier(barrier) => Ok(Element::Barrier(barrier.try_into()?)),
            Kind::EndOfInput(pb::Nothing {}) => Ok(Element::EndOfInput),
        }
    }
}

fn decode_batch(data: &Buffer, op_bytes: u64, schema: &SchemaRef) -> Result<Batch> {
    let body = usize::try_from(op_bytes).ok().and_then(|op_bytes| data.len().checked_sub(op_bytes));
    let body = body.ok_or_else(|| malformed("it has fewer bytes than ops"))?;
    let rows = ipc::decode(&data.slice_with_length(0, body), schema)?;
    if rows.num_rows() == 0 {
        return Err(malformed("a batch has no rows"));
    }
    if op_bytes == 0 {
        return Ok(Batch::inserts(rows));
    }
    let ops = data.slice(body);
    let last = RowOp::Delete as u8;
    if ops.len() != rows.num_rows() || ops.as_slice().iter().any(|op| *op > last) {
        return Err(malformed("its ops do not fit its rows"));
    }
    Ok(Batch { rows, ops: Some(ScalarBuffer::from(ops)) })
}

fn malformed(why: &str) -> Error {
    Error::invalid(format!("malformed element from a TaskManager: {why}"))
}

/// Puts one channel's chunks together. Never holds more than one element, and of that not more than has come.
#[derive(Debug, Default)]
pub(crate) struct Assembler(Option<Partial>);

#[derive(Debug)]
struct Partial {
    kind: pb::element::Kind,
    bytes: u64,
    data: MutableBuffer,
}

impl Assembler {
    /// Takes the next chunk; `admit` is asked for the credits of an element that begins.
    pub(crate) fn push(&mut self, chunk: pb::Chunk, admit: impl FnOnce(u64) -> Result<()>) -> Result<Option<Incoming>> {
        let pb::Chunk { element, data } = chunk;
        let mut partial = match (self.0.take(), element) {
            (Some(partial), None) => partial,
            (None, Some(pb::Element { bytes, kind: Some(kind) })) => {
                if bytes > ELEMENT_BYTES_MAX {
                    return Err(malformed(&format!("it claims {bytes} bytes")));
                }
                admit(cost(bytes))?;
                let room = usize::try_from(bytes.min(RESERVE_BYTES_MAX)).unwrap_or_default();
                Partial { kind, bytes, data: MutableBuffer::with_capacity(room) }
            }
            (Some(_), Some(_)) => return Err(malformed("an element begins within another")),
            (None, _) => return Err(malformed("a chunk belongs to no element")),
        };
        for piece in &data {
            partial.data.extend_from_slice(piece);
        }
        match (partial.data.len() as u64).cmp(&partial.bytes) {
            std::cmp::Ordering::Less if data.iter().all(Bytes::is_empty) => Err(malformed("a chunk is empty")),
            std::cmp::Ordering::Less => {
                self.0 = Some(partial);
                Ok(None)
            }
            std::cmp::Ordering::Equal => Ok(Some(Incoming { kind: partial.kind, data: partial.data.into() })),
            std::cmp::Ordering::Greater => Err(malformed("it has more bytes than it claims")),
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
