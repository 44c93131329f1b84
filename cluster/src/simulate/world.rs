//! The world of one seed: agents, nodes, one disk, and what goes wrong between them.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tracing::trace;
use weir_dataflow::ViewSettings;
use weir_journal::{Disk as _, SimDisk};
use weir_schema::{Epoch, Name};
use weir_transport::session::Verdict;

use super::SHARED;
use super::agent::Agent;
use super::audit::Audit;
use super::books::Books;
use super::dice::Dice;
use super::faults::{Fault, Faults};
use super::link::{Carried, Link};
use super::mesh::{Checkpoints, Feeding, Mesh};
use super::node::{LIMITS, Life, Node, Surroundings, Verdicts};
use crate::error::Error;
use crate::forget::Floors;
use crate::log::LogError;
use crate::membership::Beat;

pub(super) struct World {
    pub(super) dice: Dice,
    /// True time, Unix milliseconds.
    pub(super) now: u64,
    start: (u64, Instant),
    pub(super) disk: SimDisk,
    pub(super) settings: ViewSettings,
    pub(super) nodes: Vec<Node>,
    pub(super) agents: Vec<Agent>,
    pub(super) links: BTreeMap<u64, Link>,
    links_made: u64,
    verdicts: Verdicts,
    /// Signs of life in the store, the newest last.
    beats: BTreeMap<Name, Vec<Beat>>,
    pub(super) checkpoints: Checkpoints,
    pub(super) wanted: u32,
    pub(super) mesh: Option<Mesh>,
    pub(super) books: Books,
    pub(super) audit: Audit,
    pub(super) faults: Faults,
    /// A bit was flipped: losses may be reported from here on.
    pub(super) damaged: Option<String>,
    /// The ticks are ahead of the true time, because nobody was there to know better.
    led_astray: bool,
    /// What the nodes reported as lost.
    pub(super) reports: Vec<String>,
    /// The last things that happened, for who looks into a failure.
    pub(super) trace: VecDeque<String>,
}

impl World {
    /// What a seed makes of it.
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(!seed);
        let (nodes, agents) = (dice.between(1, 4) as usize, dice.between(1, 4) as usize);
        Self::with(seed, nodes, agents, Faults::new(&mut dice))
    }

    /// So many nodes and agents, and what may go wrong.
    pub(super) fn with(seed: u64, nodes: usize, agents: usize, faults: Faults) -> Self {
        let mut dice = Dice::new(seed);
        let disk = SimDisk::new(dice.next());
        let settings = ViewSettings { retention_ms: 5_000, skew_ms: 500, ..ViewSettings::default() };
        let now = START_MS;
        let mut world = Self {
            now,
            // Instants can be made of nothing else. It is read once, and only differences to it are used.
            start: (now, Instant::now()),
            nodes: (0..nodes).map(|number| Node::new(number, &disk)).collect(),
            agents: Vec::new(),
            links: BTreeMap::new(),
            links_made: 0,
            verdicts: Rc::default(),
            beats: BTreeMap::new(),
            checkpoints: Checkpoints::default(),
            wanted: dice.between(1, 3) as u32,
            mesh: None,
            books: Books::default(),
            audit: Audit::new(&disk, settings),
            faults,
            damaged: None,
            led_astray: false,
            reports: Vec::new(),
            trace: VecDeque::new(),
            disk,
            settings,
            dice,
        };
        for number in 0..agents {
            let epoch = Epoch(world.dice.next());
            world.agents.push(Agent::new(number as u16, epoch));
        }
        world
    }

    pub(super) fn instant(&self) -> Instant {
        self.start.1 + Duration::from_millis(self.now - self.start.0)
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        let line = format!("{:>7} ms  {}", self.now - self.start.0, line());
        trace!("{line}");
        self.trace.push_back(line);
    }

    /// A little time passes, and everybody does something.
    pub(super) fn step(&mut self) -> Result<(), String> {
        self.now += self.dice.between(20, 80);
        self.power_may_be_gone();
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        for place in (1..order.len()).rev() {
            order.swap(place, self.dice.place(place + 1));
        }
        for node in order {
            self.step_node(node)?;
        }
        self.power_may_be_gone();
        self.step_agents()?;
        self.step_links()?;
        self.audit.read_on(self.damaged.is_some())?;
        self.step_mesh()?;
        self.forget();
        Ok(())
    }

    /// Everybody on the machine is dead when a write met the planned power failure.
    fn power_may_be_gone(&mut self) {
        if self.disk.list(std::path::Path::new("/")).is_err() && !self.nodes.is_empty() {
            self.power_failure();
        }
    }

    pub(super) fn power_failure(&mut self) {
        self.note(|| "the power fails".to_owned());
        for node in 0..self.nodes.len() {
            let until = self.now + self.dice.between(100, 4_000);
            self.node_dies(node, until);
        }
        self.disk.restart();
        self.disk.create_dir(SHARED.as_ref()).expect("the disk is up");
        self.audit.reopen();
    }

    pub(super) fn node_dies(&mut self, node: usize, until: u64) {
        self.nodes[node].die(until);
        self.verdicts.borrow_mut().clear();
        let gone: Vec<u64> = self.links.values().filter(|link| link.node == node).map(|link| link.number).collect();
        gone.into_iter().for_each(|link| self.cut(link));
    }

    /// A connection is gone at both ends.
    pub(super) fn cut(&mut self, link: u64) {
        let Some(link) = self.links.remove(&link) else { return };
        if link.attached {
            let retry = self.now + self.dice.between(10, 2_000);
            let agent = &mut self.agents[link.agent];
            agent.link = None;
            agent.connect_at = retry;
            agent.sender.disconnected();
        }
    }

    /// The agent goes elsewhere; the node reads on what is on its way.
    pub(super) fn leave(&mut self, agent: usize) {
        let ends_at = self.now + self.dice.between(0, 4_000);
        let agent = &mut self.agents[agent];
        agent.sender.disconnected();
        if let Some(link) = agent.link.take().and_then(|link| self.links.get_mut(&link)) {
            link.attached = false;
            link.ends_at = Some(ends_at);
            // It passes on late what it has.
            link.blocked_until = 0;
        }
        agent.connect_at = self.now + self.dice.between(10, 500);
    }

    /// The agent's process ends and another one starts.
    pub(super) fn agent_restarts(&mut self, agent: usize, spooled: bool) {
        self.leave(agent);
        let epoch = Epoch(self.dice.next());
        self.agents[agent].restart(epoch, spooled, &mut self.books);
    }

    fn step_node(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        match self.nodes[index].life {
            Life::Up => {}
            Life::Frozen(until) if until <= now => {
                (self.nodes[index].life, self.nodes[index].there_since) = (Life::Up, now);
            }
            Life::Down(until) if until <= now => {
                let run = self.dice.next();
                self.nodes[index].start(now, run, &self.disk);
            }
            Life::Frozen(_) | Life::Down(_) => return Ok(()),
        }
        if self.nodes[index].beat_at <= now {
            self.nodes[index].beat_at = now + 400;
            let running = self.mesh.as_ref().map(|mesh| mesh.generation);
            let beat = self.nodes[index].beat(now, running);
            if !self.faults.happens(Fault::BeatLost, &mut self.dice) {
                self.beats.entry(beat.node.clone()).or_default().push(beat);
            }
        }
        let beats = self.beats_as_found();
        let (group, ahead) = (self.dice.roll(6) as usize, 1 + self.dice.place(8));
        let around =
            Surroundings { now, settings: self.settings, checkpoints: &self.checkpoints, beats: &beats, wanted: self.wanted };
        let node = &mut self.nodes[index];
        let mut failed: Vec<(&str, Error)> = Vec::new();
        failed.extend(node.ingest(&around, group).err().map(|error| ("ingest", error)));
        let held = node.hold(&around);
        let tick = *held.as_ref().unwrap_or(&None);
        failed.extend(held.err().map(|error| ("the holder", error)));
        failed.extend(node.follow(&around).err().map(|error| ("following", error)));
        node.supervise(&around);
        failed.extend(node.feed(ahead).err().map(|error| ("a feed", error)));
        let killed = node.disk.is_killed();
        for (who, error) in failed {
            self.failed(index, who, &error)?;
        }
        if killed {
            self.note(|| format!("n{index} is killed in the middle of a change"));
            let until = self.now + self.dice.between(100, 6_000);
            self.node_dies(index, until);
        }
        if let Some(tick) = tick {
            self.check_tick(index, tick)?;
        }
        Ok(())
    }

    /// What a node reports: a loss must have a cause.
    fn failed(&mut self, node: usize, who: &str, error: &Error) -> Result<(), String> {
        self.note(|| format!("n{node}, {who}: {error}"));
        let names_a_loss = match error {
            Error::ChainRecord(_) => true,
            Error::Log { why, .. } => matches!(why, LogError::Gap { .. } | LogError::Forgotten { .. }),
            _ => false,
        };
        if !names_a_loss {
            return Ok(());
        }
        if self.damaged.is_none() {
            return Err(format!("n{node}, {who}, reports a loss that there was none of: {error}"));
        }
        // Without who says it: what is damaged must be named by the words themselves.
        self.reports.push(error.to_string());
        Ok(())
    }

    /// Of three nodes that have been there for a while, one whose clock is wrong moves the ticks by no more than what a holder may take on
    /// its own word. A node that is alone can ask nobody, and goes on at its own clock.
    fn check_tick(&mut self, node: usize, tick: u64) -> Result<(), String> {
        let (now, off) = (self.now, tick.saturating_sub(self.now));
        if off <= CLOCK_MS_MAX || self.led_astray {
            return Ok(());
        }
        let right = |node: &&Node| node.ahead_ms == 0 && node.is_up() && now >= node.there_since + 2 * LIMITS.member_ms_max;
        let right = self.nodes.iter().filter(right).count();
        if right >= 2 {
            return Err(format!("n{node} wrote tick {tick}, {off} ms ahead of the true time, and {right} nodes know better"));
        }
        self.led_astray = true;
        Ok(())
    }

    /// The store shows mostly the newest sign of each node, now and then an older one.
    fn beats_as_found(&mut self) -> Vec<Beat> {
        let mut found = Vec::with_capacity(self.beats.len());
        for beats in self.beats.values_mut() {
            if beats.len() > 8 {
                beats.drain(..4);
            }
            let newest = beats.len() - 1;
            let stale = self.faults.happens(Fault::BeatLate, &mut self.dice);
            let place = if stale { newest.saturating_sub(1 + self.dice.place(3)) } else { newest };
            found.push(beats[place].clone());
        }
        found
    }

    fn step_agents(&mut self) -> Result<(), String> {
        let now = self.instant();
        for index in 0..self.agents.len() {
            let agent = &mut self.agents[index];
            if self.faults.producing && self.dice.one_in(3) {
                agent.produce(self.now, &mut self.dice, &mut self.books);
            }
            agent.refresh(self.now, &mut self.books)?;
            if agent.sender.overdue(now).is_some() {
                self.note(|| format!("process {index} of an agent leaves a silent node"));
                self.leave(index);
            }
            let agent = &self.agents[index];
            if agent.link.is_some() || agent.connect_at > self.now {
                continue;
            }
            let place = self.dice.place(self.nodes.len());
            if self.nodes[place].serves() {
                self.links_made += 1;
                let link = Link::new(self.links_made, index, (place, &self.nodes[place]));
                self.links.insert(link.number, link);
                self.agents[index].sender.connected(now);
                self.agents[index].link = Some(self.links_made);
            } else {
                self.agents[index].connect_at = self.now + self.dice.between(50, 500);
            }
        }
        Ok(())
    }

    fn step_links(&mut self) -> Result<(), String> {
        let now = self.instant();
        let verdicts: Vec<_> = self.verdicts.borrow_mut().drain(..).collect();
        for (link, ticket, verdict) in verdicts {
            match (self.links.get_mut(&link), verdict) {
                (Some(link), Some(verdict)) => {
                    self.faults.settled(verdict == Verdict::Durable);
                    link.settle(ticket, verdict);
                }
                // Ingest dropped it: the connection ends, so that its agent sends it again.
                (Some(_), None) => self.cut(link),
                (None, _) => {}
            }
        }
        let numbers: Vec<u64> = self.links.keys().copied().collect();
        for number in numbers {
            let Some(link) = self.links.get_mut(&number) else { continue };
            if link.blocked_until > self.now {
                continue;
            }
            let agent = &mut self.agents[link.agent];
            link.fill(now, agent);
            let node = &mut self.nodes[link.node];
            if node.serves() {
                link.arrive(node, agent, &self.verdicts, &mut self.dice)?;
                link.answer(now, agent, &mut self.books, &mut self.dice)?;
            }
            if link.carried(self.now) == Carried::Over {
                self.cut(number);
            }
        }
        Ok(())
    }

    /// The newest generation whose members are all at work closes ticks.
    fn step_mesh(&mut self) -> Result<(), String> {
        let newest = self.nodes.iter().filter_map(|node| node.workers.as_ref()).max_by_key(|workers| workers.generation.number);
        let Some(generation) = newest.map(|workers| workers.generation.clone()) else {
            self.mesh = None;
            return Ok(());
        };
        let works = |node: &Node| {
            let in_it = node
                .workers
                .as_ref()
                .is_some_and(|workers| workers.generation.number == generation.number && workers.ended.is_none());
            in_it && generation.place(&node.name, node.run).is_some()
        };
        let members: Vec<usize> = (0..self.nodes.len()).filter(|node| works(&self.nodes[*node])).collect();
        if members.len() < generation.members.len() {
            if self.mesh.as_ref().is_some_and(|mesh| mesh.generation == generation.number) {
                // A death in the mesh ends all its workers.
                for member in members {
                    if let Some(workers) = &mut self.nodes[member].workers {
                        workers.ended = Some("another member is gone".to_owned());
                    }
                }
            }
            self.mesh = None;
            return Ok(());
        }
        if self.mesh.as_ref().is_none_or(|mesh| mesh.generation != generation.number) {
            self.note(|| format!("generation {} stands, from {:?}", generation.number, generation.from));
            self.faults.generations += 1;
            match Mesh::start(self.settings, &generation, &self.checkpoints) {
                Ok(mesh) => self.mesh = Some(mesh),
                Err(why) => {
                    for member in members {
                        self.nodes[member].bad_checkpoint = generation.from;
                        if let Some(workers) = &mut self.nodes[member].workers {
                            workers.ended = Some(why.clone());
                        }
                    }
                    return Ok(());
                }
            }
            self.check_answer()?;
        }
        // A frozen member's workers bring nothing; what it has read already counts.
        let Some(mesh) = &mut self.mesh else { return Ok(()) };
        let mut feeds: Vec<&mut Feeding> = self
            .nodes
            .iter_mut()
            .filter(|node| works(node))
            .flat_map(|node| &mut node.workers.as_mut().expect("it works").feeds)
            .collect();
        let mut closed = 0;
        while let Some(done) = mesh.close(&mut feeds)? {
            closed += 1;
            if let Some(checkpoint) = done.checkpoint
                && !self.faults.happens(Fault::CheckpointNeverDone, &mut self.dice)
            {
                self.checkpoints.put(done.tick, checkpoint);
                self.faults.checkpoints += 1;
            }
        }
        self.faults.ticks += closed;
        if closed > 0 && self.dice.one_in(16) {
            self.check_answer()?;
        }
        Ok(())
    }

    /// The incremental answer is the recount, tick by tick.
    pub(super) fn check_answer(&self) -> Result<(), String> {
        let Some(mesh) = &self.mesh else { return Ok(()) };
        if mesh.closed > self.audit.recount.tick {
            if self.audit.blocked.is_some() {
                return Ok(());
            }
            return Err(format!("tick {} is closed, and the chain can be read up to {}", mesh.closed, self.audit.recount.tick));
        }
        let plain = self.audit.recount.at(mesh.closed);
        if plain != mesh.answer {
            let only = |one: &super::books::Answer, other: &super::books::Answer| {
                one.iter().find(|(key, row)| other.get(key) != Some(row)).map(|(key, row)| format!("{key:?} {row:?}"))
            };
            return Err(format!(
                "the answer at tick {} has {} events, the recount {}: {:?} against {:?}",
                mesh.closed,
                mesh.answer.len(),
                plain.len(),
                only(&mesh.answer, &plain),
                only(&plain, &mesh.answer)
            ));
        }
        self.books.check_rows(&mesh.answer)
    }

    /// As `forget.rs` works the floors out, without an archive.
    fn forget(&mut self) {
        if self.checkpoints.0.len() < 2 {
            return;
        }
        let Some(oldest) = self.checkpoints.0.values().next() else { return };
        let state = &oldest.position.state;
        let logs: BTreeMap<Name, u64> = state.logs.iter().cloned().zip(state.offsets.iter().copied()).collect();
        let floors = Floors { chain: oldest.position.record, logs };
        for node in &self.nodes {
            node.floor.put(floors.clone());
        }
    }
}

const START_MS: u64 = 1_790_000_000_000;
const TRACE_LINES: usize = 60;
/// What a holder takes on its own clock's word, and a little.
const CLOCK_MS_MAX: u64 = 62_000;
