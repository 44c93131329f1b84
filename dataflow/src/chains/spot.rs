//! Asks the stages of all rules of a batch's admitted rows, column by column. Only hits go on.
//!
//! A stage is asked only of events of the kinds that it may hold for, and reads only the columns that it names; keys are read of hits only.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _};
use arrow::datatypes::UInt32Type;
use weir_schema::{Column, EventIds, Section, Seq, Text};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::compiled::ChainRule;
use super::hit::{ChainHit, Hit, HitSource};
use crate::alerts::Admitted;
use crate::delta::DeltaBatch;
use crate::source::rows::{Pick, Rows, Stamp, schema_of};
use crate::source::touches::rows as picked_rows;

/// The hits of these rows.
pub(crate) fn spot(rules: &[Arc<ChainRule>], of: Admitted<'_>, stamp: Stamp<'_>) -> Vec<ChainHit> {
    let mut hits = vec![];
    let mut columns = Rows::new(of.batch, stamp);
    for (at, pick) in of.picks {
        let section = &of.batch.sections[*at];
        for rule in rules.iter().filter(|rule| rule.steps.iter().any(|step| step.may_hold(section.kind))) {
            let marked = marked(rule, (*at, section, pick), &mut columns, stamp.tick);
            if !marked.is_empty() {
                let section = (*at, section);
                rule.variants.iter().for_each(|by| take(rule, by, section, &marked, &mut columns, of, &mut hits));
            }
        }
    }
    hits
}

/// The rows of a section that are of some step, and of which.
fn marked(rule: &ChainRule, (at, section, pick): (usize, &Section, &Pick), columns: &mut Rows<'_>, tick: u64) -> Vec<(u32, u32)> {
    let (schema, wanted) = &rule.columns;
    let batch = columns.record_batch(&vec![(at, pick.clone())], schema, wanted);
    let delta = DeltaBatch::inserted(tick, batch);
    let mut bits = vec![0_u32; delta.len()];
    for step in rule.steps.iter().filter(|step| step.may_hold(section.kind)) {
        for (bits, holds) in bits.iter_mut().zip(step.predicate.passes(&delta)) {
            *bits |= u32::from(holds) << step.bit;
        }
    }
    let rows = picked_rows(section, pick).zip(bits).filter(|(_, bits)| *bits != 0);
    rows.filter_map(|(row, bits)| Some((u32::try_from(row).ok()?, bits))).collect()
}

/// Puts hits under one of the rule's sets of key columns.
fn take(
    rule: &ChainRule,
    (by, mask): &(Vec<Column>, u32),
    (at, section): (usize, &Section),
    marked: &[(u32, u32)],
    columns: &mut Rows<'_>,
    of: Admitted<'_>,
    hits: &mut Vec<ChainHit>,
) {
    let marked: Vec<(u32, u32)> = marked.iter().map(|(row, bits)| (*row, bits & mask)).filter(|(_, bits)| *bits != 0).collect();
    if marked.is_empty() {
        return;
    }
    let wanted: Vec<Column> = by.iter().copied().chain(TOLD).collect();
    let picks = vec![(at, Pick::Some(marked.iter().map(|(row, _)| *row).collect()))];
    let found = columns.record_batch(&picks, &schema_of(&wanted), &wanted);
    let (keys, told) = found.columns().split_at(by.len());
    let encoded = rule.codec.encode(keys, marked.len());
    let mut ids = EventIds::new(of.identity, of.batch.header.epoch, of.batch.header.lane);
    for (place, (row, bits)) in marked.into_iter().enumerate() {
        if keys.iter().any(|key| key.is_null(place)) {
            continue;
        }
        let key = encoded.row(place);
        let source = HitSource {
            place: Arc::clone(of.place),
            app: text(&told[0], place),
            container_id: text(&told[1], place),
            process_id: text(&told[2], place),
            lost: of.lost,
        };
        let id = ids.id(Seq(section.first_seq.0 + u64::from(row))).0;
        let hit = Hit { at: (section.times[row as usize], id), bits, source: Arc::new(source) };
        hits.push(ChainHit { route: route(rule.version, key), rule: rule.version, key: key.into(), hit });
    }
}

/// Which worker has a key of a rule.
pub(super) fn route(rule: u64, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, rule)
}

fn text(column: &ArrayRef, row: usize) -> Option<Text> {
    let codes = column.as_dictionary_opt::<UInt32Type>()?;
    let code = codes.key(row)?;
    Some(codes.values().as_string_opt::<i32>()?.value(code).into())
}

/// What alerts say of an event.
const TOLD: [Column; 3] = [Column::App, Column::ContainerId, Column::ProcessId];
