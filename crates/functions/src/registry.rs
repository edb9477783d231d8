//! All functions by name. The planner looks them up to resolve calls, the runtime to evaluate stored expressions.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use datafusion::common::{Result, plan_err};
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, ScalarUDF, WindowUDF};
use datafusion::prelude::SessionConfig;

use crate::definition::{Definition, Function};
use crate::scalar;

/// The scalar functions of this build.
pub struct Registry {
    by_name: HashMap<&'static str, &'static Definition>,
    udfs: HashMap<String, Arc<ScalarUDF>>,
    context: Arc<TaskContext>,
}

/// The one registry.
pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::new)
}

impl Registry {
    fn new() -> Self {
        let mut by_name = HashMap::new();
        let mut udfs: HashMap<String, Arc<ScalarUDF>> = HashMap::new();
        for definition in scalar::all() {
            udfs.insert(definition.name.to_owned(), Arc::new(ScalarUDF::new_from_impl(Function::new(definition))));
            for name in definition.aliases.iter().chain([&definition.name]) {
                by_name.insert(*name, definition);
            }
        }
        for udf in scalar::special() {
            udfs.insert(udf.name().to_owned(), udf);
        }
        // The only function of DataFusion's that is used as it is: it evaluates its arguments lazily.
        let coalesce = datafusion::functions::core::coalesce();
        udfs.insert(coalesce.name().to_owned(), coalesce);
        let none = HashMap::new;
        let context = TaskContext::new(
            None,
            String::new(),
            SessionConfig::new(),
            udfs.clone(),
            none(),
            HashMap::new(),
            HashMap::new(),
            Arc::new(RuntimeEnv::default()),
        );
        Self { by_name, udfs, context: Arc::new(context) }
    }

    /// The function that a script calls by this name, in any case.
    pub fn lookup(&self, name: &str) -> Option<&'static Definition> {
        self.by_name.get(name.to_ascii_lowercase().as_str()).copied()
    }

    /// A function by its own name, for calls that the planner makes.
    ///
    /// # Errors
    /// If there is none.
    pub fn function(&self, name: &str) -> Result<Arc<ScalarUDF>> {
        match self.udfs.get(name) {
            Some(udf) => Ok(Arc::clone(udf)),
            None => plan_err!("no function {name}"),
        }
    }

    /// Names that a script may call, sorted.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.by_name.keys().copied().filter(|name| !name.starts_with('$')).collect();
        names.sort_unstable();
        names
    }

    /// What decoding needs.
    pub(crate) fn context(&self) -> &TaskContext {
        &self.context
    }
}

impl FunctionRegistry for Registry {
    fn udfs(&self) -> HashSet<String> {
        self.udfs.keys().cloned().collect()
    }

    fn udf(&self, name: &str) -> Result<Arc<ScalarUDF>> {
        self.function(name)
    }

    fn higher_order_function_names(&self) -> HashSet<String> {
        HashSet::new()
    }

    fn higher_order_function(&self, name: &str) -> Result<Arc<HigherOrderUDF>> {
        plan_err!("no higher-order function {name}")
    }

    fn udafs(&self) -> HashSet<String> {
        HashSet::new()
    }

    fn udaf(&self, name: &str) -> Result<Arc<AggregateUDF>> {
        plan_err!("no aggregate function {name}")
    }

    fn udwfs(&self) -> HashSet<String> {
        HashSet::new()
    }

    fn udwf(&self, name: &str) -> Result<Arc<WindowUDF>> {
        plan_err!("no window function {name}")
    }

    fn expr_planners(&self) -> Vec<Arc<dyn ExprPlanner>> {
        Vec::new()
    }
}
