//! Why a node did not do what it was asked, by what the caller knows afterwards.

use weir_types::Code;

use crate::node::NodeId;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another member leads, or none; the proposal was not and will not be applied.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The node lost its leadership, or stopped, before the outcome was known: the proposal may yet be applied. Callers
    /// that repeat it give it a request id that the state machine recognises.
    #[error("the outcome of the proposal is not known")]
    OutcomeUnknown,
    /// The node has stopped, by request or after a failure that its status holds; nothing was proposed.
    #[error("the node has stopped")]
    Stopped,
    /// The proposal is larger than the log takes.
    #[error("a proposal of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The membership cannot be changed like that now, for example because another change is under way.
    #[error("the membership change was refused: {0}")]
    ChangeRefused(String),
}

impl From<Error> for weir_types::Error {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotLeader { leader: Some(leader) } => {
                Self::unavailable(message).with_detail(format!("member {leader} leads"))
            }
            Error::NotLeader { leader: None } => {
                Self::unavailable(message).with_detail("no member leads at the moment")
            }
            Error::OutcomeUnknown | Error::Stopped => Self::unavailable(message),
            Error::TooLarge { .. } => Self::invalid(message),
            Error::ChangeRefused(_) => Self::new(Code::FailedPrecondition, message),
        }
    }
}
