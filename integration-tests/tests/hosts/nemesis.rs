//! The nemesis: faults by a seeded schedule, one at a time and overlapping, and how long the cluster took to get over each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use weir_integration_tests::hosts::Hosts;
use weir_integration_tests::random::Random;

use crate::work::Work;

/// How long a fault lasts, at least and at most, in milliseconds; the longer ones outlast the heartbeats.
const LASTS_MS: (u64, u64) = (200, 4_000);

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A process is killed, and started again when the fault ends.
    Kill,
    /// The leading JobManager is killed.
    KillLeader,
    /// A host stops where it is, and goes on as if nothing had been.
    Freeze,
    /// The leading JobManager is cut off from the other hosts.
    PartitionLeader,
    /// Two TaskManagers do not reach each other.
    PartitionTaskManagers,
    /// A TaskManager does not reach the store.
    PartitionStore,
    /// A JobManager hears a TaskManager, but is not heard, or the other way round.
    OneWay,
    /// A third of what reaches a host is lost.
    Loss,
    /// A host's network is slow.
    Slow,
    /// All processes are killed, and started again.
    Everything,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Kill,
        Self::KillLeader,
        Self::Freeze,
        Self::PartitionLeader,
        Self::PartitionTaskManagers,
        Self::PartitionStore,
        Self::OneWay,
        Self::Loss,
        Self::Slow,
        Self::Everything,
    ];

    /// As a report and a command line call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillLeader => "kill-leader",
            Self::Freeze => "freeze",
            Self::PartitionLeader => "partition-leader",
            Self::PartitionTaskManagers => "partition-taskmanagers",
            Self::PartitionStore => "partition-store",
            Self::OneWay => "one-way",
            Self::Loss => "loss",
            Self::Slow => "slow",
            Self::Everything => "everything",
        }
    }
}

/// What must be undone when faults end.
#[derive(Debug, Default)]
struct Damage {
    killed: Vec<String>,
    frozen: Vec<String>,
}

/// Injects faults and keeps count of them.
pub(crate) struct Nemesis {
    random: Random,
    kinds: Vec<Kind>,
    /// Kinds of the present turn that are still to come: each kind comes once before any comes again.
    left: Vec<Kind>,
    /// How long recovery took after rounds with faults of these kinds.
    recoveries: BTreeMap<Vec<Kind>, Vec<Duration>>,
    injected: BTreeMap<Kind, u64>,
}

impl Nemesis {
    /// One that follows a seed.
    pub(crate) fn new(seed: u64, kinds: Vec<Kind>) -> Self {
        Self {
            random: Random::new(seed),
            kinds,
            left: Vec::new(),
            recoveries: BTreeMap::new(),
            injected: BTreeMap::new(),
        }
    }

    /// Rounds of faults, while the job is fed and a client asks; after each, the cluster must go on.
    pub(crate) async fn torment(&mut self, hosts: &Hosts, work: &mut Work, rounds: u64, length: Option<Duration>) {
        let begun = Instant::now();
        for round in 1.. {
            if length.map_or(round > rounds, |length| begun.elapsed() >= length) {
                return;
            }
            let kinds: Vec<Kind> = (0..=self.random.below(2)).map(|_| self.next_kind()).collect();
            let mut damage = Damage::default();
            for kind in &kinds {
                let what = self.inject(*kind, hosts, &mut damage).await;
                println!("round {round}, {:.1} s: {}: {what}", begun.elapsed().as_secs_f64(), kind.name());
                *self.injected.entry(*kind).or_default() += 1;
            }
            let lasts = LASTS_MS.0 + self.random.below(LASTS_MS.1 - LASTS_MS.0);
            let healing = async {
                tokio::time::sleep(Duration::from_millis(lasts)).await;
                heal(hosts, damage).await;
                Instant::now()
            };
            let working = async {
                work.feed(hosts).await;
                work.ask(hosts).await;
            };
            let (healed, ()) = tokio::join!(healing, working);
            work.goes_on(hosts).await;
            println!("  lasted {lasts} ms, went on after {} ms", healed.elapsed().as_millis());
            self.recoveries.entry(kinds).or_default().push(healed.elapsed());
        }
    }

    fn next_kind(&mut self) -> Kind {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
        }
        let index = self.random.below(self.left.len() as u64) as usize;
        self.left.swap_remove(index)
    }

    /// Two different ones of them.
    fn two_of(&mut self, names: &[String]) -> (String, String) {
        let one = self.random.one_of(names).clone();
        let others: Vec<String> = names.iter().filter(|name| **name != one).cloned().collect();
        (one, self.random.one_of(&others).clone())
    }

    /// Does it; says to whom.
    async fn inject(&mut self, kind: Kind, hosts: &Hosts, damage: &mut Damage) -> String {
        // Who cannot be killed or frozen again.
        let down: Vec<&String> = damage.killed.iter().chain(&damage.frozen).collect();
        let up: Vec<String> = hosts.names().into_iter().filter(|name| !down.contains(&name)).collect();
        let of = |names: &[String]| -> Vec<String> { names.iter().filter(|name| up.contains(name)).cloned().collect() };
        let task_managers = of(hosts.task_managers());
        if up.len() < 2 || task_managers.len() < 2 {
            return "nobody is left".to_owned();
        }
        match kind {
            Kind::Kill => {
                let victim = self.random.one_of(&up).clone();
                hosts.kill(&victim).await;
                damage.killed.push(victim.clone());
                victim
            }
            Kind::KillLeader => match leader(hosts).await.filter(|leader| up.contains(leader)) {
                Some(leader) => {
                    hosts.kill(&leader).await;
                    damage.killed.push(leader.clone());
                    leader
                }
                None => "nobody leads".to_owned(),
            },
            Kind::Freeze => {
                let victim = self.random.one_of(&up).clone();
                hosts.freeze(&victim).await;
                damage.frozen.push(victim.clone());
                victim
            }
            Kind::PartitionLeader => match leader(hosts).await.filter(|leader| up.contains(leader)) {
                Some(leader) => {
                    for other in up.iter().filter(|other| **other != leader) {
                        hosts.cut(&leader, other).await;
                    }
                    leader
                }
                None => "nobody leads".to_owned(),
            },
            Kind::PartitionTaskManagers => {
                let (one, other) = self.two_of(&task_managers);
                hosts.cut(&one, &other).await;
                format!("{one} and {other}")
            }
            Kind::PartitionStore => {
                let victim = self.random.one_of(&task_managers).clone();
                if !up.contains(&"store".to_owned()) {
                    return "the store is down".to_owned();
                }
                hosts.cut(&victim, "store").await;
                victim
            }
            Kind::OneWay => {
                let jobmanagers = of(hosts.jobmanagers());
                if jobmanagers.is_empty() {
                    return "no JobManager is left".to_owned();
                }
                let (jobmanager, task_manager) =
                    (self.random.one_of(&jobmanagers).clone(), self.random.one_of(&task_managers).clone());
                let (from, to) =
                    if self.random.below(2) == 0 { (jobmanager, task_manager) } else { (task_manager, jobmanager) };
                hosts.cut_one_way(&from, &to).await;
                format!("from {from} to {to}")
            }
            Kind::Loss => {
                let victim = self.random.one_of(&up).clone();
                hosts.lose(&victim, 33).await;
                victim
            }
            Kind::Slow => {
                let victim = self.random.one_of(&up).clone();
                hosts.throttle(&victim, 64).await;
                victim
            }
            Kind::Everything => {
                for name in &up {
                    hosts.kill(name).await;
                }
                damage.killed.extend(up);
                "all".to_owned()
            }
        }
    }

    /// What was done, and how long the cluster took to go on.
    pub(crate) fn report(&self, seed: u64, work: &Work) -> String {
        let mut text =
            format!("seed {seed}, {} rows, {} savepoints taken meanwhile\n\n", work.rows.len(), work.savepoints.len());
        text += "| fault | injected | rounds | recovery, median | worst |\n| --- | ---: | ---: | ---: | ---: |\n";
        for (kind, injected) in &self.injected {
            let rounds = self.recoveries.iter().filter(|(kinds, _)| kinds.contains(kind));
            let mut took: Vec<Duration> = rounds.flat_map(|(_, took)| took.iter().copied()).collect();
            took.sort();
            let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
            let line = (kind.name(), injected, took.len(), median.as_millis(), worst.as_millis());
            writeln!(text, "| {} | {} | {} | {} ms | {} ms |", line.0, line.1, line.2, line.3, line.4)
                .expect("a string");
        }
        text
    }
}

/// The host of the JobManager that leads; none while nobody does.
async fn leader(hosts: &Hosts) -> Option<String> {
    let ran = hosts.weir(&["--json", "cluster", "members", "list"]).await;
    let members: serde_json::Value = serde_json::from_str(&ran.stdout).ok().filter(|_| ran.code == 0)?;
    let leader = members.as_array()?.iter().find(|member| member["leads"] == true)?;
    Some(format!("jobmanager-{}", leader["id"]))
}

async fn heal(hosts: &Hosts, damage: Damage) {
    for name in &damage.frozen {
        hosts.thaw(name).await;
    }
    for name in &damage.killed {
        hosts.restart(name).await;
    }
    // The filters of a killed host went with its network.
    hosts.heal_all().await;
}
