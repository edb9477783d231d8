//! Where arriving channels meet the subtasks deployed here, whichever comes first.
//!
//! A channel is taken once. One that arrives before its subtask waits without credits, so that it costs no memory but its
//! name; one of a lower attempt is refused.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use weir_dataflow::channel::ChannelSender;
use weir_types::deployment::ChannelId;
use weir_types::ids::{Attempt, JobId};
use weir_types::{Code, Error, Result};

use super::Channel;
use crate::fences::Fences;

/// Channels that may wait for a deployment at a time.
const WAITING_MAX: usize = 65_536;

/// A channel's receiving subtask.
pub(super) struct Target {
    pub(super) channel: Channel,
    pub(super) sender: ChannelSender,
}

enum Meeting {
    /// The subtask is here, the channel has not been opened.
    Offered(Box<Target>),
    /// The channel has been opened, the subtask is not here yet.
    Awaited(oneshot::Sender<Result<Box<Target>>>),
    /// They have met; nobody may open the channel again.
    Met,
}

pub(super) struct Registry(Mutex<State>);

struct State {
    meetings: HashMap<ChannelId, Meeting>,
    fences: Fences,
    waiting: usize,
}

impl Registry {
    pub(super) fn new(fences: Fences) -> Self {
        Self(Mutex::new(State { meetings: HashMap::new(), fences, waiting: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses channels of lower attempts from now on, those that wait included.
    pub(super) fn begin(&self, job: &JobId, attempt: Attempt) {
        let mut state = self.lock();
        if state.fences.raise(job, attempt).is_err() {
            return;
        }
        let State { meetings, fences, waiting } = &mut *state;
        let over = meetings.extract_if(|id, _| id.job == *job && id.attempt < attempt);
        for (id, meeting) in over {
            if let Meeting::Awaited(opener) = meeting {
                *waiting -= 1;
                let _opener_gone = fences.check(&id.job, id.attempt).map_err(|error| opener.send(Err(error)));
            }
        }
    }

    /// Forgets the attempt's channels: those offered break off, those met are over.
    pub(super) fn end(&self, job: &JobId, attempt: Attempt) {
        let ended = |id: &ChannelId, meeting: &mut Meeting| {
            id.job == *job && id.attempt == attempt && !matches!(meeting, Meeting::Awaited(_))
        };
        self.lock().meetings.retain(|id, meeting| !ended(id, meeting));
    }

    /// The receiving subtask is here.
    pub(super) fn offer(&self, channel: Channel, sender: ChannelSender) -> Result<()> {
        let mut state = self.lock();
        let id = channel.id.clone();
        let target = Box::new(Target { channel, sender });
        match state.meetings.insert(id.clone(), Meeting::Met) {
            None => {
                state.meetings.insert(id, Meeting::Offered(target));
            }
            Some(Meeting::Awaited(opener)) => {
                state.waiting -= 1;
                if let Err(Ok(target)) = opener.send(Ok(target)) {
                    state.meetings.insert(id, Meeting::Offered(target));
                }
            }
            Some(Meeting::Offered(_) | Meeting::Met) => {
                return Err(Error::internal(format!("channel {id} was deployed twice")));
            }
        }
        Ok(())
    }

    /// A peer has opened a channel: resolves when its subtask is here.
    pub(super) fn claim(&self, id: &ChannelId) -> Result<oneshot::Receiver<Result<Box<Target>>>> {
        let mut state = self.lock();
        let State { meetings, fences, waiting } = &mut *state;
        fences.check(&id.job, id.attempt)?;
        let (opener, met) = oneshot::channel();
        match meetings.entry(id.clone()) {
            Entry::Vacant(_) if *waiting >= WAITING_MAX => {
                return Err(Error::new(Code::ResourceExhausted, "too many channels wait for their deployment"));
            }
            Entry::Vacant(vacant) => {
                *waiting += 1;
                vacant.insert(Meeting::Awaited(opener));
            }
            Entry::Occupied(mut occupied) => match occupied.insert(Meeting::Met) {
                // The receiver is right here, so that sending cannot fail.
                Meeting::Offered(target) => drop(opener.send(Ok(target))),
                meeting @ (Meeting::Awaited(_) | Meeting::Met) => {
                    occupied.insert(meeting);
                    return Err(Error::new(Code::AlreadyExists, format!("channel {id} is open already")));
                }
            },
        }
        Ok(met)
    }

    /// The opener does not wait any longer.
    pub(super) fn give_up(&self, id: &ChannelId) {
        let mut state = self.lock();
        if matches!(state.meetings.get(id), Some(Meeting::Awaited(_))) {
            state.meetings.remove(id);
            state.waiting -= 1;
        }
    }
}
