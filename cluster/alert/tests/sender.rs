//! The whole way: a relation that grows, a store in memory, real sinks over HTTP that go away and come back, senders that are killed and
//! followed by others.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use server::{Reply, Server, alert, config, dir_with_secrets};
use weir_alert::{Alert, Error, Objects, Rows, Sender, Sinks, Source, State};

#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

#[async_trait::async_trait]
impl Objects for Memory {
    async fn list(&self, folder: &str) -> Result<Vec<String>, String> {
        Ok(self.0.lock().unwrap().keys().filter(|name| name.starts_with(folder)).cloned().collect())
    }
    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, String> {
        let mut objects = self.0.lock().unwrap();
        let free = !objects.contains_key(name);
        objects.entry(name.to_owned()).or_insert(bytes);
        Ok(free)
    }
    async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), String> {
        self.0.lock().unwrap().insert(name.to_owned(), bytes);
        Ok(())
    }
    async fn remove(&self, name: &str) -> Result<(), String> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
}

#[derive(Default)]
struct Relation {
    rows: Mutex<Vec<Alert>>,
    tick: AtomicU64,
}

#[async_trait::async_trait]
impl Source for Relation {
    async fn rows(&self) -> Result<Option<Rows>, String> {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Some(Rows { tick, alerts: self.rows.lock().unwrap().clone() }))
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn nonce() -> u128 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u128::from(NEXT.fetch_add(7, Ordering::Relaxed))
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let late = tokio::time::Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(tokio::time::Instant::now() < late, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_was_away_misses_nothing_though_senders_die() {
    let (up, got) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::<(String, u64, String)>::new())));
    let (is_up, note) = (Arc::clone(&up), Arc::clone(&got));
    let server = Server::start(move |_, body| {
        if !is_up.load(Ordering::Relaxed) {
            return Reply { status: 503, retry_after: None, body: String::new() };
        }
        let said: serde_json::Value = serde_json::from_slice(body).unwrap();
        let text = |name: &str| said[name].as_str().unwrap().to_owned();
        note.lock().unwrap().push((text("alert_id"), said["revision"].as_u64().unwrap(), text("state")));
        Reply { status: 200, retry_after: None, body: String::new() }
    })
    .await;
    let dir = dir_with_secrets();
    let config = config(dir.path(), &[("webhook", &format!("url = \"{}\"", server.url))], 2_000);
    let (objects, relation) = (Arc::new(Memory::default()), Arc::new(Relation::default()));
    let sender = |node: &str| Sender {
        sinks: tokio::sync::watch::channel(Sinks::new(&config.alerts, node).unwrap()).1,
        limits: config.alerts.limits.clone(),
        objects: objects.clone(),
        source: relation.clone(),
        node: node.to_owned(),
        wall_ms,
        nonce,
    };
    let start = |node: &str| {
        let sender = sender(node);
        tokio::spawn(async move { sender.run(|| true).await })
    };
    let add = |from: usize, to: usize| {
        let mut rows = relation.rows.lock().unwrap();
        rows.extend((from..to).map(|number| Alert {
            alert_id: format!("a{number}"),
            evidence: vec![format!("e{number}")],
            ..alert()
        }));
    };
    let has = |count: usize| {
        let got = got.lock().unwrap();
        got.iter().map(|(id, ..)| id).collect::<std::collections::HashSet<_>>().len() == count
    };
    let first = start("n1");
    add(0, 20);
    until("the first come", || has(20)).await;
    up.store(false, Ordering::Relaxed);
    add(20, 60);
    for row in relation.rows.lock().unwrap().iter_mut().take(10) {
        (row.revision, row.state) = (2, State::Withdrawn);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Killed while its sink is away; another node goes on with what it wrote.
    first.abort();
    let second = start("n2");
    add(60, 80);
    tokio::time::sleep(Duration::from_millis(500)).await;
    up.store(true, Ordering::Relaxed);
    until("all come", || has(80) && got.lock().unwrap().iter().filter(|(.., state)| state == "withdrawn").count() >= 10).await;
    // A third one takes over: the second finds out and ends.
    let third = start("n3");
    let ended = tokio::time::timeout(Duration::from_secs(30), async {
        add(80, 81);
        second.await.unwrap()
    });
    assert!(matches!(ended.await.unwrap(), Err(Error::Fenced)));
    until("the last comes", || has(81)).await;
    third.abort();
    let mut latest: HashMap<String, u64> = HashMap::new();
    for (id, revision, _) in got.lock().unwrap().iter() {
        let before = latest.insert(id.clone(), *revision).unwrap_or(0);
        assert!(before <= *revision, "{id}: {revision} after {before}");
    }
    assert_eq!(latest.values().filter(|revision| **revision == 2).count(), 10);
    eprintln!("{} deliveries of 91 revisions", got.lock().unwrap().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_sent_again_when_asked() {
    let good = Arc::new(AtomicBool::new(false));
    let is_good = Arc::clone(&good);
    let server = Server::start(move |_, _| {
        let status = if is_good.load(Ordering::Relaxed) { 200 } else { 400 };
        Reply { status, retry_after: None, body: "no such route".to_owned() }
    })
    .await;
    let dir = dir_with_secrets();
    let config = config(dir.path(), &[("webhook", &format!("url = \"{}\"", server.url))], 2_000);
    let (objects, relation) = (Arc::new(Memory::default()), Arc::new(Relation::default()));
    relation.rows.lock().unwrap().push(alert());
    let sinks = Sinks::new(&config.alerts, "n1").unwrap();
    let sender = Sender {
        sinks: tokio::sync::watch::channel(sinks).1,
        limits: config.alerts.limits,
        objects: objects.clone(),
        source: relation,
        node: "n1".to_owned(),
        wall_ms,
        nonce,
    };
    let running = tokio::spawn(async move { sender.run(|| true).await });
    let dead = async || {
        let memory = weir_alert::read_outbox(&*objects).await.unwrap();
        memory.entries.values().find_map(|entry| entry.dead.clone())
    };
    let late = tokio::time::Instant::now() + Duration::from_secs(30);
    while dead().await.is_none() {
        assert!(tokio::time::Instant::now() < late);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(dead().await.unwrap().why.contains("400: no such route"));
    good.store(true, Ordering::Relaxed);
    weir_alert::ask_redrive(&*objects, 9, Some("sink")).await.unwrap();
    while dead().await.is_some() || !objects.list("redrive").await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < late);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_come_and_go_while_it_sends() {
    let server = Server::start(|_, _| Reply { status: 200, retry_after: None, body: String::new() }).await;
    let dir = dir_with_secrets();
    let section = format!("url = \"{}\"\nsecret_file = \"late\"", server.url);
    std::fs::write(dir.path().join("late"), "s3cret\n").unwrap();
    let config = config(dir.path(), &[("webhook", &section)], 2_000);
    let made = &config.alerts.sinks[0];
    let (objects, relation) = (Arc::new(Memory::default()), Arc::new(Relation::default()));
    relation.rows.lock().unwrap().push(alert());
    let none = Sinks::new(&weir_config::AlertsConfig::default(), "n1").unwrap();
    let (tell, told) = tokio::sync::watch::channel(none.clone());
    let (limits, source) = (config.alerts.limits.clone(), relation.clone());
    let sender = Sender { sinks: told, limits, objects: objects.clone(), source, node: "n1".to_owned(), wall_ms, nonce };
    let running = tokio::spawn(async move { sender.run(|| true).await });
    let status = async || weir_alert::read_status(&*objects).await.unwrap().get("sink").cloned().unwrap_or_default();
    let late = tokio::time::Instant::now() + Duration::from_secs(60);
    let pause = async || {
        assert!(tokio::time::Instant::now() < late);
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // One without its secret holds its alerts back, and says why.
    std::fs::remove_file(dir.path().join("late")).unwrap();
    let mut sinks = none.clone();
    sinks.add(made, "n1", &none);
    assert!(sinks.any_trouble());
    tell.send_replace(sinks.clone());
    while status().await.waiting != 1 || !status().await.last_error.is_some_and(|why| why.contains("could not read secret_file"))
    {
        pause().await;
    }
    assert!(server.taken().is_empty());
    std::fs::write(dir.path().join("late"), "s3cret\n").unwrap();
    let mut well = none.clone();
    well.add(made, "n1", &sinks);
    assert!(!well.any_trouble());
    tell.send_replace(well);
    while status().await.sent != 1 || status().await.last_sent_ms.is_none() {
        pause().await;
    }
    assert_eq!(server.taken().len(), 1);
    // Dropped: nothing is kept of it. Made again it gets what is shown.
    let mut gone = none.clone();
    gone.drop_all(["sink".to_owned()].into());
    tell.send_replace(gone);
    while !weir_alert::read_outbox(&*objects).await.unwrap().entries.is_empty() {
        pause().await;
    }
    let mut again = none.clone();
    again.add(made, "n1", &none);
    tell.send_replace(again);
    while server.taken().is_empty() {
        pause().await;
    }
    running.abort();
}
