//! Nodes that take the chain from each other, write logs, freeze, die, and hear no answers: the state machines alone, over a store that is
//! a map. Each operation is a step of its own, so every interleaving can happen; an operation may also take effect long after whoever asked
//! has given up.
//!
//! After each run: one dense chain whose records follow each other by their nonces; ticks that rise; every record that a writer was told is
//! its own is in it; and every acknowledged frame is named exactly once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::claim::{Ask, Claim, Claimed, Heard};
use super::super::takeover::Takeover;
use crate::chain::{ChainRecord, ChainState, Command};
use crate::log::object::tests::name;

/// Numbered objects: nonce, nonce of the one below, what is in it.
type Folder<T> = BTreeMap<u64, (u128, u128, T)>;

/// A segment: its first record, and its records.
type Segment = (u64, Vec<u64>);

#[derive(Default)]
struct Store {
    chain: Folder<ChainRecord>,
    logs: [Folder<Segment>; NODES],
    /// Creates that take effect later.
    late: Vec<Late>,
    /// What readers begin from when the beginning is forgotten, as a checkpoint has it.
    base: (u64, ChainState),
}

enum Late {
    Chain(u64, (u128, u128, ChainRecord)),
    Log(usize, u64, (u128, u128, Segment)),
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It takes effect, and nobody hears.
    Unheard,
    Lost,
    /// It takes effect some time later, and nobody hears.
    Late,
}

fn create<T>(folder: &mut Folder<T>, number: u64, object: (u128, u128, T)) -> Heard {
    match folder.entry(number) {
        std::collections::btree_map::Entry::Occupied(_) => Heard::Taken,
        std::collections::btree_map::Entry::Vacant(free) => {
            free.insert(object);
            Heard::Created
        }
    }
}

fn look<T>(folder: &Folder<T>, ask: Ask, number: u64) -> Heard {
    let found = match (ask, number.checked_sub(1)) {
        (Ask::LookBefore, Some(below)) => folder.get(&below),
        (Ask::LookBefore, None) => folder.range(number + 1..).next().map(|(_, object)| object),
        _ => folder.get(&number),
    };
    found.map_or(Heard::Absent, |object| Heard::Nonce(object.0))
}

/// A number that somebody creates.
struct Attempt<T> {
    claim: Claim,
    number: u64,
    object: (u128, u128, T),
}

impl<T: Clone> Attempt<T> {
    fn new(number: u64, nonce: u128, before: Option<u128>, content: T) -> Self {
        Self { claim: Claim::new(nonce, before), number, object: (nonce, before.unwrap_or(0), content) }
    }

    /// One operation.
    fn step(&mut self, folder: &mut Folder<T>, fate: Fate, late: impl FnOnce(u64, (u128, u128, T))) -> Option<Claimed> {
        let heard = match (self.claim.ask(), fate) {
            (Ask::Create, Fate::Answered) => create(folder, self.number, self.object.clone()),
            (Ask::Create, Fate::Unheard) => {
                create(folder, self.number, self.object.clone());
                Heard::Unclear
            }
            (Ask::Create, Fate::Late) => {
                late(self.number, self.object.clone());
                Heard::Unclear
            }
            (ask, Fate::Answered) => look(folder, ask, self.number),
            _ => Heard::Unclear,
        };
        self.claim.hear(heard)
    }
}

/// One node: its log, and its part in the chain.
struct Node {
    takeover: Takeover,
    /// What it knows of the chain: the next number, the nonce before, the state.
    next: u64,
    before: Option<u128>,
    state: ChainState,
    is_holder: bool,
    writing: Option<Attempt<ChainRecord>>,
    log: LogEnd,
    sending: Option<Attempt<Segment>>,
}

/// Where a node's log goes on; none until its opening segment stands.
#[derive(Clone, Copy)]
enum LogEnd {
    Closed,
    Open { next: u64, before: u128, records: u64 },
}

struct World {
    store: Store,
    nodes: Vec<Node>,
    now_ms: u64,
    nonces: u128,
    frames: u64,
    /// Per log: number and frame of what was acknowledged.
    acked: Vec<Vec<(u64, u64)>>,
    /// What writers were told is theirs.
    told: BTreeMap<u64, u128>,
}

impl Node {
    fn new() -> Self {
        Self {
            takeover: Takeover::new(TTL_MS),
            next: 0,
            before: None,
            state: ChainState::default(),
            is_holder: false,
            writing: None,
            log: LogEnd::Closed,
            sending: None,
        }
    }
}

impl World {
    fn new() -> Self {
        let nodes = (0..NODES).map(|_| Node::new()).collect();
        let acked = vec![Vec::new(); NODES];
        Self { store: Store::default(), nodes, now_ms: 0, nonces: 0, frames: 0, acked, told: BTreeMap::new() }
    }

    fn nonce(&mut self) -> u128 {
        self.nonces += 1;
        self.nonces
    }

    /// A node does one thing about the chain.
    fn chain_step(&mut self, index: usize, fate: Fate) {
        let nonce = self.nonce();
        let (node, store) = (&mut self.nodes[index], &mut self.store);
        let Some(writing) = &mut node.writing else {
            return Self::follow(node, store, nonce, self.now_ms, fate);
        };
        let late = &mut store.late;
        let number = writing.number;
        match writing.step(&mut store.chain, fate, |number, object| late.push(Late::Chain(number, object))) {
            None => {}
            Some(Claimed::Ours) => {
                let (nonce, _, record) = node.writing.take().expect("it was there").object;
                node.state.apply(&record).expect("a holder writes what follows");
                (node.next, node.before, node.is_holder) = (number + 1, Some(nonce), true);
                node.takeover.saw(node.next, self.now_ms);
                assert_eq!(self.told.insert(number, nonce), None, "number {number} was promised twice");
            }
            Some(Claimed::Another | Claimed::Behind) => (node.writing, node.is_holder) = (None, false),
        }
    }

    /// Reads a record, or begins to write one.
    fn follow(node: &mut Node, store: &Store, nonce: u128, now_ms: u64, fate: Fate) {
        if fate != Fate::Answered {
            return;
        }
        let oldest = oldest(&store.chain);
        let below = node.next.checked_sub(1).and_then(|below| store.chain.get(&below));
        let slept = node.before.is_some() && below.map(|below| below.0) != node.before;
        if node.next < oldest.unwrap_or(0) || slept {
            // Slept while it was forgotten: from the checkpoint on.
            (node.next, node.before, node.is_holder) = (store.base.0, None, false);
            node.state = store.base.1.clone();
        }
        if let Some((nonce, before, record)) = store.chain.get(&node.next) {
            assert!(node.before.is_none_or(|known| known == *before), "record {} does not follow", node.next);
            node.state.apply(record).expect("what is chained follows the rules");
            (node.next, node.before, node.is_holder) = (node.next + 1, Some(*nonce), false);
            node.takeover.saw(node.next, now_ms);
            return;
        }
        node.takeover.saw(node.next, now_ms);
        if !node.is_holder && !node.takeover.may_try(now_ms) {
            return;
        }
        let generation = node.state.generation + u64::from(!node.is_holder);
        let record = Self::record(node, store, generation, nonce);
        node.writing = Some(Attempt::new(node.next, nonce, node.before, record));
    }

    fn record(node: &Node, store: &Store, generation: u64, nonce: u128) -> ChainRecord {
        let mut commands = Vec::new();
        let mut known = node.state.logs.clone();
        for log in 0..NODES {
            let name = name(&format!("n{log}"));
            if !store.logs[log].is_empty() && !known.contains(&name) {
                commands.push(Command::RegisterLog { index: known.len() as u32, name: name.clone() });
                known.push(name);
            }
        }
        let durable =
            |log: usize| store.logs[log].values().next_back().map_or(0, |(_, _, (first, records))| first + records.len() as u64);
        let logs = known.iter().enumerate().map(|(index, name)| {
            let log: usize = name.as_str()[1..].parse().expect("our own names");
            (index as u32, durable(log))
        });
        // A node's clock is anything.
        let tick = node.state.tick + 1 + nonce as u64 % 7;
        ChainRecord { generation, nonce, tick, logs: logs.collect(), commands }
    }

    /// A node does one thing about its log.
    fn log_step(&mut self, index: usize, fate: Fate) {
        let nonce = self.nonce();
        let (node, store) = (&mut self.nodes[index], &mut self.store);
        let Some(sending) = &mut node.sending else {
            let (number, before, first, records) = match node.log {
                LogEnd::Open { next, before, records } => {
                    self.frames += 2;
                    (next, Some(before), records, vec![self.frames, self.frames + 1])
                }
                LogEnd::Closed => match store.logs[index].iter().next_back() {
                    Some((number, (nonce, _, (first, records)))) => {
                        (number + 1, Some(*nonce), first + records.len() as u64, vec![])
                    }
                    None => (0, None, 0, vec![]),
                },
            };
            node.sending = Some(Attempt::new(number, nonce, before, (first, records)));
            return;
        };
        let late = &mut store.late;
        let ended = sending.step(&mut store.logs[index], fate, |number, object| late.push(Late::Log(index, number, object)));
        match ended {
            None => {}
            Some(Claimed::Ours) => {
                let attempt = node.sending.take().expect("it was there");
                let (nonce, _, (first, records)) = attempt.object;
                node.log = LogEnd::Open { next: attempt.number + 1, before: nonce, records: first + records.len() as u64 };
                self.acked[index].extend((first..).zip(records));
            }
            // Something of an earlier life was on its way: it opens its log anew.
            Some(Claimed::Another | Claimed::Behind) => (node.sending, node.log) = (None, LogEnd::Closed),
        }
    }

    /// Everything before some number goes, as far as it may.
    fn forget(&mut self, share: u64) {
        let Some(newest) = self.store.chain.keys().next_back().copied() else { return };
        let oldest = oldest(&self.store.chain).expect("there is a newest");
        let floor = oldest + (newest + 1 - oldest) * share / 8;
        let floor = floor.min((newest + 1).saturating_sub(KEPT));
        if floor < TOGETHER {
            return;
        }
        // The checkpoint there, of a reader that began at the one before.
        let (mut number, mut state) = self.store.base.clone();
        while number < floor {
            state.apply(&self.store.chain[&number].2).expect("what is chained follows the rules");
            number += 1;
        }
        self.store.base = (number, state);
        // What was on its way when a record became known has arrived before the record is forgotten; what nobody knows of has not.
        let chain = &self.store.chain;
        self.store.late.retain(|late| match late {
            Late::Chain(number, object) => *number >= floor || chain.get(number).is_none_or(|there| there.0 != object.0),
            Late::Log(..) => true,
        });
        self.store.chain.retain(|number, _| *number >= floor);
    }

    fn finish(&mut self) {
        // Whatever was on its way arrives or not; then all of them live, and every answer is heard.
        while !self.store.late.is_empty() {
            self.arrive(0);
        }
        for _ in 0..400 {
            self.now_ms += TTL_MS / 10;
            for index in 0..NODES {
                self.chain_step(index, Fate::Answered);
            }
        }
        self.check();
    }

    fn arrive(&mut self, which: usize) {
        if self.store.late.is_empty() {
            return;
        }
        let which = which % self.store.late.len();
        match self.store.late.swap_remove(which) {
            Late::Chain(number, object) => _ = create(&mut self.store.chain, number, object),
            Late::Log(log, number, object) => _ = create(&mut self.store.logs[log], number, object),
        }
    }

    fn check(&self) {
        let (mut number, mut state) = self.store.base.clone();
        let mut before = None;
        while let Some((nonce, below, record)) = self.store.chain.get(&number) {
            assert!(before.is_none_or(|before| before == *below), "record {number} does not follow the one below it");
            state.apply(record).expect("dense, rising, and never back");
            if let Some(told) = self.told.get(&number) {
                assert_eq!(told, nonce, "record {number} was promised to another");
            }
            before = Some(*nonce);
            number += 1;
        }
        assert_eq!(Some(number), self.store.chain.keys().next_back().map(|newest| newest + 1), "something lies behind a hole");
        for (log, acked) in self.acked.iter().enumerate() {
            let mut records = Vec::new();
            for (_, _, (first, frames)) in self.store.logs[log].values() {
                assert_eq!(*first, records.len() as u64, "the records of log {log} are dense");
                records.extend(frames);
            }
            let index = state.logs.iter().position(|named| *named == name(&format!("n{log}")));
            let named = index.map_or(0, |index| state.offsets[index]);
            for (record, frame) in acked {
                assert_eq!(records.get(*record as usize), Some(frame), "log {log} lost what was acknowledged");
                assert!(*record < named, "record {record} of log {log} is acknowledged, and nobody names it");
                assert_eq!(records.iter().filter(|other| *other == frame).count(), 1);
            }
        }
    }
}

/// The first number behind the last hole: below it is only what sleepers created.
fn oldest<T>(folder: &Folder<T>) -> Option<u64> {
    let mut oldest = *folder.keys().next_back()?;
    while oldest > 0 && folder.contains_key(&(oldest - 1)) {
        oldest -= 1;
    }
    Some(oldest)
}

#[derive(Debug, Clone)]
enum Event {
    Chain(usize, Fate),
    Log(usize, Fate),
    Wait(u64),
    Die(usize),
    Arrive(usize),
    Forget(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let fate = prop_oneof![6 => Just(Fate::Answered), 1 => Just(Fate::Unheard), 1 => Just(Fate::Lost), 1 => Just(Fate::Late)];
    // A node that is not drawn for a while is frozen.
    let one = (0..NODES, fate, 1..12_usize).prop_flat_map(|(node, fate, times)| {
        let chain = proptest::collection::vec(Just(Event::Chain(node, Fate::Answered)), times).prop_map(move |mut many| {
            many.push(Event::Chain(node, fate));
            many
        });
        let log = proptest::collection::vec(Just(Event::Log(node, Fate::Answered)), times / 3).prop_map(move |mut many| {
            many.push(Event::Log(node, fate));
            many
        });
        prop_oneof![4 => chain, 3 => log]
    });
    let others = prop_oneof![
        3 => (0..TTL_MS * 2).prop_map(Event::Wait),
        1 => (0..NODES).prop_map(Event::Die),
        2 => (0..8_usize).prop_map(Event::Arrive),
        1 => (0..9_u64).prop_map(Event::Forget),
    ];
    let many = prop_oneof![5 => one, 2 => others.prop_map(|event| vec![event])];
    proptest::collection::vec(many, 1..150).prop_map(|all| all.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn one_chain_whatever_freezes_dies_or_is_not_heard(events in events()) {
        let mut world = World::new();
        for event in events {
            match event {
                Event::Chain(node, fate) => world.chain_step(node, fate),
                Event::Log(node, fate) => world.log_step(node, fate),
                Event::Wait(ms) => world.now_ms += ms,
                Event::Die(node) => world.nodes[node] = Node::new(),
                Event::Arrive(which) => world.arrive(which),
                Event::Forget(share) => world.forget(share),
            }
        }
        world.finish();
    }
}

const NODES: usize = 3;
const TTL_MS: u64 = 100;
const KEPT: u64 = 4;
const TOGETHER: u64 = 5;
