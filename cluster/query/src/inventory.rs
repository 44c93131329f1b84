//! The inventory's history: relations that only the record can answer, as SQL over what is recorded.
//!
//! Promises:
//! - What `SHOW CREATE VIEW` shows is what is executed. The answer at a tick is a function of the events with ticks up to it.
//! - Every recorded event counts, late and imported ones too: what is told later completes the past. `hosts` is the exception: at ticks
//!   that the workers hold they answer it, from what came in time, so here only that counts as well.
//! - An attribute is the word of the latest event that has one, by (time, event_id). The grouped columns name an entity: a condition
//!   on them reaches the files.
//!
//! A fork is an event of the parent that names the child by pid alone, so `started` of a process is its first exec.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::datasource::ViewTable;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::sql::parser::DFParser;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use weir_dataflow::RelationInfo;

use crate::causal::{ATTACK_PATH, BLAST_RADIUS, Causal, INCIDENTS};
use crate::error::{self, SqlError};

/// The definitions, planned.
#[derive(Debug)]
pub(crate) struct Inventory {
    views: Vec<RelationInfo>,
    plans: BTreeMap<&'static str, LogicalPlan>,
}

impl Inventory {
    /// Plans the definitions over the tables of a state.
    pub(crate) async fn plan(state: &SessionState) -> Result<Self, SqlError> {
        let mut inventory = Self { views: Vec::new(), plans: BTreeMap::new() };
        for (name, sql) in VIEWS.into_iter().chain([(HOSTS_NAME, HOSTS)]) {
            let plan = query_of(state, sql).await?;
            if name != HOSTS_NAME {
                let schema = Arc::clone(plan.schema().inner());
                inventory.views.push(RelationInfo { name: name.into(), schema, standing: false, sql: Some(sql.into()) });
            }
            inventory.plans.insert(name, plan);
        }
        let schema = Causal::incidents().schema();
        inventory.views.push(RelationInfo { name: INCIDENTS.into(), schema, standing: false, sql: None });
        Ok(inventory)
    }

    /// The views, in the order of the manual.
    pub(crate) fn views(&self) -> &[RelationInfo] {
        &self.views
    }

    /// What is executed for `processes`.
    pub(crate) fn processes(&self) -> &LogicalPlan {
        &self.plans["processes"]
    }

    /// What is executed for `hosts` at ticks that the workers do not hold.
    pub(crate) fn hosts(&self) -> &LogicalPlan {
        &self.plans[HOSTS_NAME]
    }

    /// The views as tables: planned into the queries that name them.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&str, Arc<dyn TableProvider>)> {
        self.views.iter().map(|view| {
            let table: Arc<dyn TableProvider> = match self.plans.get(view.name.as_ref()) {
                Some(plan) => Arc::new(ViewTable::new(plan.clone(), view.sql.as_deref().map(str::to_owned))),
                None => Arc::new(Causal::incidents()),
            };
            (view.name.as_ref(), table)
        })
    }
}

/// True of what only the record can answer.
pub(crate) fn needs_record(name: &str) -> bool {
    is_function(name) || name == INCIDENTS || names().any(|view| view == name)
}

/// True of the table functions.
pub(crate) fn is_function(name: &str) -> bool {
    [PROCESS_TREE, BLAST_RADIUS, ATTACK_PATH].contains(&name)
}

/// What is said of it where there is no record.
pub(crate) fn no_record(name: &str) -> SqlError {
    let message = format!("\"{name}\" is answered from the record, which this node does not keep (archive.enabled = false)");
    SqlError::new(error::UNKNOWN_RELATION, message).with_hint("set `archive.enabled` to true in the node's config")
}

/// The names of the views.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    VIEWS.into_iter().map(|(name, _)| name)
}

async fn query_of(state: &SessionState, sql: &str) -> Result<LogicalPlan, SqlError> {
    let parsed = DFParser::parse_sql_with_dialect(sql, &PostgreSqlDialect {})?.pop_front();
    let parsed = parsed.ok_or_else(|| SqlError::new(error::INTERNAL, "a definition is empty"))?;
    match state.statement_to_plan(parsed).await? {
        LogicalPlan::Ddl(DdlStatement::CreateView(view)) => Ok(Arc::unwrap_or_clone(view.input)),
        other => Err(SqlError::new(error::INTERNAL, format!("no definition of a view: {}", other.display()))),
    }
}

/// The table function over `processes`.
pub(crate) const PROCESS_TREE: &str = "process_tree";
/// The live relation that the record answers at old ticks.
pub(crate) const HOSTS_NAME: &str = "hosts";

const VIEWS: [(&str, &str); 3] = [("containers", CONTAINERS), ("processes", PROCESSES), ("apps", APPS)];

/// A container that was started again has not ended. What has no column of its own stands in the details of its start and of what
/// became known later; the latter says nothing of when the container lived. Other events' details are not looked into.
const CONTAINERS: &str = "\
CREATE VIEW containers AS
SELECT tenant,
       last_value(region ORDER BY time, event_id) IGNORE NULLS AS region,
       host,
       container_id,
       last_value(container_name ORDER BY time, event_id) IGNORE NULLS AS container_name,
       last_value(image ORDER BY time, event_id) IGNORE NULLS AS image,
       last_value(namespace ORDER BY time, event_id) IGNORE NULLS AS namespace,
       last_value(pod ORDER BY time, event_id) IGNORE NULLS AS pod,
       last_value(workload ORDER BY time, event_id) IGNORE NULLS AS workload,
       last_value(app ORDER BY time, event_id) IGNORE NULLS AS app,
       min(time) AS first_seen,
       coalesce(max(time) FILTER (WHERE kind <> 'container_update'), max(time)) AS last_seen,
       min(time) FILTER (WHERE kind = 'container_start') AS started,
       CASE WHEN max(time) FILTER (WHERE kind = 'container_start') > max(time) FILTER (WHERE kind = 'container_stop') THEN NULL
            ELSE max(time) FILTER (WHERE kind = 'container_stop') END AS ended,
       bool_or(simulated) AS simulated,
       last_value(CASE WHEN kind IN ('container_start', 'container_update') THEN json_extract_path_text(detail, 'image_digest') END
                  ORDER BY time, event_id) IGNORE NULLS AS image_digest,
       last_value(CASE WHEN kind IN ('container_start', 'container_update') THEN json_extract_path_text(detail, 'pod_uid') END
                  ORDER BY time, event_id) IGNORE NULLS AS pod_uid,
       last_value(CASE WHEN kind IN ('container_start', 'container_update') THEN json_extract_path_text(detail, 'workload_kind') END
                  ORDER BY time, event_id) IGNORE NULLS AS workload_kind,
       last_value(CASE WHEN kind IN ('container_start', 'container_update') THEN json_extract_path_text(detail, 'labels') END
                  ORDER BY time, event_id) IGNORE NULLS AS labels,
       last_value(CASE WHEN kind IN ('container_start', 'container_update') THEN json_extract_path_text(detail, 'mounts') END
                  ORDER BY time, event_id) IGNORE NULLS AS mounts,
       last_value(CASE WHEN kind IN ('container_start', 'container_update') THEN json_extract_path_text(detail, 'privileged') END
                  ORDER BY time, event_id) IGNORE NULLS = 'true' AS privileged
FROM events
WHERE container_id IS NOT NULL
GROUP BY tenant, host, container_id";

/// `signal` is also what a kill sends: only an exit's is how the process ended.
const PROCESSES: &str = "\
CREATE VIEW processes AS
SELECT tenant,
       last_value(region ORDER BY time, event_id) IGNORE NULLS AS region,
       host,
       boot_id,
       process_id,
       pid,
       last_value(parent_process_id ORDER BY time, event_id) IGNORE NULLS AS parent_process_id,
       last_value(container_id ORDER BY time, event_id) IGNORE NULLS AS container_id,
       last_value(app ORDER BY time, event_id) IGNORE NULLS AS app,
       last_value(exe ORDER BY time, event_id) IGNORE NULLS AS exe,
       last_value(comm ORDER BY time, event_id) IGNORE NULLS AS comm,
       last_value(args ORDER BY time, event_id) IGNORE NULLS AS args,
       last_value(cmdline ORDER BY time, event_id) IGNORE NULLS AS cmdline,
       last_value(cwd ORDER BY time, event_id) IGNORE NULLS AS cwd,
       last_value(uid ORDER BY time, event_id) IGNORE NULLS AS uid,
       last_value(user_name ORDER BY time, event_id) IGNORE NULLS AS user_name,
       last_value(login_uid ORDER BY time, event_id) IGNORE NULLS AS login_uid,
       min(time) AS first_seen,
       max(time) AS last_seen,
       min(time) FILTER (WHERE kind = 'exec' AND coalesce(result, 0) = 0) AS started,
       max(time) FILTER (WHERE kind = 'exit') AS ended,
       last_value(exit_code ORDER BY time, event_id) FILTER (WHERE kind = 'exit' AND exit_code IS NOT NULL) AS exit_code,
       last_value(signal ORDER BY time, event_id) FILTER (WHERE kind = 'exit' AND signal IS NOT NULL) AS signal,
       bool_or(simulated) AS simulated
FROM events
WHERE process_id IS NOT NULL
GROUP BY tenant, host, boot_id, process_id, pid";

/// First by process, so that only distinct ones are counted one by one.
const APPS: &str = "\
CREATE VIEW apps AS
SELECT tenant,
       app,
       min(first_seen) AS first_seen,
       max(last_seen) AS last_seen,
       count(DISTINCT host) AS hosts,
       count(DISTINCT container_id) AS containers,
       count(DISTINCT process_id) AS processes,
       sum(events) AS events
FROM (SELECT tenant, app, host, container_id, process_id,
             min(time) AS first_seen, max(time) AS last_seen, count(*) AS events
      FROM events
      WHERE app IS NOT NULL
      GROUP BY tenant, app, host, container_id, process_id)
GROUP BY tenant, app";

/// As the workers keep it: see `facts.rs` in the source of the dataflow. Samples are signs of a host too. Only the few rows that tell
/// addresses are read with their event_id.
const HOSTS: &str = "\
CREATE VIEW hosts AS
SELECT tenant,
       last_value(cloud ORDER BY last, boot, region, cloud NULLS FIRST, zone NULLS FIRST, simulated) AS cloud,
       last_value(region ORDER BY last, boot, region, cloud NULLS FIRST, zone NULLS FIRST, simulated) AS region,
       last_value(zone ORDER BY last, boot, region, cloud NULLS FIRST, zone NULLS FIRST, simulated) AS zone,
       host,
       replace(last_value(boot ORDER BY last, boot, region, cloud NULLS FIRST, zone NULLS FIRST, simulated), '-', '') AS boot_id,
       last_value(addresses ORDER BY told_at, told_by) FILTER (WHERE addresses IS NOT NULL) AS addresses,
       last_value(cast(simulated AS bigint)
                  ORDER BY last, boot, region, cloud NULLS FIRST, zone NULLS FIRST, simulated) = 1 AS simulated,
       min(first) AS first_seen,
       date_trunc('second', max(last)) AS last_seen,
       CASE WHEN max(stopped) >= max(last) THEN max(stopped) END AS ended
FROM (SELECT tenant, cloud, region, zone, host, boot_id AS boot, simulated, min(time) AS first, max(time) AS last,
             max(time) FILTER (WHERE kind = 'host_stop') AS stopped,
             NULL AS addresses, NULL AS told_at, NULL AS told_by
      FROM events
      WHERE NOT late AND NOT imported
      GROUP BY tenant, cloud, region, zone, host, boot_id, simulated
      UNION ALL
      SELECT tenant, cloud, region, zone, host, boot_id AS boot, simulated, min(time) AS first, max(time) AS last,
             NULL AS stopped, NULL AS addresses, NULL AS told_at, NULL AS told_by
      FROM samples
      WHERE NOT late AND NOT imported
      GROUP BY tenant, cloud, region, zone, host, boot_id, simulated
      UNION ALL
      SELECT tenant, cloud, region, zone, host, boot_id AS boot, simulated, time AS first, time AS last,
             NULL AS stopped, addresses, time AS told_at, event_id AS told_by
      FROM events
      WHERE NOT late AND NOT imported AND kind = 'host_start' AND addresses IS NOT NULL)
GROUP BY tenant, host";
