//! `incidents`: alerts of which one is an effect of the other, over any number of hops and hosts, are one incident.
//!
//! An alert is an effect of another if a process of its evidence is reached, from a process of the other's evidence at its hit, by the
//! time that it hit itself; or if both are about one process. So every alert is in one incident, and two that share no more than a
//! common ancestor are two. The id is that of the first alert.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Result;
use serde_json::{Value, json};

use super::alert::{Alert, with_entities};
use super::answer::{time_type, times};
use super::facts::{Facts, Id};
use super::lookup::Lookup;
use super::walk::{Edge, Forward, Kind};
use crate::tables::Slot;

/// The columns.
pub(super) fn incidents_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let (time, int) = (|name: &str| Field::new(name, time_type(), true), |name: &str| Field::new(name, DataType::Int64, true));
    Arc::new(Schema::new(vec![
        text("incident_id"),
        text("tenant"),
        text("state"),
        text("severity"),
        time("opened"),
        time("last_seen"),
        int("alerts"),
        text("rules"),
        text("hosts"),
        text("regions"),
        text("containers"),
        text("hops"),
    ]))
}

/// Alerts of one path, and the steps between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Incident {
    /// By first hit.
    pub(super) alerts: Vec<Alert>,
    pub(super) edges: BTreeSet<Edge>,
}

/// The rows.
pub(super) async fn answer(mut alerts: Vec<Alert>, lookup: &mut Lookup, slot: &Slot) -> Result<RecordBatch> {
    alerts.sort_by(|a, b| (b.last, &b.id).cmp(&(a.last, &a.id)));
    if alerts.len() > ALERTS_MAX {
        slot.notice(format!("cut off: of {} alerts the latest {ALERTS_MAX} are grouped", alerts.len()));
        alerts.truncate(ALERTS_MAX);
    }
    with_entities(&mut alerts, lookup).await?;
    // What is reached from any of them is looked up once; then each walks on its own.
    let mut all = Forward::new(seeds(&alerts));
    lookup.effects(&mut all).await?;
    encode(&group(alerts, &lookup.facts), &lookup.facts)
}

fn seeds(alerts: &[Alert]) -> impl Iterator<Item = Edge> {
    alerts.iter().flat_map(|alert| &alert.entities).map(|(id, at)| Edge::origin(id, *at))
}

/// The incidents among some alerts, the latest first.
pub(super) fn group(mut alerts: Vec<Alert>, facts: &Facts) -> Vec<Incident> {
    alerts.sort_by(|a, b| (a.first, &a.id).cmp(&(b.first, &b.id)));
    let mut about: BTreeMap<&Id, Vec<usize>> = BTreeMap::new();
    for (place, alert) in alerts.iter().enumerate() {
        alert.entities.keys().for_each(|id| about.entry(id).or_default().push(place));
    }
    let mut leads: Vec<usize> = (0..alerts.len()).collect();
    let mut steps: Vec<(usize, Edge)> = Vec::new();
    for (place, alert) in alerts.iter().enumerate() {
        let mut walk = Forward::new(seeds(std::slice::from_ref(alert)));
        walk.finish(facts, super::lookup::STEPS_MAX);
        for (id, others) in &about {
            let Some((edge, _)) = walk.reached.get(*id) else { continue };
            let same = alert.entities.contains_key(*id);
            for other in others.iter().filter(|other| **other != place) {
                if same || edge.at <= alerts[*other].entities[*id] {
                    join(&mut leads, place, *other);
                    steps.extend(walk.path_to(id).into_iter().skip(1).map(|edge| (place, edge.clone())));
                }
            }
        }
    }
    let mut incidents: BTreeMap<usize, Incident> = BTreeMap::new();
    let ends: Vec<usize> = (0..alerts.len()).map(|place| lead(&leads, place)).collect();
    let new = || Incident { alerts: Vec::new(), edges: BTreeSet::new() };
    for (alert, end) in alerts.into_iter().zip(&ends) {
        incidents.entry(*end).or_insert_with(new).alerts.push(alert);
    }
    for (place, edge) in steps {
        incidents.entry(ends[place]).or_insert_with(new).edges.insert(edge);
    }
    let mut incidents: Vec<Incident> = incidents.into_values().collect();
    incidents.sort_by(|a, b| (b.alerts[0].first, &b.alerts[0].id).cmp(&(a.alerts[0].first, &a.alerts[0].id)));
    incidents
}

fn lead(leads: &[usize], mut place: usize) -> usize {
    while leads[place] != place {
        place = leads[place];
    }
    place
}

fn join(leads: &mut [usize], one: usize, other: usize) {
    let (one, other) = (lead(leads, one), lead(leads, other));
    leads[one.max(other)] = one.min(other);
}

impl Incident {
    fn severity(&self) -> &Id {
        let rank = |alert: &&Alert| SEVERITIES.iter().position(|name| *name == &*alert.severity).unwrap_or(SEVERITIES.len());
        &self.alerts.iter().min_by_key(rank).expect("an incident has an alert").severity
    }

    /// Steps and alerts in time order.
    fn hops(&self, facts: &Facts) -> Value {
        let hop = |edge: &Edge| {
            let known = facts.known(&edge.to).unwrap_or_default();
            let hop = json!({"at": text_of(edge.at), "kind": edge.kind.as_str(), "from": edge.from.as_deref(), "entity": &*edge.to,
                "host": &*known.host, "region": known.region.as_deref(), "container_id": known.container_id.as_deref(),
                "exe": known.exe.as_deref(), "cmdline": known.cmdline.as_deref(), "path": edge.path.as_deref(),
                "connection_id": edge.connection_id.as_deref()});
            (edge.at, edge.kind, hop)
        };
        let hit = |alert: &Alert| {
            let entities: Vec<&str> = alert.entities.keys().map(|id| &**id).collect();
            let hop = json!({"at": text_of(alert.first), "kind": Kind::Alert.as_str(), "alert_id": &*alert.id, "rule": &*alert.rule,
                "severity": &*alert.severity, "entities": entities, "host": &*alert.host, "region": &*alert.region,
                "container_id": alert.container_id.as_deref()});
            (alert.first, Kind::Alert, hop)
        };
        let mut hops: Vec<_> = self.edges.iter().map(hop).chain(self.alerts.iter().map(hit)).collect();
        hops.sort_by_key(|(at, kind, _)| (*at, *kind));
        hops.into_iter().take(HOPS_MAX).map(|(.., hop)| hop).collect()
    }

    /// Values of alerts and steps, each once, as a JSON list.
    fn each(&self, of_alert: impl Fn(&Alert) -> Option<Id>, of_edge: impl Fn(&Edge) -> Option<Id>) -> String {
        let values = self.alerts.iter().filter_map(of_alert).chain(self.edges.iter().filter_map(of_edge));
        let values: BTreeSet<Id> = values.collect();
        Value::from_iter(values.iter().map(|value| &**value)).to_string()
    }
}

fn text_of(at: i64) -> String {
    arrow::temporal_conversions::timestamp_ns_to_datetime(at).map_or_else(String::new, |time| time.and_utc().to_rfc3339())
}

fn encode(incidents: &[Incident], facts: &Facts) -> Result<RecordBatch> {
    let text = |value: &dyn Fn(&Incident) -> String| -> ArrayRef {
        Arc::new(incidents.iter().map(value).map(Some).collect::<StringArray>())
    };
    let state = |incident: &Incident| incident.alerts.len() > 1 || incident.alerts[0].updated;
    let columns: Vec<ArrayRef> = vec![
        text(&|incident| incident.alerts[0].id.to_string()),
        text(&|incident| incident.alerts[0].tenant.to_string()),
        text(&|incident| if state(incident) { "updated" } else { "open" }.into()),
        text(&|incident| incident.severity().to_string()),
        times(incidents.iter().map(|incident| incident.alerts[0].first)),
        times(incidents.iter().map(|incident| incident.alerts.iter().map(|alert| alert.last).max().unwrap_or(0))),
        Arc::new(Int64Array::from_iter_values(incidents.iter().map(|incident| incident.alerts.len() as i64))),
        text(&|incident| incident.each(|alert| Some(Arc::clone(&alert.rule)), |_| None)),
        text(&|incident| incident.each(|alert| Some(Arc::clone(&alert.host)), |edge| Some(facts.known(&edge.to)?.host))),
        text(&|incident| incident.each(|alert| Some(Arc::clone(&alert.region)), |edge| facts.known(&edge.to)?.region)),
        text(&|incident| incident.each(|alert| alert.container_id.clone(), |edge| facts.known(&edge.to)?.container_id)),
        text(&|incident| incident.hops(facts).to_string()),
    ];
    Ok(RecordBatch::try_new(incidents_schema(), columns)?)
}

/// Highest first.
const SEVERITIES: [&str; 8] = ["emergency", "alert", "critical", "error", "warning", "notice", "informational", "debug"];
/// Alerts that are grouped: each one walks.
const ALERTS_MAX: usize = 1_000;
/// Hops that are listed of one incident.
const HOPS_MAX: usize = 1_000;
