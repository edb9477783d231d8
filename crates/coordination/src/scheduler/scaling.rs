//! With how many subtasks a job runs: as many as are wanted; fewer while slots are missing, if it may; and more again when
//! there are slots.

use weir_types::ids::{ChainId, Parallelism};
use weir_types::time::Millis;

/// Whether a job that is to be deployed lacks slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortage {
    /// As far as is known there are enough.
    None,
    /// Until then it waits for more.
    Until(Millis),
    /// It has waited: whatever is there will do.
    Over,
}

/// The parallelism of one job.
#[derive(Debug)]
pub(super) struct Scaling {
    /// Its chains, and the most subtasks that each may have.
    chains: Vec<(ChainId, Option<Parallelism>)>,
    wanted: Parallelism,
    /// With how few it may run; none: only as wanted.
    least: Option<Parallelism>,
    /// That of the newest attempt.
    current: Parallelism,
    shortage: Shortage,
    /// The parallelism that there is room for, and since when.
    room: Option<(Parallelism, Millis)>,
    /// It was decided to use the room, and nothing has come of that yet.
    growing: bool,
}

impl Scaling {
    pub(super) fn new(
        chains: Vec<(ChainId, Option<Parallelism>)>,
        wanted: Parallelism,
        least: Option<Parallelism>,
        current: Parallelism,
    ) -> Self {
        Self { chains, wanted, least, current, shortage: Shortage::None, room: None, growing: false }
    }

    pub(super) fn current(&self) -> Parallelism {
        self.current
    }

    pub(super) fn is_as_wanted(&self) -> bool {
        self.current == self.wanted
    }

    /// The chains with their numbers of subtasks.
    pub(super) fn chains_at(&self, parallelism: Parallelism) -> Vec<(ChainId, Parallelism)> {
        let at = |max: Option<Parallelism>| max.map_or(parallelism, |max| max.min(parallelism));
        self.chains.iter().map(|(chain, max)| (*chain, at(*max))).collect()
    }

    /// How many slots it takes to run as wanted.
    pub(super) fn slots_wanted(&self) -> usize {
        self.slots_at(self.wanted)
    }

    fn slots_at(&self, parallelism: Parallelism) -> usize {
        self.chains_at(parallelism).iter().map(|(_, parallelism)| parallelism.get() as usize).max().unwrap_or(0)
    }

    /// The most subtasks, up to as many as are wanted, that so many slots hold.
    fn most_in(&self, slots: usize) -> Option<Parallelism> {
        if self.slots_wanted() <= slots {
            return Some(self.wanted);
        }
        // The widest chain would have more subtasks than that: it has as many as there are slots.
        u32::try_from(slots).ok().and_then(|slots| Parallelism::new(slots).ok())
    }

    /// With how many subtasks the next attempt begins in so many free slots; none: it waits, but no longer than `wait_ms` for
    /// what it can do without.
    pub(super) fn fit(&mut self, now: Millis, free: usize, wait_ms: u64) -> Option<Parallelism> {
        let most = self.most_in(free);
        if most == Some(self.wanted) {
            return most;
        }
        match self.shortage {
            Shortage::None => self.shortage = Shortage::Until(now.plus(wait_ms)),
            Shortage::Until(at) if at <= now => self.shortage = Shortage::Over,
            Shortage::Until(_) | Shortage::Over => {}
        }
        let least = self.least.filter(|_| self.shortage == Shortage::Over)?;
        most.filter(|most| *most >= least)
    }

    /// An attempt was decided.
    pub(super) fn started(&mut self, parallelism: Parallelism) {
        self.current = parallelism;
        self.shortage = Shortage::None;
        self.room = None;
        self.growing = false;
    }

    /// From now on the job is to have so many subtasks.
    pub(super) fn want(&mut self, parallelism: Parallelism) {
        self.wanted = parallelism;
        self.room = None;
    }

    /// The attempt ends so that the next one has another parallelism: it takes the slots that are there.
    pub(super) fn restarts(&mut self) {
        self.shortage = Shortage::Over;
    }

    /// Whether the job, which runs, should restart with more subtasks: there has been room for them, `slots` in all, for
    /// `stable_ms`. Or with fewer, if an earlier JobManager had not come to that.
    pub(super) fn grows(&mut self, now: Millis, slots: usize, stable_ms: u64) -> bool {
        let other = self.most_in(slots).filter(|most| *most != self.current && !self.growing);
        self.room = match (other, self.room) {
            (Some(other), Some((known, since))) if known == other => Some((other, since)),
            (Some(other), _) => Some((other, now)),
            (None, _) => None,
        };
        if self.room.is_some_and(|(_, since)| now.since(since) >= stable_ms) {
            self.room = None;
            self.growing = true;
            return true;
        }
        false
    }

    /// Whether in so many slots, its own among them, it would not have as many subtasks as it has.
    pub(super) fn differs_in(&self, slots: usize) -> bool {
        self.most_in(slots).is_some_and(|most| most != self.current)
    }

    /// There is no room for more subtasks: others wait for slots, or the job does not run.
    pub(super) fn has_no_room(&mut self) {
        self.room = None;
    }

    /// Nothing came of the last decision to grow.
    pub(super) fn did_not_grow(&mut self) {
        self.growing = false;
    }

    /// How long it still waits for slots that it can do without.
    pub(super) fn waits_ms(&self, now: Millis) -> Option<u64> {
        match self.shortage {
            Shortage::Until(at) if self.least.is_some() => Some(at.since(now)),
            _ => None,
        }
    }

    /// When time alone may change what is decided.
    pub(super) fn next_deadline(&self, stable_ms: u64) -> Option<Millis> {
        let short = match self.shortage {
            Shortage::Until(at) if self.least.is_some() => Some(at),
            _ => None,
        };
        [short, self.room.map(|(_, since)| since.plus(stable_ms))].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parallelism(value: u32) -> Parallelism {
        Parallelism::new(value).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_begun_fits_and_is_the_most_that_does(
            maxima in prop::collection::vec(prop::option::of(1u32..6), 1..4),
            wanted in 1u32..9,
            least in prop::option::of(1u32..9),
            free in 0usize..10,
        ) {
            let chains = maxima.iter().enumerate().map(|(id, max)| (ChainId(id as u32), max.map(parallelism))).collect();
            let least = least.map(|least| parallelism(least.min(wanted)));
            let mut scaling = Scaling::new(chains, parallelism(wanted), least, parallelism(wanted));
            let fits = |of: &Scaling, p: u32| of.slots_at(parallelism(p)) <= free;
            if let Some(first) = scaling.fit(Millis(0), free, 10) {
                prop_assert!(first.get() == wanted && fits(&scaling, wanted));
            }
            match scaling.fit(Millis(10), free, 10) {
                Some(found) => {
                    prop_assert!(fits(&scaling, found.get()) && least.is_none_or(|least| found >= least));
                    prop_assert!(found.get() == wanted || !fits(&scaling, found.get() + 1));
                }
                None => {
                    let low = least.map_or(wanted, Parallelism::get);
                    prop_assert!((low..=wanted).all(|p| !fits(&scaling, p)));
                }
            }
        }
    }

    #[test]
    fn room_is_used_once_it_has_been_there_for_a_while_and_tried_again_if_nothing_came_of_it() {
        let chains = vec![(ChainId(0), None)];
        let mut scaling = Scaling::new(chains, parallelism(4), Some(parallelism(1)), parallelism(1));
        assert!(!scaling.grows(Millis(0), 2, 100));
        assert_eq!(scaling.next_deadline(100), Some(Millis(100)));
        assert!(!scaling.grows(Millis(90), 3, 100), "there is more room: its time begins anew");
        assert!(!scaling.grows(Millis(189), 3, 100));
        assert!(scaling.grows(Millis(190), 3, 100));
        assert!(!scaling.grows(Millis(500), 3, 100), "it is under way");
        assert_eq!(scaling.next_deadline(100), None);
        scaling.did_not_grow();
        assert!(!scaling.grows(Millis(501), 3, 100) && scaling.grows(Millis(601), 3, 100));
        assert!(scaling.differs_in(2) && !scaling.differs_in(1));
    }

    #[test]
    fn what_has_more_subtasks_than_it_should_gives_slots_back() {
        let chains = vec![(ChainId(0), None)];
        let mut scaling = Scaling::new(chains, parallelism(1), None, parallelism(3));
        assert!(!scaling.grows(Millis(0), 3, 100) && scaling.grows(Millis(100), 3, 100));
        assert!(scaling.differs_in(3));
    }
}
