//! Facts from the record: what was reached is looked up step by step, by ids, paths and numbers, so that a question reads the files
//! that can hold its answer and not the whole record.
//!
//! Limits: see the constants at the end. What is beyond is left out, and said in a notice.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::{Result, ScalarValue};
use datafusion::execution::session_state::SessionState;
use datafusion::functions_aggregate::expr_fn::{bool_or, first_value, last_value, min};
use datafusion::logical_expr::expr::NullTreatment;
use datafusion::logical_expr::{Expr, ExprFunctionExt as _, LogicalPlan, LogicalPlanBuilder, Operator, binary_expr, col, lit};
use datafusion::physical_plan::collect;

use super::cells::Cells;
use super::facts::{End, Facts, File, Id, NEAR_NS, Process, Side, Tuple};
use super::walk::{Backward, Edge, Forward, Kind};
use crate::tables::{self, Slot};

/// Looks facts up in one snapshot of the record.
pub(super) struct Lookup {
    state: SessionState,
    slot: Arc<Slot>,
    pub(super) facts: Facts,
    loaded: BTreeSet<Id>,
    did: BTreeSet<Id>,
    paths: BTreeSet<Id>,
    /// Nothing before it is looked at.
    pub(super) floor: i64,
}

impl Lookup {
    pub(super) fn new(state: SessionState, slot: &Arc<Slot>, floor: i64) -> Self {
        let (facts, slot) = (Facts::default(), Arc::clone(slot));
        Self { state, slot, facts, loaded: BTreeSet::new(), did: BTreeSet::new(), paths: BTreeSet::new(), floor }
    }

    /// Walks to all effects.
    pub(super) async fn effects(&mut self, walk: &mut Forward) -> Result<()> {
        for _ in 0..STEPS_MAX {
            let fresh: BTreeSet<Id> = walk.fresh.difference(&self.loaded).cloned().collect();
            self.load_effects(&fresh).await?;
            if walk.fresh.is_empty() {
                return Ok(());
            }
            if walk.reached.len() > ROWS_MAX {
                self.slot.notice(format!(
                    "cut off: more than {ROWS_MAX} processes are reached; ask for a later time or another entity"
                ));
                return Ok(());
            }
            walk.step(&self.facts);
        }
        if !walk.fresh.is_empty() {
            self.slot.notice(format!("cut off: paths are longer than {STEPS_MAX} hops"));
        }
        Ok(())
    }

    /// Walks to the first causes.
    pub(super) async fn causes(&mut self, walk: &mut Backward) -> Result<()> {
        for _ in 0..STEPS_MAX {
            let ids: BTreeSet<Id> = walk.fresh.iter().map(|(id, _)| Arc::clone(id)).collect();
            self.load_causes(&ids).await?;
            if walk.fresh.is_empty() {
                break;
            }
            if walk.edges.len() > ROWS_MAX {
                self.slot.notice(format!("cut off: more than {ROWS_MAX} hops lead to it"));
                break;
            }
            walk.step(&self.facts);
        }
        if !walk.fresh.is_empty() {
            self.slot.notice(format!("cut off: paths are longer than {STEPS_MAX} hops"));
        }
        if walk.crowded {
            self.slot.notice("cut off: of a process with many open connections only the latest callers are told".into());
        }
        Ok(())
    }

    async fn load_effects(&mut self, ids: &BTreeSet<Id>) -> Result<()> {
        self.loaded.extend(ids.iter().cloned());
        for ids in chunks(ids) {
            self.load_deeds(&ids).await?;
            let children = self.members(among("parent_process_id", &ids)).await?;
            let mut known: BTreeSet<Id> = children.into_iter().map(|edge| edge.to).collect();
            known.extend(ids.iter().cloned());
            self.load_processes(&known).await?;
            let written = ids.iter().filter_map(|id| self.facts.written.get(id)).flat_map(|files| files.keys());
            let paths: BTreeSet<Id> =
                written.map(|file| Arc::clone(&file.path)).filter(|path| !self.paths.contains(path)).collect();
            self.paths.extend(paths.iter().cloned());
            for paths in chunks(&paths) {
                let at = among("path", &paths).or(among("exe", &paths));
                self.load(col("kind").eq(lit("exec")).and(at)).await?;
            }
            self.load_other_ends(&ids, Side::Client).await?;
        }
        Ok(())
    }

    async fn load_causes(&mut self, ids: &BTreeSet<Id>) -> Result<()> {
        let ids: BTreeSet<Id> = ids.iter().filter(|id| self.loaded.insert(Arc::clone(id))).cloned().collect();
        for ids in chunks(&ids) {
            self.load_processes(&ids).await?;
            // Forks are told by the parent.
            let makers = ids.iter().filter_map(|id| self.facts.processes.get(id)?.maker.clone());
            let told: BTreeSet<Id> = makers.chain(ids.iter().cloned()).collect();
            self.load_deeds(&told).await?;
            let ran = ids.iter().filter_map(|id| self.facts.ran.get(id)).flatten();
            let paths: BTreeSet<Id> =
                ran.map(|(_, file)| Arc::clone(&file.path)).filter(|path| !self.paths.contains(path)).collect();
            self.paths.extend(paths.iter().cloned());
            for paths in chunks(&paths) {
                self.load(writing().and(among("path", &paths).or(among("path_to", &paths)))).await?;
            }
            self.load_other_ends(&ids, Side::Server).await?;
        }
        Ok(())
    }

    /// What processes did that may have effects or causes.
    async fn load_deeds(&mut self, ids: &BTreeSet<Id>) -> Result<()> {
        let ids: BTreeSet<Id> = ids.iter().filter(|id| self.did.insert(Arc::clone(id))).cloned().collect();
        let kinds = ["fork", "exec", "connect", "accept", "close"].map(lit).to_vec();
        for ids in chunks(&ids) {
            self.load(among("process_id", &ids).and(col("kind").in_list(kinds.clone(), false).or(writing()))).await?;
        }
        Ok(())
    }

    /// The other ends of what some processes opened or accepted: by sequence numbers, and by ports for ends without.
    async fn load_other_ends(&mut self, ids: &BTreeSet<Id>, side: Side) -> Result<()> {
        let ends: Vec<_> = ids.iter().filter_map(|id| self.facts.ends.get(id)).flatten().filter(|end| end.side == side).collect();
        let clients: BTreeSet<i64> = ends.iter().filter_map(|end| end.isns).map(|(client, _)| i64::from(client)).collect();
        let ports: BTreeSet<i64> = ends.iter().filter_map(|end| end.tuple.as_ref()).map(|tuple| tuple.src.1).collect();
        let near = i64::try_from(NEAR_NS).unwrap_or(i64::MAX);
        let from = ends.iter().map(|end| end.time.saturating_sub(near)).min().unwrap_or(0);
        let to = ends.iter().map(|end| end.time.saturating_add(near)).max().unwrap_or(0);
        let (kind, number) = if side == Side::Client { ("accept", "isn_peer") } else { ("connect", "isn_local") };
        let within = col("kind").eq(lit(kind)).and(col("time").gt_eq(time(from))).and(col("time").lt_eq(time(to)));
        let of = |column: &str, numbers: &[i64]| col(column).in_list(numbers.iter().map(|number| lit(*number)).collect(), false);
        let (clients, ports): (Vec<_>, Vec<_>) = (clients.into_iter().collect(), ports.into_iter().collect());
        for clients in clients.chunks(NAMES_MAX) {
            self.load(within.clone().and(of(number, clients))).await?;
        }
        for ports in ports.chunks(NAMES_MAX) {
            self.load(within.clone().and(col("isn_local").is_null().or(col("isn_peer").is_null())).and(of("src_port", ports)))
                .await?;
        }
        // An end without numbers may be one of an end with them.
        let loose: BTreeSet<i64> = self.loose_ports(ids, side);
        for ports in loose.into_iter().collect::<Vec<_>>().chunks(NAMES_MAX) {
            self.load(within.clone().and(of("src_port", ports))).await?;
        }
        Ok(())
    }

    fn loose_ports(&self, ids: &BTreeSet<Id>, side: Side) -> BTreeSet<i64> {
        let ends = ids.iter().filter_map(|id| self.facts.ends.get(id)).flatten().filter(|end| end.side == side);
        ends.filter(|end| end.isns.is_none()).filter_map(|end| end.tuple.as_ref()).map(|tuple| tuple.src.1).collect()
    }

    /// Takes up events.
    async fn load(&mut self, which: Expr) -> Result<()> {
        let plan = self.events()?.filter(which.and(col("time").gt_eq(time(self.floor))))?.project(DEEDS.map(col))?;
        let plan = plan.sort([col("time").sort(true, false), col("event_id").sort(true, false)])?.limit(0, Some(FACTS_MAX))?;
        let batches = self.run(plan.build()?).await?;
        if batches.iter().map(RecordBatch::num_rows).sum::<usize>() >= FACTS_MAX {
            self.slot.notice(format!("cut off: one step has more than {FACTS_MAX} events; the first of them are followed"));
        }
        for batch in &batches {
            let cells = Cells::of(batch);
            (0..batch.num_rows()).for_each(|row| absorb(&mut self.facts, &cells, row));
        }
        Ok(())
    }

    /// What some processes are.
    async fn load_processes(&mut self, ids: &BTreeSet<Id>) -> Result<()> {
        let unknown: BTreeSet<Id> = ids.iter().filter(|id| !self.facts.processes.contains_key(*id)).cloned().collect();
        let order = || ["time", "event_id"].map(|column| col(column).sort(true, false)).to_vec();
        let of = |value: Expr, column: &str| {
            let known = value.order_by(order()).null_treatment(NullTreatment::IgnoreNulls).build();
            known.map(|known| known.alias(column))
        };
        let latest = |column: &str| of(last_value(col(column), vec![]), column);
        let result = col("result").is_null().or(col("result").eq(lit(0_i64)));
        for ids in chunks(&unknown) {
            let told = [
                min(col("time")).alias("first"),
                of(first_value(col("parent_process_id"), vec![]), "parent_process_id")?,
                bool_or(col("kind").eq(lit("exec")).and(result.clone())).alias("executed"),
                latest("region")?,
                latest("container_id")?,
                latest("exe")?,
                latest("cmdline")?,
                of(first_value(col("parent_exe"), vec![]), "parent_exe")?,
                of(first_value(col("parent_cmdline"), vec![]), "parent_cmdline")?,
            ];
            let plan = self.events()?.filter(among("process_id", &ids))?;
            let plan = plan.aggregate([col("host"), col("process_id"), col("pid")], told)?;
            for batch in self.run(plan.build()?).await? {
                let cells = Cells::of(&batch);
                for row in 0..batch.num_rows() {
                    let (Some(id), Some(host)) = (cells.text("process_id", row), cells.text("host", row)) else { continue };
                    self.facts.process(Process {
                        id,
                        host,
                        pid: cells.int("pid", row).unwrap_or(0),
                        maker: cells.text("parent_process_id", row),
                        first: cells.int("first", row).unwrap_or(0),
                        executed: cells.truth("executed", row),
                        region: cells.text("region", row),
                        container_id: cells.text("container_id", row),
                        exe: cells.text("exe", row),
                        cmdline: cells.text("cmdline", row),
                        parent_exe: cells.text("parent_exe", row),
                        parent_cmdline: cells.text("parent_cmdline", row),
                    });
                }
            }
        }
        Ok(())
    }

    /// The processes of some events, each at its first event among them.
    pub(super) async fn members(&self, which: Expr) -> Result<Vec<Edge>> {
        let plan = self.events()?.filter(which.and(col("process_id").is_not_null()).and(col("time").gt_eq(time(self.floor))))?;
        let plan = plan.aggregate([col("process_id")], [min(col("time")).alias("first")])?;
        let plan = plan.sort([col("first").sort(true, false), col("process_id").sort(true, false)])?;
        let batches = self.run(plan.limit(0, Some(ROWS_MAX))?.build()?).await?;
        if batches.iter().map(RecordBatch::num_rows).sum::<usize>() >= ROWS_MAX {
            self.slot.notice(format!("cut off: of more than {ROWS_MAX} processes the first are followed"));
        }
        let mut members = Vec::new();
        for batch in &batches {
            let cells = Cells::of(batch);
            let rows = (0..batch.num_rows()).filter_map(|row| cells.text("process_id", row).zip(cells.int("first", row)));
            members.extend(rows.map(|(id, at)| Edge::origin(&id, at)));
        }
        Ok(members)
    }

    /// Where a walk from an entity begins: a process, the processes of a container, or those of a host.
    pub(super) async fn entity(&mut self, entity: &Id, since: i64) -> Result<Vec<Edge>> {
        let is = |column: &str| col(column).eq(lit(&**entity));
        let later = || col("time").gt_eq(time(since));
        let ids = BTreeSet::from([Arc::clone(entity)]);
        self.load_processes(&ids).await?;
        if let Some(process) = self.facts.processes.get(entity) {
            return Ok(vec![Edge::origin(entity, process.first.max(since))]);
        }
        let children = self.members(is("parent_process_id").and(later())).await?;
        if let Some(first) = children.iter().map(|edge| edge.at).min() {
            return Ok(vec![Edge::origin(entity, first.min(since).max(self.floor))]);
        }
        for (column, kind) in [("container_id", Kind::Container), ("host", Kind::Host)] {
            let members = self.members(is(column).and(later())).await?;
            if !members.is_empty() {
                let member = |edge| Edge { kind, from: Some(Arc::clone(entity)), ..edge };
                return Ok(members.into_iter().map(member).collect());
            }
        }
        Ok(vec![])
    }

    /// The processes of some events, each at each of its times.
    pub(super) async fn processes_of(&self, events: &BTreeSet<Id>) -> Result<Vec<(Id, Id, i64)>> {
        let mut found = Vec::new();
        for events in chunks(events) {
            let plan = self.events()?.filter(among("event_id", &events).and(col("process_id").is_not_null()))?;
            let plan = plan.project(["event_id", "process_id", "time"].map(col))?;
            for batch in self.run(plan.build()?).await? {
                let cells = Cells::of(&batch);
                let row = |row| Some((cells.text("event_id", row)?, cells.text("process_id", row)?, cells.int("time", row)?));
                found.extend((0..batch.num_rows()).filter_map(row));
            }
        }
        Ok(found)
    }

    fn events(&self) -> Result<LogicalPlanBuilder> {
        LogicalPlanBuilder::scan("events", tables::recorded_events(&self.slot)?, None)
    }

    async fn run(&self, plan: LogicalPlan) -> Result<Vec<RecordBatch>> {
        let plan = self.state.optimize(&plan)?;
        let physical = self.state.query_planner().create_physical_plan(&plan, &self.state).await?;
        collect(physical, self.state.task_ctx()).await
    }
}

/// Takes up one event.
fn absorb(facts: &mut Facts, cells: &Cells<'_>, row: usize) {
    let (text, int) = (|column: &str| cells.text(column, row), |column: &str| cells.int(column, row));
    let (Some(at), Some(kind), Some(event_id)) = (int("time"), text("kind"), text("event_id")) else { return };
    let (Some(tenant), Some(host), Some(boot_id)) = (text("tenant"), text("host"), text("boot_id")) else { return };
    if &*kind == "close" {
        if let Some(socket) = int("socket_id") {
            facts.close((tenant, host, boot_id), socket, at);
        }
        return;
    }
    let Some(process) = text("process_id") else { return };
    let result = int("result").unwrap_or(0);
    let file = |path| File { tenant: Arc::clone(&tenant), host: Arc::clone(&host), container_id: text("container_id"), path };
    match &*kind {
        "fork" if result >= 0 => {
            if let Some(pid) = int("target_pid") {
                facts.fork(process, pid, at);
            }
        }
        "exec" if result == 0 => {
            let paths: BTreeSet<Id> = [text("path"), text("exe")].into_iter().flatten().collect();
            paths.into_iter().for_each(|path| facts.run(&process, file(path), at));
        }
        "rename" | "link" if result == 0 => {
            if let Some(path) = text("path_to") {
                facts.write(&process, file(path), at);
            }
        }
        "open" | "write" | "truncate" if result >= 0 => {
            if let Some(path) = text("path") {
                facts.write(&process, file(path), at);
            }
        }
        "connect" | "accept" if result == 0 => {
            let side = match text("direction").as_deref() {
                Some("out") => Side::Client,
                Some("in") => Side::Server,
                _ if &*kind == "connect" => Side::Client,
                _ => Side::Server,
            };
            let number = |column| int(column).map(|number| number as u32);
            let isns = number("isn_local").zip(number("isn_peer"));
            let isns = isns.map(|(own, peer)| if side == Side::Client { (own, peer) } else { (peer, own) });
            let udp = text("proto").as_deref() == Some("udp");
            let (src, dst) = (text("src_ip").zip(int("src_port")), text("dst_ip").zip(int("dst_port")));
            let tuple = src.zip(dst).map(|(src, dst)| Tuple { udp, src, dst });
            let socket = int("socket_id");
            facts.end(End { time: at, event_id, tenant, host, boot_id, process, side, socket, isns, tuple });
        }
        _ => {}
    }
}

/// Events after which a file holds other content, or another name for it is there.
fn writing() -> Expr {
    let written = binary_expr(col("flags"), Operator::BitwiseAnd, lit(WRITING)).not_eq(lit(0_i64));
    let changed = col("kind").in_list(["write", "truncate", "rename", "link"].map(lit).to_vec(), false);
    changed.or(col("kind").eq(lit("open")).and(written))
}

pub(super) fn among(column: &str, ids: &BTreeSet<Id>) -> Expr {
    col(column).in_list(ids.iter().map(|id| lit(&**id)).collect(), false)
}

fn time(at: i64) -> Expr {
    lit(ScalarValue::TimestampNanosecond(Some(at), Some("UTC".into())))
}

fn chunks(ids: &BTreeSet<Id>) -> Vec<BTreeSet<Id>> {
    let all: Vec<&Id> = ids.iter().collect();
    all.chunks(NAMES_MAX).map(|part| part.iter().map(|id| Arc::clone(id)).collect()).collect()
}

const DEEDS: [&str; 23] = [
    "time",
    "event_id",
    "kind",
    "tenant",
    "host",
    "boot_id",
    "container_id",
    "process_id",
    "exe",
    "path",
    "path_to",
    "flags",
    "result",
    "target_pid",
    "src_ip",
    "src_port",
    "dst_ip",
    "dst_port",
    "proto",
    "direction",
    "socket_id",
    "isn_local",
    "isn_peer",
];
/// `O_WRONLY`, `O_RDWR` and `O_CREAT`.
const WRITING: i64 = 0o1 | 0o2 | 0o100;
/// Hops of a path. Shells in shells over many hosts stay far below.
pub(super) const STEPS_MAX: usize = 64;
/// Processes that are followed: more is nothing to look through.
pub(super) const ROWS_MAX: usize = 10_000;
/// Events of one lookup that are kept in memory, about 1 KiB each.
const FACTS_MAX: usize = 200_000;
/// Names in one lookup: longer lists are compared with every row and prune nothing.
const NAMES_MAX: usize = 1_000;
