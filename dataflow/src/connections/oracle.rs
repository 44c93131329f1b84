//! The plain recomputation: all admitted events, sorted and looked at together. No state, no groups, no forgetting.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weir_schema::BootId;

use super::row::Ends;
use super::*;

/// An event and the tick of its commit.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) actor: Arc<Actor>,
    pub(super) boot: BootId,
    pub(super) time: i64,
    pub(super) id: u64,
    /// `None` for an event that is no connection's.
    pub(super) touch: Option<Touch>,
    pub(super) commit: u64,
}

/// An address fact and the tick of its commit.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) fact: AddressFact,
    pub(super) commit: u64,
}

impl Heard {
    pub(super) fn touches(&self) -> HostTouches {
        HostTouches {
            place: Arc::clone(&self.actor.place),
            boot: self.boot,
            first_seen: self.time,
            actors: vec![Arc::clone(&self.actor)],
            touches: self.touch.iter().cloned().collect(),
        }
    }
}

/// All rows, sorted.
pub(super) fn rows(heard: &[&Heard], facts: &[&Told], lateness: Lateness) -> Vec<Connection> {
    let distinct: BTreeMap<u64, &Heard> = heard.iter().map(|heard| (heard.id, *heard)).collect();
    let ends = ends(distinct.values().copied());
    let by_isns = by_isns(&ends, lateness);
    let mut partner: BTreeMap<usize, usize> = by_isns.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect();
    let nth = nth(&ends, lateness);
    let alone: Vec<usize> = (0..ends.len()).filter(|end| !partner.contains_key(end)).collect();
    for (client, server) in by_tuple(&ends, &alone, lateness) {
        partner.insert(client, server);
        partner.insert(server, client);
    }
    let mut rows: Vec<Connection> = Vec::new();
    for (place, end) in ends.iter().enumerate() {
        let row = match (partner.get(&place), end.side) {
            (Some(other), Side::Client) => {
                let nth = if end.isns.is_some() { nth[place] } else { nth[*other] };
                Connection::new(Ends::Both { client: end, server: &ends[*other] }, nth, lateness)
            }
            (Some(_), Side::Server) => continue,
            (None, Side::Client) => {
                let missing = owner(facts, end, end.tuple.dst, lateness);
                Connection::new(Ends::Src { client: end, missing: missing.as_ref() }, nth[place], lateness)
            }
            (None, Side::Server) => {
                let missing = owner(facts, end, end.tuple.src, lateness);
                Connection::new(Ends::Dst { server: end, missing: missing.as_ref() }, nth[place], lateness)
            }
        };
        rows.push(row);
    }
    rows.sort();
    rows
}

/// A boot, a cookie, and what stands in for a cookie of 0.
type Socket = (BootId, u64, Option<(Side, Tuple)>);

fn ends<'a>(heard: impl Iterator<Item = &'a Heard>) -> Vec<End> {
    let mut hosts: BTreeMap<u64, Vec<&Heard>> = BTreeMap::new();
    heard.for_each(|heard| hosts.entry(heard.actor.place.host_key).or_default().push(heard));
    let mut ends = Vec::new();
    for mut heard in hosts.into_values() {
        let mut starts: BTreeMap<BootId, i64> = BTreeMap::new();
        for heard in &heard {
            let start = starts.entry(heard.boot).or_insert(heard.time);
            *start = heard.time.min(*start);
        }
        heard.sort_by_key(|heard| {
            let verb = heard.touch.as_ref().map(|touch| touch.verb);
            (heard.time, verb, heard.id)
        });
        let mut lives: BTreeMap<Socket, Vec<Vec<&Heard>>> = BTreeMap::new();
        for heard in heard {
            let Some(touch) = &heard.touch else { continue };
            let tuple = touch.tuple.expect("all of ours have one");
            let loose = (touch.socket == 0).then_some((touch.side.unwrap_or(Side::Client), tuple));
            let lives = lives.entry((heard.boot, touch.socket, loose)).or_default();
            let ended = |life: &Vec<&Heard>| {
                let touches = || life.iter().filter_map(|heard| heard.touch.as_ref());
                touches().any(|touch| touch.verb == Verb::Close) || touches().all(|touch| touch.result != 0)
            };
            let joins = lives.last().is_some_and(|life| loose.is_none() || (touch.verb == Verb::Close && !ended(life)));
            if !joins {
                lives.push(Vec::new());
            }
            lives.last_mut().unwrap().push(heard);
        }
        for ((boot, socket, loose), lives) in lives {
            let next_boot =
                starts.iter().filter(|(id, start)| (**start, **id) > (starts[&boot], boot)).map(|(_, start)| *start).min();
            for (n, life) in lives.iter().enumerate() {
                let open = |life: &Vec<&Heard>| life[0].touch.as_ref().is_some_and(|touch| touch.verb == Verb::Open);
                let next = lives.get(n + 1).filter(|next| open(next)).map(|next| next[0].time);
                let place = &life[0].actor.place;
                let key = match loose {
                    None => EndKey::of_socket(place, &boot, socket),
                    Some((side, tuple)) => EndKey::of_tuple(place, &boot, side, &tuple, (life[0].time, life[0].id)),
                };
                ends.extend(end(key, life, next.or(next_boot)));
            }
        }
    }
    ends
}

/// One life of one socket, its events in order of time.
fn end(key: EndKey, life: &[&Heard], ended_by: Option<i64>) -> Option<End> {
    let mut in_order: Vec<&&Heard> = life.iter().collect();
    in_order.sort_by_key(|heard| (heard.time, heard.id));
    let touches: Vec<&Touch> = in_order.iter().filter_map(|heard| heard.touch.as_ref()).collect();
    let side = touches.iter().find_map(|touch| touch.side)?;
    let isns = touches.iter().find(|touch| touch.isns.is_some());
    let opens = || touches.iter().filter(|touch| touch.verb == Verb::Open);
    let stood = opens().filter(|touch| touch.result == 0).map(|touch| touch.time).min();
    let failed =
        opens().filter(|touch| touch.result != 0).map(|touch| (touch.time, touch.result)).min().filter(|_| stood.is_none());
    let begun = |touch: &&Touch| touch.duration_ms.map(|ms| touch.time - ms as i64 * 1_000_000);
    let closed = touches.iter().filter(|touch| touch.verb == Verb::Close).map(|touch| touch.time).max();
    let last = touches.iter().map(|touch| touch.time).max()?;
    let named = in_order.iter().find(|heard| heard.actor.process_id.is_some()).or_else(|| in_order.first())?;
    Some(End {
        key,
        side,
        tuple: touches[0].tuple?,
        isns: isns.and_then(|touch| touch.isns).map(|(local, peer)| match side {
            Side::Client => Isns { client: local, server: peer },
            Side::Server => Isns { client: peer, server: local },
        }),
        tuple_since: touches[0].time,
        isns_since: isns.map_or(i64::MAX, |touch| touch.time),
        opened: stood.or_else(|| touches.iter().filter_map(begun).min()).unwrap_or(touches[0].time),
        closed: failed.map(|(time, _)| time).or(closed).or_else(|| ended_by.map(|time| time.max(last))),
        failed: failed.map(|(_, errno)| errno),
        sent: touches.iter().map(|touch| touch.sent).max()?,
        received: touches.iter().map(|touch| touch.received).max()?,
        actor: Arc::clone(&named.actor),
    })
}

fn near(a: &End, b: &End, lateness: Lateness, since: fn(&End) -> i64) -> bool {
    let over = |end: &End| end.closed.map_or(i64::MAX, |closed| closed + lateness.skew_ns());
    a.actor.place.tenant == b.actor.place.tenant && since(a) <= over(b) && since(b) <= over(a)
}

fn by_isns(ends: &[End], lateness: Lateness) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for (c, client) in ends.iter().enumerate().filter(|(_, end)| end.side == Side::Client) {
        for (s, server) in ends.iter().enumerate().filter(|(_, end)| end.side == Side::Server) {
            if client.isns.is_some() && client.isns == server.isns && near(client, server, lateness, |end| end.isns_since) {
                let apart = client.opened.abs_diff(server.opened);
                let known = client.isns_since.max(server.isns_since);
                pairs.push((known, client.tuple != server.tuple, apart, client.key, server.key, c, s));
            }
        }
    }
    pairs.sort_unstable();
    let (mut taken, mut chosen) = (BTreeSet::new(), Vec::new());
    for (.., client, server) in pairs {
        if !taken.contains(&client) && !taken.contains(&server) {
            taken.extend([client, server]);
            chosen.push((client, server));
        }
    }
    chosen
}

/// Which connection each end is, among those of its tenant, side and time with the same sequence numbers.
fn nth(ends: &[End], lateness: Lateness) -> Vec<u32> {
    let before = |end: &End| {
        let alike = |other: &&End| end.isns.is_some() && other.isn_group() == end.isn_group() && other.side == end.side;
        let earlier = ends.iter().filter(alike).filter(|other| (other.isns_since, other.key) < (end.isns_since, end.key));
        earlier.filter(|other| near(other, end, lateness, |end| end.isns_since)).count() as u32
    };
    ends.iter().map(before).collect()
}

fn by_tuple(ends: &[End], alone: &[usize], lateness: Lateness) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for c in alone.iter().copied().filter(|end| ends[*end].side == Side::Client) {
        for s in alone.iter().copied().filter(|end| ends[*end].side == Side::Server) {
            let (client, server) = (&ends[c], &ends[s]);
            let agree = client.isns.is_none() || server.isns.is_none() || client.isns == server.isns;
            let local = is_local(&client.tuple.src) || is_local(&client.tuple.dst);
            let reach = !local || client.actor.place.host == server.actor.place.host;
            if agree && reach && client.tuple == server.tuple && near(client, server, lateness, |end| end.tuple_since) {
                pairs.push((c, s));
            }
        }
    }
    let only = |pair: &&(usize, usize)| {
        pairs.iter().filter(|other| other.0 == pair.0).count() == 1 && pairs.iter().filter(|other| other.1 == pair.1).count() == 1
    };
    pairs.iter().filter(only).copied().collect()
}

/// Who had an address when the end closed (or has it now): by the words said until then, else by first words soon after.
fn owner(facts: &[&Told], end: &End, ip: std::net::IpAddr, lateness: Lateness) -> Option<Arc<Actor>> {
    let own = &end.actor.place;
    let nobody = |place: &Arc<Place>| Some(Arc::new(Actor::nobody(Arc::clone(place))));
    if ip.is_loopback() {
        return nobody(own);
    }
    let ours = facts.iter().map(|told| &told.fact).filter(|fact| fact.place.tenant == own.tenant);
    let mut hosts: BTreeMap<u64, BTreeMap<(i64, u64), &AddressFact>> = BTreeMap::new();
    for fact in ours {
        hosts.entry(fact.place.host_key).or_default().insert((fact.time, fact.id), fact);
    }
    let until = end.closed.unwrap_or(i64::MAX);
    let said = hosts.values().filter_map(|words| words.range(..=(until, u64::MAX)).next_back().map(|(_, fact)| *fact));
    let mut owners: Vec<&AddressFact> = said.filter(|fact| fact.addresses.contains(&ip)).collect();
    if owners.is_empty() {
        let reaches = until.saturating_add(lateness.first_word_ms() as i64 * 1_000_000);
        let first = hosts.values().filter_map(|words| words.values().next().copied());
        owners = first.filter(|fact| until < fact.time && fact.time <= reaches && fact.addresses.contains(&ip)).collect();
    }
    if owners.iter().any(|fact| fact.place.host_key == own.host_key) {
        return nobody(own);
    }
    match owners.as_slice() {
        [one] if !is_local(&ip) => nobody(&one.place),
        _ => None,
    }
}
