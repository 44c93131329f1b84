//! Hits of the rules among a frame's admitted rows, grouped on the spot: a rule that matches everything costs one group a frame on the wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_rules::{EventFields, Scratch};
use weir_schema::{AgentIdentity, Batch, BootId, Event, EventIds, ProcessId, Seq};
use xxhash_rust::xxh3::xxh3_128;

use super::compiled::Compiled;
use super::group::{Group, HostGroups, Moment, Subject};
use super::{EVIDENCE_MAX, SUMMARY_BYTES_MAX, WINDOW_MS};
use crate::connections::Place;
use crate::correlations::{CorrelationHit, spot};
use crate::source::rows::Picks;
use crate::source::touches::rows;

/// Finds hits. One per worker.
#[derive(Debug, Default)]
pub(crate) struct Spotter {
    scratch: Scratch,
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
    /// The hits of these rows.
    pub(crate) fn spot(&mut self, rules: &Compiled, of: Admitted<'_>) -> Option<HostGroups> {
        let Admitted { identity, place, batch, picks, lost } = of;
        let any = picks.iter().any(|(at, _)| rules.pass.rules_of(batch.sections[*at].kind) > 0);
        if !any {
            return None;
        }
        self.scratch.begin(&rules.pass, batch);
        let mut ids = EventIds::new(identity, batch.header.epoch, batch.header.lane);
        let mut groups: BTreeMap<(usize, u128), Vec<Group>> = BTreeMap::new();
        let mut hits = 0;
        for (at, pick) in picks {
            let section = &batch.sections[*at];
            self.scratch.run(&rules.pass, batch, section, rows(section, pick), |row, rule, event| {
                hits += 1;
                let moment = (event.time, ids.id(Seq(section.first_seq.0 + row as u64)).0);
                spot(rules, rule, &of, (moment, event), &mut self.counted);
                if !rules.pass.rules().rules[rule].alerts {
                    return;
                }
                let key = subject_key(&place.tenant, &place.host, &batch.host.boot_id, event);
                let subject = || subject(rules, rule, key, place, &batch.host.boot_id, event);
                let known = groups.entry((rule, key)).or_default();
                let hit = Hit { moment, lost };
                add(known, hit, subject, || Arc::clone(&rules.heads[rule]));
            });
        }
        self.hits += hits;
        let groups: Vec<Group> = groups.into_values().flatten().collect();
        (!groups.is_empty()).then(|| HostGroups { host_key: place.host_key, groups })
    }
}

#[derive(Debug, Clone, Copy)]
struct Hit {
    moment: Moment,
    lost: u64,
}

/// Puts a hit to the groups of its rule and subject. The subject is only made for a hit that comes first: it renders the rule's output.
fn add(
    known: &mut Vec<Group>,
    Hit { moment, lost }: Hit,
    subject: impl FnOnce() -> Subject,
    rule: impl FnOnce() -> Arc<super::compiled::RuleHead>,
) {
    let window = i64::try_from(WINDOW_MS).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let near = |group: &Group| moment.0.saturating_sub(group.last) <= window && group.first.0.saturating_sub(moment.0) <= window;
    let Some(at) = known.iter().position(near) else {
        let (first, last, evidence) = (moment, moment.0, vec![moment]);
        let (rule, subject) = (rule(), subject());
        known.push(Group { rule, subject, first, last, count: 1, evidence, lost, closed_through: 0, withdrawn: false });
        return;
    };
    let group = &mut known[at];
    if moment < group.first {
        (group.first, group.subject) = (moment, subject());
    }
    group.last = group.last.max(moment.0);
    group.count += 1;
    let place = group.evidence.partition_point(|other| *other < moment);
    group.evidence.insert(place, moment);
    group.evidence.truncate(EVIDENCE_MAX);
    // It may have closed the gaps between several.
    let mut group = known.swap_remove(at);
    while let Some(other) = known.iter().position(|other| other.touches(&group, WINDOW_MS)) {
        group.merge(known.swap_remove(other));
    }
    known.push(group);
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

fn subject(rules: &Compiled, rule: usize, key: u128, place: &Arc<Place>, boot: &BootId, event: &Event) -> Subject {
    let mut summary = rules.pass.rules().rules[rule].output.render(&EventFields::new(event, &place.host));
    if summary.len() > SUMMARY_BYTES_MAX {
        summary.truncate(summary.floor_char_boundary(SUMMARY_BYTES_MAX));
    }
    let container = event.container.as_deref();
    let process = event.process.as_deref();
    let id = |process: &weir_schema::Process| ProcessId::new(&place.tenant, &place.host, boot, process.pid, process.start_ns).0;
    Subject {
        place: Arc::clone(place),
        key,
        app: container.and_then(|container| container.app.clone()),
        container_id: container.and_then(|container| container.container_id.clone()),
        process_id: process.map(id),
        summary: summary.into(),
    }
}
