//! A small archive, and a plain conversion of rows.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::compute::cast;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use weir_schema::{
    AgentIdentity, BatchBuilder, Cell, Column, ColumnType, Container, Decoder, Epoch, Event, EventIds, Fields, Host, Kind, Lane,
    Name, Process, ProcessId, Seq,
};

use crate::catalog::{Archive, Change};
use crate::error::Error;
use crate::manifest::{Hold, Position};
use crate::piece::{Part, Piece};
use crate::properties::outside_schema;
use crate::query::{Answer, cells, query};
use crate::store::Store;
use crate::verify::{Verified, verify};
use crate::writer::Writer;

/// An archive in a directory of its own.
pub(super) struct Place {
    pub(super) dir: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn store(&self) -> Store {
        Store::open(self.dir.path().to_str().unwrap()).unwrap()
    }

    pub(super) async fn archive(&self) -> Archive {
        Archive::open(self.store()).await.unwrap()
    }

    /// Two flushes of a security, a network and a sample lane of two hosts, and a hold: three manifests. Written once, then copied.
    pub(super) async fn filled() -> Self {
        static FILLED: OnceCell<Vec<(String, Vec<u8>)>> = OnceCell::const_new();
        let objects = FILLED.get_or_init(|| async {
            let first = Self::fill().await;
            first.objects().into_iter().map(|object| (object.clone(), first.read(&object))).collect()
        });
        let place = Self::new();
        for (object, bytes) in objects.await {
            std::fs::create_dir_all(place.path(object).parent().unwrap()).unwrap();
            place.write(object, bytes);
        }
        place
    }

    async fn fill() -> Self {
        let place = Self::new();
        let archive = place.archive().await;
        let mut writer = Writer::new(archive.clone(), convert);
        for flush in 1..=2 {
            for (region, host) in [("eu", "web-1"), ("us", "db-1")] {
                for lane in [Lane::Security, Lane::Network, Lane::Sample] {
                    writer.push(pieces(region, host, lane, flush * 1_000));
                }
            }
            let to = Position { tick: flush * 1_000 + 100, chain: flush, logs: vec![("node-1".into(), flush)] };
            writer.flush(to, format!("state {flush}").into_bytes(), flush).await.unwrap();
        }
        place.hold(&archive, "case-1").await;
        place
    }

    pub(super) async fn hold(&self, archive: &Archive, name: &str) {
        let hold = Hold { name: name.into(), host: None, container_id: None, from: None, to: None, note: None };
        archive.commit(&Change { holds_set: vec![hold], ..Change::default() }, 3).await.unwrap();
    }

    /// Every object, by name.
    pub(super) fn objects(&self) -> Vec<String> {
        let (mut found, mut folders) = (Vec::new(), vec![self.dir.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(self.dir.path()).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(super) async fn verify(&self, expected_head: Option<&str>) -> Verified {
        verify(self.store(), expected_head, &mut |_| {}).await.unwrap()
    }

    /// What is found damaged.
    pub(super) async fn damaged(&self, expected_head: Option<&str>) -> Vec<String> {
        self.verify(expected_head).await.faults.into_iter().map(|fault| fault.path).collect()
    }

    pub(super) async fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let Answer { batches, .. } = query(self.store(), sql).await?;
        Ok(batches.iter().flat_map(|batch| cells(batch).unwrap()).collect())
    }

    /// One number.
    pub(super) async fn count(&self, sql: &str) -> u64 {
        self.query(sql).await.unwrap()[0][0].as_ref().unwrap().parse().unwrap()
    }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Time of a row: a second apart, from 2026-11-23T16:00:00Z.
pub(super) fn time(row: u64) -> i64 {
    1_795_449_600_000_000_000 + row as i64 * 1_000_000_000
}

/// Some rows of one host and lane that became readable at a tick.
pub(super) fn pieces(region: &str, host: &str, lane: Lane, tick: u64) -> Vec<Piece> {
    let text = |text: &str| Some(text.into());
    let seen_by = Host { host: host.into(), cloud: text("aws"), ..Host::default() };
    let mut builder = BatchBuilder::new(Arc::new(seen_by), Epoch(7), lane, Seq(tick));
    let process =
        Process { pid: 40, start_ns: 9, exe: text("/usr/bin/curl"), args: text(r#"["curl","-s"]"#), ..Process::default() };
    let process = Arc::new(process);
    let container = Arc::new(Container { app: text("shop"), container_id: text("c0ffee"), ..Container::default() });
    let kinds = match lane {
        Lane::Security => &[Kind::Exec, Kind::Setuid][..],
        Lane::Sample => &[Kind::Sample],
        _ => &[Kind::Connect, Kind::Close],
    };
    for row in 0..ROWS {
        let fields = match lane {
            Lane::Sample => Fields { interval_ms: Some(1_000), cpu_ms: Some(row), ..Fields::default() },
            Lane::Network => Fields {
                src_ip: text("10.0.0.1"),
                dst_ip: Some(format!("10.1.{}.{row}", row % 7).into()),
                dst_port: Some(443),
                socket_id: Some(u64::MAX - row),
                result: Some(-1),
                ..Fields::default()
            },
            _ => Fields { path: Some(format!("/opt/\"quoted\"/{row}").into()), ..Fields::default() },
        };
        builder
            .push(&Event {
                time: time(tick + row),
                kind: kinds[row as usize % kinds.len()],
                process: (lane != Lane::Sample).then(|| Arc::clone(&process)),
                container: Some(Arc::clone(&container)),
                fields,
            })
            .unwrap();
    }
    let batch = Arc::new(builder.finish().unwrap().decode(&mut Decoder::new()).unwrap());
    let identity = Arc::new(AgentIdentity { tenant: name("acme"), region: name(region), agent: name(host) });
    (0..batch.sections.len())
        .map(|section| Piece {
            identity: Arc::clone(&identity),
            received_ms: 1_795_449_700_000,
            tick,
            late: false,
            batch: Arc::clone(&batch),
            section,
            rows: None,
        })
        .collect()
}

/// What a value of a row is.
#[derive(Clone, Default)]
enum Value {
    #[default]
    None,
    Text(String),
    Int(i64),
    Bool(bool),
}

/// Row by row, without any haste.
pub(super) fn convert(parts: &[Part<'_>]) -> RecordBatch {
    let batches: Vec<RecordBatch> = parts.iter().map(|(piece, rows)| convert_one(piece, *rows)).collect();
    arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn convert_one(piece: &Piece, rows: Option<&[u32]>) -> RecordBatch {
    let rows = rows.map_or_else(|| piece.row_numbers(), <[u32]>::to_vec);
    let before: usize = piece.batch.sections[..piece.section].iter().map(|section| section.rows()).sum();
    let events = piece.batch.events();
    let schema = outside_schema(piece.table());
    let columns = piece.table().columns().iter().zip(schema.fields()).map(|(column, field)| {
        let value = |row: &u32| value(piece, &events[before + *row as usize], *row, *column);
        let values: Vec<Value> = rows.iter().map(value).collect();
        cast(&array(*column, &values), field.data_type()).unwrap()
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap()
}

fn array(column: Column, values: &[Value]) -> ArrayRef {
    let ints = || values.iter().map(|value| if let Value::Int(int) = value { Some(*int) } else { None });
    match column.ty() {
        ColumnType::Int => Arc::new(ints().collect::<Int64Array>()),
        ColumnType::Time => Arc::new(ints().collect::<TimestampNanosecondArray>().with_timezone("UTC")),
        ColumnType::Bool => {
            let bools = values.iter().map(|value| if let Value::Bool(bool) = value { Some(*bool) } else { None });
            Arc::new(bools.collect::<BooleanArray>())
        }
        ColumnType::Text => {
            let texts = values.iter().map(|value| if let Value::Text(text) = value { Some(text.clone()) } else { None });
            Arc::new(texts.collect::<StringArray>())
        }
    }
}

fn value(piece: &Piece, event: &Event, row: u32, wanted: Column) -> Value {
    let (host, identity, header) = (&piece.batch.host, &piece.identity, &piece.batch.header);
    let text = |text: &str| Value::Text(text.to_owned());
    let maybe = |value: Option<&str>| value.map_or(Value::None, text);
    let process_id = |pid: Option<u32>, start: Option<u64>| match (pid, start) {
        (Some(pid), Some(start)) => {
            text(&ProcessId::new(identity.tenant.as_str(), &host.host, &host.boot_id, pid, start).to_string())
        }
        _ => Value::None,
    };
    let process = event.process.as_deref();
    match wanted {
        Column::Time => Value::Int(event.time),
        Column::Received => Value::Int(piece.received_ms as i64 * 1_000_000),
        Column::Kind => text(event.kind.as_str()),
        Column::Tenant => text(identity.tenant.as_str()),
        Column::Region => text(identity.region.as_str()),
        Column::Agent => text(identity.agent.as_str()),
        Column::Host => text(&host.host),
        Column::Cloud => maybe(host.cloud.as_deref()),
        Column::Zone => maybe(host.zone.as_deref()),
        Column::BootId => text(&host.boot_id.to_string()),
        Column::Simulated => Value::Bool(host.simulated),
        Column::Late => Value::Bool(piece.late),
        Column::Imported => Value::Bool(false),
        Column::Tick => Value::Int(piece.tick as i64),
        Column::EventId => {
            let seq = Seq(piece.section().first_seq.0 + u64::from(row));
            text(&EventIds::new(identity, header.epoch, header.lane).id(seq).to_string())
        }
        Column::ProcessId => process_id(process.map(|process| process.pid), process.map(|process| process.start_ns)),
        Column::ParentProcessId => {
            process_id(process.and_then(|process| process.ppid), process.and_then(|process| process.parent_start_ns))
        }
        Column::Pid => process.map_or(Value::None, |process| Value::Int(i64::from(process.pid))),
        _ => {
            let mut found = Value::None;
            let mut take = |column: Column, cell: Cell<'_>| {
                if column == wanted {
                    found = match cell {
                        Cell::Text(text) => Value::Text(text.as_ref().to_owned()),
                        Cell::Int(int) => Value::Int(int),
                    };
                }
            };
            event.fields.each(&mut take);
            process.into_iter().for_each(|process| process.each(&mut take));
            event.container.iter().for_each(|container| container.each(&mut take));
            found
        }
    }
}

/// Rows of a frame of the small archive.
pub(super) const ROWS: u64 = 40;
