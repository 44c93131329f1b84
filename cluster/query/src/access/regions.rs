//! What a role sees that is to see the rows of some regions only.
//!
//! Every scan of a relation that ships with a region column is put behind a filter, of connections by either end, wherever it stands in
//! the plan: in joins, in subqueries, inside a view that is a name for a SELECT. Every other relation is refused unless the config grants it
//! to the role by name: a view that the workers keep may hold anything under any column's name. What tools read of the catalog are names
//! and types, not rows.
//!
//! Above the filter stands a limit that no answer reaches. No condition of a query is moved below a limit, so none is ever evaluated
//! over a row that the role does not see: an error of a cast would tell its content.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan, lit};

use super::Role;
use crate::catalog;
use crate::error::{self, SqlError};
use crate::tables;

/// The same plan over what the role sees.
pub(crate) fn restricted(plan: LogicalPlan, role: &Role) -> Result<LogicalPlan> {
    if !role.is_restricted() {
        return Ok(plan);
    }
    let seen = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(scan) => seen(scan, role),
        // It counts rows before they are filtered.
        LogicalPlan::Analyze(_) => Err(refused(role, "EXPLAIN ANALYZE")),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(seen.data)
}

fn seen(scan: TableScan, role: &Role) -> Result<Transformed<LogicalPlan>> {
    let is_catalog = matches!(scan.table_name.schema(), Some(catalog::PG | catalog::INFORMATION));
    let name = scan.table_name.table();
    if is_catalog || role.relations.iter().any(|granted| granted == name) {
        return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
    }
    let columns: Vec<&str> = match tables::scanned(&scan).filter(|info| weir_dataflow::relation(&info.name).is_some()) {
        Some(info) => REGION_COLUMNS.into_iter().filter(|column| info.schema.field_with_name(column).is_ok()).collect(),
        None => Vec::new(),
    };
    let column = |name: &str| Expr::Column(Column::new(Some(scan.table_name.clone()), name));
    let regions: Vec<Expr> = role.regions.iter().map(|region| lit(region.as_str())).collect();
    let in_region = columns.into_iter().map(|name| column(name).in_list(regions.clone(), false));
    let Some(condition) = in_region.reduce(Expr::or) else { return Err(refused(role, &format!("relation \"{name}\""))) };
    let mut builder = LogicalPlanBuilder::scan(scan.table_name.clone(), Arc::clone(&scan.source), None)?
        .filter(condition)?
        .limit(0, Some(ROWS_MAX))?;
    for filter in scan.filters {
        builder = builder.filter(filter)?;
    }
    if scan.projection.is_some() {
        builder = builder.project(scan.projected_schema.columns().into_iter().map(Expr::Column))?;
    }
    if scan.fetch.is_some() {
        builder = builder.limit(0, scan.fetch)?;
    }
    Ok(Transformed::yes(builder.build()?))
}

fn refused(role: &Role, what: &str) -> DataFusionError {
    let message = format!("permission denied for {what}: role \"{}\" sees some regions only", role.name);
    let hint = "name it under `relations` of the role in [[sql.roles]], if the role may see it whole";
    DataFusionError::External(Box::new(SqlError::new(error::PRIVILEGE, message).with_hint(hint)))
}

/// Where a region stands in the relations that ship.
const REGION_COLUMNS: [&str; 3] = ["region", "src_region", "dst_region"];
/// As many as a plan can say.
const ROWS_MAX: usize = i64::MAX as usize;
