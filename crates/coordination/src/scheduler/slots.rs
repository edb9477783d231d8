//! Slots and placement. One subtask of every chain shares a slot, so that an attempt needs as many slots as its widest
//! chain has subtasks; they are spread evenly over the TaskManagers.

use std::collections::{BTreeMap, BTreeSet};

use weir_types::deployment::Placement;
use weir_types::ids::{ChainId, Parallelism, SubtaskIndex, TaskManagerId};

/// The slots of one TaskManager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsOf {
    /// The TaskManager.
    pub id: TaskManagerId,
    /// How many slots it has.
    pub slots: u32,
    /// Where its exchanges listen.
    pub data_address: String,
}

/// All slots of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Slots(BTreeMap<TaskManagerId, SlotsOf>);

impl Slots {
    pub(super) fn insert(&mut self, slots: SlotsOf) {
        self.0.insert(slots.id.clone(), slots);
    }

    pub(super) fn remove(&mut self, id: &TaskManagerId) {
        self.0.remove(id);
    }

    pub(super) fn total(&self) -> usize {
        self.0.values().map(|slots| slots.slots as usize).sum()
    }

    /// The slots that are not `occupied`, by TaskManager.
    pub(super) fn free(&self, occupied: &BTreeSet<(TaskManagerId, u32)>) -> BTreeMap<TaskManagerId, Vec<u32>> {
        let free_of =
            |of: &SlotsOf| (0..of.slots).filter(|slot| !occupied.contains(&(of.id.clone(), *slot))).collect::<Vec<_>>();
        self.0.values().map(|of| (of.id.clone(), free_of(of))).collect()
    }

    /// How many slots are not `occupied`.
    pub(super) fn count_free(&self, occupied: &BTreeSet<(TaskManagerId, u32)>) -> usize {
        self.free(occupied).values().map(Vec::len).sum()
    }

    /// Places every subtask of an attempt; none if there are not slots enough.
    pub fn place(
        &self,
        occupied: &BTreeSet<(TaskManagerId, u32)>,
        chains: &[(ChainId, Parallelism)],
    ) -> Option<Vec<Placement>> {
        let width = chains.iter().map(|(_, parallelism)| parallelism.get()).max()?;
        let mut free = self.free(occupied);
        let mut used: BTreeMap<TaskManagerId, u32> = BTreeMap::new();
        let mut placements = Vec::new();
        for index in 0..width {
            let (id, slots) = free
                .iter_mut()
                .filter(|(_, slots)| !slots.is_empty())
                .min_by_key(|(id, slots)| (used.get(*id).copied().unwrap_or(0), usize::MAX - slots.len()))?;
            let slot = slots.remove(0);
            *used.entry(id.clone()).or_default() += 1;
            let address = self.0.get(id).map(|of| of.data_address.clone()).unwrap_or_default();
            placements.extend(chains.iter().filter(|(_, parallelism)| index < parallelism.get()).map(|(chain, _)| {
                Placement {
                    chain: *chain,
                    index: SubtaskIndex(index),
                    task_manager: id.clone(),
                    slot,
                    data_address: address.clone(),
                }
            }));
        }
        Some(placements)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slots(counts: &[u32]) -> Slots {
        let mut slots = Slots::default();
        for (i, count) in counts.iter().enumerate() {
            let id = TaskManagerId::new(format!("tm{i}")).unwrap();
            slots.insert(SlotsOf { id, slots: *count, data_address: format!("h:{i}") });
        }
        slots
    }

    proptest! {
        #[test]
        fn placements_share_slots_by_index_and_spread_evenly(
            counts in prop::collection::vec(0u32..4, 1..5),
            widths in prop::collection::vec(1u32..6, 1..4),
        ) {
            let pool = slots(&counts);
            let chains: Vec<_> = widths.iter().enumerate()
                .map(|(i, p)| (ChainId(i as u32), Parallelism::new(*p).unwrap()))
                .collect();
            let width = *widths.iter().max().unwrap();
            let placed = pool.place(&BTreeSet::new(), &chains);
            prop_assert_eq!(placed.is_some(), counts.iter().sum::<u32>() >= width);
            let Some(placed) = placed else { return Ok(()) };
            prop_assert_eq!(placed.len() as u32, widths.iter().sum::<u32>());
            let mut slot_of_index = BTreeMap::new();
            for placement in &placed {
                let slot = (placement.task_manager.clone(), placement.slot);
                prop_assert_eq!(slot_of_index.entry(placement.index).or_insert(slot.clone()), &slot);
            }
            let distinct: BTreeSet<_> = slot_of_index.values().collect();
            prop_assert_eq!(distinct.len() as u32, width);
            let mut per_manager: BTreeMap<_, u32> = BTreeMap::new();
            for (id, _) in &distinct {
                *per_manager.entry(id.clone()).or_default() += 1;
            }
            // Nobody has two more than another that still has a free slot.
            for (i, count) in counts.iter().enumerate() {
                let id = TaskManagerId::new(format!("tm{i}")).unwrap();
                let mine = per_manager.get(&id).copied().unwrap_or(0);
                if mine < *count {
                    prop_assert!(per_manager.values().all(|other| *other <= mine + 1));
                }
            }
        }
    }
}
