//! A state machine that remembers every command it applied, so that one applied twice, lost or reordered shows.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use weir_replication::{Alone, Command, Config, Node, NodeId, StateMachine};

/// All applied commands, in order. Applying one returns how many there are.
#[derive(Default)]
pub(crate) struct Ledger(pub(crate) Vec<String>);

impl StateMachine for Ledger {
    fn apply(&mut self, command: Command<'_>) -> Bytes {
        self.0.push(String::from_utf8(command.data.to_vec()).unwrap());
        Bytes::from(self.0.len().to_string())
    }

    fn snapshot(&self) -> Bytes {
        Bytes::from(self.0.join("\n"))
    }

    fn restore(&mut self, snapshot: &[u8]) -> weir_types::Result<()> {
        let text = std::str::from_utf8(snapshot).map_err(|_| weir_types::Error::internal("not a ledger"))?;
        self.0 = text.lines().map(str::to_owned).collect();
        Ok(())
    }
}

pub(crate) fn id(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn config(member: u64, founders: &[u64]) -> Config {
    Config { tick: Duration::from_millis(20), ..Config::new(id(member), founders.iter().copied().map(id).collect()) }
}

pub(crate) fn start_alone(dir: &Path) -> weir_types::Result<Node<Ledger>> {
    Node::start(config(1, &[1]), dir, Ledger::default(), Alone)
}

/// `command-from`, …, `command-(to - 1)`.
pub(crate) fn commands(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("command-{number}")).collect()
}

/// Proposes `command-from`, …, `command-(to - 1)`, each after the last.
pub(crate) async fn propose(node: &Node<Ledger>, from: usize, to: usize) {
    for (number, command) in (from..to).zip(commands(from, to)) {
        assert_eq!(node.propose(command).await.unwrap(), (number + 1).to_string());
    }
}

pub(crate) fn applied(node: &Node<Ledger>) -> Vec<String> {
    node.read(|ledger| ledger.0.clone())
}
