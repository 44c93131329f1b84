//! The simulated fleet under the rules that ship: they find the intrusion that is played, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use weir_rules::{Around, CorrelationHit, Correlator, EventFields, Matcher, Matching, RuleSet};

use weir_loadtest::fleet::{Books, Fleet, FleetOptions, INTRUSION_LASTS_NS};
use weir_schema::{Event, Kind};

const SECOND_NS: i64 = 1_000_000_000;
/// Places of its two hosts in the fleet.
const VICTIM: usize = 0;
const NEXT: usize = 1;

/// Events of kinds that rules look at: of the others there are many.
fn told(seed: u64, hosts: usize, seconds: i64, intrusion_ns: Option<i64>) -> (Vec<(usize, String, Event)>, Books) {
    let mut fleet = Fleet::new(FleetOptions { hosts, rate: 1_000, seed, start_ns: 0 });
    if let Some(at) = intrusion_ns {
        fleet.intrude(at);
    }
    let names: Vec<String> = fleet.hosts().iter().map(|host| host.host.host.to_string()).collect();
    assert!(fleet.hosts().iter().all(|host| host.host.simulated));
    let mut events = Vec::new();
    fleet.start(0, |host, event| events.push((host, names[host].clone(), event)));
    for tenth in 1..=10 * seconds {
        fleet.advance(tenth * SECOND_NS / 10, |host, event| events.push((host, names[host].clone(), event)));
    }
    (events, fleet.books())
}

/// Rule and host, and how many events it found there.
fn found(events: &[(usize, String, Event)]) -> BTreeMap<(String, usize), usize> {
    let set = RuleSet::load(weir_config::RULE_FILES.iter().copied());
    assert!(set.errors.is_empty() && set.rules.len() > 100, "{:?}", set.errors);
    let (mut matcher, mut hits, mut found) = (Matcher::default(), Vec::new(), BTreeMap::new());
    let mut correlator = Correlator::default();
    for (number, (at, host, event)) in events.iter().enumerate().filter(|(_, (.., event))| event.kind != Kind::Sample) {
        hits.clear();
        let source = EventFields::new(event, host);
        matcher.hits(&set, &source, Matching::All, &mut hits);
        for hit in hits.iter().filter(|hit| set.rules[**hit].alerts) {
            *found.entry((set.rules[*hit].name.clone(), *at)).or_default() += 1;
        }
        let process_id = event.process.as_deref().map(|it| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&it.start_ns.to_le_bytes());
            id[8..12].copy_from_slice(&it.pid.to_le_bytes());
            id
        });
        let around = Around { region: Some("r"), process_id, ..Around::default() };
        correlator.take(&set, &hits, &source, &CorrelationHit { tenant: "t", time: event.time, number, around });
    }
    for one in correlator.finish(&set).into_iter().filter(|one| set.correlations[one.correlation].alerts) {
        *found.entry((set.correlations[one.correlation].name.clone(), events[one.events[0]].0)).or_default() += 1;
    }
    found
}

#[test]
fn the_rules_that_ship_find_nothing_but_the_intrusion() {
    // Twenty hosts: every app in every place that it has on a host.
    for seed in [7, 42] {
        let (events, _) = told(seed, 20, 20, None);
        assert!(events.len() > 15_000, "{}", events.len());
        assert_eq!(found(&events), BTreeMap::new(), "seed {seed}");
    }
    let begin = 2 * SECOND_NS;
    let (events, books) = told(42, 20, 25, Some(begin));
    assert_eq!(events.len() as u64, books.events);
    let expected = [
        "Account in use asked below a web server",
        "Everything allowed on a program in a scratch directory",
        "File written into a scratch directory and run",
        "Password hashes read by an unusual program",
        "Program below a web server run from a scratch directory",
        "Program fetched from a bare address into a scratch directory",
        "Shell started by a web server",
    ];
    assert_eq!(found(&events), expected.map(|rule| ((rule.to_owned(), VICTIM), 1)).into());
    let (first, last) = (begin, begin + INTRUSION_LASTS_NS);
    let of_shell =
        |event: &Event| event.process.as_ref().is_some_and(|process| process.cmdline.as_deref() == Some("sh -c id; exec sh"));
    let times: Vec<i64> = events.iter().filter(|(.., event)| of_shell(event)).map(|(.., event)| event.time).collect();
    assert_eq!(times, [first, last], "it begins and ends when it is to");
}

#[test]
fn both_ends_of_its_way_on_are_told_and_one_host_alone_is_left_in_peace() {
    let (events, books) = told(7, 12, 25, Some(SECOND_NS));
    let of = |kind| {
        let events = events.iter().filter(move |(.., event)| event.kind == kind);
        events.filter(|(.., event)| event.fields.bytes_sent.is_some_and(|sent| sent == 6_800_000 || sent == 42_000))
    };
    let ends: Vec<_> = of(Kind::Close).collect();
    let [(VICTIM, _, client), (NEXT, _, server)] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!((client.fields.isn_local, client.fields.isn_peer), (server.fields.isn_peer, server.fields.isn_local));
    assert_eq!(client.fields.src_port, server.fields.src_port);
    let accepts = events.iter().filter(|(.., event)| event.kind == Kind::Accept).count() as u64;
    assert_eq!(accepts + 1, books.connections, "the address outside has no agent");

    let (alone, _) = told(7, 1, 25, Some(SECOND_NS));
    assert_eq!(alone, told(7, 1, 25, None).0);
}
