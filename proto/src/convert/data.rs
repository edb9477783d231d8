//! Exchanges between TaskManagers: the names of channels. Elements are encoded where they are cut into chunks, in the
//! TaskManager, because their bodies are not messages.

use weir_types::Error;
use weir_types::deployment::ChannelId;
use weir_types::ids::{Attempt, JobId, SubtaskIndex};

use crate::pb::data::v1 as pb;

impl From<&ChannelId> for pb::ChannelId {
    fn from(id: &ChannelId) -> Self {
        let ChannelId { job, attempt, edge, from, to } = id;
        Self { job: job.to_string(), attempt: attempt.0, edge: *edge, from: from.0, to: to.0 }
    }
}

impl TryFrom<pb::ChannelId> for ChannelId {
    type Error = Error;

    fn try_from(id: pb::ChannelId) -> Result<Self, Error> {
        let pb::ChannelId { job, attempt, edge, from, to } = id;
        Ok(Self {
            job: JobId::new(job)?,
            attempt: Attempt(attempt),
            edge,
            from: SubtaskIndex(from),
            to: SubtaskIndex(to),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_ids_survive_the_wire_and_hostile_ones_are_refused() {
        let id = ChannelId {
            job: JobId::new("j").unwrap(),
            attempt: Attempt(3),
            edge: 7,
            from: SubtaskIndex(1),
            to: SubtaskIndex(2),
        };
        assert_eq!(ChannelId::try_from(pb::ChannelId::from(&id)).unwrap(), id);
        let hostile = pb::ChannelId { job: "../x".to_owned(), ..pb::ChannelId::from(&id) };
        assert_eq!(ChannelId::try_from(hostile).unwrap_err().code, weir_types::Code::InvalidArgument);
    }
}
