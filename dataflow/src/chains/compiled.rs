//! Sequence rules as the workers run them, and which are in force when.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion_expr::{BinaryExpr, Operator};
use serde::{Deserialize, Serialize};
use weir_plan::{EqlRule, Error, Expr, Rule, eql_rule};
use weir_schema::{Column, EVENTS, Kind, Text};
use xxhash_rust::xxh3::xxh3_64;

use super::shape::Shape;
use crate::alerts::{RuleHead, json, tactics, techniques};
use crate::definition::{ViewDefinition, ViewKind};
use crate::expr::{Counters, Exprs};
use crate::relations::RelationInfo;
use crate::render::RowCodec;
use crate::source::schema_of;

/// What alerts say of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChainHead {
    pub(crate) rule: RuleHead,
    pub(crate) stages: Vec<Text>,
}

/// A rule, compiled.
pub(crate) struct ChainRule {
    /// A hash of what it says.
    pub(crate) version: u64,
    /// The tick from which it is in force, as far as this process knows.
    pub(crate) since: u64,
    pub(crate) head: Arc<ChainHead>,
    pub(crate) shape: Shape,
    pub(crate) steps: Vec<Step>,
    /// What steps read.
    pub(crate) columns: (SchemaRef, Vec<Column>),
    /// The columns of the keys, and the bits that are looked for under them.
    pub(crate) variants: Vec<(Vec<Column>, u32)>,
    /// Names of the keys, the tenant first.
    pub(crate) keys: Vec<Text>,
    /// Keys to bytes and back.
    pub(crate) codec: RowCodec,
    /// Of the rule's relation, with text as text; keys as the engine has them.
    pub(crate) schema: SchemaRef,
}

/// A predicate, compiled.
pub(crate) struct Step {
    pub(crate) predicate: Exprs,
    pub(crate) bit: usize,
    kinds: BTreeSet<Kind>,
}

impl Step {
    /// Whether it may hold for events of a kind.
    pub(crate) fn may_hold(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}

impl std::fmt::Debug for ChainRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChainRule").field("name", &self.head.rule.name).field("since", &self.since).finish_non_exhaustive()
    }
}

/// What the chain is to say of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleDefinition {
    /// As the chain has it.
    pub definition: ViewDefinition,
    /// OR REPLACE.
    pub replace: bool,
}

/// Reads and plans a CREATE RULE.
pub fn rule_definition(sql: &str) -> Result<RuleDefinition, Error> {
    let rule = Rule::parse(sql, &schema_of(EVENTS))?;
    let (name, reads) = (rule.name, vec!["events".to_owned()]);
    let definition = ViewDefinition { name, sql: sql.to_owned(), kind: ViewKind::Sequence, reads };
    Ok(RuleDefinition { definition, replace: rule.replace })
}

/// Reads and plans the CREATE RULE statements of a file. An error names the rule.
pub fn rule_definitions(file: &str) -> Result<Vec<RuleDefinition>, Error> {
    weir_plan::statements(file)?.iter().map(|sql| rule_definition(sql)).collect()
}

/// Reads, translates and plans the rule of a file of EQL; what it asks and nothing supplies stands beside it. `stem` is the file's name without ending.
pub fn eql_definition(stem: &str, ending: &str, text: &str) -> Result<(RuleDefinition, Vec<String>), Error> {
    let EqlRule { sql, partly, .. } = eql_rule(stem, ending, text, &schema_of(EVENTS))?;
    Ok((rule_definition(&sql)?, partly))
}

/// A rule's plan and its relation.
pub(crate) fn info_of(definition: &ViewDefinition) -> Result<(Rule, RelationInfo), Error> {
    let rule = Rule::parse(&definition.sql, &schema_of(EVENTS))?;
    let outside = columns_of(&rule)?.into_iter().map(|field| match field.data_type() {
        DataType::Dictionary(_, values) => Field::new(field.name(), values.as_ref().clone(), true),
        _ => field,
    });
    let schema = Arc::new(Schema::new(outside.collect::<Vec<_>>()));
    let info =
        RelationInfo { name: definition.name.clone().into(), schema, standing: true, sql: Some(definition.statement().into()) };
    Ok((rule, info))
}

/// The keys of a rule's events, the tenant first: a chain never has events of two.
fn keys_of(by: &[String]) -> Vec<Column> {
    let named = by.iter().filter_map(|name| Column::from_name(name));
    std::iter::once(Column::Tenant).chain(named.filter(|column| *column != Column::Tenant)).collect()
}

/// The columns of a rule's relation.
fn columns_of(rule: &Rule) -> Result<Vec<Field>, Error> {
    let keys = schema_of(&keys_of(&rule.keys));
    let time = || DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    let mut fields: Vec<Field> = keys.fields().iter().map(|field| field.as_ref().clone()).collect();
    for stage in rule.stages() {
        fields.push(Field::new(format!("{stage}_time"), time(), true));
        fields.push(Field::new(format!("{stage}_event_id"), DataType::Utf8, true));
    }
    fields.extend(["started", "ended"].map(|name| Field::new(name, time(), true)));
    fields.extend(["state", "alert_id"].map(|name| Field::new(name, DataType::Utf8, true)));
    let mut names = BTreeSet::new();
    match fields.iter().find(|field| !names.insert(field.name())) {
        Some(twice) => Err(Error::Type {
            construct: format!("rule \"{}\"", rule.name),
            why: format!("its relation would have two columns {}: rename a stage", twice.name()),
        }),
        None => Ok(fields),
    }
}

impl ChainRule {
    pub(crate) fn compile(rule: &Rule, sql: &str, since: u64, counters: &Arc<Counters>) -> Result<Self, Error> {
        let columns: Vec<Column> = rule.columns().iter().filter_map(|name| Column::from_name(name)).collect();
        let schema = schema_of(&columns);
        let shape = Shape::of(rule);
        let (mut steps, mut variants) = (vec![], Vec::<(Vec<Column>, u32)>::new());
        for (step, bit) in rule.steps.iter().zip(Shape::bits_of(rule)) {
            let predicate = Exprs::new([&step.predicate], &schema, "rule, stage", counters)?;
            steps.push(Step { predicate, bit, kinds: kinds_of(&step.predicate) });
            let by = keys_of(&step.by);
            match variants.iter_mut().find(|(columns, _)| *columns == by) {
                Some((_, bits)) => *bits |= 1 << bit,
                None => variants.push((by, 1 << bit)),
            }
        }
        let keys = keys_of(&rule.keys);
        let key_schema = schema_of(&keys);
        let codec = RowCodec::of(&key_schema);
        let head = ChainHead {
            rule: RuleHead {
                id: xxh3_64(rule.name.as_bytes()),
                version: xxh3_64(sql.as_bytes()),
                name: rule.name.as_str().into(),
                severity: rule.severity.as_str().into(),
                tactics: json(&tactics(&rule.attack)),
                techniques: json(&techniques(&rule.attack)),
            },
            stages: rule.stages().map(Into::into).collect(),
        };
        let mut bytes = rule.name.clone().into_bytes();
        bytes.push(0);
        bytes.extend_from_slice(sql.as_bytes());
        Ok(Self {
            version: xxh3_64(&bytes),
            since,
            head: Arc::new(head),
            shape,
            steps,
            columns: (schema, columns),
            variants,
            keys: keys.iter().map(|key| key.name().into()).collect(),
            codec,
            schema: Arc::new(Schema::new(columns_of(rule)?)),
        })
    }
}

/// The kinds of events that a predicate may hold for: what `kind = …` and `kind IN (…)` leave open.
fn kinds_of(predicate: &Expr) -> BTreeSet<Kind> {
    let all = || Kind::ALL.iter().copied().collect::<BTreeSet<Kind>>();
    let is_kind = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == Column::Kind.name());
    let named = |expr: &Expr| -> Option<BTreeSet<Kind>> {
        let Expr::Literal(value, _) = expr else { return None };
        let name = value.try_as_str()??.to_owned();
        Some(Kind::ALL.iter().copied().filter(|kind| kind.as_str() == name).collect())
    };
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => &kinds_of(left) & &kinds_of(right),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => &kinds_of(left) | &kinds_of(right),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_kind(left) => named(right).unwrap_or_else(all),
        Expr::InList(list) if is_kind(&list.expr) && !list.negated => {
            let kinds = list.list.iter().map(named).collect::<Option<Vec<_>>>();
            kinds.map_or_else(all, |kinds| kinds.into_iter().flatten().collect())
        }
        _ => all(),
    }
}

/// The rules by the tick from which they are in force; shared by the operators of one worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct RulesInForce(Rc<RefCell<BTreeMap<u64, Set>>>);

/// Rules of a tick.
pub(crate) type Set = Rc<Vec<Arc<ChainRule>>>;

impl RulesInForce {
    /// A rule is in force from a tick on, in the place of one of the same name.
    pub(crate) fn add(&self, tick: u64, rule: ChainRule) {
        let same = |known: &Arc<ChainRule>| known.head.rule.id == rule.head.rule.id;
        let mut rules: Vec<_> = self.at(tick).iter().filter(|known| !same(known)).cloned().collect();
        rules.push(Arc::new(rule));
        self.0.borrow_mut().insert(tick, Rc::new(rules));
    }

    /// A rule is in force no more from a tick on; false: there is none of this name.
    pub(crate) fn remove(&self, tick: u64, name: &str) -> bool {
        let is_it = |known: &&Arc<ChainRule>| &*known.head.rule.name == name;
        if !self.at(tick).iter().any(|known| is_it(&known)) {
            return false;
        }
        let rules = self.at(tick).iter().filter(|known| !is_it(known)).cloned().collect();
        self.0.borrow_mut().insert(tick, Rc::new(rules));
        true
    }

    /// The rules of a tick.
    pub(crate) fn at(&self, tick: u64) -> Set {
        self.0.borrow().range(..=tick).next_back().map(|(_, rules)| Rc::clone(rules)).unwrap_or_default()
    }

    /// The rules of the ticks before one.
    pub(crate) fn before(&self, tick: u64) -> Set {
        self.0.borrow().range(..tick).next_back().map(|(_, rules)| Rc::clone(rules)).unwrap_or_default()
    }

    /// Nobody asks for ticks before this one any more.
    pub(crate) fn forget_before(&self, tick: u64) {
        let mut rules = self.0.borrow_mut();
        while rules.range(..=tick).nth(1).is_some() {
            rules.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predicate_is_asked_only_of_the_kinds_it_may_hold_for() {
        let kinds = |predicate: &str| {
            let sql = format!("CREATE RULE r AS SEQUENCE BY host WITH MAXSPAN INTERVAL '1 minute' [{predicate}] [pid = 1]");
            let rule = Rule::parse(&sql, &schema_of(EVENTS)).unwrap();
            kinds_of(&rule.steps[0].predicate).into_iter().map(Kind::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kinds("kind = 'exec' AND path LIKE '/tmp/%'"), "exec");
        assert_eq!(kinds("(kind = 'exec' OR kind IN ('connect')) AND pid > 1 AND NOT kind = 'exec'").split(' ').count(), 2);
        assert_eq!(kinds("pid > 1 OR kind = 'exec'").split(' ').count(), Kind::ALL.len());
        assert_eq!(kinds("kind NOT IN ('exec')").split(' ').count(), Kind::ALL.len());
    }
}
