//! Snapshots on their way, in chunks: a member that lags too far gets the leader's state without any message's being
//! large, at the pace at which it takes it.
//!
//! A chunk that is lost is sent again, one that comes twice or too early is answered with what is there. Pure: time is
//! ticks, and what is to be sent collects in an outbox.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::wire::{Frame, TransferId};

/// Chunks under way to one member at a time.
const WINDOW: usize = 4;
/// After so many ticks without an answer, what is unanswered is sent again,
const RESEND_TICKS: u32 = 5;
/// and after so many the transfer has failed: the leader looks anew at what the member needs.
const GIVE_UP_TICKS: u32 = 50;

/// The transfers of one member: any number that it sends, one that it receives.
#[derive(Debug)]
pub(crate) struct Transfers {
    chunk_bytes: usize,
    outgoing: BTreeMap<u64, Outgoing>,
    started: u64,
    incoming: Option<Incoming>,
    /// The last one that arrived whole, and its length: its sender may not have heard of that.
    arrived: Option<(TransferId, u64)>,
    /// What is to be sent, and to whom.
    pub(crate) outbox: Vec<(u64, Frame)>,
}

#[derive(Debug)]
struct Outgoing {
    id: TransferId,
    message: Bytes,
    /// Bytes that have arrived, and bytes sent.
    received: usize,
    sent: usize,
    idle_ticks: u32,
}

#[derive(Debug)]
struct Incoming {
    id: TransferId,
    total: u64,
    message: BytesMut,
}

impl Transfers {
    pub(crate) fn new(chunk_bytes: usize) -> Self {
        Self {
            chunk_bytes: chunk_bytes.max(1),
            outgoing: BTreeMap::new(),
            started: 0,
            incoming: None,
            arrived: None,
            outbox: Vec::new(),
        }
    }

    /// Whether a message of this length goes in chunks.
    pub(crate) fn splits(&self, bytes: usize) -> bool {
        bytes > self.chunk_bytes
    }

    /// Begins to send an encoded message, instead of whatever is on its way to the same member.
    pub(crate) fn start(&mut self, term: u64, from: u64, to: u64, message: Bytes) {
        self.started += 1;
        let id = TransferId { term, from, number: self.started };
        self.outgoing.insert(to, Outgoing { id, message, received: 0, sent: 0, idle_ticks: 0 });
        self.fill(to);
    }

    /// Forgets what is being sent: this member no longer leads.
    pub(crate) fn stop(&mut self) {
        self.outgoing.clear();
    }

    /// Sends again what was not answered; returns the members whose transfers have failed.
    pub(crate) fn on_tick(&mut self) -> Vec<u64> {
        let mut stalled = Vec::new();
        for (to, outgoing) in &mut self.outgoing {
            outgoing.idle_ticks += 1;
            if outgoing.idle_ticks.is_multiple_of(RESEND_TICKS) {
                outgoing.sent = outgoing.received;
                stalled.push(*to);
            }
        }
        stalled.iter().for_each(|to| self.fill(*to));
        self.outgoing.extract_if(.., |_, outgoing| outgoing.idle_ticks >= GIVE_UP_TICKS).map(|(to, _)| to).collect()
    }

    /// Goes on with a transfer of which `bytes` have arrived at member `by`; true if that is all of it.
    pub(crate) fn on_received(&mut self, transfer: TransferId, by: u64, bytes: u64) -> bool {
        let Some(outgoing) = self.outgoing.get_mut(&by).filter(|outgoing| outgoing.id == transfer) else {
            return false;
        };
        let Ok(bytes) = usize::try_from(bytes) else { return false };
        if bytes > outgoing.received && bytes <= outgoing.message.len() {
            outgoing.received = bytes;
            outgoing.sent = outgoing.sent.max(bytes);
            outgoing.idle_ticks = 0;
        }
        if outgoing.received == outgoing.message.len() {
            self.outgoing.remove(&by);
            return true;
        }
        self.fill(by);
        false
    }

    /// Takes a chunk for this member; returns the message when it is whole.
    pub(crate) fn on_chunk(
        &mut self,
        transfer: TransferId,
        to: u64,
        total: u64,
        offset: u64,
        data: &[u8],
    ) -> Option<Bytes> {
        let mut whole = None;
        let received = match (&mut self.incoming, self.arrived) {
            (_, Some((arrived, length))) if arrived == transfer => length,
            // An older leader's, or one that its sender has replaced: nobody waits for an answer.
            (Some(incoming), _) if incoming.id > transfer => return None,
            (incoming, _) => {
                let incoming = match incoming {
                    Some(incoming) if incoming.id == transfer => incoming,
                    _ => incoming.insert(Incoming { id: transfer, total, message: BytesMut::new() }),
                };
                let expected = incoming.message.len() as u64;
                if offset == expected && expected + data.len() as u64 <= incoming.total {
                    incoming.message.extend_from_slice(data);
                }
                let received = incoming.message.len() as u64;
                if received == incoming.total {
                    self.arrived = Some((transfer, received));
                    whole = self.incoming.take().map(|incoming| incoming.message.freeze());
                }
                received
            }
        };
        self.outbox.push((transfer.from, Frame::Received { transfer, by: to, bytes: received }));
        whole
    }

    /// Sends what the window has room for.
    fn fill(&mut self, to: u64) {
        let Some(outgoing) = self.outgoing.get_mut(&to) else { return };
        let total = outgoing.message.len();
        let end = total.min(outgoing.received.saturating_add(WINDOW * self.chunk_bytes));
        while outgoing.sent < end {
            let next = end.min(outgoing.sent + self.chunk_bytes);
            let data = outgoing.message.slice(outgoing.sent..next);
            let (offset, total) = (outgoing.sent as u64, total as u64);
            self.outbox.push((to, Frame::Chunk { transfer: outgoing.id, to, total, offset, data }));
            outgoing.sent = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delivers everything between a sender (1) and a receiver (2), but what `lose` takes; returns what arrived whole.
    fn deliver(
        sender: &mut Transfers,
        receiver: &mut Transfers,
        mut lose: impl FnMut(&Frame) -> bool,
    ) -> Option<Bytes> {
        let mut whole = None;
        loop {
            let frames: Vec<_> = sender.outbox.drain(..).chain(receiver.outbox.drain(..)).collect();
            if frames.is_empty() {
                return whole;
            }
            for (to, frame) in frames {
                match frame {
                    lost if lose(&lost) => {}
                    Frame::Chunk { transfer, to: member, total, offset, data } => {
                        assert_eq!((to, member), (2, 2));
                        whole = receiver.on_chunk(transfer, 2, total, offset, &data).or(whole);
                    }
                    Frame::Received { transfer, by, bytes } => {
                        assert_eq!(to, 1);
                        sender.on_received(transfer, by, bytes);
                    }
                    Frame::Raft(_) => panic!("no raft message goes through transfers"),
                }
            }
        }
    }

    fn message() -> Bytes {
        (0..1000u32).map(|number| number as u8).collect()
    }

    #[test]
    fn a_snapshot_arrives_whole_whatever_is_lost() {
        for lost in 3..20 {
            let (mut sender, mut receiver) = (Transfers::new(64), Transfers::new(64));
            sender.start(1, 1, 2, message());
            let (mut count, mut arrived) = (0, None);
            for _ in 0..100 {
                arrived = deliver(&mut sender, &mut receiver, |_| {
                    count += 1;
                    count % lost == 0
                })
                .or(arrived);
                assert_eq!(sender.on_tick(), Vec::<u64>::new());
            }
            assert_eq!(arrived, Some(message()), "every {lost}th frame lost");
            assert!(sender.outgoing.is_empty(), "every {lost}th frame lost");
        }
    }

    #[test]
    fn no_more_than_the_window_is_under_way() {
        let mut sender = Transfers::new(64);
        sender.start(1, 1, 2, message());
        assert_eq!(sender.outbox.len(), WINDOW);
    }

    #[test]
    fn a_transfer_nobody_answers_fails() {
        let mut sender = Transfers::new(64);
        sender.start(1, 1, 2, message());
        for _ in 1..GIVE_UP_TICKS {
            assert_eq!(sender.on_tick(), Vec::<u64>::new());
        }
        assert_eq!(sender.on_tick(), [2]);
    }

    #[test]
    fn a_newer_transfer_replaces_an_older_one_and_not_the_reverse() {
        let mut receiver = Transfers::new(64);
        let id = |term, number| TransferId { term, from: 1, number };
        assert_eq!(receiver.on_chunk(id(1, 1), 2, 4, 0, b"ol"), None);
        assert_eq!(receiver.on_chunk(id(2, 1), 2, 4, 0, b"ne"), None);
        assert_eq!(receiver.on_chunk(id(1, 1), 2, 4, 2, b"d!"), None);
        assert_eq!(receiver.on_chunk(id(2, 1), 2, 4, 2, b"w!").as_deref(), Some(&b"new!"[..]));
    }
}
