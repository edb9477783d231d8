//! What members send each other: raft's own messages, and large snapshots in chunks. One tag byte, then fixed numbers in
//! little-endian order, then the rest.

use bytes::{BufMut, Bytes, BytesMut};

const TAG_RAFT: u8 = 1;
const TAG_CHUNK: u8 = 2;
const TAG_RECEIVED: u8 = 3;

/// One transfer of a snapshot: by which leader, in which term of its, and the how many-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TransferId {
    pub(crate) term: u64,
    pub(crate) from: u64,
    pub(crate) number: u64,
}

/// One message to another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// An encoded raft message.
    Raft(Bytes),
    /// A part of an encoded raft message of `total` bytes, which are too many to be sent as one.
    Chunk { transfer: TransferId, to: u64, total: u64, offset: u64, data: Bytes },
    /// Of a transfer, the first `bytes` have arrived at `by`.
    Received { transfer: TransferId, by: u64, bytes: u64 },
}

impl Frame {
    /// The bytes to send.
    pub(crate) fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::new();
        match self {
            Self::Raft(message) => {
                buffer.reserve(1 + message.len());
                buffer.put_u8(TAG_RAFT);
                buffer.put_slice(message);
            }
            Self::Chunk { transfer: TransferId { term, from, number }, to, total, offset, data } => {
                buffer.reserve(1 + 6 * 8 + data.len());
                buffer.put_u8(TAG_CHUNK);
                [term, from, number, to, total, offset].into_iter().for_each(|number| buffer.put_u64_le(*number));
                buffer.put_slice(data);
            }
            Self::Received { transfer: TransferId { term, from, number }, by, bytes } => {
                buffer.put_u8(TAG_RECEIVED);
                [term, from, number, by, bytes].into_iter().for_each(|number| buffer.put_u64_le(*number));
            }
        }
        buffer.freeze()
    }

    /// What was sent; none for bytes that are no message of this version.
    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        let tag = *bytes.first()?;
        let mut rest = bytes.split_off(1);
        Some(match tag {
            TAG_RAFT => Self::Raft(rest),
            TAG_CHUNK => {
                let [term, from, number, to, total, offset] = numbers(&mut rest)?;
                Self::Chunk { transfer: TransferId { term, from, number }, to, total, offset, data: rest }
            }
            TAG_RECEIVED => {
                let [term, from, number, by, bytes] = numbers(&mut rest)?;
                let transfer = TransferId { term, from, number };
                rest.is_empty().then_some(Self::Received { transfer, by, bytes })?
            }
            _ => return None,
        })
    }
}

fn numbers<const N: usize>(rest: &mut Bytes) -> Option<[u64; N]> {
    if rest.len() < N * 8 {
        return None;
    }
    let head = rest.split_to(N * 8);
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(head.as_chunks::<8>().0) {
        *number = u64::from_le_bytes(*bytes);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_survives_the_wire_and_nothing_shorter_is_taken_for_one() {
        let transfer = TransferId { term: 3, from: 1, number: 9 };
        let frames = [
            Frame::Raft(Bytes::from_static(b"message")),
            Frame::Chunk { transfer, to: 2, total: 700, offset: 512, data: Bytes::from_static(b"chunk") },
            Frame::Received { transfer, by: 2, bytes: 517 },
        ];
        for frame in frames {
            let bytes = frame.encode();
            assert_eq!(Frame::decode(bytes.clone()), Some(frame.clone()));
            for length in 0..bytes.len() {
                assert_ne!(Frame::decode(bytes.slice(..length)), Some(frame.clone()), "cut at {length}");
            }
        }
        assert_eq!(Frame::decode(Bytes::from_static(&[99, 1, 2])), None);
    }
}
