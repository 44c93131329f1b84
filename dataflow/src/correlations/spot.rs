//! Gives the hits of rules to the correlations that count them: only the values that these ask for go on.

use std::sync::Arc;

use weir_rules::{Around, EventFields, InputOf};
use weir_schema::{Event, ProcessId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::hit::{CorrelationHit, Hit, group_bytes};
use crate::alerts::{Admitted, Compiled};
use crate::hits::{HitSource, Moment, hex};

/// Takes an event that is a hit of a rule. The hits of one event follow each other in `hits`.
pub(crate) fn spot(
    rules: &Compiled,
    rule: usize,
    of: &Admitted<'_>,
    (moment, event): (Moment, &Event),
    hits: &mut Vec<CorrelationHit>,
) {
    let set = rules.pass.rules();
    let feeds = set.feeds(InputOf::Rule(rule));
    if feeds.is_empty() {
        return;
    }
    let (place, boot) = (of.place, &of.batch.host.boot_id);
    let process_id = event.process.as_deref().map(|it| ProcessId::new(&place.tenant, &place.host, boot, it.pid, it.start_ns).0);
    let fields = EventFields::new(event, &place.host);
    let around = Around { region: Some(&place.region), cloud: place.cloud.as_deref(), zone: place.zone.as_deref(), process_id };
    for (at, input) in feeds {
        let says = &set.correlations[*at];
        let Some(grouped) = says.grouped(*input, &fields, &around) else { continue };
        let group = group_bytes(&place.tenant, &grouped.keys);
        let mut of_event = hits.iter_mut().rev().take_while(|known| known.hit.at == moment).peekable();
        let source = of_event.peek().map(|known| Arc::clone(&known.hit.source));
        // One event may be a hit of several of its rules.
        if let Some(known) = of_event.find(|known| known.version == says.version && known.group == group) {
            known.hit.inputs |= 1 << input;
            continue;
        }
        let source = source.unwrap_or_else(|| {
            let container = event.container.as_deref();
            Arc::new(HitSource {
                place: Arc::clone(place),
                app: container.and_then(|container| container.app.clone()),
                container_id: container.and_then(|container| container.container_id.clone()),
                process_id: process_id.map(|id| hex(&id).into()),
                lost: of.lost,
            })
        });
        let datum = grouped.datum.map(Into::into);
        let hit = Hit { at: moment, inputs: 1 << input, datum, source, evidence: Vec::new() };
        let (route, level) = (route(says.version, &group), says.level as u8);
        hits.push(CorrelationHit { route, level, version: says.version, group, hit, diff: 1 });
    }
}

/// Which worker has a group of a correlation.
pub(super) fn route(version: u64, group: &[u8]) -> u64 {
    xxh3_64_with_seed(group, version)
}
