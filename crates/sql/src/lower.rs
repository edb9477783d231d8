//! Relations become nodes of a dataflow: calcs merged, aggregates with what they need computed before them, sinks.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::logical_expr::{ExprSchemable, lit};
use datafusion::prelude::Expr;
use sqlparser::tokenizer::Location;
use weir_types::graph::{AggregateSpec, Output, WindowColumn, WindowSpec};
use weir_types::ids::OperatorUid;
use weir_types::{Error, Result};

use crate::bind::{Assignment, Context, Scope, Value};
use crate::catalog::{Catalog, Entry, Table};
use crate::error::{invalid, unsupported};
use crate::rel::{
    Call, Column, Kind, Rel, Role, column, column_index, columns_of, internal, numbered_schema, substitute,
};
use crate::simplify::encoded_depth;
use crate::uid::{self, Uids};

/// A node of the dataflow. Expressions refer to the columns of the node's input by number.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) columns: Vec<Column>,
    pub(crate) inputs: Vec<(usize, Output)>,
    pub(crate) uid: Option<OperatorUid>,
}

/// What a node does.
#[derive(Debug)]
pub(crate) enum NodeKind {
    Source(Arc<Table>),
    Calc { predicate: Option<Expr>, exprs: Vec<Expr> },
    Window(WindowNode),
    Group(GroupNode),
    Sink(SinkNode),
}

/// A window aggregate over the columns of its input.
#[derive(Debug)]
pub(crate) struct WindowNode {
    pub(crate) window: WindowSpec,
    pub(crate) time: usize,
    pub(crate) keys: Vec<usize>,
    pub(crate) calls: Vec<AggregateSpec>,
    pub(crate) window_columns: Vec<WindowColumn>,
    pub(crate) late: bool,
}

/// An aggregate by keys alone. What it takes and emits is found out once the graph is whole ([`crate::changelog`]).
#[derive(Debug)]
pub(crate) struct GroupNode {
    pub(crate) keys: Vec<usize>,
    pub(crate) calls: Vec<AggregateSpec>,
    pub(crate) retracting: bool,
    pub(crate) update_before: bool,
}

/// A table that is written.
#[derive(Debug)]
pub(crate) struct SinkNode {
    pub(crate) table: Arc<Table>,
    /// Where the script says so.
    pub(crate) at: Location,
    /// Its rows may be updates or deletes.
    pub(crate) updating: bool,
}

/// A relation as a projection and filter on a node. A UNION ALL has several.
#[derive(Clone, Debug)]
struct Piece {
    node: usize,
    predicate: Option<Expr>,
    exprs: Vec<Expr>,
}

/// Builds nodes.
pub(crate) struct Lowering<'a> {
    nodes: Vec<Node>,
    catalog: &'a Catalog,
    time_zone: &'a str,
    uids: Uids,
    sources: HashMap<*const Table, usize>,
    aggregates: HashMap<*const Rel, usize>,
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(catalog: &'a Catalog, time_zone: &'a str) -> Self {
        let (sources, aggregates) = (HashMap::new(), HashMap::new());
        Self { nodes: Vec::new(), catalog, time_zone, uids: Uids::default(), sources, aggregates }
    }

    /// `INSERT INTO table` of a relation that has the table's columns.
    pub(crate) fn insert(&mut self, table: &Arc<Table>, rel: &Arc<Rel>, at: Location) -> Result<()> {
        self.uids.lead_to(table);
        let pieces = self.pieces(rel)?;
        let inputs = pieces.into_iter().map(|piece| (self.materialise(piece, &rel.columns), Output::Main)).collect();
        self.sink(table, at, rel.columns.clone(), inputs, false);
        Ok(())
    }

    /// The nodes, and the uids of those that equal an earlier one but for their filters.
    pub(crate) fn finish(self) -> (Vec<Node>, Vec<OperatorUid>) {
        (self.nodes, self.uids.by_order())
    }

    fn sink(
        &mut self,
        table: &Arc<Table>,
        at: Location,
        columns: Vec<Column>,
        inputs: Vec<(usize, Output)>,
        late: bool,
    ) {
        let uid = Some(self.uids.of_sink(table, late));
        let kind = NodeKind::Sink(SinkNode { table: Arc::clone(table), at, updating: false });
        self.nodes.push(Node { kind, columns, inputs, uid });
    }

    fn pieces(&mut self, rel: &Arc<Rel>) -> Result<Vec<Piece>> {
        let whole = |node: usize| Piece { node, predicate: None, exprs: (0..rel.columns.len()).map(column).collect() };
        match &rel.kind {
            Kind::Scan(table) => {
                self.late_table_of(table)?;
                let node = self.source(table);
                Ok(vec![whole(node)])
            }
            Kind::Calc { input, predicate, exprs } => {
                let pieces = self.pieces(input)?;
                let compose = |piece| self.compose(piece, predicate.as_ref(), exprs, &input.columns);
                Ok(pieces.into_iter().map(compose).collect())
            }
            Kind::Window { input, window, time, at } => {
                let exprs = tumble_exprs(window, *time, input).ok_or_else(|| {
                    unsupported(*at, "HOP without GROUP BY window_start, window_end", "Aggregate over the windows.")
                })?;
                let pieces = self.pieces(input)?;
                let all: Vec<Expr> = (0..input.columns.len()).map(column).chain(exprs?).collect();
                Ok(pieces.into_iter().map(|piece| self.compose(piece, None, &all, &input.columns)).collect())
            }
            Kind::Aggregate { .. } => self.aggregate(rel),
            Kind::Group { .. } => {
                let node = match self.aggregates.get(&Arc::as_ptr(rel)) {
                    Some(node) => *node,
                    None => self.group_node(rel)?,
                };
                Ok(vec![whole(node)])
            }
            Kind::Union(inputs) => {
                let pieces = inputs.iter().map(|input| self.pieces(input)).collect::<Result<Vec<_>>>()?;
                Ok(pieces.into_iter().flatten().collect())
            }
        }
    }

    fn source(&mut self, table: &Arc<Table>) -> usize {
        if let Some(node) = self.sources.get(&Arc::as_ptr(table)) {
            return *node;
        }
        let uid = Some(self.uids.of_source(table));
        let columns = table.columns.clone();
        self.nodes.push(Node { kind: NodeKind::Source(Arc::clone(table)), columns, inputs: Vec::new(), uid });
        self.sources.insert(Arc::as_ptr(table), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// A calc on top of a piece: merged into it, unless that would compute something twice or nest too deeply.
    fn compose(&mut self, piece: Piece, predicate: Option<&Expr>, exprs: &[Expr], columns: &[Column]) -> Piece {
        if !repeats(&piece.exprs, predicate, exprs) {
            let merged = merge(&piece, predicate, exprs);
            if merged.exprs.iter().chain(&merged.predicate).all(|expr| encoded_depth(expr) <= MERGED_DEPTH_MAX) {
                return merged;
            }
        }
        let node = self.materialise(piece, columns);
        let below = Piece { node, predicate: None, exprs: (0..columns.len()).map(column).collect() };
        merge(&below, predicate, exprs)
    }

    /// The node whose output is the piece.
    fn materialise(&mut self, piece: Piece, columns: &[Column]) -> usize {
        let kind = NodeKind::Calc { predicate: piece.predicate, exprs: piece.exprs };
        let inputs = vec![(piece.node, Output::Main)];
        self.nodes.push(Node { kind, columns: columns.to_vec(), inputs, uid: None });
        self.nodes.len() - 1
    }

    fn aggregate(&mut self, rel: &Arc<Rel>) -> Result<Vec<Piece>> {
        let windowed = Windowed::of(rel)?;
        let node = match self.aggregates.get(&Arc::as_ptr(rel)) {
            Some(node) => *node,
            None => {
                let node = self.window_node(rel, &windowed)?;
                self.aggregates.insert(Arc::as_ptr(rel), node);
                node
            }
        };
        let mut exprs: Vec<Expr> = (0..rel.columns.len()).map(column).collect();
        if let Some(size_ms) = windowed.size_of_hop_ms {
            // The windows of a HOP, grouped again by their last slide: their start lies a whole size before the end.
            let (start, end) = (rel.columns.len() - 3, rel.columns.len() - 2);
            let size = lit(datafusion::common::ScalarValue::DurationMillisecond(Some(size_ms)));
            exprs[start] = column(end) - size;
        }
        Ok(vec![Piece { node, predicate: None, exprs }])
    }

    fn window_node(&mut self, rel: &Arc<Rel>, windowed: &Windowed<'_>) -> Result<usize> {
        let Kind::Aggregate { keys, calls, .. } = &rel.kind else { return Err(Error::internal("not an aggregate")) };
        let base = windowed.base;
        let mut pre = PreCalc::new(base)?;
        let over = |expr: &Expr| -> Result<Expr> {
            windowed.over_base(substitute(expr, &mut |index| windowed.exprs[index].clone()))
        };
        let time = pre.add(column(windowed.time), &base.columns[windowed.time].name)?;
        let keys = keys
            .iter()
            .zip(&rel.columns)
            .map(|(key, named)| pre.add(over(key)?, &named.name))
            .collect::<Result<Vec<_>>>()?;
        let specs = pre.calls(calls, over)?;
        let late = self.late_table(base)?;
        let late_columns = match &late {
            Some(table) => Some(late_columns(table, base, &mut pre)?),
            None => None,
        };
        let predicate = windowed.predicate.clone().map(|predicate| windowed.over_base(predicate)).transpose()?;
        let base_pieces = self.pieces(base)?;
        let inputs = base_pieces
            .into_iter()
            .map(|piece| {
                let piece = self.compose(piece, predicate.as_ref(), &pre.exprs, &base.columns);
                (self.materialise(piece, &pre.columns), Output::Main)
            })
            .collect();
        let kind = NodeKind::Window(WindowNode {
            window: windowed.window,
            time,
            keys,
            calls: specs,
            window_columns: vec![WindowColumn::Start, WindowColumn::End, WindowColumn::Time],
            late: late.is_some(),
        });
        let uid = Some(self.uids.of_aggregate(rel));
        self.nodes.push(Node { kind, columns: rel.columns.clone(), inputs, uid });
        let node = self.nodes.len() - 1;
        if let (Some(table), Some(columns)) = (late, late_columns) {
            self.late_sink(node, &table, &columns, &pre.columns)?;
        }
        Ok(node)
    }

    fn group_node(&mut self, rel: &Arc<Rel>) -> Result<usize> {
        let Kind::Group { input, keys, calls, .. } = &rel.kind else { return Err(Error::internal("not an aggregate")) };
        let mut pre = PreCalc::new(input)?;
        let named = keys.iter().zip(&rel.columns);
        let keys = named.map(|(key, named)| pre.add(key.clone(), &named.name)).collect::<Result<Vec<_>>>()?;
        let calls = pre.calls(calls, |expr| Ok(expr.clone()))?;
        if pre.exprs.is_empty() {
            // Rows are still counted: some column must carry them.
            pre.add(lit(true), "")?;
        }
        let inputs = self
            .pieces(input)?
            .into_iter()
            .map(|piece| {
                let piece = self.compose(piece, None, &pre.exprs, &input.columns);
                (self.materialise(piece, &pre.columns), Output::Main)
            })
            .collect();
        let kind = NodeKind::Group(GroupNode { keys, calls, retracting: false, update_before: false });
        let uid = Some(self.uids.of_aggregate(rel));
        self.nodes.push(Node { kind, columns: rel.columns.clone(), inputs, uid });
        self.aggregates.insert(Arc::as_ptr(rel), self.nodes.len() - 1);
        Ok(self.nodes.len() - 1)
    }

    /// The table that the sources under a window name for late rows.
    fn late_table(&self, base: &Rel) -> Result<Option<Arc<Table>>> {
        let tables = uid::tables(base);
        let mut named = tables.iter().filter(|table| table.late_rows_table.is_some());
        let Some(source) = named.next() else { return Ok(None) };
        if let Some(other) = named.find(|other| other.late_rows_table != source.late_rows_table) {
            let what = "a union of tables with different late-rows.table";
            return Err(unsupported(other.location, what, "Name the same table on both."));
        }
        self.late_table_of(source)
    }

    /// The table that a source names for late rows.
    fn late_table_of(&self, source: &Table) -> Result<Option<Arc<Table>>> {
        let Some(name) = &source.late_rows_table else { return Ok(None) };
        let named = format!("late-rows.table {name} of table {}", source.name);
        match self.catalog.entries.get(name) {
            Some(Entry::Table(table)) if table.kind().descriptor().sink => Ok(Some(Arc::clone(table))),
            Some(_) => Err(invalid(source.location, format!("{named} cannot be written"))),
            None => Err(invalid(source.location, format!("{named} does not exist"))
                .with_hint("Declare it with CREATE TABLE, with the columns to keep.")),
        }
    }

    fn late_sink(&mut self, window: usize, table: &Arc<Table>, columns: &[usize], input: &[Column]) -> Result<()> {
        let scope = Scope { columns: input, alias: None };
        let cx = Context::new(scope, table.location, self.time_zone);
        let targets: Vec<Column> = table.writable().into_iter().map(|index| table.columns[index].clone()).collect();
        let exprs = columns
            .iter()
            .zip(&targets)
            .map(|(index, target)| {
                let found = &input[*index];
                let value = Value::new(column(*index), found.data_type.clone(), found.nullable);
                Ok(cx.assign(Assignment { value, name: &found.name, target })?.expr)
            })
            .collect::<Result<_>>()?;
        let kind = NodeKind::Calc { predicate: None, exprs };
        self.nodes.push(Node { kind, columns: targets.clone(), inputs: vec![(window, Output::Late)], uid: None });
        let calc = self.nodes.len() - 1;
        self.sink(table, table.location, targets, vec![(calc, Output::Main)], true);
        Ok(())
    }
}

/// Columns of a window's input for the table of late rows, matched by name.
fn late_columns(table: &Table, base: &Rel, pre: &mut PreCalc) -> Result<Vec<usize>> {
    table
        .writable()
        .into_iter()
        .map(|index| {
            let name = &table.columns[index].name;
            let found = base.columns.iter().position(|column| column.name == *name).ok_or_else(|| {
                invalid(
                    table.location,
                    format!(
                        "column {name} of the late-rows.table {} is no column of the rows in the \
                    window",
                        table.name
                    ),
                )
                .with_hint(
                    "Late rows have the columns of the table or query that the window function names; leave the \
                    column out, or select it there.",
                )
            })?;
            pre.add(column(found), name)
        })
        .collect()
}

/// Deepest encoding of merged expressions: what is put around them still fits.
const MERGED_DEPTH_MAX: usize = 85;

fn merge(piece: &Piece, predicate: Option<&Expr>, exprs: &[Expr]) -> Piece {
    let over = |expr: &Expr| substitute(expr, &mut |index| piece.exprs[index].clone());
    let predicates = piece.predicate.iter().cloned().chain(predicate.map(over));
    let predicate = crate::simplify::conjunction(predicates);
    Piece { node: piece.node, predicate, exprs: exprs.iter().map(over).collect() }
}

/// Whether merging would compute an expression more than once, or a volatile one apart from its other uses.
fn repeats(below: &[Expr], predicate: Option<&Expr>, exprs: &[Expr]) -> bool {
    let mut uses = vec![0_usize; below.len()];
    for expr in exprs.iter().chain(predicate) {
        columns_of(expr, &mut |index| uses[index] += 1);
    }
    below.iter().zip(uses).any(|(expr, uses)| uses > 1 && !is_cheap(expr))
}

fn is_cheap(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) | Expr::Literal(..) => true,
        Expr::ScalarFunction(call) => call.func.name() == "$field" && call.args.iter().all(is_cheap),
        _ => false,
    }
}

/// The columns computed before a window aggregate, each once.
struct PreCalc {
    schema: datafusion::common::DFSchema,
    input: Vec<Column>,
    exprs: Vec<Expr>,
    columns: Vec<Column>,
}

impl PreCalc {
    fn new(base: &Rel) -> Result<Self> {
        let schema = numbered_schema(&base.columns)?;
        Ok(Self { schema, input: base.columns.clone(), exprs: Vec::new(), columns: Vec::new() })
    }

    /// Aggregate calls over the columns, once `over` has made their expressions ones over the input.
    fn calls(&mut self, calls: &[Call], over: impl Fn(&Expr) -> Result<Expr>) -> Result<Vec<AggregateSpec>> {
        let mut specs = Vec::with_capacity(calls.len());
        for call in calls {
            let argument = call.argument.as_ref().map(|argument| self.add(over(argument)?, "")).transpose()?;
            let filter = call.filter.as_ref().map(|filter| self.add(over(filter)?, "")).transpose()?;
            specs.push(AggregateSpec { function: call.function, argument, distinct: call.distinct, filter });
        }
        Ok(specs)
    }

    fn add(&mut self, expr: Expr, name: &str) -> Result<usize> {
        if let Some(index) = self.exprs.iter().position(|known| *known == expr) {
            return Ok(index);
        }
        let column = match column_index(&expr) {
            Some(index) => self.input[index].clone(),
            None => {
                let name = if name.is_empty() { format!("$f{}", self.exprs.len()) } else { name.to_owned() };
                let data_type = expr.get_type(&self.schema).map_err(internal)?;
                Column::plain(name, data_type, expr.nullable(&self.schema).map_err(internal)?)
            }
        };
        self.exprs.push(expr);
        self.columns.push(column);
        Ok(self.exprs.len() - 1)
    }
}

/// The input of an aggregate, seen from what the window is over.
struct Windowed<'r> {
    /// What the window function names, or the aggregate whose windows are grouped again.
    base: &'r Arc<Rel>,
    window: WindowSpec,
    /// The event time in `base`.
    time: usize,
    /// Over the columns of `base`, and behind them those of the window.
    predicate: Option<Expr>,
    exprs: Vec<Expr>,
    /// For windows of a HOP that are grouped again.
    size_of_hop_ms: Option<i64>,
    at: Option<Location>,
}

impl<'r> Windowed<'r> {
    fn of(aggregate: &'r Rel) -> Result<Self> {
        let Kind::Aggregate { input, .. } = &aggregate.kind else { return Err(Error::internal("not an aggregate")) };
        let mut rel = input;
        let mut predicate: Option<Expr> = None;
        let mut exprs: Vec<Expr> = (0..input.columns.len()).map(column).collect();
        while let Kind::Calc { input, predicate: own, exprs: below } = &rel.kind {
            let mut over = |expr: &Expr| substitute(expr, &mut |index| below[index].clone());
            exprs = exprs.iter().map(&mut over).collect();
            let above = predicate.as_ref().map(&mut over);
            predicate = crate::simplify::conjunction(own.iter().cloned().chain(above));
            rel = input;
        }
        match &rel.kind {
            Kind::Window { input: base, window, time, at } => {
                let (window, time, at) = (*window, *time, Some(*at));
                Ok(Self { base, window, time, predicate, exprs, size_of_hop_ms: None, at })
            }
            Kind::Aggregate { .. } => {
                let below = Self::of(rel)?;
                let (window, size_of_hop_ms) = match below.window {
                    WindowSpec::Tumble { size_ms, offset_ms } => {
                        (WindowSpec::Tumble { size_ms, offset_ms }, below.size_of_hop_ms)
                    }
                    WindowSpec::Hop { size_ms, slide_ms, offset_ms } => {
                        (WindowSpec::Tumble { size_ms: slide_ms, offset_ms }, Some(size_ms))
                    }
                };
                let time = rel.columns.len() - 1;
                Ok(Self { base: rel, window, time, predicate, exprs, size_of_hop_ms, at: None })
            }
            _ => Err(Error::internal("an aggregate over rows without a window")),
        }
    }

    /// An expression that may read columns of the window, over those of the base alone.
    fn over_base(&self, expr: Expr) -> Result<Expr> {
        let width = self.base.columns.len();
        let mut reads_window = false;
        columns_of(&expr, &mut |index| reads_window |= index >= width);
        if !reads_window {
            return Ok(expr);
        }
        let at = self.at.unwrap_or(Location { line: 1, column: 1 });
        let exprs = tumble_exprs(&self.window, self.time, self.base).ok_or_else(|| {
            unsupported(
                at,
                "computing with the columns of a HOP before it is aggregated",
                "Use them in SELECT or HAVING.",
            )
        })??;
        Ok(substitute(&expr, &mut |index| if index < width { column(index) } else { exprs[index - width].clone() }))
    }
}

/// window_start, window_end and window_time as functions of the event time; none for windows that overlap.
fn tumble_exprs(window: &WindowSpec, time: usize, base: &Rel) -> Option<Result<Vec<Expr>>> {
    let WindowSpec::Tumble { size_ms, offset_ms } = *window else { return None };
    let call = |name: &str| -> Result<Expr> {
        let udf = weir_functions::registry().function(name).map_err(internal)?;
        debug_assert!(base.columns[time].role != Role::Plain);
        Ok(udf.call(vec![column(time), lit(size_ms), lit(offset_ms)]))
    };
    Some(["$window_start", "$window_end", "$window_time"].into_iter().map(call).collect())
}
