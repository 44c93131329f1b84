//! The source and connections as timely operators: frames in, rows out, the same on one, two and three workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use timely::dataflow::operators::{Input, Inspect, Probe};
use weir_schema::{
    AgentIdentity, BatchBuilder, BootId, Column, EVENTS, Epoch, Event, Fields, Frame, Host, Kind, Lane, Name, Process, SAMPLES,
    Seq, StampedFrame,
};

use super::*;
use crate::alerts::InForce;
use crate::checkpoint::{Keeper, Share};
use crate::connections::{Counts, connections};
use crate::delta::DeltaBatch;

const SETTINGS: ViewSettings = ViewSettings {
    retention_ms: 10_000,
    skew_ms: 500,
    window_grace_ms: 0,
    tail_rows_max: 1_000,
    tail_bytes_max: 1 << 20,
    ends_max: 100,
    new_containers_per_minute_max: 6_000,
    chain_events_per_key_max: 4_096,
};

pub(super) fn identity(agent: &str) -> AgentIdentity {
    let name = |text| Name::new(text).unwrap();
    AgentIdentity { tenant: name("t"), region: name(&format!("region-{agent}")), agent: name(agent) }
}

fn frame(host: &str, lane: Lane, first_seq: u64, events: &[Event]) -> Frame {
    let boot_id = BootId([1; 16]);
    let host = Arc::new(Host { host: host.into(), cloud: Some("aws".into()), zone: None, boot_id, simulated: true });
    let mut builder = BatchBuilder::new(host, Epoch(7), lane, Seq(first_seq));
    events.iter().for_each(|event| builder.push(event).unwrap());
    builder.finish().unwrap()
}

pub(super) fn event(kind: Kind, time_ms: i64, fields: Fields) -> Event {
    let process = Arc::new(Process { pid: 9, start_ns: 1, exe: Some("/bin/x".into()), ..Process::default() });
    Event { time: time_ms * 1_000_000, kind, process: Some(process), container: None, fields }
}

fn connection(kind: Kind, out: bool, socket: u64) -> Fields {
    let isns = if out { (1, 2) } else { (2, 1) };
    Fields {
        src_ip: Some("10.0.0.1".into()),
        src_port: Some(40_000),
        dst_ip: Some("10.0.0.2".into()),
        dst_port: Some(80),
        direction: Some(if out { "out" } else { "in" }.into()),
        socket_id: Some(socket),
        isn_local: Some(isns.0),
        isn_peer: Some(isns.1),
        bytes_sent: (kind == Kind::Close).then_some(5),
        ..Fields::default()
    }
}

/// The frames of each tick: (tick, log, agent, frame).
fn story() -> Vec<(u64, u32, &'static str, Vec<u8>)> {
    let start = |ip: &str| Fields {
        addresses: Some(format!("[\"{ip}/24\"]").into()),
        detail: Some(
            "{\"agent_version\":\"0.1.0\",\"mode\":\"simulated\",\"transport\":\"tcp\",\
             \"region_mismatch\":\"x\",\"metadata\":{\"docker\":\"ok\"}}"
                .into(),
        ),
        ..Fields::default()
    };
    let lost =
        Fields { loss_class: Some("file".into()), loss_reason: Some("ring".into()), loss_count: Some(3), ..Fields::default() };
    let client = frame("a", Lane::Network, 0, &[event(Kind::Connect, 20_000, connection(Kind::Connect, true, 5))]);
    let both = [
        event(Kind::Connect, 20_000, connection(Kind::Connect, true, 5)),
        event(Kind::Close, 20_900, connection(Kind::Close, true, 5)),
    ];
    let sample = Event {
        time: 20_500_000_000,
        kind: Kind::Sample,
        process: None,
        container: None,
        fields: Fields { cpu_ms: Some(4), interval_ms: Some(1_000), ..Fields::default() },
    };
    vec![
        (20_000, 0, "a", frame("a", Lane::Security, 0, &[event(Kind::HostStart, 19_900, start("10.0.0.1"))]).bytes),
        (20_000, 0, "a", client.bytes.clone()),
        (20_100, 1, "a", client.bytes),
        (20_100, 1, "b", b"no frame".to_vec()),
        (20_100, 1, "b", frame("b", Lane::Network, 0, &[event(Kind::Accept, 20_001, connection(Kind::Accept, false, 6))]).bytes),
        (20_200, 0, "a", frame("a", Lane::Network, 0, &[event(Kind::Connect, 20_003, connection(Kind::Connect, true, 8))]).bytes),
        (
            20_200,
            0,
            "a",
            frame("a", Lane::Security, 1, &[event(Kind::Loss, 20_100, lost), event(Kind::Exec, 5_000, Fields::default())]).bytes,
        ),
        (20_300, 0, "a", frame("a", Lane::Network, 0, &both).bytes),
        (20_300, 2, "b", frame("b", Lane::Security, 0, &[event(Kind::HostStart, 20_250, start("10.0.0.2"))]).bytes),
        (20_900, 2, "b", frame("b", Lane::Sample, 0, &[sample]).bytes),
        (21_000, 0, "a", frame("a", Lane::Security, 3, &[event(Kind::Exec, 21_630, Fields::default())]).bytes),
        (21_100, 0, "a", vec![]),
        (21_200, 0, "a", vec![]),
    ]
}

/// Sums of rows by relation, as text.
type Summed = BTreeMap<(&'static str, String), i64>;

pub(super) fn lines(rows: &RecordBatch) -> Vec<String> {
    let line = |row: usize| {
        let cells = rows.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
        cells.collect::<Vec<_>>().join(",")
    };
    (0..rows.num_rows()).map(line).collect()
}

fn run(workers: usize) -> (Summed, Vec<String>, SourceCounts) {
    let summed: Arc<Mutex<Summed>> = Arc::default();
    let read: Arc<Mutex<(Vec<String>, SourceCounts)>> = Arc::default();
    let (all, reads) = (Arc::clone(&summed), Arc::clone(&read));
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let state = SourceState::new(&SETTINGS);
        let ticks = Ticks::noted();
        let probe = timely::dataflow::operators::probe::Handle::new();
        let mut input = worker.dataflow::<u64, _, _>(|scope| {
            let (input, arrived) = scope.new_input::<Vec<Arrived>>();
            let events = vec![Column::EventId, Column::Kind, Column::SrcIp, Column::Exe];
            let samples = vec![Column::Host, Column::CpuMs, Column::MemBytes];
            let options = SourceOptions {
                settings: SETTINGS,
                events,
                samples,
                ticks: ticks.clone(),
                keeper: Keeper::default(),
                rules: InForce::default(),
            };
            let streams = source(arrived, options, &state);
            let rows = connections(streams.touches, streams.addresses, &SETTINGS, &Counts::default(), &Keeper::default());
            let relations = [
                ("events", streams.events),
                ("samples", streams.samples),
                ("hosts", streams.hosts),
                ("agents", streams.agents),
                ("losses", streams.losses),
                ("connections", rows),
            ];
            for (name, deltas) in relations {
                let all = Arc::clone(&all);
                let add = move |batch: &DeltaBatch| {
                    let mut all = all.lock().unwrap();
                    for (line, diff) in lines(&batch.rows).into_iter().zip(&batch.diffs) {
                        *all.entry((name, line)).or_default() += diff;
                    }
                };
                deltas.inspect(add).probe_with(&probe);
            }
            input
        });
        let mut story: BTreeMap<u64, Vec<Arrived>> = BTreeMap::new();
        for (offset, (tick, log, agent, frame)) in story_frames().enumerate() {
            let arrived = story.entry(tick).or_default();
            if log as usize % worker.peers() == worker.index() && !frame.is_empty() {
                let stamped = StampedFrame { identity: identity(agent), received_ms: tick, frame };
                arrived.push(Arrived { log, offset: offset as u64, stamped });
            }
        }
        for (tick, mut arrived) in story {
            ticks.note(tick);
            input.advance_to(tick);
            input.send_batch(&mut arrived);
            input.advance_to(tick + 1);
            input.flush();
            worker.step_or_park_while(None, || probe.less_than(&(tick + 1)));
        }
        let mut reads = reads.lock().unwrap();
        for (tail, columns) in [(Tail::Events, EVENTS), (Tail::Samples, SAMPLES)] {
            let batches = state.tails.borrow().read(tail, columns, 30_000, usize::MAX).unwrap();
            reads.0.extend(batches.iter().flat_map(lines));
        }
        let (sum, counts) = (&mut reads.1, *state.counts.borrow());
        sum.frames += counts.frames;
        sum.events += counts.events;
        sum.late += counts.late;
        sum.duplicates += counts.duplicates;
        sum.conflicts += counts.conflicts;
        sum.undecodable += counts.undecodable;
        sum.lost += counts.lost;
        drop(reads);
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    });
    drop(guards.unwrap());
    let mut summed = std::mem::take(&mut *summed.lock().unwrap());
    summed.retain(|_, count| *count != 0);
    let (mut tails, counts) = std::mem::take(&mut *read.lock().unwrap());
    tails.sort();
    (summed, tails, counts)
}

fn story_frames() -> impl Iterator<Item = (u64, u32, &'static str, Vec<u8>)> {
    story().into_iter()
}

#[test]
fn any_number_of_workers_gives_the_same_rows() {
    let (rows, tails, counts) = run(1);
    let expected = SourceCounts { frames: 8, events: 9, late: 1, duplicates: 2, conflicts: 1, undecodable: 1, lost: 3, ..counts };
    assert_eq!(counts, expected);
    let of =
        |relation: &str| rows.keys().filter(|(name, _)| *name == relation).map(|(_, line)| line.as_str()).collect::<Vec<_>>();
    assert!(rows.values().all(|count| *count == 1), "{rows:?}");
    assert_eq!(of("events").len(), 7);
    assert_eq!(of("samples"), ["b,4,"]);
    let [connection] = of("connections")[..] else { panic!("{:?}", of("connections")) };
    assert!(
        connection
            .contains(",closed,1970-01-01T00:00:20Z,1970-01-01T00:00:20.900Z,tcp,10.0.0.1,40000,10.0.0.2,80,region-a,aws,,a,"),
        "{connection}"
    );
    assert!(connection.ends_with(",/bin/x,5,0,0,both"), "{connection}");
    let [first, second] = of("hosts")[..] else { panic!("{:?}", of("hosts")) };
    assert!(first.starts_with("t,aws,region-a,,a,01010101") && first.contains("[\"10.0.0.1/24\"],true,"), "{first}");
    assert!(second.contains(",b,"), "{second}");
    assert!(
        of("agents")[0].starts_with("t,region-a,a,a,0.1.0,simulated,tcp,true,1970-01-01T00:00:05Z,1970-01-01T00:00:21Z,6,3"),
        "{:?}",
        of("agents")
    );
    assert!(of("agents")[0].contains("region_mismatch") && of("agents")[0].contains("docker"), "{:?}", of("agents"));
    let reasons: Vec<&str> = of("losses").iter().filter_map(|line| line.rsplit(',').next()).collect();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    for reason in ["ring", "late", "conflict", "undecodable"] {
        assert!(reasons.contains(&reason), "{reason}");
    }
    assert_eq!(tails.len(), 9);
    assert_eq!(tails.iter().filter(|line| line.contains(",true,true,")).count(), 1, "{tails:#?}");
    for workers in 2..4 {
        assert_eq!(run(workers), (rows.clone(), tails.clone(), counts), "on {workers} workers");
    }
}

#[test]
fn the_record_has_the_rows_of_the_tails() {
    let (_, tails, _) = run(2);
    let mut ticks: BTreeMap<u64, Vec<Arrived>> = BTreeMap::new();
    for (offset, (tick, log, agent, frame)) in story_frames().enumerate() {
        let stamped = StampedFrame { identity: identity(agent), received_ms: tick, frame };
        ticks.entry(tick).or_default().push(Arrived { log, offset: offset as u64, stamped });
    }
    let mut intake = Intake::new(Admission { retention_ms: SETTINGS.retention_ms, skew_ms: SETTINGS.skew_ms });
    let taken = ticks.into_iter().flat_map(|(tick, frames)| intake.advance(tick, frames));
    let mut rows: Vec<String> = taken
        .flat_map(|taken| {
            let columns = if taken.tail == Tail::Samples { SAMPLES } else { EVENTS };
            lines(&taken.record_batch(columns, &schema_of(columns), None))
        })
        .collect();
    rows.sort();
    assert_eq!(rows, tails);
}

#[test]
fn a_tail_drops_the_oldest_and_counts() {
    let settings = ViewSettings { tail_rows_max: 2, ..SETTINGS };
    let mut tails = Tails::new(&settings);
    let limits = (Admission { retention_ms: 1_000, skew_ms: 10 }, key_limits(&SETTINGS));
    let mut owner = Owner::new(limits, (vec![], vec![]), InForce::default());
    for n in 0..5u64 {
        let tick = 1_000 + n;
        let frame = frame("a", Lane::Security, n, &[event(Kind::Exec, tick as i64, Fields::default())]).bytes;
        let shipped = Shipped { route: 1, log: 0, offset: n, received_ms: tick, identity: identity("a"), frame };
        owner.advance(tick, vec![shipped], vec![], &mut tails);
    }
    let held = tails.held(Tail::Events);
    assert_eq!((held.rows, held.dropped_rows, held.oldest_tick), (2, 3, Some(1_003)));
    let read =
        |at| tails.read(Tail::Events, &[Column::Tick, Column::Late], at, 100).unwrap().iter().flat_map(lines).collect::<Vec<_>>();
    assert_eq!(read(1_004), ["1003,false", "1004,false"]);
    assert_eq!(read(1_003), ["1003,false"]);
}

/// An exec in a container of its own.
fn in_container(number: u64, time_ms: u64) -> Event {
    let id = format!("c{number}");
    let container = weir_schema::Container { container_id: Some(id.as_str().into()), ..weir_schema::Container::default() };
    Event { container: Some(Arc::new(container)), ..event(Kind::Exec, time_ms as i64, Fields::default()) }
}

#[test]
fn made_up_containers_share_one_name_in_the_views_and_are_counted() {
    let settings = ViewSettings { new_containers_per_minute_max: 2, ..SETTINGS };
    let admission = Admission { retention_ms: 1_000, skew_ms: 10 };
    let owner = || Owner::new((admission, key_limits(&settings)), (vec![Column::ContainerId], vec![]), InForce::default());
    let (mut owned, mut tails) = (Owned { owner: owner(), ahead: BTreeMap::new() }, Tails::new(&settings));
    // Two are in time, two wait for their moment; of each one is too many. The same frame again changes nothing.
    let events = [in_container(1, 1_000), in_container(2, 1_500), in_container(3, 1_000), in_container(4, 1_500)];
    let frame = frame("a", Lane::Security, 0, &events).bytes;
    let shipped =
        |offset| Shipped { route: 1, log: 0, offset, received_ms: 1_000, identity: identity("a"), frame: frame.clone() };
    let first = owned.owner.advance(1_000, vec![shipped(0), shipped(1)], vec![], &mut tails);
    let told = |outcome: &Outcome| outcome.events.iter().flat_map(|batch| lines(&batch.rows)).collect::<Vec<_>>();
    assert_eq!(told(&first), ["c1", keys::OTHER]);
    let losses = lines(&first.losses.as_ref().unwrap().rows);
    assert!(losses.len() == 1 && losses[0].ends_with(",2,new_containers"), "{losses:?}");
    for (moment, ahead) in first.ahead {
        owned.ahead.entry(moment).or_default().push(ahead);
    }
    // What waits is folded after a restart too, though its frame is decoded anew.
    let saved = crate::checkpoint::State::save(&owned);
    let mut again = Owned { owner: owner(), ahead: BTreeMap::new() };
    crate::checkpoint::State::load(&mut again, vec![postcard::from_bytes(&saved).unwrap()], Share { index: 0, peers: 1 });
    let waited: Vec<Ahead> = again.ahead.into_values().flatten().collect();
    let second = again.owner.advance(1_500, vec![], waited, &mut tails);
    assert_eq!(told(&second), ["c2", keys::OTHER]);
    // The record has what was sent.
    let kept = tails.read(Tail::Events, &[Column::ContainerId], 2_000, 100).unwrap();
    let mut kept: Vec<String> = kept.iter().flat_map(lines).collect();
    kept.sort();
    assert_eq!(kept, ["c1", "c2", "c3", "c4"]);
}
