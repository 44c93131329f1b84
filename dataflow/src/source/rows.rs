//! Rows of a decoded frame as Arrow columns: only the columns that are asked for, text as codes into the frame's own strings.
//!
//! No text is copied or hashed per row. What is the same for a whole frame (tenant, host …) is a dictionary of one value.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, UInt32Array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampNanosecondType, UInt32Type};
use weir_schema::{AgentIdentity, Batch, Column, ColumnType, EventIds, Home, Kind, ProcessId, Section, Seq};

use super::table::push_hex;

/// The types of these columns inside the engine.
pub fn schema_of(columns: &[Column]) -> SchemaRef {
    let fields = columns.iter().map(|column| {
        let ty = match column.ty() {
            ColumnType::Text => DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8)),
            ColumnType::Int => DataType::Int64,
            ColumnType::Time => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            ColumnType::Bool => DataType::Boolean,
        };
        Field::new(column.name(), ty, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Which rows of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Every one.
    All,
    /// These, ascending.
    Some(Vec<u32>),
}

impl Pick {
    pub(crate) fn rows(&self, section: &Section) -> usize {
        match self {
            Self::All => section.rows(),
            Self::Some(rows) => rows.len(),
        }
    }

    fn each(&self, section: &Section, mut each: impl FnMut(usize)) {
        match self {
            Self::All => (0..section.rows()).for_each(each),
            Self::Some(rows) => rows.iter().for_each(|row| each(*row as usize)),
        }
    }
}

/// Rows of a frame: sections by place, each with a pick.
pub(crate) type Picks = Vec<(usize, Pick)>;

/// What the server and the chain say of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp<'a> {
    pub(crate) identity: &'a AgentIdentity,
    pub(crate) received_ms: u64,
    pub(crate) tick: u64,
    pub(crate) late: bool,
}

/// A frame whose rows are wanted.
pub(crate) struct Rows<'a> {
    batch: &'a Batch,
    stamp: Stamp<'a>,
    /// The frame's strings, as Arrow has them.
    strings: Option<ArrayRef>,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(batch: &'a Batch, stamp: Stamp<'a>) -> Self {
        Self { batch, stamp, strings: None }
    }

    /// The picked rows.
    pub(crate) fn record_batch(&mut self, picks: &Picks, schema: &SchemaRef, columns: &[Column]) -> RecordBatch {
        let picked: Vec<(&Section, &Pick)> = picks.iter().map(|(at, pick)| (&self.batch.sections[*at], pick)).collect();
        let rows = picked.iter().map(|(section, pick)| pick.rows(section)).sum();
        let arrays = columns.iter().map(|column| self.column(*column, &picked, rows)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).expect("every column has every row")
    }

    fn column(&mut self, column: Column, picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
        match (column.home(), column.ty()) {
            (Home::Event, ColumnType::Time) => self.times(picked, rows),
            (Home::Host | Home::Key, _) => self.stamped(column, picked, rows),
            (_, ColumnType::Text) => self.texts(column, picked, rows),
            _ => self.ints(column, picked, rows),
        }
    }

    fn times(&self, picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
        let mut times = Vec::with_capacity(rows);
        for (section, pick) in picked {
            match pick {
                Pick::All => times.extend_from_slice(&section.times),
                Pick::Some(_) => pick.each(section, |row| times.push(section.times[row])),
            }
        }
        time_array(times, None)
    }

    fn ints(&self, column: Column, picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
        let mut values = Vec::with_capacity(rows);
        let mut known: Option<Vec<bool>> = None;
        for (section, pick) in picked {
            let Some(ints) = self.batch.ints(section, column) else {
                known.get_or_insert_with(|| vec![true; values.len()]).resize(values.len() + pick.rows(section), false);
                values.resize(values.len() + pick.rows(section), 0);
                continue;
            };
            match (pick, ints.valid.is_none()) {
                (Pick::All, true) => values.extend_from_slice(&ints.values),
                _ => {
                    if ints.valid.is_some() {
                        known.get_or_insert_with(|| vec![true; values.len()]);
                    }
                    pick.each(section, |row| {
                        let value = ints.get(row);
                        values.push(value.unwrap_or(0));
                        if let Some(known) = &mut known {
                            known.push(value.is_some());
                        }
                    });
                }
            }
            if let Some(known) = &mut known {
                known.resize(values.len(), true);
            }
        }
        let nulls = known.map(|known| NullBuffer::new(BooleanBuffer::from(known)));
        Arc::new(Int64Array::new(values.into(), nulls))
    }

    fn texts(&mut self, column: Column, picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
        let mut keys: Vec<u32> = Vec::with_capacity(rows);
        for (section, pick) in picked {
            match (self.batch.codes(section, column), pick) {
                (None, _) => keys.resize(keys.len() + pick.rows(section), 0),
                (Some(codes), Pick::All) => keys.extend_from_slice(&codes),
                (Some(codes), Pick::Some(_)) => pick.each(section, |row| keys.push(codes[row])),
            }
        }
        let nulls = zero_is_null(&keys);
        dictionary(keys, nulls, self.strings())
    }

    fn strings(&mut self) -> ArrayRef {
        let batch = self.batch;
        let strings = self.strings.get_or_insert_with(|| {
            let offsets = OffsetBuffer::new(ScalarBuffer::from(batch.strings.offsets().to_vec()));
            Arc::new(StringArray::new(offsets, batch.strings.bytes().as_bytes().to_vec().into(), None))
        });
        Arc::clone(strings)
    }

    /// What stands in no section.
    fn stamped(&self, column: Column, picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
        let (host, stamp) = (&self.batch.host, &self.stamp);
        match column {
            Column::Tenant => constant(Some(stamp.identity.tenant.as_str()), rows),
            Column::Region => constant(Some(stamp.identity.region.as_str()), rows),
            Column::Agent => constant(Some(stamp.identity.agent.as_str()), rows),
            Column::Host => constant(Some(&host.host), rows),
            Column::Cloud => constant(host.cloud.as_deref(), rows),
            Column::Zone => constant(host.zone.as_deref(), rows),
            Column::BootId => constant(Some(&host.boot_id.to_string()), rows),
            Column::Simulated => Arc::new(BooleanArray::from(vec![host.simulated; rows])),
            Column::Late => Arc::new(BooleanArray::from(vec![stamp.late; rows])),
            Column::Tick => Arc::new(Int64Array::from(vec![i64::try_from(stamp.tick).unwrap_or(i64::MAX); rows])),
            // What a cluster received is never imported; whoever imports rows says so in their stead.
            Column::Imported => Arc::new(BooleanArray::from(vec![false; rows])),
            Column::Received => {
                let received = i64::try_from(stamp.received_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
                time_array(vec![received; rows], None)
            }
            Column::Kind => kinds(picked, rows),
            Column::EventId => self.event_ids(picked, rows),
            Column::ProcessId => self.entity_ids(&self.batch.process_ids(stamp.identity.tenant.as_str()), picked, rows),
            Column::ParentProcessId => self.entity_ids(&self.batch.parent_ids(stamp.identity.tenant.as_str()), picked, rows),
            _ => unreachable!("{} stands in a section or a table", column.name()),
        }
    }

    fn event_ids(&self, picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
        let header = &self.batch.header;
        let mut ids = EventIds::new(self.stamp.identity, header.epoch, header.lane);
        let mut text = String::with_capacity(32 * rows);
        for (section, pick) in picked {
            pick.each(section, |row| push_hex(&mut text, &ids.id(Seq(section.first_seq.0 + row as u64)).0));
        }
        hex_dictionary((0..rows as u32).collect(), None, text, rows)
    }

    /// The ids of the rows' processes, each text once.
    fn entity_ids(&self, ids: &[Option<ProcessId>], picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
        let mut keys: Vec<u32> = Vec::with_capacity(rows);
        for (section, pick) in picked {
            if section.process_rows.is_empty() {
                keys.resize(keys.len() + pick.rows(section), 0);
                continue;
            }
            pick.each(section, |row| {
                let process = section.process_rows[row];
                let known = (process as usize).checked_sub(1).is_some_and(|process| ids[process].is_some());
                keys.push(if known { process } else { 0 });
            });
        }
        let nulls = zero_is_null(&keys);
        let mut text = String::with_capacity(32 * (ids.len() + 1));
        push_hex(&mut text, &[0; 16]);
        ids.iter().for_each(|id| push_hex(&mut text, &id.map_or([0; 16], |id| id.0)));
        hex_dictionary(keys, nulls, text, ids.len() + 1)
    }
}

fn kinds(picked: &[(&Section, &Pick)], rows: usize) -> ArrayRef {
    static NAMES: LazyLock<ArrayRef> =
        LazyLock::new(|| Arc::new(StringArray::from_iter_values(Kind::ALL.iter().map(|kind| kind.as_str()))));
    let mut keys = Vec::with_capacity(rows);
    for (section, pick) in picked {
        let place = Kind::ALL.iter().position(|kind| *kind == section.kind).unwrap_or(0);
        keys.resize(keys.len() + pick.rows(section), place as u32);
    }
    dictionary(keys, None, Arc::clone(&NAMES))
}

fn zero_is_null(keys: &[u32]) -> Option<NullBuffer> {
    let any = keys.contains(&0);
    any.then(|| NullBuffer::new(BooleanBuffer::collect_bool(keys.len(), |row| keys[row] != 0)))
}

/// 16-byte ids, in hexadecimal end to end, as a dictionary.
fn hex_dictionary(keys: Vec<u32>, nulls: Option<NullBuffer>, text: String, values: usize) -> ArrayRef {
    let offsets = OffsetBuffer::from_repeated_length(32, values);
    dictionary(keys, nulls, Arc::new(StringArray::new(offsets, text.into_bytes().into(), None)))
}

fn constant(value: Option<&str>, rows: usize) -> ArrayRef {
    let values: StringArray = std::iter::once(Some(value.unwrap_or_default())).collect();
    let nulls = if value.is_none() { Some(NullBuffer::new_null(rows)) } else { None };
    dictionary(vec![0; rows], nulls, Arc::new(values))
}

fn dictionary(keys: Vec<u32>, nulls: Option<NullBuffer>, values: ArrayRef) -> ArrayRef {
    Arc::new(DictionaryArray::<UInt32Type>::new(UInt32Array::new(keys.into(), nulls), values))
}

fn time_array(times: Vec<i64>, nulls: Option<NullBuffer>) -> ArrayRef {
    Arc::new(arrow::array::PrimitiveArray::<TimestampNanosecondType>::new(times.into(), nulls).with_timezone("UTC"))
}
