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

/// Keeps what stands behind AND and OR from failing on rows that are decided before it, as Flink does:
/// `b <> 0 AND a / b > 1`. DataFusion may evaluate all sides on all rows, but the branches of a CASE only on their own.
pub(crate) fn guard(expr: Expr) -> Result<Expr> {
    guarded(expr).map_err(internal)
}

/// The same for a filter, where NULL is as good as FALSE.
pub(crate) fn guard_predicate(predicate: Expr) -> Result<Expr> {
    let operands = conjuncts(&predicate).into_iter().map(guard).collect::<Result<Vec<_>>>()?;
    let mut segments = segments(operands, Operator::And);
    let Some(last) = segments.pop() else { return Ok(predicate) };
    if segments.is_empty() {
        return Ok(last);
    }
    let whens = segments.into_iter().map(|segment| (Box::new(segment.is_not_true()), Box::new(lit(false)))).collect();
    Ok(Expr::Case(Case { expr: None, when_then_expr: whens, else_expr: Some(Box::new(last)) }))
}

fn guarded(expr: Expr) -> datafusion::common::Result<Expr> {
    let op = match &expr {
        Expr::BinaryExpr(BinaryExpr { op: op @ (Operator::And | Operator::Or), .. }) => *op,
        _ => return expr.map_children(|child| Ok(Transformed::yes(guarded(child)?))).data(),
    };
    let mut operands = Vec::new();
    flatten(expr, op, &mut operands);
    let operands = operands.into_iter().map(guarded).collect::<datafusion::common::Result<Vec<_>>>()?;
    let segments = segments(operands, op);
    let join = |parts: &[Expr]| parts.iter().cloned().reduce(|left, right| binary(left, op, right));
    let all = join(&segments).unwrap_or_else(|| lit(op == Operator::And));
    if segments.len() < 2 {
        return Ok(all);
    }
    let decided = |segment: Expr| if op == Operator::And { segment.is_false() } else { segment.is_true() };
    let before = segments[..segments.len() - 1].iter().cloned();
    let whens = before.map(|segment| (Box::new(decided(segment)), Box::new(lit(op == Operator::Or)))).collect();
    Ok(Expr::Case(Case { expr: None, when_then_expr: whens, else_expr: Some(Box::new(all)) }))
}

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

fn flatten(expr: Expr, op: Operator, into: &mut Vec<Expr>) {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: found, right }) if found == op => {
            flatten(*left, op, into);
            flatten(*right, op, into);
        }
        other => into.push(other),
    }
}

/// Operands joined, with a new segment wherever one begins that can fail.
fn segments(operands: Vec<Expr>, op: Operator) -> Vec<Expr> {
    let mut segments: Vec<Expr> = Vec::new();
    for operand in operands {
        match segments.pop() {
            None => segments.push(operand),
            Some(last) if can_fail(&operand) => segments.extend([last, operand]),
            Some(last) => segments.push(binary(last, op, operand)),
        }
    }
    segments
}

/// How deep protobuf messages nest when the expression is encoded; decoding refuses more than 100.
pub(crate) fn encoded_depth(expr: &Expr) -> usize {
    if let Expr::BinaryExpr(BinaryExpr { left, op, right }) = expr {
        // A chain of one operator is encoded side by side.
        let mut deepest = encoded_depth(right);
        let mut rest = left.as_ref();
        while let Expr::BinaryExpr(BinaryExpr { left, op: same, right }) = rest
            && same == op
        {
            deepest = deepest.max(encoded_depth(right));
            rest = left;
        }
        return deepest.max(encoded_depth(rest)) + 2;
    }
    let own = if matches!(expr, Expr::Case(_)) { 3 } else { 2 };
    let mut deepest = 0;
    let visited = expr.apply_children(|child| {
        deepest = deepest.max(encoded_depth(child));
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "the closure never fails");
    deepest + own
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
