//! Slots: one compute thread each. Subtasks of all operator chains that share a slot take turns on its thread, and
//! nothing else runs there, so that computing never starves heartbeats and the network.

use futures::future::LocalBoxFuture;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use weir_types::{Code, Error, Result};

/// Subtasks that may wait to be started in one slot.
const STARTS_MAX: usize = 1024;

/// Makes what is to run; called on the slot's thread, because subtasks never leave it.
pub(crate) type Start = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

/// The compute threads. They end once this is dropped and what they run has ended.
pub(crate) struct Slots(Vec<mpsc::Sender<Start>>);

impl Slots {
    /// Starts one thread per slot.
    ///
    /// # Errors
    /// `IO` if the system has no thread left.
    pub(crate) fn new(count: u32) -> Result<Self> {
        (0..count).map(start_thread).collect::<Result<_>>().map(Self)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Runs a subtask in a slot.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there is no such slot, `RESOURCE_EXHAUSTED` if too much waits to be started in it.
    pub(crate) fn start(&self, slot: u32, start: Start) -> Result<()> {
        let Some(thread) = self.0.get(slot as usize) else {
            return Err(Error::invalid(format!("slot {slot} of {} does not exist", self.0.len())));
        };
        thread.try_send(start).map_err(|_| {
            Error::new(Code::ResourceExhausted, format!("slot {slot} does not keep up with starting subtasks"))
        })
    }
}

fn start_thread(slot: u32) -> Result<mpsc::Sender<Start>> {
    let failed = |error: std::io::Error| Error::io(format!("could not start the thread of slot {slot}"), &error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (sender, mut starts) = mpsc::channel::<Start>(STARTS_MAX);
    let run = move || {
        let local = LocalSet::new();
        local.spawn_local(async move {
            while let Some(start) = starts.recv().await {
                tokio::task::spawn_local(start());
            }
        });
        runtime.block_on(local);
    };
    std::thread::Builder::new().name(format!("slot-{slot}")).spawn(run).map_err(failed)?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn subtasks_of_a_slot_share_one_thread_and_slots_do_not() {
        let slots = Slots::new(2).unwrap();
        let (sender, mut ran) = mpsc::channel(4);
        for slot in [0, 0, 1] {
            let sender = sender.clone();
            let thread = || std::thread::current().name().unwrap_or_default().to_owned();
            let body = move || async move { sender.send((slot, thread())).await.unwrap() };
            slots.start(slot, Box::new(move || Box::pin(body()))).unwrap();
        }
        drop(sender);
        let mut seen = Vec::new();
        while let Some(one) = ran.recv().await {
            seen.push(one);
        }
        seen.sort();
        let slot = |number: u32| (number, format!("slot-{number}"));
        assert_eq!(seen, [slot(0), slot(0), slot(1)]);
        let error = slots.start(2, Box::new(|| Box::pin(std::future::ready(())))).unwrap_err();
        assert_eq!(error.message, "slot 2 of 2 does not exist");
    }
}
