//! Sigma correlations: what is counted, added up or put in order over the hits of other rules.
//!
//! `sigma/correlation.rs` reads them, `link.rs` finds the rules and fields that they name, `window.rs` says what a match is, `over_events.rs` finds
//! matches in events that are all there; the engine keeps its own state and asks `window.rs`.
//!
//! Events belong to one group if their values of all `group-by` fields are equal as texts, case too; of what a field has several, as it is
//! printed. An event without one of the fields is in no group, and one without the condition's field (or, where numbers are wanted, without a whole
//! number) is not counted. Groups never reach over tenants. Besides the fields of its rules a correlation may name `host`, `region`,
//! `cloud`, `zone` and `process_id`.
//!
//! A match of a correlation is a hit of those that refer to it: at the moment at which its first window met the condition, with the
//! values of its own group.

mod link;
mod over_events;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use link::{Base, Linked, link};
pub use over_events::{CorrelationHit, Correlator, Match};
pub use window::{Comparison, Condition, Datum, Measure, Moment, Seen, Shape, Stretch};
use xxhash_rust::xxh3::xxh3_128;

use crate::check::Of;
use crate::error::Place;
use crate::fields::Field;
use crate::limits::CORRELATION_KEY_BYTES_MAX;
use crate::set::Priority;
use crate::value::{FieldSource, Value};

/// A correlation that was loaded.
#[derive(Debug)]
pub struct Correlation {
    /// Its title.
    pub name: String,
    /// Its id, unique in the set.
    pub id: Option<String>,
    /// Where it is defined.
    pub place: Place,
    /// What it is about.
    pub desc: String,
    /// How urgent its alerts are: its level, else that of its most urgent rule.
    pub priority: Priority,
    /// Its tags, in the file's order.
    pub tags: Vec<String>,
    /// What else makes it fire.
    pub false_positives: Vec<String>,
    /// Whether it takes part.
    pub enabled: bool,
    /// Whether its matches are alerts; those of one that others only refer to are not.
    pub alerts: bool,
    /// How deep correlations lie below it: 0 has rules only.
    pub level: usize,
    /// What a match is.
    pub shape: Shape,
    /// Names of the values that make a group.
    pub group_by: Vec<String>,
    /// What it refers to, in its own order.
    pub inputs: Vec<Input>,
    /// How much later than the latest event a hit of it may still come or go, in nanoseconds: the timespans of the correlations below it.
    pub settling: i64,
    /// Fields that it groups by or counts and the collector does not supply, with the rule they are wanted of.
    pub lacks: Vec<Field>,
    /// Whether a rule below it cannot be evaluated whole.
    pub rules_lack: Vec<String>,
    /// Over all that it says, the rules below it too: equal in all processes of one build.
    pub version: u64,
}

/// A rule or correlation that another one refers to.
#[derive(Debug)]
pub struct Input {
    /// Its title.
    pub name: String,
    /// Which.
    pub of: InputOf,
    /// What the values of the group are in its events.
    keys: Vec<Part>,
    /// What is counted of its events.
    values: Vec<Part>,
}

/// A place in `RuleSet::rules` or `RuleSet::correlations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputOf {
    /// A rule.
    Rule(usize),
    /// A correlation.
    Correlation(usize),
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Of(Of),
    Region,
    Cloud,
    Zone,
    Process,
    /// The n-th value of the group of a correlation.
    Key(usize),
}

/// What an event's fields do not hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Around<'a> {
    /// The host's region.
    pub region: Option<&'a str>,
    /// Its cloud.
    pub cloud: Option<&'a str>,
    /// Its zone.
    pub zone: Option<&'a str>,
    /// The event's process.
    pub process_id: Option<[u8; 16]>,
}

/// A hit's group, and what is counted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouped {
    /// The values of `group_by`.
    pub keys: Vec<String>,
    /// For the measures that read values.
    pub datum: Option<Datum>,
}

impl Correlation {
    /// What `weir rules check` says of it: `ok`, or `partly: ` and what is not supplied.
    pub fn verdict(&self) -> String {
        let fields = self.lacks.iter().map(|field| format!("field {field} is not supplied (no event has a group without it)"));
        let rules = self.rules_lack.iter().map(|rule| format!("its rule {rule:?} is not whole"));
        let lacks: Vec<String> = fields.chain(rules).collect();
        if lacks.is_empty() { "ok".to_owned() } else { format!("partly: {}", lacks.join(", ")) }
    }

    /// Whether all that it asks for is collected.
    pub fn is_fully_evaluable(&self) -> bool {
        self.lacks.is_empty() && self.rules_lack.is_empty()
    }

    /// The group of an event that is a hit of its n-th rule; none: it has none, or nothing to count.
    pub fn grouped(&self, input: usize, source: &(impl FieldSource + ?Sized), around: &Around<'_>) -> Option<Grouped> {
        let text = |part: &Part| match part {
            Part::Of(of) => of.value(source).map(|value| value.to_text().into_owned()),
            Part::Region => around.region.map(str::to_owned),
            Part::Cloud => around.cloud.map(str::to_owned),
            Part::Zone => around.zone.map(str::to_owned),
            Part::Process => around.process_id.map(|id| hex(&id)),
            Part::Key(_) => None,
        };
        let input = &self.inputs[input];
        let keys = input.keys.iter().map(|part| text(part).map(bounded)).collect::<Option<_>>()?;
        let number = match input.values.as_slice() {
            [Part::Of(of)] if self.shape.measure.reads_numbers() => of.value(source).and_then(|value| match value {
                Value::Int(number) => Some(number),
                other => other.to_text().trim().parse().ok(),
            }),
            _ => None,
        };
        self.with_datum(keys, number, || input.values.iter().map(text).collect())
    }

    /// The group of a match of the correlation that is its n-th rule, by the values of that one's group.
    pub fn regrouped(&self, input: usize, keys: &[String]) -> Option<Grouped> {
        let text = |part: &Part| if let Part::Key(at) = part { keys.get(*at).cloned() } else { None };
        let input = &self.inputs[input];
        let own = input.keys.iter().map(text).collect::<Option<_>>()?;
        let number = input.values.first().and_then(text).and_then(|text| text.trim().parse().ok());
        self.with_datum(own, number, || input.values.iter().map(text).collect())
    }

    fn with_datum(&self, keys: Vec<String>, number: Option<i64>, texts: impl FnOnce() -> Option<Vec<String>>) -> Option<Grouped> {
        let measure = self.shape.measure;
        let datum = match (measure.reads_values(), measure.reads_numbers()) {
            (false, _) => return Some(Grouped { keys, datum: None }),
            (true, true) => Datum::Number(number?),
            (true, false) => {
                let mut bytes = Vec::new();
                for text in texts()? {
                    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                    bytes.extend_from_slice(text.as_bytes());
                }
                Datum::Digest(xxh3_128(&bytes))
            }
        };
        Some(Grouped { keys, datum: Some(datum) })
    }
}

/// A value that groups are told apart by, as long as it may be.
fn bounded(mut text: String) -> String {
    if text.len() > CORRELATION_KEY_BYTES_MAX {
        let hash = xxh3_128(text.as_bytes());
        text.truncate(text.floor_char_boundary(CORRELATION_KEY_BYTES_MAX - 40));
        text.push_str("… #");
        text.push_str(&hex(&hash.to_be_bytes()));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
