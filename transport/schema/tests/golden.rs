//! The format for ever: frames written by earlier versions are decoded to the events they were made of.
//!
//! `golden/*.bin` are added to, never edited; beside each stands what it says, as JSON lines. A missing file is written by
//! `WEIR_GOLDEN_WRITE=1 cargo test -p weir-schema --test golden`; a file that is there is never overwritten. The bytes that
//! today's builder writes may differ (zstd may compress better one day); what they say may not.

#![allow(clippy::unwrap_used)] // helpers outside of `#[test]` functions

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{body_of, decode, frame_of, kinds_of, section, with_body};
use weir_schema::{
    AgentIdentity, BootId, Cell, Column, ColumnType, Container, Event, Frame, Home, Host, JsonEvent, Kind, Lane, Name,
};
use weir_schema::{Process, Seq, Skipped, StampedFrame, Text, Why, write_line};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn host() -> Host {
    Host {
        host: "web-7".into(),
        cloud: Some("aws".into()),
        zone: Some("eu-west-1b".into()),
        boot_id: BootId(*b"0123456789abcdef"),
        simulated: true,
    }
}

/// A value for the nth event, other in every column.
fn fill(column: Column, n: u32, mut set: impl FnMut(Column, Cell<'_>) -> bool) {
    let number = i64::from(column.number());
    if column.ty() == ColumnType::Text {
        let text: Text = format!("{} {} ä", column.name(), n % 3).into();
        assert!(set(column, Cell::Text(&text)), "{column:?}");
    } else {
        assert!(set(column, Cell::Int(number * 100 + i64::from(n % 7) * i64::from(n % 2))), "{column:?}");
    }
}

/// For each kind of the lane three events: one with every column, one with every second, one bare.
fn lane_events(lane: Lane) -> Vec<Event> {
    // Files are never edited: a kind that came later has a file of its own.
    kind_events(kinds_of(lane).into_iter().filter(|kind| *kind as u16 <= Kind::Sample as u16))
}

fn kind_events(kinds: impl IntoIterator<Item = Kind>) -> Vec<Event> {
    let mut events = Vec::new();
    for (at, kind) in kinds.into_iter().enumerate() {
        for n in [0u32, 1, 2] {
            let nth = at as u32 * 3 + n;
            let time = 1_790_000_000_000_000_000 + i64::from(nth) * 1_234_567 - i64::from(n) * 9_000_000;
            let mut event = Event { time, kind, ..Event::default() };
            let (mut process, mut container) =
                (Process { pid: 100 + nth, start_ns: 77_000 + u64::from(nth), ..Process::default() }, Container::default());
            let sent = Column::ALL.iter().copied().filter(|column| n == 0 || (n == 1 && column.number() % 2 == 0));
            for column in sent {
                match column.home() {
                    _ if matches!(
                        column,
                        Column::Time | Column::ProcessRow | Column::ContainerRow | Column::Pid | Column::StartNs
                    ) => {}
                    Home::Event => fill(column, nth, |column, cell| event.fields.set(column, cell)),
                    Home::Process => fill(column, nth, |column, cell| process.set(column, cell)),
                    Home::Container => fill(column, nth, |column, cell| container.set(column, cell)),
                    Home::Host | Home::Key => {}
                }
            }
            if n < 2 {
                (event.process, event.container) = (Some(Arc::new(process)), Some(Arc::new(container)));
            }
            events.push(event);
        }
    }
    events
}

/// A batch of file events with a section of a kind that nobody knows behind them.
fn unknown_kind() -> Vec<u8> {
    let frame = frame_of(&host(), Lane::File, &lane_events(Lane::File));
    let body = [body_of(&frame), section(0x7fee, 3, 4, b"whatever a later version says")].concat();
    with_body(&frame, &body, frame.header.count + 4, 1)
}

/// A batch of file events whose `write` section is of a newer version.
fn newer_section() -> Vec<u8> {
    let frame = frame_of(&host(), Lane::File, &lane_events(Lane::File));
    let mut body = body_of(&frame);
    let head = [Kind::Write as u8, 0, 1, 0, 3, 0, 0, 0];
    let at = body.windows(8).position(|bytes| bytes == head).unwrap();
    body[at + 2] = 9;
    with_body(&frame, &body, frame.header.count, 1)
}

/// A batch of one sample with a column that nobody knows, stored as it is.
fn unknown_column() -> Vec<u8> {
    let frame = frame_of(&host(), Lane::Sample, &[Event { kind: Kind::Sample, time: 5, ..Event::default() }]);
    let mut body = body_of(&frame);
    let known = body.len() - 12 - 8;
    let content = [&[2], &body[known + 13..], &[0xbb, 0x01, 0, 0, 0, 0, 0, 0]].concat();
    body.truncate(known);
    body.extend_from_slice(&section(Kind::Sample as u16, 1, 1, &content));
    with_body(&frame, &body, 1, 0)
}

fn skipped(kind: u16, version: u16, first_seq: u64, rows: u32, why: Why) -> Vec<Skipped> {
    vec![Skipped { kind, version, first_seq: Seq(first_seq), rows, why }]
}

/// Name, how it was made, what of it today's binary passes over.
fn cases() -> Vec<(&'static str, Vec<u8>, Vec<Skipped>)> {
    let lane = |lane| frame_of(&host(), lane, &lane_events(lane)).bytes;
    vec![
        ("v1-security", lane(Lane::Security), vec![]),
        ("v1-network", lane(Lane::Network), vec![]),
        ("v1-file", lane(Lane::File), vec![]),
        ("v1-sample", lane(Lane::Sample), vec![]),
        ("v1-container-update", frame_of(&host(), Lane::Security, &kind_events([Kind::ContainerUpdate])).bytes, vec![]),
        ("v1-unknown-kind", unknown_kind(), skipped(0x7fee, 3, 130, 4, Why::UnknownKind)),
        ("v1-newer-section", newer_section(), skipped(Kind::Write as u16, 9, 103, 3, Why::NewerVersion)),
        ("v1-unknown-column", unknown_column(), skipped(Kind::Sample as u16, 1, 100, 1, Why::UnknownColumns(1))),
    ]
}

/// What a frame says: a line for its header, then its events.
fn said(bytes: &[u8]) -> (String, Vec<Skipped>) {
    let frame = Frame::parse(bytes).unwrap();
    let header = frame.header;
    let batch = decode(&frame).unwrap();
    let mut text = format!(
        "{{\"lane\":\"{}\",\"epoch\":{},\"first_seq\":{},\"count\":{}}}\n",
        header.lane.as_str(),
        header.epoch.0,
        header.first_seq.0,
        header.count
    );
    for event in batch.events() {
        write_line(&mut text, &JsonEvent { host: batch.host.clone(), tenant: None, region: None, agent: None, event });
    }
    (text, batch.skipped)
}

fn read_or_write(name: &str, made: &[u8]) -> Vec<u8> {
    let path = golden(name);
    if !path.exists() && std::env::var_os("WEIR_GOLDEN_WRITE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, made).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn frames_of_every_version_say_what_they_said() {
    for (name, made, passed_over) in cases() {
        let bytes = read_or_write(&format!("{name}.bin"), &made);
        let (text, found) = said(&bytes);
        let expected = read_or_write(&format!("{name}.jsonl"), text.as_bytes());
        assert_eq!(text, String::from_utf8(expected).unwrap(), "{name}");
        assert_eq!(found, passed_over, "{name}");
        assert_eq!(said(&made).0, text, "{name}: what is written today says the same");
    }
}

#[test]
fn every_file_is_decoded() {
    let known: Vec<String> = cases().iter().map(|case| case.0.to_owned()).chain(["v1-stamped".to_owned()]).collect();
    for file in fs::read_dir(golden("")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let stem = name.rsplit_once('.').map(|(stem, _)| stem.to_owned());
        assert!(stem.is_some_and(|stem| known.contains(&stem)), "{name} is tested by nobody");
    }
}

#[test]
fn a_stamped_record_says_what_it_said() {
    let name = |text: &str| Name::new(text).unwrap();
    let identity = AgentIdentity { tenant: name("acme"), region: name("eu-west-1"), agent: name("web-7") };
    let frame = fs::read(golden("v1-sample.bin")).unwrap();
    let made = StampedFrame { identity, received_ms: 1_790_000_000_123, frame };
    let bytes = read_or_write("v1-stamped.bin", &made.encode());
    assert_eq!(StampedFrame::decode(&bytes), Ok(made));
}
