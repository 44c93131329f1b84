//! From a question to rows, over one snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::session_state::SessionState;

use super::alert::{Alert, alerts, with_entities};
use super::facts::{Facts, Id};
use super::function::{Question, Since};
use super::incidents;
use super::lookup::{Lookup, ROWS_MAX};
use super::walk::{Backward, Edge, Forward, Kind, leaving};
use crate::error::{self, SqlError};
use crate::tables::Slot;

/// The rows of an answer.
pub(super) async fn answer(question: &Question, state: SessionState, slot: &Arc<Slot>) -> Result<RecordBatch> {
    let tick_ns = i64::try_from(slot.tick().saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    let floor = tick_ns.saturating_sub(AGE_MAX_NS);
    let mut lookup = Lookup::new(state, slot, floor);
    let told = slot.alerts();
    let mut alerts = alerts(told.as_deref().unwrap_or_default());
    let rows = match question {
        Question::Incidents => {
            return incidents::answer(alerts, &mut lookup, slot).await;
        }
        Question::BlastRadius { entity, since } => {
            let since = since.map(|since| match since {
                Since::Time(time) => time,
                Since::Ago(nanoseconds) => tick_ns.saturating_sub(nanoseconds),
            });
            if since.is_some_and(|since| since < floor) {
                slot.notice(format!("cut off: nothing is followed that is older than {AGE_MAX_DAYS} days"));
            }
            alerts.retain(|alert| alert.id == *entity);
            let since = since.unwrap_or(floor).max(floor);
            blast_radius(entity, since, &mut alerts, &mut lookup, slot).await?
        }
        Question::AttackPath { alert } => {
            alerts.retain(|known| known.id == *alert);
            if alerts.is_empty() {
                let message = format!("there is no alert \"{alert}\" at this tick, or it is withdrawn");
                let hint = "select alert_id from alerts; alerts are shown for a day after their last hit";
                return Err(DataFusionError::External(Box::new(SqlError::new(error::BAD_VALUE, message).with_hint(hint))));
            }
            attack_path(&mut alerts, &mut lookup).await?
        }
    };
    encode(rows, &lookup.facts)
}

async fn blast_radius(
    entity: &Id,
    since: i64,
    alerts: &mut [Alert],
    lookup: &mut Lookup,
    slot: &Slot,
) -> Result<Vec<(i64, Edge)>> {
    with_entities(alerts, lookup).await?;
    let hits = alerts.iter().flat_map(|alert| &alert.entities).map(|(id, at)| Edge::origin(id, *at.max(&since)));
    let mut seeds: Vec<Edge> = hits.collect();
    if seeds.is_empty() {
        seeds = lookup.entity(entity, since).await?;
    }
    let Some(first) = seeds.iter().map(|edge| edge.at).min() else {
        slot.notice(format!("nothing is known of \"{entity}\" as an alert_id, process_id, container_id or host since then"));
        return Ok(vec![]);
    };
    let group = seeds.iter().any(|edge| edge.from.is_some()).then(|| (0, Edge::origin(entity, first)));
    let mut walk = Forward::new(seeds);
    lookup.effects(&mut walk).await?;
    let below = i64::from(group.is_some()) - 1;
    let hop = |id: &Id| walk.path_to(id).len() as i64 + below;
    let mut rows: Vec<(i64, Edge)> = walk.reached.iter().map(|(id, (edge, _))| (hop(id), edge.clone())).collect();
    rows.extend(leaving(&lookup.facts, &walk).into_iter().map(|edge| (edge.from.as_ref().map_or(0, hop) + 1, edge)));
    rows.extend(group);
    rows.sort_unstable_by(|(hop, edge), (other_hop, other)| (edge.at, hop, edge).cmp(&(other.at, other_hop, other)));
    if rows.len() > ROWS_MAX {
        slot.notice(format!("cut off: of {} rows the first {ROWS_MAX} are shown", rows.len()));
        rows.truncate(ROWS_MAX);
    }
    Ok(rows)
}

async fn attack_path(alerts: &mut [Alert], lookup: &mut Lookup) -> Result<Vec<(i64, Edge)>> {
    with_entities(alerts, lookup).await?;
    let effects: BTreeSet<(Id, i64)> =
        alerts.iter().flat_map(|alert| &alert.entities).map(|(id, at)| (Arc::clone(id), *at)).collect();
    let mut walk = Backward::new(effects.clone());
    lookup.causes(&mut walk).await?;
    let explained: BTreeSet<&Id> = walk.edges.keys().map(|edge| &edge.to).collect();
    let first = walk.edges.iter().filter_map(|(edge, distance)| {
        let from = edge.from.as_ref().filter(|from| !explained.contains(from))?;
        Some((-(*distance as i64) - 1, Edge::origin(from, edge.left)))
    });
    let mut rows: Vec<(i64, Edge)> = first.collect();
    // One row for each that has no cause, the nearest.
    rows.sort_by(|(hop, edge), (other_hop, other)| (&edge.to, -hop, edge.at).cmp(&(&other.to, -other_hop, other.at)));
    rows.dedup_by(|(_, edge), (_, kept)| edge.to == kept.to);
    rows.extend(walk.edges.iter().map(|(edge, distance)| (-(*distance as i64), edge.clone())));
    let hit = |(id, at): &(Id, i64)| (0, Edge { kind: Kind::Alert, from: Some(Arc::clone(id)), ..Edge::origin(id, *at) });
    rows.extend(effects.iter().map(hit));
    rows.sort_unstable_by(|(hop, edge), (other_hop, other)| (edge.at, hop, edge).cmp(&(other.at, other_hop, other)));
    Ok(rows)
}

/// The columns of `blast_radius` and `attack_path`.
pub(super) fn hops_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    Arc::new(Schema::new(vec![
        Field::new("hop", DataType::Int64, true),
        Field::new("at", time_type(), true),
        text("kind"),
        text("from_entity"),
        text("entity"),
        text("host"),
        text("region"),
        text("container_id"),
        text("process_id"),
        text("exe"),
        text("cmdline"),
        text("path"),
        text("connection_id"),
    ]))
}

pub(super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

pub(super) fn times(times: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC"))
}

fn encode(rows: Vec<(i64, Edge)>, facts: &Facts) -> Result<RecordBatch> {
    let known: Vec<_> = rows.iter().map(|(_, edge)| facts.known(&edge.to)).collect();
    let text =
        |value: &dyn Fn(usize) -> Option<Id>| -> ArrayRef { Arc::new((0..rows.len()).map(value).collect::<StringArray>()) };
    let process = |value: &dyn Fn(&super::facts::Process) -> Option<Id>| text(&|row| known[row].as_ref().and_then(value));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(hop, _)| *hop))),
        times(rows.iter().map(|(_, edge)| edge.at)),
        text(&|row| Some(rows[row].1.kind.as_str().into())),
        text(&|row| rows[row].1.from.clone()),
        text(&|row| Some(Arc::clone(&rows[row].1.to))),
        process(&|process| Some(Arc::clone(&process.host))),
        process(&|process| process.region.clone()),
        process(&|process| process.container_id.clone()),
        process(&|process| Some(Arc::clone(&process.id))),
        process(&|process| process.exe.clone()),
        process(&|process| process.cmdline.clone()),
        text(&|row| rows[row].1.path.clone()),
        text(&|row| rows[row].1.connection_id.clone()),
    ];
    Ok(RecordBatch::try_new(hops_schema(), columns)?)
}

/// How far back anything is followed: longer than an intruder usually goes unseen, and short enough that boots and leases of
/// addresses of another year are no causes.
const AGE_MAX_DAYS: i64 = 90;
const AGE_MAX_NS: i64 = AGE_MAX_DAYS * 86_400_000_000_000;
