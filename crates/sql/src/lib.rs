//! Flink-dialect SQL to a job graph.
//!
//! Planning is pure: script and options in, graph out; nothing is read, asked or timed. A script is parsed whole, bound
//! statement by statement (declarations before their use), and all its INSERTs become one job. Invariant: no part of the
//! syntax tree is passed over; what the planner does not support is refused with line, column and a hint.

mod aggregate;
mod bind;
mod catalog;
mod changelog;
mod ddl;
mod dialect;
mod error;
mod explain;
mod graph;
mod lower;
mod options;
mod planner;
mod projection;
mod query;
mod rel;
mod script;
mod simplify;
mod source;
mod table;
mod text;
mod uid;
mod window;

use std::collections::BTreeMap;

use weir_types::graph::JobGraph;
use weir_types::restore::ClaimMode;

pub use planner::plan;

/// What a plan depends on beside the script.
#[derive(Clone, Debug, Default)]
pub struct PlanContext {
    /// Options from flags, by Flink's keys; they win over the script's `SET`.
    pub overrides: BTreeMap<String, String>,
    /// Options from the cluster's configuration, by Flink's keys; the script's `SET` wins over them.
    pub defaults: BTreeMap<String, String>,
    /// The job's name unless the script or a flag sets `pipeline.name`.
    pub job_name: Option<String>,
}

/// What a script asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The job of all INSERTs; none if the script has none.
    pub graph: Option<JobGraph>,
    /// What EXPLAIN statements print, and the plan of the job if there are none.
    pub explain: String,
    /// The same for programs.
    pub explain_json: serde_json::Value,
    /// Whether the script has an EXPLAIN statement, whose text is to be shown.
    pub is_explain: bool,
    /// Things to tell the user: options that were ignored.
    pub warnings: Vec<String>,
    /// How many statements the script has.
    pub statements: usize,
    /// Whose a snapshot is from which the job is restored, if it is.
    pub claim_mode: ClaimMode,
}
