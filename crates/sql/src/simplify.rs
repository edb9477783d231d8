//! Simplification of expressions: DataFusion's `ExprSimplifier`, the one rule of its optimiser that is used, and after it
//! the guards that keep Flink's order of evaluation.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{BinaryExpr, Case, Operator, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::prelude::Expr;
use weir_types::Result;

use crate::rel::{Column, internal, numbered_schema};

/// Simplifies an expression over these columns. The type of the result stays.
pub(crate) fn simplify(expr: Expr, columns: &[Column]) -> Result<Expr> {
    let schema = Arc::new(numbered_schema(columns)?);
    let context = SimplifyContext::builder().with_schema(schema).build();
    let original = expr.clone();
    // A constant that cannot be computed (1 / 0) stays, and fails when a row meets it, as it would in Flink.
    match ExprSimplifier::new(context).with_canonicalize(false).simplify(expr) {
        Ok(simple) => Ok(simple),
        Err(_) => Ok(original),
    }
}

/// The conjuncts of a predicate.
pub(crate) fn conjuncts(predicate: &Expr) -> Vec<Expr> {
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            let mut all = conjuncts(left);
            all.extend(conjuncts(right));
            all
        }
        other => vec![other.clone()],
    }
}

/// The conjunction of expressions; none if there are none.
pub(crate) fn conjunction(exprs: impl IntoIterator<Item = Expr>) -> Option<Expr> {
    exprs.into_iter().reduce(Expr::and)
}

/// Keeps the right side of AND and OR from failing on rows that the left side has decided, as Flink does:
/// `b <> 0 AND a / b > 1`. DataFusion may evaluate both sides on all rows.
pub(crate) fn guard(expr: Expr) -> Result<Expr> {
    expr.transform_up(|node| {
        let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) = node else {
            return Ok(Transformed::no(node));
        };
        if !can_fail(&right) {
            return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
        }
        let (undecided, decided) = match op {
            Operator::And => (left.clone().is_not_false(), lit(false)),
            _ => (left.clone().is_not_true(), lit(true)),
        };
        let both = Expr::BinaryExpr(BinaryExpr { left, op, right });
        let case = Case {
            expr: None,
            when_then_expr: vec![(Box::new(undecided), Box::new(both))],
            else_expr: Some(Box::new(decided)),
        };
        Ok(Transformed::yes(Expr::Case(case)))
    })
    .data()
    .map_err(internal)
}

/// Whether evaluation can fail on some value.
fn can_fail(expr: &Expr) -> bool {
    let mut found = false;
    let visited = expr.apply(|node| {
        found |= match node {
            Expr::BinaryExpr(binary) => {
                let constant = matches!(&*binary.right, Expr::Literal(value, _) if !value.is_null());
                // Division by a constant other than zero cannot fail; zero would have failed when it was folded.
                matches!(binary.op, Operator::Divide | Operator::Modulo) && !constant
            }
            Expr::ScalarFunction(call) => {
                let name = call.func.name();
                name == "$cast" || name == "$not_null" || name.starts_with("$decimal") || name.starts_with("regexp")
            }
            _ => false,
        };
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found || visited.is_err()
}
