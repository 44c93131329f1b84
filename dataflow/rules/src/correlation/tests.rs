//! Correlations: what is read and refused, how rules and fields are found, and matches against a search by the definition.

use std::collections::BTreeSet;

use proptest::prelude::*;
use weir_schema::parse_line;

use super::window::{Datum, Moment, Seen};
use super::{Around, Comparison, Condition, CorrelationHit, Correlator, Measure, Shape};
use crate::error::Why;
use crate::event::EventFields;
use crate::matcher::Matcher;
use crate::set::{Matching, Priority, RuleSet, Selection};

const RULES: &str = "
title: Refused
name: refused
level: low
logsource: {category: network_connection}
detection: {selection: {Initiated: 'true'}, condition: selection}
---
title: Run
name: run
id: 11111111-1111-4111-8111-111111111111
logsource: {category: process_creation}
detection: {selection: {Image|contains: '/'}, condition: selection}
---
";

fn load(correlations: &str) -> RuleSet {
    RuleSet::load([("f.yml", format!("{RULES}{correlations}").as_str())])
}

fn scan(section: &str) -> String {
    format!("title: Scan\nname: scan\ncorrelation:\n    {}\n", section.replace('\n', "\n    "))
}

const SCAN: &str = "type: value_count
rules: [refused]
group-by: [host, SourceIp]
timespan: 5m
condition: {field: DestinationPort, gte: 2}";

#[test]
fn rules_fields_and_levels_are_found() {
    let set = load(&scan(SCAN));
    assert!(set.errors.is_empty(), "{:?}", set.errors);
    let one = &set.correlations[0];
    assert_eq!((one.verdict().as_str(), one.priority, one.level, one.shape.span), ("ok", Priority::Notice, 0, 300_000_000_000));
    let own: Vec<bool> = set.rules.iter().map(|rule| rule.alerts).collect();
    assert_eq!(own, [false, true], "what is counted has no alert of its own");
    let generating = load(&scan(&format!("{SCAN}\ngenerate: true")));
    assert!(generating.rules.iter().all(|rule| rule.alerts));
    // A mistake in a correlation makes nothing louder.
    let wrong = load(&scan(&SCAN.replace("5m", "5 minutes")));
    assert_eq!((wrong.errors.len(), wrong.rules[0].alerts), (1, false));
    let lacking = load(&scan(&SCAN.replace("host,", "Nobody,")));
    assert!(lacking.correlations[0].verdict().starts_with("partly: field Nobody"), "{}", lacking.correlations[0].verdict());
    assert_ne!(lacking.correlations[0].version, one.version);
    assert_eq!(load(&format!("# moved\n{}", scan(SCAN))).correlations[0].version, one.version);
}

#[test]
fn selected_correlations_keep_what_they_count() {
    let mut set = load(&scan(&format!("{SCAN}\ngenerate: true")).replace("name: scan", "name: scan\nlevel: high"));
    set.select(&Selection { priority_min: Some(Priority::Error), ..Selection::default() }).unwrap();
    assert_eq!((set.rules[0].enabled, set.rules[0].alerts, set.rules[1].enabled), (true, false, false));
    assert!(set.correlations[0].enabled && set.correlations[0].alerts);
    set.select(&Selection { rules_off: vec!["Scan".to_owned()], ..Selection::default() }).unwrap();
    assert!(!set.correlations[0].enabled && !set.rules[0].enabled);
}

#[test]
fn what_is_wrong_is_refused_with_line_and_cure() {
    let first = RULES.lines().count() + 1;
    let cases = [
        (scan(&SCAN.replace("value_count", "count")), 3, "the type \"count\" is unknown"),
        (scan(&SCAN.replace("refused", "nobody")), 4, "no Sigma rule has the name or id \"nobody\""),
        (scan(&SCAN.replace("[refused]", "[refused, refused]")), 4, "twice"),
        (scan(&SCAN.replace("5m", "5M")), 6, "the timespan \"5M\" is none"),
        (scan(&SCAN.replace("5m", "0s")), 6, "the timespan"),
        (scan(&SCAN.replace("5m", "99d")), 6, "longer than 30 days"),
        (scan(&SCAN.replace("gte: 2", "gte: x")), 7, "no whole number"),
        (scan(&SCAN.replace("gte: 2", "over: 2")), 7, "the condition \"over\" is unknown"),
        (scan(&SCAN.replace("gte: 2", "lt: 1")), 7, "holds for no count"),
        (scan(&SCAN.replace("gte: 2", "gt: 9, lt: 5")), 7, "holds for no count"),
        (scan(&SCAN.replace("field: DestinationPort, ", "")), 7, "names no field"),
        (scan(&SCAN.replace("value_count", "event_count")), 7, "counts no values"),
        (scan(&SCAN.replace("value_count", "value_percentile")), 7, "which percentile"),
        (scan(&SCAN.replace("value_count", "value_sum").replace("DestinationPort", "Image")), 7, "is no number"),
        (scan(&SCAN.replace("value_count", "temporal").replace("field: DestinationPort, gte: 2", "gte: 2")), 7, "from 1 to 1"),
        (scan(&format!("{SCAN}\nwindow: 5")), 8, "the key \"window\""),
        (scan(&format!("{SCAN}\ngenerate: perhaps")), 8, "neither true nor false"),
        (scan(&format!("{SCAN}\naliases: {{x: {{run: Image}}}}")), 8, "which rules: does not name"),
        (scan(&format!("{SCAN}\naliases: {{x: {{}}}}")), 8, "says no field"),
        (scan(&SCAN.replace("refused", "scan")), 4, "or refers to itself"),
        ("title: S\ncorrelation: 5\n".to_owned(), 1, "no mapping"),
        ("title: S\ncorrelation: {type: event_count}\n".to_owned(), 1, "has no rules"),
        ("correlation: {}\n".to_owned(), 0, "no title"),
    ];
    for (text, line, what) in cases {
        let set = load(&text);
        let [error] = &set.errors[..] else { panic!("{text}: {:?}", set.errors) };
        assert!(error.what.contains(what), "{text}: {error}");
        assert!(!error.cure.is_empty() && set.correlations.is_empty());
        assert_eq!(error.place.line, first + line, "{text}: {error}");
    }
}

#[test]
fn correlations_of_correlations_go_by_the_groups_of_those() {
    let upper =
        "title: Both\ncorrelation:\n    type: temporal_ordered\n    rules: [scan, run]\n    group-by: [host]\n    timespan: 1h\n";
    let set = load(&format!("{upper}---\n{}", scan(SCAN)));
    assert!(set.errors.is_empty(), "{:?}", set.errors);
    let both = set.correlations.iter().find(|one| one.name == "Both").unwrap();
    assert_eq!((both.level, both.settling, both.alerts), (1, 300_000_000_000, true));
    assert!(!set.correlations.iter().any(|one| one.name == "Scan" && one.alerts));
    let no_group = load(&format!("{}---\n{}", upper.replace("[host]", "[User]"), scan(SCAN)));
    assert!(no_group.errors[0].what.contains("does not group by it"), "{:?}", no_group.errors);
    let mut deep = format!("{}---\n", scan(SCAN));
    for level in 1..=5 {
        let below = if level == 1 { "scan".to_owned() } else { format!("d{}", level - 1) };
        deep += &format!(
            "title: D{level}\nname: d{level}\ncorrelation: {{type: event_count, rules: [{below}], group-by: [host], timespan: 1h, condition: {{gte: 1}}}}\n---\n"
        );
    }
    let deep = load(&deep);
    assert_eq!(deep.correlations.len(), 3);
    let whys: BTreeSet<String> = deep.errors.iter().map(|error| format!("{:?}", error.why)).collect();
    assert_eq!(whys, BTreeSet::from(["Limit".to_owned(), "Shape".to_owned()]));
    assert!(deep.errors.iter().any(|error| error.why == Why::Limit));
}

/// Matches over JSON lines: title, group, lines.
fn found(set: &RuleSet, lines: &[&str]) -> Vec<(String, Vec<String>, Vec<usize>)> {
    let (mut correlator, mut matcher, mut hits) = (Correlator::default(), Matcher::default(), Vec::new());
    for (number, line) in lines.iter().enumerate() {
        let told = parse_line(line).unwrap();
        let source = EventFields::new(&told.event, &told.host.host);
        hits.clear();
        matcher.hits(set, &source, Matching::All, &mut hits);
        let around = Around { region: Some("eu"), ..Around::default() };
        correlator.take(set, &hits, &source, &CorrelationHit { tenant: "t", time: told.event.time, number, around });
    }
    let found = correlator.finish(set).into_iter();
    found.map(|one| (set.correlations[one.correlation].name.clone(), one.keys, one.events)).collect()
}

#[test]
fn events_are_counted_by_group_and_value() {
    let connect = |second: u32, source: &str, port: u16| {
        format!(
            r#"{{"kind":"connect","time":"2026-01-01T00:0{}:{:02}Z","host":"h","src_ip":"{source}","dst_ip":"10.0.0.9","dst_port":{port}}}"#,
            second / 60,
            second % 60
        )
    };
    let run = r#"{"kind":"exec","time":"2026-01-01T00:06:00Z","host":"h","exe":"/bin/sh","result":0}"#.to_owned();
    let upper = "title: Both\ncorrelation:\n    type: temporal_ordered\n    rules: [scan, run]\n    group-by: [host, region]\n    timespan: 1h\n";
    let text = format!("{}---\n{upper}", scan(&SCAN.replace("host,", "host, region,")));
    let set = load(&text);
    assert!(set.errors.is_empty(), "{:?}", set.errors);
    let lines = [
        connect(0, "10.0.0.1", 80),
        connect(1, "10.0.0.1", 80),
        connect(2, "10.0.0.2", 81),
        connect(299, "10.0.0.1", 82),
        connect(301, "10.0.0.2", 81),
        connect(302, "10.0.0.2", 81),
        run,
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        found(&set, &lines),
        [
            ("Scan".to_owned(), keys(&["t", "h", "eu", "10.0.0.1"]), vec![0, 1, 3]),
            ("Both".to_owned(), keys(&["t", "h", "eu"]), vec![0, 1, 3, 6]),
        ]
    );
}

#[derive(Debug, Clone)]
struct Hit {
    at: Moment,
    inputs: u32,
    datum: i64,
}

impl Seen for Hit {
    fn at(&self) -> Moment {
        self.at
    }

    fn inputs(&self) -> u32 {
        self.inputs
    }

    fn datum(&self) -> Option<Datum> {
        Some(Datum::Number(self.datum))
    }
}

/// Whether a set of hits meets the condition, by the definition.
fn meets(shape: &Shape, window: &[Hit]) -> bool {
    let mut values: Vec<i64> = window.iter().map(|hit| hit.datum).collect();
    values.sort_unstable();
    let sum: i128 = values.iter().map(|value| i128::from(*value)).sum();
    let all = |count: usize| shape.condition.holds(count as i128, 1);
    match shape.measure {
        Measure::Events => all(window.len()),
        Measure::Values => all(values.iter().collect::<BTreeSet<_>>().len()),
        Measure::Sum => shape.condition.holds(sum, 1),
        Measure::Average => shape.condition.holds(sum, values.len() as i128),
        Measure::Percentile(percentile) => {
            let rank = (values.len() * usize::from(percentile)).div_ceil(100).max(1);
            shape.condition.holds(values[rank - 1].into(), 1)
        }
        Measure::Rules => all((0..shape.inputs).filter(|bit| window.iter().any(|hit| hit.inputs >> bit & 1 == 1)).count()),
        Measure::Ordered => {
            // Any hit of the first, any later one of the second, and so on.
            fn rest(window: &[Hit], bit: usize, inputs: usize) -> bool {
                bit == inputs
                    || window
                        .iter()
                        .enumerate()
                        .any(|(at, hit)| hit.inputs >> bit & 1 == 1 && rest(&window[at + 1..], bit + 1, inputs))
            }
            rest(window, 0, shape.inputs)
        }
    }
}

pub(crate) fn shape(kind: usize, number: i64) -> Shape {
    let one = |how| Condition(vec![(how, number)]);
    let inputs = 3;
    let (measure, condition) = match kind {
        0 => (Measure::Events, one(Comparison::AtLeast)),
        1 => (Measure::Values, one(Comparison::Over)),
        2 => (Measure::Sum, one(Comparison::AtLeast)),
        3 => (Measure::Average, one(Comparison::Under)),
        4 => (Measure::Percentile(75), one(Comparison::AtLeast)),
        5 => (Measure::Rules, Condition(vec![(Comparison::AtLeast, 3)])),
        6 => (Measure::Ordered, Condition(vec![(Comparison::AtLeast, 3)])),
        7 => (Measure::Events, Condition(vec![(Comparison::Over, 1), (Comparison::AtMost, number)])),
        8 => (Measure::Values, one(Comparison::Other)),
        _ => (Measure::Rules, Condition(vec![(Comparison::Equal, 2)])),
    };
    Shape { measure, condition, span: 10, inputs }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn matches_are_runs_of_windows_that_meet_the_condition(
        seen in prop::collection::vec((0_i64..80, 0_u8..3, 1_u32..8, 0_i64..5), 0..40),
        kind in 0_usize..10,
        number in 0_i64..8,
    ) {
        let shape = shape(kind, number);
        let mut hits: Vec<Hit> =
            seen.into_iter().map(|(time, id, inputs, datum)| Hit { at: (time, [id; 16]), inputs, datum }).collect();
        hits.sort_by_key(|hit| hit.at);
        hits.dedup_by_key(|hit| hit.at);
        let window = |at: usize| {
            let until = hits[at].at.0 + shape.span;
            &hits[at..at + hits[at..].iter().take_while(|hit| hit.at.0 < until).count()]
        };
        let is_anchor = |at: usize| {
            let first = shape.measure != Measure::Ordered || hits[at].inputs & 1 == 1 && {
                // The row begins with this very hit.
                let mut own = window(at).to_vec();
                own.iter_mut().skip(1).for_each(|hit| hit.inputs &= !1);
                meets(&shape, &own)
            };
            first && meets(&shape, window(at))
        };
        let mut expected: Vec<(BTreeSet<usize>, usize)> = Vec::new();
        for at in (0..hits.len()).filter(|at| is_anchor(*at)) {
            let all: BTreeSet<usize> = (at..at + window(at).len()).collect();
            match expected.last_mut() {
                Some((known, _)) if known.contains(&at) => known.extend(all),
                _ => expected.push((all, at)),
            }
        }
        let anchors = shape.anchors(&hits, i64::MAX);
        let found = shape.stretches(&hits, &anchors, None);
        let told: Vec<(BTreeSet<usize>, usize)> =
            found.iter().map(|one| (one.range.clone().collect(), one.anchors.unwrap().0)).collect();
        prop_assert_eq!(&told, &expected);
        // What does not wait is met by any interval that meets it, and with the first hit that makes it so.
        if !shape.waits() {
            let any = (0..hits.len()).any(|at| (1..=window(at).len()).any(|end| meets(&shape, &window(at)[..end])));
            prop_assert_eq!(any, !found.is_empty());
            for one in &found {
                let anchor = one.anchors.unwrap().0;
                let met = shape.met(&hits, anchor);
                prop_assert!(meets(&shape, &hits[anchor..=met]));
                prop_assert!(met == anchor || !meets(&shape, &hits[anchor..met]));
            }
        }
    }

    #[test]
    fn no_correlation_makes_it_panic(text in "[a-z: \\[\\]{},\n0-9-]{0,120}") {
        load(&format!("title: t\ncorrelation:\n  {text}\n"));
        load(&format!("title: t\ncorrelation: {{{text}}}\n"));
    }
}
