//! Where requests find the leader: here, if this JobManager leads, else nowhere, with a hint at who does.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use weir_replication::Node;
use weir_types::{Code, Error, Result};

use crate::event::Event;
use crate::metadata::Machine;

/// How long a request waits for a leader: as long as elections and recoveries take, and then some.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What is behind the door.
#[derive(Clone)]
enum Behind {
    /// Nobody yet: a leader is being elected, or takes over.
    Nobody,
    /// Another JobManager leads; its address, if that is known.
    Elsewhere(Option<String>),
    /// The leader, and the log by which it knows that it still leads.
    Leader(mpsc::Sender<Event>, Node<Machine>),
}

/// The way to the leader; clones lead to the same one.
#[derive(Clone)]
pub(crate) struct Door(watch::Receiver<Behind>);

/// Decides where the door leads.
pub(crate) struct Doorkeeper(watch::Sender<Behind>);

/// A door with nobody behind it yet.
pub(crate) fn door() -> (Doorkeeper, Door) {
    let (keeper, door) = watch::channel(Behind::Nobody);
    (Doorkeeper(keeper), Door(door))
}

impl Doorkeeper {
    /// Requests wait.
    pub(crate) fn close(&self) {
        self.0.send_replace(Behind::Nobody);
    }

    /// Requests are sent elsewhere.
    pub(crate) fn refer(&self, leader: Option<String>) {
        self.0.send_replace(Behind::Elsewhere(leader));
    }

    /// Requests go to the leader that takes these events.
    pub(crate) fn open(&self, events: mpsc::Sender<Event>, node: Node<Machine>) {
        self.0.send_replace(Behind::Leader(events, node));
    }
}

impl Door {
    /// The leader's events, as soon as there is one. A majority has just confirmed that it leads, and its state holds all
    /// that was committed before: what it answers is not old.
    ///
    /// # Errors
    /// `NOT_LEADER` if another JobManager leads, or none for long, or if this one is ending.
    pub(crate) async fn events(&self) -> Result<mpsc::Sender<Event>> {
        let mut behind = self.0.clone();
        let decided = behind.wait_for(|behind| !matches!(behind, Behind::Nobody));
        let behind = match tokio::time::timeout(OPEN_TIMEOUT, decided).await {
            Ok(Ok(behind)) => behind.clone(),
            Ok(Err(_)) => return Err(gone()),
            Err(_) => return Err(not_leader(None)),
        };
        match behind {
            Behind::Leader(events, node) => {
                node.barrier().await.map_err(|_| gone())?;
                Ok(events)
            }
            Behind::Elsewhere(leader) => Err(not_leader(leader)),
            Behind::Nobody => Err(not_leader(None)),
        }
    }
}

/// The error that says who leads.
pub(crate) fn not_leader(leader: Option<String>) -> Error {
    let error = Error::new(Code::NotLeader, "this JobManager does not lead");
    match leader {
        Some(leader) => error.with_detail(leader).with_hint("Ask the one at the address in the detail."),
        None => error.with_hint("Try again in a moment: a leader is being elected."),
    }
}

/// The error of requests that a leader did not live to answer.
pub(crate) fn gone() -> Error {
    Error::new(Code::NotLeader, "this JobManager no longer leads, or is shutting down")
        .with_hint("Try again in a moment, with the same request id.")
}
