//! SUBSCRIBE over the SQL port, while ticks come: whatever way it is asked, what was told adds up to what a SELECT says at the same tick.

#![allow(clippy::unwrap_used)]

#[path = "../../../dataflow/tests/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_config::QueryLimits;
use weir_dataflow::{ChangesKept, EngineOptions, Feed, FeedStep, run};
use weir_query::{Running, ServeOptions, serve};
use world::{START_MS, Script, TICK_MS, World};

/// Rows as text, with how often each is there.
type Rows = BTreeMap<Vec<String>, i64>;

const TICKS: usize = 100;
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);

fn tick(place: usize) -> u64 {
    START_MS + TICK_MS * place as u64
}

/// Gives ticks when they are released.
struct Paced {
    script: Script,
    released: Arc<AtomicUsize>,
    given: usize,
}

impl Feed for Paced {
    fn poll(&mut self) -> FeedStep {
        if self.given >= self.released.load(Ordering::Acquire) {
            return FeedStep::Idle;
        }
        self.given += 1;
        self.script.poll()
    }
}

struct Node {
    /// Ends the last connection as the death of its client does.
    last: Mutex<Option<AbortHandle>>,
    released: Arc<AtomicUsize>,
    running: Running,
    dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Node {
    async fn start(name: &str, limits: QueryLimits, changes: ChangesKept) -> Self {
        let world = World::new(31, TICKS).disturbed(5);
        let dir = std::env::temp_dir().join(format!("weir-told-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (socket, released) = (dir.join("engine.sock"), Arc::new(AtomicUsize::new(0)));
        let feed = |worker| {
            let (script, released) = (world.feed(worker, 2), Arc::clone(&released));
            Box::new(Paced { script, released, given: 0 }) as Box<dyn Feed>
        };
        let (feeds, options) = ((0..2).map(feed).collect(), EngineOptions { changes, ..EngineOptions::alone(2, socket.clone()) });
        std::thread::spawn(move || run(options, feeds));
        let any = "127.0.0.1:0".parse().unwrap();
        let options = ServeOptions {
            node: "n1".into(),
            sql: any,
            http: any,
            socket,
            limits,
            access: Default::default(),
            record: None,
            views: None,
            sinks: None,
        };
        let running = serve(options, Arc::new(String::new)).await.unwrap();
        Self { last: Mutex::default(), released, running, dir }
    }

    async fn connect(&self) -> Client {
        let port = self.running.sql_addr().port();
        let config = format!("host=127.0.0.1 port={port} user=weir dbname=weir");
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        *self.last.lock().unwrap() = Some(connection.abort_handle());
        client
    }

    /// Lets so many ticks be closed, and waits for it.
    async fn release(&self, ticks: usize) {
        self.released.store(ticks, Ordering::Release);
        let sql = self.connect().await;
        let newest = tick(ticks - 1).to_string();
        let all = async {
            while ask(&sql, "show weir.tick").await != [vec![newest.clone()]] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WITHIN, all).await.unwrap();
    }

    /// Lets one tick after the other be closed, on a task of its own.
    fn flow(&self) {
        let released = Arc::clone(&self.released);
        tokio::spawn(async move {
            while released.fetch_add(1, Ordering::AcqRel) < TICKS {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
    }
}

fn cells(message: &SimpleQueryMessage) -> Option<Vec<String>> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|column| row.get(column).unwrap_or("NULL").to_owned()).collect())
}

async fn ask(client: &Client, sql: &str) -> Vec<Vec<String>> {
    match tokio::time::timeout(WITHIN, client.simple_query(sql)).await.unwrap_or_else(|_| panic!("{sql}: no end")) {
        Ok(messages) => messages.iter().filter_map(cells).collect(),
        Err(error) => {
            let error = error.as_db_error().expect("an answer of the server").clone();
            vec![vec![error.code().code().to_owned(), error.message().to_owned(), error.hint().unwrap_or_default().to_owned()]]
        }
    }
}

async fn select(client: &Client, relation: &str, at: u64) -> Rows {
    let mut rows = Rows::new();
    for row in ask(client, &format!("SELECT * FROM {relation} AS OF {at}")).await {
        *rows.entry(row).or_default() += 1;
    }
    rows
}

fn add(rows: &mut Rows, row: &[String], diff: &str) {
    let count = rows.entry(row.to_vec()).or_default();
    *count += diff.parse::<i64>().unwrap();
    if *count == 0 {
        rows.remove(row);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_adds_up_to_what_is_selected() {
    let node = Node::start("sums", QueryLimits::default(), ChangesKept::default()).await;
    let sql = node.connect().await;
    node.release(10).await;
    node.flow();
    for relation in ["connections", "service_map"] {
        let other = node.connect().await;
        let subscribe = format!("SUBSCRIBE {relation} WITH (PROGRESS) UP TO {}", tick(TICKS - 1) + 1);
        let mut told = pin!(other.simple_query_raw(&subscribe).await.unwrap());
        let (mut rows, mut closed, mut checked, mut last) = (Rows::new(), 0, 0, 0);
        while let Some(message) = tokio::time::timeout(WITHIN, told.next()).await.unwrap() {
            let message = message.unwrap();
            let Some(row) = cells(&message) else { continue };
            let at: u64 = row[0].parse().unwrap();
            assert!(at >= last && at > closed, "{relation}: {at} after {last}, closed through {closed}");
            last = at;
            if row[1] == "t" {
                assert!(row[2..].iter().all(|cell| cell == "NULL"));
                closed = at;
                // The last 50 ticks can be selected by number.
                if node.released.load(Ordering::Acquire) < TICKS || closed > tick(TICKS - 40) {
                    assert_eq!(rows, select(&sql, relation, closed).await, "{relation} at {closed}");
                    checked += 1;
                }
            } else {
                add(&mut rows, &row[3..], &row[2]);
            }
        }
        assert_eq!(closed, tick(TICKS - 1));
        assert!(checked > 0 && !rows.is_empty(), "{relation}: {checked} ticks were compared");
    }
    // Resumed: exactly what came behind, and the sum is the same.
    let (from, end) = (tick(TICKS - 30), tick(TICKS - 1));
    let mut rows = Rows::new();
    for row in ask(&sql, &format!("SUBSCRIBE TO connections AS OF {from} UP TO {}", from + 1)).await {
        assert_eq!(row[0], from.to_string());
        add(&mut rows, &row[2..], &row[1]);
    }
    assert_eq!(rows, select(&sql, "connections", from).await);
    let resumed = format!("SUBSCRIBE connections WITH (SNAPSHOT = false) AS OF {from} UP TO {}", end + 1);
    let behind = ask(&sql, &resumed).await;
    assert!(behind.iter().all(|row| row[0].parse::<u64>().unwrap() > from));
    behind.iter().for_each(|row| add(&mut rows, &row[2..], &row[1]));
    assert_eq!(rows, select(&sql, "connections", end).await);
    other_ways(&node, &sql, &resumed, &behind).await;
}

/// Ticks come in their order, the rows of one in any.
fn sorted(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    assert!(rows.is_sorted_by_key(|row| row[0].clone()));
    rows.sort();
    rows
}

/// The same by the extended protocol, as a COPY and through a cursor.
async fn other_ways(node: &Node, sql: &Client, resumed: &str, behind: &[Vec<String>]) {
    let prepared = sql.prepare(resumed).await.unwrap();
    let names: Vec<&str> = prepared.columns().iter().take(3).map(tokio_postgres::Column::name).collect();
    assert_eq!(names, ["weir_tick", "weir_diff", "connection_id"]);
    let rows = sql.query(&prepared, &[]).await.unwrap();
    let told = |row: &tokio_postgres::Row| vec![row.get::<_, i64>(0).to_string(), row.get::<_, i64>(1).to_string(), row.get(2)];
    let told = rows.iter().map(told).collect();
    assert_eq!(sorted(told), sorted(behind.iter().map(|row| row[..3].to_vec()).collect()));
    let copied = sql.copy_out(&format!("COPY ({resumed}) TO STDOUT WITH (FORMAT csv, HEADER)")).await.unwrap();
    let lines: Vec<_> = pin!(copied).collect::<Vec<_>>().await.into_iter().map(|line| line.unwrap()).collect();
    assert!(lines[0].starts_with(b"weir_tick,weir_diff,connection_id,"));
    assert_eq!(lines.len(), behind.len() + 1);
    let copied = sql.copy_out("COPY (SELECT host, NULL FROM hosts ORDER BY 1 LIMIT 2) TO STDOUT").await.unwrap();
    let lines: Vec<_> = pin!(copied).collect::<Vec<_>>().await.into_iter().map(|line| line.unwrap()).collect();
    assert_eq!(lines, [&b"host-0\t\\N\n"[..], b"host-1\t\\N\n"]);
    assert_eq!(ask(sql, &format!("DECLARE c CURSOR FOR {resumed}")).await, [] as [Vec<String>; 0]);
    let mut fetched = ask(sql, "FETCH 3 c").await;
    assert_eq!(fetched.len(), 3);
    while let rows = ask(sql, "FETCH 100 FROM c WITH (TIMEOUT = '1s')").await
        && !rows.is_empty()
    {
        fetched.extend(rows);
    }
    assert_eq!(sorted(fetched), sorted(behind.to_vec()));
    assert_eq!(ask(sql, "DECLARE c CURSOR FOR SELECT 1").await[0][0], "42P03");
    assert_eq!(ask(sql, "CLOSE c").await, [] as [Vec<String>; 0]);
    assert_eq!(ask(sql, "FETCH c").await[0][0], "34000");
    ask(sql, "BEGIN; DECLARE d CURSOR FOR SELECT host FROM hosts ORDER BY host").await;
    assert_eq!(sql.query("FETCH 2 FROM d", &[]).await.unwrap()[1].get::<_, &str>(0), "host-1");
    assert_eq!(ask(sql, "FETCH ALL FROM d").await.len(), 4);
    assert_eq!(ask(sql, "COMMIT; FETCH d").await[0][0], "34000");
    assert_eq!(ask(sql, "SUBSCRIBE hosts; SELECT 1").await[0][0], "0A000");
    assert_eq!(ask(sql, "SUBSCRIBE (SELECT 1) AS OF 5").await[0][0], "0A000");
    assert_eq!(ask(sql, "SUBSCRIBE hosts AS OF 5").await[0][0], "72000");
    assert_eq!(ask(sql, &format!("SUBSCRIBE hosts UP TO {}", START_MS)).await, [] as [Vec<String>; 0]);
    assert_eq!(ask(sql, "SUBSCRIBE nothing").await[0][0], "42P01");
    assert_eq!(node.released.load(Ordering::Acquire).min(TICKS), TICKS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_end_and_leave_nothing() {
    let limits = QueryLimits { subscriptions_max: 1, ..QueryLimits::default() };
    let node = Node::start("ends", limits, ChangesKept { ms: 5 * TICK_MS, bytes_max: 1 << 30 }).await;
    node.release(10).await;
    let sql = node.connect().await;
    // Cancelled: the connection goes on.
    let cancel = sql.cancel_token();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel_query(NoTls).await.unwrap();
    });
    assert_eq!(ask(&sql, "SUBSCRIBE hosts").await[0][0], "57014");
    assert_eq!(ask(&sql, "SELECT 1").await, [["1"]]);
    // One that runs has the only place.
    let other = node.connect().await;
    assert_eq!(ask(&other, "DECLARE c CURSOR FOR SUBSCRIBE connections").await, [] as [Vec<String>; 0]);
    let full = ask(&sql, "SUBSCRIBE hosts").await;
    assert!(full[0][0] == "53300" && full[0][2].contains("query.subscriptions_max"), "{full:?}");
    // It is too slow: what it was not given in time is forgotten, and it is told.
    let first = ask(&other, "FETCH ALL c").await;
    assert!(!first.is_empty() && first.iter().all(|row| row[0] == tick(9).to_string()));
    node.release(TICKS).await;
    let late = ask(&other, "FETCH ALL c").await;
    assert!(late[0][0] == "72000" && late[0][1].contains(&tick(9).to_string()), "{late:?}");
    // A client that goes without a word is noticed, streaming or not.
    drop(other);
    let streaming = node.connect().await;
    let death = node.last.lock().unwrap().take().unwrap();
    let begun = async {
        loop {
            match streaming.simple_query_raw("SUBSCRIBE hosts").await {
                Ok(told) => {
                    let mut told = Box::pin(told);
                    if told.next().await.is_some_and(|first| first.is_ok()) {
                        return;
                    }
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(WITHIN, begun).await.unwrap();
    assert_eq!(ask(&sql, "SUBSCRIBE hosts").await[0][0], "53300");
    // Its socket closes while rows could still come. (Dropped alone, this client would go on reading.)
    death.abort();
    let end = tick(TICKS - 1) + 1;
    let freed = async {
        while ask(&sql, &format!("SUBSCRIBE hosts UP TO {end}")).await[0][0] == "53300" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(WITHIN, freed).await.unwrap();
}
