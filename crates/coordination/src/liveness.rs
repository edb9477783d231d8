//! Who is alive. A TaskManager is lost when it has been silent for longer than the timeout; a broken session is noticed
//! by whoever holds the session and needs no timeout.

use std::collections::BTreeMap;

use weir_types::ids::TaskManagerId;
use weir_types::time::Millis;

/// Last signs of life.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout_ms: u64,
    last_heard: BTreeMap<TaskManagerId, Millis>,
}

impl Liveness {
    /// Nobody is known yet.
    pub fn new(timeout_ms: u64) -> Self {
        Self { timeout_ms, last_heard: BTreeMap::new() }
    }

    /// Starts to watch a TaskManager.
    pub fn watch(&mut self, now: Millis, task_manager: TaskManagerId) {
        self.last_heard.insert(task_manager, now);
    }

    /// A sign of life. One of somebody who is not watched says nothing.
    pub fn heard(&mut self, now: Millis, task_manager: &TaskManagerId) {
        if let Some(last) = self.last_heard.get_mut(task_manager) {
            *last = now.max(*last);
        }
    }

    /// Ends watching.
    pub fn forget(&mut self, task_manager: &TaskManagerId) {
        self.last_heard.remove(task_manager);
    }

    /// Milliseconds since the last sign of life.
    pub fn silence_ms(&self, now: Millis, task_manager: &TaskManagerId) -> Option<u64> {
        self.last_heard.get(task_manager).map(|last| now.since(*last))
    }

    /// Removes and returns those that have been silent for too long.
    pub fn expire(&mut self, now: Millis) -> Vec<TaskManagerId> {
        let timeout_ms = self.timeout_ms;
        self.last_heard.extract_if(.., |_, last| now.since(*last) >= timeout_ms).map(|(id, _)| id).collect()
    }

    /// When [`Liveness::expire`] may next find somebody.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.last_heard.values().min().map(|last| last.plus(self.timeout_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> TaskManagerId {
        TaskManagerId::new(name).unwrap()
    }

    #[test]
    fn only_the_silent_one_expires_and_only_once() {
        let mut liveness = Liveness::new(100);
        liveness.watch(Millis(0), id("a"));
        liveness.watch(Millis(0), id("b"));
        liveness.heard(Millis(60), &id("b"));
        assert_eq!(liveness.next_deadline(), Some(Millis(100)));
        assert_eq!(liveness.expire(Millis(99)), []);
        assert_eq!(liveness.expire(Millis(100)), [id("a")]);
        assert_eq!(liveness.expire(Millis(150)), []);
        assert_eq!(liveness.next_deadline(), Some(Millis(160)));
    }

    #[test]
    fn a_late_heartbeat_does_not_revive_who_was_given_up() {
        let mut liveness = Liveness::new(100);
        liveness.watch(Millis(0), id("a"));
        assert_eq!(liveness.expire(Millis(500)), [id("a")]);
        liveness.heard(Millis(501), &id("a"));
        assert_eq!(liveness.silence_ms(Millis(501), &id("a")), None);
    }
}
