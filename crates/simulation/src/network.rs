//! A network that drops, delays, doubles and reorders messages, and whose links can be cut in either direction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::random::Random;
use weir_replication::NodeId;
use weir_replication::Transport;

/// How bad the network is, in thousandths and ticks.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) delay_max: u64,
}

/// Messages on their way.
#[derive(Default)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    sent: Outbox,
    /// By when they arrive, and the order in which they were sent.
    under_way: BTreeMap<(u64, u64), (u64, Bytes)>,
    numbered: u64,
    /// Links that are cut, from and to.
    cut: BTreeSet<(u64, u64)>,
}

type Outbox = Arc<Mutex<Vec<(u64, u64, Bytes)>>>;

/// A member's end of the network.
struct Link {
    from: u64,
    sent: Outbox,
}

impl Transport for Link {
    fn send(&self, to: NodeId, message: Bytes) {
        self.sent.lock().push((self.from, to.get(), message));
    }
}

impl Network {
    /// The end of member `from`.
    pub(crate) fn link(&self, from: u64) -> Box<dyn Transport> {
        Box::new(Link { from, sent: self.sent.clone() })
    }

    /// Takes what members have sent, at tick `now`.
    pub(crate) fn collect(&mut self, now: u64, random: &mut Random) {
        for (from, to, message) in std::mem::take(&mut *self.sent.lock()) {
            if self.cut.contains(&(from, to)) || random.chance(self.weather.lost) {
                continue;
            }
            for _ in 0..1 + u64::from(random.chance(self.weather.doubled)) {
                let at = now + random.below(self.weather.delay_max + 1);
                self.numbered += 1;
                self.under_way.insert((at, self.numbered), (to, message.clone()));
            }
        }
    }

    /// What has arrived by tick `now`, in order.
    pub(crate) fn arrived(&mut self, now: u64) -> Vec<(u64, Bytes)> {
        let later = self.under_way.split_off(&(now + 1, 0));
        std::mem::replace(&mut self.under_way, later).into_values().collect()
    }

    /// Cuts the links from `these` to everybody else of `all`, and the links back unless `one_way`.
    pub(crate) fn part(&mut self, these: &[u64], all: &[u64], one_way: bool) {
        for one in these {
            for other in all.iter().filter(|other| !these.contains(other)) {
                self.cut.insert((*one, *other));
                if !one_way {
                    self.cut.insert((*other, *one));
                }
            }
        }
    }

    /// Restores all links.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }
}
