//! What can be peeked: names, columns and types, in the order users see them.
//!
//! Outside, text is plain UTF-8; inside the engine it is dictionary-encoded. A standing relation is a maintained answer; the
//! others are tails of what arrived.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use weir_schema::{Column, ColumnType, EVENTS, SAMPLES};

/// One relation that can be peeked.
#[derive(Debug, Clone)]
pub struct RelationInfo {
    /// Its SQL name.
    pub name: Cow<'static, str>,
    /// Its columns.
    pub schema: SchemaRef,
    /// True when the answer is maintained; false for a tail.
    pub standing: bool,
    /// The SQL that defines it, for what is defined over other relations.
    pub sql: Option<Cow<'static, str>>,
}

/// Every relation, in the order of the manual.
pub fn relations() -> &'static [RelationInfo] {
    &RELATIONS
}

/// The relation of this name.
pub fn relation(name: &str) -> Option<&'static RelationInfo> {
    RELATIONS.iter().find(|relation| relation.name == name)
}

static RELATIONS: LazyLock<Vec<RelationInfo>> = LazyLock::new(|| {
    let info = |name: &'static str, schema, standing, sql: Option<&'static str>| {
        let (name, sql) = (name.into(), sql.map(Into::into));
        RelationInfo { name, schema, standing, sql }
    };
    let tail = |name, columns: &[Column]| info(name, wire_schema(columns), false, None);
    let base = |name, columns| info(name, schema(columns), true, None);
    let view = |name, columns, sql| info(name, schema(columns), true, Some(sql));
    vec![
        tail("events", EVENTS),
        tail("samples", SAMPLES),
        base("connections", CONNECTIONS),
        view("region_connections", REGION_CONNECTIONS, crate::views::region_connections::SQL),
        view("service_map", SERVICE_MAP, crate::views::service_map::SQL),
        view("new_edges", NEW_EDGES, crate::views::new_edges::SQL),
        view("top_talkers", TOP_TALKERS, crate::views::top_talkers::SQL),
        view("utilization", UTILIZATION, crate::views::utilization::SQL),
        base("hosts", HOSTS),
        base("agents", AGENTS),
        base("losses", LOSSES),
        base("alerts", ALERTS),
    ]
});

/// A column's type in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Int,
    Float,
    Time,
    Bool,
}

impl Type {
    /// The type outside the engine.
    pub(crate) fn outside(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Time => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            Self::Bool => DataType::Boolean,
        }
    }
}

fn schema(columns: &[(&str, Type)]) -> SchemaRef {
    let fields = columns.iter().map(|(name, ty)| Field::new(*name, ty.outside(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn wire_schema(columns: &[Column]) -> SchemaRef {
    let fields = columns.iter().map(|column| {
        let ty = match column.ty() {
            ColumnType::Text => Type::Text,
            ColumnType::Int => Type::Int,
            ColumnType::Time => Type::Time,
            ColumnType::Bool => Type::Bool,
        };
        Field::new(column.name(), ty.outside(), true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// One row per real connection, both ends joined, counted once. `state`: open, closed, failed. `seen`: both, src, dst.
pub(crate) const CONNECTIONS: &[(&str, Type)] = &[
    ("connection_id", Type::Text),
    ("state", Type::Text),
    ("opened", Type::Time),
    ("closed", Type::Time),
    ("proto", Type::Text),
    ("src_ip", Type::Text),
    ("src_port", Type::Int),
    ("dst_ip", Type::Text),
    ("dst_port", Type::Int),
    ("src_region", Type::Text),
    ("src_cloud", Type::Text),
    ("src_zone", Type::Text),
    ("src_host", Type::Text),
    ("src_app", Type::Text),
    ("src_container_id", Type::Text),
    ("src_process_id", Type::Text),
    ("src_exe", Type::Text),
    ("dst_region", Type::Text),
    ("dst_cloud", Type::Text),
    ("dst_zone", Type::Text),
    ("dst_host", Type::Text),
    ("dst_app", Type::Text),
    ("dst_container_id", Type::Text),
    ("dst_process_id", Type::Text),
    ("dst_exe", Type::Text),
    ("bytes_sent", Type::Int),
    ("bytes_received", Type::Int),
    ("result", Type::Int),
    ("seen", Type::Text),
];

/// Who talks to whom across regions. Counts and bytes since the cluster's first tick.
pub(crate) const REGION_CONNECTIONS: &[(&str, Type)] = &[
    ("src_region", Type::Text),
    ("dst_region", Type::Text),
    ("open", Type::Int),
    ("total", Type::Int),
    ("failed", Type::Int),
    ("bytes_sent", Type::Int),
    ("bytes_received", Type::Int),
];

/// Which application calls which, on what port.
pub(crate) const SERVICE_MAP: &[(&str, Type)] = &[
    ("src_app", Type::Text),
    ("dst_app", Type::Text),
    ("dst_port", Type::Int),
    ("open", Type::Int),
    ("total", Type::Int),
    ("failed", Type::Int),
    ("bytes_sent", Type::Int),
    ("bytes_received", Type::Int),
    ("last_seen", Type::Time),
];

/// Which application first called which.
pub(crate) const NEW_EDGES: &[(&str, Type)] = &[
    ("src_region", Type::Text),
    ("src_app", Type::Text),
    ("dst_region", Type::Text),
    ("dst_app", Type::Text),
    ("dst_port", Type::Int),
    ("first_seen", Type::Time),
    ("total", Type::Int),
];

/// Who moved the most bytes over the last minute.
pub(crate) const TOP_TALKERS: &[(&str, Type)] = &[
    ("app", Type::Text),
    ("container_id", Type::Text),
    ("host", Type::Text),
    ("region", Type::Text),
    ("bytes", Type::Int),
    ("rank", Type::Int),
];

/// What every application uses, over the last ten seconds.
pub(crate) const UTILIZATION: &[(&str, Type)] = &[
    ("app", Type::Text),
    ("region", Type::Text),
    ("cpu_ms_per_s", Type::Float),
    ("cpu_p95", Type::Float),
    ("mem_bytes", Type::Int),
    ("mem_max_bytes", Type::Int),
    ("net_bytes_per_s", Type::Float),
    ("containers", Type::Int),
];

/// Hosts, live and ended.
pub(crate) const HOSTS: &[(&str, Type)] = &[
    ("tenant", Type::Text),
    ("cloud", Type::Text),
    ("region", Type::Text),
    ("zone", Type::Text),
    ("host", Type::Text),
    ("boot_id", Type::Text),
    ("addresses", Type::Text),
    ("simulated", Type::Bool),
    ("first_seen", Type::Time),
    ("last_seen", Type::Time),
    ("ended", Type::Time),
];

/// Agents: what they attach, when they were last heard, what they lost.
pub(crate) const AGENTS: &[(&str, Type)] = &[
    ("tenant", Type::Text),
    ("region", Type::Text),
    ("agent", Type::Text),
    ("host", Type::Text),
    ("version", Type::Text),
    ("hooks", Type::Text),
    ("transport", Type::Text),
    ("simulated", Type::Bool),
    ("first_seen", Type::Time),
    ("last_heard", Type::Time),
    ("events", Type::Int),
    ("lost_events", Type::Int),
    ("ended", Type::Time),
    ("metadata", Type::Text),
];

/// Who lost how many of what, where, when and why. `lost` is null when nobody knows how many.
pub(crate) const LOSSES: &[(&str, Type)] = &[
    ("time", Type::Time),
    ("tenant", Type::Text),
    ("region", Type::Text),
    ("host", Type::Text),
    ("agent", Type::Text),
    ("class", Type::Text),
    ("first_seq", Type::Int),
    ("last_seq", Type::Int),
    ("lost", Type::Int),
    ("reason", Type::Text),
];

/// What the rules say: one row an alert. `state`: open, updated, withdrawn. Lists are JSON.
pub(crate) const ALERTS: &[(&str, Type)] = &[
    ("alert_id", Type::Text),
    ("revision", Type::Int),
    ("state", Type::Text),
    ("rule", Type::Text),
    ("rule_id", Type::Text),
    ("severity", Type::Text),
    ("tactics", Type::Text),
    ("techniques", Type::Text),
    ("time", Type::Time),
    ("first_seen", Type::Time),
    ("last_seen", Type::Time),
    ("tenant", Type::Text),
    ("cloud", Type::Text),
    ("region", Type::Text),
    ("host", Type::Text),
    ("app", Type::Text),
    ("container_id", Type::Text),
    ("process_id", Type::Text),
    ("summary", Type::Text),
    ("evidence", Type::Text),
    ("stages", Type::Text),
    ("hosts", Type::Text),
    ("regions", Type::Text),
    ("closed_through", Type::Time),
    ("lost_events", Type::Int),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found() {
        for (place, info) in relations().iter().enumerate() {
            assert_eq!(relations().iter().position(|other| other.name == info.name), Some(place));
            let fields = info.schema.fields();
            for (column, field) in fields.iter().enumerate() {
                assert_eq!(fields.iter().position(|other| other.name() == field.name()), Some(column), "{}", info.name);
            }
        }
        assert!(relation("connections").is_some_and(|info| info.standing));
        assert!(relation("events").is_some_and(|info| !info.standing));
        assert!(relation("nothing").is_none());
    }
}
