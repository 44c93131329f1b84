//! Rows of many small sections as one batch of plain columns: for what is written to files and read by SQL.
//!
//! `rows.rs` makes one batch a frame without copying a text, which pays where frames are large or few columns are wanted. A host that does
//! little sends frames of a few rows; all columns of each by itself would cost more than its rows. Here a column is filled
//! over all sections before the next one is begun.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Int64Builder, RecordBatch, RecordBatchOptions, StringBuilder, TimestampNanosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use weir_schema::{Column, ColumnType, EventIds, Home, ProcessId, Section, Seq};

use super::intake::Taken;
use super::table::push_hex;

/// Some rows of a section: its own, or those of these numbers, in this order.
pub type Part<'a> = (&'a Taken, Option<&'a [u32]>);

/// All rows of the parts, in their order. `schema` has these columns with text as `Utf8`.
///
/// # Panics
///
/// When a row number is beyond its section.
pub fn gather(parts: &[Part<'_>], columns: &[Column], schema: &SchemaRef) -> RecordBatch {
    let parts: Vec<Rows<'_>> = parts.iter().map(Rows::new).collect();
    let rows = parts.iter().map(Rows::len).sum();
    let arrays = columns.iter().map(|column| fill(*column, &parts, rows)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).expect("every column has every row")
}

struct Rows<'a> {
    taken: &'a Taken,
    section: &'a Section,
    picked: Option<&'a [u32]>,
}

impl<'a> Rows<'a> {
    fn new((taken, rows): &Part<'a>) -> Self {
        Self { taken, section: taken.section(), picked: rows.or(taken.rows.as_deref()) }
    }

    fn len(&self) -> usize {
        self.picked.map_or_else(|| self.section.rows(), <[u32]>::len)
    }

    fn each(&self, mut each: impl FnMut(usize)) {
        match self.picked {
            None => (0..self.section.rows()).for_each(each),
            Some(rows) => rows.iter().for_each(|row| each(*row as usize)),
        }
    }
}

fn fill(column: Column, parts: &[Rows<'_>], rows: usize) -> ArrayRef {
    match (column.home(), column.ty()) {
        (_, ColumnType::Text) => texts(column, parts, rows),
        (_, ColumnType::Time) => times(column, parts, rows),
        (_, ColumnType::Bool) => bools(column, parts, rows),
        (_, ColumnType::Int) => ints(column, parts, rows),
    }
}

fn times(column: Column, parts: &[Rows<'_>], rows: usize) -> ArrayRef {
    let mut times = TimestampNanosecondBuilder::with_capacity(rows).with_timezone("UTC");
    for part in parts {
        if column == Column::Received {
            let received = i64::try_from(part.taken.received_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            part.each(|_| times.append_value(received));
        } else {
            part.each(|row| times.append_value(part.section.times[row]));
        }
    }
    Arc::new(times.finish())
}

fn bools(column: Column, parts: &[Rows<'_>], rows: usize) -> ArrayRef {
    let mut bools = BooleanBuilder::with_capacity(rows);
    for part in parts {
        let value = match column {
            Column::Simulated => part.taken.batch.host.simulated,
            Column::Late => part.taken.late,
            // What a cluster received is never imported.
            _ => false,
        };
        bools.append_n(part.len(), value);
    }
    Arc::new(bools.finish())
}

fn ints(column: Column, parts: &[Rows<'_>], rows: usize) -> ArrayRef {
    let mut ints = Int64Builder::with_capacity(rows);
    for part in parts {
        if column == Column::Tick {
            let tick = i64::try_from(part.taken.tick).unwrap_or(i64::MAX);
            part.each(|_| ints.append_value(tick));
            continue;
        }
        match part.taken.batch.ints(part.section, column) {
            None => ints.append_nulls(part.len()),
            Some(known) => part.each(|row| ints.append_option(known.get(row))),
        }
    }
    Arc::new(ints.finish())
}

fn texts(column: Column, parts: &[Rows<'_>], rows: usize) -> ArrayRef {
    let mut texts = StringBuilder::with_capacity(rows, rows * 8);
    let mut hex = String::with_capacity(32);
    for part in parts {
        match (column.home(), column) {
            (Home::Host | Home::Key, Column::EventId) => event_ids(part, &mut hex, &mut texts),
            (Home::Host | Home::Key, Column::ProcessId | Column::ParentProcessId) => {
                process_ids(column, part, &mut hex, &mut texts);
            }
            (Home::Host | Home::Key, _) => {
                let boot;
                let text = if column == Column::BootId {
                    boot = part.taken.batch.host.boot_id.to_string();
                    Some(boot.as_str())
                } else {
                    stamped(column, part)
                };
                part.each(|_| texts.append_option(text));
            }
            _ => match part.taken.batch.codes(part.section, column) {
                None => texts.append_nulls(part.len()),
                Some(codes) => part.each(|row| {
                    let code = codes[row];
                    texts.append_option((code != 0).then(|| part.taken.batch.strings.text(code)));
                }),
            },
        }
    }
    Arc::new(texts.finish())
}

/// A text that is the same for a whole section.
fn stamped<'a>(column: Column, part: &'a Rows<'_>) -> Option<&'a str> {
    let (identity, host) = (&part.taken.identity, &part.taken.batch.host);
    match column {
        Column::Tenant => Some(identity.tenant.as_str()),
        Column::Region => Some(identity.region.as_str()),
        Column::Agent => Some(identity.agent.as_str()),
        Column::Host => Some(&host.host),
        Column::Cloud => host.cloud.as_deref(),
        Column::Zone => host.zone.as_deref(),
        Column::Kind => Some(part.section.kind.as_str()),
        _ => unreachable!("{} stands in a section or a table", column.name()),
    }
}

fn event_ids(part: &Rows<'_>, hex: &mut String, texts: &mut StringBuilder) {
    let header = &part.taken.batch.header;
    let mut ids = EventIds::new(&part.taken.identity, header.epoch, header.lane);
    part.each(|row| {
        hex.clear();
        push_hex(hex, &ids.id(Seq(part.section.first_seq.0 + row as u64)).0);
        texts.append_value(&*hex);
    });
}

fn process_ids(column: Column, part: &Rows<'_>, hex: &mut String, texts: &mut StringBuilder) {
    if part.section.process_rows.is_empty() {
        return texts.append_nulls(part.len());
    }
    let (batch, tenant) = (&part.taken.batch, part.taken.identity.tenant.as_str());
    let ids: Vec<Option<ProcessId>> =
        if column == Column::ProcessId { batch.process_ids(tenant) } else { batch.parent_ids(tenant) };
    part.each(|row| {
        let process = (part.section.process_rows[row] as usize).checked_sub(1);
        match process.and_then(|process| ids[process]) {
            None => texts.append_null(),
            Some(id) => {
                hex.clear();
                push_hex(hex, &id.0);
                texts.append_value(&*hex);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use arrow::compute::{cast, concat_batches};
    use arrow::datatypes::{DataType, Field, Schema};
    use weir_schema::{
        AgentIdentity, BatchBuilder, Container, Decoder, EVENTS, Epoch, Event, Fields, Host, Kind, Lane, Name, Process,
    };

    use super::super::rows::schema_of;
    use super::super::tail::Tail;
    use super::*;

    fn frame(host: &str, first: u64) -> Vec<Taken> {
        let name = |text: &str| Name::new(text).unwrap();
        let identity = Arc::new(AgentIdentity { tenant: name("acme"), region: name("eu"), agent: name(host) });
        let about = Arc::new(Host { host: host.into(), cloud: Some("aws".into()), ..Host::default() });
        let process = Arc::new(Process { pid: 7, start_ns: 5, exe: Some("/bin/sh".into()), ppid: Some(1), ..Process::default() });
        let container = Arc::new(Container { container_id: Some("c1".into()), ..Container::default() });
        let mut builder = BatchBuilder::new(about, Epoch(3), Lane::Security, Seq(first));
        for (at, kind) in [Kind::Exec, Kind::Exit, Kind::Exec, Kind::HostStart].into_iter().enumerate() {
            let fields = Fields { exit_code: (at == 1).then_some(-1), path: (at == 2).then(|| "/x".into()), ..Fields::default() };
            let process = (at < 2).then(|| process.clone());
            let container = (at == 0).then(|| container.clone());
            builder.push(&Event { time: 100 - at as i64, kind, process, container, fields }).unwrap();
        }
        let batch = Arc::new(builder.finish().unwrap().decode(&mut Decoder::new()).unwrap());
        let taken = |section| Taken {
            tail: Tail::Events,
            tick: 9,
            late: section == 1,
            identity: identity.clone(),
            received_ms: 4,
            batch: batch.clone(),
            section,
            rows: None,
        };
        (0..batch.sections.len()).map(taken).collect()
    }

    #[test]
    fn the_rows_are_those_of_each_section_by_itself() {
        let taken: Vec<Taken> = [frame("a", 0), frame("b", 40)].concat();
        let inside = schema_of(EVENTS);
        let plain = |field: &Arc<Field>| match field.data_type() {
            DataType::Dictionary(..) => Field::new(field.name(), DataType::Utf8, true),
            _ => field.as_ref().clone(),
        };
        let schema = Arc::new(Schema::new(inside.fields().iter().map(plain).collect::<Vec<_>>()));
        let backwards = [1, 0];
        let order = |taken: &Taken| (taken.len() == 2).then_some(&backwards[..]);
        let parts: Vec<Part<'_>> = taken.iter().map(|taken| (taken, order(taken))).collect();
        let singly = parts.iter().map(|(taken, rows)| {
            let batch = taken.record_batch(EVENTS, &inside, *rows);
            let columns = batch.columns().iter().zip(schema.fields());
            let columns = columns.map(|(column, field)| cast(column, field.data_type()).unwrap()).collect();
            RecordBatch::try_new(schema.clone(), columns).unwrap()
        });
        let singly: Vec<RecordBatch> = singly.collect();
        let together = gather(&parts, EVENTS, &schema);
        assert_eq!(together, concat_batches(&schema, &singly).unwrap());
        assert_eq!(together.column(0).null_count(), 0);
        assert!(together.num_rows() == 8 && parts.iter().any(|(_, rows)| rows.is_some()));
        let nothing = Arc::new(Schema::empty());
        assert_eq!(gather(&parts, &[], &nothing).num_rows(), 8);
    }
}
