//! A bounded channel between two subtasks: one sender, one receiver, elements in order, credits in bytes.
//!
//! Invariants: an element that was pushed is received, once and in order, unless one end breaks; a receiver never takes a
//! lost sender for a clean end, because only [`Element::EndOfInput`] ends a channel. The sender may push what one step of
//! its operator chain emits and then waits for room, so a channel holds at most its bound plus one step's output.
//! Control elements cost no bytes; watermarks that meet in the queue are merged into the later one, and the number of
//! control elements is bounded too.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use weir_types::{Error, Result};

use crate::element::Element;
use crate::memory::MemoryBudget;

/// What a batch costs at least, so that many tiny ones are bounded as well.
const BATCH_BYTES_MIN: usize = 256;

/// How many control elements may wait.
const CONTROLS_MAX: usize = 64;

/// A channel that has room as long as it holds less than `bytes_max`.
pub fn channel(bytes_max: usize, memory: Arc<MemoryBudget>) -> (ChannelSender, ChannelReceiver) {
    let shared = Arc::new(Shared {
        queue: Mutex::new(Queue {
            elements: VecDeque::new(),
            bytes: 0,
            controls: 0,
            tail: Tail::Open,
            receiver_gone: None,
        }),
        sender: AtomicWaker::new(),
        receiver: AtomicWaker::new(),
        bytes_max: bytes_max.max(1),
        memory,
    });
    (ChannelSender { shared: Arc::clone(&shared) }, ChannelReceiver { shared })
}

struct Shared {
    queue: Mutex<Queue>,
    sender: AtomicWaker,
    receiver: AtomicWaker,
    bytes_max: usize,
    memory: Arc<MemoryBudget>,
}

struct Queue {
    elements: VecDeque<(Element, usize)>,
    bytes: usize,
    controls: usize,
    tail: Tail,
    /// Why nobody receives any more.
    receiver_gone: Option<Error>,
}

/// What follows the queued elements.
enum Tail {
    Open,
    Ended,
    Broken(Error),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn has_room(&self, bytes_max: usize) -> bool {
        self.bytes < bytes_max && self.controls < CONTROLS_MAX
    }

    /// Merges event-time signals that would stand side by side; returns what is left to queue.
    fn merge(&mut self, element: Element) -> Option<Element> {
        match (self.elements.back_mut(), &element) {
            (Some((last @ (Element::Watermark(_) | Element::Idle), _)), Element::Watermark(_))
            | (Some((last @ Element::Idle, _)), Element::Idle) => {
                *last = element;
                None
            }
            _ => Some(element),
        }
    }
}

fn cost(element: &Element) -> usize {
    match element {
        Element::Batch(batch) => batch.bytes().max(BATCH_BYTES_MIN),
        _ => 0,
    }
}

/// The sending end. Dropping it before [`Element::EndOfInput`] breaks the channel.
pub struct ChannelSender {
    shared: Arc<Shared>,
}

impl ChannelSender {
    /// Queues an element without waiting for room.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the receiver is gone, `INTERNAL` after the end of input.
    pub fn push(&mut self, element: Element) -> Result<()> {
        let cost = cost(&element);
        let mut queue = self.shared.lock();
        if let Some(reason) = &queue.receiver_gone {
            return Err(reason.clone());
        }
        if !matches!(queue.tail, Tail::Open) {
            return Err(Error::internal("a channel was used after its end"));
        }
        if matches!(element, Element::EndOfInput) {
            queue.tail = Tail::Ended;
        }
        if let Some(element) = queue.merge(element) {
            if cost == 0 {
                queue.controls += 1;
            }
            queue.bytes += cost;
            queue.elements.push_back((element, cost));
        }
        drop(queue);
        self.shared.memory.add(cost as u64);
        self.shared.receiver.wake();
        Ok(())
    }

    /// Ready when there is room for another batch.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the receiver is gone.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(ready) = self.room_now() {
            return Poll::Ready(ready);
        }
        self.shared.sender.register(cx.waker());
        self.room_now().map_or(Poll::Pending, Poll::Ready)
    }

    fn room_now(&self) -> Option<Result<()>> {
        let queue = self.shared.lock();
        if let Some(reason) = &queue.receiver_gone {
            return Some(Err(reason.clone()));
        }
        queue.has_room(self.shared.bytes_max).then_some(Ok(()))
    }

    /// Waits for room. Cancel safe.
    ///
    /// # Errors
    /// As [`ChannelSender::poll_room`].
    pub async fn room(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll_room(cx)).await
    }

    /// Waits for room, then queues the element. Cancel safe in that a cancelled call has queued nothing.
    ///
    /// # Errors
    /// As [`ChannelSender::push`].
    pub async fn send(&mut self, element: Element) -> Result<()> {
        self.room().await?;
        self.push(element)
    }

    /// Waits until the receiver has taken everything, or is gone.
    pub async fn drained(&mut self) {
        poll_fn(|cx| {
            self.shared.sender.register(cx.waker());
            let queue = self.shared.lock();
            if queue.elements.is_empty() || queue.receiver_gone.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Breaks the channel for a reason that the receiver will see behind the elements already queued.
    pub fn fail(self, reason: Error) {
        let mut queue = self.shared.lock();
        if matches!(queue.tail, Tail::Open) {
            queue.tail = Tail::Broken(reason);
        }
    }
}

impl Drop for ChannelSender {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        if matches!(queue.tail, Tail::Open) {
            queue.tail = Tail::Broken(Error::unavailable("an exchange broke off: its sending subtask is gone"));
        }
        drop(queue);
        self.shared.receiver.wake();
    }
}

/// The receiving end.
pub struct ChannelReceiver {
    shared: Arc<Shared>,
}

impl ChannelReceiver {
    /// The next element.
    ///
    /// # Errors
    /// The sender's reason or `UNAVAILABLE` if the channel broke; `INTERNAL` after the end of input was received.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Element>> {
        if let Some(ready) = self.recv_now() {
            return Poll::Ready(ready);
        }
        self.shared.receiver.register(cx.waker());
        self.recv_now().map_or(Poll::Pending, Poll::Ready)
    }

    fn recv_now(&mut self) -> Option<Result<Element>> {
        let mut queue = self.shared.lock();
        let Some((element, cost)) = queue.elements.pop_front() else {
            return match &queue.tail {
                Tail::Open => None,
                Tail::Ended => Some(Err(Error::internal("a channel was read after its end"))),
                Tail::Broken(reason) => Some(Err(reason.clone())),
            };
        };
        queue.bytes -= cost;
        if cost == 0 {
            queue.controls -= 1;
        }
        let wake = queue.has_room(self.shared.bytes_max);
        drop(queue);
        self.shared.memory.sub(cost as u64);
        if wake {
            self.shared.sender.wake();
        }
        Some(Ok(element))
    }

    /// Waits for the next element. Cancel safe.
    ///
    /// # Errors
    /// As [`ChannelReceiver::poll_recv`].
    pub async fn recv(&mut self) -> Result<Element> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Breaks the channel for a reason that the sender will see.
    pub fn fail(self, reason: Error) {
        self.shared.lock().receiver_gone = Some(reason);
    }

    /// Bytes that wait in the channel.
    pub fn bytes(&self) -> usize {
        self.shared.lock().bytes
    }
}

impl Drop for ChannelReceiver {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        let gone = || Error::unavailable("the receiving subtask of an exchange is gone");
        queue.receiver_gone.get_or_insert_with(gone);
        queue.elements.clear();
        let bytes = std::mem::take(&mut queue.bytes);
        queue.controls = 0;
        drop(queue);
        self.shared.memory.sub(bytes as u64);
        self.shared.sender.wake();
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
