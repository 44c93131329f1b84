//! The hard cases at log level `local`, each by name.

use std::collections::BTreeSet;

use weir_dataflow::ViewSettings;
use weir_journal::{Failure, SimDisk};
use weir_schema::{AgentIdentity, Epoch, Name, StampedFrame};

use super::super::disk::NodeDisk;
use super::super::faults::Faults;
use super::super::node::Life;
use super::*;
use crate::chain::{ChainRecord, ChainState};
use crate::checkpoint::{Position, Positions};
use crate::error::Error;
use crate::feed::Tail;
use crate::holder::Holder;
use crate::log::{LogWriter, Pace};

/// A world without faults, after some seconds.
fn calm(seed: u64, nodes: usize, agents: usize) -> World {
    let mut world = World::with(seed, nodes, agents, Faults::none());
    steps(&mut world, 150);
    assert!(world.mesh.is_some() && !world.books.acked.is_empty());
    world
}

fn steps(world: &mut World, steps: usize) {
    for _ in 0..steps {
        world.step().unwrap();
    }
}

/// Everything comes through, and all books agree.
fn settle(world: &mut World) -> Report {
    world.heal();
    drain(world, &mut 0).unwrap()
}

#[test]
fn a_batch_accepted_by_two_nodes() {
    let mut world = calm(1, 2, 1);
    // The agent goes to the other node before it hears what the first one has made durable.
    for _ in 0..40 {
        world.leave(0);
        steps(&mut world, 20);
    }
    let report = settle(&mut world);
    assert!(report.duplicates > 0, "no frame was accepted twice: {report:?}");
    assert_eq!(report.stored + report.lost, report.produced);
}

#[test]
fn an_agent_killed_with_un_spooled_events() {
    let mut world = calm(2, 1, 2);
    // Its node is away, so that frames wait in its memory.
    world.nodes[0].life = Life::Frozen(world.now + 3_000);
    world.links.values_mut().for_each(|link| link.blocked_until = world.now + 3_000);
    steps(&mut world, 20);
    let waiting: u64 = world.agents[0].kept.keys().map(|key| u64::from(key.count)).sum();
    assert!(waiting > 0);
    // The host dies, and what is on its way with it.
    if let Some(link) = world.agents[0].link {
        world.cut(link);
    }
    world.agent_restarts(0, false);
    let report = settle(&mut world);
    // Those that the node had already are stored all the same.
    assert!(report.died > 0 && report.died <= waiting, "{report:?}");
    // A loss that the killed agent had not told died with it, too.
    assert!(report.stored + report.lost + report.died <= report.produced);
}

#[test]
fn a_cloned_agent_disk() {
    let mut world = calm(3, 2, 1);
    world.nodes.iter_mut().for_each(|node| node.life = Life::Frozen(world.now + 1_000));
    steps(&mut world, 12);
    assert!(!world.agents[0].kept.is_empty());
    // The copy has the same certificate and the same un-acked frames; its own run has an epoch of its own.
    let clone = world.agents[0].cloned(Epoch(world.dice.next()));
    world.agents.push(clone);
    steps(&mut world, 100);
    let report = settle(&mut world);
    assert_eq!(report.stored + report.lost, report.produced);
    let epochs: BTreeSet<Epoch> = world.books.acked.iter().map(|key| key.epoch).collect();
    assert_eq!(epochs.len(), 2, "both are heard");
}

#[test]
fn a_holder_frozen_in_its_office_stops_the_ticks_and_not_the_acks() {
    let mut world = calm(4, 2, 2);
    let holder = world.nodes.iter().position(|node| node.holding.is_some()).unwrap();
    world.nodes[holder].life = Life::Frozen(world.now + 5_000);
    let (tick, acked) = (world.audit.state.tick, world.books.acked.len());
    for agent in 0..2 {
        world.leave(agent);
    }
    steps(&mut world, 60);
    assert_eq!(world.audit.state.tick, tick, "its lock is held: nobody else writes the chain");
    assert!(world.books.acked.len() > acked, "the other node acknowledges");
    let report = settle(&mut world);
    assert!(world.audit.state.tick > tick + 2_500);
    assert_eq!(report.stored + report.lost, report.produced);
}

fn stamped(number: u8) -> Vec<u8> {
    let name = |text| Name::new(text).unwrap();
    let identity = AgentIdentity { tenant: name("t"), region: name("r"), agent: name("a") };
    StampedFrame { identity, received_ms: 7, frame: vec![number; 40] }.encode()
}

fn log(logs: &Arc<dyn Logs>, node: &str) -> Box<dyn LogWriter> {
    logs.open_log(&Name::new(node).unwrap()).unwrap()
}

fn take(logs: &Arc<dyn Logs>, wall_ms: u64) -> Result<Option<Holder>, Error> {
    Holder::take(logs.clone(), ViewSettings::default(), wall_ms, |_| Ok(Position::default()))
}

/// The chain's records, held to its rules.
fn chain(logs: &Arc<dyn Logs>) -> Vec<ChainRecord> {
    let mut reader = logs.read_chain(0, Pace::UpToNow).unwrap();
    let mut state = ChainState::default();
    let mut records = Vec::new();
    while let Some((number, bytes)) = reader.next().unwrap() {
        assert_eq!(number, records.len() as u64);
        let record = ChainRecord::decode(&bytes).unwrap();
        state.apply(&record).unwrap();
        records.push(record);
    }
    records
}

/// What a worker is given: tick and first byte of each frame.
fn fed(logs: &Arc<dyn Logs>) -> Vec<(u64, u8)> {
    let (from, positions) = (Position::default(), Positions::default());
    let mut tail = Tail::new(logs.clone(), Share { worker: 0, workers: 1 }, from, (0, positions));
    let tick = |(number, record): (usize, ChainRecord)| {
        let tick = tail.tick(number as u64, record).unwrap();
        tick.frames.into_iter().map(move |arrived| (tick.tick, arrived.stamped.frame[0])).collect::<Vec<_>>()
    };
    chain(logs).into_iter().enumerate().flat_map(tick).collect()
}

#[test]
fn a_node_frozen_before_its_mark_and_thawed_after_survivors_closed_the_tick() {
    let logs = logs_of(SimDisk::new(5));
    let (mut frozen, mut survivor) = (log(&logs, "n1"), log(&logs, "n2"));
    let mut holder = take(&logs, 1_000).unwrap().unwrap();
    frozen.append(&stamped(1)).unwrap();
    frozen.sync().unwrap();
    let first = holder.step(0, vec![]).unwrap();
    // It has appended, and is frozen before its sync says so.
    frozen.append(&stamped(2)).unwrap();
    let mut expected = vec![(first, 1)];
    for number in 10..13_u8 {
        survivor.append(&stamped(number)).unwrap();
        survivor.sync().unwrap();
        expected.push((holder.step(u64::from(number) * 100, vec![]).unwrap(), number));
    }
    assert_eq!(fed(&logs), expected, "the ticks are closed without it");
    frozen.sync().unwrap();
    assert_eq!(fed(&logs), expected, "closed ticks stay as they are");
    expected.push((holder.step(2_000, vec![]).unwrap(), 2));
    assert_eq!(fed(&logs), expected, "its frame belongs to the tick that names it");
}

#[test]
fn two_would_be_holders_creating_the_same_chain_number() {
    for change in 0..24 {
        let sim = SimDisk::new(change);
        let process = || NodeDisk::new(sim.clone(), Arc::default());
        let (one, two) = (process(), process());
        let (first, second) = (logs_of(one.clone()), logs_of(two));
        let mut holder = take(&first, 1_000).unwrap().unwrap();
        let mut written: Vec<u64> = (0..3).map(|step| holder.step(step * 100, vec![]).unwrap()).collect();
        assert!(take(&second, 5_000).unwrap().is_none(), "the lock is the first one's");
        // The first is killed in the middle of a record; the second writes the same number, or the next one.
        one.kill_at(change % 8);
        let unheard = (3..9).find_map(|step| match holder.step(step * 100, vec![]) {
            Ok(tick) => {
                written.push(tick);
                None
            }
            Err(_) => Some(1_000 + step * 100),
        });
        let unheard = unheard.expect("it is killed within eight changes");
        drop(holder);
        let mut other = take(&second, 5_000).unwrap().unwrap();
        let (before, after) = (written.len(), other.step(0, vec![]).unwrap());
        let ticks: Vec<u64> = chain(&second).iter().map(|record| record.tick).collect();
        assert_eq!(ticks[..before], written, "change {change}");
        assert_eq!(ticks.last(), Some(&after));
        assert!(ticks[before..ticks.len() - 1].iter().all(|tick| *tick == unheard) && ticks.len() <= before + 2, "{ticks:?}");
        assert!(take(&first, 9_000).is_err(), "the killed one writes nothing more");
    }
}

#[test]
fn a_create_that_succeeded_but_answered_an_error() {
    let mut kept = 0;
    for step in 0..24 {
        let sim = SimDisk::new(step);
        let logs = logs_of(sim.clone());
        let mut holder = take(&logs, 1_000).unwrap().unwrap();
        let mut written: Vec<u64> = (0..3).map(|step| holder.step(step * 100, vec![]).unwrap()).collect();
        sim.fail_at(0, Failure::SyncFails);
        holder.step(300, vec![]).unwrap_err();
        drop(holder);
        if step % 2 == 0 {
            sim.restart();
        }
        // What the sync denied may be there or not; whoever takes the chain looks, and goes on behind it.
        let mut again = take(&logs, 5_000).unwrap().unwrap();
        let before = chain(&logs).len();
        kept += u64::from(before > written.len());
        written.push(again.step(0, vec![]).unwrap());
        let records = chain(&logs);
        let ticks: Vec<u64> = records.iter().map(|record| record.tick).collect();
        assert!(before <= 4 && records.len() == before + 1, "step {step}: {ticks:?}");
        assert_eq!(ticks[..3], written[..3]);
        assert_eq!(ticks.last(), written.last());
        let nonces: BTreeSet<u128> = records.iter().map(|record| record.nonce).collect();
        assert_eq!(nonces.len(), records.len(), "no record is there twice");
    }
    assert!(kept > 0, "the record was there in no case");
}

#[test]
fn nodes_started_with_different_configs() {
    let sim = SimDisk::new(3);
    let logs = logs_of(sim.clone());
    let of = |retention_ms| ViewSettings { retention_ms, ..ViewSettings::default() };
    let hold = |settings: ViewSettings, wall_ms: u64, workers: &mut Vec<ViewSettings>| {
        let mut holder = Holder::take(logs.clone(), settings, wall_ms, |_| Ok(Position::default())).unwrap().unwrap();
        for step in 0..3 {
            holder.step(step * 100, vec![]).unwrap();
        }
        workers.push(holder.state().settings.unwrap());
    };
    let mut in_force = Vec::new();
    for (settings, wall_ms) in [(of(60_000), 1_000), (of(5), 10_000), (of(900_000), 20_000)] {
        hold(settings, wall_ms, &mut in_force);
    }
    // Whoever holds the chain later with another config goes by what the first one wrote, and so do all workers: there is one command.
    assert_eq!(in_force, [of(60_000); 3]);
    let (from, positions) = (Position::default(), Positions::default());
    let mut tail = Tail::new(logs.clone(), Share { worker: 0, workers: 1 }, from, (0, positions));
    let ticks = chain(&logs).into_iter().enumerate().map(|(number, record)| tail.tick(number as u64, record).unwrap());
    let commands: Vec<_> = ticks.flat_map(|tick| tick.commands).collect();
    assert_eq!(commands, [weir_dataflow::Command::Configure(of(60_000))]);
}
