//! What retention has dropped from the record, as rows of `losses`: one per relation, tenant, region, kind and reason.
//!
//! Nobody's agent lost these rows, so `agent`, `host` and the seqs are null. `time` is when the latest of them went, by the
//! archivist's clock. Unlike all other losses they are no function of the tick: they are as of the newest manifest.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampNanosecondArray, new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use weir_archive::{Catalog, Dropped, Why};

/// The relation they are rows of.
pub(crate) const LOSSES_NAME: &str = "losses";

/// The rows, in the columns `columns` (by place) of the relation.
pub(crate) fn rows(catalog: &Catalog, schema: &SchemaRef, columns: &[usize]) -> Result<RecordBatch, ArrowError> {
    let dropped: Vec<&Dropped> = catalog.dropped.values().filter(|dropped| reason(dropped.why).is_some()).collect();
    let texts = |text: fn(&Dropped) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(dropped.iter().map(|dropped| text(dropped))))
    };
    let column = |place: &usize| {
        let field = schema.field(*place);
        let values: ArrayRef = match field.name().as_str() {
            "time" => Arc::new(TimestampNanosecondArray::from_iter_values(dropped.iter().map(|dropped| ns(dropped.dropped_ms)))),
            "tenant" => texts(|dropped| &dropped.partition.tenant),
            "region" => texts(|dropped| &dropped.partition.region),
            "class" => texts(|dropped| &dropped.partition.kind),
            "lost" => Arc::new(Int64Array::from_iter_values(dropped.iter().map(|dropped| dropped.rows as i64))),
            "reason" => texts(|dropped| reason(dropped.why).unwrap_or_default()),
            _ => return Ok(new_null_array(field.data_type(), dropped.len())),
        };
        cast(&values, field.data_type())
    };
    let arrays = columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(dropped.len()));
    RecordBatch::try_new_with_options(Arc::new(schema.project(columns)?), arrays, &options)
}

/// The word in `reason`; nothing for what is only elsewhere now.
fn reason(why: Why) -> Option<&'static str> {
    match why {
        Why::Compacted => None,
        Why::Age => Some("retention_age"),
        Why::Bytes => Some("retention_bytes"),
    }
}

fn ns(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000)
}
