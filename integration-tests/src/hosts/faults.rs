//! Faults of the network between hosts, made by packet filters in the hosts' own network namespaces: packets vanish, as on
//! a network that is cut, and nobody is told.

use std::process::Command;

use super::Hosts;

impl Hosts {
    /// Lets nothing that `from` sends reach `to`; the other direction stays open.
    pub async fn cut_one_way(&self, from: &str, to: &str) {
        let source = self.address_of(from).await.to_string();
        self.filter(to, &["-A", "INPUT", "-s", &source, "-j", "DROP"]).await;
    }

    /// Lets nothing pass between two hosts.
    pub async fn cut(&self, one: &str, other: &str) {
        self.cut_one_way(one, other).await;
        self.cut_one_way(other, one).await;
    }

    /// Cuts a host off from all others, the client's excepted.
    pub async fn isolate(&self, name: &str) {
        for other in self.names() {
            if other != name {
                self.cut(name, &other).await;
            }
        }
    }

    /// Loses so many per cent of what reaches a host.
    pub async fn lose(&self, name: &str, percent: u32) {
        let probability = format!("{:.2}", f64::from(percent) / 100.0);
        self.filter(
            name,
            &["-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", &probability, "-j", "DROP"],
        )
        .await;
    }

    /// Lets so many bytes a second reach a host; what is beyond is lost, as with a full router.
    pub async fn throttle(&self, name: &str, kilobytes: u32) {
        let above = format!("{kilobytes}kb/s");
        let limit = ["-m", "hashlimit", "--hashlimit-above", &above, "--hashlimit-name", "throttle"];
        self.filter(name, &[&["-A", "INPUT"], &limit[..], &["-j", "DROP"]].concat()).await;
    }

    /// Takes all filters of a host away.
    pub async fn heal(&self, name: &str) {
        self.filter(name, &["-F", "INPUT"]).await;
    }

    /// Takes all filters of all hosts that run away.
    pub async fn heal_all(&self) {
        for name in self.names() {
            if self.container(&name).is_running().await.expect("Docker") {
                self.heal(&name).await;
            }
        }
    }

    /// Runs iptables in the network namespace of a host.
    async fn filter(&self, name: &str, arguments: &[&str]) {
        let pid = self.pid(name).await.to_string();
        let ran = Command::new("nsenter").args(["--target", &pid, "--net", "iptables", "-w"]).args(arguments).output();
        let ran = ran.expect("nsenter, of util-linux");
        assert!(ran.status.success(), "iptables {arguments:?} on {name}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}
