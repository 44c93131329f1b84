//! Events, their plain conversion to columns, and reading them back by SQL.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::builder::{BooleanBuilder, Int64Builder, StringDictionaryBuilder, TimestampNanosecondBuilder};
use arrow::array::{Array as _, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::UInt32Type;
use datafusion::prelude::SessionContext;
use weir_schema::{
    AgentIdentity, BatchBuilder, BootId, Cell, Column, ColumnType, Container, Decoder, Epoch, Event, EventIds, Fields, Host,
    Kind, Lane, Name, Process, ProcessId, Seq, Text,
};

use crate::layout::Table;
use crate::piece::{Part, Piece};
use crate::properties::outside_schema;
use crate::table::RecordSnapshot;

/// What tests look at: event id (none for samples), tick, time, host, kind (none for samples), container.
pub(crate) type Row = (Option<String>, i64, i64, String, Option<String>, Option<String>);

/// An event to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed {
    pub(crate) tenant: usize,
    pub(crate) region: usize,
    pub(crate) host: usize,
    pub(crate) kind: Kind,
    pub(crate) time: i64,
    pub(crate) container: Option<usize>,
}

pub(crate) const TENANTS: [&str; 2] = ["acme", "zeta"];
pub(crate) const REGIONS: [&str; 2] = ["eu", "us"];

pub(crate) fn host_name(host: usize) -> String {
    format!("web-{host}")
}

pub(crate) fn container_name(container: usize) -> String {
    format!("c{container:063}")
}

/// Makes pieces of events, as one tick brings them; numbers them itself.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    next: BTreeMap<(usize, usize, usize, Lane), u64>,
}

impl Agents {
    pub(crate) fn pieces(&mut self, tick: u64, seeds: &[Seed]) -> Vec<Piece> {
        let mut lanes: BTreeMap<(usize, usize, usize, Lane), Vec<&Seed>> = BTreeMap::new();
        for seed in seeds {
            lanes.entry((seed.tenant, seed.region, seed.host, seed.kind.lane())).or_default().push(seed);
        }
        lanes.into_iter().flat_map(|(agent, seeds)| self.frame(tick, agent, &seeds)).collect()
    }

    fn frame(&mut self, tick: u64, agent: (usize, usize, usize, Lane), seeds: &[&Seed]) -> Vec<Piece> {
        let (tenant, region, host, lane) = agent;
        let host = Host { host: host_name(host).into(), boot_id: BootId([7; 16]), ..Host::default() };
        let next = self.next.entry(agent).or_default();
        let mut builder = BatchBuilder::new(Arc::new(host.clone()), Epoch(1), lane, Seq(*next));
        for seed in seeds {
            builder.push(&event(seed)).unwrap();
        }
        *next += seeds.len() as u64;
        let batch = Arc::new(builder.finish().unwrap().decode(&mut Decoder::new()).unwrap());
        let name = |text: &str| Name::new(text).unwrap();
        // Of the agent's name the event id is made, so regions must not share one.
        let agent = format!("{}-{}", REGIONS[region], host.host);
        let identity = AgentIdentity { tenant: name(TENANTS[tenant]), region: name(REGIONS[region]), agent: name(&agent) };
        let identity = Arc::new(identity);
        let piece = |section| Piece {
            identity: Arc::clone(&identity),
            received_ms: tick,
            tick,
            late: false,
            batch: Arc::clone(&batch),
            section,
            rows: None,
        };
        (0..batch.sections.len()).map(piece).collect()
    }
}

fn event(seed: &Seed) -> Event {
    let text = |text: String| Some(Text::from(text));
    let process = Process { pid: 10 + seed.host as u32, exe: text(format!("/bin/{}", seed.host)), ..Process::default() };
    let container = seed.container.map(|c| Container { container_id: text(container_name(c)), ..Container::default() });
    let fields = if seed.kind == Kind::Sample {
        Fields { cpu_ms: Some(seed.time as u64 % 1_000), ..Fields::default() }
    } else {
        Fields { path: text(format!("/p/{}", seed.time % 97)), ..Fields::default() }
    };
    let process = (seed.kind != Kind::Sample).then(|| Arc::new(process));
    Event { time: seed.time, kind: seed.kind, process, container: container.map(Arc::new), fields }
}

/// The rows of a piece, for the books.
pub(crate) fn rows_of(piece: &Piece) -> Vec<Row> {
    let section = piece.section();
    let mut ids = EventIds::new(&piece.identity, piece.batch.header.epoch, piece.batch.header.lane);
    let before: usize = piece.batch.sections[..piece.section].iter().map(|section| section.rows()).sum();
    let is_event = piece.table() == Table::Events;
    let row = |(at, event): (usize, &Event)| {
        let id = ids.id(Seq(section.first_seq.0 + at as u64)).to_string();
        let container = event.container.as_ref().and_then(|c| c.container_id.as_ref()).map(|id| id.to_string());
        let kind = is_event.then(|| section.kind.as_str().to_owned());
        let host = piece.batch.host.host.to_string();
        (is_event.then_some(id), piece.tick as i64, event.time, host, kind, container)
    };
    piece.batch.events()[before..][..section.rows()].iter().enumerate().map(row).collect()
}

/// A conversion without any cleverness: every row by itself, from its event.
pub(crate) fn convert(parts: &[Part<'_>]) -> RecordBatch {
    let batches: Vec<RecordBatch> = parts.iter().map(|(piece, rows)| convert_one(piece, *rows)).collect();
    arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn convert_one(piece: &Piece, rows: Option<&[u32]>) -> RecordBatch {
    let section = piece.section();
    let before: usize = piece.batch.sections[..piece.section].iter().map(|section| section.rows()).sum();
    let events = piece.batch.events();
    let rows = rows.map_or_else(|| piece.row_numbers(), <[u32]>::to_vec);
    let columns = piece.table().columns().iter().map(|column| {
        let cells = rows.iter().map(|row| cell(piece, *column, *row, &events[before + *row as usize]));
        array(*column, cells)
    });
    let schema = outside_schema(piece.table());
    let columns = columns.zip(schema.fields()).map(|(column, field)| arrow::compute::cast(&column, field.data_type()).unwrap());
    let columns: Vec<ArrayRef> = columns.collect();
    assert!(rows.iter().all(|row| (*row as usize) < section.rows()));
    RecordBatch::try_new(schema, columns).unwrap()
}

#[derive(Debug, Clone)]
enum Known {
    Text(String),
    Int(i64),
}

fn cell(piece: &Piece, column: Column, row: u32, event: &Event) -> Option<Known> {
    let (identity, host) = (&piece.identity, &piece.batch.host);
    let text = |text: &dyn fmt::Display| Some(Known::Text(text.to_string()));
    let process = event.process.as_deref();
    match column {
        Column::Time => Some(Known::Int(event.time)),
        Column::Received => Some(Known::Int(piece.received_ms as i64 * 1_000_000)),
        Column::Tick => Some(Known::Int(piece.tick as i64)),
        Column::Late => Some(Known::Int(i64::from(piece.late))),
        Column::Simulated => Some(Known::Int(i64::from(host.simulated))),
        Column::Imported => Some(Known::Int(0)),
        Column::Tenant => text(&identity.tenant),
        Column::Region => text(&identity.region),
        Column::Agent => text(&identity.agent),
        Column::Kind => text(&event.kind.as_str()),
        Column::Host => text(&host.host),
        Column::Cloud => host.cloud.as_ref().and_then(|cloud| text(cloud)),
        Column::Zone => host.zone.as_ref().and_then(|zone| text(zone)),
        Column::BootId => text(&host.boot_id),
        Column::EventId => {
            let mut ids = EventIds::new(identity, piece.batch.header.epoch, piece.batch.header.lane);
            text(&ids.id(Seq(piece.section().first_seq.0 + u64::from(row))))
        }
        Column::Pid => process.map(|process| Known::Int(i64::from(process.pid))),
        Column::ProcessId => process.and_then(|process| {
            text(&ProcessId::new(identity.tenant.as_str(), &host.host, &host.boot_id, process.pid, process.start_ns))
        }),
        _ => {
            let mut found = None;
            let mut look = |known: Column, cell: Cell<'_>| {
                if known == column {
                    found = Some(match cell {
                        Cell::Text(text) => Known::Text(text.to_string()),
                        Cell::Int(int) => Known::Int(int),
                    });
                }
            };
            event.fields.each(&mut look);
            process.into_iter().for_each(|process| process.each(&mut look));
            event.container.iter().for_each(|container| container.each(&mut look));
            found
        }
    }
}

fn array(column: Column, cells: impl Iterator<Item = Option<Known>>) -> ArrayRef {
    let int = |cell: Option<Known>| if let Some(Known::Int(int)) = cell { Some(int) } else { None };
    match column.ty() {
        ColumnType::Text => {
            let mut builder = StringDictionaryBuilder::<UInt32Type>::new();
            cells.for_each(|cell| builder.append_option(if let Some(Known::Text(text)) = cell { Some(text) } else { None }));
            Arc::new(builder.finish())
        }
        ColumnType::Int => {
            let mut builder = Int64Builder::new();
            cells.for_each(|cell| builder.append_option(int(cell)));
            Arc::new(builder.finish())
        }
        ColumnType::Time => {
            let mut builder = TimestampNanosecondBuilder::new().with_timezone("UTC");
            cells.for_each(|cell| builder.append_option(int(cell)));
            Arc::new(builder.finish())
        }
        ColumnType::Bool => {
            let mut builder = BooleanBuilder::new();
            cells.for_each(|cell| builder.append_option(int(cell).map(|int| int != 0)));
            Arc::new(builder.finish())
        }
    }
}

/// All rows of a snapshot in their order, as SQL tells them.
pub(crate) async fn read(snapshot: &RecordSnapshot, table: Table) -> datafusion::error::Result<Vec<Row>> {
    let context = SessionContext::new();
    context.register_table(table.name(), Arc::new(snapshot.table(table)))?;
    let columns = match table {
        Table::Events => "tick, time, host, container_id, event_id, kind",
        Table::Samples => "tick, time, host, container_id",
    };
    let batches = context.sql(&format!("select {columns} from {}", table.name())).await?.collect().await?;
    let mut rows = Vec::new();
    for batch in &batches {
        let ticks = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
        let times = batch.column(1).as_any().downcast_ref::<TimestampNanosecondArray>().unwrap();
        let text = |column: usize, row: usize| {
            let texts = batch.columns().get(column)?.as_any().downcast_ref::<StringArray>().unwrap();
            texts.is_valid(row).then(|| texts.value(row).to_owned())
        };
        rows.extend((0..batch.num_rows()).map(|row| {
            let host = text(2, row).unwrap();
            (text(4, row), ticks.value(row), times.value(row), host, text(5, row), text(3, row))
        }));
    }
    Ok(rows)
}

/// All rows of both relations, sorted.
pub(crate) async fn read_all(snapshot: &RecordSnapshot) -> datafusion::error::Result<Vec<Row>> {
    let mut rows = read(snapshot, Table::Events).await?;
    rows.extend(read(snapshot, Table::Samples).await?);
    rows.sort();
    Ok(rows)
}
