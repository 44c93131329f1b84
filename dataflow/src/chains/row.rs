//! What changes of the chains in a tick, as rows: of `alerts`, of a rule's relation, of `losses`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray};
use serde::{Deserialize, Serialize};
use weir_schema::Text;
use xxhash_rust::xxh3::xxh3_64;

use super::compiled::{ChainHead, ChainRule};
use super::hit::HitSource;
use super::key::{Chain, ChainState};
use crate::alerts::SUMMARY_BYTES_MAX;
use crate::checkpoint::shared;
use crate::delta::{DeltaBatch, texts};
use crate::hits::{AlertOfHits, HotKeys, alert_id, hex};
use crate::packed::Bytes;
use crate::source::table::Table;

/// Whose chains they are.
pub(crate) struct Told<'a> {
    pub(crate) rule: &'a ChainRule,
    pub(crate) key: &'a Bytes,
}

/// An alert of a chain, with all that its row says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChainAlert {
    #[serde(with = "shared")]
    pub(crate) head: Arc<ChainHead>,
    /// A hash of tenant and keys.
    pub(crate) key: u64,
    pub(crate) summary: Text,
    pub(crate) chain: Chain,
}

/// Rows of one rule's relation that come and go: the key, the chain, the diff.
type Rows = Vec<(Bytes, Chain, i64)>;

/// What changed in a tick.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    alerts: Vec<(ChainAlert, i64)>,
    /// By version and first tick of the rule.
    rows: BTreeMap<(u64, u64), Rows>,
    /// Hits that found no room.
    pub(crate) hot: HotKeys,
    /// Chains that went before their time.
    pub(crate) evicted: u64,
}

/// Rows of a rule's relation.
#[derive(Debug, Clone)]
pub(crate) struct RuleRows {
    /// Version and first tick of the rule.
    pub(crate) rule: (u64, u64),
    pub(crate) delta: DeltaBatch,
}

impl Changes {
    pub(crate) fn come(&mut self, told: &Told<'_>, chain: &Chain) {
        self.change(told, chain, 1);
    }

    pub(crate) fn gone(&mut self, told: &Told<'_>, chain: &Chain) {
        self.change(told, chain, -1);
    }

    fn change(&mut self, told: &Told<'_>, chain: &Chain, diff: i64) {
        if chain.state == ChainState::Waiting {
            return;
        }
        self.alerts.push((ChainAlert::of(told, chain), diff));
        if chain.is_told() {
            let rows = self.rows.entry((told.rule.version, told.rule.since)).or_default();
            rows.push((told.key.clone(), chain.clone(), diff));
        }
    }

    /// An alert whose rule is no more.
    pub(crate) fn alert(&mut self, alert: ChainAlert, diff: i64) {
        self.alerts.push((alert, diff));
    }

    /// The rows of `alerts`.
    pub(crate) fn alerts(&self, tick: u64) -> Option<DeltaBatch> {
        let mut table = AlertOfHits::table(self.alerts.len());
        self.alerts.iter().for_each(|(alert, _)| alert.encode(&mut table));
        let diffs = self.alerts.iter().map(|(_, diff)| *diff).collect();
        (!self.alerts.is_empty()).then(|| DeltaBatch::new(tick, table.finish(), diffs))
    }

    /// The rows of the rules' relations.
    pub(crate) fn relations(&self, tick: u64, rule: impl Fn((u64, u64)) -> Option<Arc<ChainRule>>) -> Vec<RuleRows> {
        let of_rule = |(id, rows): (&(u64, u64), &Rows)| {
            let batch = relation_rows(&*rule(*id)?, rows)?;
            let diffs = rows.iter().map(|(.., diff)| *diff).collect();
            Some(RuleRows { rule: *id, delta: DeltaBatch::new(tick, batch, diffs) })
        };
        self.rows.iter().filter_map(of_rule).collect()
    }
}

fn relation_rows(rule: &ChainRule, rows: &Rows) -> Option<RecordBatch> {
    let mut columns = rule.codec.decode(rows.iter().map(|(key, ..)| &**key));
    let times = |at: &dyn Fn(&Chain) -> i64| -> ArrayRef {
        let times = rows.iter().map(|(_, chain, _)| at(chain));
        Arc::new(TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let words = |of: &dyn Fn(&Bytes, &Chain) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, chain, _)| of(key, chain))))
    };
    for stage in 0..rule.shape.stages {
        columns.push(times(&|chain| chain.events[stage].at.0));
        columns.push(words(&|_, chain| hex(&chain.events[stage].at.1)));
    }
    columns.push(times(&|chain| chain.first().0));
    columns.push(times(&|chain| chain.last().0));
    columns.push(words(&|_, chain| state_name(chain.state).to_owned()));
    columns.push(words(&|key, chain| hex(&alert_id(rule.head.rule.id, xxh3_64(key), &chain.first().1).to_be_bytes())));
    // The columns are those that the rule was compiled to have.
    RecordBatch::try_new(Arc::clone(&rule.schema), columns).inspect_err(|why| tracing::error!(%why, "rows of a rule")).ok()
}

fn state_name(state: ChainState) -> &'static str {
    match state {
        ChainState::Settled => "settled",
        ChainState::Waiting | ChainState::Provisional | ChainState::Withdrawn => "provisional",
    }
}

impl ChainAlert {
    pub(crate) fn of(told: &Told<'_>, chain: &Chain) -> Self {
        let Told { rule, key } = told;
        let keys = rule.codec.decode([&***key]);
        let mut summary = format!("{}:", rule.head.rule.name);
        for (name, column) in rule.keys.iter().zip(&keys).skip(1) {
            let value = match texts(column).into_iter().next().flatten() {
                Some(text) => text,
                None => arrow::util::display::array_value_to_string(column, 0).unwrap_or_default(),
            };
            write!(summary, " {name}={value}").expect("a string takes everything");
        }
        for (stage, event) in rule.head.stages.iter().zip(&chain.events) {
            write!(summary, ", {stage} on {}", event.source.place.host).expect("a string takes everything");
        }
        if summary.len() > SUMMARY_BYTES_MAX {
            summary.truncate(summary.floor_char_boundary(SUMMARY_BYTES_MAX));
        }
        Self { head: Arc::clone(&rule.head), key: xxh3_64(key), summary: summary.into(), chain: chain.clone() }
    }

    fn encode(&self, table: &mut Table) {
        let Self { head, key, summary, chain } = self;
        let rule = &head.rule;
        let Some(source) = chain.events.first().map(|event| &event.source) else { return };
        let ids: Vec<String> = chain.events.iter().map(|event| hex(&event.at.1)).collect();
        let stages = head.stages.iter().zip(&chain.events).zip(&ids).enumerate().map(|(n, ((stage, event), id))| {
            serde_json::json!({
                "stage": n + 1, "name": &**stage, "rule": &*rule.name, "events": 1, "event_id": id, "host": &*event.source.place.host,
            })
        });
        let stages = serde_json::Value::Array(stages.collect()).to_string();
        let state = if chain.state == ChainState::Withdrawn { "withdrawn" } else { "open" };
        let row = AlertOfHits {
            id: alert_id(rule.id, *key, &chain.first().1),
            revision: chain.revision,
            state,
            rule,
            source,
            times: (chain.first().0, chain.last().0),
            summary,
            evidence: &ids,
            stages: &stages,
            hosts: &distinct(chain, |source| &source.place.host),
            regions: &distinct(chain, |source| &source.place.region),
            changed: chain.changed,
            lost: chain.events.iter().map(|event| event.source.lost).max().unwrap_or(0),
        };
        row.encode(table);
    }
}

/// Each once, in the order of the events.
fn distinct<'c>(chain: &'c Chain, of: impl Fn(&'c HitSource) -> &'c Text) -> Vec<&'c str> {
    chain.events.iter().map(|event| &**of(&event.source)).fold(vec![], |mut all, name| {
        if !all.contains(&name) {
            all.push(name);
        }
        all
    })
}
