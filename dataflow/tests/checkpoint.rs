//! Workers that begin from a checkpoint against workers that read the whole chain: equal digests of every view at every tick that can
//! be asked for, on random fleets whose frames come twice, late and ahead of their time, and from any number of workers to any other.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weir_dataflow::handle::{At, Client, Digest, Request, Response};
use weir_dataflow::{CheckpointError, CheckpointPart, CheckpointSink, EngineOptions, Feed, Restore, run};
use world::{Random, START_MS, TICK_MS, World};

/// Hands parts to the test.
struct Parts(Mutex<SyncSender<CheckpointPart>>);

impl CheckpointSink for Parts {
    fn begun(&self, _tick: u64) {}

    fn put(&self, part: CheckpointPart) {
        let _ = self.0.lock().unwrap().send(part);
    }
}

/// Running workers.
struct Engine {
    client: Client,
    parts: Receiver<CheckpointPart>,
    workers: usize,
    dir: PathBuf,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Engine {
    fn start(world: &World, name: &str, workers: usize, checkpoints: &[u64], restore: Option<Arc<Restore>>) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-checkpoint-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let from = restore.as_ref().map_or(0, |restore| restore.tick());
        let feed = |worker| Box::new(world.feed(worker, workers).with_checkpoints(checkpoints).after(from)) as Box<dyn Feed>;
        let feeds = (0..workers).map(feed).collect();
        let (sender, parts) = sync_channel(64);
        let sink: Arc<dyn CheckpointSink> = Arc::new(Parts(Mutex::new(sender)));
        let options = EngineOptions { checkpoints: Some(sink), restore, ..EngineOptions::alone(workers, socket.clone()) };
        std::thread::spawn(move || run(options, feeds));
        Self { client: connect(&socket), parts, workers, dir }
    }

    /// The digests of all views at some ticks.
    fn digests(&mut self, ticks: &[u64]) -> Vec<Vec<Digest>> {
        let mut digest = |tick: &u64| match self.client.ask(&Request::Digest { id: 1, at: At::Tick(*tick) }).unwrap().pop() {
            Some(Response::Digests { views, .. }) => views,
            other => panic!("tick {tick}: {other:?}"),
        };
        ticks.iter().map(&mut digest).collect()
    }

    /// The parts of the next checkpoints, by tick.
    fn checkpoints(&self, count: usize) -> BTreeMap<u64, Vec<Vec<u8>>> {
        let mut found: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for _ in 0..count * self.workers {
            let part = self.parts.recv_timeout(Duration::from_secs(120)).unwrap();
            assert_eq!(part.workers, self.workers);
            found.entry(part.tick).or_default().push(part.bytes);
        }
        found
    }
}

fn connect(socket: &Path) -> Client {
    for _ in 0..6_000 {
        match Client::connect(socket) {
            Ok(client) => return client,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("the workers did not listen");
}

fn tick(place: usize) -> u64 {
    START_MS + TICK_MS * place as u64
}

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("WEIR_SEED").map_or(clock.as_nanos() as u64, |seed| seed.parse().unwrap());
    eprintln!("WEIR_SEED={seed}");
    seed
}

/// Longer than what is settled is kept, so that state has been folded and forgotten.
const TICKS: usize = 200;
/// Ticks that can be asked for at the end.
const RECENT: usize = 40;

#[test]
fn what_begins_from_a_checkpoint_goes_on_as_if_it_had_read_everything() {
    let seed = seed();
    let mut random = Random(seed | 1);
    let world = World::new(seed, TICKS).disturbed(seed);
    let recent: Vec<u64> = (TICKS - RECENT..TICKS).map(tick).collect();
    // One in the middle, one among the ticks that are compared, one at the very beginning, one at the end.
    let middle = 1 + random.below((TICKS - RECENT) as u64 - 1) as usize;
    let late = TICKS - RECENT + random.below(RECENT as u64 - 1) as usize;
    let at = [tick(0), tick(middle), tick(late), tick(TICKS - 1)];
    for (from, to) in [(1, 3), (3, 1), (2, 2), (3, 4)] {
        let mut whole = Engine::start(&world, &format!("{from}-{to}"), from, &at, None);
        let expected = whole.digests(&recent);
        let checkpoints = whole.checkpoints(at.len());
        assert_eq!(checkpoints.keys().copied().collect::<Vec<_>>(), at);
        assert!(expected[0].iter().filter(|digest| digest.rows > 0).count() >= 6, "{expected:?}");
        for (number, (from_tick, parts)) in checkpoints.iter().enumerate() {
            let restore = Arc::new(Restore::parse(parts).unwrap());
            assert_eq!(restore.tick(), *from_tick);
            let mut again = Engine::start(&world, &format!("{from}-{to}-{number}"), to, &[], Some(restore));
            let ticks: Vec<u64> = recent.iter().copied().filter(|tick| tick >= from_tick).collect();
            let skipped = recent.len() - ticks.len();
            for (tick, (found, expected)) in ticks.iter().zip(again.digests(&ticks).iter().zip(&expected[skipped..])) {
                assert_eq!(found, expected, "at {tick} from {from_tick}, {from} to {to} workers, seed {seed}");
            }
        }
    }
}

#[test]
fn a_checkpoint_of_a_restored_mesh_is_as_good() {
    let seed = seed();
    let world = World::new(seed ^ 77, TICKS).disturbed(seed);
    let (first, second) = (tick(60), tick(150));
    let mut whole = Engine::start(&world, "chain", 2, &[first], None);
    let end = [tick(TICKS - 1)];
    let expected = whole.digests(&end);
    let restore = Restore::parse(&whole.checkpoints(1)[&first]).unwrap();
    let mut next = Engine::start(&world, "chain-1", 3, &[second], Some(Arc::new(restore)));
    assert_eq!(next.digests(&end), expected, "seed {seed}");
    let restore = Restore::parse(&next.checkpoints(1)[&second]).unwrap();
    let mut last = Engine::start(&world, "chain-2", 1, &[], Some(Arc::new(restore)));
    assert_eq!(last.digests(&end), expected, "seed {seed}");
}

#[test]
fn a_flipped_bit_is_found_before_anything_is_taken_up() {
    let world = World::new(3, 30);
    let engine = Engine::start(&world, "flip", 1, &[tick(20)], None);
    let mut parts = engine.checkpoints(1)[&tick(20)].clone();
    assert!(Restore::parse(&parts).is_ok());
    let mut random = Random(9);
    for _ in 0..50 {
        let at = random.below(parts[0].len() as u64) as usize;
        parts[0][at] ^= 1;
        assert!(matches!(Restore::parse(&parts), Err(CheckpointError::Damaged(_))), "byte {at}");
        parts[0][at] ^= 1;
    }
}
