//! The replicated state as the raft group runs it, and time as it enters commands.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use weir_coordination::metadata::State;
use weir_proto::convert::metadata::{decode_command, encode_reply};
use weir_proto::convert::metadata_state::{decode_state, encode_state};
use weir_replication::{Command, StateMachine};
use weir_types::Result;
use weir_types::time::Millis;

/// The state machine behind the log.
#[derive(Debug, Default)]
pub(crate) struct Machine(pub(crate) State);

impl StateMachine for Machine {
    fn apply(&mut self, command: Command<'_>) -> Bytes {
        // A command that does not decode is refused alike on every member.
        let reply = decode_command(command.data).and_then(|(now, command)| self.0.apply(now, command));
        encode_reply(&reply).into()
    }

    fn snapshot(&self) -> Bytes {
        encode_state(&self.0).into()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        // A group that is being founded begins with an empty state.
        self.0 = decode_state(snapshot)?;
        Ok(())
    }
}

/// This process's clock.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(since.as_millis() as u64)
}
