//! JSON lines become rows.

use std::fmt::Write as _;

use weir_schema::{AgentIdentity, Epoch, EventIds, LINE_BYTES_MAX, Lane, Seq};

use super::fixture::{Place, ROWS, convert, name};
use crate::export::export;
use crate::import::{Imported, LineDefaults, import_lines};
use crate::manifest::sha256_hex;
use crate::query::files_only;

async fn import(target: &Place, text: &[u8]) -> Imported {
    let from = Place::new();
    from.write("lines.jsonl", text);
    let archive = target.archive().await;
    import_lines(&archive, &from.path("lines.jsonl"), &LineDefaults::default(), convert, 1_795_449_800_000).await.unwrap()
}

#[tokio::test]
async fn lines_become_rows_and_bad_ones_are_told() {
    let text = concat!(
        "{\"kind\":\"exec\",\"time\":\"2026-11-23T16:00:00Z\",\"host\":\"a\",\"pid\":7,\"exe\":\"/bin/sh\",\"tenant\":\"acme\"}\n",
        "no event\n",
        "\n",
        "{\"kind\":\"connect\",\"time\":2000000000,\"host\":\"a\",\"region\":\"eu\",\"dst_port\":443}\r\n",
        "{\"kind\":\"exec\",\"time\":1000000000,\"container_id\":\"c1\",\"x\":1}\n",
        "{\"kind\":\"sample\",\"time\":5,\"host\":\"a\",\"cpu_ms\":12}\n",
        "{\"kind\":\"nothing\",\"time\":1}\n",
        "{\"kind\":\"exit\",\"time\":9000000000,\"host\":\"a\"}",
    );
    let target = Place::new();
    let done = import(&target, text.as_bytes()).await;
    assert_eq!((done.events, done.samples, done.bad_lines, done.manifest), (4, 1, 2, Some(1)));
    let numbers: Vec<_> = done.bad_lines_first.iter().map(|bad| bad.number).collect();
    assert_eq!(numbers, [2, 7], "{:?}", done.bad_lines_first);
    assert_eq!(target.verify(None).await.faults, []);
    let rows = target.query("SELECT kind, tenant, region, host, detail, imported FROM events ORDER BY time").await.unwrap();
    let row = |cells: [&str; 6]| cells.map(|cell| (!cell.is_empty()).then(|| cell.to_owned())).to_vec();
    assert_eq!(
        rows,
        [
            row(["exec", "default", "imported", "unnamed", "{\"x\":1}", "t"]),
            row(["connect", "default", "eu", "a", "", "t"]),
            row(["exit", "default", "imported", "a", "", "t"]),
            row(["exec", "acme", "imported", "a", "", "t"]),
        ]
    );
    // The id is made of the file's hash and the line's number.
    let sha = sha256_hex(text.as_bytes());
    let agent = name(&format!("import-{}", &sha[..16]));
    let identity = AgentIdentity { tenant: name("default"), region: name("eu"), agent: agent.clone() };
    let epoch = Epoch(u64::from_str_radix(&sha[..16], 16).unwrap());
    let id = EventIds::new(&identity, epoch, Lane::Network).id(Seq(4));
    let found = target.query(&format!("SELECT kind, agent FROM events WHERE event_id = '{id}'")).await.unwrap();
    assert_eq!(found, [vec![Some("connect".to_owned()), Some(agent.to_string())]]);
}

#[tokio::test]
async fn the_same_file_twice_adds_nothing() {
    let mut text = String::new();
    for row in 0..500 {
        let (kind, host) = (["exec", "exit", "connect", "open", "sample"][row % 5], row % 3);
        let _ = writeln!(text, "{{\"kind\":\"{kind}\",\"time\":{},\"host\":\"h{host}\",\"pid\":{row}}}", row * 1_000);
    }
    // Samples have no pid: their lines have it as detail, which samples do not keep.
    let target = Place::new();
    let done = import(&target, text.as_bytes()).await;
    assert_eq!((done.events, done.samples, done.known, done.bad_lines), (400, 100, 0, 0));
    assert_eq!(target.count("SELECT count(DISTINCT event_id) FROM events").await, 400);
    assert_eq!(target.count("SELECT count(*) FROM events WHERE pid * 1000 = arrow_cast(time, 'Int64')").await, 400);
    let again = import(&target, text.as_bytes()).await;
    assert_eq!((again.events, again.samples, again.known, again.manifest), (0, 0, 500, None));
    assert_eq!(target.verify(None).await.manifests, 1);
}

#[tokio::test]
async fn a_line_too_long_or_not_utf8_is_told_and_passed_over() {
    let event = b"{\"kind\":\"exec\",\"time\":1}\n".as_slice();
    let long = vec![b' '; LINE_BYTES_MAX * 2 + 7];
    let text = [event, &long, b"\n", event, b"\xff\n", event].concat();
    let done = import(&Place::new(), &text).await;
    assert_eq!((done.events, done.bad_lines), (3, 2));
    let told: Vec<_> = done.bad_lines_first.iter().map(|bad| (bad.number, bad.why.as_str())).collect();
    assert!(told[0].0 == 2 && told[0].1.contains("longer than"), "{told:?}");
    assert_eq!(told[1], (4, "not an event: the line is not UTF-8"));
    let nothing = import(&Place::new(), b"").await;
    assert_eq!(nothing, Imported::default());
}

#[tokio::test]
async fn the_lines_of_a_bundle_say_what_its_rows_say() {
    let (place, out, target) = (Place::filled().await, Place::new(), Place::new());
    let snapshot = files_only(place.archive().await).await.unwrap();
    export(&snapshot, None, &out.path(""), 5).await.unwrap();
    let done = import(&target, &out.read("events.jsonl")).await;
    assert_eq!((done.events, done.samples, done.bad_lines, done.texts_cut), (8 * ROWS, 0, 0, 0));
    let said = "SELECT time, kind, tenant, region, cloud, host, app, container_id, pid, exe, args, path, src_ip, dst_ip, dst_port, \
        socket_id, result, boot_id FROM events ORDER BY time, kind, host";
    assert_eq!(target.query(said).await.unwrap(), place.query(said).await.unwrap());
}
