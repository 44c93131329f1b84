//! Holds: rows that retention must keep, by host, container and time.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, col, lit, utils::conjunction};
use datafusion::prelude::{SessionConfig, SessionContext};
use weir_schema::Column;

use crate::catalog::{Archive, Catalog, Change};
use crate::error::Error;
use crate::manifest::{FileEntry, Hold};
use crate::merge::own_error;
use crate::table::RecordSnapshot;

/// Sets a hold, or changes the one of that name. From the manifest of the returned catalog on no row of it is dropped.
pub async fn hold(archive: &Archive, hold: Hold, now_ms: u64) -> Result<Arc<Catalog>, Error> {
    check(&hold)?;
    let catalog = archive.refresh().await?;
    if !catalog.holds.contains_key(&hold.name) && catalog.holds.len() >= HOLDS_MAX {
        return Err(Error::Refused(format!("there are {HOLDS_MAX} holds: release one of them")));
    }
    archive.commit(&Change { holds_set: vec![hold], ..Change::default() }, now_ms).await
}

/// Releases a hold: retention may drop its rows again.
pub async fn release(archive: &Archive, name: &str, now_ms: u64) -> Result<Arc<Catalog>, Error> {
    let catalog = archive.refresh().await?;
    if !catalog.holds.contains_key(name) {
        let known: Vec<&str> = catalog.holds.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Error::Refused(format!("there is no hold {name:?}: there are {known}")));
    }
    archive.commit(&Change { holds_released: vec![name.to_owned()], ..Change::default() }, now_ms).await
}

fn check(hold: &Hold) -> Result<(), Error> {
    let Hold { name, host, container_id, from, to, note } = hold;
    let refused = |why: &str| Err(Error::Refused(format!("hold {name:?}: {why}")));
    if name.trim().is_empty() {
        return refused("it needs a name");
    }
    if host.is_none() && container_id.is_none() && from.is_none() && to.is_none() {
        return refused("it would keep everything: name a host, a container or a time");
    }
    if from.zip(*to).is_some_and(|(from, to)| from >= to) {
        return refused("it ends before it begins");
    }
    if [host, container_id].into_iter().flatten().any(String::is_empty) {
        return refused("its host or container is empty: leave it out or name it");
    }
    if [Some(name), host.as_ref(), container_id.as_ref(), note.as_ref()]
        .into_iter()
        .flatten()
        .any(|text| text.len() > TEXT_BYTES_MAX)
    {
        return refused("one of its texts is longer than 4,096 bytes");
    }
    Ok(())
}

/// True when the file has a row of the hold. Looks into the file only when its manifest entry does not tell.
pub(crate) async fn holds_row(archive: &Archive, file: &Arc<FileEntry>, hold: &Hold) -> Result<bool, Error> {
    let Hold { host, container_id, from, to, .. } = hold;
    let within = |time: i64| from.is_none_or(|from| from <= time) && to.is_none_or(|to| time < to);
    if from.is_some_and(|from| file.time_max < from) || to.is_some_and(|to| to <= file.time_min) {
        return Ok(false);
    }
    if host.is_none() && container_id.is_none() && (within(file.time_min) || within(file.time_max)) {
        return Ok(true);
    }
    let text = |column: Column, value: &Option<String>| value.as_ref().map(|value| col(column.name()).eq(lit(value.clone())));
    let time = |value: &Option<i64>| value.map(|time| lit(ScalarValue::TimestampNanosecond(Some(time), Some("UTC".into()))));
    let conditions = [
        text(Column::Host, host),
        text(Column::ContainerId, container_id),
        time(from).map(|from| col(Column::Time.name()).gt_eq(from)),
        time(to).map(|to| col(Column::Time.name()).lt(to)),
    ];
    any_row(archive, file, conjunction(conditions.into_iter().flatten())).await
}

async fn any_row(archive: &Archive, file: &Arc<FileEntry>, filter: Option<Expr>) -> Result<bool, Error> {
    let Some(filter) = filter else { return Ok(file.rows > 0) };
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let table = RecordSnapshot::alone(archive, file).table(file.table);
    let query = async {
        let rows = context.read_table(Arc::new(table))?.filter(filter)?;
        rows.select_columns(&[Column::Time.name()])?.limit(0, Some(1))?.collect().await
    };
    let found = query.await.map_err(|why| own_error("looking for held rows", why))?;
    Ok(found.iter().any(|batch| batch.num_rows() > 0))
}

/// Holds of an archive: every manifest that drops something is checked against each.
const HOLDS_MAX: usize = 1_024;
const TEXT_BYTES_MAX: usize = 4_096;
