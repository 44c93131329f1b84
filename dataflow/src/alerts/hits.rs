//! Hits of the rules among a frame's admitted rows, each with all rules that hold for it.

use std::sync::Arc;

use weir_rules::{EventFields, Scratch};
use weir_schema::{AgentIdentity, Batch, BootId, Event, EventIds, Lane, ProcessId, Seq};
use xxhash_rust::xxh3::xxh3_128;

use super::SUMMARY_BYTES_MAX;
use super::compiled::Compiled;
use super::group::{HostHits, Subject};
use super::hit::{Hit, pack};
use super::identity::{Told, asks};
use crate::connections::Place;
use crate::correlations::{CorrelationHit, spot};
use crate::source::rows::Picks;
use crate::source::touches::rows;

/// Finds hits. One per worker.
#[derive(Debug, Default)]
pub(crate) struct Spotter {
    scratch: Scratch,
    told: Told,
    /// Hits found so far.
    pub(crate) hits: u64,
    /// Of them those that correlations count.
    pub(crate) counted: Vec<CorrelationHit>,
}

/// A decoded frame, and which of its rows are admitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admitted<'a> {
    pub(crate) identity: &'a AgentIdentity,
    pub(crate) place: &'a Arc<Place>,
    pub(crate) batch: &'a Batch,
    pub(crate) picks: &'a Picks,
    /// Events that its agent has reported as lost.
    pub(crate) lost: u64,
}

impl Spotter {
    /// The hits of these rows, and what they say of containers.
    pub(crate) fn spot(&mut self, rules: Option<&Compiled>, of: Admitted<'_>) -> Option<HostHits> {
        let Admitted { identity, place, batch, picks, lost } = of;
        let Self { scratch, told, hits: found, counted } = self;
        let containers = told.news(of);
        let mut hits: Vec<Hit> = Vec::new();
        // Samples are no events: no rule asks for them.
        let is_asked = |rules: &&Compiled| picks.iter().any(|(at, _)| rules.pass.rules_of(batch.sections[*at].kind) > 0);
        if let Some(rules) = rules.filter(|_| batch.header.lane != Lane::Sample).filter(is_asked) {
            scratch.begin(&rules.pass, batch);
            let mut ids = EventIds::new(identity, batch.header.epoch, batch.header.lane);
            for (at, pick) in picks {
                let section = &batch.sections[*at];
                let mut last = None;
                scratch.run(&rules.pass, batch, section, rows(section, pick), |row, rule, event| {
                    let moment = (event.time, ids.id(Seq(section.first_seq.0 + row as u64)).0);
                    let claim = rules.claim(rule);
                    let known = hits.last().filter(|_| last == Some(row));
                    let is_second = claim.as_ref().is_some_and(|claim| claim.one_only)
                        && known.is_some_and(|hit| hit.claims.iter().any(|other| other.one_only));
                    if !is_second {
                        spot(rules, rule, &of, (moment, event), counted);
                    }
                    let Some(claim) = claim else { return };
                    if last != Some(row) {
                        last = Some(row);
                        let subject = subject_key(&place.tenant, &place.host, &batch.host.boot_id, event);
                        let (place, boot, claims) = (Arc::clone(place), batch.host.boot_id, Vec::new());
                        hits.push(Hit { moment, place, boot, subject, lost, claims, asks: asks(event), event: pack(event) });
                    }
                    let hit = hits.last_mut().expect("the row's hit was just made");
                    *found += u64::from(!is_second);
                    hit.claims.push(claim);
                });
            }
        }
        let any = !hits.is_empty() || !containers.is_empty();
        any.then(|| HostHits { host_key: place.host_key, hits, containers })
    }
}

/// What repeats are grouped by: the container; else the session of processes, which a login or a service begins; else the parent.
pub fn subject_key(tenant: &str, host: &str, boot: &BootId, event: &Event) -> u128 {
    let mut bytes = Vec::with_capacity(128);
    for part in [tenant, host] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    let container = event.container.as_deref().and_then(|container| container.container_id.as_deref());
    match (container, event.process.as_deref()) {
        (Some(id), _) => {
            bytes.push(b'c');
            bytes.extend_from_slice(id.as_bytes());
        }
        (None, Some(process)) => {
            bytes.extend_from_slice(&boot.0);
            let (tag, number) = match (process.session_id, process.ppid) {
                (Some(session), _) => (b's', session),
                (None, Some(parent)) => (b'p', parent),
                (None, None) => (b'i', process.pid),
            };
            bytes.push(tag);
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        (None, None) => bytes.push(b'h'),
    }
    xxh3_128(&bytes)
}

/// What an alert takes from its first hit: of the rule in this place, and the event as far as it is known.
pub(crate) fn subject(rules: &Compiled, rule: usize, hit: &Hit, event: &Event) -> Subject {
    let Hit { place, boot, .. } = hit;
    let mut summary = rules.set().rules[rule].output.render(&EventFields::new(event, &place.host));
    if summary.len() > SUMMARY_BYTES_MAX {
        summary.truncate(summary.floor_char_boundary(SUMMARY_BYTES_MAX));
    }
    let container = event.container.as_deref();
    let process = event.process.as_deref();
    let id = |process: &weir_schema::Process| ProcessId::new(&place.tenant, &place.host, boot, process.pid, process.start_ns).0;
    Subject {
        place: Arc::clone(place),
        key: hit.subject,
        app: container.and_then(|container| container.app.clone()),
        container_id: container.and_then(|container| container.container_id.clone()),
        process_id: process.map(id),
        summary: summary.into(),
    }
}
