//! Which changes every node of the dataflow produces, and which it is asked for, as Flink infers them.
//!
//! Two passes. From the sources down: what may come out of a node, and by which columns its rows are told apart (its
//! upsert key); a node that cannot take what comes is an error. From the sinks up: whether anybody needs the old version of
//! a row that changes; where nobody does, it is not made. A consumer that could do without takes it all the same, where
//! another one needs it.

use weir_types::changelog::Takes;
use weir_types::graph::Output;
use weir_types::{Error, Result};

use crate::error::invalid;
use crate::lower::{Node, NodeKind, SinkNode};
use crate::rel::{column_index, columns_of};

/// What comes out of a node.
#[derive(Clone, Debug, Default)]
struct Produced {
    updates: bool,
    deletes: bool,
    /// By which columns rows are told apart, if they are.
    upsert_key: Option<Vec<usize>>,
    /// Which node began with updates or deletes.
    origin: Option<usize>,
}

impl Produced {
    fn is_inserts(&self) -> bool {
        !self.updates && !self.deletes
    }
}

/// Finds out what flows where, and tells the nodes that depend on it.
///
/// # Errors
/// `INVALID_SQL` at a sink that cannot take what comes to it.
pub(crate) fn infer(nodes: &mut [Node]) -> Result<()> {
    let mut produced: Vec<Produced> = Vec::with_capacity(nodes.len());
    for index in 0..nodes.len() {
        let node = produce(nodes, &produced, index)?;
        produced.push(node);
    }
    let needed = needed_before(nodes, &produced);
    for (node, update_before) in nodes.iter_mut().zip(needed) {
        let updating =
            node.inputs.iter().any(|(from, output)| *output == Output::Main && !produced[*from].is_inserts());
        match &mut node.kind {
            NodeKind::Group(group) => {
                group.retracting = updating;
                group.update_before = update_before;
            }
            NodeKind::Sink(sink) => sink.updating = updating,
            NodeKind::Source(_) | NodeKind::Calc { .. } | NodeKind::Window(_) => {}
        }
    }
    Ok(())
}

/// What a node produces, given what those above it do.
fn produce(nodes: &[Node], produced: &[Produced], index: usize) -> Result<Produced> {
    let node = &nodes[index];
    let input = match node.inputs.as_slice() {
        // Late rows are as they came to a window, which takes inserts only.
        [] | [(_, Output::Late)] => Produced::default(),
        [(from, Output::Main)] => produced[*from].clone(),
        several => {
            let inputs = || several.iter().map(|(from, _)| &produced[*from]);
            Produced {
                updates: inputs().any(|input| input.updates),
                deletes: inputs().any(|input| input.deletes),
                upsert_key: None,
                origin: inputs().find_map(|input| input.origin),
            }
        }
    };
    Ok(match &node.kind {
        NodeKind::Source(_) => Produced::default(),
        NodeKind::Calc { exprs, .. } => {
            let place = |key: &usize| exprs.iter().position(|expr| column_index(expr) == Some(*key));
            let upsert_key = input.upsert_key.as_ref().and_then(|keys| keys.iter().map(place).collect());
            Produced { upsert_key, ..input }
        }
        // Watermarks do not pass an updating aggregate, so no window is over one.
        NodeKind::Window(_) if !input.is_inserts() => return Err(Error::internal("a window over rows that change")),
        NodeKind::Window(_) => Produced::default(),
        NodeKind::Group(group) => {
            let (updates, deletes) = (!group.calls.is_empty(), !input.is_inserts());
            let upsert_key = Some((0..group.keys.len()).collect());
            Produced { updates, deletes, upsert_key, origin: (updates || deletes).then_some(index) }
        }
        NodeKind::Sink(sink) => {
            if sink.table.connector.takes() == Takes::Inserts {
                refuse(nodes, &input, sink)?;
            }
            input
        }
    })
}

/// Refuses updates and deletes at a sink that takes inserts only.
fn refuse(nodes: &[Node], input: &Produced, sink: &SinkNode) -> Result<()> {
    let changes = match (input.updates, input.deletes) {
        (false, false) => return Ok(()),
        (true, false) => "update",
        (false, true) => "delete",
        (true, true) => "update and delete",
    };
    let origin = input.origin.ok_or_else(|| Error::internal("changes without an origin"))?;
    let message = format!(
        "table sink {} doesn't support consuming {changes} changes which is produced by node {}",
        sink.table.name,
        name(nodes, origin)
    );
    let hint = "Aggregate over a window, or write with 'format' = 'debezium-json', or to print or blackhole.";
    Err(invalid(sink.at, message).with_hint(hint))
}

/// A node as messages name it.
fn name(nodes: &[Node], index: usize) -> String {
    match &nodes[index].kind {
        NodeKind::Group(group) => {
            let columns = &nodes[index].columns[..group.keys.len()];
            let keys: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            format!("GroupAggregate(groupBy=[{}])", keys.join(", "))
        }
        NodeKind::Source(table) => format!("TableSourceScan({})", table.name),
        NodeKind::Calc { .. } => "Calc".to_owned(),
        NodeKind::Window(_) => "WindowAggregate".to_owned(),
        NodeKind::Sink(sink) => format!("Sink({})", sink.table.name),
    }
}

/// For every node, whether somebody behind it needs the old versions of rows that change.
fn needed_before(nodes: &[Node], produced: &[Produced]) -> Vec<bool> {
    let mut needed = vec![false; nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        for (from, output) in &node.inputs {
            let input = &produced[*from];
            if *output == Output::Late || !input.updates {
                continue;
            }
            needed[*from] |= match &node.kind {
                // A row that no longer passes has to be taken back, unless it passes by its key.
                NodeKind::Calc { predicate: Some(predicate), .. } => {
                    let mut by_key = true;
                    columns_of(predicate, &mut |column| {
                        by_key &= input.upsert_key.as_ref().is_some_and(|key| key.contains(&column));
                    });
                    needed[index] || !by_key
                }
                NodeKind::Calc { predicate: None, .. } => needed[index],
                NodeKind::Sink(sink) => sink.table.connector.takes() == Takes::All,
                NodeKind::Group(_) | NodeKind::Window(_) | NodeKind::Source(_) => true,
            };
        }
    }
    needed
}
