//! Walks against plain recomputations over random facts, given in random order and twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::alert::Alert;
use super::facts::{End, Facts, File, Id, NEAR_NS, Process, Side, Tuple};
use super::incidents::group;
use super::walk::{Backward, Edge, Forward, Kind};

/// One thing that is told.
#[derive(Debug, Clone)]
enum Told {
    Process(Process),
    Fork(Id, i64, i64),
    Write(Id, File, i64),
    Run(Id, File, i64),
    End(End),
    Close(End, i64),
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

const HOSTS: u64 = 3;
const PROCESSES: u64 = 14;

fn host_of(id: &Id) -> Id {
    format!("host-{}", id.parse::<u64>().unwrap() % HOSTS).into()
}

fn near() -> i64 {
    i64::try_from(NEAR_NS).unwrap()
}

fn story(random: &mut Random) -> Vec<Told> {
    let mut told = Vec::new();
    let ids: Vec<Id> = (0..PROCESSES).map(|number| number.to_string().into()).collect();
    let any = |random: &mut Random| Arc::clone(&ids[random.below(PROCESSES) as usize]);
    for id in &ids {
        if random.below(8) == 0 {
            continue;
        }
        let same_host = any(random);
        let maker = (random.below(4) != 0 && host_of(&same_host) == host_of(id)).then_some(same_host);
        let (pid, first) = (random.below(5) as i64, random.below(60) as i64);
        let process =
            Process { id: Arc::clone(id), pid, maker, first, executed: first % 2 == 0, host: host_of(id), ..Process::default() };
        told.push(Told::Process(process));
    }
    for number in 0..40 + random.below(60) {
        let (id, at) = (any(random), random.below(60) as i64);
        let file = |random: &mut Random| File {
            tenant: "t".into(),
            host: host_of(&id),
            container_id: (random.below(2) == 0).then(|| "c".into()),
            path: format!("/{}", random.below(3)).into(),
        };
        let next = match random.below(6) {
            0 => Told::Fork(id.clone(), random.below(5) as i64, at),
            1 => Told::Write(id.clone(), file(random), at),
            2 => Told::Run(id.clone(), file(random), at),
            _ => {
                let number_of = random.below(4);
                let local = random.below(5) == 0;
                let src: Id = if local { "127.0.0.1" } else { "10.0.0.1" }.into();
                let tuple = Tuple { udp: false, src: (src, number_of as i64), dst: ("10.0.0.2".into(), 22) };
                let far = if random.below(6) == 0 { 2 * near() } else { 0 };
                let end = End {
                    time: at + far,
                    event_id: format!("{number:04}").into(),
                    tenant: "t".into(),
                    host: host_of(&id),
                    boot_id: "b".into(),
                    process: id.clone(),
                    side: if random.below(2) == 0 { Side::Client } else { Side::Server },
                    socket: Some(random.below(9) as i64),
                    isns: (random.below(3) != 0).then_some((number_of as u32, 7)),
                    tuple: (random.below(5) != 0).then_some(tuple),
                };
                if random.below(3) == 0 {
                    told.push(Told::Close(end.clone(), at + far + random.below(20) as i64));
                }
                Told::End(end)
            }
        };
        told.push(next);
    }
    told
}

fn facts(told: &[Told], random: &mut Random) -> Facts {
    let mut told: Vec<&Told> = told.iter().chain(told.iter().step_by(3)).collect();
    for place in (1..told.len()).rev() {
        told.swap(place, random.below(place as u64 + 1) as usize);
    }
    let mut facts = Facts::default();
    for told in told.into_iter().cloned() {
        match told {
            Told::Process(process) => facts.process(process),
            Told::Fork(parent, pid, at) => facts.fork(parent, pid, at),
            Told::Write(id, file, at) => facts.write(&id, file, at),
            Told::Run(id, file, at) => facts.run(&id, file, at),
            Told::End(end) => facts.end(end),
            Told::Close(end, at) => facts.close((end.tenant, end.host, end.boot_id), end.socket.unwrap(), at),
        }
    }
    facts
}

/// (kind, from, left, to, at)
type Plain = (Kind, Id, i64, Id, i64);

fn made(told: &[Told], process: &Process) -> i64 {
    let forks = told.iter().filter_map(|told| match told {
        Told::Fork(parent, pid, at) if Some(parent) == process.maker.as_ref() && *pid == process.pid && *at <= process.first => {
            Some(*at)
        }
        _ => None,
    });
    forks.max().unwrap_or(process.first)
}

fn ends(told: &[Told]) -> Vec<&End> {
    told.iter().filter_map(|told| if let Told::End(end) = told { Some(end) } else { None }).collect()
}

fn other_end<'a>(ends: &[&'a End], end: &End) -> Option<&'a End> {
    let local = |end: &End| end.tuple.as_ref().is_some_and(|tuple| &*tuple.src.0 == "127.0.0.1");
    let possible = ends.iter().copied().filter(|other| {
        other.side != end.side
            && (other.time - end.time).abs() <= near()
            && (!local(end) || other.host == end.host)
            && (!local(other) || other.host == end.host)
    });
    let possible: Vec<&End> = possible.collect();
    let exact = possible.iter().copied().filter(|other| other.isns.is_some() && other.isns == end.isns);
    if let Some(found) = exact.min_by_key(|other| ((other.time - end.time).abs(), other.time, other.event_id.clone())) {
        return Some(found);
    }
    let loose = possible
        .into_iter()
        .filter(|other| (other.isns.is_none() || end.isns.is_none()) && other.tuple.is_some() && other.tuple == end.tuple);
    let loose: Vec<&End> = loose.collect();
    if let [only] = loose[..] { Some(only) } else { None }
}

/// Every edge there may be, forwards.
fn edges(told: &[Told]) -> Vec<Plain> {
    let mut edges = Vec::new();
    for one in told {
        match one {
            Told::Process(process) => {
                if let Some(maker) = process.maker.clone().filter(|maker| *maker != process.id) {
                    let kind = if process.executed { Kind::Exec } else { Kind::Fork };
                    edges.push((kind, maker, made(told, process), process.id.clone(), made(told, process)));
                }
            }
            Told::Write(from, file, left) => edges.extend(told.iter().filter_map(|told| match told {
                Told::Run(to, ran, at) if ran == file && at >= left && to != from => {
                    Some((Kind::File, from.clone(), *left, to.clone(), *at))
                }
                _ => None,
            })),
            Told::End(client) if client.side == Side::Client => {
                if let Some(server) = other_end(&ends(told), client).filter(|server| server.process != client.process) {
                    edges.push((Kind::Connection, client.process.clone(), client.time, server.process.clone(), server.time));
                }
            }
            _ => {}
        }
    }
    edges
}

fn reach(edges: &[Plain], seeds: &[(Id, i64)]) -> BTreeMap<Id, i64> {
    let mut reach: BTreeMap<Id, i64> = BTreeMap::new();
    for (id, at) in seeds {
        let known = reach.entry(id.clone()).or_insert(*at);
        *known = (*known).min(*at);
    }
    loop {
        let before = reach.clone();
        for (_, from, left, to, at) in edges {
            if reach.get(from).is_some_and(|since| left >= since) {
                let known = reach.entry(to.clone()).or_insert(*at);
                *known = (*known).min(*at);
            }
        }
        if reach == before {
            return reach;
        }
    }
}

fn seed() -> u64 {
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap();
    let seed = std::env::var("WEIR_SEED").map_or(clock.as_nanos() as u64, |seed| seed.parse().unwrap());
    eprintln!("WEIR_SEED={seed}");
    seed
}

#[test]
fn what_is_reached_is_what_is_reachable_in_any_order() {
    let mut random = Random(seed() | 1);
    let (mut far, mut kinds) = (0, BTreeSet::new());
    for round in 0..1_000 {
        let told = story(&mut random);
        let start: Id = random.below(PROCESSES).to_string().into();
        let since = random.below(40) as i64;
        let plain = edges(&told);
        let expected = reach(&plain, &[(start.clone(), since)]);
        for _ in 0..2 {
            let facts = facts(&told, &mut random);
            let mut walk = Forward::new([Edge::origin(&start, since)]);
            assert!(walk.finish(&facts, 10_000), "round {round}");
            let found: BTreeMap<Id, i64> = walk.reached.iter().map(|(id, (edge, _))| (id.clone(), edge.at)).collect();
            assert_eq!(found, expected, "round {round}: {told:#?}");
            for (id, (edge, _)) in &walk.reached {
                let Some(from) = &edge.from else { continue };
                let known = (edge.kind, from.clone(), edge.left, id.clone(), edge.at);
                assert!(plain.contains(&known) && edge.left >= expected[from], "round {round}: {edge:?}");
                kinds.insert(edge.kind);
                far = far.max(walk.path_to(id).len());
            }
        }
    }
    assert!(far > 3 && kinds.len() == 4, "paths of {far}, {kinds:?}");
}

/// The nearest causes of what a process did at a time.
fn plain_causes(told: &[Told], id: &Id, until: i64) -> BTreeSet<(Kind, Option<Id>, i64, i64)> {
    let mut found = BTreeSet::new();
    for told_of in told {
        match told_of {
            Told::Process(process) if process.id == *id && made(told, process) <= until => {
                if let Some(maker) = process.maker.clone().filter(|maker| maker != id) {
                    let kind = if process.executed { Kind::Exec } else { Kind::Fork };
                    found.insert((kind, Some(maker), made(told, process), made(told, process)));
                }
            }
            Told::Run(by, ran, at) if by == id && *at <= until => {
                let writes = told.iter().filter_map(|told| match told {
                    Told::Write(from, file, left) if file == ran && left <= at => Some((*left, from.clone())),
                    _ => None,
                });
                if let Some((left, from)) = writes.max().filter(|(_, from)| from != id) {
                    found.insert((Kind::File, Some(from), left, *at));
                }
            }
            _ => {}
        }
    }
    let closed = |end: &End| {
        let closes = told.iter().filter_map(|told| match told {
            Told::Close(of, at) if of.host == end.host && of.socket == end.socket => Some(*at),
            _ => None,
        });
        closes.max()
    };
    let ends = ends(told);
    let mut servers: Vec<&End> =
        ends.iter().copied().filter(|end| end.process == *id && end.side == Side::Server && end.time <= until).collect();
    servers.sort();
    servers.reverse();
    let open: Vec<&End> = servers
        .iter()
        .copied()
        .filter(|end| closed(end).is_none_or(|at| at >= until && end.socket != Some(0)) || end.socket == Some(0))
        .collect();
    let callers =
        if open.is_empty() { servers.into_iter().take(1).collect::<Vec<_>>() } else { open.into_iter().take(8).collect() };
    for server in callers {
        match other_end(&ends, server) {
            Some(client) if client.process == *id => {}
            Some(client) => drop(found.insert((Kind::Connection, Some(client.process.clone()), client.time, server.time))),
            None => drop(found.insert((Kind::Connection, server.peer_address(), server.time, server.time))),
        }
    }
    found
}

#[test]
fn causes_are_the_nearest_ones_in_any_order() {
    let mut random = Random(seed() | 1);
    let mut most = 0;
    for round in 0..1_000 {
        let told = story(&mut random);
        let (effect, at): (Id, i64) = (random.below(PROCESSES).to_string().into(), 30 + random.below(30) as i64);
        let mut expected = BTreeSet::new();
        let (mut met, mut ahead) = (BTreeSet::new(), vec![(effect.clone(), at)]);
        while let Some((id, until)) = ahead.pop() {
            if !met.insert((id.clone(), until)) {
                continue;
            }
            for (kind, from, left, at) in plain_causes(&told, &id, until) {
                ahead.extend(from.clone().filter(|from| !from.contains(':')).map(|from| (from, left)));
                expected.insert((kind, from, left, id.clone(), at));
            }
        }
        let facts = facts(&told, &mut random);
        let mut walk = Backward::new([(effect, at)]);
        while !walk.fresh.is_empty() {
            walk.step(&facts);
        }
        let found: BTreeSet<_> =
            walk.edges.keys().map(|edge| (edge.kind, edge.from.clone(), edge.left, edge.to.clone(), edge.at)).collect();
        assert_eq!(found, expected, "round {round}: {told:#?}");
        most = most.max(found.len());
    }
    assert!(most > 8, "at most {most} causes");
}

fn alert(number: u64, entities: &[(Id, i64)]) -> Alert {
    let first = entities.iter().map(|(_, at)| *at).min().unwrap();
    Alert::of(format!("a{number}").into(), first, entities.iter().cloned().collect())
}

#[test]
fn incidents_are_the_alerts_that_reach_each_other() {
    let mut random = Random(seed() | 1);
    let mut together = 0;
    for round in 0..500 {
        let told = story(&mut random);
        let plain = edges(&told);
        let entity = |random: &mut Random| (Id::from(random.below(PROCESSES).to_string()), random.below(60) as i64);
        let alerts: Vec<Alert> = (0..6).map(|number| alert(number, &[entity(&mut random), entity(&mut random)])).collect();
        // Which reach which, then whoever is linked over any number of links.
        let mut group_of: Vec<usize> = (0..alerts.len()).collect();
        for one in 0..alerts.len() {
            let seeds: Vec<(Id, i64)> = alerts[one].entities.clone().into_iter().collect();
            let reached = reach(&plain, &seeds);
            for other in 0..alerts.len() {
                let linked = alerts[other]
                    .entities
                    .iter()
                    .any(|(id, at)| reached.get(id).is_some_and(|since| since <= at) || alerts[one].entities.contains_key(id));
                if linked {
                    let (from, to) = (group_of[one], group_of[other]);
                    group_of.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
                }
            }
        }
        let mut expected: BTreeMap<usize, BTreeSet<Id>> = BTreeMap::new();
        for (alert, group) in alerts.iter().zip(&group_of) {
            expected.entry(*group).or_default().insert(alert.id.clone());
        }
        let expected: BTreeSet<BTreeSet<Id>> = expected.into_values().collect();
        let incidents = group(alerts, &facts(&told, &mut random));
        let found = incidents.iter().map(|incident| incident.alerts.iter().map(|alert| alert.id.clone()).collect());
        assert_eq!(found.collect::<BTreeSet<BTreeSet<Id>>>(), expected, "round {round}: {told:#?}");
        for incident in &incidents {
            assert!(incident.alerts.is_sorted_by_key(|alert| (alert.first, alert.id.clone())), "round {round}");
            let valid = |edge: &Edge| {
                let from = edge.from.clone().unwrap();
                plain.contains(&(edge.kind, from, edge.left, edge.to.clone(), edge.at))
            };
            assert!(incident.edges.iter().all(valid), "round {round}");
        }
        together = together.max(6 - incidents.len());
    }
    assert!(together > 2, "{together}");
}
