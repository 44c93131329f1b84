//! Connections against a plain recomputation: random fleets with NAT, reused ports, overlapping private addresses, missing
//! sequence numbers, one-sided, failed and forgotten ends, reboots, clocks apart, events late, ahead of others and repeated.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use weir_schema::BootId;

use super::oracle::{Heard, Told as Fact, rows};
use super::*;
use crate::source::{Admission, Judgement};

pub(super) const LATENESS: Lateness = Lateness { retention_ms: 10_000, skew_ms: 500 };
const MS: i64 = 1_000_000;
const TICK_MS: u64 = 250;

/// A small generator of choices, from one seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

struct World {
    dice: Dice,
    places: Vec<Arc<Place>>,
    /// When each host boots again, and how far its clock is off.
    reboots: Vec<Option<i64>>,
    offsets: Vec<i64>,
    heard: Vec<Heard>,
    facts: Vec<Fact>,
    ids: u64,
}

fn ip(n: u64) -> IpAddr {
    match n {
        0 => "127.0.0.1".parse().unwrap(),
        1 => "169.254.1.1".parse().unwrap(),
        n => format!("10.0.0.{n}").parse().unwrap(),
    }
}

fn boot(n: u8) -> BootId {
    BootId([n; 16])
}

impl World {
    fn new(seed: u64, connections: u64) -> Self {
        let mut dice = Dice(seed);
        let tenants = ["t", "u"];
        let places = (0..6).map(|n| Arc::new(Place::new(tenants[n % 2].into(), format!("r{n}").into(), format!("h{n}").into())));
        let reboots = (0..6).map(|_| dice.one_in(3).then(|| dice.below(40_000) as i64 + 5_000)).collect();
        let offsets = (0..6).map(|_| dice.below(400) as i64 - 200).collect();
        let places = places.collect();
        let mut world = Self { dice, places, reboots, offsets, heard: Vec::new(), facts: Vec::new(), ids: 0 };
        for host in 0..6 {
            world.host_start(host, 0);
            if let Some(reboot) = world.reboots[host] {
                world.host_start(host, reboot);
            }
            if world.dice.one_in(2) {
                let time = world.dice.below(50_000) as i64;
                world.host_start(host, time);
            }
        }
        for _ in 0..connections {
            world.connection();
        }
        world
    }

    fn host_start(&mut self, host: usize, time_ms: i64) {
        let addresses = (0..1 + self.dice.below(2)).map(|_| ip(1 + self.dice.below(6))).collect();
        let heard = self.event(host, time_ms, None);
        let (time, id) = (heard.time, heard.id);
        let fact = AddressFact { place: Arc::clone(&self.places[host]), time, id, addresses };
        self.facts.push(Fact { fact, commit: heard.commit });
        self.heard.push(heard);
    }

    /// An event of a host at a time of the world, by the host's own clock, committed after some while.
    fn event(&mut self, host: usize, time_ms: i64, touch: Option<Touch>) -> Heard {
        self.ids += 1;
        let time = (time_ms + self.offsets[host] + 1_000) * MS + self.dice.below(3) as i64 * 300_000;
        let delay = match self.dice.below(20) {
            0 => self.dice.below(11_000),
            1..=5 => self.dice.below(3_000),
            _ => self.dice.below(100),
        };
        let actor = Actor {
            place: Arc::clone(&self.places[host]),
            app: self.dice.one_in(2).then(|| "app".into()),
            container_id: None,
            process_id: self.dice.one_in(2).then(|| [self.dice.below(3) as u8; 16]),
            exe: None,
        };
        let second = self.reboots[host].is_some_and(|reboot| time_ms >= reboot);
        let touch = touch.map(|touch| Touch { time, id: self.ids, ..touch });
        Heard { actor: Arc::new(actor), boot: boot(1 + u8::from(second)), time, id: self.ids, touch, commit: commit(time, delay) }
    }

    fn connection(&mut self) {
        let tenant = self.dice.below(2);
        let (client, server) = ((self.dice.below(3) * 2 + tenant) as usize, (self.dice.below(3) * 2 + tenant) as usize);
        let (src, dst) = (ip(self.dice.below(7)), ip(self.dice.below(7)));
        let (src_port, dst_port) = (40_000 + self.dice.below(3) as u16, 80);
        let tuple = Tuple { proto: Proto::Tcp, src, src_port, dst, dst_port };
        let nat = self.dice.one_in(4);
        let seen_by_server = if nat { Tuple { src: ip(2 + self.dice.below(5)), src_port: 50_000, ..tuple } } else { tuple };
        let isns = if self.dice.one_in(20) { (1, 2) } else { (self.dice.next() as u32, self.dice.next() as u32) };
        let opened = self.dice.below(50_000) as i64;
        let life = match self.dice.below(4) {
            0 => self.dice.below(30) as i64,
            1 => self.dice.below(30_000) as i64,
            _ => self.dice.below(5_000) as i64,
        };
        let failed = self.dice.one_in(8);
        let which = self.dice.below(5);
        if which != 0 {
            self.end(client, Side::Client, tuple, isns, (opened, life, failed));
        }
        if which != 1 && !failed {
            let lag = self.dice.below(20) as i64;
            let linger = if self.dice.one_in(10) { self.dice.below(25_000) as i64 } else { 0 };
            self.end(server, Side::Server, seen_by_server, (isns.1, isns.0), (opened + lag, life + linger, false));
        }
    }

    fn end(&mut self, host: usize, side: Side, tuple: Tuple, isns: (u32, u32), (opened, life, failed): (i64, i64, bool)) {
        let knows = self.dice.below(6);
        let socket = if self.dice.one_in(6) { 0 } else { 1_000 + self.ids };
        let touch = |verb: Verb, isns: Option<(u32, u32)>| Touch {
            time: 0,
            id: 0,
            verb,
            socket,
            side: Some(side),
            tuple: Some(tuple),
            isns,
            sent: 0,
            received: 0,
            duration_ms: None,
            result: 0,
            actor: 0,
        };
        let at_open = (knows > 1).then_some(isns);
        let at_close = (knows > 0).then_some(isns);
        let old_boot = |time: i64, reboot: Option<i64>| reboot.is_none_or(|reboot| (time < reboot) == (opened < reboot));
        if failed {
            let refused = Touch { result: 111, duration_ms: Some(life as u64 % 100), ..touch(Verb::Open, None) };
            let heard = self.event(host, opened, Some(refused));
            return self.heard.push(heard);
        }
        if !self.dice.one_in(8) {
            let heard = self.event(host, opened, Some(touch(Verb::Open, at_open)));
            self.heard.push(heard);
        }
        let closed = opened + life;
        if !self.dice.one_in(8) && old_boot(closed, self.reboots[host]) {
            let (sent, received) = (self.dice.below(1_000), self.dice.below(1_000));
            let side = if self.dice.one_in(10) { None } else { Some(side) };
            let touch = Touch { sent, received, side, duration_ms: Some(life as u64), ..touch(Verb::Close, at_close) };
            let heard = self.event(host, closed, Some(touch));
            self.heard.push(heard);
        }
    }

    /// The same events, committed at other ticks, but none of them too late.
    fn shuffled(&mut self) {
        let mut commits = BTreeMap::new();
        for heard in &mut self.heard {
            heard.commit = commit(heard.time, self.dice.below(9_000));
            commits.insert(heard.id, heard.commit);
        }
        self.facts.iter_mut().for_each(|fact| fact.commit = commits[&fact.fact.id]);
    }
}

/// The tick that commits an event of this time after a delay.
fn commit(time_ns: i64, delay_ms: u64) -> u64 {
    (millis(time_ns) + delay_ms).div_ceil(TICK_MS) * TICK_MS
}

/// Tick at which an event enters, if it does.
fn enters(time: i64, commit: u64) -> Option<u64> {
    let admission = Admission { retention_ms: LATENESS.retention_ms, skew_ms: LATENESS.skew_ms };
    match admission.judge(commit, time) {
        Judgement::Admitted => Some(commit),
        Judgement::Late => None,
        Judgement::Ahead(moment) => Some(moment.div_ceil(TICK_MS) * TICK_MS),
    }
}

/// The three stages on several workers, without timely.
struct Mesh {
    folds: Vec<Fold>,
    meets: Vec<Meet>,
    resolves: Vec<Resolve>,
    rows: BTreeMap<Connection, i64>,
}

impl Mesh {
    fn new(workers: usize, ends_max: u64) -> Self {
        Self {
            folds: (0..workers).map(|_| Fold::new(LATENESS, ends_max)).collect(),
            meets: (0..workers).map(|_| Meet::new(LATENESS)).collect(),
            resolves: (0..workers).map(|_| Resolve::new(LATENESS)).collect(),
            rows: BTreeMap::new(),
        }
    }

    fn advance(&mut self, tick: u64, heard: Vec<&Heard>, facts: Vec<&Fact>) {
        let workers = self.folds.len();
        let mut by_host: Vec<Vec<HostTouches>> = vec![Vec::new(); workers];
        for heard in heard {
            let host = heard.actor.place.host_key as usize % workers;
            by_host[host].push(heard.touches());
        }
        let mut by_isns = vec![Vec::new(); workers];
        let mut by_tuple = vec![Vec::new(); workers];
        for (fold, told) in self.folds.iter_mut().zip(by_host) {
            let changes = fold.advance(tick, told);
            changes.by_isns.into_iter().for_each(|told| by_isns[told.group.route() as usize % workers].push(told));
            changes.by_tuple.into_iter().for_each(|told| by_tuple[told.group.route() as usize % workers].push(told));
        }
        let mut rows = Vec::new();
        for (meet, told) in self.meets.iter_mut().zip(by_isns) {
            let met = meet.advance(tick, told);
            rows.extend(met.rows);
            met.single.into_iter().for_each(|told| by_tuple[told.group.route() as usize % workers].push(told));
        }
        for (resolve, told) in self.resolves.iter_mut().zip(by_tuple) {
            let facts = facts.iter().map(|fact| fact.fact.clone()).collect();
            rows.extend(resolve.advance(tick, told, facts));
        }
        for (row, diff) in rows {
            *self.rows.entry(row).or_default() += diff;
        }
        self.rows.retain(|_, count| *count != 0);
    }

    fn rows(&self) -> Vec<Connection> {
        let copies = |(row, count): (&Connection, &i64)| vec![row.clone(); usize::try_from(*count).expect("no negative rows")];
        self.rows.iter().flat_map(copies).collect()
    }
}

/// Rows as they are and as they should be; of a difference only the rows that differ are shown.
fn assert_same(are: &[Connection], should: &[Connection], tick: u64) {
    if are != should {
        let extra: Vec<_> = are.iter().filter(|row| !should.contains(row)).collect();
        let lacking: Vec<_> = should.iter().filter(|row| !are.contains(row)).collect();
        panic!("at tick {tick} there are {} rows of {}: too many {extra:#?}, too few {lacking:#?}", are.len(), should.len());
    }
}

/// Feeds a world tick by tick; after each tick the rows equal the recomputation. Returns the final rows.
fn run(world: &World, workers: usize, each_tick: bool, repeat: bool) -> Vec<Connection> {
    let mut mesh = Mesh::new(workers, 1 << 20);
    let mut ticks: BTreeMap<u64, (Vec<&Heard>, Vec<&Fact>)> = BTreeMap::new();
    for heard in &world.heard {
        if let Some(tick) = enters(heard.time, heard.commit) {
            ticks.entry(tick).or_default().0.push(heard);
            let again = tick + TICK_MS;
            if repeat && enters(heard.time, again) == Some(again) {
                ticks.entry(again).or_default().0.push(heard);
            }
        }
    }
    for fact in &world.facts {
        if let Some(tick) = enters(fact.fact.time, fact.commit) {
            ticks.entry(tick).or_default().1.push(fact);
        }
    }
    let last = ticks.keys().max().copied().unwrap_or(0);
    let (mut heard, mut facts) = (Vec::new(), Vec::new());
    for (tick, (new_heard, new_facts)) in ticks {
        heard.extend(new_heard.iter().copied());
        facts.extend(new_facts.iter().copied());
        mesh.advance(tick, new_heard, new_facts);
        if each_tick || tick == last {
            assert_same(&mesh.rows(), &rows(&heard, &facts, LATENESS), tick);
        }
    }
    let far = last + 2 * LATENESS.hold_ms() + TICK_MS;
    mesh.advance(far, Vec::new(), Vec::new());
    let settled = mesh.rows();
    assert_same(&settled, &rows(&heard, &facts, LATENESS), far);
    settled
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_tick_equals_a_plain_recomputation(seed: u64, workers in 1usize..4, connections in 0u64..40, repeat: bool) {
        run(&World::new(seed, connections), workers, true, repeat);
    }

    #[test]
    fn the_order_of_arrival_changes_nothing(seed: u64, connections in 0u64..80) {
        let mut world = World::new(seed, connections);
        world.shuffled();
        let first = run(&world, 1, false, false);
        for workers in 1..4 {
            world.shuffled();
            prop_assert_eq!(&run(&world, workers, false, false), &first);
        }
    }
}

/// A world without chance: one client host `a`, one server host `b`.
struct Script {
    mesh: Mesh,
    ids: u64,
}

impl Script {
    fn new() -> Self {
        Self { mesh: Mesh::new(2, 8), ids: 0 }
    }

    fn heard(&mut self, host: &str, time_ms: i64, touch: Touch) -> Heard {
        self.ids += 1;
        let place = Arc::new(Place::new("t".into(), format!("region-{host}").into(), host.into()));
        let (time, id) = (time_ms * MS, self.ids);
        let touch = Some(Touch { time, id, ..touch });
        Heard { actor: Arc::new(Actor::nobody(place)), boot: boot(1), time, id, touch, commit: 0 }
    }

    fn check(&mut self, tick: u64, heard: Vec<Heard>, expected: &[&str]) {
        self.mesh.advance(tick, heard.iter().collect(), Vec::new());
        let shown = |row: &Connection| {
            let host =
                |actor: &Option<Arc<Actor>>| actor.as_ref().map_or_else(|| "?".into(), |actor| actor.place.host.to_string());
            let (state, seen) = (format!("{:?}", row.state), format!("{:?}", row.seen));
            let bytes = format!("{}/{}", row.sent, row.received);
            format!(
                "{} {} {}>{} {bytes} {}",
                state.to_lowercase(),
                seen.to_lowercase(),
                host(&row.src),
                host(&row.dst),
                row.result
            )
        };
        assert_eq!(self.mesh.rows().iter().map(shown).collect::<Vec<_>>(), expected, "at tick {tick}");
    }
}

fn touch(side: Side, verb: Verb, isns: Option<(u32, u32)>) -> Touch {
    let tuple = Tuple { proto: Proto::Tcp, src: ip(2), src_port: 40_000, dst: ip(3), dst_port: 80 };
    let (time, id, socket, tuple) = (0, 0, 7, Some(tuple));
    let (sent, received) = if verb == Verb::Close { (10, 20) } else { (0, 0) };
    Touch { time, id, verb, socket, side: Some(side), tuple, isns, sent, received, duration_ms: None, result: 0, actor: 0 }
}

#[test]
fn two_ends_are_one_connection_that_keeps_its_name() {
    let mut script = Script::new();
    let opened = script.heard("a", 1_000, touch(Side::Client, Verb::Open, Some((1, 2))));
    script.check(1_000, vec![opened], &["open src a>? 0/0 0"]);
    let name = script.mesh.rows()[0].id;
    let accepted = script.heard("b", 1_001, touch(Side::Server, Verb::Open, Some((2, 1))));
    script.check(1_250, vec![accepted], &["open both a>b 0/0 0"]);
    assert_eq!(script.mesh.rows()[0].id, name);
    let closed = script.heard("b", 3_000, touch(Side::Server, Verb::Close, Some((2, 1))));
    script.check(3_000, vec![closed], &["closed both a>b 20/10 0"]);
    let closed = script.heard("a", 9_000, touch(Side::Client, Verb::Close, Some((1, 2))));
    script.check(9_000, vec![closed], &["closed both a>b 20/20 0"]);
    assert_eq!(script.mesh.rows()[0].id, name);
    script.check(30_000, vec![], &["closed both a>b 20/20 0"]);
    let kept: usize =
        script.mesh.meets.iter().map(Meet::len).sum::<usize>() + script.mesh.folds.iter().map(Fold::len).sum::<usize>();
    assert_eq!(kept, 0);
}

#[test]
fn an_end_that_lingers_changes_a_settled_row_no_more() {
    let mut script = Script::new();
    let client = script.heard("a", 1_000, touch(Side::Client, Verb::Open, Some((1, 2))));
    let server = script.heard("b", 1_001, touch(Side::Server, Verb::Open, Some((2, 1))));
    let closed = script.heard("a", 2_000, Touch { sent: 1, received: 2, ..touch(Side::Client, Verb::Close, Some((1, 2))) });
    script.check(2_000, vec![client, server, closed], &["closed both a>b 1/2 0"]);
    let lingered = script.heard("b", 60_000, touch(Side::Server, Verb::Close, Some((2, 1))));
    script.check(60_000, vec![lingered], &["closed both a>b 1/2 0"]);
    script.check(80_000, vec![], &["closed both a>b 1/2 0"]);
    assert!(script.mesh.meets.iter().all(Meet::is_empty));
}

#[test]
fn a_refused_connect_failed() {
    let mut script = Script::new();
    let refused = script.heard("a", 1_000, Touch { result: 111, ..touch(Side::Client, Verb::Open, None) });
    script.check(1_000, vec![refused], &["failed src a>? 0/0 111"]);
}

#[test]
fn a_host_with_too_many_ends_gives_up_the_quietest() {
    let mut script = Script::new();
    let many: Vec<Heard> = (1..=9)
        .map(|n| script.heard("a", n, Touch { socket: n as u64, ..touch(Side::Client, Verb::Open, Some((n as u32, 0))) }))
        .collect();
    let mut expected = vec!["open src a>? 0/0 0"; 7];
    expected.extend(["closed src a>? 0/0 0"; 2]);
    script.mesh.advance(250, many.iter().collect(), Vec::new());
    let states: Vec<State> = script.mesh.rows().iter().map(|row| row.state).collect();
    assert_eq!(states.iter().filter(|state| **state == State::Closed).count(), 2);
    assert_eq!(script.mesh.folds.iter().map(Fold::evicted).sum::<u64>(), 2);
    assert_eq!(states.len(), expected.len());
}
