//! Sequence rules over random fleets: equal to a plain search over the whole set of admitted events, whatever the order, the copies, the delays and the logs
//! in which frames come, on 1, 2 and 3 workers, with a restart from a checkpoint in the middle.
//!
//! 100 rules by seed, ten over each of ten fleets; WEIR_CHAIN_RUNS asks for other numbers of rules.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, TimestampNanosecondType};
use arrow::ipc::reader::StreamReader;
use weir_dataflow::handle::{At, Client, Failure, Read, Request, Response};
use weir_dataflow::{
    CheckpointPart, CheckpointSink, Command, EngineOptions, Feed, FeedStep, Restore, RuleDefinition, ViewDefinition, ViewKind,
    relation, rule_definition, run,
};
use world::{Random, SETTINGS, START_MS, Script, TICK_MS, World};

/// An event, as the search sees it.
#[derive(Debug, Clone)]
struct Seen {
    at: (i64, String),
    kind: String,
    host: String,
    container: String,
    port: Option<i64>,
    failed: bool,
    socket: Option<i64>,
}

/// A predicate, in SQL and here.
struct Pick(&'static str, fn(&Seen) -> bool);

const PICKS: [Pick; 8] = [
    Pick("kind = 'connect' AND dst_port = 80", |e| e.kind == "connect" && e.port == Some(80)),
    Pick("kind = 'connect' AND dst_port = 443", |e| e.kind == "connect" && e.port == Some(443)),
    Pick("kind = 'connect' AND dst_port = 5432", |e| e.kind == "connect" && e.port == Some(5432)),
    Pick("kind = 'accept'", |e| e.kind == "accept"),
    Pick("kind IN ('close', 'accept') AND dst_port <> 443", |e| {
        ["close", "accept"].contains(&e.kind.as_str()) && e.port.is_some_and(|port| port != 443)
    }),
    Pick("kind = 'connect' AND result <> 0", |e| e.kind == "connect" && e.failed),
    Pick("dst_port > 400", |e| e.port.is_some_and(|port| port > 400)),
    Pick("kind = 'close' AND socket_id % 3 = 0", |e| e.kind == "close" && e.socket.is_some_and(|socket| socket % 3 == 0)),
];

/// A rule by seed.
#[derive(Debug)]
struct Plan {
    by_container: bool,
    span_ms: i64,
    overlap: bool,
    is_final: bool,
    /// Predicate, and whether it must not happen.
    steps: Vec<(usize, bool)>,
    until: Option<usize>,
    sql: String,
}

impl Plan {
    fn new(name: &str, random: &mut Random) -> Self {
        let (by_container, span_ms) = (random.below(2) == 0, 500 * (1 + random.below(30) as i64));
        let (overlap, is_final) = (random.below(2) == 0, random.below(3) == 0);
        let mut steps = vec![(random.below(8) as usize, false)];
        for _ in 0..=random.below(2) {
            if random.below(4) == 0 {
                steps.push((random.below(8) as usize, true));
            }
            steps.push((random.below(8) as usize, false));
        }
        if random.below(4) == 0 {
            steps.push((random.below(8) as usize, true));
        }
        let until = (random.below(4) == 0).then(|| random.below(8) as usize);
        let mut sql = format!(
            "CREATE RULE {name} AS SEQUENCE BY {} WITH MAXSPAN INTERVAL '{span_ms} milliseconds'{}{} SEVERITY error ATTACK 'T1046'",
            if by_container { "host, container_id" } else { "host" },
            if overlap { " OVERLAP" } else { "" },
            if is_final { " FINAL" } else { "" },
        );
        for (pick, negated) in &steps {
            sql += &format!("\n  {}[{}]", if *negated { "!" } else { "" }, PICKS[*pick].0);
        }
        if let Some(until) = until {
            sql += &format!("\n  UNTIL [{}]", PICKS[until].0);
        }
        Self { by_container, span_ms, overlap, is_final, steps, until, sql }
    }

    /// By the definition: the ids of each chain's events.
    fn search(&self, events: &[Seen], tick: u64) -> BTreeSet<Vec<String>> {
        let mut keys: BTreeMap<(String, String), Vec<&Seen>> = BTreeMap::new();
        for event in events {
            let container = if self.by_container { event.container.clone() } else { String::new() };
            if !(self.by_container && event.container == "NULL") {
                keys.entry((event.host.clone(), container)).or_default().push(event);
            }
        }
        let mut found = BTreeSet::new();
        for events in keys.values_mut() {
            events.sort_by(|a, b| a.at.cmp(&b.at));
            let mut busy: Option<&Seen> = None;
            for first in events.iter().filter(|event| PICKS[self.steps[0].0].1(event)) {
                if !self.overlap && busy.is_some_and(|busy| first.at <= busy.at) {
                    continue;
                }
                if let Some(chain) = self.chain(first, events) {
                    busy = chain.last().copied();
                    let trailing = self.steps.last().is_some_and(|step| step.1);
                    let end = if trailing { first.at.0 + self.span_ms * 1_000_000 } else { busy.unwrap().at.0 };
                    let wait = if self.is_final { SETTINGS.retention_ms as i64 * 1_000_000 } else { 0 };
                    if !(self.is_final || trailing) || tick as i64 * 1_000_000 > end + wait {
                        found.insert(chain.iter().map(|event| event.at.1.clone()).collect());
                    }
                }
            }
        }
        found
    }

    fn chain<'e>(&self, first: &'e Seen, events: &[&'e Seen]) -> Option<Vec<&'e Seen>> {
        let in_span = |event: &Seen| event.at.0 - first.at.0 < self.span_ms * 1_000_000;
        let stages: Vec<usize> = self.steps.iter().filter(|step| !step.1).map(|step| step.0).collect();
        let mut chain = vec![first];
        for pick in &stages[1..] {
            let last = chain[chain.len() - 1];
            chain.push(events.iter().find(|event| event.at > last.at && PICKS[*pick].1(event))?);
        }
        let last = chain[chain.len() - 1];
        let mut after = 0;
        for (pick, negated) in &self.steps {
            if !negated {
                after += 1;
                continue;
            }
            let from = chain[after - 1];
            let before = |event: &&&Seen| chain.get(after).map_or_else(|| in_span(event), |next| event.at < next.at);
            if events.iter().filter(|event| event.at > from.at).filter(before).any(|event| PICKS[*pick].1(event)) {
                return None;
            }
        }
        let ends = |event: &&Seen| event.at > first.at && event.at < last.at && PICKS[self.until.unwrap()].1(event);
        if self.until.is_some() && events.iter().any(ends) {
            return None;
        }
        in_span(last).then_some(chain)
    }
}

fn tick(place: usize) -> u64 {
    START_MS + TICK_MS * place as u64
}

struct Parts(Mutex<SyncSender<CheckpointPart>>);

impl CheckpointSink for Parts {
    fn begun(&self, _tick: u64) {}

    fn put(&self, part: CheckpointPart) {
        let _ = self.0.lock().unwrap().send(part);
    }
}

struct Engine {
    client: Client,
    dir: PathBuf,
    parts: Receiver<CheckpointPart>,
    workers: usize,
    over: Arc<AtomicBool>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A feed whose workers end with the engine: many engines come and go here.
struct Until {
    script: Script,
    over: Arc<AtomicBool>,
}

impl Feed for Until {
    fn poll(&mut self) -> FeedStep {
        if self.over.load(Ordering::SeqCst) {
            return FeedStep::Failed("the test is over".into());
        }
        match self.script.poll() {
            FeedStep::Ended => FeedStep::Idle,
            other => other,
        }
    }
}

type From = Option<(Restore, Vec<ViewDefinition>)>;

impl Engine {
    fn start(name: &str, world: &World, workers: usize, commands: &[(u64, Command)], from: From) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-chains-{}-{name}-{workers}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let over = Arc::new(AtomicBool::new(false));
        let after = from.as_ref().map_or(0, |(restore, _)| restore.tick());
        let feed = |worker| {
            let script =
                commands.iter().fold(world.feed(worker, workers), |script, (at, command)| script.with_command(*at, command));
            Box::new(Until { script: script.after(after), over: Arc::clone(&over) }) as Box<dyn Feed>
        };
        let feeds = (0..workers).map(feed).collect();
        let (restore, views) = from.map_or((None, vec![]), |(restore, views)| (Some(Arc::new(restore)), views));
        let (sender, parts) = sync_channel(64);
        let checkpoints: Option<Arc<dyn CheckpointSink>> = Some(Arc::new(Parts(Mutex::new(sender))));
        let options = EngineOptions { restore, views, checkpoints, ..EngineOptions::alone(workers, socket.clone()) };
        std::thread::spawn(move || run(options, feeds));
        for _ in 0..6_000 {
            if let Ok(client) = Client::connect(&socket) {
                return Self { client, dir, parts, workers, over };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the workers did not listen");
    }

    fn ask(&mut self, at: u64, name: &str) -> Result<RecordBatch, Failure> {
        let read = Read { relation: name.into(), columns: None, limit: None, rows_max: 1_000_000, bytes_max: 1 << 30 };
        let mut batches = Vec::new();
        for response in self.client.ask(&Request::Peek { id: 1, at: At::Tick(at), reads: vec![read] }).unwrap() {
            match response {
                Response::Rows { ipc, .. } => {
                    batches.extend(StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap))
                }
                Response::Done { .. } => {
                    let empty = || Arc::clone(&relation("alerts").unwrap().schema);
                    let schema = batches.first().map_or_else(empty, RecordBatch::schema);
                    return Ok(concat_batches(&schema, &batches).unwrap());
                }
                Response::Failed { failure, .. } => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
        panic!("no answer")
    }

    fn peek(&mut self, at: u64, name: &str) -> RecordBatch {
        // A name is known only once the workers have come to its tick.
        let deadline = Instant::now() + Duration::from_secs(300);
        while Instant::now() < deadline {
            match self.ask(at, name) {
                Ok(rows) => return rows,
                // On a busy machine the workers are long in coming.
                Err(Failure::UnknownRelation(_) | Failure::NotReady | Failure::TimedOut { .. }) => {
                    std::thread::sleep(Duration::from_millis(2))
                }
                Err(other) => panic!("{name}: {other:?}"),
            }
        }
        panic!("{name}: no answer at {at}");
    }

    fn checkpoint(&self) -> Restore {
        let parts: Vec<Vec<u8>> =
            (0..self.workers).map(|_| self.parts.recv_timeout(Duration::from_secs(120)).unwrap().bytes).collect();
        Restore::parse(&parts).unwrap()
    }
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> String {
    let column = batch.column_by_name(column).unwrap().as_string::<i32>();
    if column.is_null(row) { "NULL".into() } else { column.value(row).into() }
}

fn int(batch: &RecordBatch, column: &str, row: usize) -> Option<i64> {
    let column = batch.column_by_name(column).unwrap().as_primitive::<Int64Type>();
    (!column.is_null(row)).then(|| column.value(row))
}

fn time(batch: &RecordBatch, column: &str, row: usize) -> i64 {
    batch.column_by_name(column).unwrap().as_primitive::<TimestampNanosecondType>().value(row)
}

/// All columns but those that tell how the rows came to be, in order.
fn shown(rows: &RecordBatch) -> Vec<String> {
    let schema = rows.schema();
    let mut all: Vec<String> = (0..rows.num_rows())
        .map(|row| {
            let cells = schema.fields().iter().zip(rows.columns());
            let cells =
                cells.filter(|(field, _)| !["revision", "closed_through", "lost_events"].contains(&field.name().as_str()));
            cells
                .map(|(_, column)| arrow::util::display::array_value_to_string(column, row).unwrap())
                .collect::<Vec<_>>()
                .join("|")
        })
        .collect();
    all.sort();
    all
}

fn admitted(events: &RecordBatch) -> Vec<Seen> {
    let late = events.column_by_name("late").unwrap().as_boolean();
    let seen = |row| Seen {
        at: (time(events, "time", row), text(events, "event_id", row)),
        kind: text(events, "kind", row),
        host: text(events, "host", row),
        container: text(events, "container_id", row),
        port: int(events, "dst_port", row),
        failed: int(events, "result", row).is_some_and(|result| result != 0),
        socket: int(events, "socket_id", row),
    };
    (0..events.num_rows()).filter(|row| !late.value(*row)).map(seen).collect()
}

/// The ids of the events of each row of a rule's relation.
fn chains_of(rows: &RecordBatch) -> BTreeSet<Vec<String>> {
    let schema = rows.schema();
    let ids: Vec<&str> =
        schema.fields().iter().map(|field| field.name().as_str()).filter(|name| name.ends_with("_event_id")).collect();
    let found: Vec<Vec<String>> = (0..rows.num_rows()).map(|row| ids.iter().map(|id| text(rows, id, row)).collect()).collect();
    let set: BTreeSet<Vec<String>> = found.iter().cloned().collect();
    assert_eq!(set.len(), found.len(), "no chain is there twice");
    set
}

fn create(sql: &str) -> (Command, ViewDefinition) {
    let RuleDefinition { definition, .. } = rule_definition(sql).unwrap();
    (Command::CreateView(definition.clone()), definition)
}

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("WEIR_SEED").map_or(clock.as_nanos() as u64, |seed| seed.parse().unwrap());
    eprintln!("WEIR_SEED={seed}");
    seed
}

/// Runs the same events in another order, by other logs, some of them twice.
fn shuffled(world: &World, random: &mut Random) -> World {
    let mut other = world.clone();
    other.ticks.iter_mut().for_each(|tick| tick.1 = vec![Vec::new(); 3]);
    for (place, (_, logs)) in world.ticks.iter().enumerate() {
        for frame in logs.iter().flatten() {
            for _ in 0..=random.below(2) {
                // All of it within the retention.
                let latest = world.ticks[place].0 + random.below(50_000);
                let to = world.ticks.partition_point(|tick| tick.0 <= latest).saturating_sub(1).max(place);
                other.ticks[to].1[random.below(3) as usize].push(frame.clone());
            }
        }
    }
    other
}

/// Each rule's relation against the search of the events that are admitted up to a tick. How many chains there are.
fn check_against_search(engine: &mut Engine, at: u64, plans: &[Plan], seed: u64) -> usize {
    let mut found = 0;
    let events = admitted(&engine.peek(at, "events"));
    for (n, plan) in plans.iter().enumerate() {
        let (shown, searched) = (chains_of(&engine.peek(at, &format!("r{n}"))), plan.search(&events, at));
        assert_eq!(shown, searched, "seed {seed}, {} workers, at {}, {}", engine.workers, at - START_MS, plan.sql);
        found += shown.len();
    }
    found
}

/// One fleet and ten rules by seed. How many chains were found.
fn order_proof(seed: u64) -> usize {
    let mut random = Random(seed | 1);
    let mut world = World::new(seed, 40);
    // Room for what is late, and for all to settle.
    world.ticks.extend((0..30).map(|place| (tick(45 + place * 10), vec![Vec::new(); 2])));
    let plans: Vec<Plan> = (0..RULES).map(|n| Plan::new(&format!("r{n}"), &mut random)).collect();
    let made: Vec<(Command, ViewDefinition)> = plans.iter().map(|plan| create(&plan.sql)).collect();
    let definitions: Vec<ViewDefinition> = made.iter().map(|made| made.1.clone()).collect();
    let mut commands: Vec<(u64, Command)> = made.into_iter().map(|made| (tick(0), made.0)).collect();
    let middle = world.ticks[10 + random.below(45) as usize].0;
    commands.push((middle, Command::Checkpoint));
    let end = world.end();
    let mut found = 0;
    // In the middle, where some of it is late and not all is settled.
    let mut cut = shuffled(&world, &mut random);
    cut.ticks.truncate(20 + random.below(45) as usize);
    let mut engine = Engine::start(&format!("cut-{seed}"), &cut, 1 + random.below(3) as usize, &commands, None);
    found += check_against_search(&mut engine, cut.end(), &plans, seed);
    drop(engine);
    let mut expected: Option<Vec<Vec<String>>> = None;
    for workers in [1, 2 + random.below(2) as usize] {
        let other = if workers == 1 { world.clone() } else { shuffled(&world, &mut random) };
        let mut engine = Engine::start(&format!("run-{seed}"), &other, workers, &commands, None);
        let restore = engine.checkpoint();
        let mut again =
            Engine::start(&format!("again-{seed}"), &other, 1 + workers % 3, &commands, Some((restore, definitions.clone())));
        found += check_against_search(&mut engine, end, &plans, seed);
        for (engine, restored) in [(&mut engine, false), (&mut again, true)] {
            let relations = std::iter::once("alerts".to_owned()).chain((0..RULES).map(|n| format!("r{n}")));
            let rows: Vec<Vec<String>> = relations.map(|name| shown(&engine.peek(end, &name))).collect();
            assert_eq!(rows[0].len(), rows[1..].iter().map(Vec::len).sum::<usize>(), "each chain is an alert");
            let same = expected.get_or_insert_with(|| rows.clone());
            assert_eq!(*same, rows, "seed {seed}, {workers} workers, restored: {restored}");
        }
    }
    found
}

#[test]
fn the_order_of_arrival_changes_nothing() {
    let runs: u64 = std::env::var("WEIR_CHAIN_RUNS").map_or(100, |runs| runs.parse().unwrap());
    let seed = seed();
    let fleets = runs.div_ceil(RULES);
    let found: usize = (0..fleets).map(|fleet| order_proof(seed.wrapping_add(fleet * 7_919))).sum();
    eprintln!("{} rules over {fleets} fleets, {found} chains", fleets * RULES);
    assert!(found as u64 > runs * 10);
}

/// Rules over one fleet.
const RULES: u64 = 10;

#[test]
fn a_rule_comes_is_replaced_and_goes() {
    let seed = seed();
    let mut world = World::new(seed, 120);
    world.ticks.extend((120..140).map(|place| (tick(place), vec![Vec::new(); 2])));
    let with = "AS SEQUENCE BY host WITH MAXSPAN INTERVAL '20 seconds' [kind = 'connect'] AS began [kind = 'accept'";
    let (first, definition) = create(&format!("CREATE RULE r {with}] AS met"));
    let (second, _) = create(&format!("CREATE OR REPLACE RULE r {with} AND dst_port = 80] AS met"));
    let view = Command::CreateView(ViewDefinition {
        name: "by_host".into(),
        sql: "SELECT host, count(*) AS n FROM r GROUP BY host".into(),
        kind: ViewKind::Materialized,
        reads: vec!["r".into()],
    });
    let commands = [
        (tick(5), first),
        (tick(30), view),
        (tick(60), Command::DropViews(vec!["by_host".into()])),
        (tick(61), second),
        (tick(100), Command::DropViews(vec!["r".into()])),
    ];
    let mut engine = Engine::start("replace", &world, 2, &commands[..2], None);
    let rows = engine.peek(tick(139), "r");
    assert!(rows.num_rows() > 5, "seed {seed}");
    let counted = engine.peek(tick(139), "by_host");
    let total: i64 = (0..counted.num_rows()).map(|row| int(&counted, "n", row).unwrap()).sum();
    assert_eq!(total, rows.num_rows() as i64);
    assert_eq!(rows.schema().field(0).name(), "tenant");
    let mut engine = Engine::start("replaced", &world, 2, &commands, None);
    let alerts = engine.peek(tick(139), "alerts");
    let states: BTreeSet<String> = (0..alerts.num_rows()).map(|row| text(&alerts, "state", row)).collect();
    assert_eq!(states, BTreeSet::from(["withdrawn".to_owned()]), "seed {seed}");
    assert!(matches!(engine.ask(tick(139), "r"), Err(Failure::UnknownRelation(_))));
    assert_eq!(definition.kind, ViewKind::Sequence);
}
