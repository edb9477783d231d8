//! Dividing partitions among free readers: evenly, moving as few as possible, and only by handing over.
//!
//! A partition that has an owner is asked back first and gets a new one after its reader has released it, so that two
//! never read it at once. While a checkpoint is outstanding nothing moves.

use std::collections::BTreeMap;

use weir_types::ids::{PartitionId, ReaderId};

use super::state::{Group, Ownership};

impl Group {
    /// Divides what is free, and asks back what readers have too much of. Does nothing in managed groups.
    pub(super) fn rebalance(&mut self) {
        if self.mode.job().is_some() || self.members.is_empty() || self.checkpoints.any_outstanding() {
            return;
        }
        let quotas = self.quotas();
        let free: Vec<PartitionId> =
            self.positions.keys().filter(|partition| !self.owners.contains_key(partition)).copied().collect();
        for partition in free {
            let loads = self.loads();
            // Whoever is furthest below its share; there is somebody, as the shares add up to all partitions.
            let neediest = quotas.iter().max_by_key(|(reader, quota)| {
                (quota.saturating_sub(loads[*reader]), std::cmp::Reverse((*reader).clone()))
            });
            if let Some((reader, quota)) = neediest
                && loads[reader] < *quota
            {
                self.owners.insert(partition, Ownership { reader: reader.clone(), revoking: false });
            }
        }
        for (reader, quota) in &quotas {
            let mut owned: Vec<PartitionId> = self.owned_by(reader).collect();
            // A partition that was asked back stays asked back as long as there is a surplus, else it is left alone.
            owned.sort_by_key(|partition| (!self.owners[partition].revoking, *partition));
            let surplus = owned.len().saturating_sub(*quota);
            for (index, partition) in owned.into_iter().enumerate() {
                if let Some(owner) = self.owners.get_mut(&partition) {
                    owner.revoking = index < surplus;
                }
            }
        }
    }

    /// Each reader's share: equal up to one, the larger ones to those who own the most already.
    fn quotas(&self) -> BTreeMap<ReaderId, usize> {
        let loads = self.loads();
        let (all, readers) = (self.positions.len(), self.members.len().max(1));
        let mut by_load: Vec<ReaderId> = self.members.keys().cloned().collect();
        by_load.sort_by_key(|reader| (std::cmp::Reverse(loads[reader]), reader.clone()));
        let quota = |(index, reader)| (reader, all / readers + usize::from(index < all % readers));
        by_load.into_iter().enumerate().map(quota).collect()
    }

    fn loads(&self) -> BTreeMap<ReaderId, usize> {
        let mut loads: BTreeMap<ReaderId, usize> = self.members.keys().map(|reader| (reader.clone(), 0)).collect();
        for owner in self.owners.values() {
            if let Some(load) = loads.get_mut(&owner.reader) {
                *load += 1;
            }
        }
        loads
    }
}
