//! Reads Sigma's correlation documents (specification 2.1.0). What is unknown, and what can never hold, is refused by line.
//!
//! ```yaml
//! title: Many ports of one host
//! name: port_scan
//! correlation:
//!   type: value_count        # event_count value_count value_sum value_avg value_percentile temporal temporal_ordered
//!   rules: [refused]         # names or ids of rules and correlations
//!   group-by: [host, target]
//!   timespan: 5m             # number and s, m, h or d
//!   aliases: {target: {refused: DestinationIp}}
//!   condition: {field: DestinationPort, gte: 20}
//!   generate: false          # true: the rules alert on their own, too
//! ```

use super::find;
use super::head::{Head, Reader, title};
use crate::correlation::{Comparison, Condition, Measure, Shape};
use crate::error::{Error, Place, Why, shown};
use crate::limits::{CORRELATION_COUNT_MAX, CORRELATION_FIELDS_MAX, CORRELATION_RULES_MAX, CORRELATION_SPAN_MS_MAX};
use crate::yaml::{Node, Yaml};

/// A correlation as its file has it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) head: Head,
    pub(crate) shape: Shape,
    /// What it refers to, each with its line.
    pub(crate) rules: Vec<(String, Place)>,
    pub(crate) group_by: Vec<(String, Place)>,
    pub(crate) aliases: Vec<Alias>,
    /// The fields whose values are counted or added up.
    pub(crate) fields: Vec<(String, Place)>,
    pub(crate) generate: bool,
}

/// Another name for a field, by rule.
#[derive(Debug)]
pub(crate) struct Alias {
    pub(crate) name: String,
    pub(crate) place: Place,
    /// What the rule is called, and the field in its events.
    pub(crate) of: Vec<(String, String, Place)>,
}

/// What is wrong with a document, and which rules it refers to all the same: they alert no more often for its mistake.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: Error,
    pub(crate) rules: Vec<String>,
}

/// Reads a document.
pub(crate) fn read(file: &Place, document: &Node) -> Result<Written, Box<Refused>> {
    correlation(file, document).map_err(|error| {
        let section = find(document, "correlation").map(|section| Reader { file, document: section });
        let generates = section.is_some_and(|section| generate(&section).is_ok_and(|generate| generate));
        let rules = section.filter(|_| !generates).and_then(|section| section.texts("rules").ok()).unwrap_or_default();
        Box::new(Refused { error: error.about("correlation", title(document)), rules })
    })
}

fn correlation(file: &Place, document: &Node) -> Result<Written, Error> {
    let head = Head::read(file, document)?;
    if let Some(node) = find(document, "detection").or_else(|| find(document, "logsource")) {
        let place = Place { line: node.line, ..file.clone() };
        let cure = "write the rule as a document of its own, after ---";
        return Err(Error::new(Why::Shape, &place, "a correlation stands beside a detection or a logsource", cure));
    }
    let section = find(document, "correlation").expect("the caller has seen that it is there");
    let reader = Reader { file, document: section };
    let Yaml::Map(pairs) = &section.value else {
        let cure = "write type, rules, timespan and condition";
        return Err(Error::new(Why::Shape, &reader.at(section), "correlation is no mapping", cure));
    };
    if let Some((key, _)) = pairs.iter().find(|(key, _)| !key.scalar().is_some_and(|key| KEYS.contains(&key))) {
        let what = format!("the key {} of a correlation is unknown", shown(key.scalar().unwrap_or("")));
        let cure = "write type, rules, group-by, timespan, condition, aliases and generate";
        return Err(Error::new(Why::Shape, &reader.at(key), what, cure));
    }
    let rules = named(&reader, "rules", CORRELATION_RULES_MAX)?;
    let group_by = named(&reader, "group-by", CORRELATION_FIELDS_MAX)?;
    if rules.is_empty() {
        let cure = "write rules: and the names or ids of the rules whose events it counts";
        return Err(Error::new(Why::Shape, &reader.at(section), "the correlation has no rules", cure));
    }
    let (measure, condition, fields) = measure(&reader, section, rules.len())?;
    let shape = Shape { measure, condition, span: timespan(&reader, section)?, inputs: rules.len() };
    possible(&shape, &reader, section)?;
    Ok(Written { head, shape, rules, group_by, aliases: aliases(&reader)?, fields, generate: generate(&reader)? })
}

/// A list of texts with their places, each once.
fn named(reader: &Reader<'_>, key: &str, max: usize) -> Result<Vec<(String, Place)>, Error> {
    let texts = reader.texts(key)?;
    let Some(node) = find(reader.document, key) else { return Ok(Vec::new()) };
    let places: Vec<Place> = match &node.value {
        Yaml::Seq(nodes) => nodes.iter().map(|node| reader.at(node)).collect(),
        _ => vec![reader.at(node); texts.len()],
    };
    if texts.len() > max {
        let what = format!("{key} names {}, at most {max} are taken", texts.len());
        return Err(Error::new(Why::Limit, &reader.at(node), what, "split the correlation"));
    }
    for (at, text) in texts.iter().enumerate() {
        if text.is_empty() || texts[..at].contains(text) {
            let what = format!("{key} names {} twice, or nothing", shown(text));
            return Err(Error::new(Why::Shape, &places[at], what, "name each once"));
        }
    }
    Ok(texts.into_iter().zip(places).collect())
}

/// Nanoseconds.
fn timespan(reader: &Reader<'_>, section: &Node) -> Result<i64, Error> {
    let at = find(reader.document, "timespan").map_or_else(|| reader.at(section), |node| reader.at(node));
    let text = reader.text("timespan")?.unwrap_or_default();
    let cure = "write a number and s, m, h or d, like timespan: 5m";
    let unit = text.char_indices().next_back().map(|(place, unit)| (&text[..place], unit));
    let ms = unit.and_then(|(number, unit)| {
        let unit_ms: u64 = match unit {
            's' => 1_000,
            'm' => 60_000,
            'h' => 3_600_000,
            'd' => 86_400_000,
            _ => return None,
        };
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(unit_ms)
    });
    let Some(ms) = ms.filter(|ms| *ms > 0) else {
        return Err(Error::new(Why::Value, &at, format!("the timespan {} is none", shown(&text)), cure));
    };
    if ms > CORRELATION_SPAN_MS_MAX {
        let what = format!("the timespan {} is longer than {} days", shown(&text), CORRELATION_SPAN_MS_MAX / 86_400_000);
        return Err(Error::new(Why::Limit, &at, what, "ask for what is rarer than that in SQL over `events`"));
    }
    Ok((ms * 1_000_000).cast_signed())
}

type Measured = (Measure, Condition, Vec<(String, Place)>);

fn measure(reader: &Reader<'_>, section: &Node, rules: usize) -> Result<Measured, Error> {
    let at = |key: &str| find(reader.document, key).map_or_else(|| reader.at(section), |node| reader.at(node));
    let name = reader.text("type")?.unwrap_or_default();
    let condition = find(reader.document, "condition").filter(|node| node.value != Yaml::Null);
    let (comparisons, fields, percentile) = match condition {
        Some(node) => conditions(reader, node)?,
        None => (Vec::new(), Vec::new(), None),
    };
    let wants = |what: &str, cure: &str| Err(Error::new(Why::Shape, &at("condition"), format!("{name}: {what}"), cure));
    let measure = match (name.as_str(), percentile) {
        ("event_count", _) => Measure::Events,
        ("value_count", _) => Measure::Values,
        ("value_sum", _) => Measure::Sum,
        ("value_avg", _) => Measure::Average,
        ("value_percentile", Some(percentile)) => Measure::Percentile(percentile),
        ("value_percentile", None) => return wants("it does not say which percentile", "write percentile: 95 in the condition"),
        ("value_median", _) => Measure::Percentile(50),
        ("temporal", _) => Measure::Rules,
        ("temporal_ordered", _) => Measure::Ordered,
        _ => {
            let what = format!("the type {} is unknown", shown(&name));
            let cure = "write event_count, value_count, value_sum, value_avg, value_percentile, temporal or temporal_ordered";
            return Err(Error::new(Why::Shape, &at("type"), what, cure));
        }
    };
    let is_temporal = matches!(measure, Measure::Rules | Measure::Ordered);
    match (measure.reads_values(), fields.is_empty()) {
        (true, true) => return wants("the condition names no field", "write field: and the name of a field in the condition"),
        (false, false) => return wants("it counts no values of a field", "drop field: from the condition"),
        _ => {}
    }
    if fields.len() > 1 && measure != Measure::Values {
        return wants("numbers of several fields are not added up", "name one field");
    }
    if percentile.is_some() && !matches!(measure, Measure::Percentile(_)) {
        return wants("percentile belongs to value_percentile", "drop percentile: from the condition");
    }
    let condition = match (is_temporal, comparisons.is_empty()) {
        (true, true) => Condition(vec![(Comparison::AtLeast, rules as i64)]),
        (false, true) => return wants("it has no condition", "write condition: {gte: 10}"),
        _ => Condition(comparisons),
    };
    if measure == Measure::Ordered && (1..=rules as i64).any(|n| condition.holds(n.into(), 1) != (n == rules as i64)) {
        return wants("all of its rules have to occur, in their order", "drop the condition, or write type: temporal");
    }
    Ok((measure, condition, fields))
}

type Conditions = (Vec<(Comparison, i64)>, Vec<(String, Place)>, Option<u8>);

fn conditions(reader: &Reader<'_>, node: &Node) -> Result<Conditions, Error> {
    let (mut comparisons, mut percentile) = (Vec::new(), None);
    let Yaml::Map(pairs) = &node.value else {
        return Err(Error::new(Why::Shape, &reader.at(node), "condition is no mapping", "write condition: {gte: 10}"));
    };
    for (key, value) in pairs {
        let name = key.scalar().unwrap_or("");
        let number = value.scalar().and_then(|text| text.trim().parse::<i64>().ok());
        let comparison = match name {
            "gt" => Comparison::Over,
            "gte" => Comparison::AtLeast,
            "lt" => Comparison::Under,
            "lte" => Comparison::AtMost,
            "eq" => Comparison::Equal,
            "neq" => Comparison::Other,
            "field" => continue,
            "percentile" => {
                percentile = Some(
                    number.and_then(|number| u8::try_from(number).ok()).filter(|number| *number <= 100).ok_or_else(|| {
                        Error::new(Why::Value, &reader.at(value), "the percentile is none", "write a whole number from 0 to 100")
                    })?,
                );
                continue;
            }
            _ => {
                let what = format!("the condition {} is unknown", shown(name));
                return Err(Error::new(Why::Shape, &reader.at(key), what, "write gt, gte, lt, lte, eq, neq and field"));
            }
        };
        let Some(number) = number else {
            let what = format!("{name} has no whole number");
            return Err(Error::new(Why::Value, &reader.at(value), what, "write a number like gte: 10"));
        };
        comparisons.push((comparison, number));
    }
    let fields = Reader { document: node, ..*reader };
    Ok((comparisons, named(&fields, "field", CORRELATION_FIELDS_MAX)?, percentile))
}

/// Refuses what can never hold: windows begin at an event, so what counts absent ones would silently never alert.
fn possible(shape: &Shape, reader: &Reader<'_>, section: &Node) -> Result<(), Error> {
    let at = find(reader.document, "condition").map_or_else(|| reader.at(section), |node| reader.at(node));
    let most = match shape.measure {
        Measure::Events | Measure::Values => CORRELATION_COUNT_MAX,
        Measure::Rules => shape.inputs as i64,
        _ => return Ok(()),
    };
    // Between the numbers that it names nothing changes.
    let near = shape.condition.0.iter().flat_map(|(_, number)| [-1, 0, 1].map(|by| number.saturating_add(by)));
    if near.chain([1, most]).any(|count| (1..=most).contains(&count) && shape.condition.holds(count.into(), 1)) {
        return Ok(());
    }
    let what = format!("the condition holds for no count from 1 to {most}");
    let cure = "correct the numbers; what does not happen is found by a sequence rule with ![...] (CREATE RULE)";
    Err(Error::new(Why::Value, &at, what, cure))
}

fn aliases(reader: &Reader<'_>) -> Result<Vec<Alias>, Error> {
    let Some(node) = find(reader.document, "aliases") else { return Ok(Vec::new()) };
    let wrong =
        |node: &Node, what: &str| Error::new(Why::Shape, &reader.at(node), what, "write aliases: {NAME: {RULE: FIELD, …}}");
    let Yaml::Map(pairs) = &node.value else {
        return if node.value == Yaml::Null { Ok(Vec::new()) } else { Err(wrong(node, "aliases is no mapping")) };
    };
    if pairs.len() > CORRELATION_FIELDS_MAX {
        let what = format!("there are {} aliases, at most {CORRELATION_FIELDS_MAX} are taken", pairs.len());
        return Err(Error::new(Why::Limit, &reader.at(node), what, "drop those that group-by and field do not name"));
    }
    let alias = |(key, value): &(Node, Node)| {
        let (Some(name), Yaml::Map(pairs)) = (key.scalar(), &value.value) else {
            return Err(wrong(key, "an alias is no mapping"));
        };
        let of = pairs.iter().map(|(rule, field)| match (rule.scalar(), field.scalar()) {
            (Some(name), Some(field)) => Ok((name.to_owned(), field.to_owned(), reader.at(rule))),
            _ => Err(wrong(rule, "an alias names no field")),
        });
        Ok(Alias { name: name.to_owned(), place: reader.at(key), of: of.collect::<Result<_, _>>()? })
    };
    pairs.iter().map(alias).collect()
}

fn generate(reader: &Reader<'_>) -> Result<bool, Error> {
    let node = find(reader.document, "generate");
    match node.map(|node| (node, node.scalar())) {
        None | Some((_, Some("false" | "False" | "no"))) => Ok(false),
        Some((_, Some("true" | "True" | "yes"))) => Ok(true),
        Some((node, _)) => {
            Err(Error::new(Why::Shape, &reader.at(node), "generate is neither true nor false", "write true or false"))
        }
    }
}

const KEYS: &[&str] = &["type", "rules", "group-by", "timespan", "condition", "aliases", "generate"];
