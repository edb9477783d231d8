//! Calls to the store, and connections between TaskManagers and leaders: in order, as long as they last, but for copies that
//! come late; what was under way when one breaks is lost.

use weir_types::control::{FromTaskManager, ToTaskManager};
use weir_types::ids::TaskManagerId;
use weir_types::{Error, Result};

use super::leader::{Event, Reign, Step};
use super::store::Call;
use super::world::{TICK_MS, World};

/// A connection between a TaskManager and a leader.
pub(super) struct Session {
    manager: TaskManagerId,
    pub(super) reign: Reign,
    broken: bool,
    pub(super) stalled_until: u64,
    down_at: u64,
    up_at: u64,
}

impl World {
    /// A step of work takes effect, or fails before or after that.
    pub(super) fn try_step(&mut self, step: Step) -> Result<()> {
        if self.troubled && self.random.chance(self.troubles.fail_step) {
            self.seen("a step fails before its effect");
            return Err(Error::unavailable("it was not reached"));
        }
        step(self)?;
        if self.troubled && self.random.chance(self.troubles.fail_step) {
            self.seen("a step fails after its effect");
            return Err(Error::unavailable("its answer was lost"));
        }
        Ok(())
    }

    /// A call to the store; it may arrive a second time.
    pub(super) fn call_store(&mut self, _member: u64, call: Call) -> Result<()> {
        if self.store.down {
            self.seen("the store does not answer");
            return Err(Error::unavailable("the store is down"));
        }
        if self.troubled && self.random.chance(self.troubles.repeat) {
            let (again, delay) = (call.clone(), self.random.below(600));
            self.seen("a call is repeated");
            self.after(delay, move |world| {
                if !world.store.down {
                    let now = world.clock(0);
                    let _repeated = world.store.call(now, again);
                }
            });
        }
        let now = self.clock(0);
        let text = if self.trace.is_some() { format!("{call:?}") } else { String::new() };
        let result = self.store.call(now, call);
        self.note(|| format!("store: {text} → {result:?}"));
        result
    }

    pub(super) fn connect(&mut self, id: &TaskManagerId) {
        let Some(manager) = self.managers.get_mut(id) else { return };
        if manager.session.is_some() || manager.connecting || manager.paused_until > self.now {
            return;
        }
        manager.connecting = true;
        let registration = manager.registration();
        let id = id.clone();
        let delay = self.work_delay() + TICK_MS;
        self.after(delay, move |world| {
            let members = world.member_ids();
            let member = world.random.pick(&members);
            let leader = world.places[&member].running.as_ref().and_then(|running| running.leader.as_ref());
            let reign =
                leader.filter(|leader| leader.recovered && !leader.over).map(|leader| (leader.reign, leader.term));
            let Some(manager) = world.managers.get_mut(&id) else { return };
            manager.connecting = false;
            let Some((reign, _)) = reign.filter(|(_, term)| manager.enter_term(*term)) else { return };
            world.numbers += 1;
            let number = world.numbers;
            manager.session = Some(number);
            manager.heard_at = world.now;
            let now = world.now;
            let session = Session { manager: id, reign, broken: false, stalled_until: 0, down_at: now, up_at: now };
            world.sessions.insert(number, session);
            world.tell_leader(reign, false, Event::Registered { registration, session: number });
        });
    }

    /// From a leader to a TaskManager, in order; a copy may come late, and out of order.
    pub(super) fn send_down(&mut self, session: u64, message: ToTaskManager) {
        let delay = self.work_delay();
        let repeated = self.troubled && self.random.chance(self.troubles.repeat);
        let late = self.random.below(800);
        let Some(open) = self.sessions.get_mut(&session) else { return };
        open.down_at = open.down_at.max(self.now + delay);
        let (at, manager) = (open.down_at, open.manager.clone());
        if repeated {
            let copy = message.clone();
            self.seen("a command is repeated");
            self.after(late, move |world| {
                world.with_manager(&manager, |manager, world| manager.on_command(world, copy));
            });
        }
        self.at(at, move |world| world.deliver_down(session, message));
    }

    fn deliver_down(&mut self, session: u64, message: ToTaskManager) {
        let Some(open) = self.sessions.get(&session).filter(|open| !open.broken) else { return };
        let (manager, stalled_until) = (open.manager.clone(), open.stalled_until);
        let Some(found) = self.managers.get(&manager).filter(|manager| manager.session == Some(session)) else {
            return;
        };
        let later = stalled_until.max(found.paused_until);
        if later > self.now {
            return self.at(later, move |world| world.deliver_down(session, message));
        }
        let now = self.now;
        self.note(|| format!("{manager} ← {}", name_of(&message)));
        self.with_manager(&manager, |manager, world| {
            manager.heard_at = now;
            manager.on_command(world, message);
        });
    }

    /// From a TaskManager to a leader, in order.
    pub(super) fn send_up(&mut self, session: u64, message: FromTaskManager) {
        let delay = self.work_delay();
        let Some(open) = self.sessions.get_mut(&session) else { return };
        open.up_at = open.up_at.max(self.now + delay);
        let at = open.up_at;
        self.at(at, move |world| world.deliver_up(session, message));
    }

    fn deliver_up(&mut self, session: u64, message: FromTaskManager) {
        let Some(open) = self.sessions.get(&session).filter(|open| !open.broken) else { return };
        if open.stalled_until > self.now {
            let later = open.stalled_until;
            return self.at(later, move |world| world.deliver_up(session, message));
        }
        let (from, reign) = (open.manager.clone(), open.reign);
        if let FromTaskManager::Status(status) = &message {
            self.note(|| format!("{from}: {} is {:?}", status.subtask, status.state));
        }
        if self.troubled && self.random.chance(self.troubles.repeat) {
            let (from, message) = (from.clone(), message.clone());
            self.seen("a message is repeated");
            let late = self.random.below(300);
            self.after(late, move |world| world.tell_leader(reign, false, Event::Message { from, session, message }));
        }
        self.tell_leader(reign, false, Event::Message { from, session, message });
    }

    /// What was under way is lost; both sides notice, sooner or later.
    pub(super) fn break_session(&mut self, number: u64) {
        let Some(open) = self.sessions.get_mut(&number).filter(|open| !open.broken) else { return };
        open.broken = true;
        let (manager, reign) = (open.manager.clone(), open.reign);
        let (down, up) = (self.work_delay(), self.work_delay());
        let task_manager = manager.clone();
        self.after(up, move |world| {
            world.tell_leader(reign, false, Event::Closed { task_manager, session: number });
        });
        self.after(down, move |world| {
            if let Some(manager) = world.managers.get_mut(&manager).filter(|manager| manager.session == Some(number)) {
                manager.session = None;
            }
            world.sessions.remove(&number);
        });
    }

    pub(super) fn break_sessions_of(&mut self, reign: Reign) {
        let of: Vec<u64> = self.sessions.iter().filter(|(_, open)| open.reign == reign).map(|(id, _)| *id).collect();
        of.into_iter().for_each(|session| self.break_session(session));
    }
}

fn name_of(message: &ToTaskManager) -> String {
    match message {
        ToTaskManager::Registered(_) => "registered".to_owned(),
        ToTaskManager::Deploy(of) => format!("deploy {}#{}", of.job, of.attempt),
        ToTaskManager::Cancel(of) => format!("cancel {}#{}", of.job, of.attempt),
        ToTaskManager::Trigger(of) => format!("trigger {} in attempt {}", of.barrier.snapshot, of.attempt),
        ToTaskManager::Finish(of) => format!("finish {}#{}", of.job, of.attempt),
        ToTaskManager::SnapshotOutcome(of) => {
            format!("{} {:?}", of.snapshot, of.failure.as_ref().map(ToString::to_string))
        }
        ToTaskManager::Grant(of) => format!("grant of {} bytes to {} for {}", of.bytes, of.subtask, of.snapshot),
        ToTaskManager::Heartbeat(_) => "heartbeat".to_owned(),
    }
}
