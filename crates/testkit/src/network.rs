//! A network in memory for any kind of message, whose links can be cut and restored.
//!
//! Delivery is immediate and in order, on the sender's thread; a message over a cut link is lost without a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// What a member does with a message.
type Sink<T> = Arc<dyn Fn(T) + Send + Sync>;

/// The network; clones share it.
pub struct Network<T>(Arc<Mutex<Links<T>>>);

struct Links<T> {
    sinks: BTreeMap<u64, Sink<T>>,
    isolated: BTreeSet<u64>,
}

impl<T> Clone for Network<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Network<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Links { sinks: BTreeMap::new(), isolated: BTreeSet::new() })))
    }
}

impl<T> Network<T> {
    /// A network without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on messages to `member` go to `sink`, instead of whoever had its place before.
    pub fn join(&self, member: u64, sink: impl Fn(T) + Send + Sync + 'static) {
        self.links(|links| links.sinks.insert(member, Arc::new(sink)));
    }

    /// From now on nobody is there to receive what is sent to `member`.
    pub fn leave(&self, member: u64) {
        self.links(|links| links.sinks.remove(&member));
    }

    /// Cuts all links of `member`.
    pub fn isolate(&self, member: u64) {
        self.links(|links| links.isolated.insert(member));
    }

    /// Restores all links of `member`.
    pub fn heal(&self, member: u64) {
        self.links(|links| links.isolated.remove(&member));
    }

    /// Delivers a message, if both ends have their links.
    pub fn send(&self, from: u64, to: u64, message: T) {
        let sink = self.links(|links| {
            let cut = links.isolated.contains(&from) || links.isolated.contains(&to);
            if cut { None } else { links.sinks.get(&to).cloned() }
        });
        if let Some(sink) = sink {
            sink(message);
        }
    }

    fn links<R>(&self, change: impl FnOnce(&mut Links<T>) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_link_loses_messages_both_ways_until_it_heals() {
        let network = Network::new();
        let received = Arc::new(Mutex::new(Vec::new()));
        for member in [1, 2] {
            let received = received.clone();
            network.join(member, move |message| received.lock().unwrap().push((member, message)));
        }
        network.send(1, 2, "a");
        network.isolate(2);
        network.send(1, 2, "lost");
        network.send(2, 1, "lost");
        network.heal(2);
        network.send(2, 1, "b");
        network.leave(1);
        network.send(2, 1, "lost");
        assert_eq!(*received.lock().unwrap(), [(2, "a"), (1, "b")]);
    }
}
