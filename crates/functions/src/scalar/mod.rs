//! The functions themselves, by family.

mod cast;
mod decimal;
mod math;
mod nested;
mod temporal;
mod text;
mod time_text;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

use crate::definition::Definition;

/// Every function.
pub(crate) fn all() -> impl Iterator<Item = &'static Definition> {
    [
        cast::FUNCTIONS,
        decimal::FUNCTIONS,
        math::FUNCTIONS,
        nested::FUNCTIONS,
        temporal::FUNCTIONS,
        text::FUNCTIONS,
        time_text::FUNCTIONS,
    ]
    .into_iter()
    .flatten()
}

/// Functions whose result depends on a constant argument, so that no signature of types says it.
pub(crate) fn special() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(ScalarUDF::new_from_impl(nested::Field::new()))]
}
