//! What becomes of a frame's new rows: the part of the rule that the views' owner and the record's intake share.

use std::collections::BTreeMap;
use std::ops::Range;

use weir_schema::Batch;

use super::admission::{Admission, Judgement};
use super::rows::{Pick, Picks};

/// A frame's new rows by what becomes of them.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    pub(crate) admitted: Picks,
    pub(crate) late: Picks,
    pub(crate) ahead: BTreeMap<u64, Picks>,
}

/// Sorts the rows of a frame whose seqs are new by what becomes of them.
pub(crate) fn sort(batch: &Batch, seqs: &[Range<u64>], admission: Admission, tick: u64) -> Sorted {
    let mut sorted = Sorted::default();
    for (at, section) in batch.sections.iter().enumerate() {
        let (start, end) = (section.first_seq.0, section.first_seq.0 + section.rows() as u64);
        let whole = seqs.iter().any(|seqs| seqs.start <= start && end <= seqs.end);
        let judge = |time: &i64| admission.judge(tick, *time);
        if whole && section.times.iter().all(|time| judge(time) == Judgement::Admitted) {
            sorted.admitted.push((at, Pick::All));
            continue;
        }
        let (mut admitted, mut late) = (Vec::new(), Vec::new());
        let mut ahead: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (row, time) in section.times.iter().enumerate() {
            let seq = start + row as u64;
            if !seqs.iter().any(|seqs| seqs.contains(&seq)) {
                continue;
            }
            match judge(time) {
                Judgement::Admitted => admitted.push(row as u32),
                Judgement::Late => late.push(row as u32),
                Judgement::Ahead(moment) => ahead.entry(moment).or_default().push(row as u32),
            }
        }
        let pick = |rows: Vec<u32>, picks: &mut Picks| {
            if !rows.is_empty() {
                picks.push((at, Pick::Some(rows)));
            }
        };
        pick(admitted, &mut sorted.admitted);
        pick(late, &mut sorted.late);
        for (moment, rows) in ahead {
            pick(rows, sorted.ahead.entry(moment).or_default());
        }
    }
    sorted
}

/// How many rows these are.
pub(crate) fn count(batch: &Batch, picks: &Picks) -> usize {
    picks.iter().map(|(at, pick)| pick.rows(&batch.sections[*at])).sum()
}

/// Rows of one agent that may wait for their time.
pub(crate) const AHEAD_ROWS_MAX: usize = 65_536;
