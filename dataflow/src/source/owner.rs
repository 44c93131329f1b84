//! The owner of an agent: takes its frames in chain order, drops what was seen, admits what is in time, and says what follows.
//!
//! No timely here: frames of a tick in, what they mean out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use weir_schema::{AgentIdentity, Batch, Column, Decoder, EventIds, Frame, Kind, Lane, Section, Seq, Why};

use super::admission::Admission;
use super::agent::{Agent, Loss};
use super::dedupe::Verdict;
use super::facts::{AgentRow, Changed, HostNews, LossRow, Texts};
use super::keys::KeyLimits;
use super::rows::{Picks, Rows, Stamp, schema_of};
use super::sorted::{AHEAD_ROWS_MAX, Sorted, count, sort};
use super::tail::{Entry, Tail, Tails};
use super::touches::{address_facts, place_of, rows, short, touches};
use crate::alerts::{Admitted, Compiled, HostHits, InForce, Spotter};
use crate::chains::{ChainHit, ChainRule, spot};
use crate::connections::{AddressFact, HostTouches, Place};
use crate::correlations::CorrelationHit;
use crate::delta::DeltaBatch;

/// A frame on its way to the worker that owns its agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Shipped {
    pub(crate) route: u64,
    pub(crate) log: u32,
    pub(crate) offset: u64,
    pub(crate) received_ms: u64,
    pub(crate) identity: AgentIdentity,
    pub(crate) frame: Vec<u8>,
}

/// What became of all events so far, on one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Frames that were decoded.
    pub frames: u64,
    /// Distinct events that were understood, late ones included.
    pub events: u64,
    /// Events that came too late for any view.
    pub late: u64,
    /// Events that came again with the same content.
    pub duplicates: u64,
    /// Events that came again with other content.
    pub conflicts: u64,
    /// Frames that could not be read.
    pub undecodable: u64,
    /// Events of kinds or versions that this binary does not know.
    pub skipped: u64,
    /// Events ahead of their tick that found no room to wait.
    pub ahead_refused: u64,
    /// Events that agents reported as lost.
    pub lost: u64,
    /// Reports of losses whose size nobody knows.
    pub losses_unknown: u64,
    /// Events whose container was one too many of its agent's and is told as `__other__`.
    pub folded: u64,
    /// Hits of rules, before exceptions.
    pub hits: u64,
}

impl SourceCounts {
    pub(super) fn add(&mut self, more: &Self) {
        let Self {
            frames,
            events,
            late,
            duplicates,
            conflicts,
            undecodable,
            skipped,
            ahead_refused,
            lost,
            losses_unknown,
            folded,
            hits,
        } = more;
        self.frames += frames;
        self.events += events;
        self.late += late;
        self.duplicates += duplicates;
        self.conflicts += conflicts;
        self.undecodable += undecodable;
        self.skipped += skipped;
        self.ahead_refused += ahead_refused;
        self.lost += lost;
        self.losses_unknown += losses_unknown;
        self.folded += folded;
        self.hits += hits;
    }
}

/// What follows from one tick's frames.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) events: Vec<DeltaBatch>,
    pub(crate) samples: Vec<DeltaBatch>,
    pub(crate) touches: Vec<HostTouches>,
    pub(crate) addresses: Vec<AddressFact>,
    pub(crate) news: Vec<HostNews>,
    pub(crate) agents: Option<DeltaBatch>,
    pub(crate) losses: Option<DeltaBatch>,
    pub(crate) hits: Vec<HostHits>,
    pub(crate) chain_hits: Vec<ChainHit>,
    pub(crate) counted: Vec<CorrelationHit>,
    /// What waits, by the moment at which it enters.
    pub(crate) ahead: Vec<(u64, Ahead)>,
}

/// Rows of a frame that are ahead of their tick.
#[derive(Debug, Clone)]
pub(crate) struct Ahead {
    pub(super) route: u64,
    pub(super) decoded: Arc<Decoded>,
    pub(super) picks: Picks,
}

#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) identity: Arc<AgentIdentity>,
    pub(super) place: Arc<Place>,
    pub(super) received_ms: u64,
    pub(super) frame: Arc<Frame>,
    pub(super) batch: Batch,
    /// The containers of it that were folded, by their places in the table.
    pub(super) folded: Vec<u32>,
}

/// The agents that one worker owns.
pub(crate) struct Owner {
    admission: Admission,
    key_limits: KeyLimits,
    events: (SchemaRef, Vec<Column>),
    samples: (SchemaRef, Vec<Column>),
    pub(super) agents: HashMap<u64, Agent, FixedState>,
    pub(super) decoder: Decoder,
    texts: Texts,
    in_force: InForce,
    /// Those of the tick at hand.
    rules: Option<Rc<Compiled>>,
    chains: Rc<Vec<Arc<ChainRule>>>,
    spotter: Spotter,
    pub(crate) counts: SourceCounts,
}

impl Owner {
    pub(crate) fn new(
        (admission, key_limits): (Admission, KeyLimits),
        (events, samples): (Vec<Column>, Vec<Column>),
        in_force: InForce,
    ) -> Self {
        Self {
            admission,
            key_limits,
            events: (schema_of(&events), events),
            samples: (schema_of(&samples), samples),
            agents: HashMap::default(),
            decoder: Decoder::new(),
            texts: Texts::default(),
            in_force,
            rules: None,
            chains: Rc::default(),
            spotter: Spotter::default(),
            counts: SourceCounts::default(),
        }
    }

    /// A closed tick's frames, and what waited for it.
    pub(crate) fn advance(&mut self, tick: u64, mut frames: Vec<Shipped>, waited: Vec<Ahead>, tails: &mut Tails) -> Outcome {
        let mut outcome = Outcome::default();
        (self.rules, self.chains) = (self.in_force.at(tick), self.in_force.chains.at(tick));
        let mut touched: BTreeMap<u64, ()> = BTreeMap::new();
        for ahead in waited {
            if let Some(agent) = self.agents.get_mut(&ahead.route) {
                agent.waiting = agent.waiting.saturating_sub(count(&ahead.decoded.batch, &ahead.picks));
            }
            self.admit(tick, ahead.route, &ahead.decoded, ahead.picks, tails, &mut outcome);
            touched.insert(ahead.route, ());
        }
        frames.sort_by_key(|frame| (frame.log, frame.offset));
        for shipped in frames {
            touched.insert(shipped.route, ());
            self.take(tick, shipped, tails, &mut outcome);
        }
        let (mut agents, mut losses) = (Changed::<AgentRow>::default(), Changed::<LossRow>::default());
        for route in touched.into_keys() {
            let Some(agent) = self.agents.get_mut(&route) else { continue };
            if let Some(row) = agent.row() {
                agents.change(&mut agent.shown, row);
            }
            for (row, shown) in agent.losses.values_mut() {
                losses.change(shown, row.clone());
            }
        }
        outcome.agents = agents.encode(tick, AgentRow::encode);
        outcome.losses = losses.encode(tick, LossRow::encode);
        outcome
    }

    /// The next frame of the chain.
    fn take(&mut self, tick: u64, shipped: Shipped, tails: &mut Tails, outcome: &mut Outcome) {
        let Shipped { route, received_ms, identity, frame, .. } = shipped;
        let agent = self.agents.entry(route).or_insert_with(|| Agent::new(Arc::new(identity.clone())));
        if *agent.identity != identity {
            agent.identity = Arc::new(identity);
        }
        let identity = Arc::clone(&agent.identity);
        let time = i64::try_from(tick.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        let ours = |class, reason, lost| Loss { host: "", class, reason, time, seqs: None, lost };
        let Ok(frame) = Frame::from_vec(frame) else {
            self.counts.undecodable += 1;
            return agent.lose(&ours("frame", "undecodable", None));
        };
        let header = frame.header;
        let (class, all) = (header.lane.as_str(), u64::from(header.count));
        let seqs = match agent.dedupe.judge(&header) {
            Verdict::New { seqs, duplicates } => {
                self.counts.duplicates += duplicates;
                seqs
            }
            Verdict::Duplicate => {
                self.counts.duplicates += all;
                return;
            }
            Verdict::Conflict => {
                self.counts.conflicts += all;
                return agent.lose(&ours(class, "conflict", Some(all)));
            }
        };
        let Ok(mut batch) = frame.decode(&mut self.decoder) else {
            let lost = seqs.iter().map(|seqs| seqs.end - seqs.start).sum();
            self.counts.undecodable += 1;
            agent.lost_events += lost;
            return agent.lose(&ours(class, "undecodable", Some(lost)));
        };
        self.counts.frames += 1;
        for skipped in batch.skipped.iter().filter(|skipped| !matches!(skipped.why, Why::UnknownColumns(_))) {
            self.counts.skipped += u64::from(skipped.rows);
            agent.lose(&ours(class, "unknown_kind", Some(u64::from(skipped.rows))));
        }
        let folded = agent.keys.fold(&mut batch, tick, self.key_limits);
        let beyond = events_of(&batch, &folded, &seqs);
        if beyond > 0 {
            self.counts.folded += beyond;
            agent.lose(&Loss { host: &batch.host.host, ..ours(class, "new_containers", Some(beyond)) });
        }
        let place = Arc::new(place_of(&identity, &batch));
        let decoded = Arc::new(Decoded { identity, place, received_ms, frame: Arc::new(frame), batch, folded });
        let sorted = sort(&decoded.batch, &seqs, self.admission, tick);
        self.spread(tick, route, &decoded, sorted, tails, outcome);
    }

    /// Gives each of a frame's new rows its way.
    fn spread(
        &mut self,
        tick: u64,
        route: u64,
        decoded: &Arc<Decoded>,
        sorted: Sorted,
        tails: &mut Tails,
        outcome: &mut Outcome,
    ) {
        let time = i64::try_from(tick.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        let class = decoded.batch.header.lane.as_str();
        let ours = |reason, lost| Loss { host: &decoded.batch.host.host, class, reason, time, seqs: None, lost: Some(lost) };
        let late = count(&decoded.batch, &sorted.late) as u64;
        if late > 0 {
            self.counts.late += late;
            self.note(route, decoded, &sorted.late);
            if let Some(agent) = self.agents.get_mut(&route) {
                agent.lose(&ours("late", late));
            }
            keep(tails, tick, true, decoded, sorted.late);
        }
        for (moment, picks) in sorted.ahead {
            let rows = count(&decoded.batch, &picks);
            let Some(agent) = self.agents.get_mut(&route) else { continue };
            if agent.waiting + rows > AHEAD_ROWS_MAX {
                self.counts.ahead_refused += rows as u64;
                agent.lost_events += rows as u64;
                agent.lose(&ours("ahead", rows as u64));
                continue;
            }
            agent.waiting += rows;
            outcome.ahead.push((moment, Ahead { route, decoded: Arc::clone(decoded), picks }));
        }
        self.admit(tick, route, decoded, sorted.admitted, tails, outcome);
    }

    /// Lets rows into the views and the tail.
    fn admit(&mut self, tick: u64, route: u64, decoded: &Decoded, picks: Picks, tails: &mut Tails, outcome: &mut Outcome) {
        if picks.is_empty() {
            return;
        }
        self.note(route, decoded, &picks);
        let Decoded { identity, place, received_ms, batch, .. } = decoded;
        let stamp = Stamp { identity, received_ms: *received_ms, tick, late: false };
        let is_sample = batch.header.lane == Lane::Sample;
        let ((schema, columns), deltas) =
            if is_sample { (&self.samples, &mut outcome.samples) } else { (&self.events, &mut outcome.events) };
        if !columns.is_empty() {
            let rows = Rows::new(batch, stamp).record_batch(&picks, schema, columns);
            deltas.push(DeltaBatch::inserted(tick, rows));
        }
        outcome.addresses.extend(address_facts(identity, place, batch, &picks));
        outcome.news.extend(self.news(decoded, &picks));
        outcome.touches.extend(touches(identity, place, batch, &picks));
        let lost = self.agents.get(&route).map_or(0, |agent| agent.lost_events);
        let admitted = Admitted { identity, place, batch, picks: &picks, lost };
        outcome.hits.extend(self.spotter.spot(self.rules.as_deref(), admitted));
        self.counts.hits += std::mem::take(&mut self.spotter.hits);
        outcome.counted.append(&mut self.spotter.counted);
        if !is_sample && !self.chains.is_empty() {
            let hits = spot(&self.chains, admitted, stamp);
            self.counts.hits += hits.len() as u64;
            outcome.chain_hits.extend(hits);
        }
        keep(tails, tick, false, decoded, picks);
    }

    /// Notes what new rows say of their agent.
    fn note(&mut self, route: u64, decoded: &Decoded, picks: &Picks) {
        let batch = &decoded.batch;
        self.counts.events += count(batch, picks) as u64;
        let Some(agent) = self.agents.get_mut(&route) else { return };
        let mut ids = EventIds::new(&decoded.identity, batch.header.epoch, batch.header.lane);
        agent.heard(batch, picks, &mut ids);
        let reported = agent.reported(batch, picks);
        self.counts.lost += reported.lost;
        self.counts.losses_unknown += reported.unknown;
    }

    /// What admitted rows say of their host.
    fn news(&mut self, decoded: &Decoded, picks: &Picks) -> Option<HostNews> {
        let batch = &decoded.batch;
        let sections = || picks.iter().map(|(at, pick)| (&batch.sections[*at], pick));
        let times = || sections().flat_map(|(section, pick)| rows(section, pick).map(|row| section.times[row]));
        let (first, last) = (times().min()?, times().max()?);
        let mut ids = EventIds::new(&decoded.identity, batch.header.epoch, batch.header.lane);
        let (mut addresses, mut stopped) = (None, None);
        for (section, pick) in sections().filter(|(section, _)| matches!(section.kind, Kind::HostStart | Kind::HostStop)) {
            for row in rows(section, pick) {
                let time = section.times[row];
                let code = section.table.codes(Column::Addresses).map_or(0, |codes| codes[row]);
                if section.kind == Kind::HostStop {
                    stopped = stopped.max(Some(time));
                } else if code != 0 {
                    let id = short(&ids.id(Seq(section.first_seq.0 + row as u64)).0);
                    addresses = addresses.max(Some(((time, id), self.texts.of(batch.strings.text(code)))));
                }
            }
        }
        let place = Arc::clone(&decoded.place);
        Some(HostNews { place, boot: batch.host.boot_id, simulated: batch.host.simulated, first, last, addresses, stopped })
    }
}

/// How many new events are of these containers.
fn events_of(batch: &Batch, containers: &[u32], seqs: &[Range<u64>]) -> u64 {
    if containers.is_empty() {
        return 0;
    }
    let of_section = |section: &Section| {
        let is_new = |row: usize| seqs.iter().any(|seqs| seqs.contains(&(section.first_seq.0 + row as u64)));
        let is_theirs = |container: u32| container.checked_sub(1).is_some_and(|row| containers.binary_search(&row).is_ok());
        section.container_rows.iter().enumerate().filter(|(row, container)| is_theirs(**container) && is_new(*row)).count() as u64
    };
    batch.sections.iter().map(of_section).sum()
}

fn keep(tails: &mut Tails, tick: u64, late: bool, decoded: &Decoded, picks: Picks) {
    let tail = Tail::of(decoded.batch.header.lane);
    let rows = count(&decoded.batch, &picks);
    let (identity, frame) = (Arc::clone(&decoded.identity), Arc::clone(&decoded.frame));
    tails.push(tail, Entry { tick, late, identity, received_ms: decoded.received_ms, frame, picks, rows });
}
