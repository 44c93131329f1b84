//! What a correlation finds in the hits of one group: pure logic, without clock or order of arrival.
//!
//! Hits are ordered by (time, event id). The *window* of a hit is itself and all that follow it less than the timespan later. A hit is an
//! *anchor* if its window meets the condition; for `temporal_ordered` only a hit of the first rule can be one. A *match* is a longest run of
//! anchors of which each lies in the window of the one before it, with all hits of their windows. So windows slide, and what goes on is one match.
//!
//! Conditions that more hits can only help (`gt` and `gte` of a count or a sum, all rules) are judged at once: some interval of length timespan
//! meets them if and only if the window of one of its hits does. Others (`lt`, `lte`, `eq`, `neq`, averages, percentiles) are judged
//! when the window is over; a late hit may undo them until nothing late can come any more.
//!
//! Counts are exact: whole numbers, averages compared without division. A percentile is the value of nearest rank. Of a `temporal_ordered`
//! each rule has a hit of its own, strictly behind the one before; for `temporal` one event may be a hit of several rules.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// A hit's place in time: nanoseconds, id.
pub type Moment = (i64, [u8; 16]);

/// What is counted of a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Datum {
    /// A number that is added up.
    Number(i64),
    /// A hash of the value whose distinct ones are counted.
    Digest(u128),
}

/// A hit, as a window sees it.
pub trait Seen {
    /// Its place in time.
    fn at(&self) -> Moment;
    /// Bit n: it is a hit of the n-th rule.
    fn inputs(&self) -> u32;
    /// The value of the condition's field.
    fn datum(&self) -> Option<Datum>;
}

/// What is measured of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Hits.
    Events,
    /// Distinct values.
    Values,
    /// The sum of the values.
    Sum,
    /// Their average.
    Average,
    /// The value of this percentile, 0 to 100.
    Percentile(u8),
    /// How many of the rules have a hit.
    Rules,
    /// As `Rules`, one behind the other.
    Ordered,
}

impl Measure {
    /// Whether it looks at a field.
    pub fn reads_values(self) -> bool {
        matches!(self, Self::Values | Self::Sum | Self::Average | Self::Percentile(_))
    }

    /// Whether these values are numbers.
    pub fn reads_numbers(self) -> bool {
        self.reads_values() && self != Self::Values
    }
}

/// How a measure is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `gt`
    Over,
    /// `gte`
    AtLeast,
    /// `lt`
    Under,
    /// `lte`
    AtMost,
    /// `eq`
    Equal,
    /// `neq`
    Other,
}

/// Comparisons of which all have to hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition(pub Vec<(Comparison, i64)>);

impl Condition {
    /// Whether it holds for `sum / count`; `count` is not 0.
    pub fn holds(&self, sum: i128, count: i128) -> bool {
        self.0.iter().all(|(comparison, number)| {
            let other = i128::from(*number) * count;
            match comparison {
                Comparison::Over => sum > other,
                Comparison::AtLeast => sum >= other,
                Comparison::Under => sum < other,
                Comparison::AtMost => sum <= other,
                Comparison::Equal => sum == other,
                Comparison::Other => sum != other,
            }
        })
    }
}

/// A correlation without its rules and fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    /// What is measured.
    pub measure: Measure,
    /// What it is compared with.
    pub condition: Condition,
    /// The timespan in nanoseconds, more than 0.
    pub span: i64,
    /// How many rules it refers to.
    pub inputs: usize,
}

/// Hits that are one match, or its continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Their places.
    pub range: Range<usize>,
    /// The places of the first and the last anchor among them.
    pub anchors: Option<(usize, usize)>,
    /// It goes on with the match that was under way before the first hit.
    pub continues: bool,
}

impl Shape {
    /// Whether a window is judged only when it is over.
    pub fn waits(&self) -> bool {
        let grows = self.condition.0.iter().all(|(how, _)| matches!(how, Comparison::Over | Comparison::AtLeast));
        !grows && self.measure != Measure::Ordered || matches!(self.measure, Measure::Average | Measure::Percentile(_))
    }

    /// How many hits a condition may need, for whoever keeps only some.
    pub fn needs(&self) -> usize {
        let counts = matches!(self.measure, Measure::Events | Measure::Values);
        let numbers = self.condition.0.iter().filter(|_| counts).map(|(_, number)| usize::try_from(*number).unwrap_or(0));
        numbers.max().unwrap_or(0).saturating_add(1)
    }

    /// Which hits are anchors, of hits in order. `now`: windows that end before it are over.
    pub fn anchors<H: Seen>(&self, hits: &[H], now: i64) -> Vec<bool> {
        if self.measure == Measure::Ordered {
            let next = self.next(hits);
            return (0..hits.len()).map(|at| self.last_in_order(hits, &next, at).is_some()).collect();
        }
        let (mut tally, mut end, waits) = (Tally::new(self), 0, self.waits());
        let judge = |at: usize| {
            let until = hits[at].at().0.saturating_add(self.span);
            while end < hits.len() && hits[end].at().0 < until {
                tally.add(&hits[end]);
                end += 1;
            }
            let holds = (!waits || until < now) && tally.holds(&self.condition);
            tally.remove(&hits[at]);
            holds
        };
        (0..hits.len()).map(judge).collect()
    }

    /// The place of the hit with which an anchor's window first met the condition; of one that waits, the window's last.
    pub fn met<H: Seen>(&self, hits: &[H], anchor: usize) -> usize {
        if self.measure == Measure::Ordered {
            return self.last_in_order(hits, &self.next(hits), anchor).unwrap_or(anchor);
        }
        let until = hits[anchor].at().0.saturating_add(self.span);
        let end = anchor + hits[anchor..].partition_point(|hit| hit.at().0 < until);
        if self.waits() {
            return end.saturating_sub(1).max(anchor);
        }
        let mut tally = Tally::new(self);
        let met = (anchor..end).find(|at| {
            tally.add(&hits[*at]);
            tally.holds(&self.condition)
        });
        met.unwrap_or(anchor)
    }

    /// Matches among hits. `under_way`: the time of the last anchor before them, if a match was begun.
    pub fn stretches<H: Seen>(&self, hits: &[H], anchors: &[bool], under_way: Option<i64>) -> Vec<Stretch> {
        let mut found = Vec::new();
        let mut open = under_way.map(|_| Stretch { range: 0..0, anchors: None, continues: true });
        let mut reach = under_way.map(|at| at.saturating_add(self.span));
        for (place, hit) in hits.iter().enumerate() {
            let time = hit.at().0;
            let within = reach.is_some_and(|reach| time < reach);
            if anchors[place] {
                if !within {
                    found.extend(open.take());
                }
                let one = open.get_or_insert(Stretch { range: place..place, anchors: None, continues: false });
                one.anchors = Some((one.anchors.map_or(place, |(first, _)| first), place));
                reach = Some(time.saturating_add(self.span));
            }
            if (within || anchors[place])
                && let Some(open) = &mut open
            {
                open.range.end = place + 1;
            }
        }
        found.extend(open);
        found
    }

    /// Per hit and rule: the next hit behind it that is one of the rule.
    fn next<H: Seen>(&self, hits: &[H]) -> Vec<usize> {
        let mut next = vec![NONE; hits.len() * self.inputs];
        let mut earliest = vec![NONE; self.inputs];
        for (place, hit) in hits.iter().enumerate().rev() {
            next[place * self.inputs..(place + 1) * self.inputs].copy_from_slice(&earliest);
            for (bit, earliest) in earliest.iter_mut().enumerate() {
                if hit.inputs() >> bit & 1 == 1 {
                    *earliest = place;
                }
            }
        }
        next
    }

    /// The last hit of the shortest row of hits of all rules in their order, that begins here and is within the timespan.
    fn last_in_order<H: Seen>(&self, hits: &[H], next: &[usize], first: usize) -> Option<usize> {
        if hits[first].inputs() & 1 == 0 {
            return None;
        }
        let until = hits[first].at().0.saturating_add(self.span);
        let mut place = first;
        for bit in 1..self.inputs {
            place = next[place * self.inputs + bit];
            hits.get(place).filter(|hit| hit.at().0 < until)?;
        }
        Some(place)
    }
}

const NONE: usize = usize::MAX;

/// A window as hits come and go.
enum Tally {
    Events(i128),
    Values(HashMap<Datum, u32>),
    Sum(i128),
    Average { sum: i128, count: i128 },
    Ranks { percentile: u8, values: BTreeMap<i64, u32>, count: u64 },
    Rules(Vec<u32>),
}

impl Tally {
    fn new(shape: &Shape) -> Self {
        match shape.measure {
            Measure::Events => Self::Events(0),
            Measure::Values => Self::Values(HashMap::new()),
            Measure::Sum => Self::Sum(0),
            Measure::Average => Self::Average { sum: 0, count: 0 },
            Measure::Percentile(percentile) => Self::Ranks { percentile, values: BTreeMap::new(), count: 0 },
            Measure::Rules | Measure::Ordered => Self::Rules(vec![0; shape.inputs]),
        }
    }

    fn add(&mut self, hit: &impl Seen) {
        match (self, hit.datum()) {
            (Self::Events(count), _) => *count += 1,
            (Self::Rules(counts), _) => {
                let hits = hit.inputs();
                counts.iter_mut().enumerate().for_each(|(bit, count)| *count += hits >> bit & 1);
            }
            (Self::Values(values), Some(datum)) => *values.entry(datum).or_default() += 1,
            (Self::Sum(sum), Some(Datum::Number(number))) => *sum += i128::from(number),
            (Self::Average { sum, count }, Some(Datum::Number(number))) => {
                *sum += i128::from(number);
                *count += 1;
            }
            (Self::Ranks { values, count, .. }, Some(Datum::Number(number))) => {
                *values.entry(number).or_default() += 1;
                *count += 1;
            }
            _ => {}
        }
    }

    fn remove(&mut self, hit: &impl Seen) {
        match (self, hit.datum()) {
            (Self::Events(count), _) => *count -= 1,
            (Self::Rules(counts), _) => {
                let hits = hit.inputs();
                counts.iter_mut().enumerate().for_each(|(bit, count)| *count -= hits >> bit & 1);
            }
            (Self::Values(values), Some(datum)) => {
                let left = values.get_mut(&datum).map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                if left == 0 {
                    values.remove(&datum);
                }
            }
            (Self::Sum(sum), Some(Datum::Number(number))) => *sum -= i128::from(number),
            (Self::Average { sum, count }, Some(Datum::Number(number))) => {
                *sum -= i128::from(number);
                *count -= 1;
            }
            (Self::Ranks { values, count, .. }, Some(Datum::Number(number))) => {
                let left = values.get_mut(&number).map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                if left == 0 {
                    values.remove(&number);
                }
                *count -= 1;
            }
            _ => {}
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        match self {
            Self::Events(count) => condition.holds(*count, 1),
            Self::Values(values) => condition.holds(values.len() as i128, 1),
            Self::Sum(sum) => condition.holds(*sum, 1),
            Self::Average { sum, count } => *count > 0 && condition.holds(*sum, *count),
            Self::Ranks { percentile, values, count } => {
                let rank = (u128::from(*count) * u128::from(*percentile)).div_ceil(100).max(1);
                let mut below = 0;
                let ranked = values.iter().find(|(_, times)| {
                    below += u128::from(**times);
                    below >= rank
                });
                ranked.is_some_and(|(value, _)| condition.holds(i128::from(*value), 1))
            }
            Self::Rules(counts) => condition.holds(counts.iter().filter(|count| **count > 0).count() as i128, 1),
        }
    }
}
