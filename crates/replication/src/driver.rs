//! The node's thread: one loop that feeds a member with requests and ticks, until it is asked to stop or fails.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use weir_types::{Error as UserError, Result as UserResult};

use crate::machine::StateMachine;
use crate::member::{Member, Request};
use crate::node::Status;

/// Requests taken into one batch.
const BATCH_MAX: usize = 1024;

/// Runs until asked to stop, all handles are gone, or the disk fails.
pub(crate) fn run<M: StateMachine>(member: Member<M>, queue: mpsc::Receiver<Request>, tick: Duration) {
    // Says so even if raft panics on an invariant; in a normal end, the real outcome is there first.
    let last_word = LastWord(member.status.clone());
    let ended = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        // The member is dropped at the end of the loop: its directory is free before anybody hears of the end.
        Ok(runtime) => runtime.block_on(serve(member, queue, tick)),
        Err(error) => Err(UserError::io("could not start the raft thread's timer", &error)),
    };
    if let Err(error) = &ended {
        tracing::error!(%error, "raft node failed");
    }
    last_word.say(ended);
}

async fn serve<M: StateMachine>(
    mut member: Member<M>,
    mut queue: mpsc::Receiver<Request>,
    tick: Duration,
) -> UserResult<()> {
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        member.work()?;
        if member.may_stop() {
            return Ok(());
        }
        tokio::select! {
            received = queue.recv_many(&mut batch, BATCH_MAX) => {
                if received == 0 {
                    return Ok(());
                }
                member.on_requests(batch.drain(..));
            }
            _ = ticks.tick() => member.tick(),
        }
    }
}

/// Sets the final status, at the latest when the thread unwinds.
struct LastWord(watch::Sender<Status>);

impl LastWord {
    fn say(&self, ended: UserResult<()>) {
        self.0.send_modify(|status| {
            status.serving = false;
            status.stopped.get_or_insert(ended);
        });
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        self.say(Err(UserError::internal("the raft thread panicked")));
    }
}
