//! The outbox and its ledger under random weather: sinks that fail, refuse or lose answers, a store that fails before and after
//! writing, senders that die at any write and are followed by another node, two senders at once, alerts that grow, are withdrawn,
//! move to another id, merge and go.
//!
//! At the end each sink has each alert's latest revision, or a dead letter of it; no older revision ever followed a newer one under one key; and
//! what was sent again carried the same key.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use weir_alert::{Alert, Error, Jitter, Ledger, Limits, Objects, Outbox, Outcome, Send, State};
use weir_config::{NodeConfig, Route, Severity};

#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Of the next creates.
    faults: Mutex<Vec<Fault>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    NotWritten,
    AnswerLost,
}

#[async_trait::async_trait]
impl Objects for Memory {
    async fn list(&self, folder: &str) -> Result<Vec<String>, String> {
        Ok(self.objects.lock().unwrap().keys().filter(|name| name.starts_with(folder)).cloned().collect())
    }

    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.objects.lock().unwrap().get(name).cloned())
    }

    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, String> {
        let fault = self.faults.lock().unwrap().pop().unwrap_or(Fault::None);
        if fault == Fault::NotWritten {
            return Err("away".to_owned());
        }
        let mut objects = self.objects.lock().unwrap();
        let free = !objects.contains_key(name);
        if free {
            objects.insert(name.to_owned(), bytes);
        }
        if fault == Fault::AnswerLost { Err("no answer".to_owned()) } else { Ok(free) }
    }

    async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), String> {
        self.objects.lock().unwrap().insert(name.to_owned(), bytes);
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), String> {
        self.objects.lock().unwrap().remove(name);
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Alert number, which may be new.
    Grow(u8),
    Withdraw(u8),
    /// Its start moves: it has another id.
    Move(u8),
    /// The relation shows it no more.
    Go(u8),
    Send(Weather),
    Wait(u64),
    /// The sender dies, with what is under way, at a write or between; another one takes over.
    Die(Fault),
    /// Another one takes over while this one does not know.
    Rival,
    Store(Fault),
    Redrive,
}

#[derive(Debug, Clone, Copy)]
enum Weather {
    Fine,
    Down,
    AnswerLost,
    Refused,
    /// Answers come later.
    Slow,
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![Just(Fault::None), Just(Fault::NotWritten), Just(Fault::AnswerLost)];
    let weather = prop_oneof![3 => Just(Weather::Fine), 2 => Just(Weather::Down), 2 => Just(Weather::AnswerLost), 1 => Just(Weather::Refused), 2 => Just(Weather::Slow)];
    prop_oneof![
        6 => (0..6u8).prop_map(Step::Grow),
        2 => (0..6u8).prop_map(Step::Withdraw),
        1 => (0..6u8).prop_map(Step::Move),
        1 => (0..6u8).prop_map(Step::Go),
        8 => weather.prop_map(Step::Send),
        4 => (1..40_000u64).prop_map(Step::Wait),
        2 => fault.clone().prop_map(Step::Die),
        1 => Just(Step::Rival),
        2 => fault.prop_map(Step::Store),
        1 => Just(Step::Redrive),
    ]
}

/// What the relation shows, and what the sinks have seen.
#[derive(Default)]
struct World {
    rows: BTreeMap<u8, Alert>,
    /// What it showed once: it comes back as the same alert, further on.
    gone: BTreeMap<u8, Alert>,
    /// Per sink and key: revisions as they came.
    got: HashMap<(String, String), Vec<Alert>>,
    nonce: u128,
    now_ms: u64,
    tick: u64,
}

struct Node {
    outbox: Outbox,
    ledger: Ledger,
    under_way: Vec<Send>,
}

fn alert(number: u8, name: u32, revision: u64) -> Alert {
    Alert {
        alert_id: format!("a{number}-{name}"),
        revision,
        state: if revision == 1 { State::Open } else { State::Updated },
        rule: "Terminal shell in container".to_owned(),
        rule_id: "r1".to_owned(),
        severity: Severity::ALL[usize::from(number) % 8],
        tactics: vec!["execution".to_owned()],
        techniques: vec!["T1059".to_owned()],
        time: 1_795_451_134_000_000_000,
        first_seen: 1_795_451_134_000_000_000,
        last_seen: 1_795_451_134_000_000_000 + i64::try_from(revision).unwrap(),
        tenant: "acme".to_owned(),
        cloud: None,
        region: "eu".to_owned(),
        host: "h".to_owned(),
        app: None,
        container_id: None,
        process_id: None,
        summary: "a shell".to_owned(),
        evidence: vec![format!("e{number}")],
        stages: "[]".to_owned(),
        hosts: vec!["h".to_owned()],
        regions: vec!["eu".to_owned()],
        closed_through: None,
        lost_events: 0,
    }
}

fn limits() -> Limits {
    Limits { retry_ms_min: 100, retry_ms_max: 5_000, retry_for_ms_max: 60_000, in_flight_max: 2, ..Limits::default() }
}

fn routes() -> BTreeMap<String, Route> {
    let all = || vec!["*".parse().unwrap()];
    let route = |severity_min| Route { severity_min, rules: all(), regions: all(), tenants: all() };
    BTreeMap::from([("all".to_owned(), route(Severity::Debug)), ("severe".to_owned(), route(Severity::Warning))])
}

impl World {
    fn nonce(&mut self) -> u128 {
        self.nonce += 1;
        self.nonce
    }

    async fn take(&mut self, objects: &Arc<Memory>) -> Node {
        loop {
            let nonce = self.nonce();
            match Ledger::take(Arc::clone(objects) as Arc<dyn Objects>, "n", nonce).await {
                Ok((ledger, memory)) => {
                    let outbox = Outbox::new(limits(), routes(), memory.tick, memory.entries);
                    return Node { outbox, ledger, under_way: Vec::new() };
                }
                // As a real one: it begins anew.
                Err(Error::Store { .. } | Error::Fenced) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }

    fn look(&mut self, node: &mut Node) {
        self.tick += 1;
        let rows: Vec<Alert> = self.rows.values().cloned().collect();
        node.outbox.observe(self.now_ms, self.tick, &rows);
    }

    /// Makes durable what changed; false: another one has the outbox.
    async fn commit(&mut self, node: &mut Node) -> bool {
        let mut changes = node.outbox.take_changes();
        while !changes.is_empty() {
            let nonce = self.nonce();
            match node.ledger.commit(nonce, &node.outbox, changes.clone()).await {
                Ok(()) => changes.clear(),
                Err(Error::Fenced) => return false,
                Err(Error::Store { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        node.ledger.confirm().await.is_ok()
    }

    fn arrive(&mut self, send: &Send) {
        assert_eq!(send.alert.alert_id, send.key, "what a sink sees is the key");
        self.got.entry((send.sink.clone(), send.key.clone())).or_default().push(send.alert.clone());
    }

    fn settle(&mut self, node: &mut Node, weather: Weather) {
        for send in std::mem::take(&mut node.under_way) {
            let retry = || Outcome::Retry { why: "down".to_owned(), after_ms: None };
            let outcome = match weather {
                Weather::Fine | Weather::Slow => {
                    self.arrive(&send);
                    Outcome::Delivered
                }
                Weather::AnswerLost => {
                    self.arrive(&send);
                    retry()
                }
                Weather::Down => retry(),
                Weather::Refused => Outcome::Refused { why: "no".to_owned() },
            };
            node.outbox.answered(self.now_ms, &send, outcome, Jitter(300));
        }
    }
}

async fn run(steps: Vec<Step>) {
    let objects = Arc::new(Memory::default());
    let mut world = World { now_ms: 1_000_000, ..World::default() };
    let mut node = world.take(&objects).await;
    let mut names = 0;
    for step in steps {
        match step {
            Step::Grow(number) => {
                let gone = world.gone.remove(&number);
                let known = world.rows.get(&number).or(gone.as_ref());
                let next = known.map_or_else(
                    || alert(number, 0, 1),
                    |row| Alert { revision: row.revision + 1, state: State::Updated, ..row.clone() },
                );
                world.rows.insert(number, next);
            }
            Step::Withdraw(number) => {
                if let Some(row) = world.rows.get_mut(&number) {
                    (row.state, row.revision) = (State::Withdrawn, row.revision + 1);
                }
            }
            Step::Move(number) => {
                names += 1;
                if let Some(row) = world.rows.get_mut(&number) {
                    // Its first evidence is new; the old one is still among it.
                    row.alert_id = format!("a{number}-{names}");
                    row.evidence.insert(0, format!("m{names}"));
                    row.revision += 1;
                }
            }
            Step::Go(number) => {
                if let Some(row) = world.rows.remove(&number) {
                    world.gone.insert(number, row);
                    world.look(&mut node);
                }
            }
            Step::Send(weather) => {
                world.look(&mut node);
                if !world.commit(&mut node).await {
                    node = world.take(&objects).await;
                    continue;
                }
                node.under_way.extend(node.outbox.due(world.now_ms));
                if !matches!(weather, Weather::Slow) {
                    world.settle(&mut node, weather);
                }
            }
            Step::Wait(wait_ms) => {
                world.now_ms += wait_ms;
                world.settle(&mut node, Weather::Fine);
            }
            Step::Die(fault) => {
                // Some of what is under way has arrived, and nobody knows.
                if let Some(send) = node.under_way.pop() {
                    world.arrive(&send);
                }
                let changes = node.outbox.take_changes();
                objects.faults.lock().unwrap().push(fault);
                let nonce = world.nonce();
                _ = node.ledger.commit(nonce, &node.outbox, changes).await;
                objects.faults.lock().unwrap().clear();
                node = world.take(&objects).await;
            }
            Step::Rival => {
                let rival = world.take(&objects).await;
                // The old one finds out at its next write, and sends nothing.
                world.look(&mut node);
                node.outbox.redrive(world.now_ms, None);
                assert!(!world.commit(&mut node).await, "two senders at once");
                node = rival;
            }
            Step::Store(fault) => objects.faults.lock().unwrap().push(fault),
            Step::Redrive => _ = node.outbox.redrive(world.now_ms, None),
        }
    }
    // Then all is well for long enough.
    objects.faults.lock().unwrap().clear();
    world.settle(&mut node, Weather::Fine);
    for _ in 0..200 {
        world.now_ms += 6_000;
        world.look(&mut node);
        if !world.commit(&mut node).await {
            node = world.take(&objects).await;
            continue;
        }
        node.under_way.extend(node.outbox.due(world.now_ms));
        world.settle(&mut node, Weather::Fine);
    }
    check(&world, &node);
    let after = world.take(&objects).await;
    let before: Vec<_> =
        node.outbox.entries().map(|(sink, key, entry)| (sink.to_owned(), key.to_owned(), entry.clone())).collect();
    let again: Vec<_> =
        after.outbox.entries().map(|(sink, key, entry)| (sink.to_owned(), key.to_owned(), entry.clone())).collect();
    assert_eq!(before, again, "the ledger holds what the outbox knows");
    assert!(objects.objects.lock().unwrap().len() <= 70, "old objects are removed");
}

fn check(world: &World, node: &Node) {
    for ((sink, key), got) in &world.got {
        let revisions: Vec<u64> = got.iter().map(|alert| alert.revision).collect();
        assert!(revisions.is_sorted(), "{sink} {key}: {revisions:?}");
        for pair in got.windows(2).filter(|pair| pair[0].revision == pair[1].revision) {
            assert_eq!(pair[0].idempotency_key(), pair[1].idempotency_key());
            assert_eq!(pair[0], pair[1], "a resend is the same");
        }
    }
    for (sink, route) in routes() {
        for row in world.rows.values().filter(|row| row.severity >= route.severity_min) {
            let found = node.outbox.entries().find(|(of, _, entry)| *of == sink && entry.id == row.alert_id);
            let Some((_, key, entry)) = found else {
                assert_eq!(row.state, State::Withdrawn, "{sink} knows nothing of {}", row.alert_id);
                continue;
            };
            if entry.dead.is_some() {
                assert_eq!(entry.wanted.as_ref().unwrap().summary, row.summary);
                continue;
            }
            let last = world.got[&(sink.clone(), key.to_owned())].last().unwrap();
            assert_eq!((last.state, &last.evidence), (row.state, &row.evidence), "{sink} {key}");
            assert_eq!(Some(last.revision), entry.delivered);
            assert_eq!(last.revision, row.revision + entry.base);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_latest_revision_arrives_or_is_dead(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps));
    }

    #[test]
    fn a_full_outbox_keeps_the_most_severe(severities in prop::collection::vec(0..8usize, 1..300)) {
        let mut limits = limits();
        (limits.entries_max, limits.in_flight_max) = (100, 1);
        let all = || vec!["*".parse().unwrap()];
        let routes = BTreeMap::from([("s".to_owned(), Route { severity_min: Severity::Debug, rules: all(), regions: all(), tenants: all() })]);
        let mut outbox = Outbox::new(limits, routes, 0, BTreeMap::new());
        let rows: Vec<Alert> = severities.iter().enumerate().map(|(place, severity)| {
            let row = alert(0, u32::try_from(place).unwrap(), 1);
            Alert { severity: Severity::ALL[*severity], last_seen: i64::try_from(place).unwrap(), evidence: vec![format!("e{place}")], ..row }
        }).collect();
        outbox.observe(1, 1, &rows);
        let mut kept: Vec<(Severity, i64)> = outbox.entries().map(|(_, _, entry)| { let wanted = entry.wanted.as_ref().unwrap(); (wanted.severity, wanted.last_seen) }).collect();
        kept.sort_unstable();
        let mut expected: Vec<(Severity, i64)> = rows.iter().map(|row| (row.severity, row.last_seen)).collect();
        expected.sort_unstable();
        let expected = expected.split_off(expected.len().saturating_sub(100));
        prop_assert_eq!(kept, expected);
        prop_assert_eq!(outbox.counts().dropped, (rows.len() as u64).saturating_sub(100));
        outbox.observe(2, 2, &rows);
        prop_assert_eq!(outbox.counts().dropped, (rows.len() as u64).saturating_sub(100), "told once");
    }
}

#[test]
fn back_off_doubles_and_ends_in_a_dead_letter_that_can_be_sent_again() {
    let mut outbox = Outbox::new(limits(), routes(), 0, BTreeMap::new());
    outbox.observe(0, 1, &[alert(0, 0, 1)]);
    let (mut now_ms, mut waits) = (0, Vec::new());
    loop {
        let sends = outbox.due(now_ms);
        assert_eq!(sends.len(), 1);
        assert!(outbox.due(now_ms).is_empty(), "one in flight");
        outbox.answered(now_ms, &sends[0], Outcome::Retry { why: "down".to_owned(), after_ms: None }, Jitter(0));
        let Some(next_ms) = outbox.next_ms() else { break };
        waits.push(next_ms - now_ms);
        now_ms = next_ms;
    }
    assert_eq!(waits[..8], [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
    assert!((60_000..66_000).contains(&now_ms), "{now_ms}");
    assert_eq!(outbox.sinks()["all"].dead, 1);
    assert_eq!(outbox.redrive(now_ms, Some("severe")), 0);
    assert_eq!(outbox.redrive(now_ms, Some("all")), 1);
    let sends = outbox.due(now_ms);
    outbox.answered(now_ms, &sends[0], Outcome::Retry { why: "busy".to_owned(), after_ms: Some(30_000) }, Jitter(511));
    assert_eq!(outbox.next_ms(), Some(now_ms + 30_000), "a sink is not asked before it wants to be");
}

/// After a long outage nothing waits for as long again.
#[test]
fn what_waits_for_a_sink_is_due_when_the_sink_takes_something() {
    let mut outbox = Outbox::new(limits(), routes(), 0, BTreeMap::new());
    let away = || Outcome::Retry { why: "down".to_owned(), after_ms: None };
    outbox.observe(0, 1, &[alert(0, 0, 1), alert(1, 1, 1)]);
    let mut now_ms = 0;
    while now_ms < 20_000 {
        for send in outbox.due(now_ms) {
            outbox.answered(now_ms, &send, away(), Jitter(0));
        }
        now_ms = outbox.next_ms().unwrap();
    }
    for send in outbox.due(now_ms) {
        outbox.answered(now_ms, &send, away(), Jitter(0));
    }
    let at_ms = now_ms + 1;
    assert!(outbox.due(at_ms).is_empty(), "both wait");
    outbox.observe(at_ms, 2, &[alert(0, 0, 1), alert(1, 1, 1), alert(2, 2, 1)]);
    let sends = outbox.due(at_ms);
    assert_eq!(sends.len(), 1, "the new one is tried at once");
    outbox.answered(at_ms, &sends[0], Outcome::Delivered, Jitter(0));
    let sends = outbox.due(at_ms);
    assert_eq!(sends.len(), 2, "the sink is back");
    // One failure is no outage, and a pause that the sink asks for is kept.
    outbox.answered(at_ms, &sends[0], Outcome::Retry { why: "busy".to_owned(), after_ms: Some(30_000) }, Jitter(0));
    outbox.answered(at_ms, &sends[1], Outcome::Delivered, Jitter(0));
    assert_eq!(outbox.next_ms(), Some(at_ms + 30_000));
}

#[test]
fn a_merged_alert_is_taken_back() {
    let mut outbox = Outbox::new(limits(), routes(), 0, BTreeMap::new());
    outbox.observe(0, 1, &[alert(0, 0, 1), alert(1, 0, 1)]);
    for send in outbox.due(0) {
        outbox.answered(0, &send, Outcome::Delivered, Jitter(0));
    }
    let both = Alert { evidence: vec!["e0".to_owned(), "e1".to_owned()], ..alert(0, 0, 2) };
    outbox.observe(1, 2, std::slice::from_ref(&both));
    let sends = outbox.due(1);
    let told: Vec<_> = sends.iter().map(|send| (&*send.key, send.alert.state, send.alert.revision)).collect();
    assert_eq!(told, [("a0-0", State::Updated, 2), ("a1-0", State::Withdrawn, 2)]);
    assert!(sends[1].alert.summary.contains("part of alert a0-0"));
    // An older look changes nothing.
    outbox.observe(2, 1, &[]);
    assert!(outbox.entries().all(|(_, _, entry)| entry.id == "a1-0" || entry.gone_ms.is_none()));
}

#[test]
fn limits_of_the_config_are_those_of_the_outbox() {
    let text = "id = \"n\"\n[tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n";
    let config = NodeConfig::parse(std::path::Path::new("node.toml"), text, []).unwrap();
    assert_eq!((config.alerts.limits, config.alerts.sinks.len()), (Limits::default(), 0));
}
