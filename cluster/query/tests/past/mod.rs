//! A chain of scripted ticks with its record, split between files and tail, behind a node's SQL port; and the events as a plain list,
//! for the recomputations that the answers are compared with.
#![allow(dead_code, unreachable_pub)]

pub mod plain;
pub mod story;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::Schema;
use object_store::memory::InMemory;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_archive::{Archive, Part, Piece, Position, Record, Store, Table, Tail, TailRequest, Writer, outside_schema};
use weir_config::QueryLimits;
use weir_dataflow::{
    Admission, Arrived, Command, EngineOptions, Feed, FeedStep, Intake, RULE_FORMAT, RuleFile, RuleMatching, RuleOrigin, Rules,
    Taken, Tick, ViewSettings, gather, run, schema_of,
};
use weir_query::{RecordOptions, Running, ServeOptions, serve};
use weir_schema::{
    AgentIdentity, BatchBuilder, BootId, Container, Epoch, Event, EventIds, Host, Kind, Lane, Name, Process, ProcessId, Seq,
    StampedFrame,
};

/// First tick, milliseconds.
pub const START_MS: u64 = 1_795_000_000_000;
/// Between two ticks.
pub const TICK_MS: u64 = 500;
/// How late and how early an event may be.
const SETTINGS: ViewSettings = ViewSettings {
    retention_ms: 10_000,
    skew_ms: 1_000,
    window_grace_ms: 1_000,
    tail_rows_max: 1_000_000,
    tail_bytes_max: 64 << 20,
    ends_max: 100_000,
    new_containers_per_minute_max: 6_000,
    chain_events_per_key_max: 4_096,
};

/// The agent of one host, which numbers what it sends.
pub struct Agent {
    pub identity: AgentIdentity,
    pub host: Arc<Host>,
    seqs: [u64; 4],
}

impl Agent {
    pub fn new(tenant: &str, region: &str, host: &str, boot: u8) -> Self {
        let name = |text: &str| Name::new(text).unwrap();
        let host = Host {
            host: host.into(),
            cloud: (!boot.is_multiple_of(3)).then(|| "aws".into()),
            zone: boot.is_multiple_of(2).then(|| format!("{region}a").into()),
            boot_id: BootId([boot; 16]),
            simulated: boot % 4 == 1,
        };
        let identity = AgentIdentity { tenant: name(tenant), region: name(region), agent: name(&format!("agent-{boot}")) };
        Self { identity, host: Arc::new(host), seqs: [0; 4] }
    }

    /// The id of a process on it.
    pub fn process_id(&self, pid: u32, start_ns: u64) -> String {
        ProcessId::new(self.identity.tenant.as_str(), &self.host.host, &self.host.boot_id, pid, start_ns).to_string()
    }

    /// What it sends at once, one frame a lane.
    pub fn frames(&mut self, events: &[Event], tick: u64) -> Vec<StampedFrame> {
        let mut frames = Vec::new();
        for lane in Lane::ALL {
            let first = Seq(self.seqs[lane as usize]);
            let mut builder = BatchBuilder::new(Arc::clone(&self.host), Epoch(7), lane, first);
            for event in events.iter().filter(|event| event.kind.lane() == lane) {
                builder.push(event).unwrap();
            }
            if !builder.is_empty() {
                self.seqs[lane as usize] += builder.len() as u64;
                let frame = builder.finish().unwrap().bytes;
                frames.push(StampedFrame { identity: self.identity.clone(), received_ms: tick, frame });
            }
        }
        frames
    }
}

/// Ticks, each with the frames that came in it.
pub type Chain = Vec<(u64, Vec<StampedFrame>)>;

/// The tick of this place in a chain.
pub fn tick_of(place: usize) -> u64 {
    START_MS + TICK_MS * place as u64
}

/// One recorded event.
#[derive(Debug, Clone)]
pub struct Told {
    pub tick: u64,
    pub late: bool,
    pub event_id: String,
    pub identity: Arc<AgentIdentity>,
    pub host: Arc<Host>,
    pub event: Event,
}

impl Told {
    pub fn tenant(&self) -> &str {
        self.identity.tenant.as_str()
    }

    pub fn process(&self) -> Option<&Process> {
        self.event.process.as_deref()
    }

    pub fn container(&self) -> Option<&Container> {
        self.event.container.as_deref()
    }

    pub fn process_id(&self) -> Option<String> {
        self.process().map(|process| self.id(process.pid, process.start_ns))
    }

    pub fn parent_process_id(&self) -> Option<String> {
        let process = self.process()?;
        Some(self.id(process.ppid?, process.parent_start_ns?))
    }

    fn id(&self, pid: u32, start_ns: u64) -> String {
        ProcessId::new(self.tenant(), &self.host.host, &self.host.boot_id, pid, start_ns).to_string()
    }
}

/// Everything that the chain makes readable, with its tick.
fn taken(chain: &Chain) -> Vec<Taken> {
    let mut intake = Intake::new(Admission { retention_ms: SETTINGS.retention_ms, skew_ms: SETTINGS.skew_ms });
    let ticks = chain.iter().enumerate();
    ticks.flat_map(|(place, (tick, frames))| intake.advance(*tick, arrived(place, frames, &|_| true))).collect()
}

/// Frames go to two logs in turn.
fn arrived(place: usize, frames: &[StampedFrame], wanted: &dyn Fn(usize) -> bool) -> Vec<Arrived> {
    let frames = frames.iter().enumerate().filter(|(number, _)| wanted(number % 2));
    let arrived = frames.map(|(number, stamped)| Arrived {
        log: (number % 2) as u32,
        offset: (place * 1_000 + number) as u64,
        stamped: stamped.clone(),
    });
    arrived.collect()
}

/// The recorded events as a list; samples too.
pub fn told(chain: &Chain) -> Vec<Told> {
    let mut all = Vec::new();
    for taken in taken(chain) {
        let (header, section) = (&taken.batch.header, taken.section());
        let events = taken.batch.events();
        let mut ids = EventIds::new(&taken.identity, header.epoch, header.lane);
        let host = Arc::new(taken.batch.host.clone());
        let rows: Vec<u32> = taken.rows.clone().unwrap_or_else(|| (0..section.rows() as u32).collect());
        all.extend(rows.into_iter().map(|row| {
            let seq = section.first_seq.0 + u64::from(row);
            Told {
                tick: taken.tick,
                late: taken.late,
                event_id: ids.id(Seq(seq)).to_string(),
                identity: Arc::clone(&taken.identity),
                host: Arc::clone(&host),
                event: events[(seq - header.first_seq.0) as usize].clone(),
            }
        }));
    }
    all
}

fn piece(taken: Taken) -> Piece {
    let Taken { tick, late, identity, received_ms, batch, section, rows, .. } = taken;
    Piece { identity, received_ms, tick, late, batch, section, rows }
}

/// As the cluster does it.
fn convert(parts: &[Part<'_>]) -> RecordBatch {
    let taken = |piece: &Piece| {
        let Piece { identity, received_ms, tick, late, batch, section, rows } = piece.clone();
        Taken { tail: tail_of(piece.table()), tick, late, identity, received_ms, batch, section, rows }
    };
    let table = parts[0].0.table();
    let taken: Vec<Taken> = parts.iter().map(|(piece, _)| taken(piece)).collect();
    let parts: Vec<_> = taken.iter().zip(parts).map(|(taken, (_, rows))| (taken, *rows)).collect();
    gather(&parts, table.columns(), &outside_schema(table))
}

fn tail_of(table: Table) -> weir_dataflow::Tail {
    match table {
        Table::Events => weir_dataflow::Tail::Events,
        Table::Samples => weir_dataflow::Tail::Samples,
    }
}

/// The chain behind the files.
#[derive(Debug)]
struct Scripted {
    taken: Vec<Taken>,
    last_tick: u64,
}

impl Tail for Scripted {
    fn read(&self, request: &TailRequest, out: &mut dyn FnMut(RecordBatch) -> bool) -> Result<(), weir_archive::Error> {
        let all = outside_schema(request.table);
        let fields = request.columns.iter().map(|column| all.field_with_name(column.name()).unwrap().clone());
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let after = |taken: &&Taken| taken.tick > request.position.tick && taken.tick <= request.until_tick;
        for taken in self.taken.iter().filter(after).filter(|taken| taken.tail == tail_of(request.table)) {
            let inside = taken.record_batch(&request.columns, &schema_of(&request.columns), None);
            let columns = inside.columns().iter().zip(schema.fields());
            let columns = columns.map(|(column, field)| cast(column, field.data_type()).unwrap()).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(inside.num_rows()));
            if !out(RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options).unwrap()) {
                break;
            }
        }
        Ok(())
    }

    fn last_tick(&self, position: &Position) -> Result<u64, weir_archive::Error> {
        Ok(self.last_tick.max(position.tick))
    }
}

/// The record of a chain: a file after each of these places, and what comes then in the tail.
pub async fn record(chain: &Chain, flushed: &[usize]) -> Record {
    let archive = Archive::open(Store::new(Arc::new(InMemory::new()), "memory")).await.unwrap();
    let mut writer = Writer::new(archive.clone(), convert);
    let all = taken(chain);
    let mut from = 0;
    for place in flushed {
        let tick = chain[*place].0;
        writer.push(all.iter().filter(|taken| taken.tick > from && taken.tick <= tick).cloned().map(piece).collect());
        let to = Position { tick, chain: *place as u64 + 1, logs: vec![] };
        writer.flush(to, b"state".to_vec(), tick).await.unwrap();
        from = tick;
    }
    Record::new(archive, Arc::new(Scripted { taken: all, last_tick: chain.last().unwrap().0 }))
}

struct Script(VecDeque<Tick>);

impl Feed for Script {
    fn poll(&mut self) -> FeedStep {
        self.0.pop_front().map_or(FeedStep::Ended, FeedStep::Tick)
    }
}

fn feed(chain: &Chain, worker: usize, rules: Option<&str>) -> Box<dyn Feed> {
    let file = |text: &str| RuleFile { name: "rules.yaml".into(), text: text.into(), origin: RuleOrigin::Loaded };
    let rules = rules.map(|text| Rules { format: RULE_FORMAT, matching: RuleMatching::All, files: vec![file(text)] });
    let first: Vec<Command> = [Command::Configure(SETTINGS)].into_iter().chain(rules.map(Command::SetRules)).collect();
    let tick = |(place, (tick, frames)): (usize, &(u64, Vec<StampedFrame>))| {
        let commands = if place == 0 { first.clone() } else { vec![] };
        Tick { tick: *tick, commands, frames: arrived(place, frames, &|log| log == worker) }
    };
    Box::new(Script(chain.iter().enumerate().map(tick).collect()))
}

/// Workers over a chain, and the SQL port in front of them.
pub struct Node {
    pub running: Running,
    pub sql: Client,
    dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Node {
    /// Runs until the last tick of the chain is closed.
    pub async fn start(name: &str, chain: &Chain, record: Option<Record>) -> Self {
        Self::start_with(name, chain, record, None).await
    }

    /// The same, with a file of rules in force.
    pub async fn start_with(name: &str, chain: &Chain, record: Option<Record>, rules: Option<&str>) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-past-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let options = EngineOptions::alone(2, socket.clone());
        let feeds = vec![feed(chain, 0, rules), feed(chain, 1, rules)];
        std::thread::spawn(move || run(options, feeds));
        let any = "127.0.0.1:0".parse().unwrap();
        let record = record.map(|record| RecordOptions { record, searches_max: 2 });
        // Searches run at low priority: on a machine that is busy with a build they take their time.
        let limits = QueryLimits { time_ms_max: 300_000, ..QueryLimits::default() };
        let options = ServeOptions {
            node: "n1".into(),
            sql: any,
            http: any,
            socket,
            limits,
            access: Default::default(),
            record,
            views: None,
            sinks: None,
        };
        let running = serve(options, Arc::new(String::new)).await.unwrap();
        let config = format!("host=127.0.0.1 port={} user=weir dbname=weir", running.sql_addr().port());
        let (sql, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        tokio::spawn(connection);
        let node = Self { running, sql, dir };
        let end = chain.last().unwrap().0.to_string();
        while node.ask("show weir.tick").await != [[Some(end.clone())]] {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        node
    }

    /// The rows of an answer; of an error its text alone.
    pub async fn ask(&self, sql: &str) -> Rows {
        match self.sql.simple_query(sql).await {
            Ok(messages) => messages.iter().filter_map(cells).collect(),
            Err(error) => {
                let error = error.as_db_error().expect("an answer of the server");
                let hint = error.hint().unwrap_or_default();
                vec![vec![Some(format!("{} {} {hint}", error.code().code(), error.message()))]]
            }
        }
    }

    /// The same, each row as a line.
    pub async fn lines(&self, sql: &str) -> Vec<String> {
        self.ask(sql).await.into_iter().map(line).collect()
    }

    /// Status and body of a GET.
    pub async fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.running.http_addr()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

/// Rows of text; none: NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// A row as a line.
pub fn line(row: Vec<Option<String>>) -> String {
    row.into_iter().map(|cell| cell.unwrap_or_else(|| "NULL".into())).collect::<Vec<_>>().join("|")
}

fn cells(message: &SimpleQueryMessage) -> Option<Vec<Option<String>>> {
    match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()),
        _ => None,
    }
}

/// An event of a process in a container.
pub fn event(kind: Kind, time_ms: u64, process: Option<&Arc<Process>>, container: Option<&Arc<Container>>) -> Event {
    let (process, container) = (process.cloned(), container.cloned());
    Event { time: time_ms as i64 * 1_000_000, kind, process, container, ..Event::default() }
}
