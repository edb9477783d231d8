//! Queries become relations: SELECT, WHERE, GROUP BY, HAVING, DISTINCT, UNION, WITH, subqueries.
//!
//! Every part of the syntax tree is taken apart by name, so that a part which sqlparser adds breaks the build rather than
//! being passed over.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlparser::ast::{
    self, GroupByExpr, Ident, Query, Select, SetExpr, SetOperator, SetQuantifier, Spanned, TableAlias, TableFactor,
    TableWithJoins,
};
use sqlparser::tokenizer::Location;
use weir_functions::types;
use weir_types::Result;

use crate::aggregate;
use crate::bind::{Context, Scope, Value};
use crate::catalog::{Catalog, Entry};
use crate::error::{invalid, nearest, refuse_if, start, unsupported};
use crate::projection::{Item, ItemExpr, UID_HINT, refuse_exotic, uid_hint};
use crate::rel::{Column, Kind, Rel, Role, column};

/// Binds queries against what has been declared.
#[derive(Clone)]
pub(crate) struct Binder<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) time_zone: &'a str,
    /// Common table expressions in force.
    ctes: BTreeMap<String, Arc<Rel>>,
}

/// A relation as FROM names it.
pub(crate) struct Source {
    pub(crate) rel: Arc<Rel>,
    pub(crate) alias: Option<String>,
}

impl Source {
    pub(crate) fn scope(&self) -> Scope<'_> {
        Scope { columns: &self.rel.columns, alias: self.alias.as_deref() }
    }
}

impl<'a> Binder<'a> {
    pub(crate) fn new(catalog: &'a Catalog, time_zone: &'a str) -> Self {
        Self { catalog, time_zone, ctes: BTreeMap::new() }
    }

    /// Binds a query.
    pub(crate) fn query(&self, query: &Query, at: Location) -> Result<Arc<Rel>> {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        let at = start(query.span(), at);
        let end = "A stream has no end to sort at: sort what reads the result.";
        if let Some(order_by) = order_by {
            return Err(unsupported(start(order_by.span(), at), "ORDER BY", end));
        }
        if let Some(limit) = limit_clause {
            return Err(unsupported(start(limit.span(), at), "LIMIT", "Filter with WHERE, or bound the source."));
        }
        refuse_if(fetch.is_some(), at, "FETCH", "Filter with WHERE, or bound the source.")?;
        refuse_if(!locks.is_empty() || for_clause.is_some(), at, "FOR UPDATE and the like", "Leave it out.")?;
        refuse_if(settings.is_some() || format_clause.is_some(), at, "SETTINGS and FORMAT", "Leave it out.")?;
        refuse_if(!pipe_operators.is_empty(), at, "the pipe |>", "Nest the queries.")?;
        let mut binder = self.clone();
        if let Some(with) = with {
            refuse_if(with.recursive, at, "WITH RECURSIVE", "Write the steps out.")?;
            for cte in &with.cte_tables {
                let ast::Cte { alias, query, from, materialized, closing_paren_token: _ } = cte;
                refuse_if(
                    from.is_some() || materialized.is_some(),
                    at,
                    "this form of WITH",
                    "Write WITH name AS (…).",
                )?;
                let rel = binder.query(query, alias.name.span.start)?;
                let (name, rel) = renamed(rel, alias)?;
                binder.ctes.insert(name, rel);
            }
        }
        binder.body(body, at)
    }

    fn body(&self, body: &SetExpr, at: Location) -> Result<Arc<Rel>> {
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query, at),
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                self.union(left, *op, *set_quantifier, right, at)
            }
            SetExpr::Values(_) => Err(unsupported(at, "VALUES", "Append rows to a stream: weir stream append.")),
            SetExpr::Table(_) => Err(unsupported(at, "TABLE t as a query", "Write SELECT * FROM t.")),
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                Err(unsupported(at, "a statement within a query", "Write it as a statement of its own."))
            }
        }
    }

    fn union(
        &self,
        left: &SetExpr,
        op: SetOperator,
        quantifier: SetQuantifier,
        right: &SetExpr,
        at: Location,
    ) -> Result<Arc<Rel>> {
        let distinct = match (op, quantifier) {
            (SetOperator::Union, SetQuantifier::All) => false,
            (SetOperator::Union, SetQuantifier::None | SetQuantifier::Distinct) => true,
            _ => {
                let what = format!("{op} {quantifier}").trim().to_owned();
                return Err(unsupported(start(right.span(), at), what, "UNION and UNION ALL are."));
            }
        };
        let right_at = start(right.span(), at);
        let (left, right) = (self.body(left, at)?, self.body(right, right_at)?);
        if left.columns.len() != right.columns.len() {
            return Err(invalid(
                right_at,
                format!("UNION ALL of {} columns and {} columns", left.columns.len(), right.columns.len()),
            ));
        }
        let mut columns = Vec::with_capacity(left.columns.len());
        for (a, b) in left.columns.iter().zip(&right.columns) {
            let Some(data_type) = types::common(&a.data_type, &b.data_type) else {
                return Err(invalid(
                    right_at,
                    format!(
                        "UNION ALL of column {} {} and column {} {}",
                        a.name,
                        types::name(&a.data_type),
                        b.name,
                        types::name(&b.data_type)
                    ),
                )
                .with_hint("CAST them to one type."));
            };
            let both_event_time = a.role.is_event_time() && b.role.is_event_time();
            let role = if both_event_time { Role::Rowtime } else { Role::Plain };
            columns.push(Column {
                name: a.name.clone(),
                data_type,
                nullable: a.nullable || b.nullable,
                role,
                at: a.at,
                weight: a.weight.max(b.weight),
            });
        }
        let mut inputs = Vec::new();
        for side in [left, right] {
            let side = self.cast_columns(side, &columns, right_at)?;
            match &side.kind {
                Kind::Union(nested) => inputs.extend(nested.iter().cloned()),
                _ => inputs.push(side),
            }
        }
        let union = Arc::new(Rel { kind: Kind::Union(inputs), columns });
        if distinct { aggregate::distinct(union, None, right_at) } else { Ok(union) }
    }

    /// The relation with its columns cast to those types.
    fn cast_columns(&self, rel: Arc<Rel>, columns: &[Column], at: Location) -> Result<Arc<Rel>> {
        if rel.columns.iter().zip(columns).all(|(from, to)| from.data_type == to.data_type) {
            return Ok(rel);
        }
        let cx = Context::new(Scope { columns: &rel.columns, alias: None }, at, self.time_zone);
        let exprs = rel
            .columns
            .iter()
            .zip(columns)
            .enumerate()
            .map(|(index, (from, to))| {
                let value = Value::new(column(index), from.data_type.clone(), from.nullable);
                Ok(cx.cast(value, &to.data_type)?.expr)
            })
            .collect::<Result<_>>()?;
        let columns = columns.to_vec();
        Ok(Arc::new(Rel { kind: Kind::Calc { input: rel, predicate: None, exprs }, columns }))
    }

    fn select(&self, select: &Select) -> Result<Arc<Rel>> {
        let at = start(select.select_token.0.span, select.span().start);
        refuse_exotic(select, at)?;
        let Select { distinct, projection, from, selection, group_by, having, .. } = select;
        let distinct = matches!(distinct, Some(ast::Distinct::Distinct));
        let source = match from.as_slice() {
            [one] => self.from(one, at)?,
            [] => return Err(unsupported(at, "SELECT without FROM", "Select from a table.")),
            [_, second, ..] => {
                return Err(unsupported(
                    start(second.span(), at),
                    "a join of several tables",
                    "Joins come in a later release.",
                ));
            }
        };
        let rel = match selection {
            Some(condition) => {
                let cx = Context::new(source.scope(), at, self.time_zone);
                let predicate = cx.condition(condition)?.expr;
                let columns = source.rel.columns.clone();
                let exprs = (0..columns.len()).map(column).collect();
                Arc::new(Rel {
                    kind: Kind::Calc { input: Arc::clone(&source.rel), predicate: Some(predicate), exprs },
                    columns,
                })
            }
            None => Arc::clone(&source.rel),
        };
        let source = Source { rel, alias: source.alias };
        let groups = match group_by {
            GroupByExpr::All(_) => return Err(unsupported(at, "GROUP BY ALL", "Name the columns.")),
            GroupByExpr::Expressions(exprs, modifiers) => {
                refuse_if(!modifiers.is_empty(), at, "GROUP BY … WITH", "Leave it out.")?;
                exprs
            }
        };
        let items = self.expand(projection, &source, at)?;
        let hint = uid_hint(&select.optimizer_hints, at)?;
        if let Some(rel) = self.aggregate(&source, groups, &items, having.as_ref(), hint.clone(), at)? {
            return if distinct { aggregate::distinct(rel, None, at) } else { Ok(rel) };
        }
        if hint.is_some() && !distinct {
            return Err(invalid(at, "STATE_UID on a SELECT that keeps no state").with_hint(UID_HINT));
        }
        if let Some(having) = having {
            return Err(invalid(start(having.span(), at), "HAVING without GROUP BY").with_hint("Use WHERE."));
        }
        let rel = self.items(source, &items, at)?;
        if distinct { aggregate::distinct(rel, hint, at) } else { Ok(rel) }
    }

    /// A SELECT's items over a relation.
    fn items(&self, source: Source, items: &[Item<'_>], at: Location) -> Result<Arc<Rel>> {
        let cx = Context::new(source.scope(), at, self.time_zone);
        let mut exprs = Vec::with_capacity(items.len());
        let mut columns = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let value = match &item.expr {
                ItemExpr::Ast(expr) => cx.bind(expr)?,
                ItemExpr::Bound(value) => value.clone(),
            };
            columns.push(item.column(index, &value, &source.rel.columns)?);
            exprs.push(value.expr);
        }
        Ok(Arc::new(Rel { kind: Kind::Calc { input: source.rel, predicate: None, exprs }, columns }))
    }

    fn from(&self, from: &TableWithJoins, at: Location) -> Result<Source> {
        let TableWithJoins { relation, joins } = from;
        if let Some(join) = joins.first() {
            return Err(unsupported(start(join.span(), at), "JOIN", "Joins come in a later release."));
        }
        self.factor(relation, at)
    }

    /// One relation of FROM.
    pub(crate) fn factor(&self, factor: &TableFactor, at: Location) -> Result<Source> {
        let at = start(factor.span(), at);
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                let hint = "Write FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)).";
                refuse_if(args.is_some(), at, "a table function without TABLE(…)", hint)?;
                refuse_if(
                    !with_hints.is_empty() || !index_hints.is_empty(),
                    at,
                    "table hints",
                    "Use the table's options.",
                )?;
                refuse_if(version.is_some(), at, "FOR SYSTEM_TIME AS OF", "Joins come in a later release.")?;
                let rest = *with_ordinality || !partitions.is_empty() || json_path.is_some() || sample.is_some();
                refuse_if(rest, at, "this form of a table", "Name the table alone.")?;
                let rel = self.named(name, at)?;
                match alias {
                    Some(alias) => aliased(rel, alias),
                    None => {
                        Ok(Source { rel, alias: name.0.last().and_then(|part| Some(part.as_ident()?.value.clone())) })
                    }
                }
            }
            TableFactor::Derived { lateral, subquery, alias, sample } => {
                refuse_if(*lateral, at, "LATERAL", "Joins come in a later release.")?;
                refuse_if(sample.is_some(), at, "TABLESAMPLE", "Filter with WHERE.")?;
                let rel = self.query(subquery, at)?;
                match alias {
                    Some(alias) => aliased(rel, alias),
                    None => Ok(Source { rel, alias: None }),
                }
            }
            TableFactor::TableFunction { expr, alias } => {
                let rel = self.window_function(expr, at)?;
                match alias {
                    Some(alias) => aliased(rel, alias),
                    None => Ok(Source { rel, alias: None }),
                }
            }
            TableFactor::NestedJoin { .. } => Err(unsupported(at, "JOIN", "Joins come in a later release.")),
            TableFactor::UNNEST { .. } => Err(unsupported(at, "UNNEST", "Name elements: array[1].")),
            TableFactor::MatchRecognize { .. } => Err(unsupported(at, "MATCH_RECOGNIZE", "See docs/sql.md.")),
            other => Err(unsupported(at, format!("the relation {other}"), "Select from a table, view or subquery.")),
        }
    }

    /// A table, view or common table expression.
    pub(crate) fn named(&self, name: &ast::ObjectName, at: Location) -> Result<Arc<Rel>> {
        let [part] = name.0.as_slice() else {
            return Err(unsupported(at, format!("the qualified table name {name}"), "Use the table's name alone."));
        };
        let Some(ident) = part.as_ident() else {
            return Err(unsupported(at, format!("the table name {name}"), "Use a plain name."));
        };
        self.named_ident(ident, start(ident.span, at))
    }

    pub(crate) fn named_ident(&self, ident: &Ident, at: Location) -> Result<Arc<Rel>> {
        if let Some(rel) = self.ctes.get(&ident.value) {
            return Ok(Arc::clone(rel));
        }
        match self.catalog.entries.get(&ident.value) {
            Some(Entry::View(rel)) => Ok(Arc::clone(rel)),
            Some(Entry::Table(table)) => {
                if !table.kind().descriptor().source {
                    return Err(invalid(at, format!("table {} cannot be read", table.name))
                        .with_detail(format!("Connector '{}' is a sink only.", table.kind())));
                }
                refuse_if(
                    table.connector.has_change_format(),
                    at,
                    &format!("reading table {} in a format of changes", table.name),
                    "Read it as 'json', with the columns before ROW<…>, after ROW<…> and op STRING.",
                )?;
                Ok(Arc::new(Rel { kind: Kind::Scan(Arc::clone(table)), columns: table.columns.clone() }))
            }
            None => Err(self.no_table(&ident.value, at)),
        }
    }

    pub(crate) fn no_table(&self, name: &str, at: Location) -> weir_types::Error {
        let error = invalid(at, format!("table {name} does not exist"));
        let names = self.catalog.entries.keys().chain(self.ctes.keys()).map(String::as_str);
        match nearest(name, names) {
            Some(near) => error.with_hint(format!("Did you mean {near}? Names are case-sensitive.")),
            None => error.with_hint("Declare it first, with CREATE TABLE or CREATE VIEW."),
        }
    }
}

/// `AS alias (columns)`
fn aliased(rel: Arc<Rel>, alias: &TableAlias) -> Result<Source> {
    let (alias, rel) = renamed(rel, alias)?;
    Ok(Source { rel, alias: Some(alias) })
}

fn renamed(rel: Arc<Rel>, alias: &TableAlias) -> Result<(String, Arc<Rel>)> {
    let TableAlias { explicit: _, name, columns, at } = alias;
    refuse_if(at.is_some(), name.span.start, "AT in an alias", "Leave it out.")?;
    if columns.is_empty() {
        return Ok((name.value.clone(), rel));
    }
    if let Some(typed) = columns.iter().find(|column| column.data_type.is_some()) {
        return Err(unsupported(typed.name.span.start, "a type in an alias", "Use CAST."));
    }
    let names: Vec<&Ident> = columns.iter().map(|column| &column.name).collect();
    Ok((name.value.clone(), with_names(rel, &names)?))
}

/// The relation with its columns renamed.
pub(crate) fn with_names(rel: Arc<Rel>, names: &[&Ident]) -> Result<Arc<Rel>> {
    if names.len() != rel.columns.len() {
        let at = names.first().map_or(Location { line: 1, column: 1 }, |name| name.span.start);
        return Err(invalid(at, format!("{} names for {} columns", names.len(), rel.columns.len())));
    }
    let columns: Vec<Column> = rel
        .columns
        .iter()
        .zip(names)
        .map(|(found, name)| Column { name: name.value.clone(), ..found.clone() })
        .collect();
    let exprs = (0..columns.len()).map(column).collect();
    Ok(Arc::new(Rel { kind: Kind::Calc { input: rel, predicate: None, exprs }, columns }))
}
