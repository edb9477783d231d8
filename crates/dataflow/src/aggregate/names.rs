//! What the columns of an aggregate's state are called: as in the query, where it has names for them.
//!
//! Names are for people and unique within a table; restoring goes by the ids in `weir_state::columns`.

use std::collections::BTreeSet;

use arrow::datatypes::Schema;
use weir_state::file::HASH_COLUMN;
use weir_types::graph::{AggregateFunction, AggregateSpec, WindowSpec};

/// The columns beside keys, aggregates and distinct values.
const OWN: [&str; 6] = [HASH_COLUMN, "window_start", "window_end", "slice_start", "slice_end", SEEN];
/// Bits of the filters that a distinct value has passed.
pub(crate) const SEEN: &str = "seen";
/// What an aggregate's second column may be called, behind its name.
const SUFFIXES: [&str; 4] = ["", "_overflow", "_sum", "_count"];

/// Unique names.
#[derive(Debug)]
pub(crate) struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    pub(crate) fn new() -> Self {
        Self { taken: OWN.map(str::to_owned).into() }
    }

    /// `wanted`, with a number if it is taken.
    pub(crate) fn unique(&mut self, wanted: &str) -> String {
        self.of(wanted, &[""])
    }

    /// A name that can be extended with every suffix.
    fn of(&mut self, wanted: &str, suffixes: &[&str]) -> String {
        let mut name = wanted.to_owned();
        let mut number = 1_u64;
        while suffixes.iter().any(|suffix| self.taken.contains(&format!("{name}{suffix}"))) {
            number += 1;
            name = format!("{wanted}_{number}");
        }
        self.taken.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
        name
    }

    /// The name of an aggregate: its alias, or else function and argument. `column` is what the plan calls it.
    pub(crate) fn of_call(&mut self, spec: &AggregateSpec, column: &str, input: &Schema) -> String {
        if is_given(column) {
            return self.of(column, &SUFFIXES);
        }
        let function = match spec.function {
            AggregateFunction::Count => "count",
            AggregateFunction::Sum => "sum",
            AggregateFunction::Min => "min",
            AggregateFunction::Max => "max",
            AggregateFunction::Avg => "avg",
        };
        let distinct = if spec.distinct { "_distinct" } else { "" };
        let argument = spec.argument.and_then(|argument| input.fields().get(argument)).map(|field| field.name());
        match argument.filter(|argument| is_given(argument)) {
            Some(argument) => self.of(&format!("{function}{distinct}_{argument}"), &SUFFIXES),
            None => self.of(&format!("{function}{distinct}"), &SUFFIXES),
        }
    }
}

/// Whether a name comes from the query: the planner's own hold a `$`.
pub(crate) fn is_given(name: &str) -> bool {
    !name.is_empty() && !name.contains('$')
}

/// The column of slices: those of windows side by side are the windows.
pub(crate) fn slice_start(window: &WindowSpec) -> &'static str {
    match window {
        WindowSpec::Tumble { .. } => "window_start",
        WindowSpec::Hop { .. } => "slice_start",
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    #[test]
    fn names_are_those_of_the_query_and_unique() {
        let input = Schema::new(vec![
            Field::new("bidder", DataType::Int64, true),
            Field::new("price", DataType::Int64, true),
            Field::new("$f2", DataType::Int64, true),
        ]);
        let call = |function, argument, distinct| AggregateSpec { function, argument, distinct, filter: None };
        let mut names = Names::new();
        assert_eq!(names.unique("bidder"), "bidder");
        assert_eq!(names.unique("key_hash"), "key_hash_2");
        let count = call(AggregateFunction::Count, None, false);
        assert_eq!(names.of_call(&count, "n", &input), "n");
        assert_eq!(names.of_call(&count, "count$1", &input), "count");
        assert_eq!(names.of_call(&count, "count$2", &input), "count_2");
        assert_eq!(names.of_call(&call(AggregateFunction::Avg, Some(1), false), "avg$3", &input), "avg_price");
        assert_eq!(
            names.of_call(&call(AggregateFunction::Count, Some(0), true), "x$4", &input),
            "count_distinct_bidder"
        );
        assert_eq!(names.of_call(&call(AggregateFunction::Sum, Some(2), false), "sum$5", &input), "sum");
        assert_eq!(names.of_call(&count, "sum", &input), "sum_2");
    }
}
