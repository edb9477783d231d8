//! The items of a SELECT: wildcards written out, names given, and everything else of SELECT's syntax refused.

use sqlparser::ast::{self, Ident, Select, SelectItem, SelectItemQualifiedWildcardKind, Spanned};
use sqlparser::tokenizer::Location;
use weir_types::Result;

use crate::bind::{Context, Value};
use crate::error::{invalid, refuse_if, start, unsupported};
use crate::query::{Binder, Source};
use crate::rel::{Column, Role, column, column_index, columns_of};

impl Binder<'_> {
    /// The items of a SELECT with wildcards written out.
    pub(crate) fn expand<'e>(
        &self,
        projection: &'e [SelectItem],
        source: &Source,
        at: Location,
    ) -> Result<Vec<Item<'e>>> {
        let mut items = Vec::new();
        for item in projection {
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    items.push(Item {
                        name: implied_name(expr),
                        expr: ItemExpr::Ast(expr),
                        at: start(expr.span(), at),
                    });
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    let name = Some(alias.value.clone());
                    items.push(Item { name, expr: ItemExpr::Ast(expr), at: start(expr.span(), at) });
                }
                SelectItem::ExprWithAliases { expr, .. } => {
                    return Err(unsupported(start(expr.span(), at), "several aliases of one expression", "Give one."));
                }
                SelectItem::Wildcard(options) => {
                    plain_wildcard(options, at)?;
                    let columns = source.rel.columns.iter().enumerate();
                    items.extend(columns.map(|(index, found)| Item::of_column(index, found, at)));
                }
                SelectItem::QualifiedWildcard(kind, options) => {
                    plain_wildcard(options, at)?;
                    self.expand_qualified(kind, source, at, &mut items)?;
                }
            }
        }
        Ok(items)
    }

    /// `alias.*`, or `row_column.*`: the fields of a ROW.
    fn expand_qualified(
        &self,
        kind: &SelectItemQualifiedWildcardKind,
        source: &Source,
        at: Location,
        items: &mut Vec<Item<'_>>,
    ) -> Result<()> {
        let SelectItemQualifiedWildcardKind::ObjectName(name) = kind else {
            return Err(unsupported(at, "* of an expression", "Name the columns."));
        };
        let parts: Vec<Ident> = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
        let at = parts.first().map_or(at, |part| start(part.span, at));
        if let [alias] = parts.as_slice()
            && source.alias.as_deref() == Some(alias.value.as_str())
        {
            items.extend(source.rel.columns.iter().enumerate().map(|(index, found)| Item::of_column(index, found, at)));
            return Ok(());
        }
        let cx = Context::new(source.scope(), at, self.time_zone);
        let path = match parts.as_slice() {
            [only] => ast::Expr::Identifier(only.clone()),
            _ => ast::Expr::CompoundIdentifier(parts),
        };
        let row = cx.bind(&path)?;
        let arrow::datatypes::DataType::Struct(fields) = row.data_type.clone() else {
            return Err(invalid(at, format!("{path} is {}: it has no columns", row.type_name())));
        };
        for field in &fields {
            let value = cx.field(row.clone(), field.name())?;
            items.push(Item { name: Some(field.name().clone()), expr: ItemExpr::Bound(value), at });
        }
        Ok(())
    }
}

/// One column of a SELECT.
pub(crate) struct Item<'e> {
    name: Option<String>,
    pub(crate) expr: ItemExpr<'e>,
    pub(crate) at: Location,
}

/// Its expression: as written, or bound already where it comes from a wildcard.
pub(crate) enum ItemExpr<'e> {
    Ast(&'e ast::Expr),
    Bound(Value),
}

impl Item<'_> {
    /// The name that the query gives it.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn of_column(index: usize, found: &Column, at: Location) -> Self {
        let value = Value::new(column(index), found.data_type.clone(), found.nullable);
        Item { name: Some(found.name.clone()), expr: ItemExpr::Bound(value), at }
    }

    /// The column it makes; unnamed ones are numbered as in Flink.
    pub(crate) fn column(&self, index: usize, value: &Value, input: &[Column]) -> Result<Column> {
        let name = self.name.clone().unwrap_or_else(|| format!("EXPR${index}"));
        let mut weight = 0_u32;
        columns_of(&value.expr, &mut |index| weight = weight.saturating_add(input[index].weight));
        if weight > WEIGHT_MAX {
            return Err(invalid(self.at, format!("column {name} grows to more than {WEIGHT_MAX} terms"))
                .with_hint("Views are written out where they are read: use a column less often in the next view."));
        }
        let role = column_index(&value.expr).map_or(Role::Plain, |index| input[index].role);
        let (data_type, nullable) = (value.data_type.clone(), value.nullable);
        Ok(Column { name, data_type, nullable, role, at: Some(self.at), weight: weight.max(1) })
    }
}

/// Most terms of a column, with all views below written out.
const WEIGHT_MAX: u32 = 10_000;

/// The name of an expression without an alias, if it is a column or field.
fn implied_name(expr: &ast::Expr) -> Option<String> {
    match expr {
        ast::Expr::Identifier(name) => Some(name.value.clone()),
        ast::Expr::CompoundIdentifier(parts) => parts.last().map(|part| part.value.clone()),
        ast::Expr::Nested(inner) => implied_name(inner),
        _ => None,
    }
}

fn plain_wildcard(options: &ast::WildcardAdditionalOptions, at: Location) -> Result<()> {
    let ast::WildcardAdditionalOptions {
        wildcard_token,
        opt_ilike,
        opt_exclude,
        opt_except,
        opt_replace,
        opt_rename,
        opt_alias,
    } = options;
    let extra = opt_ilike.is_some()
        || opt_exclude.is_some()
        || opt_except.is_some()
        || opt_replace.is_some()
        || opt_rename.is_some()
        || opt_alias.is_some();
    refuse_if(extra, start(wildcard_token.0.span, at), "* with EXCEPT, REPLACE and the like", "Name the columns.")
}

/// What the one hint there is looks like.
pub(crate) const UID_HINT: &str = "SELECT /*+ STATE_UID('name') */ … GROUP BY … names the state of that aggregate.";

/// The name that `SELECT /*+ STATE_UID('name') */` gives to the state of its aggregate. Any other hint is refused.
pub(crate) fn uid_hint(hints: &[ast::OptimizerHint], at: Location) -> Result<Option<String>> {
    // Other databases' forms, `--+ …` and `/*name+ …*/`, are comments here.
    let is_hint =
        |hint: &&ast::OptimizerHint| hint.prefix.is_empty() && hint.style == ast::OptimizerHintStyle::MultiLine;
    let mut hints = hints.iter().filter(is_hint).map(|hint| &hint.text);
    let Some(text) = hints.next() else { return Ok(None) };
    refuse_if(hints.next().is_some(), at, "more than one query hint", UID_HINT)?;
    let name = |text: &str| {
        let (function, arguments) = text.trim().split_once('(')?;
        let named = arguments.strip_suffix(')')?.trim();
        let name = named.strip_prefix('\'')?.strip_suffix('\'')?;
        let plain = !name.is_empty() && !name.contains('\'');
        (function.trim().eq_ignore_ascii_case("STATE_UID") && plain).then(|| name.to_owned())
    };
    match name(text) {
        Some(name) => Ok(Some(name)),
        None => Err(unsupported(at, format!("the query hint {}", text.trim()), UID_HINT)),
    }
}

pub(crate) fn refuse_exotic(select: &Select, at: Location) -> Result<()> {
    let Select {
        select_token: _,
        optimizer_hints: _,
        distinct,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection: _,
        exclude,
        into,
        from: _,
        lateral_views,
        prewhere,
        selection: _,
        connect_by,
        group_by: _,
        cluster_by,
        distribute_by,
        sort_by,
        having: _,
        named_window,
        qualify,
        window_before_qualify: _,
        value_table_mode,
        flavor,
    } = select;
    refuse_if(matches!(distinct, Some(ast::Distinct::On(_))), at, "DISTINCT ON", "Write SELECT DISTINCT.")?;
    refuse_if(
        select_modifiers.is_some() || top.is_some() || exclude.is_some(),
        at,
        "TOP and other modifiers",
        "Leave it out.",
    )?;
    refuse_if(into.is_some(), at, "SELECT INTO", "Write INSERT INTO t SELECT ….")?;
    refuse_if(
        !lateral_views.is_empty() || prewhere.is_some() || !connect_by.is_empty(),
        at,
        "LATERAL VIEW, PREWHERE and CONNECT BY",
        "Leave it out.",
    )?;
    refuse_if(
        !cluster_by.is_empty() || !distribute_by.is_empty() || !sort_by.is_empty(),
        at,
        "CLUSTER BY, DISTRIBUTE BY and SORT BY",
        "Leave it out.",
    )?;
    refuse_if(!named_window.is_empty(), at, "WINDOW", "Aggregate over a window table function.")?;
    refuse_if(qualify.is_some(), at, "QUALIFY", "Top-N comes in a later release.")?;
    refuse_if(
        value_table_mode.is_some() || *flavor != ast::SelectFlavor::Standard,
        at,
        "this form of SELECT",
        "Write SELECT … FROM ….",
    )
}
