//! What goes wrong, how often, and when.

use weir_types::ids::TaskManagerId;

use super::world::World;
use crate::network::{Network, Weather};
use crate::random::Random;

/// How often what goes wrong, in thousandths a tick, and how slow things are.
pub(super) struct Troubles {
    pub(super) crash_member: u64,
    pub(super) crash_manager: u64,
    pub(super) pause_manager: u64,
    pub(super) break_session: u64,
    pub(super) stall_session: u64,
    pub(super) part: u64,
    pub(super) store_outage: u64,
    pub(super) fail_subtask: u64,
    /// Thousandths of steps that fail before or after their effect.
    pub(super) fail_step: u64,
    /// Thousandths of messages and calls that arrive a second time, late.
    pub(super) repeat: u64,
    /// Thousandths of protocol steps at which a process dies.
    pub(super) strike: u64,
    pub(super) delay_max_ms: u64,
    pub(super) user: u64,
}

impl Troubles {
    /// Those of a seed: some kinds of trouble at a time, so that each is met without all others too.
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            crash_member: random.pick(&[0, 2, 6, 15]),
            crash_manager: random.pick(&[0, 2, 8]),
            pause_manager: random.pick(&[0, 4]),
            break_session: random.pick(&[0, 4, 15]),
            stall_session: random.pick(&[0, 6]),
            part: random.pick(&[0, 5, 15]),
            store_outage: random.pick(&[0, 2, 6]),
            fail_subtask: random.pick(&[0, 0, 5]),
            fail_step: random.pick(&[0, 10, 60]),
            repeat: random.pick(&[0, 20, 100]),
            strike: random.pick(&[0, 0, 20, 60]),
            delay_max_ms: random.pick(&[20, 60, 200]),
            user: random.pick(&[0, 20, 60]),
        }
    }
}

/// A network between members that is as bad as a seed says.
pub(super) fn bad_network(random: &mut Random) -> Network {
    let mut network = Network::default();
    network.weather = Weather {
        lost: random.pick(&[0, 0, 20, 100]),
        doubled: random.pick(&[0, 50, 200]),
        delay_max: random.pick(&[0, 0, 1, 3]),
    };
    network
}

impl World {
    pub(super) fn trouble(&mut self) {
        let members = self.member_ids();
        let member = self.random.pick(&members);
        if self.random.chance(self.troubles.crash_member) {
            match self.random.chance(500) {
                true => self.crash_member(member),
                false => self.break_disk(member),
            }
        }
        for id in members.iter().copied() {
            if self.places[&id].running.is_none() && self.random.chance(60) {
                self.start_member(id);
            }
        }
        if self.random.chance(self.troubles.part) {
            self.seen("members are parted");
            let these: Vec<u64> = members.iter().copied().filter(|_| self.random.chance(400)).collect();
            let one_way = self.random.chance(300);
            self.network.heal();
            self.network.part(&these, &members, one_way);
        } else if self.random.chance(30) {
            self.network.heal();
        }
        let managers: Vec<TaskManagerId> = self.managers.keys().cloned().collect();
        if !managers.is_empty() {
            let manager = managers[self.random.below(managers.len() as u64) as usize].clone();
            self.trouble_manager(&manager);
        }
        if !self.store.down && self.random.chance(self.troubles.store_outage) {
            self.note(|| "the store goes down".to_owned());
            self.seen("the store goes down");
            self.store.down = true;
            let back = self.random.below(1_000);
            self.after(back, World::resume_store);
        }
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        if !sessions.is_empty() {
            let session = sessions[self.random.below(sessions.len() as u64) as usize];
            if self.random.chance(self.troubles.break_session) {
                self.seen("a session breaks");
                self.break_session(session);
            }
            if self.random.chance(self.troubles.stall_session) {
                self.seen("a session stalls");
                let until = self.now + self.random.below(900);
                self.sessions.get_mut(&session).unwrap().stalled_until = until;
            }
        }
        self.users();
    }

    /// Thousandths of ticks in which the user of a job wants something.
    pub(super) fn troubles_of_users(&self) -> u64 {
        self.troubles.user
    }

    fn trouble_manager(&mut self, manager: &TaskManagerId) {
        if self.random.chance(self.troubles.crash_manager) {
            return self.crash_manager(manager);
        }
        if self.random.chance(self.troubles.pause_manager) {
            self.seen("a TaskManager stands still");
            let until = self.now + self.random.below(1_200);
            self.managers.get_mut(manager).unwrap().paused_until = until;
        }
        if self.random.chance(self.troubles.fail_subtask) {
            self.fail_subtask(manager, None);
        }
    }
}
