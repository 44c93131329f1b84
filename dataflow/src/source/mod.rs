//! From arrived frames to rows: each agent has one owner among the workers, who drops what was seen and admits what is in time.
//!
//! ```text
//! frames of this worker's logs ─ ship (by agent) ─ own ─┬─ events, samples: rows for plans
//!                                                       ├─ touches, addresses: for connections
//!                                                       ├─ hits of the rules: for alerts and chains
//!                                                       ├─ agents, losses; news ─ hosts (by host)
//!                                                       └─ tails: the last rows, to be read by peeks
//! ```
//!
//! The record (the archive, and what is not archived yet) is read from the same frames by the same rule: `intake.rs`.
//!
//! Promise: everything but the tails is, at a closed tick, a function of the chain up to it, on any number of workers. Per
//! agent all bounds (gaps, waiting rows, kinds of loss) are its own, so nobody's share depends on another.

mod admission;
mod agent;
mod dedupe;
mod facts;
mod gather;
mod intake;
pub(crate) mod keys;
pub(crate) mod open;
mod owner;
pub(crate) mod rows;
mod saved;
mod sorted;
pub(crate) mod table;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod touches;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder as Rows;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use weir_schema::Column;

pub use admission::{Admission, Judgement};
pub use dedupe::{Dedupe, Verdict};
pub use facts::HostNews;
pub use gather::{Part, gather};
pub use intake::{Intake, IntakeError, Taken};
pub use owner::SourceCounts;
pub use rows::schema_of;
pub use tail::{Tail, TailHeld, Tails};

use crate::ViewSettings;
use crate::alerts::{HostHits, InForce};
use crate::chains::ChainHit;
use crate::checkpoint::Keeper;
use crate::connections::{AddressFact, HostTouches};
use crate::correlations::CorrelationHit;
use crate::delta::{DeltaBatch, Deltas};
use crate::feed::Arrived;
use crate::render::Ticks;
use facts::Hosts;
use keys::KeyLimits;
use open::Open;
use owner::{Ahead, Outcome, Owner, Shipped};
use saved::Owned;

/// What the source is asked for.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// From the chain's first command.
    pub settings: ViewSettings,
    /// Columns of the stream `events`; none: no rows are made.
    pub events: Vec<Column>,
    /// Columns of the stream `samples`.
    pub samples: Vec<Column>,
    /// Which ticks there are: what waited enters at one of them.
    pub ticks: Ticks,
    /// Saves the state, and has what to begin from.
    pub keeper: Keeper,
    /// The rules that every admitted event meets.
    pub rules: InForce,
}

/// What comes out.
pub struct SourceStreams<'s> {
    /// Admitted events; never retracted. Columns as asked for: see [`schema_of`].
    pub events: Deltas<'s>,
    /// Admitted samples.
    pub samples: Deltas<'s>,
    /// Rows of `hosts`.
    pub hosts: Deltas<'s>,
    /// Rows of `agents`.
    pub agents: Deltas<'s>,
    /// Rows of `losses`.
    pub losses: Deltas<'s>,
    /// For [`crate::connections::connections`].
    pub touches: Stream<'s, u64, Vec<HostTouches>>,
    /// For [`crate::connections::connections`].
    pub addresses: Stream<'s, u64, Vec<AddressFact>>,
    /// Hits of the rules.
    pub hits: Stream<'s, u64, Vec<HostHits>>,
    /// Events that stages of sequence rules ask for.
    pub(crate) chain_hits: Stream<'s, u64, Vec<ChainHit>>,
    /// Hits that correlations count.
    pub(crate) counted: Stream<'s, u64, Vec<CorrelationHit>>,
}

/// What a worker's readers look into between steps.
#[derive(Debug, Clone)]
pub struct SourceState {
    /// The last rows.
    pub tails: Rc<RefCell<Tails>>,
    /// What became of all events.
    pub counts: Rc<RefCell<SourceCounts>>,
}

impl SourceState {
    /// Nothing read yet.
    pub fn new(settings: &ViewSettings) -> Self {
        Self { tails: Rc::new(RefCell::new(Tails::new(settings))), counts: Rc::default() }
    }
}

/// Builds the source over the frames of the logs that this worker reads.
pub fn source<'s>(arrived: Stream<'s, u64, Vec<Arrived>>, options: SourceOptions, state: &SourceState) -> SourceStreams<'s> {
    own(ship(arrived), options, state.clone())
}

/// Puts on each frame where it goes.
fn ship<'s>(arrived: Stream<'s, u64, Vec<Arrived>>) -> Stream<'s, u64, Vec<Shipped>> {
    arrived.unary::<Rows<Vec<Shipped>>, _, _, _>(Pipeline, "SourceShip", |_, _| {
        |input, output| {
            input.for_each_stamp(|cap, batches| {
                if cap.least().is_none() {
                    return;
                }
                let mut out = output.session(&cap);
                for Arrived { log, offset, stamped } in batches.flat_map(|batch| batch.drain(..)) {
                    let route = stamped.identity.routing_key();
                    let (received_ms, identity, frame) = (stamped.received_ms, stamped.identity, stamped.frame);
                    out.give(Shipped { route, log, offset, received_ms, identity, frame });
                }
            });
        }
    })
}

/// The rights to let in what waits, by its moment.
type Rights = BTreeMap<u64, [Capability<u64>; OUTPUTS]>;

fn own<'s>(shipped: Stream<'s, u64, Vec<Shipped>>, options: SourceOptions, state: SourceState) -> SourceStreams<'s> {
    let SourceOptions { settings, events, samples, ticks, keeper, rules } = options;
    let admission = Admission { retention_ms: settings.retention_ms, skew_ms: settings.skew_ms };
    let limits = (admission, key_limits(&settings));
    let owned = Owned { owner: Owner::new(limits, (events, samples), rules), ahead: BTreeMap::new() };
    let owned = keeper.keep("source/own", owned);
    *state.counts.borrow_mut() = owned.borrow().owner.counts;
    let mut builder = OperatorBuilder::new("SourceOwn".to_owned(), shipped.scope());
    let mut input = builder.new_input(shipped, Exchange::new(|shipped: &Shipped| shipped.route));
    let (events, events_stream) = builder.new_output::<Vec<DeltaBatch>>();
    let (samples, samples_stream) = builder.new_output::<Vec<DeltaBatch>>();
    let (agents, agents_stream) = builder.new_output::<Vec<DeltaBatch>>();
    let (losses, losses_stream) = builder.new_output::<Vec<DeltaBatch>>();
    let (touches, touches_stream) = builder.new_output::<Vec<HostTouches>>();
    let (addresses, addresses_stream) = builder.new_output::<Vec<AddressFact>>();
    let (news, news_stream) = builder.new_output::<Vec<HostNews>>();
    let (hits, hits_stream) = builder.new_output::<Vec<HostHits>>();
    let (chain_hits, chain_hits_stream) = builder.new_output::<Vec<ChainHit>>();
    let (counted, counted_stream) = builder.new_output::<Vec<CorrelationHit>>();
    let mut deltas = [events, samples, agents, losses].map(OutputBuilder::from);
    let (mut touches, mut addresses, mut news, mut hits) =
        (OutputBuilder::from(touches), OutputBuilder::from(addresses), OutputBuilder::from(news), OutputBuilder::from(hits));
    let (mut chain_hits, mut counted) = (OutputBuilder::from(chain_hits), OutputBuilder::from(counted));
    builder.build(move |capabilities| {
        let delayed = |moment: u64| std::array::from_fn(|port| capabilities[port].delayed(&moment));
        let mut rights: Rights = owned.borrow().ahead.keys().map(|moment| (*moment, delayed(*moment))).collect();
        drop(capabilities);
        let mut open = Open::<(Vec<Shipped>, Vec<Ahead>), OUTPUTS>::new();
        move |frontiers| {
            input.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| waiting.0.append(batch));
                }
            });
            let [events, samples, agents, losses] = &mut deltas;
            let mut outs = [events.activate(), samples.activate(), agents.activate(), losses.activate()];
            let (mut touches, mut addresses) = (touches.activate(), addresses.activate());
            let (mut news, mut hits) = (news.activate(), hits.activate());
            let (mut chain_hits, mut counted) = (chain_hits.activate(), counted.activate());
            let Owned { owner, ahead: calendar } = &mut *owned.borrow_mut();
            loop {
                while let Some(entry) = rights.first_entry().filter(|entry| !frontiers[0].less_equal(entry.key())) {
                    let (moment, capabilities) = entry.remove_entry();
                    let mut ahead = calendar.remove(&moment).unwrap_or_default();
                    open.later(ticks.at_or_after(moment), &capabilities).1.append(&mut ahead);
                }
                let Some((tick, caps, (frames, waited))) = open.next(|tick| frontiers[0].less_equal(tick)) else { break };
                let outcome = owner.advance(tick, frames, waited, &mut state.tails.borrow_mut());
                let Outcome { events, samples, agents, losses, touches: touched, addresses: told, news: heard, .. } = outcome;
                let Outcome { hits: hit, chain_hits: chain_hit, counted: count, ahead, .. } = outcome;
                let batches = [events, samples, agents.into_iter().collect(), losses.into_iter().collect()];
                for ((out, batches), cap) in outs.iter_mut().zip(batches).zip(&caps) {
                    out.session(cap).give_iterator(batches.into_iter());
                }
                touches.session(&caps[4]).give_iterator(touched.into_iter());
                addresses.session(&caps[5]).give_iterator(told.into_iter());
                news.session(&caps[6]).give_iterator(heard.into_iter());
                hits.session(&caps[7]).give_iterator(hit.into_iter());
                chain_hits.session(&caps[8]).give_iterator(chain_hit.into_iter());
                counted.session(&caps[9]).give_iterator(count.into_iter());
                for (moment, ahead) in ahead {
                    let delayed = || std::array::from_fn(|port| caps[port].delayed(&moment));
                    rights.entry(moment).or_insert_with(delayed);
                    calendar.entry(moment).or_default().push(ahead);
                }
                *state.counts.borrow_mut() = owner.counts;
            }
        }
    });
    SourceStreams {
        events: events_stream,
        samples: samples_stream,
        hosts: hosts(news_stream, &keeper),
        agents: agents_stream,
        losses: losses_stream,
        touches: touches_stream,
        addresses: addresses_stream,
        hits: hits_stream,
        chain_hits: chain_hits_stream,
        counted: counted_stream,
    }
}

/// Rows of `hosts`, by host: one may have several agents.
fn hosts<'s>(news: Stream<'s, u64, Vec<HostNews>>, keeper: &Keeper) -> Deltas<'s> {
    let state = keeper.keep("source/hosts", Hosts::default());
    let by_host = Exchange::new(|news: &HostNews| news.place.host_key);
    news.unary_frontier::<Rows<Vec<DeltaBatch>>, _, _, _>(by_host, "SourceHosts", |_, _| {
        let mut open = Open::<Vec<HostNews>, 1>::new();
        move |(input, frontier), output| {
            input.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| waiting.append(batch));
                }
            });
            while let Some((tick, [capability], news)) = open.next(|tick| frontier.less_equal(tick)) {
                output.session(&capability).give_iterator(state.borrow_mut().advance(tick, news).into_iter());
            }
        }
    })
}

fn key_limits(settings: &ViewSettings) -> KeyLimits {
    let known_minutes = settings.retention_ms.div_ceil(60_000);
    KeyLimits { new_per_minute_max: settings.new_containers_per_minute_max, known_minutes }
}

/// Outputs of the owner's operator.
const OUTPUTS: usize = 10;
