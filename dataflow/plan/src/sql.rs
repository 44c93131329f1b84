//! SQL text to a plan: parsed and named by DataFusion's planner, without its optimizer but for subqueries (`subquery.rs`), then lowered (`lower.rs`).
//!
//! Promise: the same text over the same relations is the same plan, in every process. No clock is read: what depends on one is refused.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DataFusionError, Result, TableReference, not_impl_err, plan_err};
use datafusion_expr::planner::{ContextProvider, ExprPlanner, TypePlanner};
use datafusion_expr::{AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource, WindowUDF};
use datafusion_sql::parser::{DFParser, Statement};
use datafusion_sql::planner::{ParserOptions, SqlToRel};
use datafusion_sql::sqlparser::ast::Statement as Ast;
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;

use crate::inet::{InetPlanner, inet_functions};
use crate::lower::lower;
use crate::meaning::named_as_postgresql;
use crate::window::{Windowed, is_window, relation_of};
use crate::{Error, Plan, SchemaOf};

/// Makes the plan that keeps the answer of a SELECT. What has no exact meaning while rows come and go is refused by name.
pub fn compile(sql: &str, relations: &dyn SchemaOf) -> std::result::Result<Plan, Error> {
    let context = Context::new(relations);
    let planned = context.plan(sql).map_err(|source| context.told(source))?;
    let plan = lower(&crate::subquery::joined(planned)?)?;
    plan.schema(relations)?;
    Ok(plan)
}

/// What SQL may name.
pub(crate) struct Context<'a> {
    relations: &'a dyn SchemaOf,
    scalars: HashMap<String, Arc<ScalarUDF>>,
    aggregates: HashMap<String, Arc<AggregateUDF>>,
    windows: HashMap<String, Arc<WindowUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    options: ConfigOptions,
    /// A name that is no relation.
    missing: RefCell<Option<String>>,
    /// Names that were replaced by their SELECT.
    expanded: Cell<usize>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(relations: &'a dyn SchemaOf) -> Self {
        let mut scalars = HashMap::new();
        let (named_scalars, named_aggregates) = named_as_postgresql();
        let ours = inet_functions().into_iter().chain(named_scalars);
        for function in datafusion_functions::all_default_functions().into_iter().chain(ours) {
            for name in function.aliases().iter().cloned().chain([function.name().to_owned()]) {
                scalars.insert(name, Arc::clone(&function));
            }
        }
        let mut aggregates = HashMap::new();
        for function in datafusion_functions_aggregate::all_default_aggregate_functions().into_iter().chain(named_aggregates) {
            for name in function.aliases().iter().cloned().chain([function.name().to_owned()]) {
                aggregates.insert(name, Arc::clone(&function));
            }
        }
        let mut windows = HashMap::new();
        for function in datafusion_functions_window::all_default_window_functions() {
            for name in function.aliases().iter().cloned().chain([function.name().to_owned()]) {
                windows.insert(name, Arc::clone(&function));
            }
        }
        let planners: Vec<Arc<dyn ExprPlanner>> = vec![
            Arc::new(InetPlanner),
            Arc::new(datafusion_functions::core::planner::CoreFunctionPlanner::default()),
            Arc::new(datafusion_functions::datetime::planner::DatetimeFunctionPlanner),
            Arc::new(datafusion_functions::unicode::planner::UnicodeFunctionPlanner),
            Arc::new(datafusion_functions_aggregate::planner::AggregateFunctionPlanner),
            Arc::new(datafusion_functions_window::planner::WindowFunctionPlanner),
        ];
        let mut options = ConfigOptions::default();
        options.execution.time_zone = Some("UTC".into());
        Self { relations, scalars, aggregates, windows, planners, options, missing: RefCell::default(), expanded: Cell::new(0) }
    }

    pub(crate) fn plan(&self, sql: &str) -> Result<LogicalPlan> {
        let mut statements = DFParser::parse_sql_with_dialect(sql, &PostgreSqlDialect {})?;
        let statement = match (statements.pop_front(), statements.len()) {
            (Some(Statement::Statement(statement)), 0) => *statement,
            _ => return plan_err!("a view is one SELECT"),
        };
        let Ast::Query(query) = statement else { return plan_err!("a view is one SELECT") };
        let options = ParserOptions { map_string_types_to_utf8view: false, ..ParserOptions::new() };
        SqlToRel::new_with_options(self, options).sql_statement_to_plan(Ast::Query(query))
    }

    pub(crate) fn told(&self, source: DataFusionError) -> Error {
        match self.missing.take() {
            Some(name) => Error::NoRelation(name),
            None => match source.find_root() {
                DataFusionError::NotImplemented(what) => Error::unsupported(what.clone(), "standing views do not have it yet"),
                _ => Error::Sql(Box::new(source)),
            },
        }
    }
}

impl ContextProvider for Context<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        let ours = name.schema().is_none_or(|schema| schema == SCHEMA) && name.catalog().is_none_or(|catalog| catalog == CATALOG);
        let relation = name.table();
        if let Some(text) = self.relations.text_of(relation).filter(|_| ours) {
            self.expanded.set(self.expanded.get() + 1);
            if self.expanded.get() > EXPANDED_MAX {
                return plan_err!("views are put into each other more than {EXPANDED_MAX} times: make one of them MATERIALIZED");
            }
            let plan = self.plan(&text)?;
            let schema = Arc::new(plan.schema().as_arrow().clone());
            return Ok(Arc::new(Relation { schema, plan: Some(plan) }));
        }
        match self.relations.schema_of(relation).filter(|_| ours) {
            Some(schema) => Ok(Arc::new(Relation { schema: plain(&schema), plan: None })),
            None => {
                self.missing.borrow_mut().get_or_insert_with(|| name.to_string());
                plan_err!("relation \"{name}\" does not exist")
            }
        }
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(InetPlanner))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalars.get(name).cloned()
    }

    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.aggregates.get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.windows.get(name).cloned()
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        let function = name.to_ascii_lowercase();
        if !is_window(&function) {
            return not_impl_err!("{name}() in FROM");
        }
        let (relation, rest) = relation_of(&args)?;
        let input = LogicalPlanBuilder::scan(relation, self.get_table_source(TableReference::bare(relation))?, None)?.build()?;
        Ok(Arc::new(Windowed::new(&function, input, rest)?))
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        self.scalars.keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.aggregates.keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.windows.keys().cloned().collect()
    }
}

/// A relation as the planner sees it. Filters stay where they are: nothing is pushed into a scan.
#[derive(Debug)]
struct Relation {
    schema: SchemaRef,
    plan: Option<LogicalPlan>,
}

impl TableSource for Relation {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn get_logical_plan(&self) -> Option<std::borrow::Cow<'_, LogicalPlan>> {
        self.plan.as_ref().map(std::borrow::Cow::Borrowed)
    }
}

/// The columns with text as text, as functions are looked up for it.
fn plain(schema: &Schema) -> SchemaRef {
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(_, values) => Field::new(field.name(), values.as_ref().clone(), true),
        other => Field::new(field.name(), other.clone(), true),
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// The schema (in PostgreSQL's sense) of all relations.
const SCHEMA: &str = "public";
/// The database.
const CATALOG: &str = "weir";
/// A name that stands for a SELECT may stand in another's twice, and so on: that grows fast, and planning goes as deep as they are nested.
const EXPANDED_MAX: usize = 6;
