//! Random hosts and events for the tests of this crate.
#![allow(dead_code, clippy::unwrap_used)] // each test binary uses its own part

use std::sync::Arc;

use proptest::prelude::*;
use weir_schema::{
    Batch, BatchBuilder, BootId, Cell, Column, ColumnType, Container, Decoder, Epoch, Event, Frame, Host, Kind, Lane,
};
use weir_schema::{Process, Seq, Text};

/// Cases of a random test: few by default, `WEIR_CASES` for a long run.
pub(crate) fn config() -> ProptestConfig {
    let cases = std::env::var("WEIR_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64);
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

pub(crate) fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        4 => "[a-z/]{0,6}",
        2 => any::<String>(),
        1 => (1u8..20, 0u8..4).prop_map(|(a, b)| format!("10.{b}.0.{a}")),
        1 => "[0-9a-f:.]{1,20}",
        1 => Just("x\u{fffd}\"\\\n\u{1}".to_owned()),
    ]
    .prop_map(Text::from)
}

fn int() -> impl Strategy<Value = i64> {
    prop_oneof![3 => 0i64..5, 2 => 0i64..70_000, 1 => any::<i64>(), 1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => any::<u32>().prop_map(i64::from)]
}

/// A value for a column, of its type.
fn value(column: Column) -> BoxedStrategy<(Column, Result<Text, i64>)> {
    match column.ty() {
        ColumnType::Text => text().prop_map(move |text| (column, Ok(text))).boxed(),
        _ => int().prop_map(move |int| (column, Err(int))).boxed(),
    }
}

fn values(numbers: std::ops::Range<u16>) -> impl Strategy<Value = Vec<(Column, Result<Text, i64>)>> {
    let columns: Vec<Column> = Column::ALL.iter().copied().filter(|column| numbers.contains(&column.number())).collect();
    let count = columns.len().min(12);
    proptest::sample::subsequence(columns, 0..=count).prop_flat_map(|columns| columns.into_iter().map(value).collect::<Vec<_>>())
}

fn cell(value: &Result<Text, i64>) -> Cell<'_> {
    match value {
        Ok(text) => Cell::Text(text),
        Err(int) => Cell::Int(*int),
    }
}

pub(crate) fn process() -> impl Strategy<Value = Arc<Process>> {
    (any::<u32>(), any::<u64>(), values(98..118)).prop_map(|(pid, start_ns, values)| {
        let mut process = Process { pid, start_ns, ..Process::default() };
        values.iter().for_each(|(column, value)| _ = process.set(*column, cell(value)));
        Arc::new(process)
    })
}

pub(crate) fn container() -> impl Strategy<Value = Arc<Container>> {
    values(144..151).prop_map(|values| {
        let mut container = Container::default();
        values.iter().for_each(|(column, value)| _ = container.set(*column, cell(value)));
        Arc::new(container)
    })
}

pub(crate) fn host() -> impl Strategy<Value = Host> {
    (text(), proptest::option::of(text()), proptest::option::of(text()), any::<[u8; 16]>(), any::<bool>())
        .prop_map(|(host, cloud, zone, boot_id, simulated)| Host { host, cloud, zone, boot_id: BootId(boot_id), simulated })
}

/// Events of any kind, times near each other or anywhere, sharing processes and containers or not.
pub(crate) fn events(kinds: Vec<Kind>, max: usize) -> impl Strategy<Value = Vec<Event>> {
    let shared = (proptest::collection::vec(process(), 1..6), proptest::collection::vec(container(), 1..4));
    shared.prop_flat_map(move |(processes, containers)| {
        let time = prop_oneof![4 => 0i64..1_000_000_000, 1 => any::<i64>()];
        let process = proptest::option::of(proptest::sample::select(processes));
        let container = proptest::option::of(proptest::sample::select(containers));
        let event = (time, proptest::sample::select(kinds.clone()), process, container, values(4..60)).prop_map(
            |(time, kind, process, container, values)| {
                let mut event = Event { time, kind, process, container, ..Event::default() };
                values.iter().for_each(|(column, value)| _ = event.fields.set(*column, cell(value)));
                event
            },
        );
        proptest::collection::vec(event, 1..max)
    })
}

pub(crate) fn kinds_of(lane: Lane) -> Vec<Kind> {
    Kind::ALL.iter().copied().filter(|kind| kind.lane() == lane).collect()
}

pub(crate) fn frame_of(host: &Host, lane: Lane, events: &[Event]) -> Frame {
    let mut builder = BatchBuilder::new(Arc::new(host.clone()), Epoch(7), lane, Seq(100));
    events.iter().for_each(|event| builder.push(event).unwrap());
    builder.finish().unwrap()
}

pub(crate) fn decode(frame: &Frame) -> Result<Batch, weir_schema::Error> {
    frame.decode(&mut Decoder::new())
}

/// As a batch orders them: by kind, then as pushed.
pub(crate) fn by_kind(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|event| event.kind);
    events
}

/// A frame's body before compression.
pub(crate) fn body_of(frame: &Frame) -> Vec<u8> {
    let body = &frame.bytes[64..];
    match frame.bytes[6] {
        0 => body.to_vec(),
        _ => zstd::bulk::decompress(body, frame.header.raw_len as usize).unwrap(),
    }
}

/// `frame` with another body and count, as the drawing in `frame.rs` says, its lengths and checksum in order.
pub(crate) fn with_body(frame: &Frame, body: &[u8], count: u32, codec: u8) -> Vec<u8> {
    let mut bytes = frame.bytes[..64].to_vec();
    let sent = if codec == 0 { body.to_vec() } else { zstd::bulk::compress(body, 1).unwrap() };
    bytes[6] = codec;
    bytes[24..28].copy_from_slice(&count.to_le_bytes());
    bytes[28..32].copy_from_slice(&(body.len() as u32).to_le_bytes());
    bytes[32..36].copy_from_slice(&(sent.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&sent);
    sealed(bytes)
}

/// The bytes with the checksum that belongs to them.
pub(crate) fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[64..]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A section as `wire.rs` draws it.
pub(crate) fn section(kind: u16, version: u16, rows: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&rows.to_le_bytes());
    bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes
}
