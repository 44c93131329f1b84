//! `weir rules run`: rules and correlations over a recording, without a cluster.
//!
//! What single events match is printed as they are read; what correlations make of them behind it, because a later line may be an earlier event.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use anyhow::Context as _;
use weir_rules::{Around, CorrelationHit, Correlator, EventFields, Match, Matcher, Matching, RuleSet};
use weir_schema::{JsonEvent, Name, ProcessId, parse_line, write_time};

/// Prints one JSON alert a line.
pub(super) fn run(set: &RuleSet, events: &Path, matching: Matching) -> anyhow::Result<()> {
    for error in &set.errors {
        eprintln!("refused: {error}");
    }
    let file = File::open(events).with_context(|| format!("could not open {}", events.display()))?;
    let mut out = std::io::stdout().lock();
    let (mut matcher, mut correlator, mut hits) = (Matcher::default(), Correlator::default(), Vec::new());
    let (mut alerts, mut skipped) = (0_u64, 0_u64);
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("reading {}", events.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        let told = match parse_line(&line) {
            Ok(told) => told,
            Err(why) => {
                eprintln!("{}:{}: skipped: {why}", events.display(), at + 1);
                skipped += 1;
                continue;
            }
        };
        let source = EventFields::new(&told.event, &told.host.host);
        hits.clear();
        matcher.hits(set, &source, matching, &mut hits);
        count(&mut correlator, (set, &hits), &told, &source, at + 1);
        for rule in hits.iter().map(|hit| &set.rules[*hit]).filter(|rule| rule.alerts) {
            let alert = serde_json::json!({
                "time": text_of(told.event.time),
                "rule": rule.name,
                "rule_id": rule.id,
                "priority": rule.priority.to_string(),
                "tags": rule.tags,
                "host": &*told.host.host,
                "line": at + 1,
                "output": rule.output.render(&source),
            });
            writeln!(out, "{alert}")?;
            alerts += 1;
        }
    }
    if correlator.refused > 0 {
        eprintln!("{} hits of correlations found no room and were not counted: split the recording", correlator.refused);
    }
    let mut matches = correlator.finish(set);
    matches.retain(|one| set.correlations[one.correlation].alerts);
    matches.sort_by_key(|one| (one.times, one.correlation));
    for one in &matches {
        writeln!(out, "{}", alert_of(set, one))?;
    }
    eprintln!("{} alerts, {skipped} lines skipped", alerts + matches.len() as u64);
    Ok(())
}

/// Gives an event to the correlations that count it.
fn count(
    correlator: &mut Correlator,
    (set, hits): (&RuleSet, &[usize]),
    told: &JsonEvent,
    source: &EventFields<'_>,
    line: usize,
) {
    let (host, tenant) = (&told.host, told.tenant.as_ref().map_or("default", Name::as_str));
    let process = told.event.process.as_deref();
    let process_id = process.map(|it| ProcessId::new(tenant, &host.host, &host.boot_id, it.pid, it.start_ns).0);
    let (region, cloud, zone) = (told.region.as_ref().map(Name::as_str), host.cloud.as_deref(), host.zone.as_deref());
    let around = Around { region, cloud, zone, process_id };
    correlator.take(set, hits, source, &CorrelationHit { tenant, time: told.event.time, number: line, around });
}

fn alert_of(set: &RuleSet, one: &Match) -> serde_json::Value {
    let correlation = &set.correlations[one.correlation];
    let group: serde_json::Map<String, serde_json::Value> =
        correlation.group_by.iter().cloned().zip(one.keys.iter().skip(1).map(|value| value.as_str().into())).collect();
    let lines: Vec<usize> = one.events.iter().copied().take(LINES_MAX).collect();
    serde_json::json!({
        "time": text_of(one.times.0),
        "last": text_of(one.times.1),
        "rule": correlation.name,
        "rule_id": correlation.id,
        "priority": correlation.priority.to_string(),
        "tags": correlation.tags,
        "group": group,
        "events": one.count,
        "lines": lines,
    })
}

fn text_of(time: i64) -> String {
    let mut text = String::new();
    write_time(&mut text, time);
    text
}

/// Lines named of one match: the first; `events` says how many there are.
const LINES_MAX: usize = 100;
