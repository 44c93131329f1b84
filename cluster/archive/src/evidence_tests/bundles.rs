//! Rows go out as a bundle and come in again.

use weir_schema::parse_line;

use super::fixture::{Place, ROWS, time};
use crate::catalog::Archive;
use crate::error::Error;
use crate::export::{Exported, export};
use crate::import::{Imported, import_archive};
use crate::query::files_only;
use crate::store::Store;
use crate::verify::verify;

async fn exported(place: &Place, predicate: Option<&str>, out: &Place) -> Result<Exported, Error> {
    let snapshot = files_only(place.archive().await).await.unwrap();
    export(&snapshot, predicate, &out.path(""), 5).await
}

async fn import(target: &Archive, from: &Place) -> Imported {
    import_archive(target, from.store(), 6, &mut |_| {}).await.unwrap()
}

/// Every column of events but those that an import sets.
const CARRIED: &str = "SELECT event_id, time, received, kind, tenant, region, host, app, pid, process_id, exe, args, path, dst_ip, \
    socket_id, result, agent, boot_id, simulated, late FROM events";

#[tokio::test]
async fn a_bundle_is_an_archive_with_the_same_rows() {
    let (place, out) = (Place::filled().await, Place::new());
    let wanted = "host = 'web-1' AND kind IN ('connect', 'setuid')";
    let exported = exported(&place, Some(wanted), &out).await.unwrap();
    // Of 40 rows every other is a connect or a setuid. Samples have no kind.
    assert_eq!((exported.rows.events, exported.rows.samples), (2 * ROWS, 0));
    let verified = out.verify(Some(&exported.head)).await;
    assert_eq!((verified.faults, verified.rows, verified.unreferenced), (vec![], 2 * ROWS, 0));
    let ours = place.query(&format!("SELECT * FROM events WHERE {wanted} ORDER BY event_id")).await.unwrap();
    assert_eq!(out.query("SELECT * FROM events ORDER BY event_id").await.unwrap(), ours);
    let text = String::from_utf8(out.read("events.jsonl")).unwrap();
    assert_eq!(text.lines().count() as u64, 2 * ROWS);
    for line in text.lines() {
        let parsed = parse_line(line).unwrap();
        assert!(line.starts_with("{\"event_id\":\"") && line.contains("\"tick\":"), "{line}");
        assert_eq!((&*parsed.host.host, parsed.event.container.unwrap().app.as_deref()), ("web-1", Some("shop")));
        let fields = parsed.event.fields;
        assert!(fields.path.is_some_and(|path| path.contains("\"quoted\"")) || fields.socket_id > Some(u64::MAX - ROWS));
    }
}

#[tokio::test]
async fn damage_in_a_bundle_is_named() {
    let (place, out) = (Place::filled().await, Place::new());
    exported(&place, None, &out).await.unwrap();
    for object in out.objects().into_iter().filter(|object| object != "bundle.json") {
        let whole = out.read(&object);
        for at in (0..whole.len()).step_by((whole.len() / 16).max(1)) {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            out.write(&object, &flipped);
            assert_eq!(out.damaged(None).await, [object.as_str()], "byte {at} of {object}");
        }
        std::fs::remove_file(out.path(&object)).unwrap();
        if object.starts_with("manifest") {
            assert!(verify(out.store(), None, &mut |_| {}).await.is_err());
        } else {
            assert_eq!(out.damaged(None).await, [object.as_str()], "without {object}");
        }
        out.write(&object, &whole);
    }
    let bundle = String::from_utf8(out.read("bundle.json")).unwrap();
    let told = serde_json::from_str::<crate::Bundle>(&bundle).unwrap();
    for hash in [&told.manifest_sha256, &told.events_jsonl.sha256] {
        let first = if hash.starts_with('a') { "b" } else { "a" };
        out.write("bundle.json", bundle.replace(hash, &format!("{first}{}", &hash[1..])).as_bytes());
        assert_eq!(out.damaged(None).await, ["bundle.json"]);
    }
    for (from, to) in [("\"samples\"", "\"simples\""), ("\"events\": ", "\"events\": 1"), ("\"tick\": ", "\"tick\": 1")] {
        out.write("bundle.json", bundle.replacen(from, to, 1).as_bytes());
        assert_eq!(out.damaged(None).await, ["bundle.json"], "{from}");
    }
}

#[tokio::test]
async fn a_predicate_that_is_none_is_refused_before_anything_is_written() {
    let place = Place::filled().await;
    let cases = [
        ("hots = 'web-1'", "hots"),
        ("host", "non-boolean"),
        ("host = 'a'; DROP TABLE events", "end of expression"),
        ("SELECT 1", "SELECT 1"),
        ("count(*) > 1", "count"),
        ("host IN (SELECT host FROM secrets)", "secrets"),
        ("", "predicate"),
    ];
    for (predicate, named) in cases {
        let out = Place::new();
        let why = exported(&place, Some(predicate), &out).await.unwrap_err().to_string();
        assert!(why.contains("no condition over the columns of events") && why.contains(named), "{predicate}: {why}");
        assert_eq!(out.objects(), Vec::<String>::new(), "{predicate}");
    }
    let full = Place::new();
    full.write("something", b"");
    let why = exported(&place, None, &full).await.unwrap_err().to_string();
    assert!(why.contains("not empty"), "{why}");
}

#[tokio::test]
async fn samples_come_along_where_the_predicate_speaks_of_them() {
    let place = Place::filled().await;
    for (predicate, events, samples) in [
        (None, 8 * ROWS, 4 * ROWS),
        (Some("region = 'eu'"), 4 * ROWS, 2 * ROWS),
        (Some("events.region = 'eu'"), 4 * ROWS, 0),
        (Some("dst_port = 443"), 4 * ROWS, 0),
        (Some("false"), 0, 0),
        (Some("time < '2026-11-23T16:16:41Z'"), 4, 2),
    ] {
        let out = Place::new();
        let rows = exported(&place, predicate, &out).await.unwrap().rows;
        assert_eq!((rows.events, rows.samples), (events, samples), "{predicate:?} {}", time(1_000));
        assert_eq!(out.verify(None).await.faults, []);
        assert_eq!(out.count("SELECT count(*) FROM samples").await, samples);
    }
}

#[tokio::test]
async fn what_is_imported_is_the_same_but_for_tick_and_mark() {
    let (place, out, target) = (Place::filled().await, Place::new(), Place::new());
    exported(&place, None, &out).await.unwrap();
    let archive = target.archive().await;
    let done = import(&archive, &out).await;
    assert_eq!((done.events, done.samples, done.known, done.files, done.manifest), (8 * ROWS, 4 * ROWS, 0, 2, Some(1)));
    assert_eq!(target.verify(None).await.faults, []);
    let sorted = format!("{CARRIED} ORDER BY event_id");
    assert_eq!(target.query(&sorted).await.unwrap(), place.query(&sorted).await.unwrap());
    let marks = "SELECT DISTINCT tick, imported FROM events UNION ALL SELECT DISTINCT tick, imported FROM samples";
    let mark = |tick: &str, imported: &str| vec![Some(tick.to_owned()), Some(imported.to_owned())];
    assert_eq!(target.query(marks).await.unwrap(), [mark("0", "t"), mark("0", "t")]);
    let order = "SELECT tenant, region, kind, host, time FROM events";
    let rows = target.query(order).await.unwrap();
    assert!(rows.is_sorted(), "a fresh file has its rows in order");
    let file = archive.catalog().files.values().next().unwrap().clone();
    assert!(file.imported && file.time_min == time(1_000) && file.time_max == time(2_000 + ROWS - 1));
    // Again, from either place: nothing is new.
    for from in [&out, &place] {
        let again = import(&archive, from).await;
        assert_eq!((again.events, again.samples, again.known, again.manifest), (0, 0, 12 * ROWS, None));
    }
    assert_eq!(archive.refresh().await.unwrap().number, 1);
}

#[tokio::test]
async fn only_what_is_new_is_imported_and_at_the_tick_of_the_archive() {
    let (place, part, out) = (Place::filled().await, Place::new(), Place::new());
    exported(&place, Some("region = 'eu'"), &part).await.unwrap();
    exported(&place, None, &out).await.unwrap();
    let archive = part.archive().await;
    let done = import(&archive, &out).await;
    assert_eq!((done.events, done.samples, done.known), (4 * ROWS, 2 * ROWS, 6 * ROWS));
    assert_eq!(part.count("SELECT count(DISTINCT event_id) FROM events").await, 8 * ROWS);
    assert_eq!(part.count("SELECT count(*) FROM events WHERE imported AND tick = 2100").await, 4 * ROWS);
    // A bundle that has grown is an archive still.
    assert_eq!(part.verify(None).await.faults, []);
}

#[tokio::test]
async fn a_damaged_bundle_is_not_imported() {
    let (place, out, target) = (Place::filled().await, Place::new(), Place::new());
    exported(&place, None, &out).await.unwrap();
    let mut lines = out.read("events.jsonl");
    lines[3] ^= 1;
    out.write("events.jsonl", &lines);
    let source = Store::open(out.path("").to_str().unwrap()).unwrap();
    let why = import_archive(&target.archive().await, source, 6, &mut |_| {}).await.unwrap_err().to_string();
    assert!(why.contains("is damaged and was not imported") && why.contains("events.jsonl"), "{why}");
    assert_eq!(target.objects(), Vec::<String>::new());
}
